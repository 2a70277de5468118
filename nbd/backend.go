package nbd

import (
	"fmt"
	"io"
	"io/fs"
	"iter"

	"github.com/pojntfx/go-nbd/pkg/backend"

	"varve/layers"
)

// AsBackend gives a device the shape that go-nbd and what is written for it
// expect. Sync is Flush.
func AsBackend(d Device) backend.Backend { return asBackend{d} }

type asBackend struct{ Device }

func (b asBackend) Size() (int64, error) { return b.Device.Size(), nil }
func (b asBackend) Sync() error          { return b.Device.Flush() }

// FromBackend gives a go-nbd backend the shape of a device. Its size is asked
// for once. All of it counts as data, zeros are written as such, and ranges
// that cross the end do not reach the backend, because some panic there.
func FromBackend(b backend.Backend) (Device, error) {
	size, err := b.Size()
	if err != nil {
		return nil, fmt.Errorf("size of the backend: %w", err)
	}
	if size < 0 {
		return nil, fmt.Errorf("size of the backend: %d is negative", size)
	}
	return fromBackend{b, size}, nil
}

type fromBackend struct {
	backend backend.Backend
	size    int64 // bytes
}

func (d fromBackend) Size() int64  { return d.size }
func (d fromBackend) Flush() error { return d.backend.Sync() }

func (d fromBackend) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case len(p) == 0:
		return 0, nil
	case off < 0:
		return 0, fmt.Errorf("read at %d: %w", off, fs.ErrInvalid)
	case off >= d.size:
		return 0, io.EOF
	case int64(len(p)) <= d.size-off:
		return d.backend.ReadAt(p, off)
	}
	n, err := d.backend.ReadAt(p[:d.size-off], off)
	if err == nil {
		err = io.EOF
	}
	return n, err
}

func (d fromBackend) WriteAt(p []byte, off int64) (int, error) {
	if err := d.fits("write", off, int64(len(p))); err != nil || len(p) == 0 {
		return 0, err
	}
	return d.backend.WriteAt(p, off)
}

func (d fromBackend) WriteZeroes(off, n int64) error {
	if err := d.fits("write zeroes", off, n); err != nil {
		return err
	}
	for n > 0 {
		m := min(n, int64(len(zeros)))
		if _, err := d.backend.WriteAt(zeros[:m], off); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

func (d fromBackend) fits(act string, off, n int64) error {
	if off < 0 || n < 0 || n > d.size-off {
		return fmt.Errorf("%s [%d, +%d): beyond the size %d: %w", act, off, n, d.size, fs.ErrInvalid)
	}
	return nil
}

func (d fromBackend) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		all := layers.Extent{Len: d.size, Kind: layers.Data}
		if e := all.Clip(off, n); e.Len > 0 {
			yield(e, nil)
		}
	}
}
