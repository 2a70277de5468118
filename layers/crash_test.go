package layers

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
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
	turnTo  ID                 // that snapshot
	sizes   []int64            // that the volume may have
	ops     int
	crashes int
	every   int // a crash at about one of so many operations
}

func newCrashModel(t testing.TB, seed uint64, size int64, every int) *crashModel {
	d := newMemDisk()
	return newCrashModelOn(t, d, d, seed, size, every)
}

// newCrashModelOn is newCrashModel on a disk that may be more than the one that
// crashes.
func newCrashModelOn(t testing.TB, on disk, d *memDisk, seed uint64, size int64, every int) *crashModel {
	r := rand.New(rand.NewPCG(seed, 1))
	c := &crashModel{model: newModel(t, on, r, size, smallTuning), disk: d, leaving: -1, every: every}
	c.acknowledge()
	chance := rand.New(rand.NewPCG(seed, 2)) // its own: the script does not depend on the crashes
	d.hook = func() {
		c.ops++
		if chance.IntN(c.every*sparse) > 0 {
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
		c.writeSome(12 * BlockSize)
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
		c.tidySome(c.r.IntN(3) == 0)
		c.tidyFull()
	}
	c.checkLive()
}

func (c *crashModel) writeSome(limit int64) {
	off, size := c.place(limit)
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(c.r.Uint32())
	}
	c.during = fmt.Sprintf("write [%d, %d)", off, off+size)
	c.change(off, p, func() error { _, err := c.v.WriteAt(p, off); return err })
}

// tidySome takes some steps of tidying. late lets the first go on from a look
// that was before the head was sealed.
func (c *crashModel) tidySome(late bool) {
	c.during = fmt.Sprintf("tidy, late %v", late)
	if late {
		if _, err := c.v.changeStep(); err != nil {
			c.t.Fatal(err)
		}
	}
	for range c.r.IntN(16) {
		c.tidyStep()
	}
}

// tidyFull takes some steps of tidying while there is space for some writes and
// not for others.
func (c *crashModel) tidyFull() {
	c.during = "tidy on a full disk"
	before := c.disk.fail
	c.disk.fail = fullIf(func() bool { return c.r.IntN(4) == 0 })
	for range c.r.IntN(6) {
		if _, err := c.v.tidyStep(); err != nil && !errors.Is(err, syscall.ENOSPC) {
			c.t.Fatal(err)
		}
	}
	c.disk.fail = before
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
	c.revertTo(i)
	if c.r.IntN(2) == 0 {
		c.leaveBranch()
	}
}

func (c *crashModel) revertTo(i int) {
	c.writeSome(BlockSize) // so that the journal has a record of the layer that becomes a branch
	c.during = "flush"
	c.flush()
	c.acknowledge()
	to := c.marks[i]
	c.making = &modelSnapshot{id: NewID(), parent: c.below, data: slices.Clone(c.live)}
	c.turnTo, c.turning = to.id, append(slices.Clone(to.data), make([]byte, len(c.live)-len(to.data))...)
	c.during = fmt.Sprintf("revert to %s", to.id)
	if err := c.v.Revert(to.id, c.making.id); err != nil {
		c.t.Fatal(err)
	}
	c.sealed(c.making.id)
	c.reverted(to)
	c.making, c.turning = nil, nil
}

// leaveBranch gives up the snapshot that the last revert has made. The layer
// below it lies at the end of a branch then, and the journal has records of it.
func (c *crashModel) leaveBranch() {
	c.leave(len(c.marks)-1, false)
	c.tidySome(true)
}

func (c *crashModel) giveUp() {
	if len(c.marks) == 0 {
		return
	}
	i := c.r.IntN(len(c.marks))
	c.leave(i, !c.marks[i].mark && c.r.IntN(2) == 0)
}

// leave gives up a boundary, or its data only.
func (c *crashModel) leave(i int, keep bool) {
	s := c.marks[i]
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
				for range 3 {
					c.takeSnapshot()
					if i := c.pick(false); i >= 0 {
						c.revertTo(i)
						c.leaveBranch()
					}
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
