package layers_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"testing"

	"varve/layers"
)

// patchwork is a layer in memory with extents of its own.
type patchwork struct {
	bytes   []byte
	extents []layers.Extent
	broken  int64 // offset of a byte that cannot be read; 0: none
}

var errBroken = errors.New("a broken disk")

func (p patchwork) Size() int64 { return int64(len(p.bytes)) }

func (p patchwork) ReadAt(b []byte, off int64) (int, error) {
	if p.broken > 0 && off <= p.broken && p.broken < off+int64(len(b)) {
		return 0, errBroken
	}
	return bytes.NewReader(p.bytes).ReadAt(b, off)
}

func (p patchwork) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		for _, e := range p.extents {
			if e = e.Clip(off, n); e.Len > 0 && !yield(e, nil) {
				return
			}
		}
	}
}

func newPatchwork() patchwork {
	const size = 9<<20 + 512
	p := patchwork{bytes: make([]byte, size), extents: []layers.Extent{
		{Off: 4096, Len: 100, Kind: layers.Data}, {Off: 1 << 20, Len: 5<<20 + 7, Kind: layers.Data},
		{Off: 7 << 20, Len: 1 << 20, Kind: layers.Zero}, {Off: 9 << 20, Len: 512, Kind: layers.Data},
	}}
	r := rand.New(rand.NewPCG(1, 1))
	for _, e := range p.extents {
		if e.Kind == layers.Data {
			for i := range e.Len {
				p.bytes[e.Off+i] = byte(r.Uint32())
			}
		}
	}
	return p
}

// TestScan: pieces are in order, without gaps, and true.
func TestScan(t *testing.T) {
	p := newPatchwork()
	for _, depth := range []int{0, 1, 7, 100} {
		got := make([]byte, len(p.bytes))
		next := int64(0)
		for piece, err := range layers.Scan(t.Context(), p, depth) {
			if err != nil {
				t.Fatal(err)
			}
			if piece.Off != next || piece.Len <= 0 || (piece.Kind == layers.Data) != (piece.Bytes != nil) || len(piece.Bytes) > layers.ScanPiece {
				t.Fatalf("piece %+v with %d bytes after %d", piece.Extent, len(piece.Bytes), next)
			}
			copy(got[piece.Off:], piece.Bytes)
			next = piece.End()
		}
		if next != p.Size() || !bytes.Equal(got, p.bytes) {
			t.Errorf("depth %d: other bytes, or not all: %d of %d", depth, next, p.Size())
		}
	}
}

// TestScanEnds: with an error, by the consumer, and by the context.
func TestScanEnds(t *testing.T) {
	p := newPatchwork()
	p.broken = 3 << 20
	var last error
	for piece, err := range layers.Scan(t.Context(), p, 3) {
		if last = err; err == nil && piece.End() > p.broken {
			t.Errorf("piece %+v beyond what cannot be read", piece.Extent)
		}
	}
	if !errors.Is(last, errBroken) {
		t.Errorf("error %v, want %v", last, errBroken)
	}
	p.broken = 0
	for range layers.Scan(t.Context(), p, 3) {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, err := range layers.Scan(ctx, p, 3) {
		last = err
		cancel()
	}
	if !errors.Is(last, context.Canceled) {
		t.Errorf("error %v, want %v", last, context.Canceled)
	}
	p.bytes = p.bytes[:8<<20] // a layer that claims more than it has
	for _, err := range layers.Scan(t.Context(), short{p}, 3) {
		last = err
	}
	if !errors.Is(last, io.ErrUnexpectedEOF) {
		t.Errorf("error %v, want %v", last, io.ErrUnexpectedEOF)
	}
}

type short struct{ patchwork }

func (short) Size() int64 { return 9<<20 + 512 }

func TestIsZero(t *testing.T) {
	p := make([]byte, 100)
	for n := range p {
		if !layers.IsZero(p[:n]) {
			t.Errorf("%d zeros are not zero", n)
		}
		for i := range n {
			p[i] = 1
			if layers.IsZero(p[:n]) {
				t.Errorf("%d bytes with a 1 at %d are zero", n, i)
			}
			p[i] = 0
		}
	}
}
