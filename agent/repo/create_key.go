package repo

import (
	"context"
	"errors"
	"fmt"
)

// damagedParent says of an error in the parent's map that no increment can be
// built on it.
func damagedParent(err error) error {
	if errors.Is(err, ErrCorrupt) {
		return fmt.Errorf("%w, make a full backup: %w", ErrParentDamaged, err)
	}
	return err
}

// prepareKey takes the newest key of the volume, or makes its first. Two hosts
// that do so at once make two keys, which is harmless: names tell them apart.
func (w *writer) prepareKey(ctx context.Context, l *listing) (err error) {
	volume := w.job.Volume
	if !w.repo.Encrypted() {
		w.key, err = w.repo.volumeKey(ctx, keyRef{volume: volume, epoch: firstEpoch})
		return err
	}
	if ref, ok := w.repo.index.newestKey(volume); ok {
		if err := w.checkEpoch(ctx, l, ref); err != nil {
			return err
		}
		w.key, err = w.repo.volumeKey(ctx, ref)
		return err
	}
	if w.key, err = w.repo.putVolumeKey(ctx, volume, firstEpoch); err != nil {
		return err
	}
	return w.ledger.key()
}

// checkEpoch refuses to go back to a key that was replaced: somebody may have it
// by now, and may have removed the newer one for that. The newest root tells
// what there was. Nobody needs to believe its header: whoever forges it only
// keeps backups from being made.
func (w *writer) checkEpoch(ctx context.Context, l *listing, newest keyRef) error {
	last := w.parentKey
	if n := len(l.roots); n > 0 && l.roots[n-1].name.backup != w.job.Parent {
		front, err := w.rootHeader(ctx, l.roots[n-1].name)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			return fmt.Errorf("read root: %w", err)
		}
		// A root that is gone or damaged keeps no backup from being made.
		if h, bad := parseHeader(front); err == nil && bad == nil && h.key.epoch > last.epoch {
			last = h.key
		}
	}
	if last.epoch <= newest.epoch {
		return nil
	}
	return damaged(volumeKeyName(last), 0, errors.New("the volume's newest key is missing, and new backups do not go back to an older one: put the object back, or make a new key (target key rotate --volume)"))
}

// rootHeader returns the bytes of a root's header.
func (w *writer) rootHeader(ctx context.Context, name rootName) ([]byte, error) {
	if s, known := w.repo.index.standing(name); known {
		return s.object[:headerSize], nil
	}
	front := make([]byte, headerSize)
	return front, w.repo.readRange(ctx, name.String(), front, 0)
}
