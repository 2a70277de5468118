package layers

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"time"
)

// Options tune a Volume. The zero value is useful.
type Options struct {
	Log *slog.Logger // background work reports here; nil is silent
}

var errSkeleton = errors.New("layers: not built yet")

// A Volume is a chain of layers in a directory, open for reading and writing.
type Volume struct{ id ID }

// A Boundary is a place in the chain where a head was sealed: a snapshot, or a
// mark.
type Boundary struct {
	ID     ID
	Size   int64     // bytes, of the volume at that instant
	Sealed time.Time // the instant
	Mark   bool      // only the knowledge of what changed since is kept, no data
	Bytes  int64     // allocated bytes of the layers that only it needs
}

// Usage is what a volume takes on disk.
type Usage struct {
	Allocated int64 // bytes, of all layers
	Live      int64 // bytes that the live volume reads
}

// A View is a Layer over the data of a snapshot, or of what changed between two
// boundaries.
type View struct{}

func (w *View) ReadAt(p []byte, off int64) (int, error) { return 0, errSkeleton }
func (w *View) Size() int64                             { return 0 }
func (w *View) Extents(off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) { yield(Extent{}, errSkeleton) }
}
func (w *View) Close() error { return nil }

func Create(dir string, id ID, size int64, o Options) (*Volume, error) { return nil, errSkeleton }
func Open(dir string, o Options) (*Volume, error)                      { return nil, errSkeleton }

func (v *Volume) ID() ID                                    { return v.id }
func (v *Volume) Size() int64                               { return 0 }
func (v *Volume) ReadAt(p []byte, off int64) (int, error)   { return 0, errSkeleton }
func (v *Volume) WriteAt(p []byte, off int64) (int, error)  { return 0, errSkeleton }
func (v *Volume) WriteZeroes(off, n int64) error            { return errSkeleton }
func (v *Volume) Flush() error                              { return errSkeleton }
func (v *Volume) Close() error                              { return errSkeleton }
func (v *Volume) Snapshot(id ID) error                      { return errSkeleton }
func (v *Volume) Boundaries() []Boundary                    { return nil }
func (v *Volume) View(id ID) (*View, error)                 { return nil, errSkeleton }
func (v *Volume) Diff(from, to ID) (*View, error)           { return nil, errSkeleton }
func (v *Volume) DeleteSnapshot(id ID, keepMark bool) error { return errSkeleton }
func (v *Volume) DropMark(id ID) error                      { return errSkeleton }
func (v *Volume) Clean() bool                               { return false }
func (v *Volume) Grow(size int64) error                     { return errSkeleton }
func (v *Volume) Usage() Usage                              { return Usage{} }
func (v *Volume) Check(ctx context.Context) error           { return errSkeleton }
func (v *Volume) Extents(off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) { yield(Extent{}, errSkeleton) }
}
