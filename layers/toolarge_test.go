package layers

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// V1, V4: a size that the file system has no files for is refused with the limit,
// up to which it works, and leaves the volume as it was.
func TestFileSystemLimitsSize(t *testing.T) {
	const limit = 100 * BlockSize
	d := newMemDisk()
	d.most = limit + sectorSize
	wantTooLarge := func(err error, size, limit int64) {
		t.Helper()
		var large *TooLargeError
		if !errors.As(err, &large) || !errors.Is(err, fs.ErrInvalid) || large.Size != size || large.Limit != limit {
			t.Fatalf("size %d: got %v, want a limit of %d", size, err, limit)
		}
	}
	wantTooLarge(createVolume(d, NewID(), limit+sectorSize, smallTuning), limit+sectorSize, limit)
	removeFiles(d)

	m := newModel(t, d, rand.New(rand.NewPCG(1, 1)), 64*BlockSize, smallTuning)
	m.write()
	wantTooLarge(m.v.Grow(200*BlockSize), 200*BlockSize, limit)
	if got := m.v.Size(); got != 64*BlockSize {
		t.Errorf("after a growth that was refused the volume has %d bytes", got)
	}
	m.checkAll()
	if err := m.v.Grow(limit); err != nil {
		t.Errorf("growth up to the limit: %v", err)
	}
	if names, err := d.list(); err != nil || slices.Contains(names, limitTemp) {
		t.Errorf("%v, %v: %s is left", names, err, limitTemp)
	}
	wantTooLarge(m.v.Grow(MaxSize+sectorSize), MaxSize+sectorSize, MaxSize)
}

// The same of ext4, whose files have 16 TiB less one block.
func TestExt4LimitsSize(t *testing.T) {
	dir := t.TempDir()
	v, err := Create(filepath.Join(dir, "v"), NewID(), MaxSize, Options{})
	if err == nil {
		v.Close() // it served its purpose
		if os.Getenv("STRICT") == "1" {
			t.Fatal("the folder for temporary files is not on ext4")
		}
		t.Skip("the folder for temporary files is on a file system with files of 16 TiB")
	}
	var large *TooLargeError
	if !errors.As(err, &large) || large.Limit != MaxSize-BlockSize {
		t.Fatalf("got %v, want a limit of %d", err, int64(MaxSize-BlockSize))
	}
	v, err = Create(filepath.Join(dir, "v"), NewID(), large.Limit, Options{})
	if err != nil {
		t.Fatalf("a volume as large as it can be: %v", err)
	}
	defer v.Close() // nothing was written
	p := make([]byte, BlockSize)
	p[0] = 1
	if _, err := v.WriteAt(p, large.Limit-BlockSize); err != nil {
		t.Errorf("write at its end: %v", err)
	}
	if err := errors.Join(v.Flush(), v.Snapshot(NewID())); err != nil {
		t.Error(err)
	}
	if err := v.Grow(MaxSize); !errors.As(err, &large) {
		t.Errorf("growth beyond: got %v, want %T", err, large)
	}
}
