// Package fusetest is the suite that every fuse.Source passes.
package fusetest

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"
	"testing"

	"varve/fuse"
	"varve/layers"
)

// Run tests that s keeps the promises of fuse.Source and shows at least one
// image. Nothing may be added or removed meanwhile. It reads at most 16 MiB of
// each image.
func Run(t *testing.T, s fuse.Source) {
	t.Helper()
	images, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(images) == 0 {
		t.Fatal("List gives nothing: the suite needs an image")
	}
	t.Run("List", func(t *testing.T) { testList(t, s, images) })
	t.Run("Absent", func(t *testing.T) { testAbsent(t, s) })
	for _, img := range images {
		t.Run(img.Name, func(t *testing.T) {
			testHandle(t, s, img)
			testTogether(t, s, img)
		})
	}
}

// testList holds that the list is sane and that a second one is the same.
func testList(t *testing.T, s fuse.Source, images []fuse.Image) {
	seen := map[layers.ID]fuse.Image{}
	for _, img := range images {
		if _, twice := seen[img.ID]; twice || img.ID.IsZero() {
			t.Errorf("image %s: the ID is zero or there twice", img.ID)
		}
		seen[img.ID] = img
		if img.Size < 0 || img.Used < 0 || img.Used > img.Size {
			t.Errorf("image %s: %d bytes used of %d", img.ID, img.Used, img.Size)
		}
		if img.Time.IsZero() {
			t.Errorf("image %s has no time", img.ID)
		}
	}
	again, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range again {
		old, ok := seen[img.ID]
		if !ok || !old.Time.Equal(img.Time) {
			t.Errorf("the second list has %+v, the first %+v", img, old)
			continue
		}
		if old.Time = img.Time; old != img {
			t.Errorf("the second list has %+v, the first %+v", img, old)
		}
	}
	if len(again) != len(images) {
		t.Errorf("the second list has %d images, the first %d", len(again), len(images))
	}
}

// testAbsent holds that an unknown ID is fs.ErrNotExist.
func testAbsent(t *testing.T, s fuse.Source) {
	h, err := s.Open(t.Context(), layers.NewID())
	if !errors.Is(err, fs.ErrNotExist) || h != nil {
		t.Errorf("Open of an unknown ID: %v, %v, want fs.ErrNotExist", h, err)
	}
}

// sample is how much of an image is read.
func sample(img fuse.Image) int64 { return min(img.Size, 16<<20) }

// open opens the image until the end of the test.
func open(t *testing.T, s fuse.Source, id layers.ID) fuse.Handle {
	t.Helper()
	h, err := s.Open(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return h
}

// testHandle holds the handle to what the list says and to layers.Layer as far
// as a mount relies on it.
func testHandle(t *testing.T, s fuse.Source, img fuse.Image) {
	h := open(t, s, img.ID)
	if h.Size() != img.Size {
		t.Fatalf("Size is %d, the list says %d", h.Size(), img.Size)
	}
	data := make([]byte, sample(img))
	if n, err := h.ReadAt(data, 0); n != len(data) || err != nil && err != io.EOF {
		t.Fatalf("ReadAt of %d bytes: %d, %v", len(data), n, err)
	}
	for _, off := range []int64{img.Size, img.Size + 1, img.Size + 1<<30} {
		if n, err := h.ReadAt(make([]byte, 1), off); n != 0 || err != io.EOF {
			t.Errorf("ReadAt past the end, at %d: %d, %v, want 0, EOF", off, n, err)
		}
	}
	last := min(img.Size, 100)
	if n, err := h.ReadAt(make([]byte, last+1), img.Size-last); int64(n) != last || err != io.EOF {
		t.Errorf("ReadAt across the end: %d, %v, want %d, EOF", n, err, last)
	}

	// What no data extent covers reads as zeros, and extents are in order.
	pos := int64(0)
	zeros := func(end int64) {
		start, stop := min(pos, int64(len(data))), min(end, int64(len(data)))
		if slices.ContainsFunc(data[start:stop], func(b byte) bool { return b != 0 }) {
			t.Errorf("[%d, %d) is a hole and does not read as zeros", pos, end)
		}
	}
	for e, err := range h.Extents(0, img.Size) {
		if err != nil {
			t.Fatalf("Extents: %v", err)
		}
		if e.Off < pos || e.Len <= 0 || e.End() > img.Size {
			t.Fatalf("extent %+v after offset %d, of %d bytes", e, pos, img.Size)
		}
		zeros(e.Off)
		if pos = e.Off; e.Kind != layers.Data {
			zeros(e.End())
		}
		pos = e.End()
	}
	zeros(img.Size)
}

// testTogether holds that an image can be open several times and be read from
// many goroutines, and that closing one handle leaves the others alone.
func testTogether(t *testing.T, s fuse.Source, img fuse.Image) {
	const readers = 4
	whole := open(t, s, img.ID)
	want := make([]byte, sample(img))
	if n, err := whole.ReadAt(want, 0); n != len(want) {
		t.Fatal(n, err)
	}
	other, err := s.Open(t.Context(), img.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() {
			for off := int64(i) * 4093; off < int64(len(want)); off += readers * 65521 {
				p := make([]byte, min(70001, int64(len(want))-off))
				if n, err := whole.ReadAt(p, off); n != len(p) || !bytes.Equal(p, want[off:off+int64(n)]) {
					t.Errorf("ReadAt of %d bytes at %d: %d, %v, or other data than before", len(p), off, n, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
