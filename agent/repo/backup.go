package repo

import (
	"context"
	"errors"
	"iter"
	"time"

	"varve/layers"
)

// A Backup is what the repository says about one backup. Each reads as a full
// one, whatever its parent became.
type Backup struct {
	ID         layers.ID
	Volume     layers.ID
	Parent     layers.ID // zero: it was made as a full backup
	Boundary   layers.ID // of the volume's chain; zero if there was none
	Snapshot   layers.ID // the snapshot that the user named; zero if none
	VolumeName string

	Name, Description string

	Size    int64 // of the volume, bytes
	Logical int64 // bytes of data that this backup added, before compression
	Changed int64 // bytes that may differ from the parent, zeros included
	Stored  int64 // bytes of the objects that this backup added
	Objects int64 // objects that this backup added

	Incremental   bool
	Created       time.Time
	DataTimestamp time.Time
	Meta          map[string]string
}

// Backups yields every backup that is not deleted, oldest first within each
// volume. A damaged one is yielded as an error that names it, with the ID and
// Volume of its name, and never hides the others.
func (r *Repo) Backups(ctx context.Context) iter.Seq2[Backup, error] {
	return func(yield func(Backup, error) bool) { yield(Backup{}, errors.ErrUnsupported) }
}

// Backup describes one backup. One that is not there, or deleted, is an error
// that wraps fs.ErrNotExist.
func (r *Repo) Backup(ctx context.Context, id layers.ID) (Backup, error) {
	return Backup{}, errors.ErrUnsupported
}

// Delete hides the backup at once, by a tombstone; pruning frees its space
// later. Backups that share data with it stay whole. One that is not there is
// an error that wraps fs.ErrNotExist; a damaged one can be deleted.
func (r *Repo) Delete(ctx context.Context, id layers.ID) error { return errors.ErrUnsupported }
