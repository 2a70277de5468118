package repo

import (
	"context"
	"errors"

	"varve/layers"
)

// A Writer takes what Restore reads. Its methods are called by several
// goroutines at once, never for the same bytes.
type Writer interface {
	WriteAt(p []byte, off int64) (int, error)
	WriteZeroes(off, n int64) error
}

// RestoreOptions choose how Restore writes.
type RestoreOptions struct {
	Blank    bool                    // the destination is known to be all zeros
	Progress func(done, total int64) // bytes of data; may be nil
}

// Restore writes the whole backup to dst, zeros included unless dst is blank.
// Every byte is authenticated before it is written; an error names the object
// and the offset, and dst is then incomplete. Restore does not flush dst.
func (r *Repo) Restore(ctx context.Context, id layers.ID, dst Writer, o RestoreOptions) error {
	return errors.ErrUnsupported
}
