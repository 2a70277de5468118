package layers

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"sync"
)

// ScanPiece is the largest extent that Scan yields with its bytes.
const ScanPiece = 1 << 20

// A Piece is an extent with its bytes, if it is Data.
type Piece struct {
	Extent
	Bytes []byte // of Data; valid until the next piece is asked for
}

// Scan yields all of a layer in ascending order, without gaps: what the layer
// says nothing about comes as Absent. Data comes with its bytes, in pieces of
// at most ScanPiece that end at multiples of it, and is read ahead by as many
// goroutines as depth says, which is at least 1; memory is depth+1 pieces.
//
// An error ends the sequence. When the loop ends nothing reads the layer any
// more, so it may be closed.
func Scan(ctx context.Context, l Layer, depth int) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		s := &scan{layer: l, ahead: make(chan *scanned, max(depth, 1))}
		s.buffers.New = func() any { return new([ScanPiece]byte) }
		s.all.Go(func() { s.plan(ctx) })
		defer s.all.Wait()
		defer cancel()
		for next := range s.ahead {
			<-next.ready
			if next.err == nil {
				next.err = ctx.Err()
			}
			if next.err != nil {
				yield(Piece{}, next.err)
				return
			}
			if !yield(next.Piece, nil) {
				return
			}
			if next.buffer != nil {
				s.buffers.Put(next.buffer)
			}
		}
		if err := ctx.Err(); err != nil {
			yield(Piece{}, err)
		}
	}
}

// A scan is one Scan that runs.
type scan struct {
	layer   Layer
	ahead   chan *scanned // in order; its room bounds what is read ahead
	all     sync.WaitGroup
	buffers sync.Pool // of *[ScanPiece]byte
}

// A scanned is a piece that is read, or will be when ready is closed.
type scanned struct {
	Piece
	buffer *[ScanPiece]byte
	err    error
	ready  chan struct{}
}

var atOnce = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// plan cuts the layer into pieces and has those with data read.
func (s *scan) plan(ctx context.Context) {
	defer close(s.ahead)
	next, size := int64(0), s.layer.Size()
	for e, err := range s.layer.Extents(0, size) {
		switch {
		case err != nil:
			s.put(ctx, &scanned{err: err, ready: atOnce})
			return
		case e.Off > next && !s.put(ctx, &scanned{Piece: Piece{Extent: Extent{Off: next, Len: e.Off - next}}, ready: atOnce}):
			return
		}
		if !s.extent(ctx, e) {
			return
		}
		next = e.End()
	}
	if next < size {
		s.put(ctx, &scanned{Piece: Piece{Extent: Extent{Off: next, Len: size - next}}, ready: atOnce})
	}
}

// extent puts one extent of the layer into the queue.
func (s *scan) extent(ctx context.Context, e Extent) bool {
	if e.Kind != Data {
		return s.put(ctx, &scanned{Piece: Piece{Extent: e}, ready: atOnce})
	}
	for off := e.Off; off < e.End(); {
		end := min(e.End(), off-off%ScanPiece+ScanPiece)
		next := &scanned{Piece: Piece{Extent: Extent{Off: off, Len: end - off, Kind: Data}}, ready: make(chan struct{})}
		if !s.put(ctx, next) {
			return false
		}
		s.all.Go(func() { s.read(next) })
		off = end
	}
	return true
}

func (s *scan) put(ctx context.Context, next *scanned) bool {
	select {
	case s.ahead <- next:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *scan) read(next *scanned) {
	defer close(next.ready)
	next.buffer = s.buffers.Get().(*[ScanPiece]byte)
	next.Bytes = next.buffer[:next.Len]
	n, err := s.layer.ReadAt(next.Bytes, next.Off)
	if n < len(next.Bytes) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		next.err = fmt.Errorf("read [%d, +%d): %w", next.Off, next.Len, err)
	}
}

// IsZero reports whether all of p is zeros.
func IsZero(p []byte) bool {
	// Each byte is the one before it, and the first is zero.
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}
