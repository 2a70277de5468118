package repo

import (
	"context"
	"errors"

	"varve/layers"
)

// A Level says how much of a backup Verify reads.
type Level int

const (
	Presence Level = iota // every object is there, whole in length
	Map                   // and the whole map is read and checked
	Deep                  // and every frame is read, decrypted, expanded, and its id compared
)

// VerifyOptions choose what Verify does.
type VerifyOptions struct {
	Level    Level
	Progress func(done, total int64) // stored bytes; may be nil
}

// A Report says what Verify read and what it found.
type Report struct {
	Objects int64 // packs that the backup needs
	Frames  int64 // frames that were read, with Deep
	Bytes   int64 // stored bytes that were read
	Damage  []error
}

// Verify checks a backup. If anything is damaged the error wraps ErrCorrupt
// and the report names each place, at most 100 of them.
func (r *Repo) Verify(ctx context.Context, id layers.ID, o VerifyOptions) (Report, error) {
	return Report{}, errors.ErrUnsupported
}
