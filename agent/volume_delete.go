package agent

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"varve/catalog"
	"varve/layers"
)

// errDeleted is why a volume is not open that somebody found just before its
// deletion.
var errDeleted = &Error{Reason: Conflict, Message: "it is being deleted"}

// DeleteVolume removes a volume and its snapshots. Its backups stay.
func (a *Agent) DeleteVolume(ctx context.Context, ref string) error {
	record, v, err := a.findVolume(ref)
	if err != nil {
		return err
	}
	err = a.claim(v, byDeletion, func() error {
		var locked *layers.LockedError
		if errors.As(v.err, &locked) {
			return fail(InUse, "volume %s: %w", record.Name, v.err)
		}
		if v.reserved {
			return fail(InUse, "volume %s is in maintenance: end that first with: varve volume detach %s", record.Name, record.Name)
		}
		return v.idle(record)
	})
	if err != nil {
		return err
	}
	defer a.unclaim(v)
	v.chain.Lock() // What began before the claim ends first.
	defer v.chain.Unlock()
	if err := a.checkLent(record, v); err != nil {
		return err
	}
	return a.removeVolume(v, record.Name)
}

// removeVolume deletes a volume that the caller has claimed.
func (a *Agent) removeVolume(v *volume, name string) error {
	err := a.update(func(tx *catalog.Tx) error {
		return change(tx, catalog.Volumes, v.id, func(r *catalog.Volume) { r.Status, r.Updated = catalog.Deleting, time.Now().UTC() })
	})
	if err != nil {
		return err
	}
	a.mu.Lock()
	data := v.data
	v.data, v.err = nil, errDeleted
	a.mu.Unlock()
	if data != nil {
		data.Close() // What it could not write goes anyway.
	}
	if err := a.unmakeVolume(v.id); err != nil {
		a.mu.Lock()
		v.err = err
		a.mu.Unlock()
		recordErr := a.update(func(tx *catalog.Tx) error {
			return change(tx, catalog.Volumes, v.id, func(r *catalog.Volume) { r.Status, r.Reason = catalog.ErrorDeleting, shorten(err.Error()) })
		})
		return errors.Join(fail(Unavailable, "delete volume %s: %w. Delete it again when that is put right", name, err), recordErr)
	}
	a.dropVolume(v.id)
	return nil
}

// unmakeVolume removes a volume's folder, which nobody has open, then what the
// catalog knows of it.
func (a *Agent) unmakeVolume(id layers.ID) error {
	if err := layers.Remove(a.volumeDir(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	a.tidyVolumes()
	return a.update(func(tx *catalog.Tx) error {
		for _, s := range all(a, tx, catalog.Snapshots) {
			if s.VolumeID != id {
				continue
			}
			if err := catalog.Snapshots.Delete(tx, s.ID); err != nil {
				return err
			}
		}
		return catalog.Volumes.Delete(tx, id)
	})
}

// tidyVolumes lets the volumes see to layers that they may have shared with one
// that is gone.
func (a *Agent) tidyVolumes() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, v := range a.volumes {
		if v.data != nil {
			v.data.Tidy()
		}
	}
}
