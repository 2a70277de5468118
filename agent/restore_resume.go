package agent

import (
	"encoding/json"
	"errors"
	"fmt"

	"varve/catalog"
)

// resumeRestore makes the job of a restore again that was cut off.
func (a *Agent) resumeRestore(op catalog.Operation, state []byte) (job, error) {
	s := &restoration{a: a}
	if err := json.Unmarshal(state, &s.state); err != nil {
		return job{}, fmt.Errorf("its checkpoint cannot be read: %w", err)
	}
	err := a.view(func(tx *catalog.Tx) (err error) {
		if s.record, err = catalog.Volumes.Get(tx, op.Subject); err != nil {
			return err
		}
		if s.backup, err = catalog.Backups.Get(tx, s.state.Backup); err != nil {
			return err
		}
		s.target, err = catalog.Targets.Get(tx, s.backup.TargetID)
		return err
	})
	if err != nil {
		return job{}, err
	}
	if !whole(s.backup) {
		return job{}, fail(Conflict, "backup %s is in status %s", s.backup.ID, s.backup.Status)
	}
	if s.volume = a.volumeOf(op.Subject); s.volume == nil {
		return job{}, fmt.Errorf("volume %s is gone", op.Subject)
	}
	release, err := a.holdTarget(s.target)
	if err != nil {
		return job{}, err
	}
	s.release = append(s.release, release)
	if err := s.claimAgain(); err != nil {
		s.giveBack()
		return job{}, err
	}
	return s.job(), nil
}

// claimAgain takes the volume and the backup, and brings their records in line.
func (s *restoration) claimAgain() error {
	a, v := s.a, s.volume
	err := a.claim(v, byRestore, func() error {
		if s.state.Fresh && !s.state.Blank {
			v.err = nil // Its folder is made now.
		}
		if v.err == nil {
			return v.idle(s.record)
		}
		return v.unusable(s.record)
	})
	if err != nil {
		return err
	}
	s.release = append(s.release, func() { a.unclaim(v) })
	a.readBackup(s.backup.ID, 1)
	s.reading = true
	return a.update(func(tx *catalog.Tx) error {
		return errors.Join(
			change(tx, catalog.Volumes, v.id, func(r *catalog.Volume) { r.Status = catalog.RestoringBackup }),
			change(tx, catalog.Backups, s.backup.ID, func(b *catalog.Backup) { b.Status = catalog.Restoring }))
	})
}
