package layers

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// crashModel is a model that knows what a crash at any moment may leave.
type crashModel struct {
	*model
	disk    *memDisk
	past    map[int64][][]byte // contents of a block since the last flush that was acknowledged, that one first
	during  string             // what is being done
	making  *modelSnapshot     // a snapshot that may be there or not
	leaving int                // index of a boundary that may be there or not, or be a mark; -1: none
	turning []byte             // content of the snapshot that the volume may have been reverted to
	sizes   []int64            // that the volume may have
	ops     int
	crashes int
	every   int // a crash at about one of so many operations
}

func newCrashModel(t testing.TB, seed uint64, size int64, every int) *crashModel {
	d := newMemDisk()
	r := rand.New(rand.NewPCG(seed, 1))
	c := &crashModel{model: newModel(t, d, r, size, smallTuning), disk: d, leaving: -1, every: every}
	c.acknowledge()
	chance := rand.New(rand.NewPCG(seed, 2)) // its own: the script does not depend on the crashes
	d.hook = func() {
		c.ops++
		if chance.IntN(c.every) > 0 {
			return
		}
		for range 2 {
			c.crashes++
			c.inspect(d.crash(chance), chance)
		}
	}
	return c
}

// acknowledge says that all that was written is durable.
func (c *crashModel) acknowledge() {
	c.past = map[int64][][]byte{}
	c.sizes = []int64{int64(len(c.live))}
}

func blockOf(p []byte, b int64) []byte {
	return p[min(b*BlockSize, int64(len(p))):min((b+1)*BlockSize, int64(len(p)))]
}

// write and zero note what the blocks were and will be before they begin.
func (c *crashModel) change(off int64, p []byte, do func() error) {
	next := slices.Clone(c.live)
	copy(next[off:], p)
	for b := off / BlockSize; b*BlockSize < off+int64(len(p)); b++ {
		if c.past[b] == nil {
			c.past[b] = [][]byte{slices.Clone(blockOf(c.live, b))}
		}
		c.past[b] = append(c.past[b], slices.Clone(blockOf(next, b)))
	}
	if err := do(); err != nil {
		c.t.Fatalf("%s: %v", c.during, err)
	}
	c.live = next
	c.dirty = true
}

func (c *crashModel) step() {
	switch n := c.r.IntN(100); {
	case n < 40:
		off, size := c.place(12 * BlockSize)
		p := make([]byte, size)
		for i := range p {
			p[i] = byte(c.r.Uint32())
		}
		c.during = fmt.Sprintf("write [%d, %d)", off, off+size)
		c.change(off, p, func() error { _, err := c.v.WriteAt(p, off); return err })
	case n < 50:
		off, size := c.place(40 * BlockSize)
		c.during = fmt.Sprintf("zero [%d, %d)", off, off+size)
		c.change(off, make([]byte, size), func() error { return c.v.WriteZeroes(off, size) })
	case n < 62:
		c.during = "flush"
		c.flush()
		c.acknowledge()
	case n < 72:
		c.takeSnapshot()
	case n < 80:
		c.giveUp()
	case n < 82:
		c.growBy(40)
	case n < 83:
		c.turnBack()
	case n < 84:
		c.during = "reopen"
		c.reopen()
		c.acknowledge()
	case n < 85:
		c.during = "grow journal"
		c.growJournal()
	case n < 88:
		c.during = "checkpoint"
		c.checkpoint()
		c.acknowledge()
	default:
		c.during = "tidy"
		for range c.r.IntN(16) {
			c.tidyStep()
		}
	}
	c.checkLive()
}

func (c *crashModel) takeSnapshot() {
	if len(c.marks) >= 6 { // each is compared with each, after each crash
		c.giveUp()
		return
	}
	c.making = &modelSnapshot{id: NewID(), data: slices.Clone(c.live)}
	c.during = "snapshot " + c.making.id.String()
	if err := c.v.Snapshot(c.making.id); err != nil {
		c.t.Fatal(err)
	}
	c.sealed(c.making.id)
	c.making = nil
	c.acknowledge()
}

func (c *crashModel) turnBack() {
	i := c.pick(false)
	if i < 0 || len(c.marks) >= 6 {
		c.giveUp()
		return
	}
	c.during = "flush"
	c.flush()
	c.acknowledge()
	to := c.marks[i]
	c.making = &modelSnapshot{id: NewID(), parent: c.below, data: slices.Clone(c.live)}
	c.turning = append(slices.Clone(to.data), make([]byte, len(c.live)-len(to.data))...)
	c.during = fmt.Sprintf("revert to %s", to.id)
	if err := c.v.Revert(to.id, c.making.id); err != nil {
		c.t.Fatal(err)
	}
	c.sealed(c.making.id)
	c.reverted(to)
	c.making, c.turning = nil, nil
}

func (c *crashModel) giveUp() {
	if len(c.marks) == 0 {
		return
	}
	i := c.r.IntN(len(c.marks))
	s := c.marks[i]
	keep := !s.mark && c.r.IntN(2) == 0
	c.during = fmt.Sprintf("give up %s, keep mark %v", s.id, keep)
	c.leaving = i
	var err error
	if s.mark {
		err = c.v.DropMark(s.id)
	} else {
		err = c.v.DeleteSnapshot(s.id, keep)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.leaving = -1
	if keep {
		c.marks[i].mark = true
	} else {
		c.remove(i)
	}
}

func (c *crashModel) growBy(limit int64) {
	size := int64(len(c.live)) + sectorSize*c.r.Int64N(limit)
	c.during = fmt.Sprintf("grow to %d", size)
	c.sizes = append(c.sizes, size)
	if err := c.v.Grow(size); err != nil {
		c.t.Fatal(err)
	}
	more := make([]byte, size-int64(len(c.live)))
	for b := range c.past { // the last block may be longer now
		for i, p := range c.past[b] {
			c.past[b][i] = append(slices.Clone(p), make([]byte, min(BlockSize-int64(len(p)), int64(len(more))))...)
		}
	}
	c.live = append(slices.Clone(c.live), more...)
	c.sizes = []int64{size}
}

// inspect opens the volume that a crash left and compares it with what it may
// be.
func (c *crashModel) inspect(d *memDisk, r *rand.Rand) {
	c.t.Helper()
	if r.IntN(4) == 0 {
		d = c.crashAgain(d, r)
	}
	c.compare(d)
	if c.t.Failed() {
		c.t.Fatalf("at operation %d, during %s", c.ops, c.during)
	}
	if r.IntN(4) > 0 {
		return
	}
	// And once more, after everything was tidied up and closed.
	v, err := openVolume(d, Options{}, smallTuning)
	if err != nil {
		c.t.Fatalf("open after a crash and a close, during %s: %v", c.during, err)
	}
	if err := errors.Join(v.tidy(), leaked(v), v.Close()); err != nil {
		c.t.Fatalf("tidy and close after a crash, during %s: %v", c.during, err)
	}
	c.compare(d)
	if c.t.Failed() {
		c.t.Fatalf("at operation %d, during %s, tidied up", c.ops, c.during)
	}
}

// leaked returns an error if a layer has space that its map does not name.
func leaked(v *Volume) error {
	for _, l := range v.files {
		st, err := l.data.stat()
		if err != nil {
			return err
		}
		if blocks, _ := l.usage(); st.allocated > blocks*BlockSize {
			return fmt.Errorf("layer %s has %d blocks and takes %d", l.id, blocks, st.allocated/BlockSize)
		}
	}
	return nil
}

// crashAgain crashes once more while the volume is being opened.
func (c *crashModel) crashAgain(d *memDisk, r *rand.Rand) *memDisk {
	at, n := r.IntN(60), 0
	var again *memDisk
	d.hook = func() {
		if n == at {
			again = d.crash(r)
		}
		n++
	}
	v, err := openVolume(d, Options{}, smallTuning)
	d.hook = nil
	if err != nil {
		c.t.Fatalf("open after a crash, during %s: %v", c.during, err)
	}
	if again == nil {
		again = d.crash(r)
	}
	v.closed.Store(true)
	return again
}

func (c *crashModel) compare(d *memDisk) {
	c.t.Helper()
	v, err := openVolume(d, Options{}, smallTuning)
	if err != nil {
		c.t.Errorf("open after a crash: %v", err)
		return
	}
	if err := sound(v); err != nil {
		c.t.Errorf("check after a crash: %v", err)
	}
	c.compareLive(v)
	c.compareBoundaries(v)
	if err := v.Close(); err != nil {
		c.t.Errorf("close after a crash: %v", err)
	}
}

func (c *crashModel) compareLive(v *Volume) {
	c.t.Helper()
	if !slices.Contains(c.sizes, v.Size()) {
		c.t.Errorf("size %d after a crash, want one of %d", v.Size(), c.sizes)
		return
	}
	if c.turning != nil {
		c.compareTurned(v)
		return
	}
	for _, s := range c.spans(v.Size()) {
		got := make([]byte, s.end-s.start)
		if _, err := v.ReadAt(got, s.start); err != nil {
			c.t.Errorf("read after a crash: %v", err)
			return
		}
		for b := s.start / BlockSize; b < blocksOf(s.end); b++ {
			may := c.past[b]
			if may == nil {
				may = [][]byte{blockOf(c.live, b)}
			}
			have := blockOf(got, b-s.start/BlockSize)
			if !slices.ContainsFunc(may, func(p []byte) bool { return sameButTail(p, have) }) {
				c.t.Errorf("block %d is none of the %d contents that it may have", b, len(may))
				return
			}
		}
	}
}

// compareTurned checks that a volume is wholly reverted, with its safety
// snapshot, or not at all.
func (c *crashModel) compareTurned(v *Volume) {
	c.t.Helper()
	want := c.live
	if slices.ContainsFunc(v.Boundaries(), func(b Boundary) bool { return b.ID == c.making.id }) {
		want = c.turning
	}
	got := make([]byte, len(want))
	if _, err := v.ReadAt(got, 0); err != nil {
		c.t.Errorf("read after a crash: %v", err)
	} else if at := differ(got, want); at >= 0 {
		c.t.Errorf("half reverted: differs at %d", at)
	}
}

// sameButTail reports whether a and b are the same where both are, and the rest
// of the longer is zeros: the volume may have grown.
func sameButTail(a, b []byte) bool {
	n := min(len(a), len(b))
	return bytes.Equal(a[:n], b[:n]) && isZero(a[n:]) && isZero(b[n:])
}

func (c *crashModel) compareBoundaries(v *Volume) {
	c.t.Helper()
	var have []modelSnapshot
	list := v.Boundaries()
	for i, s := range c.marks {
		at := slices.IndexFunc(list, func(b Boundary) bool { return b.ID == s.id })
		switch {
		case at < 0 && i != c.leaving:
			c.t.Errorf("boundary %s is lost", s.id)
		case at < 0:
		case list[at].Mark != s.mark && i != c.leaving:
			c.t.Errorf("boundary %s: mark %v, want %v", s.id, list[at].Mark, s.mark)
		default:
			s.mark = list[at].Mark
			have = append(have, s)
		}
	}
	if c.making != nil && slices.ContainsFunc(list, func(b Boundary) bool { return b.ID == c.making.id }) {
		have = append(have, *c.making)
	}
	if len(have) != len(list) {
		c.t.Errorf("%d boundaries, want %d", len(list), len(have))
	}
	for _, to := range have {
		if to.mark {
			continue
		}
		w, err := v.View(to.id)
		if err != nil {
			c.t.Errorf("view after a crash: %v", err)
			continue
		}
		c.checkView(w, to.data)
		w.Close()
		for _, from := range have {
			w, err := v.Diff(from.id, to.id)
			if err != nil {
				c.t.Errorf("diff after a crash: %v", err)
				continue
			}
			c.checkDiff(w, from.data, to.data)
			w.Close()
		}
	}
}

// V9, S3, S5: at each operation on the disk the power may fail; whatever it left,
// what was flushed is there, each other block is old or new, and every snapshot
// and mark is whole.
func TestCrash(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		rounds := uint64(3)
		if testing.Short() {
			rounds = 1
		}
		crashes := 0
		for round := range rounds {
			t.Run(fmt.Sprint(round), func(t *testing.T) {
				c := newCrashModel(t, seed+round, 40*BlockSize+1536, 8)
				for range 160 {
					c.step()
				}
				crashes += c.crashes
			})
		}
		t.Logf("%d crashes", crashes)
	})
}

// S3, S4: the same while two layers become one, whichever is the larger, with
// the upper one reaching into a group of the map that the lower does not have.
func TestCrashInMerge(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		for _, lowerIsLarger := range []bool{true, false} {
			t.Run(fmt.Sprint(lowerIsLarger), func(t *testing.T) {
				c := newCrashModel(t, seed, (pageBlocks-8)*BlockSize, 1<<30)
				c.parts = []span{{0, 200 * BlockSize}, {(pageBlocks - 32) * BlockSize, (pageBlocks + 16) * BlockSize}}
				fill := func(first, n int64) {
					p := make([]byte, n*BlockSize)
					for i := range p {
						p[i] = byte(c.r.Uint32())
					}
					c.change(first*BlockSize, p, func() error { _, err := c.v.WriteAt(p, first*BlockSize); return err })
				}
				small, large := int64(6), int64(14)
				if !lowerIsLarger {
					small, large = large, small
				}
				fill(pageBlocks-20, large/2)
				fill(100, large/2)
				c.change(103*BlockSize, make([]byte, BlockSize), func() error { return c.v.WriteZeroes(103*BlockSize, BlockSize) })
				c.takeSnapshot()
				c.sizes = append(c.sizes, (pageBlocks+8)*BlockSize)
				if err := c.v.Grow((pageBlocks + 8) * BlockSize); err != nil {
					t.Fatal(err)
				}
				c.live = append(c.live, make([]byte, 16*BlockSize)...)
				c.acknowledge()
				fill(pageBlocks-16, small/2)
				fill(pageBlocks+1, small/2)
				c.change(101*BlockSize, make([]byte, BlockSize), func() error { return c.v.WriteZeroes(101*BlockSize, BlockSize) })
				c.takeSnapshot()
				if err := c.v.DeleteSnapshot(c.marks[0].id, false); err != nil {
					t.Fatal(err)
				}
				c.remove(0)
				c.every, c.during = 6, "merge"
				c.tidy()
				if n := len(c.v.files); n != 2 {
					t.Errorf("%d layers after the merge, want 2", n)
				}
				c.checkAll()
				t.Logf("%d crashes in %d operations", c.crashes, c.ops)
			})
		}
	})
}

// S1, V9: what is written after the flush that a snapshot begins with, and
// before the writes are stopped, is in the snapshot and survives.
func TestSealFlushesLateWrites(t *testing.T) {
	d := newMemDisk()
	m := newModel(t, d, rand.New(rand.NewPCG(1, 1)), 64*BlockSize, smallTuning)
	m.write()
	late := bytes.Repeat([]byte{5}, BlockSize)
	syncs := 0
	d.fail = func(op, name string) error {
		if op != "sync" || name != journalName {
			return nil
		}
		if syncs++; syncs == 1 {
			if _, err := m.v.WriteAt(late, 9*BlockSize); err != nil {
				t.Error(err)
			}
		}
		return nil
	}
	id := NewID()
	if err := m.v.Snapshot(id); err != nil {
		t.Fatal(err)
	}
	if syncs != 2 {
		t.Errorf("the journal was synced %d times, want 2", syncs)
	}
	v, err := openVolume(d.crash(rand.New(rand.NewPCG(2, 2))), Options{}, smallTuning)
	if err != nil {
		t.Fatal(err)
	}
	w, err := v.View(id)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, BlockSize)
	if _, err := w.ReadAt(got, 9*BlockSize); err != nil || !bytes.Equal(got, late) {
		t.Errorf("the late write is not in the snapshot: %v", err)
	}
}

// V9: a checkpoint that runs while a write is on its way to the data file does
// not keep the next one from syncing it.
func TestCheckpointDuringWrite(t *testing.T) {
	d := newMemDisk()
	m := newModel(t, d, rand.New(rand.NewPCG(1, 1)), 64*BlockSize, smallTuning)
	during := false
	d.fail = func(op, name string) error {
		if op == "write" && strings.HasSuffix(name, ".data") && !during {
			during = true
			return m.v.checkpoint()
		}
		return nil
	}
	want := bytes.Repeat([]byte{5}, BlockSize)
	if _, err := m.v.WriteAt(want, 9*BlockSize); err != nil {
		t.Fatal(err)
	}
	if !during {
		t.Fatal("no checkpoint ran during the write")
	}
	if err := errors.Join(m.v.Flush(), m.v.checkpoint()); err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(20) {
		v, err := openVolume(d.crash(rand.New(rand.NewPCG(seed, 2))), Options{}, smallTuning)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, BlockSize)
		if _, err := v.ReadAt(got, 9*BlockSize); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("seed %d: the block that was flushed is lost: %v", seed, err)
		}
	}
}
