package layers

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// newVolume makes a volume in a directory of its own, without background work.
func newVolume(t *testing.T, blocks int64) (*Volume, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "v")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := createVolume(osDisk{dir}, NewID(), blocks*BlockSize, smallTuning); err != nil {
		t.Fatal(err)
	}
	v, err := openVolume(osDisk{dir}, Options{}, smallTuning)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil && !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	})
	return v, dir
}

func writeBlocks(t *testing.T, v *Volume, c byte, b, n int64) {
	t.Helper()
	if _, err := v.WriteAt(bytes.Repeat([]byte{c}, int(n)*BlockSize), b*BlockSize); err != nil {
		t.Fatal(err)
	}
}

func takeSnapshot(t *testing.T, v *Volume) ID {
	t.Helper()
	id := NewID()
	if err := v.Snapshot(id); err != nil {
		t.Fatal(err)
	}
	return id
}

// diskUsage returns the bytes that the .data files of a volume take.
func diskUsage(t *testing.T, dir string) int64 {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.data"))
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			t.Fatal(err)
		}
		total += st.Blocks * 512
	}
	return total
}

// V1, V2: space is taken by what is written, and comes back when it is
// discarded.
func TestSpaceFollowsData(t *testing.T) {
	v, dir := newVolume(t, 1<<20)
	if got := diskUsage(t, dir); got > 1<<20 {
		t.Errorf("a new volume of 4 GiB takes %d bytes", got)
	}
	writeBlocks(t, v, 1, 1000, 1024)
	if got := v.Usage(); got.Allocated != 1024*BlockSize || got.Live != 1024*BlockSize {
		t.Errorf("usage %+v after 4 MiB", got)
	}
	if err := v.WriteZeroes(0, v.Size()); err != nil {
		t.Fatal(err)
	}
	if got := v.Usage(); got != (Usage{}) {
		t.Errorf("usage %+v after everything was discarded", got)
	}
	if err := v.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := diskUsage(t, dir); got > 1<<20 {
		t.Errorf("%d bytes are taken after everything was discarded", got)
	}
}

// S3, S4: what a deleted snapshot alone held comes back; a mark holds nothing
// that newer layers hide.
func TestDeletedSnapshotGivesSpaceBack(t *testing.T) {
	for _, keepMark := range []bool{false, true} {
		v, dir := newVolume(t, 4096)
		writeBlocks(t, v, 1, 0, 2048)
		first := takeSnapshot(t, v)
		writeBlocks(t, v, 2, 0, 1024)
		takeSnapshot(t, v)
		if err := v.DeleteSnapshot(first, keepMark); err != nil {
			t.Fatal(err)
		}
		w, err := v.View(v.Boundaries()[len(v.Boundaries())-1].ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.tidy(); err != nil {
			t.Fatal(err)
		}
		if got := v.Usage().Allocated; got != 2048*BlockSize {
			t.Errorf("keep mark %v: %d bytes are allocated, want %d", keepMark, got, 2048*BlockSize)
		}
		if err := v.checkpoint(); err != nil {
			t.Fatal(err)
		}
		if got := diskUsage(t, dir); got > 2100*BlockSize {
			t.Errorf("keep mark %v: the files take %d bytes, want about %d", keepMark, got, 2048*BlockSize)
		}
		p := make([]byte, 2048*BlockSize)
		if _, err := w.ReadAt(p, 0); err != nil || p[0] != 2 || p[len(p)-1] != 1 {
			t.Errorf("keep mark %v: the other snapshot reads %d … %d, %v", keepMark, p[0], p[len(p)-1], err)
		}
		w.Close()
	}
}

// A view that is open when its snapshot is deleted reads to its end; then the
// space comes back.
func TestViewOutlivesItsSnapshot(t *testing.T) {
	v, _ := newVolume(t, 256)
	writeBlocks(t, v, 1, 0, 100)
	id := takeSnapshot(t, v)
	w, err := v.View(id)
	if err != nil {
		t.Fatal(err)
	}
	writeBlocks(t, v, 2, 0, 100)
	takeSnapshot(t, v)
	if err := errors.Join(v.DeleteSnapshot(id, false), v.tidy()); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, BlockSize)
	if _, err := w.ReadAt(p, 50*BlockSize); err != nil || p[0] != 1 {
		t.Errorf("the view reads %d, %v, want 1", p[0], err)
	}
	if err := errors.Join(w.Close(), v.tidy()); err != nil {
		t.Fatal(err)
	}
	if got := v.Usage().Allocated; got != 100*BlockSize {
		t.Errorf("%d bytes are allocated after the view was closed, want %d", got, 100*BlockSize)
	}
	if _, err := w.ReadAt(p, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("read of a closed view: %v, want %v", err, ErrClosed)
	}
}

// V10.
func TestOpenTwice(t *testing.T) {
	_, dir := newVolume(t, 16)
	_, err := Open(dir, Options{})
	var locked *LockedError
	if !errors.As(err, &locked) || locked.PID != os.Getpid() || locked.Dir != dir {
		t.Errorf("second open: %v, want a LockedError with this process", err)
	}
}

func TestClosed(t *testing.T) {
	v, _ := newVolume(t, 16)
	id := takeSnapshot(t, v)
	w, err := v.View(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 10)
	_, read := v.ReadAt(p, 0)
	_, write := v.WriteAt(p, 0)
	_, view := w.ReadAt(p, 0)
	_, opened := v.View(id)
	for name, err := range map[string]error{
		"ReadAt": read, "WriteAt": write, "View.ReadAt": view, "View": opened,
		"WriteZeroes": v.WriteZeroes(0, 10), "Flush": v.Flush(), "Snapshot": v.Snapshot(NewID()),
		"Grow": v.Grow(1 << 20), "Delete": v.DeleteSnapshot(id, false), "Close": v.Close(),
		"Check": sound(v),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s of a closed volume: %v, want %v", name, err, ErrClosed)
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func TestBadArguments(t *testing.T) {
	v, dir := newVolume(t, 16)
	id := takeSnapshot(t, v)
	p := make([]byte, 2*BlockSize)
	_, past := v.WriteAt(p, 15*BlockSize)
	_, negative := v.WriteAt(p, -1)
	_, noView := v.View(NewID())
	_, noDiff := v.Diff(NewID(), id)
	_, notEmpty := Create(dir, NewID(), 4096, Options{})
	_, odd := Create(filepath.Join(t.TempDir(), "x"), NewID(), 1000, Options{})
	_, huge := Create(filepath.Join(t.TempDir(), "x"), NewID(), MaxSize+512, Options{})
	_, noVolume := Open(t.TempDir(), Options{})
	for name, c := range map[string]struct{ got, want error }{
		"write past the end":     {past, fs.ErrInvalid},
		"write before the start": {negative, fs.ErrInvalid},
		"zeroes past the end":    {v.WriteZeroes(0, 17*BlockSize), fs.ErrInvalid},
		"zeroes that overflow":   {v.WriteZeroes(4096, 1<<63-1), fs.ErrInvalid},
		"shrink":                 {v.Grow(4096), fs.ErrInvalid},
		"odd size":               {v.Grow(1<<20 + 1), fs.ErrInvalid},
		"snapshot twice":         {v.Snapshot(id), fs.ErrExist},
		"snapshot without id":    {v.Snapshot(ID{}), fs.ErrInvalid},
		"delete nothing":         {v.DeleteSnapshot(NewID(), false), fs.ErrNotExist},
		"drop a snapshot":        {v.DropMark(id), fs.ErrNotExist},
		"view of nothing":        {noView, fs.ErrNotExist},
		"diff from nothing":      {noDiff, fs.ErrNotExist},
		"create over a volume":   {notEmpty, fs.ErrExist},
		"create of odd size":     {odd, fs.ErrInvalid},
		"create of 16 TiB + 512": {huge, fs.ErrInvalid},
		"open of no volume":      {noVolume, fs.ErrNotExist},
	} {
		if !errors.Is(c.got, c.want) {
			t.Errorf("%s: got %v, want %v", name, c.got, c.want)
		}
	}
	if err := v.Grow(4096); err == nil || !strings.Contains(err.Error(), "65536") || !strings.Contains(err.Error(), "4096") {
		t.Errorf("shrink: %v, want both sizes in it", err)
	}
}

func flip(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// A volume that was closed and then damaged is not opened, and says why.
func TestOpenDamaged(t *testing.T) {
	newestSlot := func(t *testing.T, v *Volume) (string, int64) {
		l := v.files[0]
		return mapName(l.id), slotOffset(0, l.groups[0].slot) + 500
	}
	for name, damage := range map[string]func(t *testing.T, v *Volume) (file string, off int64){
		"header":  func(*testing.T, *Volume) (string, int64) { return headerName, 20 },
		"chain":   func(*testing.T, *Volume) (string, int64) { return chainName, 100 },
		"map":     newestSlot,
		"map top": func(_ *testing.T, v *Volume) (string, int64) { return mapName(v.files[0].id), 20 },
	} {
		t.Run(name, func(t *testing.T) {
			v, dir := newVolume(t, 64)
			writeBlocks(t, v, 1, 0, 10)
			takeSnapshot(t, v)
			if err := v.tidy(); err != nil {
				t.Fatal(err)
			}
			file, off := damage(t, v)
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
			flip(t, filepath.Join(dir, file), off)
			if _, err := Open(dir, Options{}); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), file) {
				t.Errorf("got %v, want damage in %s", err, file)
			}
		})
	}
	t.Run("layer lost", func(t *testing.T) {
		v, dir := newVolume(t, 64)
		name := dataName(v.head.id)
		if err := errors.Join(v.Close(), os.Remove(filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %s not to exist", err, name)
		}
	})
	t.Run("data cut", func(t *testing.T) {
		for _, size := range []int64{0, 4096, 9*BlockSize + 4095, 10 * BlockSize} {
			v, dir := newVolume(t, 64)
			writeBlocks(t, v, 1, 0, 10)
			name := dataName(v.head.id)
			if err := errors.Join(v.Close(), os.Truncate(filepath.Join(dir, name), size)); err != nil {
				t.Fatal(err)
			}
			v, err := Open(dir, Options{})
			if size < 10*BlockSize {
				if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), name) {
					t.Errorf("cut to %d bytes: got %v, want damage in %s", size, err, name)
				}
				continue
			}
			if err != nil {
				t.Fatalf("with all its blocks: %v", err)
			}
			if err := v.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("journal cut", func(t *testing.T) {
		v, dir := newVolume(t, 64)
		if err := errors.Join(v.Close(), os.Truncate(filepath.Join(dir, journalName), 20000)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("got %v, want %v", err, ErrCorrupt)
		}
	})
}

// A record that rots between two others is damage, not the end of the journal.
func TestRottenRecord(t *testing.T) {
	v, dir := newVolume(t, 64)
	for b := range int64(3) {
		writeBlocks(t, v, 1, b, 1)
		if err := v.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(copied, journalName), ringStart+2*slotSize+4096+100)
	if _, err := Open(copied, Options{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v, want %v", err, ErrCorrupt)
	}
}

// A2: the truth about writes since the newest boundary.
func TestClean(t *testing.T) {
	v, _ := newVolume(t, 64)
	if v.Clean() {
		t.Error("clean without a boundary")
	}
	id := takeSnapshot(t, v)
	if !v.Clean() {
		t.Error("not clean right after a snapshot")
	}
	if err := v.DeleteSnapshot(id, true); err != nil {
		t.Fatal(err)
	}
	if !v.Clean() {
		t.Error("not clean right after a mark")
	}
	if err := v.WriteZeroes(0, BlockSize); err != nil || !v.Clean() {
		t.Errorf("zeros over nothing: %v, clean %v", err, v.Clean())
	}
	writeBlocks(t, v, 1, 0, 1)
	if v.Clean() {
		t.Error("clean after a write")
	}
}

// Hot reads, writes and small flushes allocate nothing.
func TestNoAllocations(t *testing.T) {
	v, _ := newVolume(t, 1024)
	writeBlocks(t, v, 1, 0, 1024)
	p := make([]byte, BlockSize)
	n := int64(0)
	got := testing.AllocsPerRun(200, func() {
		n = (n + 7) % 1000
		if _, err := v.WriteAt(p, n*BlockSize); err != nil {
			t.Fatal(err)
		}
		if _, err := v.ReadAt(p, n*BlockSize); err != nil {
			t.Fatal(err)
		}
	})
	if got > 0 {
		t.Errorf("%v allocations for a write and a read, want none", got)
	}
}
