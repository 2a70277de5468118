// Package layertest holds the conformance suite that every layers.Layer passes:
// the files of package layers, the backups of agent/repo, and whatever comes.
package layertest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/iotest"

	"varve/layers"
)

// Content is what a layer is expected to say.
type Content struct {
	// Bytes are what it reads as; what is absent reads as zeros. Its length is
	// the layer's size.
	Bytes []byte

	// Kinds are the kinds of the blocks of layers.BlockSize bytes, the last one
	// maybe partial. nil: not known; then what is not Data must read as zeros.
	Kinds []layers.Kind
}

// Run checks that l behaves as layers.Layer promises and says what want says. l
// must not change while it runs.
func Run(t *testing.T, l layers.Layer, want Content) {
	t.Helper()
	s := suite{l: l, want: want, size: int64(len(want.Bytes))}
	t.Run("size", s.sizeIs)
	t.Run("reader", s.reader)
	t.Run("read", s.reads)
	t.Run("end", s.end)
	t.Run("extents", s.extents)
	t.Run("clipped", s.clipped)
	t.Run("early", s.stopsEarly)
	t.Run("concurrent", s.concurrent)
}

type suite struct {
	l    layers.Layer
	want Content
	size int64
}

func (s suite) sizeIs(t *testing.T) {
	if got := s.l.Size(); got != s.size {
		t.Fatalf("Size() = %d, want %d", got, s.size)
	}
}

// reader runs the standard library's suite over the beginning: it reads byte
// by byte.
func (s suite) reader(t *testing.T) {
	n := min(s.size, 1<<16)
	if err := iotest.TestReader(io.NewSectionReader(s.l, 0, n), s.want.Bytes[:n]); err != nil {
		t.Error(err)
	}
}

// places returns ranges inside size: all, edges of blocks, and random ones.
func (s suite) places() [][2]int64 {
	r := rand.New(rand.NewPCG(1, 2))
	list := [][2]int64{{0, s.size}, {0, 1}, {s.size - 1, 1}}
	for _, off := range []int64{0, layers.BlockSize - 1, layers.BlockSize, layers.BlockSize + 1} {
		for _, n := range []int64{1, 511, 512, layers.BlockSize - 1, layers.BlockSize, layers.BlockSize + 1, 3 * layers.BlockSize} {
			if off+n <= s.size {
				list = append(list, [2]int64{off, n})
			}
		}
	}
	for range 200 {
		off := r.Int64N(s.size)
		list = append(list, [2]int64{off, 1 + r.Int64N(min(s.size-off, 64*layers.BlockSize))})
	}
	return list
}

func (s suite) reads(t *testing.T) {
	for _, p := range s.places() {
		got := bytes.Repeat([]byte{0xa5}, int(p[1])) // what is absent must be written too
		n, err := s.l.ReadAt(got, p[0])
		if n != len(got) || err != nil && !(errors.Is(err, io.EOF) && p[0]+p[1] == s.size) {
			t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", len(got), p[0], n, err)
		}
		if !bytes.Equal(got, s.want.Bytes[p[0]:p[0]+p[1]]) {
			t.Fatalf("ReadAt(%d bytes, %d): wrong bytes", len(got), p[0])
		}
	}
	if n, err := s.l.ReadAt(nil, 0); n != 0 || err != nil {
		t.Errorf("ReadAt(nothing, 0) = %d, %v", n, err)
	}
}

func (s suite) end(t *testing.T) {
	got := make([]byte, 100)
	start := max(s.size-40, 0)
	n, err := s.l.ReadAt(got, start)
	if int64(n) != s.size-start || !errors.Is(err, io.EOF) {
		t.Errorf("ReadAt across the end = %d, %v, want %d, %v", n, err, s.size-start, io.EOF)
	}
	if !bytes.Equal(got[:n], s.want.Bytes[start:]) {
		t.Errorf("ReadAt across the end: wrong bytes")
	}
	for _, off := range []int64{s.size, s.size + 1, 1 << 50} {
		if n, err := s.l.ReadAt(got, off); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("ReadAt(%d) = %d, %v, want 0, %v", off, n, err, io.EOF)
		}
	}
	if n, err := s.l.ReadAt(got, -1); n != 0 || err == nil || errors.Is(err, io.EOF) {
		t.Errorf("ReadAt(-1) = %d, %v, want an error that is not the end", n, err)
	}
}

// collect returns the extents of a range, checked for order and clipping.
func (s suite) collect(t *testing.T, off, n int64) []layers.Extent {
	t.Helper()
	var list []layers.Extent
	last := max(off, 0)
	for e, err := range s.l.Extents(off, n) {
		if err != nil {
			t.Fatalf("Extents(%d, %d): %v", off, n, err)
		}
		if e.Len <= 0 || e.Off < last || e.End() > min(off+n, s.size) {
			t.Fatalf("Extents(%d, %d): %+v after %d: empty, out of order or not clipped", off, n, e, last)
		}
		if e.Kind != layers.Data && e.Kind != layers.Zero {
			t.Fatalf("Extents(%d, %d): %+v: only data and zero are yielded", off, n, e)
		}
		last = e.End()
		list = append(list, e)
	}
	return list
}

// kinds spreads extents over the bytes of a range.
func kinds(list []layers.Extent, off, n int64) []layers.Kind {
	out := make([]layers.Kind, n)
	for _, e := range list {
		for i := e.Off; i < e.End(); i++ {
			out[i-off] = e.Kind
		}
	}
	return out
}

func (s suite) extents(t *testing.T) {
	got := kinds(s.collect(t, 0, s.size), 0, s.size)
	for i, k := range got {
		if s.want.Kinds != nil && k != s.want.Kinds[i/layers.BlockSize] {
			t.Fatalf("byte %d is %v, want %v", i, k, s.want.Kinds[i/layers.BlockSize])
		}
		if k != layers.Data && s.want.Bytes[i] != 0 {
			t.Fatalf("byte %d is %v, but reads as %#x", i, k, s.want.Bytes[i])
		}
	}
}

// clipped checks that a part of the extents is the extents of the part.
func (s suite) clipped(t *testing.T) {
	whole := kinds(s.collect(t, 0, s.size), 0, s.size)
	for _, p := range s.places() {
		got := kinds(s.collect(t, p[0], p[1]), p[0], p[1])
		for i, k := range got {
			if k != whole[p[0]+int64(i)] {
				t.Fatalf("Extents(%d, %d): byte %d is %v, want %v", p[0], p[1], p[0]+int64(i), k, whole[p[0]+int64(i)])
			}
		}
	}
	for _, p := range [][2]int64{{s.size, 10}, {s.size + 5, 1 << 40}, {0, 0}} {
		if list := s.collect(t, p[0], p[1]); len(list) > 0 {
			t.Errorf("Extents(%d, %d) = %v, want none", p[0], p[1], list)
		}
	}
	if got := kinds(s.collect(t, s.size-1, 10), s.size-1, 10)[0]; got != whole[s.size-1] {
		t.Errorf("Extents across the end: byte %d is %v, want %v", s.size-1, got, whole[s.size-1])
	}
}

// stopsEarly leaves an iteration at the first extent; the layer must be usable
// after it.
func (s suite) stopsEarly(t *testing.T) {
	for range s.l.Extents(0, s.size) {
		break
	}
	s.collect(t, 0, s.size)
}

func (s suite) concurrent(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			got := make([]byte, s.size)
			if _, err := s.l.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, s.want.Bytes) {
				t.Errorf("ReadAt beside other reads: wrong bytes or %v", err)
			}
		})
		wg.Go(func() {
			for _, err := range s.l.Extents(0, s.size) {
				if err != nil {
					t.Errorf("Extents beside reads: %v", err)
				}
			}
		})
	}
	wg.Wait()
}
