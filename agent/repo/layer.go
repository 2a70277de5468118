package repo

import (
	"context"
	"errors"
	"iter"

	"varve/layers"
)

// A Layer is the content of one backup, whole, read from the store as needed.
// It is a layers.Layer, safe for concurrent use.
type Layer struct {
	size int64
}

var _ layers.Layer = (*Layer)(nil)

// Layer opens a backup for reading. Close it after use.
func (r *Repo) Layer(ctx context.Context, id layers.ID) (*Layer, error) {
	return nil, errors.ErrUnsupported
}

// Size is the volume's size in bytes.
func (l *Layer) Size() int64 { return l.size }

// ReadAt implements layers.Layer.
func (l *Layer) ReadAt(p []byte, off int64) (int, error) { return 0, errors.ErrUnsupported }

// Extents implements layers.Layer. A backup says something about every byte:
// there are no gaps.
func (l *Layer) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) { yield(layers.Extent{}, errors.ErrUnsupported) }
}

// Close ends the reads that run. Later ones return ErrClosed.
func (l *Layer) Close() error { return nil }
