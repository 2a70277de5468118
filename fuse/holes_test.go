package fuse

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/layers"
)

// sparseLayer has four pieces of data in 1 TiB, one at its very end, explicit
// zeros in between, and two pieces that touch.
func sparseLayer() *memLayer {
	const size = 1 << 40
	return &memLayer{size: size, pieces: []piece{
		{off: 1 << 20, data: pattern(1<<20, 1)},
		{off: 2 << 20, data: pattern(4096, 2)},
		{off: 3 << 30, n: 1 << 30},
		{off: 700 << 30, data: pattern(8192, 3)},
		{off: size - 4096, data: pattern(4096, 4)},
	}}
}

// I2: holes are holes. SEEK_DATA and SEEK_HOLE as in lseek(2).
func TestSeek(t *testing.T) {
	const size = 1 << 40
	tests := []struct {
		off, data, hole int64 // -1: ENXIO
	}{
		{0, 1 << 20, 0},
		{1<<20 - 1, 1 << 20, 1<<20 - 1},
		{1 << 20, 1 << 20, 2<<20 + 4096},
		{2<<20 + 1, 2<<20 + 1, 2<<20 + 4096},
		{2<<20 + 4096, 700 << 30, 2<<20 + 4096},
		{3 << 30, 700 << 30, 3 << 30},
		{700<<30 + 8191, 700<<30 + 8191, 700<<30 + 8192},
		{700<<30 + 8192, size - 4096, 700<<30 + 8192},
		{size - 1, size - 1, size},
		{size, -1, -1},
		{size + 1, -1, -1},
	}
	s := newMemSource()
	s.add("v", "sparse", noon, sparseLayer())
	s.add("v", "empty", noon, &memLayer{size: 1 << 30})
	m := mountTest(t, s)
	fd := m.open("v", "sparse", "disk.raw")
	seek := func(fd int, off int64, whence int) int64 {
		var got int64
		err := again(func() (err error) { got, err = unix.Seek(fd, off, whence); return err })
		if err == unix.ENXIO {
			return -1
		}
		if err != nil {
			t.Fatalf("seek %d from %d: %v", whence, off, err)
		}
		return got
	}
	for _, test := range tests {
		if got := seek(fd, test.off, unix.SEEK_DATA); got != test.data {
			t.Errorf("SEEK_DATA from %d: %d, want %d", test.off, got, test.data)
		}
		if got := seek(fd, test.off, unix.SEEK_HOLE); got != test.hole {
			t.Errorf("SEEK_HOLE from %d: %d, want %d", test.off, got, test.hole)
		}
	}
	empty := m.open("v", "empty", "disk.raw")
	if got := seek(empty, 5, unix.SEEK_DATA); got != -1 {
		t.Errorf("SEEK_DATA in an image without data: %d, want ENXIO", got)
	}
	if got := seek(empty, 5, unix.SEEK_HOLE); got != 5 {
		t.Errorf("SEEK_HOLE in an image without data: %d, want 5", got)
	}
}

// I2: copying a sparse image of 1 TiB copies its data only, in whichever way
// cp and tar look for holes, and whether or not the Source knows what is used.
func TestCopySparse(t *testing.T) {
	requireMounts(t, "cp", "tar")
	s := newMemSource()
	layer := sparseLayer()
	const used = 1<<20 + 4096 + 8192 + 4096
	s.add("v", "unknown", noon, layer)
	known := s.add("v", "known", noon, layer)
	known.Used = used
	s.change(known)
	m := mountTest(t, s)

	if st := m.stat("v", "known", "disk.raw"); st.Size != layer.size || st.Blocks != used/512 {
		t.Errorf("stat says size %d, %d blocks, want %d and %d", st.Size, st.Blocks, layer.size, used/512)
	}
	if st := m.stat("v", "unknown", "disk.raw"); st.Blocks != layer.size/512-1 {
		t.Errorf("stat says %d blocks, want one less than all", st.Blocks)
	}

	scratch := t.TempDir()
	for _, name := range []string{"known", "unknown"} {
		for _, how := range []string{"always", "auto"} {
			to := filepath.Join(scratch, name+how)
			run(t, "cp", "--sparse="+how, m.path("v", name, "disk.raw"), to)
			checkCopy(t, to, layer)
		}
	}
	run(t, "tar", "-C", m.path("v", "unknown"), "-S", "-cf", filepath.Join(scratch, "tar"), "disk.raw")
	run(t, "tar", "-C", scratch, "-xSf", filepath.Join(scratch, "tar"))
	checkCopy(t, filepath.Join(scratch, "disk.raw"), layer)
	s.waitIdle(t)
}

// checkCopy compares a file with a layer and removes it.
func checkCopy(t *testing.T, path string, l *memLayer) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer os.Remove(path)
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if info.Size() != l.size || st.Blocks > 4<<20/512 {
		t.Errorf("%s: size %d, %d blocks, want size %d and holes", path, info.Size(), st.Blocks, l.size)
	}
	for _, p := range l.pieces {
		got := make([]byte, len(p.data))
		if _, err := f.ReadAt(got, p.off); err != nil || !bytes.Equal(got, p.data) {
			t.Errorf("%s: other data at %d (%v)", path, p.off, err)
		}
	}
}

func TestDiskBlocks(t *testing.T) {
	tests := []struct {
		size, used int64
		want       uint64
	}{
		{0, 0, 0}, {1, 0, 1}, {512, 0, 1}, {513, 0, 1}, {4096, 0, 7}, {1 << 40, 0, 1<<31 - 1},
		{4096, 4096, 8}, {4096, 1, 1}, {4096, 513, 2}, {4096, 1 << 50, 8}, {4097, 4097, 9},
	}
	for _, test := range tests {
		if got := diskBlocks(test.size, test.used); got != test.want {
			t.Errorf("diskBlocks(%d, %d) = %d, want %d", test.size, test.used, got, test.want)
		}
	}
}

// What a layer may not do, but a damaged one might: extents out of order, empty
// ones, ones beyond the end. Seeking ends and stays in the image.
func TestSeekStrangeExtents(t *testing.T) {
	extents := func(list ...layers.Extent) layers.Layer {
		return &brokenLayer{
			Layer: &memLayer{size: 100},
			extents: func(off, n int64) iter.Seq2[layers.Extent, error] {
				return func(yield func(layers.Extent, error) bool) {
					for _, e := range list {
						if !yield(e, nil) {
							return
						}
					}
				}
			},
		}
	}
	l := extents(
		layers.Extent{Off: 10, Len: 0, Kind: layers.Data},
		layers.Extent{Off: 10, Len: 30, Kind: layers.Data},
		layers.Extent{Off: 5, Len: 10, Kind: layers.Data},
		layers.Extent{Off: 40, Len: 500, Kind: layers.Data},
	)
	if got, err := seekData(l, 0, 100); got != 10 || err != nil {
		t.Errorf("seekData: %d, %v, want 10", got, err)
	}
	if got, err := seekHole(l, 10, 100); got != 100 || err != nil {
		t.Errorf("seekHole: %d, %v, want 100", got, err)
	}
	if _, err := seekData(extents(), 0, 100); !errors.Is(err, errNoData) {
		t.Errorf("seekData without extents: %v, want %v", err, errNoData)
	}
}

// I2: the kernel mounts the file system in the image through disk.raw, and its
// files are those that went in.
func TestLoopMount(t *testing.T) {
	requireMounts(t, "mke2fs", "losetup", "mount", "umount", "cp")
	scratch := t.TempDir()
	tree := filepath.Join(scratch, "tree")
	for i := range 200 {
		name := filepath.Join(tree, fmt.Sprint("folder", i%7), fmt.Sprint("file", i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, pattern(i*997, byte(i)), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("folder1/file1", filepath.Join(tree, "link")); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(scratch, "image")
	run(t, "mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, image, "64M")
	data, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}

	s := newMemSource()
	s.add("v", "ext4", noon, dense(data))
	m := mountTest(t, s)
	loop := strings.TrimSpace(run(t, "losetup", "-f", "--show", "-r", m.path("v", "ext4", "disk.raw")))
	inside := filepath.Join(scratch, "inside")
	if err := os.Mkdir(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { runErr("losetup", "-d", loop) })
	run(t, "mount", "-o", "ro,noload", loop, inside)
	got := fingerprints(t, inside)
	run(t, "umount", inside)
	run(t, "losetup", "-d", loop)
	if want := fingerprints(t, tree); !slices.Equal(got, want) {
		t.Errorf("%d entries in the image, %d in the tree it was made of, or other ones", len(got), len(want))
	}
	s.waitIdle(t)
}

// fingerprints returns a line for each file and link below dir.
func fingerprints(t *testing.T, dir string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		var content []byte
		if d.Type() == os.ModeSymlink {
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			content = []byte(target)
		} else if content, err = os.ReadFile(path); err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		lines = append(lines, fmt.Sprintf("%s %v %d %d %x", rel, info.Mode(), info.Size(), info.ModTime().Unix(), sha256.Sum256(content)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}
