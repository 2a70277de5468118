package agent

import (
	"context"
	"errors"
	"io/fs"
	"reflect"
	"slices"
	"time"

	"varve/agent/repo"
	"varve/catalog"
	"varve/layers"
)

// syncPortion is how many backups are recorded in one transaction.
const syncPortion = 200

// SyncTarget reads the target's list of backups into the catalog: what other
// hosts added appears, what they deleted goes. One that cannot be read is shown
// in status error and hides no other.
func (a *Agent) SyncTarget(ctx context.Context, ref string) error {
	record, err := a.Target(ctx, ref)
	if err != nil {
		return err
	}
	return a.sync(ctx, record, everyRoot)
}

// What a sync reads of the backups that the catalog has already.
type syncDepth int

const (
	newRoots  syncDepth = iota // nothing: a root never changes
	everyRoot                  // their roots, so that one which was damaged since is found
)

// sync opens a target's repository and mirrors its backups. Nobody waits for a
// poll, but others may for the opening.
func (a *Agent) sync(ctx context.Context, t catalog.Target, depth syncDepth) error {
	ctx, cancel := context.WithTimeout(ctx, syncTimeout)
	defer cancel()
	r, release, err := a.useTarget(ctx, t)
	if err != nil {
		return err
	}
	defer release()
	if depth == newRoots {
		ctx = a.unasked(ctx)
	}
	if err := a.pull(ctx, t, r, depth); err != nil {
		return err
	}
	a.lookAtKeys(ctx, r, t)
	return nil
}

// pull mirrors the backups of a repository in the catalog. Those that this
// host makes or deletes right now are left to the operations that do.
func (a *Agent) pull(ctx context.Context, t catalog.Target, r *repo.Repo, depth syncDepth) error {
	known, err := a.backupsIn(t.ID) // Before the listing: what goes meanwhile does not come back.
	if err != nil {
		return err
	}
	there, read, err := listBackups(ctx, r, t.ID, known, depth)
	if err != nil {
		return targetError(t, "list the backups of", err)
	}
	gone, err := vanished(ctx, r, known, there)
	if err != nil {
		return targetError(t, "look for backups in", err)
	}
	if err := a.pullClaims(ctx, t, r); err != nil {
		return targetError(t, "look for what other hosts took over in", err)
	}
	for portion := range slices.Chunk(read, syncPortion) {
		err := a.update(func(tx *catalog.Tx) error {
			for _, b := range portion {
				if err := mirror(tx, b, known); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return a.update(func(tx *catalog.Tx) error {
		for _, id := range gone {
			if b, err := catalog.Backups.Get(tx, id); err == nil && stored(b) {
				if err := catalog.Backups.Delete(tx, id); err != nil {
					return err
				}
			}
		}
		return change(tx, catalog.Targets, t.ID, func(t *catalog.Target) { t.Synced = time.Now().UTC() })
	})
}

// backupsIn returns the catalog's backups of one target.
func (a *Agent) backupsIn(target layers.ID) (map[layers.ID]catalog.Backup, error) {
	records, err := list(a, catalog.Backups)
	if err != nil {
		return nil, err
	}
	known := map[layers.ID]catalog.Backup{}
	for _, b := range records {
		if b.TargetID == target {
			known[b.ID] = b
		}
	}
	return known, nil
}

// listBackups reads the repository's list: which backups are there, and what
// was read of them. Damaged ones are read with status error; only a list that
// breaks off is an error.
func listBackups(ctx context.Context, r *repo.Repo, target layers.ID, known map[layers.ID]catalog.Backup, depth syncDepth) (there map[layers.ID]bool, read []catalog.Backup, err error) {
	mirrored := func(id layers.ID, caption string) bool {
		b, is := known[id]
		return is && whole(b) && b.Caption == caption && depth == newRoots
	}
	there = map[layers.ID]bool{}
	for b, err := range r.NewBackups(ctx, mirrored) {
		if err != nil && (b.ID.IsZero() || ctx.Err() != nil) {
			return nil, nil, err
		}
		there[b.ID] = true
		if mirrored(b.ID, b.Caption) {
			if record := known[b.ID]; record.Protected != b.Protected {
				record.Protected = b.Protected
				read = append(read, record)
			}
			continue
		}
		record := fromRepository(b, target)
		if err != nil {
			record.Status, record.FailReason = catalog.Error, shorten(err.Error())
		}
		read = append(read, record)
	}
	return there, read, nil
}

// fromRepository is the catalog's record of a backup in a repository. Texts that
// no host of ours would have given it, and that a record may not hold, are left
// out.
func fromRepository(b repo.Backup, target layers.ID) catalog.Backup {
	if checkTexts("backup", b.Description, b.Meta) != nil {
		b.Description, b.Meta = "", nil
	}
	if len(b.Meta) == 0 {
		b.Meta = nil // as a record is read again
	}
	return catalog.Backup{
		ID: b.ID, TargetID: target, VolumeID: b.Volume, VolumeName: b.VolumeName,
		Name: b.Name, Description: b.Description, Status: catalog.Available,
		SnapshotID: b.Snapshot, BoundaryID: b.Boundary, ParentID: b.Parent,
		Size: b.Size, Protected: b.Protected, DataTimestamp: b.DataTimestamp.UTC(), Created: b.Created.UTC(), Updated: b.Updated.UTC(),
		Properties: b.Meta, Caption: b.Caption,
		Logical: b.Logical, Changed: b.Changed, Stored: b.Stored, ObjectCount: b.Objects,
		Epoch: b.Epoch, Number: b.Number, ClaimID: b.Claim, Host: b.Host,
	}
}

// vanished returns the known backups that were in the target, are not listed and,
// since a list may lag, not there when asked for by name either.
func vanished(ctx context.Context, r *repo.Repo, known map[layers.ID]catalog.Backup, there map[layers.ID]bool) ([]layers.ID, error) {
	var gone []layers.ID
	for id, b := range known {
		if there[id] || !stored(b) {
			continue
		}
		_, err := r.Backup(ctx, id)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			gone = append(gone, id)
		case ctx.Err() != nil:
			return nil, err
		}
	}
	return gone, nil
}

// stored reports whether a backup is in its target as far as this host knows,
// and nothing here is at work on it. One that failed to be made has no number.
func stored(b catalog.Backup) bool {
	switch b.Status {
	case catalog.Available:
		return true
	case catalog.Error, catalog.ErrorDeleting:
		return b.Number > 0
	}
	return false
}

// mirror records one backup as the target has it, and keeps what only this
// host knows of it. known are the backups that the catalog had before the
// target was asked.
func mirror(tx *catalog.Tx, b catalog.Backup, known map[layers.ID]catalog.Backup) error {
	old, err := catalog.Backups.Get(tx, b.ID)
	var damaged *catalog.RecordError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, ok := known[b.ID]; ok {
			return nil // Deleted here since.
		}
		return catalog.Backups.Put(tx, b)
	case errors.As(err, &damaged):
		return catalog.Backups.Put(tx, b)
	case err != nil:
		return err
	}
	switch old.Status {
	case catalog.Creating, catalog.Deleting, catalog.Restoring, catalog.ErrorDeleting:
		return nil
	}
	if b.Status == catalog.Error && stored(old) { // Its root cannot be read: it is what it was.
		old.Status, old.FailReason, old.Protected = b.Status, b.FailReason, b.Protected
		return catalog.Backups.Put(tx, old)
	}
	b.TempSnapshotID, b.Duration = old.TempSnapshotID, old.Duration
	b.Damage, b.DamageMode = old.Damage, old.DamageMode
	if old.Caption != known[b.ID].Caption { // Changed here since.
		b.Name, b.Description, b.Properties, b.Caption = old.Name, old.Description, old.Properties, old.Caption
	}
	if old.Updated.After(b.Updated) {
		b.Updated = old.Updated
	}
	if reflect.DeepEqual(b, old) {
		return nil
	}
	return catalog.Backups.Put(tx, b)
}
