package repo

import (
	"context"
	"errors"
	"time"

	"varve/layers"
)

// A Job describes a backup to be made.
type Job struct {
	ID         layers.ID // of the backup; must be new
	Volume     layers.ID
	VolumeName string

	Name, Description string

	Parent   layers.ID    // zero: a full backup
	Source   layers.Layer // the whole content at the instant
	Changes  layers.Layer // where Source may differ from Parent; nil: everywhere
	Boundary layers.ID    // of the volume's chain; zero if none
	Snapshot layers.ID    // the snapshot that the user named; zero if none

	DataTimestamp time.Time
	Created       time.Time // zero: now
	Meta          map[string]string

	// Progress is told the bytes examined and the bytes to examine in all, if
	// it is not nil; never by two goroutines at once.
	Progress func(done, total int64)
}

// Create makes a backup and returns once it is durable. After an error there
// is no backup, and what had been stored for it is removed again as far as
// the store allows. A parent that is gone is ErrParentGone.
func (r *Repo) Create(ctx context.Context, j Job) (Backup, error) {
	return Backup{}, errors.ErrUnsupported
}
