package nbd

import (
	"io/fs"

	"varve/layers"
)

// A Device is what an export serves: a Layer that can be written.
//
// All methods are safe for concurrent use. A write that has returned is seen
// by every later read on any connection; it survives a crash once a Flush that
// began after it has returned nil.
type Device interface {
	layers.Layer

	// WriteAt writes p at off. It never grows the device: a range that
	// crosses Size is refused whole.
	WriteAt(p []byte, off int64) (int, error)

	// WriteZeroes makes [off, off+n) read as zeros and gives back what space
	// it can. Trim is the same call.
	WriteZeroes(off, n int64) error

	// Flush returns when every write that returned before the call began is
	// durable. After an error the device takes no more writes.
	Flush() error
}

// ReadOnly gives a layer the shape of a Device whose writes all fail with
// fs.ErrPermission.
func ReadOnly(l layers.Layer) Device { return readOnly{l} }

type readOnly struct{ layers.Layer }

func (readOnly) WriteAt([]byte, int64) (int, error) { return 0, fs.ErrPermission }
func (readOnly) WriteZeroes(int64, int64) error     { return fs.ErrPermission }
func (readOnly) Flush() error                       { return nil }
