package agent

import (
	"context"
	"slices"
	"time"

	"varve/catalog"
	"varve/layers"
)

// VolumeView is a volume as it is shown.
type VolumeView struct {
	catalog.Volume
	Attachments []Attachment    // oldest first
	Allocated   int64           // bytes on disk, snapshots included
	Live        int64           // bytes on disk that the live volume reads
	Snapshots   []SnapshotUsage // oldest first, those that the system made included
	Chain       layers.State    // how its data is doing
	Clones      []string        // names of the volumes that were made of it and may share its layers
	FileSystems []FileSystem    // that are on it, by partition; only of one volume, not in a list
	TakenOver   []Takeover      // by other hosts, in targets; only of one volume
}

// Volumes returns every volume, oldest first.
func (a *Agent) Volumes(ctx context.Context) ([]VolumeView, error) {
	records, snapshots, err := a.volumeRecords()
	if err != nil {
		return nil, err
	}
	names := snapshotNames(snapshots)
	views := make([]VolumeView, 0, len(records))
	for _, record := range records {
		views = append(views, a.viewVolume(record, names))
		views[len(views)-1].Clones = clonesOf(record.ID, records)
	}
	return views, nil
}

// Volume returns the volume that ref, a name or an id, means.
func (a *Agent) Volume(ctx context.Context, ref string) (VolumeView, error) {
	records, snapshots, err := a.volumeRecords()
	if err != nil {
		return VolumeView{}, err
	}
	record, err := resolve("volume", ref, records, ofVolume)
	if err != nil {
		return VolumeView{}, err
	}
	view := a.viewVolume(record, snapshotNames(snapshots))
	view.Clones = clonesOf(record.ID, records)
	if v := a.volumeOf(record.ID); v != nil {
		view.TakenOver = a.takeovers(v)
	}
	view.FileSystems = a.fileSystems(record.ID, records)
	return view, nil
}

func snapshotNames(snapshots []catalog.Snapshot) map[layers.ID]string {
	names := make(map[layers.ID]string, len(snapshots))
	for _, s := range snapshots {
		names[s.ID] = s.Name
	}
	return names
}

func (a *Agent) volumeRecords() (volumes []catalog.Volume, snapshots []catalog.Snapshot, err error) {
	err = a.view(func(tx *catalog.Tx) error {
		volumes, snapshots = all(a, tx, catalog.Volumes), all(a, tx, catalog.Snapshots)
		return nil
	})
	return volumes, snapshots, err
}

func ofVolume(v catalog.Volume) named {
	return named{v.ID, v.Name, "created " + v.Created.Format(time.DateTime)}
}

// viewVolume adds to a record what is known of the volume besides. names are
// those of the snapshots.
func (a *Agent) viewVolume(record catalog.Volume, names map[layers.ID]string) VolumeView {
	view := VolumeView{Volume: record}
	a.mu.Lock()
	v := a.volumes[record.ID]
	var data *layers.Volume
	if v != nil {
		data = v.data
		if settled(record.Status) {
			view.Status = v.use() // the record may lag where the catalog takes no changes
		}
		for _, attachment := range v.attached {
			view.Attachments = append(view.Attachments, attachment)
		}
		if v.err != nil && !failed(record.Status) && record.Status != catalog.Deleting {
			view.Status, view.Reason = catalog.Error, v.err.Error()
		}
	}
	a.mu.Unlock()
	if record.Importing && settled(view.Status) {
		view.Status = catalog.Creating
	}
	slices.SortFunc(view.Attachments, func(x, y Attachment) int { return x.Since.Compare(y.Since) })
	if data == nil {
		return view
	}
	if err := data.Failure(); err != nil && !failed(record.Status) {
		view.Status = catalog.Error
		view.Reason = err.Error() + ": it can be read; see to the disk, then start the daemon anew: what was flushed is there"
	}
	a.addFigures(&view, data, names)
	return view
}
