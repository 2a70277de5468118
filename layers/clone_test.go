package layers

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// cloneOf makes a clone beside a volume of newVolume.
func cloneOf(t *testing.T, v *Volume, snapshot ID) (*Volume, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "clone")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := v.cloneTo(osDisk{dir}, NewID(), snapshot); err != nil {
		t.Fatal(err)
	}
	return reopenQuiet(t, dir), dir
}

// reopenQuiet opens a volume without background work.
func reopenQuiet(t *testing.T, dir string) *Volume {
	t.Helper()
	v, err := openVolume(osDisk{dir}, Options{}, smallTuning)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return v
}

// content reads all of a layer.
func content(t *testing.T, l Layer) []byte {
	t.Helper()
	p := make([]byte, l.Size())
	if _, err := l.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func mustTidy(t *testing.T, v *Volume) {
	t.Helper()
	if err := v.tidy(); err != nil {
		t.Fatal(err)
	}
}

// V7: a clone has the snapshot's content, takes no space of its own, and what is
// written to either never shows in the other, whatever is deleted and tidied.
func TestClone(t *testing.T) {
	v, dir := newVolume(t, 512)
	writeBlocks(t, v, 1, 0, 200)
	first := takeSnapshot(t, v)
	writeBlocks(t, v, 2, 100, 200)
	second := takeSnapshot(t, v)
	want := content(t, v)
	writeBlocks(t, v, 3, 0, 512)

	clone, cloneDir := cloneOf(t, v, second)
	if got := content(t, clone); !bytes.Equal(got, want) {
		t.Fatalf("the clone differs from the snapshot at %d", differ(got, want))
	}
	if n := len(clone.Boundaries()); n > 0 {
		t.Errorf("the clone has %d snapshots, want none", n)
	}
	if n, err := v.Lent(); n != 2 || err != nil {
		t.Errorf("Lent() = %d, %v of the origin, want 2", n, err)
	}
	if n, err := clone.Lent(); n != 0 || err != nil {
		t.Errorf("Lent() = %d, %v of the clone, want 0", n, err)
	}

	writeBlocks(t, clone, 4, 50, 100)
	copy(want[50*BlockSize:], bytes.Repeat([]byte{4}, 100*BlockSize))
	live := content(t, v)
	if err := errors.Join(clone.Grow(600*BlockSize), v.DeleteSnapshot(first, false), v.DeleteSnapshot(second, true)); err != nil {
		t.Fatal(err)
	}
	want = append(want, make([]byte, 88*BlockSize)...)
	takeSnapshot(t, v)
	takeSnapshot(t, clone)
	mustTidy(t, v)
	mustTidy(t, clone)
	check := func(when string) {
		t.Helper()
		if got := content(t, clone); !bytes.Equal(got, want) {
			t.Fatalf("%s: the clone differs at %d", when, differ(got, want))
		}
		if v == nil {
			return
		}
		if got := content(t, v); !bytes.Equal(got, live) {
			t.Fatalf("%s: the origin differs at %d", when, differ(got, live))
		}
		if err := errors.Join(sound(v), sound(clone)); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
	check("after tidying")

	if err := errors.Join(v.Close(), Remove(dir)); err != nil {
		t.Fatal(err)
	}
	v = nil
	mustTidy(t, clone)
	check("after the origin is gone")
	if got := diskUsage(t, cloneDir); got > 320*BlockSize {
		t.Errorf("the clone takes %d bytes for %d that it reads: the layers are its own now", got, 300*BlockSize)
	}
	if err := clone.Close(); err != nil {
		t.Fatal(err)
	}
	clone = reopenQuiet(t, cloneDir)
	check("after it was opened again")
	for _, r := range clone.chain.Layers {
		if r.Shared {
			t.Errorf("layer %s is still called shared", r.ID)
		}
	}
}

// V6, V7: a clone of a clone needs the layers of both; they are given up one by
// one.
func TestCloneOfClone(t *testing.T) {
	v, dir := newVolume(t, 64)
	writeBlocks(t, v, 1, 0, 8)
	clone, cloneDir := cloneOf(t, v, takeSnapshot(t, v))
	writeBlocks(t, clone, 2, 4, 8)
	third, thirdDir := cloneOf(t, clone, takeSnapshot(t, clone))
	writeBlocks(t, third, 3, 10, 8)
	want := make([]byte, 64*BlockSize)
	for _, x := range []struct {
		c      byte
		b, end int
	}{{1, 0, 4}, {2, 4, 10}, {3, 10, 18}} {
		copy(want[x.b*BlockSize:], bytes.Repeat([]byte{x.c}, (x.end-x.b)*BlockSize))
	}
	if got := content(t, third); !bytes.Equal(got, want) {
		t.Fatalf("the last clone differs at %d", differ(got, want))
	}
	for name, c := range map[string]struct {
		v    *Volume
		want int
	}{"origin": {v, 1}, "clone": {clone, 1}, "clone of the clone": {third, 0}} {
		if n, err := c.v.Lent(); n != c.want || err != nil {
			t.Errorf("Lent() = %d, %v of the %s, want %d", n, err, name, c.want)
		}
	}
	for i, c := range []struct {
		v   *Volume
		dir string
	}{{clone, cloneDir}, {v, dir}} {
		if err := errors.Join(c.v.Close(), Remove(c.dir)); err != nil {
			t.Fatal(err)
		}
		mustTidy(t, third)
		if got := content(t, third); !bytes.Equal(got, want) {
			t.Fatalf("after %d removals the last clone differs at %d", i+1, differ(got, want))
		}
	}
	if err := third.Close(); err != nil {
		t.Fatal(err)
	}
	if got := content(t, reopenQuiet(t, thirdDir)); !bytes.Equal(got, want) {
		t.Errorf("opened again, the last clone differs at %d", differ(got, want))
	}
}

// S8: volumes that share a layer may make its checksums side by side, each from
// what it knew when it was opened; and one that was cut off half-way is no damage.
func TestSharedChecksums(t *testing.T) {
	v, dir := newVolume(t, 256)
	writeBlocks(t, v, 1, 0, 100)
	clone, _ := cloneOf(t, v, takeSnapshot(t, v)) // no checksums yet
	layer := v.files[0].id
	mustTidy(t, v)
	before, err := os.ReadFile(filepath.Join(dir, mapName(layer)))
	if err != nil {
		t.Fatal(err)
	}
	mustTidy(t, clone)
	after, err := os.ReadFile(filepath.Join(dir, mapName(layer)))
	if err != nil {
		t.Fatal(err)
	}
	if at := differ(before, after); at >= 0 {
		t.Errorf("the second to make them wrote something else at %d", at)
	}
	flip(t, filepath.Join(dir, dataName(layer)), 7*BlockSize)
	for name, v := range map[string]*Volume{"origin": v, "clone": clone} {
		if err := sound(v); !errors.Is(err, ErrCorrupt) {
			t.Errorf("damage in the %s: %v, want %v", name, err, ErrCorrupt)
		}
	}
	flip(t, filepath.Join(dir, dataName(layer)), 7*BlockSize)

	// A page that names the checksums is torn, and the volume closed cleanly.
	slot := v.files[0].groups[0].slot
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(dir, mapName(layer)), slotOffset(0, slot)+1000)
	v = reopenQuiet(t, dir)
	mustTidy(t, v)
	if err := sound(v); err != nil {
		t.Error(err)
	}
	again, err := os.ReadFile(filepath.Join(dir, mapName(layer)))
	if err != nil {
		t.Fatal(err)
	}
	if at := differ(before, again); at >= 0 {
		t.Errorf("made again, the checksums differ at %d", at)
	}
}

func TestCloneRefused(t *testing.T) {
	v, dir := newVolume(t, 64)
	writeBlocks(t, v, 1, 0, 8)
	id := takeSnapshot(t, v)
	mark := takeSnapshot(t, v)
	if err := v.DeleteSnapshot(mark, true); err != nil {
		t.Fatal(err)
	}
	try := func(dir string, clone, snapshot ID) error {
		_, err := v.Clone(dir, clone, snapshot, Options{})
		return err
	}
	free := filepath.Join(t.TempDir(), "x")
	for name, c := range map[string]struct{ got, want error }{
		"of nothing":              {try(free, NewID(), NewID()), fs.ErrNotExist},
		"of a mark":               {try(free, NewID(), mark), fs.ErrNotExist},
		"under the origin's id":   {try(free, v.ID(), id), fs.ErrInvalid},
		"without an id":           {try(free, ID{}, id), fs.ErrInvalid},
		"into a volume":           {try(dir, NewID(), id), fs.ErrExist},
		"to another file system":  {try(otherFileSystem(t), NewID(), id), syscall.EXDEV},
		"removal of an open one":  {Remove(dir), &LockedError{Dir: dir, PID: os.Getpid()}},
		"removal of what is gone": {Remove(filepath.Join(free, "gone")), fs.ErrNotExist},
	} {
		var locked *LockedError
		if errors.As(c.want, &locked) {
			if errors.As(c.got, &locked) {
				continue
			}
		}
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: got %v, want %v", name, c.got, c.want)
		}
	}
	if names, err := os.ReadDir(free); err != nil || len(names) > 0 {
		t.Errorf("refused clones left %v, %v", names, err)
	}
	if err := try(filepath.Join(otherFileSystem(t), "y"), NewID(), id); err == nil || !strings.Contains(err.Error(), "file system of its origin") {
		t.Errorf("to another file system: %v, want the reason", err)
	}
	if n, err := v.Lent(); n != 0 || err != nil {
		t.Errorf("Lent() = %d, %v after refused clones", n, err)
	}
	stray, strayDir := newVolume(t, 64)
	if err := errors.Join(stray.Close(), os.WriteFile(filepath.Join(strayDir, "mine"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := Remove(strayDir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("removal of a directory with another file: %v, want %v", err, fs.ErrExist)
	}
	reopenQuiet(t, strayDir) // nothing is gone
}

// otherFileSystem returns an empty directory that is not on that of TempDir.
func otherFileSystem(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "varve-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// V7, V9: the power may fail at each operation on the disk while a clone is made,
// opened, tidied beside its origin, and removed. Then the origin is whole; the
// clone is whole, or no volume, and what is left of it can be removed.
func TestCrashInClone(t *testing.T) {
	eachSeed(t, func(t *testing.T, seed uint64) {
		d := newMemDisk()
		c := &cloneCrash{t: t, d: d, chance: rand.New(rand.NewPCG(seed, 2))}
		c.origin = newModel(t, d, rand.New(rand.NewPCG(seed, 1)), 48*BlockSize, smallTuning)
		other := d.mkdir()
		for range 4 {
			c.change(c.origin)
		}
		for round := range 4 {
			s := c.origin.marks[c.origin.pick(false)]
			if round%2 == 0 {
				s = c.fresh()
			}
			c.clone = &model{t: t, r: c.origin.r, d: other, tune: smallTuning, live: slices.Clone(s.data), dirty: true}
			c.run(fmt.Sprintf("clone %d", round), func() error { return c.origin.v.cloneTo(other, NewID(), s.id) })
			c.made = true
			c.run("open", func() error { c.clone.open(); return nil })
			for range 2 {
				c.change(c.clone)
				c.change(c.origin)
				c.run("tidying the clone", c.clone.v.tidy)
				c.run("tidying the origin", c.origin.v.tidy)
			}
			c.run("close", c.clone.v.Close)
			c.made = false
			c.run("removal", func() error { return removeVolume(other) })
			c.clone = nil
			c.change(c.origin)
			c.run("tidying after the removal", c.origin.v.tidy)
			c.origin.checkAll()
		}
		t.Logf("%d crashes", c.crashes)
		if c.crashes < 100/sparse {
			t.Errorf("%d crashes are too few to say anything", c.crashes)
		}
	})
}

// cloneCrash is an origin and its clone on a disk that crashes.
type cloneCrash struct {
	t             *testing.T
	d             *memDisk
	chance        *rand.Rand
	origin, clone *model // nil: the clone must not be there
	made          bool   // the clone must be there
	during        string
	crashes       int
}

// change writes, seals and gives up, without a crash: TestCrash has those.
func (c *cloneCrash) change(m *model) {
	for range 4 {
		m.write()
	}
	m.snapshot()
	if len(m.marks) > 3 {
		m.delete()
		m.dropMark()
	}
	m.write()
	m.flush()
}

// fresh takes a snapshot with a block that only the journal names on disk.
func (c *cloneCrash) fresh() modelSnapshot {
	m := c.origin
	m.flush()
	at := m.r.Int64N(40) * BlockSize
	writeBlocks(c.t, m.v, byte(1+m.r.IntN(255)), at/BlockSize, 1)
	if _, err := m.v.ReadAt(m.live[at:at+BlockSize], at); err != nil {
		c.t.Fatal(err)
	}
	m.dirty = true
	m.snapshot()
	return m.marks[len(m.marks)-1]
}

// run does something, with a crash at about every other operation on the disk.
func (c *cloneCrash) run(what string, do func() error) {
	c.t.Helper()
	c.during = what
	c.d.hook = func() {
		if c.chance.IntN(2*sparse) == 0 {
			c.crashes++
			c.inspect(c.d.crash(c.chance))
		}
	}
	err := do()
	c.d.hook = nil
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
}

// inspect opens what a crash left, and compares it with what it may be.
func (c *cloneCrash) inspect(d *memDisk) {
	c.t.Helper()
	origin := c.reopen(c.origin, d)
	origin.tidy()
	origin.checkAll()
	other := d.dirs[1]
	if other.names[headerName] != nil {
		if c.clone == nil {
			c.t.Fatalf("during %s: the clone is there", c.during)
		}
		clone := c.reopen(c.clone, other)
		clone.tidy()
		clone.checkAll()
		c.end(clone.v.Close)
	} else if c.made {
		c.t.Fatalf("during %s: the clone is lost", c.during)
	}
	if c.chance.IntN(2*sparse) == 0 {
		c.end(func() error { return removeVolume(other) })
		origin.tidy()
		c.end(func() error { return leaked(origin.v) })
		for _, r := range origin.v.chain.Layers {
			if r.Shared {
				c.t.Fatalf("during %s: layer %s stays shared with nobody", c.during, r.ID)
			}
		}
	}
	origin.checkAll()
	c.end(origin.v.Close)
}

// reopen returns a model on what a crash left of another one.
func (c *cloneCrash) reopen(m *model, d disk) *model {
	c.t.Helper()
	v, err := openVolume(d, Options{}, smallTuning)
	if err != nil {
		c.t.Fatalf("during %s: open: %v", c.during, err)
	}
	again := *m
	again.v, again.d, again.views = v, d, nil
	again.checkAll()
	return &again
}

func (c *cloneCrash) end(do func() error) {
	c.t.Helper()
	if err := do(); err != nil {
		c.t.Fatalf("during %s: %v", c.during, err)
	}
}
