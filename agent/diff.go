package agent

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"slices"

	"varve/catalog"
	"varve/layers"
)

// A Diff is what may differ between two snapshots of a volume. Close it.
type Diff struct {
	From, To catalog.Snapshot
	view     *layers.View
	release  []func()
}

// DiffSnapshots compares two snapshots of one volume by its maps; no data is
// read. toRef may be the name alone, of a snapshot of the same volume. The
// first may be the newer one.
func (a *Agent) DiffSnapshots(ctx context.Context, fromRef, toRef string) (*Diff, error) {
	volumes, snapshots, err := a.volumeRecords()
	if err != nil {
		return nil, err
	}
	from, err := resolveSnapshot(fromRef, volumes, snapshots)
	if err != nil {
		return nil, err
	}
	own := slices.DeleteFunc(slices.Clone(snapshots), func(s catalog.Snapshot) bool { return s.VolumeID != from.VolumeID })
	to, err := resolveSnapshot(toRef, volumes, own)
	if ReasonOf(err) == NotFound {
		if other, err := resolveSnapshot(toRef, volumes, snapshots); err == nil {
			return nil, fail(Invalid, "snapshots %s and %s are of different volumes: only those of one volume can be compared", from.Name, other.Name)
		}
	}
	if err != nil {
		return nil, err
	}
	for _, s := range []catalog.Snapshot{from, to} {
		if s.Status != catalog.Available {
			return nil, fail(Conflict, "snapshot %s is in status %s: only those that are available can be compared", s.Name, s.Status)
		}
	}
	return a.openDiff(from, to)
}

func (a *Agent) openDiff(from, to catalog.Snapshot) (*Diff, error) {
	record, v, err := a.findVolume(from.VolumeID.String())
	if err != nil {
		return nil, err
	}
	d := &Diff{From: from, To: to}
	a.mu.Lock()
	data, err := v.usable(record)
	if err == nil {
		d.release = append(d.release, a.hold(v, from.ID), a.hold(v, to.ID))
	}
	a.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if d.view, err = data.Diff(from.ID, to.ID); err != nil {
		d.letGo()
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fail(NotFound, "snapshot %s or %s is gone meanwhile", from.Name, to.Name)
		}
		return nil, dataError("compare snapshots of volume "+record.Name, err)
	}
	return d, nil
}

// Extents yields the ranges that may differ, in ascending order, without
// overlap: Data and Zero are what To reads there.
func (d *Diff) Extents() iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		for e, err := range d.view.Extents(0, d.view.Size()) {
			if err == nil && e.Kind == layers.Absent {
				continue
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Close lets the snapshots be deleted.
func (d *Diff) Close() error {
	defer d.letGo()
	return d.view.Close()
}

func (d *Diff) letGo() {
	for _, release := range d.release {
		release()
	}
	d.release = nil
}
