package layers

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A journal grows only while the disk has several times its size to spare, and
// looks again at each checkpoint.
func TestJournalLeavesTheDiskToOthers(t *testing.T) {
	d := newMemDisk()
	m := newModel(t, d, rand.New(rand.NewPCG(1, 1)), 64*BlockSize, smallTuning)
	var made int
	d.fail = func(op, name string) error {
		if op == "create" && name == journalTemp {
			made++
		}
		return nil
	}
	for _, c := range []struct{ free, want int64 }{
		{1, smallTuning.journalSmall},
		{growthRoom*smallTuning.journalLarge - 1, smallTuning.journalSmall},
		{growthRoom * smallTuning.journalLarge, smallTuning.journalLarge},
		{1, smallTuning.journalLarge}, // what it has it keeps
	} {
		d.left = c.free
		m.write()
		m.growJournal()
		if got := m.v.journal.end; got != c.want {
			t.Errorf("with %d bytes free the journal has %d bytes, want %d", c.free, got, c.want)
		}
		m.flush()
	}
	if made != 1 {
		t.Errorf("%s was made %d times, want once", journalTemp, made)
	}
	m.reopen()
	m.checkAll()
}

// On a small disk a volume under load keeps its small journal, so that others
// find the room that they were shown; with room again it takes the large one.
func TestJournalOnSmallDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=96m"); err != nil {
		if os.Getenv("STRICT") == "1" {
			t.Fatalf("mount a small disk: %v", err)
		}
		t.Skipf("no small disk can be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	tune := defaultTuning
	tune.background = false
	id := NewID()
	d := osDisk{filepath.Join(dir, "v")}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := createVolume(d, id, 8<<20, tune); err != nil {
		t.Fatal(err)
	}
	v, err := openVolume(d, Options{}, tune)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() }) // of a disk that goes
	free := func() int64 {
		t.Helper()
		n, err := d.free()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := free()
	if err := v.growJournal(); err != nil {
		t.Fatalf("with %d bytes free: %v", before, err)
	}
	if got := free(); v.journal.end != journalSmall || got != before {
		t.Errorf("with %d bytes free the journal has %d bytes, want %d; now %d are free", before, v.journal.end, journalSmall, got)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=512m"); err != nil {
		t.Fatal(err)
	}
	if err := v.growJournal(); err != nil || v.journal.end != journalLarge {
		t.Errorf("with %d bytes free the journal has %d bytes, want %d: %v", free(), v.journal.end, journalLarge, err)
	}
	if _, err := os.Stat(d.path(journalTemp)); !os.IsNotExist(err) {
		t.Errorf("%s: got %v, want %v", journalTemp, err, fs.ErrNotExist)
	}
}
