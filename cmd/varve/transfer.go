package main

import (
	"context"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"varve/layers"
)

// transferDepth is how many pieces of layers.ScanPiece bytes are on their way
// at once when an image is copied.
const transferDepth = 16

// A sink is what an image is copied to.
type sink interface {
	io.WriterAt

	// WriteZeroes makes a range read as zeros. It is not called where blank
	// says that it does already.
	WriteZeroes(off, n int64) error
}

// A transfer copies an image and tells how far it is.
type transfer struct {
	to    sink
	blank bool // all of to reads as zeros yet
	total int64

	mu   sync.Mutex // of bar and done
	bar  *progress
	done int64 // bytes
}

// newTransfer shows its progress as label until finish.
func (c *call) newTransfer(label string, to sink, blank bool, total int64) *transfer {
	return &transfer{to: to, blank: blank, total: total, bar: newProgress(c.stderr, label, c.onTerminal())}
}

func (t *transfer) advance(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done += n
	t.bar.update(t.done, t.total)
}

// finish wipes the bar.
func (t *transfer) finish() { t.bar.finish() }

// layer copies all of a layer, several pieces at once. Blocks of zeros are not
// written, whatever the layer says about them.
func (t *transfer) layer(ctx context.Context, from layers.Layer) error {
	work, ctx := errgroup.WithContext(ctx)
	work.SetLimit(transferDepth)
	buffers := sync.Pool{New: func() any { return new([layers.ScanPiece]byte) }}
	piece := func(off, n int64) func() error {
		return func() error {
			b := buffers.Get().(*[layers.ScanPiece]byte)
			defer buffers.Put(b)
			if got, err := from.ReadAt(b[:n], off); int64(got) < n {
				return fmt.Errorf("read [%d, +%d): %w", off, n, unexpected(err))
			}
			return t.write(b[:n], off)
		}
	}
	err := t.plan(ctx, from, func(off, n int64) { work.Go(piece(off, n)) })
	if other := work.Wait(); other != nil {
		return other // the cause, if plan only saw the context end
	}
	return err
}

// plan walks through a layer: data goes to copy in pieces, the rest is zeroed.
func (t *transfer) plan(ctx context.Context, from layers.Layer, copy func(off, n int64)) error {
	next := int64(0)
	for e, err := range from.Extents(0, from.Size()) {
		if err != nil {
			return err
		}
		if e.Kind != layers.Data {
			continue
		}
		if err := t.zero(ctx, next, e.Off-next); err != nil {
			return err
		}
		for off := e.Off; off < e.End(); {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(e.End(), off-off%layers.ScanPiece+layers.ScanPiece) - off
			copy(off, n)
			off += n
		}
		next = e.End()
	}
	return t.zero(ctx, next, from.Size()-next)
}

func (t *transfer) zero(ctx context.Context, off, n int64) error {
	if err := ctx.Err(); err != nil || n == 0 {
		return err
	}
	if !t.blank {
		if err := t.to.WriteZeroes(off, n); err != nil {
			return err
		}
	}
	t.advance(n)
	return nil
}

// stream copies what is read, at most size bytes, and returns how much it was.
func (t *transfer) stream(ctx context.Context, from io.Reader, size int64) (int64, error) {
	work, running := errgroup.WithContext(ctx) // ends with the first error
	work.SetLimit(transferDepth)
	buffers := sync.Pool{New: func() any { return new([layers.ScanPiece]byte) }}
	off := int64(0)
	var failed error
	for off < size && running.Err() == nil {
		b := buffers.Get().(*[layers.ScanPiece]byte)
		n, err := io.ReadFull(from, b[:min(size-off, layers.ScanPiece)])
		at := off
		work.Go(func() error {
			defer buffers.Put(b)
			return t.write(b[:n], at)
		})
		off += int64(n)
		if err != nil {
			if failed = err; err == io.EOF || err == io.ErrUnexpectedEOF {
				failed = nil
			}
			break
		}
	}
	if err := work.Wait(); err != nil {
		return off, err
	}
	if failed == nil {
		failed = ctx.Err()
	}
	return off, failed
}

// write writes p without its blocks of zeros.
func (t *transfer) write(p []byte, off int64) error {
	n := int64(len(p))
	for len(p) > 0 {
		run, zero := zeroRun(p, off)
		var err error
		switch {
		case !zero:
			_, err = t.to.WriteAt(p[:run], off)
		case !t.blank:
			err = t.to.WriteZeroes(off, int64(run))
		}
		if err != nil {
			return err
		}
		p, off = p[run:], off+int64(run)
	}
	t.advance(n)
	return nil
}

// zeroRun is how many bytes from the start of p, which lies at off, are blocks
// of zeros, or are not. Parts of blocks count as blocks.
func zeroRun(p []byte, off int64) (n int, zero bool) {
	for n < len(p) {
		end := min(len(p), n+int(layers.BlockSize-(off+int64(n))%layers.BlockSize))
		this := layers.IsZero(p[n:end])
		if n > 0 && this != zero {
			return n, zero
		}
		n, zero = end, this
	}
	return n, zero
}

func unexpected(err error) error {
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
