package agent

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"varve/agent/repo"
	"varve/catalog"
	"varve/layers"
)

const kindRestore = "backup restore"

// restoredDescription is what a volume that a restore makes is described by:
// behaviour B13, after Cinder.
const restoredDescription = "auto-created_from_restore_from_backup"

// RestoreRequest says where a backup goes.
type RestoreRequest struct {
	Volume string // an existing volume to overwrite; empty means a new one
	Name   string // of the new volume; empty means the source's
	Force  bool   // must be set to overwrite

	// Adopt makes this host the one that backs up the backup's volume from now
	// on, into that target: a new volume gets its ID, and its next incremental
	// backup goes on from this one.
	Adopt bool

	// AllowDamaged restores what is left of a backup that has lost something:
	// what is lost becomes zeros, and is told.
	AllowDamaged bool
}

// A restoration is a backup that is being restored.
type restoration struct {
	a       *Agent
	backup  catalog.Backup
	target  catalog.Target
	volume  *volume
	record  catalog.Volume   // of the volume, as it is while the restore runs
	state   restorationState // as it was recorded last
	reading bool             // counted as a reader of the backup
	left    string           // what could not be restored, for people; empty: all was
	release []func()
}

// A restorationState is what a restore needs to go on under the next daemon,
// beside the records.
type restorationState struct {
	Backup  layers.ID
	Fresh   bool              // the volume is new
	Claim   layers.ID         // of the takeover that comes with it; zero: none
	Name    string            // what a new volume is named after
	Touched bool              // the volume's old content is lost
	Blank   bool              // the volume reads as zeros but for what was restored
	Point   repo.RestorePoint // what comes before it is restored, durably
	Past    bool              // go on past damage
	Lost    []repo.Range      // that could not be restored
	More    bool              // there are more than that
	Why     string            // the first damage
}

// restoreEvery is how many bytes of the volume are restored from one
// checkpoint to the next: what a crash costs, and how seldom the volume is
// flushed.
const restoreEvery = 512 << 20

// RestoreBackup begins to restore a backup, to a new volume or onto an existing
// one, and returns at once. The operation's subject is the volume.
func (a *Agent) RestoreBackup(ctx context.Context, ref string, r RestoreRequest) (catalog.Volume, catalog.Operation, error) {
	if err := checkPast(r); err != nil {
		return catalog.Volume{}, catalog.Operation{}, err
	}
	b, t, release, err := a.wholeBackup(ctx, ref)
	if err != nil {
		return catalog.Volume{}, catalog.Operation{}, err
	}
	s := &restoration{a: a, backup: b.Backup, target: t, state: restorationState{Backup: b.ID, Past: r.AllowDamaged}, release: []func(){release}}
	if r.Adopt {
		s.state.Claim = layers.NewID()
	}
	if r.Volume == "" {
		err = s.intoNew(r)
	} else {
		err = s.ontoExisting(r)
	}
	if err != nil {
		s.giveBack()
		return catalog.Volume{}, catalog.Operation{}, err
	}
	a.readBackup(b.ID, 1)
	s.reading = true
	op, err := a.start(s.job())
	if err != nil {
		s.abandon()
		return catalog.Volume{}, catalog.Operation{}, err
	}
	return s.record, op, nil
}

func (s *restoration) job() job {
	return job{
		kind:    kindRestore,
		subject: s.volume.id,
		state:   s.state,
		begin:   s.begin,
		work:    s.work,
		settle:  s.settle,
		release: s.giveBack,
	}
}

// abandon forgets a new volume that was not recorded, and frees the backup: another
// restore may have ended meanwhile, and left that to this one.
func (s *restoration) abandon() {
	if s.state.Fresh {
		s.a.dropVolume(s.volume.id)
	}
	err := s.a.update(func(tx *catalog.Tx) error { return s.a.freeBackup(tx, s.backup.ID) })
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.a.log.Error("a backup that nobody restores may stay in status restoring until the next start", "backup", s.backup.ID, "error", err)
	}
}

// intoNew prepares a new volume. Its folder is made by the operation.
func (s *restoration) intoNew(r RestoreRequest) error {
	s.state.Name = r.Name
	if r.Name == "" {
		s.state.Name = s.backup.VolumeName
	} else if err := checkName("volume", r.Name); err != nil {
		return err
	}
	if err := checkSize(s.backup.Size); err != nil {
		return fail(Corrupt, "backup %s: %w", s.backup.ID, err)
	}
	id := layers.NewID()
	if r.Adopt {
		id = s.backup.VolumeID
		if err := s.a.checkAbsent(id); err != nil {
			return err
		}
	}
	now := time.Now().UTC()
	s.state.Fresh = true
	s.record = catalog.Volume{
		ID: id, Name: "restore_backup_" + s.backup.ID.String(), Description: restoredDescription,
		Size: s.backup.Size, Status: catalog.RestoringBackup, Type: "default", Created: now, Updated: now,
	}
	s.volume = newVolume(s.record.ID, nil, nil)
	s.volume.busy = byRestore
	if !s.a.addNewVolume(s.volume) {
		return s.a.checkAbsent(id)
	}
	s.release = append(s.release, func() { s.a.unclaim(s.volume) })
	return nil
}

// ontoExisting claims the volume that is overwritten.
func (s *restoration) ontoExisting(r RestoreRequest) error {
	record, v, err := s.a.findVolume(r.Volume)
	switch {
	case err != nil:
		return err
	case r.Name != "":
		return fail(Invalid, "volume %s keeps its name: leave the new one out", record.Name)
	case !r.Force:
		return fail(Conflict, "restoring onto volume %s overwrites all that is in it: say --force to do that, "+
			"or leave the volume out to restore into a new one", record.Name)
	case r.Adopt && record.ID != s.backup.VolumeID:
		return fail(Invalid, "volume %s cannot go on with the backups of %s, it has its own: leave it out to adopt that volume as a new one here", record.Name, s.backup.VolumeName)
	case record.Size < s.backup.Size:
		return fail(Conflict, "volume %s has %d bytes, the backup needs %d: grow the volume first, or restore into a new one",
			record.Name, record.Size, s.backup.Size)
	}
	err = s.a.claim(v, byRestore, func() error {
		if v.data == nil {
			return v.unusable(record)
		}
		return v.idle(record)
	})
	if err != nil {
		return err
	}
	s.release = append(s.release, func() { s.a.unclaim(v) })
	s.volume, s.record = v, record
	return nil
}

// giveBack ends every claim.
func (s *restoration) giveBack() {
	s.stopReading()
	for _, release := range s.release {
		release()
	}
}

// begin records the states of the volume and the backup.
func (s *restoration) begin(tx *catalog.Tx) error {
	if s.state.Fresh {
		if err := s.a.admit(tx, demand{catalog.VolumeCount, 1}, demand{catalog.VolumeGigabytes, gigabytes(s.record.Size)}); err != nil {
			return err
		}
	} else {
		v, err := catalog.Volumes.Get(tx, s.volume.id)
		if err != nil {
			return err
		}
		s.record = v
		s.record.PreviousStatus, s.record.Status = v.Status, catalog.RestoringBackup
	}
	b, err := catalog.Backups.Get(tx, s.backup.ID)
	if err != nil {
		return err
	}
	if !whole(b) {
		return fail(Conflict, "backup %s is in status %s: only one that is available can be restored", b.ID, b.Status)
	}
	b.Status = catalog.Restoring
	return errors.Join(catalog.Volumes.Put(tx, s.record), catalog.Backups.Put(tx, b))
}

// work fills the volume.
func (s *restoration) work(ctx context.Context, op *operation) error {
	defer s.finish()
	return s.a.insist(ctx, op, s.target, func() error { return s.fill(ctx, op) })
}

// fill goes on from the last checkpoint. It opens the target first: a restore
// that never got there has not touched the volume.
func (s *restoration) fill(ctx context.Context, op *operation) error {
	leave, err := s.a.place(ctx)
	if err != nil {
		return err
	}
	defer leave()
	r, release, err := s.a.useTarget(ctx, s.target)
	if err != nil {
		return err
	}
	defer release()
	data, err := s.open()
	if err != nil {
		return dataError("make the volume", err)
	}
	if err := s.empty(op, data); err != nil {
		return err
	}
	err = r.Restore(ctx, s.backup.ID, &easing{Volume: data, a: s.a, op: op}, repo.RestoreOptions{
		Blank: true, Progress: op.progress, From: s.state.Point,
		Checkpoint: func(p repo.RestorePoint) error { return s.reached(op, data, p) },
		Lost:       s.past(),
	})
	if err != nil {
		return targetError(s.target, "restore backup "+s.backup.ID.String()+" from", err)
	}
	if err := data.Flush(); err != nil {
		return dataError("write the volume", err)
	}
	s.tellLost(op)
	return s.goOnFrom(ctx, op, r, data)
}

// goOnFrom lets the volume's next incremental backup go on from the one that
// was restored, if that is of this volume and whole.
func (s *restoration) goOnFrom(ctx context.Context, op *operation, r *repo.Repo, data *layers.Volume) error {
	if s.volume.id != s.backup.VolumeID || s.left != "" {
		return nil
	}
	if !s.state.Claim.IsZero() {
		_, err := s.a.takeOver(ctx, r, s.target, s.volume.id, s.backup.ID, s.state.Claim)
		if errors.Is(err, fs.ErrNotExist) {
			op.addNote("the backup was deleted meanwhile: the volume has its data, its backups were not taken over")
			return nil
		}
		if err != nil {
			return err
		}
	}
	if err := s.a.markRestored(s.volume, data, s.backup); err != nil {
		return dataError("mark what was restored", err)
	}
	return nil
}

// empty makes an existing volume read as zeros, so that everything that the
// backup does not write does: it may be larger. Behaviour B14.
func (s *restoration) empty(op *operation, data *layers.Volume) error {
	if s.state.Blank {
		return nil
	}
	if err := s.keep(op, func(state *restorationState) { state.Touched = true }); err != nil {
		return err
	}
	if !s.state.Fresh {
		if err := data.WriteZeroes(0, data.Size()); err != nil {
			return dataError("empty the volume", err)
		}
		if err := data.Flush(); err != nil {
			return dataError("empty the volume", err)
		}
	}
	return s.keep(op, func(state *restorationState) { state.Blank = true })
}

// reached makes what is restored durable now and then, and records it.
func (s *restoration) reached(op *operation, data *layers.Volume, p repo.RestorePoint) error {
	if p.Bytes-s.state.Point.Bytes < s.a.restoreEvery {
		return nil
	}
	if err := data.Flush(); err != nil {
		return dataError("write the volume", err)
	}
	return s.keep(op, func(state *restorationState) { state.Point = p })
}

// keep records a change of the state.
func (s *restoration) keep(op *operation, f func(*restorationState)) error {
	next := s.state
	f(&next)
	if err := s.a.checkpoint(op, next); err != nil {
		return err
	}
	s.state = next
	return nil
}

// open returns the volume's data; a new volume's folder is made.
func (s *restoration) open() (*layers.Volume, error) {
	a, v := s.a, s.volume
	v.chain.Lock() // What began before the claim ends first.
	defer v.chain.Unlock()
	a.mu.Lock()
	data, err := v.data, v.err
	a.mu.Unlock()
	if !s.state.Fresh || data != nil {
		return data, err
	}
	// A crash may have left a part of the folder.
	if err := layers.Remove(a.volumeDir(v.id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	data, err = layers.Create(a.volumeDir(v.id), v.id, s.record.Size, a.volumeOptions())
	a.mu.Lock()
	defer a.mu.Unlock()
	v.data, v.err = data, err
	return data, err
}

// settle records what became of the volume, and that the backup is free again.
func (s *restoration) settle(tx *catalog.Tx, err error) error {
	volumeErr := change(tx, catalog.Volumes, s.volume.id, func(v *catalog.Volume) {
		previous := v.PreviousStatus
		v.Updated, v.PreviousStatus = time.Now().UTC(), ""
		switch {
		case err != nil && !s.state.Fresh && !s.state.Touched:
			v.Status = previous
		case err == nil:
			v.Status, v.Reason = s.a.useOf(s.volume), s.left
			if s.state.Fresh && checkName("volume", s.state.Name) == nil {
				v.Name = s.state.Name
			}
		case s.state.Fresh || errors.Is(err, errCanceled):
			v.Status, v.Reason = catalog.Error, halfRestored(err.Error())
		default:
			v.Status, v.Reason = catalog.ErrorRestoring, halfRestored(err.Error())
		}
	})
	return errors.Join(volumeErr, s.a.freeBackup(tx, s.backup.ID))
}

// halfRestored is the reason of a volume that a restore did not finish.
func halfRestored(why string) string {
	return shorten("its content is incomplete, the restore ended early: " + why)
}

// finish ends the use of the backup, and says of a new volume that was never
// made why it cannot be used.
func (s *restoration) finish() {
	s.stopReading()
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if s.volume.data == nil && s.volume.err == nil {
		s.volume.err = &Error{Reason: Conflict, Message: "the restore ended before it was made: delete it, and restore again"}
	}
}

func (s *restoration) stopReading() {
	if s.reading {
		s.reading = false
		s.a.readBackup(s.backup.ID, -1)
	}
}

// readBackup counts the restores of a backup.
func (a *Agent) readBackup(id layers.ID, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.restores[id] += n; a.restores[id] == 0 {
		delete(a.restores, id)
	}
}

// freeBackup records that a backup is available again, if no restore reads it any
// more.
func (a *Agent) freeBackup(tx *catalog.Tx, id layers.ID) error {
	b, err := catalog.Backups.Get(tx, id)
	if err != nil || b.Status != catalog.Restoring || a.isRead(id) {
		return err
	}
	b.Status = catalog.Available
	return catalog.Backups.Put(tx, b)
}

// isRead reports whether a restore reads the backup.
func (a *Agent) isRead(id layers.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.restores[id] > 0
}
