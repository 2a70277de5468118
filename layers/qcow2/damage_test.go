package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"varve/layers"
	"varve/layers/qcow2"
)

// small is an image of a few clusters, made without QEMU.
func small(t testing.TB) []byte {
	t.Helper()
	p := make([]byte, 200<<10)
	for i := range 70_000 {
		p[i+60_000] = byte(i * 7)
	}
	image, err := os.ReadFile(writeImage(t, t.TempDir(), memory(p)))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func openBytes(p []byte) (*qcow2.Image, error) {
	return qcow2.Open(bytes.NewReader(p), int64(len(p)), qcow2.Options{})
}

// TestCut: an image that ends early is refused or found damaged, unless what is
// missing is refcounts, which nothing here reads.
func TestCut(t *testing.T) {
	image := small(t)
	want, err := openBytes(image)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(image); n += 1 + n/300 {
		m, err := openBytes(image[:n])
		if err == nil {
			err = readAll(m)
		}
		if err == nil && !same(t, m, want) {
			t.Fatalf("an image cut to %d of %d bytes reads as other bytes", n, len(image))
		}
		if n < 65536 && err == nil {
			t.Fatalf("an image of %d bytes is read", n)
		}
	}
}

func same(t *testing.T, a, b *qcow2.Image) bool {
	t.Helper()
	p, q := make([]byte, a.Size()), make([]byte, b.Size())
	if _, err := a.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadAt(q, 0); err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(p, q)
}

// TestFlip: whatever byte of the metadata is changed, reading ends.
func TestFlip(t *testing.T) {
	image := small(t)
	for i := 0; i < 3*65536; i++ {
		if i%65536 == 128 {
			i += 65536 - 256 // zeros, up to the end of the cluster
		}
		for _, bit := range []byte{1, 0x80} {
			image[i] ^= bit
			if m, err := openBytes(image); err == nil {
				readAll(m)
			}
			image[i] ^= bit
		}
	}
}

// TestFields: what each field of the header may not be.
func TestFields(t *testing.T) {
	put32, put64 := binary.BigEndian.PutUint32, binary.BigEndian.PutUint64
	for _, c := range []struct {
		name string
		set  func(p []byte)
		want error // nil: any
	}{
		{"another magic", func(p []byte) { p[0] = 'X' }, nil},
		{"version 1", func(p []byte) { put32(p[4:], 1) }, layers.ErrUnsupported},
		{"version 4", func(p []byte) { put32(p[4:], 4) }, layers.ErrUnsupported},
		{"a name far away", func(p []byte) { put64(p[8:], 1<<40); put32(p[16:], 4) }, layers.ErrCorrupt},
		{"a name of 2000 bytes", func(p []byte) { put64(p[8:], 512); put32(p[16:], 2000) }, layers.ErrCorrupt},
		{"tiny clusters", func(p []byte) { put32(p[20:], 8) }, layers.ErrCorrupt},
		{"huge clusters", func(p []byte) { put32(p[20:], 1<<31) }, layers.ErrCorrupt},
		{"a negative size", func(p []byte) { put64(p[24:], 1<<63) }, layers.ErrCorrupt},
		{"a size beyond the L1 table", func(p []byte) { put64(p[24:], 1<<40) }, layers.ErrCorrupt},
		{"encryption", func(p []byte) { put32(p[32:], 1) }, layers.ErrUnsupported},
		{"an L1 table of 32 GiB", func(p []byte) { put32(p[36:], 1<<32-1) }, layers.ErrUnsupported},
		{"an L1 table beyond the file", func(p []byte) { put64(p[40:], 1<<40) }, layers.ErrCorrupt},
		{"an L1 table at an odd place", func(p []byte) { put64(p[40:], 65537) }, layers.ErrCorrupt},
		{"corruption", func(p []byte) { p[79] = 2 }, layers.ErrCorrupt},
		{"a data file", func(p []byte) { p[79] = 4 }, layers.ErrUnsupported},
		{"extended L2", func(p []byte) { p[79] = 16 }, layers.ErrUnsupported},
		{"an unknown feature", func(p []byte) { p[72] = 1 }, layers.ErrUnsupported},
		{"a short header", func(p []byte) { put32(p[100:], 96) }, layers.ErrCorrupt},
		{"a long header", func(p []byte) { put32(p[100:], 1<<31) }, layers.ErrCorrupt},
		{"a compression without its feature", func(p []byte) { put32(p[100:], 112); p[104] = 1 }, layers.ErrCorrupt},
		{"an unknown compression", func(p []byte) { put32(p[100:], 112); p[104] = 9; p[79] = 8 }, layers.ErrUnsupported},
		{"an L1 entry beyond the file", func(p []byte) { put64(p[65536:], 1<<40) }, layers.ErrCorrupt},
		{"an L1 entry with reserved bits", func(p []byte) { p[65536+7] |= 1 }, layers.ErrCorrupt},
		{"an L1 entry at an odd place", func(p []byte) { put64(p[65536:], 2<<16+512) }, layers.ErrCorrupt},
		{"an L2 entry beyond the file", func(p []byte) { put64(p[2<<16:], 1<<40) }, layers.ErrCorrupt},
		{"an L2 entry with reserved bits", func(p []byte) { p[2<<16+7] |= 4 }, layers.ErrCorrupt},
		{"compressed data beyond the file", func(p []byte) { put64(p[2<<16:], 1<<62|1<<40) }, layers.ErrCorrupt},
		{"compressed data that is none", func(p []byte) { put64(p[2<<16:], 1<<62|3<<16) }, layers.ErrCorrupt},
	} {
		image := small(t)
		c.set(image)
		m, err := openBytes(image)
		if err == nil {
			err = readAll(m)
		}
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", c.name, err, c.want)
		}
	}
}

// FuzzOpen: no panic, no hang, bounded memory.
func FuzzOpen(f *testing.F) {
	for _, name := range []string{"v2-zlib.qcow2", "v3-zstd.qcow2", "v3-backing.qcow2"} {
		image, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(image)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		m, err := qcow2.Open(bytes.NewReader(p), int64(len(p)), qcow2.Options{
			Backing: func(string, string) (layers.Layer, error) { return memory(make([]byte, 5000)), nil },
		})
		if err != nil {
			return
		}
		readAll(m)
	})
}

// TestGolden: images that QEMU 7.2 made stay readable. Each has the text
// "varve" over and over in its first 10 000 bytes, and zeros up to 20 480.
func TestGolden(t *testing.T) {
	want := make([]byte, 20480)
	copy(want, bytes.Repeat([]byte("varve"), 2000))
	for _, name := range []string{"v2-zlib.qcow2", "v3-zstd.qcow2"} {
		image, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		m, err := openBytes(image)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := make([]byte, m.Size())
		if _, err := m.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: other bytes (%v)", name, err)
		}
	}
}
