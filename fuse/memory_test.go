package fuse

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"sync"
	"testing"
	"time"

	"varve/layers"
)

// A memSource is a Source whose images are in memory.
type memSource struct {
	mu     sync.Mutex
	images map[layers.ID]memImage
	err    error // of List
	lists  int
	opens  int
	open   int           // handles that are open now
	idle   chan struct{} // gets a value when open falls to zero
}

type memImage struct {
	Image
	layer layers.Layer
}

func newMemSource() *memSource {
	return &memSource{images: map[layers.ID]memImage{}, idle: make(chan struct{}, 1)}
}

// add makes an image VOLUME/NAME of the layer.
func (s *memSource) add(volume, name string, at time.Time, l layers.Layer) Image {
	img := Image{ID: layers.NewID(), Volume: volume, Name: name, Size: l.Size(), Time: at}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[img.ID] = memImage{img, l}
	return img
}

// change replaces what List says of an image.
func (s *memSource) change(img Image) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[img.ID] = memImage{img, s.images[img.ID].layer}
}

func (s *memSource) remove(id layers.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.images, id)
}

// fail makes List return err from now on.
func (s *memSource) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

func (s *memSource) List(context.Context) ([]Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists++
	if s.err != nil {
		return nil, s.err
	}
	var list []Image
	for _, img := range s.images {
		list = append(list, img.Image)
	}
	return list, nil
}

func (s *memSource) Open(_ context.Context, id layers.ID) (Handle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	img, ok := s.images[id]
	if !ok {
		return nil, fmt.Errorf("image %s: %w", id, fs.ErrNotExist)
	}
	s.opens++
	s.open++
	return &memHandle{Layer: img.layer, source: s}, nil
}

// listed returns how often List was called.
func (s *memSource) listed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lists
}

// opened returns how often images were opened, and how many are open.
func (s *memSource) opened() (times, now int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opens, s.open
}

// waitIdle waits until no handle is open.
func (s *memSource) waitIdle(t *testing.T) {
	t.Helper()
	deadline := time.After(patience)
	for {
		if _, now := s.opened(); now == 0 {
			return
		}
		select {
		case <-s.idle:
		case <-deadline:
			_, now := s.opened()
			t.Fatalf("%d handles are still open", now)
		}
	}
}

type memHandle struct {
	layers.Layer
	source *memSource
	once   sync.Once
}

func (h *memHandle) Close() error {
	err := fs.ErrClosed
	h.once.Do(func() {
		err = nil
		h.source.mu.Lock()
		defer h.source.mu.Unlock()
		if h.source.open--; h.source.open == 0 {
			select {
			case h.source.idle <- struct{}{}:
			default:
			}
		}
	})
	return err
}

// A memLayer has data at some offsets and says nothing about the rest.
type memLayer struct {
	size   int64
	pieces []piece // in ascending order, without overlap
}

// A piece is data at an offset, or, with nil data, n bytes of explicit zeros.
type piece struct {
	off  int64
	data []byte
	n    int64
}

func (p piece) extent() layers.Extent {
	if p.data == nil {
		return layers.Extent{Off: p.off, Len: p.n, Kind: layers.Zero}
	}
	return layers.Extent{Off: p.off, Len: int64(len(p.data)), Kind: layers.Data}
}

// dense returns a layer that is all data.
func dense(data []byte) *memLayer {
	l := &memLayer{size: int64(len(data))}
	if len(data) > 0 {
		l.pieces = []piece{{data: data}}
	}
	return l
}

// pattern returns n bytes that differ from place to place.
func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	x := uint32(seed) + 1
	for i := range p {
		x = x*1664525 + 1013904223
		p[i] = byte(x >> 24)
	}
	return p
}

func (l *memLayer) Size() int64 { return l.size }

func (l *memLayer) ReadAt(p []byte, off int64) (int, error) {
	if off >= l.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), l.size-off))
	clear(p[:n])
	for _, piece := range l.pieces {
		e := piece.extent().Clip(off, int64(n))
		if e.Len > 0 && e.Kind == layers.Data {
			copy(p[e.Off-off:e.End()-off], piece.data[e.Off-piece.off:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (l *memLayer) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		for _, piece := range l.pieces {
			if e := piece.extent().Clip(off, min(n, l.size-off)); e.Len > 0 && !yield(e, nil) {
				return
			}
		}
	}
}

// A brokenLayer fails as its functions say; a nil one is that of the layer.
type brokenLayer struct {
	layers.Layer
	readAt  func(p []byte, off int64) (int, error)
	extents func(off, n int64) iter.Seq2[layers.Extent, error]
}

func (l *brokenLayer) ReadAt(p []byte, off int64) (int, error) {
	if l.readAt != nil {
		return l.readAt(p, off)
	}
	return l.Layer.ReadAt(p, off)
}

func (l *brokenLayer) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	if l.extents != nil {
		return l.extents(off, n)
	}
	return l.Layer.Extents(off, n)
}

// A logBuffer collects a log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// NewTestSource returns a source with a dense, a sparse, a one byte and an empty
// image, for the tests outside of the package.
func NewTestSource() Source {
	s := newMemSource()
	s.add("v", "dense", noon, dense(pattern(3<<20+17, 1)))
	s.add("v", "sparse", noon, sparseLayer())
	s.add("v", "byte", early, dense([]byte{1}))
	s.add("w", "empty", early, dense(nil))
	return s
}
