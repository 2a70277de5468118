package agent

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"varve/catalog"
)

// Resetting a state is for an operator who knows better than the records. It
// changes a status that nothing stands behind any more, and is refused where the
// new one would be untrue: while an operation is at work, for a backup that its
// target does not have, a volume that does not open, a snapshot that the chain
// does not have.

// resetReason is the reason of an error that an operator has set.
const resetReason = "an operator has set this state"

// checkState refuses states that nobody may set.
func checkState(state catalog.Status) error {
	if state != catalog.Available && state != catalog.Error {
		return fail(Invalid, "a state can be reset to %s or %s, not to %q", catalog.Available, catalog.Error, state)
	}
	return nil
}

// ResetBackup sets the status of a backup to available, if its target has it,
// or error.
func (a *Agent) ResetBackup(ctx context.Context, ref string, state catalog.Status) (BackupView, error) {
	if err := checkState(state); err != nil {
		return BackupView{}, err
	}
	b, err := a.Backup(ctx, ref)
	if err != nil {
		return BackupView{}, err
	}
	if err := a.refuseAtWork(b.Backup); err != nil {
		return BackupView{}, err
	}
	found := b.Backup
	if state == catalog.Available {
		if found, err = a.inTarget(ctx, b.Backup); err != nil {
			return BackupView{}, err
		}
	}
	err = a.update(func(tx *catalog.Tx) error {
		now, err := catalog.Backups.Get(tx, b.ID)
		if err != nil {
			return err
		}
		if err := a.refuseAtWork(now); err != nil {
			return err
		}
		found.TempSnapshotID, found.Duration = now.TempSnapshotID, now.Duration
		found.Status, found.FailReason, found.Updated = state, "", time.Now().UTC()
		if state == catalog.Error {
			found.FailReason = resetReason
		}
		return catalog.Backups.Put(tx, found)
	})
	if err != nil {
		return BackupView{}, err
	}
	a.tidyVolume(b.VolumeID) // Another backup may be the newest now.
	return a.Backup(ctx, b.ID.String())
}

// refuseAtWork refuses to reset a backup that an operation makes, reads or
// deletes. Where that is dead, its status is one of the errors, since the start.
func (a *Agent) refuseAtWork(b catalog.Backup) error {
	switch b.Status {
	case catalog.Creating, catalog.Deleting, catalog.Restoring:
		return fail(Conflict, "backup %s is in status %s: an operation is at work on it; wait for that or cancel it", b.ID, b.Status)
	}
	return nil
}

// inTarget returns the record of a backup as its target has it.
func (a *Agent) inTarget(ctx context.Context, b catalog.Backup) (catalog.Backup, error) {
	t, err := a.targetRecord(b.TargetID)
	if err != nil {
		return b, err
	}
	r, release, err := a.useTarget(ctx, t)
	if err != nil {
		return b, err
	}
	defer release()
	found, err := r.Backup(ctx, b.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return b, fail(Conflict, "backup %s is not in target %s: it cannot be available", b.ID, t.Name)
	}
	if err != nil {
		return b, targetError(t, "look for backup "+b.ID.String()+" in", err)
	}
	return fromRepository(found, t.ID), nil
}

// ResetVolume sets the status of a volume that nobody has open and nothing is
// at work on: to error, or to what it is with a volume that opens. Its content
// stays as it is, after half a restore too.
func (a *Agent) ResetVolume(ctx context.Context, ref string, state catalog.Status) (VolumeView, error) {
	if err := checkState(state); err != nil {
		return VolumeView{}, err
	}
	record, v, err := a.findVolume(ref)
	if err != nil {
		return VolumeView{}, err
	}
	if err := a.claim(v, byReset, func() error { return v.resettable(record, state) }); err != nil {
		return VolumeView{}, err
	}
	defer a.unclaim(v)
	err = a.update(func(tx *catalog.Tx) error {
		return change(tx, catalog.Volumes, v.id, func(r *catalog.Volume) {
			r.Status, r.PreviousStatus, r.Importing, r.Updated = catalog.Error, "", false, time.Now().UTC()
			r.Reason = resetReason
			if state == catalog.Available {
				r.Status, r.Reason = a.useOf(v), ""
			}
		})
	})
	if err != nil {
		return VolumeView{}, err
	}
	return a.Volume(ctx, v.id.String())
}

// resettable says why the status of a volume cannot be reset. The caller holds
// Agent.mu.
func (v *volume) resettable(record catalog.Volume, state catalog.Status) error {
	switch {
	case state == catalog.Error || v.busy != "":
		return v.idle(record)
	case v.data == nil:
		return v.unusable(record)
	case v.data.Failure() != nil:
		return fail(Unavailable, "volume %s cannot be available before the daemon is started anew: %w", record.Name, v.data.Failure())
	}
	return nil
}

// ResetSnapshot sets the status of a snapshot to available, if the volume has
// it, or error.
func (a *Agent) ResetSnapshot(ctx context.Context, ref string, state catalog.Status) (SnapshotView, error) {
	if err := checkState(state); err != nil {
		return SnapshotView{}, err
	}
	s, err := a.Snapshot(ctx, ref)
	if err != nil {
		return SnapshotView{}, err
	}
	record, v, err := a.findVolume(s.VolumeID.String())
	if err != nil {
		return SnapshotView{}, err
	}
	v.chain.Lock() // So no snapshot is being made or deleted.
	defer v.chain.Unlock()
	a.mu.Lock()
	data, readers, closed := v.data, v.readers[s.ID], v.unusable(record)
	a.mu.Unlock()
	switch {
	case s.System:
		return SnapshotView{}, fail(Conflict, "snapshot %s is of a backup: wait for that, or cancel it", s.Name)
	case s.Status == catalog.Creating:
		return SnapshotView{}, fail(Conflict, "snapshot %s of volume %s is being made", s.Name, record.Name)
	case state == catalog.Error && readers > 0:
		return SnapshotView{}, fail(InUse, "snapshot %s of volume %s is being read, by a backup, an export or a mount", s.Name, record.Name)
	case state == catalog.Available && data == nil:
		return SnapshotView{}, closed
	}
	if state == catalog.Available {
		if b, there := boundaryOf(data, s.ID); !there || b.Mark {
			return SnapshotView{}, fail(Conflict, "volume %s does not have snapshot %s any more: delete it", record.Name, s.Name)
		}
	}
	err = a.update(func(tx *catalog.Tx) error {
		return change(tx, catalog.Snapshots, s.ID, func(r *catalog.Snapshot) {
			r.Status, r.Reason = state, ""
			if state == catalog.Error {
				r.Reason = resetReason
			}
		})
	})
	if err != nil {
		return SnapshotView{}, err
	}
	return a.Snapshot(ctx, s.ID.String())
}
