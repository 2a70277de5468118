package agent

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"time"

	"varve/catalog"
	"varve/layers"
)

// BackupView is a backup as it is shown.
type BackupView struct {
	catalog.Backup
	TargetName    string
	TargetURL     string
	HasDependents bool
	Forks         []*Fork // that it is on a side of
	Done, Total   int64   // bytes, while it is being made; Total 0: not known yet
}

// Incremental reports whether the backup has a parent.
func (b BackupView) Incremental() bool { return !b.ParentID.IsZero() }

// Backups returns the backups in every target, newest first, from the catalog.
func (a *Agent) Backups(ctx context.Context) ([]BackupView, error) {
	var records []catalog.Backup
	var targets []catalog.Target
	var claims []catalog.Claim
	err := a.view(func(tx *catalog.Tx) error {
		records, targets, claims = all(a, tx, catalog.Backups), all(a, tx, catalog.Targets), all(a, tx, catalog.Claims)
		return nil
	})
	if err != nil {
		return nil, err
	}
	parents := map[layers.ID]bool{}
	for _, b := range records {
		parents[b.ParentID] = true
	}
	byID := map[layers.ID]catalog.Target{}
	for _, t := range targets {
		byID[t.ID] = t
	}
	progress, forks := a.backupProgress(), forksOf(records, claims)
	views := make([]BackupView, 0, len(records))
	for _, b := range records {
		t, p := byID[b.TargetID], progress[b.ID]
		views = append(views, BackupView{
			Backup: b, TargetName: t.Name, TargetURL: t.URL, HasDependents: parents[b.ID], Forks: forks[b.ID], Done: p.Done, Total: p.Total,
		})
	}
	slices.SortFunc(views, func(x, y BackupView) int {
		return cmp.Or(y.Created.Compare(x.Created), cmp.Compare(y.ID.String(), x.ID.String()))
	})
	return views, nil
}

// backupProgress returns the running operations by the backup they make.
func (a *Agent) backupProgress() map[layers.ID]catalog.Operation {
	a.mu.Lock()
	defer a.mu.Unlock()
	progress := map[layers.ID]catalog.Operation{}
	for _, op := range a.running {
		if record, _ := op.state(); record.Kind == kindBackup {
			progress[record.Subject] = record
		}
	}
	return progress
}

// Backup returns the backup that ref, a name or an id, means.
func (a *Agent) Backup(ctx context.Context, ref string) (BackupView, error) {
	views, err := a.Backups(ctx)
	if err != nil {
		return BackupView{}, err
	}
	return resolve("backup", ref, views, func(b BackupView) named {
		return named{b.ID, b.Name, "of volume " + b.VolumeName + " in target " + b.TargetName + ", created " + b.Created.Format(time.DateTime)}
	})
}

// whole reports whether a backup is in its target, complete.
func whole(b catalog.Backup) bool {
	return b.Status == catalog.Available || b.Status == catalog.Restoring
}

// newer reports whether a holds later data than b.
func newer(a, b catalog.Backup) bool {
	return cmp.Or(a.DataTimestamp.Compare(b.DataTimestamp), a.Created.Compare(b.Created)) > 0
}

// targetRecord returns the record of a backup's target.
func (a *Agent) targetRecord(id layers.ID) (catalog.Target, error) {
	var t catalog.Target
	err := a.view(func(tx *catalog.Tx) (err error) {
		t, err = catalog.Targets.Get(tx, id)
		return err
	})
	return t, err
}

// DeleteBackup begins to delete a backup. One with dependents is refused
// unless force is set; the dependents stay whole then.
func (a *Agent) DeleteBackup(ctx context.Context, ref string, force bool) (catalog.Operation, error) {
	b, err := a.Backup(ctx, ref)
	if err != nil {
		return catalog.Operation{}, err
	}
	t, err := a.targetRecord(b.TargetID)
	if err != nil {
		return catalog.Operation{}, err
	}
	release, err := a.holdTarget(t)
	if err != nil {
		return catalog.Operation{}, err
	}
	j := a.deletion(b.Backup, t, release)
	j.begin = func(tx *catalog.Tx) error { return a.beginDelete(tx, b.ID, force) }
	return a.start(j)
}

const kindDelete = "backup delete"

// deletion is the job of deleting a backup whose deletion is recorded.
func (a *Agent) deletion(b catalog.Backup, t catalog.Target, release func()) job {
	return job{
		kind:    kindDelete,
		subject: b.ID,
		state:   struct{}{}, // It goes on, and nothing is to be known for that.
		work:    func(ctx context.Context, _ *operation) error { return a.deleteFrom(ctx, t, b.ID) },
		settle: func(tx *catalog.Tx, err error) error {
			if err == nil {
				return catalog.Backups.Delete(tx, b.ID)
			}
			return change(tx, catalog.Backups, b.ID, func(b *catalog.Backup) {
				b.Status, b.FailReason, b.Updated = catalog.ErrorDeleting, shorten(err.Error()), time.Now().UTC()
			})
		},
		release: func() {
			release()
			a.tidyVolume(b.VolumeID)
		},
	}
}

// resumeDelete makes the job of a deletion again that was cut off.
func (a *Agent) resumeDelete(op catalog.Operation, _ []byte) (job, error) {
	var b catalog.Backup
	var t catalog.Target
	err := a.view(func(tx *catalog.Tx) (err error) {
		if b, err = catalog.Backups.Get(tx, op.Subject); err != nil {
			return err
		}
		t, err = catalog.Targets.Get(tx, b.TargetID)
		return err
	})
	if err != nil {
		return job{}, err
	}
	release, err := a.holdTarget(t)
	return a.deletion(b, t, release), err
}

// beginDelete refuses a deletion that must not be, and records that it begins.
func (a *Agent) beginDelete(tx *catalog.Tx, id layers.ID, force bool) error {
	b, err := catalog.Backups.Get(tx, id)
	if err != nil {
		return err
	}
	switch b.Status {
	case catalog.Creating, catalog.Restoring, catalog.Deleting:
		return fail(Conflict, "backup %s is in status %s: wait for the operation or cancel it", id, b.Status)
	}
	if b.Protected {
		return fail(Conflict, "Invalid backup: backup %s is protected. Let it be deleted first with: varve backup set --unprotected %s", b.Name, id)
	}
	for _, other := range all(a, tx, catalog.Backups) {
		if other.ParentID == id && !force {
			return fail(Conflict, "Invalid backup: Incremental backups exist for this backup.")
		}
	}
	b.Status, b.Updated = catalog.Deleting, time.Now().UTC()
	return catalog.Backups.Put(tx, b)
}

// deleteFrom deletes a backup in its target. One that is not there is deleted.
func (a *Agent) deleteFrom(ctx context.Context, t catalog.Target, id layers.ID) error {
	r, release, err := a.useTarget(ctx, t)
	if err != nil {
		return err
	}
	defer release()
	if err := r.Delete(ctx, id); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return targetError(t, "delete a backup in", err)
	}
	return nil
}

// tidyVolume is tidyChain for a volume that may not be there.
func (a *Agent) tidyVolume(id layers.ID) {
	a.mu.Lock()
	v := a.volumes[id]
	a.mu.Unlock()
	if v == nil {
		return
	}
	v.chain.Lock()
	defer v.chain.Unlock()
	a.mu.Lock()
	data := v.data
	a.mu.Unlock()
	if data != nil {
		a.tidyChain(v, data)
	}
}

// tidyAll is tidyVolume for every volume.
func (a *Agent) tidyAll() {
	a.mu.Lock()
	ids := slices.Collect(maps.Keys(a.volumes))
	a.mu.Unlock()
	for _, id := range ids {
		a.tidyVolume(id)
	}
}

// wholeBackup returns a backup that can be read, and its target, which is held
// until release is called.
func (a *Agent) wholeBackup(ctx context.Context, ref string) (b BackupView, t catalog.Target, release func(), err error) {
	b, err = a.Backup(ctx, ref)
	if err != nil {
		return b, t, nil, err
	}
	if !whole(b.Backup) {
		return b, t, nil, fail(Conflict, "backup %s is in status %s: only one that is available can be read", ref, b.Status)
	}
	t, err = a.targetRecord(b.TargetID)
	if err != nil {
		return b, t, nil, err
	}
	release, err = a.holdTarget(t)
	return b, t, release, err
}
