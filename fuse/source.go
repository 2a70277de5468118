package fuse

import (
	"context"
	"io"
	"time"

	"varve/layers"
)

// A Source is what a mount shows: the snapshots and backups of volumes. Its
// methods may be called concurrently.
type Source interface {
	// List returns every image there is now, in any order. A mount calls it
	// about twice a second while somebody looks at its folders, one call at a
	// time, and not at all otherwise.
	List(ctx context.Context) ([]Image, error)

	// Open opens the image that List gave this ID for reading. ctx bounds the
	// opening, not the reading. One that has gone since is an error that wraps
	// fs.ErrNotExist.
	Open(ctx context.Context, id layers.ID) (Handle, error)
}

// A Handle is an open image. It is closed when no file of the mount uses it,
// and no method is called after that.
type Handle interface {
	layers.Layer
	io.Closer
}

// An Image is one snapshot or backup, shown as VOLUME/NAME/disk.raw. Where two
// images would have one path, or a name does not suit a path element, the ID
// is part of the name that is shown. What an ID names never changes, its name
// excepted.
type Image struct {
	ID       layers.ID
	VolumeID layers.ID // tells volumes of one name apart; zero if not known
	Volume   string    // the volume's name
	Name     string    // the snapshot's or backup's name
	Size     int64     // bytes; what its Handle's Size says
	Used     int64     // bytes of data in it, for st_blocks; zero if not known
	Time     time.Time // the instant whose data it holds
}
