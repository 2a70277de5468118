package agent

import (
	"context"
	"time"

	"varve/layers"
)

// An Image is a snapshot or a backup, for a mount to show.
type Image struct {
	ID     layers.ID
	Volume string    // the volume's name
	Name   string    // the snapshot's or backup's name
	Size   int64     // bytes
	Time   time.Time // the instant whose data it holds
}

// An OpenedImage is an image to read from.
type OpenedImage struct {
	layers.Layer
	close func() error
}

// Close ends the use of the image. Only the first call counts.
func (i *OpenedImage) Close() error { return i.close() }

// Images returns every snapshot that a user made and every backup that is
// available, from the catalog.
func (a *Agent) Images(ctx context.Context) ([]Image, error) {
	return nil, fail(Internal, "not built yet")
}

// OpenImage opens the image of that ID. One that is gone is an error that
// wraps fs.ErrNotExist.
func (a *Agent) OpenImage(ctx context.Context, id layers.ID) (*OpenedImage, error) {
	return nil, fail(Internal, "not built yet")
}
