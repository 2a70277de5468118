package agent

import (
	"varve/layers"
)

// SnapshotUsage is what one snapshot takes.
type SnapshotUsage struct {
	ID        layers.ID
	Name      string
	Bytes     int64 // on disk, between it and the snapshot below
	Exclusive int64 // that would come back if it alone were deleted; -1: not known yet
}

// figures are what a volume says of its snapshots at one moment.
type figures struct {
	list       []layers.Boundary // oldest first
	boundaries map[layers.ID]layers.Boundary
	exclusive  map[layers.ID]int64
}

// readFigures asks a volume. What it cannot say is left out.
func (a *Agent) readFigures(data *layers.Volume) *figures {
	f := &figures{list: data.Boundaries(), boundaries: map[layers.ID]layers.Boundary{}}
	for _, b := range f.list {
		f.boundaries[b.ID] = b
	}
	var err error
	if f.exclusive, err = data.Exclusive(); err != nil {
		a.log.Warn("what snapshots hold is not known", "volume", data.ID(), "error", err)
	}
	return f
}

// figuresOf is readFigures of a volume that may not be open; then it is empty.
func (a *Agent) figuresOf(volumeID layers.ID) *figures {
	a.mu.Lock()
	v := a.volumes[volumeID]
	var data *layers.Volume
	if v != nil {
		data = v.data
	}
	a.mu.Unlock()
	if data == nil {
		return &figures{}
	}
	return a.readFigures(data)
}

func (f *figures) usage(id layers.ID, name string) SnapshotUsage {
	u := SnapshotUsage{ID: id, Name: name, Bytes: f.boundaries[id].Bytes, Exclusive: -1}
	if n, known := f.exclusive[id]; known {
		u.Exclusive = n
	}
	return u
}

// parent is the nearest snapshot below; marks are passed over.
func (f *figures) parent(id layers.ID) layers.ID {
	for {
		id = f.boundaries[id].Parent
		if !f.boundaries[id].Mark {
			return id
		}
	}
}

// addFigures adds to the view of a volume what it takes and how it is doing.
// names are those of the snapshots.
func (a *Agent) addFigures(view *VolumeView, data *layers.Volume, names map[layers.ID]string) {
	usage := data.Usage()
	view.Size, view.Allocated, view.Live = data.Size(), usage.Allocated, usage.Live
	f := a.readFigures(data)
	for _, b := range f.list {
		if !b.Mark {
			view.Snapshots = append(view.Snapshots, f.usage(b.ID, names[b.ID]))
		}
	}
	var err error
	if view.Chain, err = data.State(); err != nil {
		a.log.Warn("the state of a volume is not known", "volume", data.ID(), "error", err)
	}
}
