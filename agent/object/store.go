package object

import (
	"context"
	"iter"
	"time"
)

// A Store keeps named byte strings: a container of OpenStack Swift, a bucket
// of S3, a directory.
//
// All methods are safe for concurrent use and return soon after ctx ends.
// An object that is not there is an error that wraps fs.ErrNotExist; refused
// credentials or rights wrap fs.ErrPermission. Every error names the operation
// and the object, and never a secret.
type Store interface {
	// Put writes the object whole: afterwards it is there with exactly these
	// bytes and durable, or, after an error, as it was before. An object of
	// that name is replaced. Readers see it at once by Get; List may lag.
	// The store does not keep data.
	Put(ctx context.Context, name string, data []byte) error

	// Get reads len(p) bytes of the object at off, as io.ReaderAt does: fewer
	// only with an error, which is io.EOF if the object ends there. An empty p
	// asks whether the object is there and reaches beyond off.
	Get(ctx context.Context, name string, p []byte, off int64) (int, error)

	// List yields the objects whose names begin with prefix, in ascending
	// order of their names in bytes. It may lag behind Put and Delete: its
	// silence proves nothing. An error ends the sequence.
	List(ctx context.Context, prefix string) iter.Seq2[Info, error]

	// Delete removes the objects. One that is not there is no error. Where the
	// store itself retains some, the error wraps a *RetainedError, and the
	// others are removed. Many are removed by few requests where the server can,
	// else a few at once. The store does not keep names.
	Delete(ctx context.Context, names ...string) error
}

// Info is what a listing says about an object.
//
// Names are made of the characters a-z 0-9 - . and /, at most 200 bytes, with
// no empty, "." or ".." element. Where "a" is an object, "a/b" cannot be one.
type Info struct {
	Name     string
	Size     int64     // bytes
	Modified time.Time // by the store's clock
}
