package agent

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"varve/catalog"
	"varve/layers"
)

// An Image is a snapshot or a backup, for a mount to show.
type Image struct {
	ID       layers.ID
	VolumeID layers.ID
	Volume   string    // the volume's name
	Name     string    // the snapshot's or backup's name
	Size     int64     // bytes
	Used     int64     // bytes of data in it; zero if not known
	Time     time.Time // the instant whose data it holds
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
	var images []Image
	err := a.view(func(tx *catalog.Tx) error {
		images = nil
		names := map[layers.ID]string{}
		for _, v := range all(a, tx, catalog.Volumes) {
			names[v.ID] = v.Name
		}
		for _, s := range all(a, tx, catalog.Snapshots) {
			if !s.System && s.Status == catalog.Available {
				images = append(images, Image{
					ID: s.ID, VolumeID: s.VolumeID, Volume: names[s.VolumeID], Name: s.Name, Size: s.Size, Time: s.Created,
				})
			}
		}
		for _, b := range all(a, tx, catalog.Backups) {
			if whole(b) {
				images = append(images, Image{
					ID: b.ID, VolumeID: b.VolumeID, Volume: b.VolumeName, Name: b.Name, Size: b.Size, Time: b.DataTimestamp,
					Used: usedBy(b.ParentID.IsZero(), b.Logical, b.Size),
				})
			}
		}
		return nil
	})
	return images, err
}

// usedBy is how much data a backup of size bytes has: all that a full one added,
// which is whole blocks. Of the others it is not known.
func usedBy(full bool, added, size int64) int64 {
	if !full {
		return 0
	}
	return min(added, size)
}

// OpenImage opens the image of that ID. One that is gone is an error that
// wraps fs.ErrNotExist. Reading from a backup goes on until it is closed,
// whatever becomes of ctx.
func (a *Agent) OpenImage(ctx context.Context, id layers.ID) (*OpenedImage, error) {
	var s catalog.Snapshot
	err := a.view(func(tx *catalog.Tx) (err error) {
		s, err = catalog.Snapshots.Get(tx, id)
		return err
	})
	switch {
	case err == nil:
		return a.openSnapshotImage(s)
	case errors.Is(err, fs.ErrNotExist):
		return a.openBackupImage(ctx, id)
	}
	return nil, err
}

func (a *Agent) openSnapshotImage(s catalog.Snapshot) (*OpenedImage, error) {
	_, view, done, err := a.openSnapshot(s)
	if err != nil {
		return nil, err
	}
	return &OpenedImage{view, done}, nil
}

func (a *Agent) openBackupImage(ctx context.Context, id layers.ID) (*OpenedImage, error) {
	_, t, release, err := a.wholeBackup(ctx, id.String())
	if err != nil {
		return nil, err
	}
	r, done, err := a.useTarget(ctx, t)
	release() // Using it holds it.
	if err != nil {
		return nil, err
	}
	layer, err := r.Layer(ctx, id)
	if err != nil {
		done()
		return nil, targetError(t, "open backup "+id.String()+" in", err)
	}
	return &OpenedImage{layer, sync.OnceValue(func() error {
		defer done()
		return layer.Close()
	})}, nil
}
