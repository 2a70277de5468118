package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"varve/agent/repo"
	"varve/catalog"
	"varve/layers"
)

const kindBackup = "backup create"

// maxReason bounds the reasons that records keep, in bytes.
const maxReason = 2048

// NewBackup says what backup to create. Volume and Target are names or ids;
// an empty Target means the only one there is.
type NewBackup struct {
	Volume      string
	Target      string
	Name        string // empty means the time
	Description string
	Snapshot    string  // of that volume; empty means the present state
	Force       bool    // also if the volume is in use
	Incremental bool    // only what changed since the newest backup
	Quiesce     Quiesce // for the temporary snapshot, if there is one
	Compression string  // fastest or default; empty means the target's
	Properties  map[string]string
}

// A creation is a backup that is being made.
type creation struct {
	a       *Agent
	volume  *volume
	data    *layers.Volume
	target  catalog.Target
	backup  catalog.Backup // as it was recorded last
	state   creationState  // as it was recorded last
	record  catalog.Volume // as it was when the backup was asked for
	release []func()       // gives back what was claimed, last first
	clean   *cleaning      // what is left to do in the target after an end without a backup
}

// A creationState is what a backup that is being made needs to go on under the
// next daemon, beside its record.
type creationState struct {
	Incremental bool
	Quiesce     Quiesce
	Compression repo.Compression `json:",omitempty"` // 0: the target's
	Stored      repo.Checkpoint
	Took        time.Duration // of the tries that are over
}

// CreateBackup begins a backup and returns at once. The operation's subject is
// the backup.
func (a *Agent) CreateBackup(ctx context.Context, n NewBackup) (BackupView, catalog.Operation, error) {
	c, err := a.prepareBackup(ctx, n)
	if err != nil {
		return BackupView{}, catalog.Operation{}, err
	}
	b := BackupView{Backup: c.backup, TargetName: c.target.Name, TargetURL: c.target.URL}
	op, err := a.start(c.job())
	return b, op, err
}

func (c *creation) job() job {
	return job{
		kind:    kindBackup,
		subject: c.backup.ID,
		state:   c.state,
		begin:   c.begin,
		work:    c.work,
		settle:  c.settle,
		release: c.finish,
	}
}

// prepareBackup finds what the request names and claims it. Nothing is
// recorded yet.
func (a *Agent) prepareBackup(ctx context.Context, n NewBackup) (*creation, error) {
	now := instant()
	if n.Name == "" {
		n.Name = timeName(now)
	}
	if err := errors.Join(checkName("backup", n.Name), checkTexts("backup", n.Description, n.Properties)); err != nil {
		return nil, firstError(err)
	}
	compression, err := repo.ParseCompression(n.Compression)
	if err != nil {
		return nil, fail(Invalid, "%w", err)
	}
	record, v, err := a.findVolume(n.Volume)
	if err != nil {
		return nil, err
	}
	t, err := a.targetFor(ctx, n.Target)
	if err != nil {
		return nil, err
	}
	c := &creation{a: a, volume: v, target: t, record: record, state: creationState{
		Incremental: n.Incremental, Quiesce: n.Quiesce, Compression: compression,
	}, backup: catalog.Backup{
		ID: layers.NewID(), TargetID: t.ID, VolumeID: v.id, VolumeName: record.Name,
		Name: n.Name, Description: n.Description, Properties: n.Properties, Status: catalog.Creating,
		Size: record.Size, DataTimestamp: now, Created: now, Updated: now,
	}}
	if n.Snapshot != "" {
		if err := c.takeSnapshot(n.Snapshot, record); err != nil {
			return nil, err
		}
	}
	if err := c.claim(record, n.Force); err != nil {
		return nil, err
	}
	return c, nil
}

// targetFor returns the target that ref means; an empty one means the only
// target there is.
func (a *Agent) targetFor(ctx context.Context, ref string) (catalog.Target, error) {
	if ref != "" {
		return a.Target(ctx, ref)
	}
	targets, err := a.Targets(ctx)
	switch {
	case err != nil:
		return catalog.Target{}, err
	case len(targets) == 0:
		return catalog.Target{}, fail(Conflict, "there is no backup target yet: add one with: varve target add NAME URL")
	case len(targets) > 1:
		return catalog.Target{}, fail(Invalid, "there are %d backup targets: say which one, with --target: %s", len(targets), targetNames(targets))
	}
	return targets[0], nil
}

// targetNames are the names of targets, for a message.
func targetNames(targets []catalog.Target) string {
	names := make([]string, len(targets))
	for i, t := range targets {
		names[i] = t.Name
	}
	return strings.Join(names, ", ")
}

// takeSnapshot makes the named snapshot what is backed up.
func (c *creation) takeSnapshot(ref string, volume catalog.Volume) error {
	volumes, snapshots, err := c.a.volumeRecords()
	if err != nil {
		return err
	}
	own := slices.DeleteFunc(snapshots, func(s catalog.Snapshot) bool { return s.VolumeID != volume.ID })
	s, err := resolveSnapshot(ref, volumes, own)
	if err != nil {
		return err
	}
	if s.Status != catalog.Available {
		return fail(Conflict, "snapshot %s is in status %s: only one that is available can be backed up", s.Name, s.Status)
	}
	c.backup.SnapshotID, c.backup.BoundaryID = s.ID, s.ID
	c.backup.Size, c.backup.DataTimestamp = s.Size, s.Created
	return nil
}

// claim takes the volume and the target, or says why they cannot be had.
func (c *creation) claim(record catalog.Volume, force bool) error {
	named := !c.backup.SnapshotID.IsZero()
	v := c.volume
	err := c.a.claim(v, byBackup, func() (err error) {
		if c.data, err = v.usable(record); err != nil {
			return err
		}
		switch {
		case v.busy != "":
			return fail(Conflict, "volume %s is being backed up already: wait for that backup or cancel it", record.Name)
		case len(v.attached) > 0 && !force && !named:
			return fail(InUse, "Invalid volume: volume %s is in use. Back it up with --force, or back up one of its snapshots with --snapshot", record.Name)
		}
		if named {
			c.release = append(c.release, c.a.hold(v, c.backup.SnapshotID))
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.release = append(c.release, func() { c.a.unclaim(v) })
	release, err := c.a.holdTarget(c.target)
	if err != nil {
		c.giveBack()
		return err
	}
	c.release = append(c.release, release)
	return nil
}

// giveBack ends every claim.
func (c *creation) giveBack() {
	for _, release := range slices.Backward(c.release) {
		release()
	}
}

// finish ends every claim, and begins what is left to do.
func (c *creation) finish() {
	c.giveBack()
	if c.clean != nil {
		c.clean.begin()
	}
}

// begin records the backup and the volume's status.
func (c *creation) begin(tx *catalog.Tx) error {
	v, err := catalog.Volumes.Get(tx, c.volume.id)
	if err != nil {
		return err
	}
	if err := c.a.admit(tx, demand{catalog.BackupCount, 1}, demand{catalog.BackupGigabytes, gigabytes(c.backup.Size)}); err != nil {
		return err
	}
	v.PreviousStatus, v.Status = c.a.useOf(c.volume), catalog.BackingUp
	return errors.Join(catalog.Volumes.Put(tx, v), catalog.Backups.Put(tx, c.backup))
}

// work makes the backup. The temporary snapshot, if there is one, goes when
// that has ended, whatever the end; it stays if another daemon is to go on.
func (c *creation) work(ctx context.Context, op *operation) error {
	err := c.fixBoundary(ctx, op)
	if err == nil && !whole(c.backup) { // It is when a crash came after the copy.
		err = c.a.insist(ctx, op, c.target, func() error { return c.copy(ctx, op) })
	}
	if err != nil && stopped(ctx) {
		return err
	}
	if err != nil {
		c.discard(ctx, op)
	}
	c.dropTemporary(err == nil)
	return err
}

// fixBoundary decides which boundary's data is backed up and, if it has to be
// made, makes it: what is written from now on is not in the backup. A volume
// that nobody has open and nobody wrote to since its newest snapshot needs
// none.
func (c *creation) fixBoundary(ctx context.Context, op *operation) error {
	if !c.backup.BoundaryID.IsZero() {
		return nil
	}
	a, v := c.a, c.volume
	v.chain.Lock()
	tip, clean := c.cleanTip()
	v.chain.Unlock()
	if clean {
		return c.change(func(b *catalog.Backup) { b.BoundaryID, b.Size = tip.ID, tip.Size })
	}
	s := catalog.Snapshot{
		ID: layers.NewID(), VolumeID: v.id, Name: "backup_" + c.backup.ID.String(), System: true, Created: time.Now().UTC(),
	}
	err := a.makeSnapshot(ctx, c.record, v, &s, c.state.Quiesce, func(tx *catalog.Tx) error {
		return c.changeIn(tx, func(b *catalog.Backup) { b.TempSnapshotID, b.BoundaryID, b.Size = s.ID, s.ID, s.Size })
	})
	if s.Note != "" {
		op.note(s.Note)
	}
	if err != nil {
		return err
	}
	return c.change(func(b *catalog.Backup) { b.Size = s.Size }) // It may have grown meanwhile.
}

// cleanTip returns the snapshot that the live volume lies on if the volume is
// just as that is, and holds it.
func (c *creation) cleanTip() (layers.Boundary, bool) {
	boundaries := slices.DeleteFunc(c.data.Boundaries(), func(b layers.Boundary) bool { return !b.Live })
	if len(boundaries) == 0 {
		return layers.Boundary{}, false
	}
	tip := boundaries[len(boundaries)-1]
	if tip.Mark || tip.Size != c.data.Size() || !c.data.Clean() {
		return layers.Boundary{}, false
	}
	c.a.mu.Lock()
	defer c.a.mu.Unlock()
	if len(c.volume.attached) > 0 {
		return layers.Boundary{}, false
	}
	c.release = append(c.release, c.a.hold(c.volume, tip.ID))
	return tip, true
}

// copy copies the boundary's data into the target and records that it is
// there.
func (c *creation) copy(ctx context.Context, op *operation) error {
	leave, err := c.a.place(ctx)
	if err != nil {
		return err
	}
	defer leave()
	r, release, err := c.a.useTarget(ctx, c.target)
	if err != nil {
		return err
	}
	defer release()
	source, err := c.data.View(c.backup.BoundaryID)
	if err != nil {
		return dataError("read the snapshot", err)
	}
	defer source.Close() // Nothing was written.
	begun := time.Now()
	made, err := c.create(ctx, r, source, op)
	for errors.Is(err, repo.ErrStale) && ctx.Err() == nil {
		made, err = c.create(ctx, r, source, op) // It looks what is left.
	}
	c.state.Took += time.Since(begun)
	if err != nil {
		return targetError(c.target, "write a backup to", err)
	}
	if err := c.recordMade(made, c.state.Took); err != nil {
		return err
	}
	c.tellTakeover(ctx, r, op)
	return nil
}

// create makes the backup in the repository: what changed since the parent
// where that is asked for and possible, or else everything.
func (c *creation) create(ctx context.Context, r *repo.Repo, source layers.Layer, op *operation) (repo.Backup, error) {
	j := repo.Job{
		ID: c.backup.ID, Volume: c.backup.VolumeID, VolumeName: c.backup.VolumeName,
		Name: c.backup.Name, Description: c.backup.Description, Meta: c.backup.Properties,
		Source: source, Boundary: c.backup.BoundaryID, Snapshot: c.backup.SnapshotID,
		DataTimestamp: c.backup.DataTimestamp, Created: c.backup.Created,
		Progress: op.progress, Host: c.a.config.Host,
		Resume: c.state.Stored, Compression: c.state.Compression,
		Checkpoint: func(stored repo.Checkpoint) error {
			next := c.state
			next.Stored = stored
			if err := c.a.checkpoint(op, next); err != nil {
				return err
			}
			c.state = next
			return nil
		},
	}
	var err error
	if j.Claim, err = c.claimIn(ctx, r); err != nil {
		return repo.Backup{}, err
	}
	if c.state.Incremental {
		changes, why, err := c.changesSinceParent()
		switch {
		case err != nil:
			return repo.Backup{}, err
		case why != "":
			op.note(why + ": a full backup was made")
		default:
			defer changes.Close() // Nothing was written.
			j.Parent, j.Changes = c.backup.ParentID, changes
		}
	}
	made, err := r.Create(ctx, j)
	switch {
	case errors.Is(err, repo.ErrParentGone):
		op.note("the newest backup is gone from the target: a full backup was made")
	case errors.Is(err, repo.ErrParentDamaged):
		op.note(fmt.Sprintf("the newest backup, %s, has lost data: a full backup was made; \"varve target verify %s\" says what else is lost", c.backup.ParentID, c.target.Name))
	default:
		return made, err
	}
	if err := c.change(func(b *catalog.Backup) { b.ParentID = layers.ID{} }); err != nil {
		return repo.Backup{}, err
	}
	j.Parent, j.Changes, j.Resume = layers.ID{}, nil, c.state.Stored
	return r.Create(ctx, j)
}

// recordMade records that the backup is in the target.
func (c *creation) recordMade(made repo.Backup, took time.Duration) error {
	now := time.Now().UTC()
	return c.a.update(func(tx *catalog.Tx) error {
		parent, err := catalog.Backups.Get(tx, c.backup.ParentID)
		if err == nil {
			parent.Updated = now
			if err := catalog.Backups.Put(tx, parent); err != nil {
				return err
			}
		}
		return c.changeIn(tx, func(b *catalog.Backup) {
			b.Status, b.Updated, b.Duration = catalog.Available, now, took
			b.Logical, b.Changed, b.Stored, b.ObjectCount = made.Logical, made.Changed, made.Stored, made.Objects
			b.Epoch, b.Number, b.ClaimID, b.Host = made.Epoch, made.Number, made.Claim, made.Host
		})
	})
}

// dropTemporary removes the temporary snapshot. After a backup that was made
// its boundary stays as a mark, for the next incremental one, and the marks
// before it go. What cannot be removed now goes with the next tidying.
func (c *creation) dropTemporary(made bool) {
	v := c.volume
	v.chain.Lock()
	defer v.chain.Unlock()
	if id := c.backup.TempSnapshotID; !id.IsZero() && c.data != nil {
		err := c.a.unseal(c.data, id, made, func(tx *catalog.Tx) error {
			return c.changeIn(tx, func(b *catalog.Backup) { b.TempSnapshotID = layers.ID{} })
		})
		if err != nil {
			c.a.log.Error("a temporary snapshot stays for now", "volume", v.id, "snapshot", id, "error", err)
			return // The backup is what it is.
		}
	}
	if made && c.data != nil {
		c.a.tidyChain(v, c.data)
	}
}

// settle gives the volume its status back and records how the backup ended. A
// canceled one leaves no record.
func (c *creation) settle(tx *catalog.Tx, err error) error {
	statusErr := change(tx, catalog.Volumes, c.volume.id, func(v *catalog.Volume) {
		v.Status, v.PreviousStatus = c.a.useOf(c.volume), ""
	})
	if c.clean != nil {
		statusErr = errors.Join(statusErr, c.clean.record(tx))
	}
	switch {
	case err == nil:
		return statusErr
	case errors.Is(err, errCanceled):
		return errors.Join(statusErr, catalog.Backups.Delete(tx, c.backup.ID))
	}
	return errors.Join(statusErr, change(tx, catalog.Backups, c.backup.ID, func(b *catalog.Backup) { failBackup(b, err.Error()) }))
}

// failBackup makes a record that of a backup that did not come about.
func failBackup(b *catalog.Backup, reason string) {
	b.Status, b.FailReason, b.ParentID, b.Updated = catalog.Error, shorten(reason), layers.ID{}, time.Now().UTC()
}

// shorten cuts a reason so that a record can hold it.
func shorten(reason string) string {
	if len(reason) <= maxReason {
		return reason
	}
	return strings.ToValidUTF8(reason[:maxReason], "") + "…"
}

// change alters the backup's record.
func (c *creation) change(f func(*catalog.Backup)) error {
	return c.a.update(func(tx *catalog.Tx) error { return c.changeIn(tx, f) })
}

// changeIn alters the backup's record in tx and keeps what was recorded.
func (c *creation) changeIn(tx *catalog.Tx, f func(*catalog.Backup)) error {
	return change(tx, catalog.Backups, c.backup.ID, func(b *catalog.Backup) {
		f(b)
		c.backup = *b
	})
}
