package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"varve/catalog"
	"varve/layers"
)

// resumeBackup makes the job of a backup again that was cut off. Its snapshot
// is still in the chain. A backup that has stored nothing yet, of a snapshot
// that was not made, takes another one.
func (a *Agent) resumeBackup(op catalog.Operation, state []byte) (job, error) {
	c := &creation{a: a}
	if err := json.Unmarshal(state, &c.state); err != nil {
		return job{}, fmt.Errorf("its checkpoint cannot be read: %w", err)
	}
	var temporary bool
	err := a.view(func(tx *catalog.Tx) (err error) {
		if c.backup, err = catalog.Backups.Get(tx, op.Subject); err != nil {
			return err
		}
		if c.target, err = catalog.Targets.Get(tx, c.backup.TargetID); err != nil {
			return err
		}
		temporary = !c.backup.TempSnapshotID.IsZero()
		c.record, err = catalog.Volumes.Get(tx, c.backup.VolumeID)
		return err
	})
	if err != nil {
		return job{}, err
	}
	if err := c.claimAgain(temporary); err != nil {
		return job{}, errors.Join(err, a.cleanUp(c.cleaning()))
	}
	return c.job(), nil
}

// claimAgain takes the volume and the target, and finds the snapshot.
func (c *creation) claimAgain(temporary bool) error {
	a := c.a
	v := a.volumeOf(c.backup.VolumeID)
	if v == nil {
		return fmt.Errorf("volume %s is gone", c.record.Name)
	}
	c.volume = v
	err := a.claim(v, byBackup, func() (err error) {
		if c.data, err = v.usable(c.record); err != nil || whole(c.backup) {
			return err
		}
		b, there := boundaryOf(c.data, c.backup.BoundaryID)
		switch {
		case there && !b.Mark && !temporary:
			c.release = append(c.release, a.hold(v, b.ID)) // a snapshot of the user's
		case !there && c.backup.SnapshotID.IsZero() && len(c.state.Stored.Tries) == 0:
			c.backup.BoundaryID = layers.ID{}
		case !there || b.Mark:
			return fail(Conflict, "the snapshot that it copied is gone")
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.release = append(c.release, func() { a.unclaim(v) })
	release, err := a.holdTarget(c.target)
	if err == nil {
		c.release = append(c.release, release)
		err = a.update(c.beginAgain)
	}
	if err != nil {
		c.giveBack()
	}
	return err
}

// beginAgain brings the records in line with what goes on.
func (c *creation) beginAgain(tx *catalog.Tx) error {
	err := change(tx, catalog.Volumes, c.volume.id, func(v *catalog.Volume) {
		v.PreviousStatus, v.Status = c.a.useOf(c.volume), catalog.BackingUp
	})
	if err != nil || !c.backup.BoundaryID.IsZero() {
		return err
	}
	return c.changeIn(tx, func(b *catalog.Backup) {
		b.BoundaryID, b.TempSnapshotID, b.DataTimestamp = layers.ID{}, layers.ID{}, instant()
	})
}

// discard removes what a backup that ends without one has stored, or leaves that
// to an operation of its own where the target does not do it at once. Nobody
// waits for that.
func (c *creation) discard(ctx context.Context, op *operation) {
	clean := c.cleaning()
	if clean == nil {
		return
	}
	record, _ := op.state()
	if record.Waits == "" && clean.now(ctx) {
		return
	}
	c.clean = clean
}

// cleaning is what is left to do if the backup does not come about; nil:
// nothing.
func (c *creation) cleaning() *cleaning {
	if len(c.state.Stored.Tries) == 0 {
		return nil
	}
	return &cleaning{a: c.a, target: c.target, state: cleaningState{
		Target: c.target.ID, Backup: c.backup.ID, Stored: c.state.Stored,
	}}
}
