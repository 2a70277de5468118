package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"varve/catalog"
	"varve/layers"
)

// After a crash the catalog says what was under way. Operations that keep
// checkpoints go on, with their subjects as they are (checkpoint.go); Start ends
// all the others:
//
//	operation running           → failed: the daemon stopped
//	backup    creating          → error; deleting → error_deleting; restoring → available
//	volume    creating          → folder and record removed
//	          deleting          → deleted to the end
//	          backing-up        → previous_status
//	          restoring-backup  → error if it was new, or else error_restoring
//	          in-use            → available: nobody is connected yet
//	          with a quiet      → its file systems thawed, its hook run, beside all else
//	snapshot  creating          → available if the chain has it, or else no record
//	          deleting          → deleted to the end
//	          of the system     → deleted, a mark left where a backup goes by it
//
// The first part is one transaction that looks at nothing but the catalog. The
// second part opens the volumes and goes volume by volume, so that one which
// is damaged stops no other; running it again changes nothing more.

// maxOpening is how many volumes are opened at once at the start.
const maxOpening = 4

// stoppedReason is why what a crash cut off has failed.
const stoppedReason = "the daemon stopped before it ended: do it again"

func (a *Agent) recover(ctx context.Context) error {
	left, err := a.leftRunning()
	if err != nil {
		return err
	}
	if err := a.endOthers(left, nil); err != nil {
		return err
	}
	if err := a.adoptVolumes(); err != nil {
		return err
	}
	volumes, err := list(a, catalog.Volumes)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxOpening)
	for _, record := range volumes {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return a.recoverVolume(record)
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	if err := a.update(a.forgetLost); err != nil {
		return err
	}
	if cut := a.goOn(left); len(cut) > 0 {
		if err := a.endOthers(left, cut); err != nil {
			return err
		}
		a.tidyAll() // their temporary snapshots
	}
	return a.attachAgain(ctx)
}

// endOthers ends what was under way but for the operations that go on: those
// left, without those that were cut.
func (a *Agent) endOthers(left []left, cut []catalog.Operation) error {
	e := ending{now: time.Now().UTC(), goesOn: map[layers.ID]bool{}, why: map[layers.ID]string{}}
	for _, l := range left {
		e.goesOn[l.operation.ID], e.goesOn[l.operation.Subject] = true, true
	}
	for _, op := range cut {
		delete(e.goesOn, op.ID)
		delete(e.goesOn, op.Subject)
		e.why[op.ID], e.why[op.Subject] = op.Error, op.Error
	}
	if err := a.update(func(tx *catalog.Tx) error { return a.endAll(tx, e) }); err != nil {
		return fmt.Errorf("end what was under way: %w", err)
	}
	return nil
}

// An ending says what is not to be ended, and why the rest is. Both go by the
// ids of operations and of their subjects.
type ending struct {
	now    time.Time
	goesOn map[layers.ID]bool
	why    map[layers.ID]string // stoppedReason for those that are not in it
}

func (e ending) reason(id layers.ID) string { return cmp.Or(e.why[id], stoppedReason) }

// forgetLost takes the ids of temporary snapshots out of the backups whose
// snapshot is gone in another way, with its volume for example.
func (a *Agent) forgetLost(tx *catalog.Tx) error {
	for _, b := range all(a, tx, catalog.Backups) {
		if b.TempSnapshotID.IsZero() {
			continue
		}
		if _, err := catalog.Snapshots.Get(tx, b.TempSnapshotID); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		b.TempSnapshotID = layers.ID{}
		if err := catalog.Backups.Put(tx, b); err != nil {
			return err
		}
	}
	return nil
}

// endAll ends what the catalog alone can say about.
func (a *Agent) endAll(tx *catalog.Tx, e ending) error {
	var errs []error
	for _, op := range all(a, tx, catalog.Operations) {
		if op.State == catalog.Running && !e.goesOn[op.ID] {
			op.State, op.Error, op.Ended = catalog.Failed, shorten(e.reason(op.ID)), e.now
			errs = append(errs, catalog.Operations.Put(tx, op), catalog.Checkpoints.Delete(tx, op.ID))
		}
	}
	for _, b := range all(a, tx, catalog.Backups) {
		if e.goesOn[b.ID] {
			continue
		}
		switch b.Status {
		case catalog.Creating:
			failBackup(&b, e.reason(b.ID))
		case catalog.Deleting:
			b.Status, b.FailReason, b.Updated = catalog.ErrorDeleting, e.reason(b.ID), e.now
		case catalog.Restoring:
			b.Status = catalog.Available
		default:
			continue
		}
		errs = append(errs, catalog.Backups.Put(tx, b))
	}
	for _, v := range all(a, tx, catalog.Volumes) {
		if !e.goesOn[v.ID] && endVolume(&v, e.why[v.ID]) {
			v.Updated = e.now
			errs = append(errs, catalog.Volumes.Put(tx, v))
		}
	}
	return errors.Join(append(errs, a.trimHistory(tx))...)
}

// endVolume gives a volume the status that it has without a daemon, and
// reports whether that is another one. why, if not empty, is the reason of a
// restore's end.
func endVolume(v *catalog.Volume, why string) bool {
	was := v.Status
	if v.Status == catalog.BackingUp {
		v.Status, v.PreviousStatus = v.PreviousStatus, ""
		if v.Status == "" {
			v.Status = catalog.Available
		}
	}
	switch v.Status {
	case catalog.InUse:
		v.Status = catalog.Available
	case catalog.RestoringBackup:
		v.Status, v.Reason = catalog.ErrorRestoring, halfRestored(cmp.Or(why, stoppedReason))
		if v.PreviousStatus == "" {
			v.Status = catalog.Error
		}
		v.PreviousStatus = ""
	}
	if v.Importing {
		failImport(v)
	}
	return v.Status != was
}

// adoptVolumes makes a record for each volume that the catalog does not know:
// the catalog may be new, or its record damaged, or the folder copied here.
func (a *Agent) adoptVolumes() error {
	entries, err := os.ReadDir(filepath.Join(a.config.State, "volumes"))
	if err != nil {
		return fail(Unavailable, "look for volumes: %w", err)
	}
	for _, entry := range entries {
		id, err := layers.ParseID(entry.Name())
		if err != nil || !entry.IsDir() {
			a.log.Warn("this is no volume: it is left alone", "path", filepath.Join(a.config.State, "volumes", entry.Name()))
			continue
		}
		err = a.update(func(tx *catalog.Tx) error {
			if _, err := catalog.Volumes.Get(tx, id); err == nil {
				return nil
			}
			a.log.Warn("a volume that the catalog does not know is taken in", "volume", id)
			now := time.Now().UTC()
			return catalog.Volumes.Put(tx, catalog.Volume{
				ID: id, Name: lostName(id), Status: catalog.Available, Type: "default",
				Description: foundVolume, Created: now, Updated: now,
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// recoverVolume opens a volume and brings its chain and its snapshots' records
// into line. Only a catalog that fails is an error.
func (a *Agent) recoverVolume(record catalog.Volume) error {
	switch record.Status {
	case catalog.Creating, catalog.Deleting:
		if err := a.unmakeVolume(record.ID); err != nil {
			a.log.Error("a volume cannot be removed", "volume", record.ID, "error", err)
			a.addVolume(newVolume(record.ID, nil, err))
		}
		return nil
	}
	data, err := a.openVolume(record.ID)
	v := newVolume(record.ID, data, err)
	v.reserved = record.Maintenance
	a.addVolume(v)
	if err != nil {
		a.log.Error("a volume cannot be opened", "volume", record.ID, "name", record.Name, "error", err)
		return nil
	}
	if data.Size() != record.Size {
		err := a.update(func(tx *catalog.Tx) error {
			return change(tx, catalog.Volumes, v.id, func(r *catalog.Volume) { r.Size = data.Size() })
		})
		if err != nil {
			return err
		}
	}
	if err := a.recoverSnapshots(v, data); err != nil {
		return err
	}
	a.tidyChain(v, data)
	return nil
}

// openVolume opens a volume's folder, and no other volume that may be in it.
func (a *Agent) openVolume(id layers.ID) (*layers.Volume, error) {
	dir := a.volumeDir(id)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("its folder %s is missing: put it back, or delete the volume", dir)
	}
	data, err := layers.Open(dir, a.volumeOptions())
	if err != nil {
		return nil, err
	}
	if data.ID() != id {
		data.Close() // Nothing was written.
		return nil, fmt.Errorf("its folder %s holds volume %s: give the folder that name", dir, data.ID())
	}
	return data, nil
}

// recoverSnapshots compares the snapshots' records with the chain, which is
// right.
func (a *Agent) recoverSnapshots(v *volume, data *layers.Volume) error {
	var records []catalog.Snapshot
	err := a.view(func(tx *catalog.Tx) error {
		records = slices.DeleteFunc(all(a, tx, catalog.Snapshots), func(s catalog.Snapshot) bool { return s.VolumeID != v.id })
		return nil
	})
	if err != nil {
		return err
	}
	known := map[layers.ID]bool{}
	for _, s := range records {
		known[s.ID] = true
		if err := a.recoverSnapshot(data, s); err != nil {
			return err
		}
	}
	for _, b := range data.Boundaries() {
		if b.Mark || known[b.ID] {
			continue
		}
		a.log.Warn("a snapshot that the catalog does not know is taken in", "volume", v.id, "snapshot", b.ID)
		s := catalog.Snapshot{
			ID: b.ID, VolumeID: v.id, Name: timeName(b.Sealed), Description: foundSnapshot,
			Size: b.Size, Status: catalog.Available, Created: b.Sealed.UTC(),
		}
		if err := a.update(func(tx *catalog.Tx) error { return catalog.Snapshots.Put(tx, s) }); err != nil {
			return err
		}
	}
	return nil
}

// recoverSnapshot ends what was under way with one snapshot.
func (a *Agent) recoverSnapshot(data *layers.Volume, s catalog.Snapshot) error {
	b, there := boundaryOf(data, s.ID)
	there = there && !b.Mark
	switch {
	case !there && (s.System || s.Status == catalog.Creating || s.Status == catalog.Deleting):
		return a.update(func(tx *catalog.Tx) error {
			return errors.Join(a.forgetTemporary(tx, s.ID), catalog.Snapshots.Delete(tx, s.ID))
		})
	case !there:
		s.Status, s.Reason = catalog.Error, "the volume does not have it: delete it"
	case s.Status == catalog.Creating:
		s.Status, s.Size = catalog.Available, b.Size
	case s.Status == catalog.Deleting:
		if err := a.removeSnapshot(data, s); err != nil {
			a.log.Error("a snapshot cannot be deleted", "volume", s.VolumeID, "snapshot", s.ID, "error", err)
		}
		return nil
	case s.Status == catalog.Error:
		s.Status, s.Reason = catalog.Available, ""
	default:
		return nil
	}
	return a.update(func(tx *catalog.Tx) error { return catalog.Snapshots.Put(tx, s) })
}
