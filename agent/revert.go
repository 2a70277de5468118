package agent

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"varve/catalog"
	"varve/layers"
)

// RevertVolume makes a volume read what one of its snapshots holds. Its present
// state becomes a snapshot first, which is returned; that and the snapshots
// after the target stay. Nobody may have the volume open.
//
// A crash leaves the volume as it was or reverted; the safety snapshot's record
// is there or not as its boundary is.
func (a *Agent) RevertVolume(ctx context.Context, ref, snapshotRef string) (VolumeView, catalog.Snapshot, error) {
	record, v, err := a.findVolume(ref)
	if err != nil {
		return VolumeView{}, catalog.Snapshot{}, err
	}
	target, err := a.snapshotOf(record, snapshotRef)
	if err != nil {
		return VolumeView{}, catalog.Snapshot{}, err
	}
	if target.Status != catalog.Available {
		return VolumeView{}, catalog.Snapshot{}, fail(Conflict, "snapshot %s is in status %s: only to one that is available can be reverted", target.Name, target.Status)
	}
	err = a.claim(v, byRevert, func() error {
		if _, err := v.usable(record); err != nil {
			return err
		}
		switch {
		case v.busy != "":
			return fail(Conflict, "volume %s is taken by %s: wait for it or cancel it", record.Name, v.busy)
		case len(v.attached) > 0:
			return fail(InUse, "volume %s is in use: its clients would go on with what they remember of the old state. "+
				"Disconnect them, and keep them out with: varve volume attach %s --maintenance", record.Name, record.Name)
		}
		return nil
	})
	if err != nil {
		return VolumeView{}, catalog.Snapshot{}, err
	}
	defer a.unclaim(v)
	safety, err := a.revert(record, v, target)
	if err != nil {
		return VolumeView{}, catalog.Snapshot{}, volumeError("revert volume "+record.Name+" to snapshot "+target.Name, err)
	}
	view, err := a.Volume(ctx, v.id.String())
	return view, safety, err
}

// snapshotOf returns the snapshot of one volume that ref means.
func (a *Agent) snapshotOf(record catalog.Volume, ref string) (catalog.Snapshot, error) {
	volumes, snapshots, err := a.volumeRecords()
	if err != nil {
		return catalog.Snapshot{}, err
	}
	own := slices.DeleteFunc(snapshots, func(s catalog.Snapshot) bool { return s.VolumeID != record.ID })
	return resolveSnapshot(ref, volumes, own)
}

// revert reverts a volume that the caller has claimed.
func (a *Agent) revert(record catalog.Volume, v *volume, target catalog.Snapshot) (catalog.Snapshot, error) {
	v.chain.Lock()
	defer v.chain.Unlock()
	a.mu.Lock()
	data := v.data
	a.mu.Unlock()
	if data == nil {
		return catalog.Snapshot{}, errStopped
	}
	now := instant()
	safety := catalog.Snapshot{
		ID: layers.NewID(), VolumeID: v.id, Name: "before-revert-" + timeName(now),
		Description: shorten("the state before the volume was reverted to snapshot " + target.Name),
		Size:        data.Size(), Status: catalog.Creating, Created: now,
	}
	if err := a.update(func(tx *catalog.Tx) error { return catalog.Snapshots.Put(tx, safety) }); err != nil {
		return catalog.Snapshot{}, err
	}
	if err := data.Revert(target.ID, safety.ID); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = fail(NotFound, "snapshot %s of volume %s is gone meanwhile", target.Name, record.Name)
		}
		return catalog.Snapshot{}, errors.Join(err, a.unseal(data, safety.ID, false, nil))
	}
	safety.Status = catalog.Available
	return safety, a.update(func(tx *catalog.Tx) error {
		return errors.Join(catalog.Snapshots.Put(tx, safety),
			change(tx, catalog.Volumes, v.id, func(r *catalog.Volume) { r.Updated = time.Now().UTC() }))
	})
}
