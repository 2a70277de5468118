package agent

import (
	"context"
	"errors"
	"io/fs"

	"varve/agent/repo"
	"varve/catalog"
	"varve/layers"
)

// NewKey is a key for a key slot of a target. Exactly one of Passphrase,
// KeyFile and Recovery is set.
type NewKey struct {
	Passphrase string
	KeyFile    []byte // its content
	Recovery   bool   // a new recovery key
	Label      string // for people
}

// A KeySlot is a key slot of a target's repository.
type KeySlot = repo.Slot

// An AddedKey is a key slot that was just made. RecoveryKey, if that was asked
// for, is kept nowhere and told this once.
type AddedKey struct {
	KeySlot
	RecoveryKey string
	Replaced    []layers.ID // the slots that a rotation removed
}

// TargetKeys returns the key slots of a target's repository, oldest first.
func (a *Agent) TargetKeys(ctx context.Context, ref string) (slots []KeySlot, err error) {
	err = a.withKeys(ctx, ref, "list the keys of", func(ctx context.Context, r *repo.Repo, t catalog.Target) error {
		slots, err = a.readKeys(ctx, r, t)
		return err
	})
	return slots, err
}

// AddTargetKey makes a key slot: its key opens the repository besides those
// that do already.
func (a *Agent) AddTargetKey(ctx context.Context, ref string, n NewKey) (added AddedKey, err error) {
	err = a.withKeys(ctx, ref, "add a key to", func(ctx context.Context, r *repo.Repo, _ catalog.Target) error {
		var key repo.Key
		if key, added.RecoveryKey, err = n.draw(); err != nil {
			return err
		}
		added.KeySlot, err = r.AddSlot(ctx, key, n.Label)
		return err
	})
	return added, err
}

// RemoveTargetKey removes a key slot. The one that this daemon opens the
// repository with is refused with reason InUse.
func (a *Agent) RemoveTargetKey(ctx context.Context, ref string, slot layers.ID) error {
	return a.withKeys(ctx, ref, "remove a key of", func(ctx context.Context, r *repo.Repo, t catalog.Target) error {
		if err := a.useKept(ctx, r, t); err != nil {
			return err
		}
		err := r.RemoveSlot(ctx, slot)
		a.lookAtKeys(ctx, r, t)
		return err
	})
}

// RotateTargetKey replaces the key of a slot, and those that rotations of it
// which were cut off have left; the zero ID means the one that this daemon uses.
// If that goes, the daemon goes over to the new key. Others who use the old key
// need the new one.
//
// The end of ctx does not end it: a client that goes away leaves no two keys.
func (a *Agent) RotateTargetKey(ctx context.Context, ref string, slot layers.ID, n NewKey) (added AddedKey, err error) {
	ctx, stop := a.outlasting(ctx)
	defer stop()
	err = a.withKeys(ctx, ref, "rotate a key of", func(ctx context.Context, r *repo.Repo, t catalog.Target) error {
		key, recovery, err := n.draw()
		if err != nil {
			return err
		}
		if err := a.useKept(ctx, r, t); err != nil {
			return err
		}
		keep := func(s KeySlot) error {
			if !s.InUse {
				return nil
			}
			return a.keepKey(t, n, s.ID)
		}
		if n.Recovery {
			keep = nil
		}
		made, gone, err := r.RotateSlot(ctx, slot, key, n.Label, keep)
		a.lookAtKeys(ctx, r, t)
		if err != nil { // The client may be gone.
			a.log.Warn("the rotation of a key did not come to its end", "target", t.Name, "error", err)
		}
		switch {
		case n.Recovery && errors.Is(err, repo.ErrSlotNeeded):
			return fail(Invalid, "the daemon uses that slot, and a recovery key is to be kept elsewhere: name another slot, or give a passphrase or key file")
		case err != nil:
			return err
		}
		added = AddedKey{made, recovery, gone}
		return nil
	})
	return added, err
}

// outlasting returns a context that ends with the daemon's work, and not with
// ctx.
func (a *Agent) outlasting(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(a.ctx, func() { cancel(context.Cause(a.ctx)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// UseTargetKey makes this daemon open a target with another key from now on.
func (a *Agent) UseTargetKey(ctx context.Context, ref string, n NewKey) (slot KeySlot, err error) {
	t, err := a.Target(ctx, ref)
	if err != nil {
		return slot, err
	}
	release, err := a.holdTarget(t)
	if err != nil {
		return slot, err
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if slot, err = a.useKey(ctx, t, n); err != nil {
		return slot, keyError(t, "change the key for", err)
	}
	return slot, nil
}

// useKey asks the repository itself, which the daemon may not be able to open.
func (a *Agent) useKey(ctx context.Context, t catalog.Target, n NewKey) (slot KeySlot, err error) {
	if n.Recovery || (n.Passphrase != "") == (len(n.KeyFile) > 0) {
		return slot, fail(Invalid, "give a passphrase or a key file")
	}
	key := repo.Key{Passphrase: n.Passphrase, KeyFile: string(n.KeyFile)}
	if _, err := a.openStore(ctx, t); err != nil {
		return slot, err
	}
	held := a.targetOf(t)
	if err := held.enter(ctx); err != nil {
		return slot, err
	}
	defer held.leave()
	a.mu.Lock()
	r := held.repo
	a.mu.Unlock()
	if r == nil {
		if r, err = repo.Open(ctx, a.patient(held, t.Name), key); err != nil {
			return slot, err
		}
		defer r.Close()
		if r.ID() != t.RepositoryID {
			return slot, anotherRepository(r, t)
		}
	}
	return r.Use(ctx, key, func(s KeySlot) error { return a.keepKey(t, n, s.ID) })
}

// useKept goes over to the slot that the daemon's own secret opens, before slots
// are removed. It is another than the one in use only after the disk has failed
// while the secret was written; then it is written again first.
func (a *Agent) useKept(ctx context.Context, r *repo.Repo, t catalog.Target) error {
	s, err := a.readSecrets(t.ID)
	if err != nil || !r.Encrypted() || s.key().Slot == r.Slot() {
		return err
	}
	kept := NewKey{Passphrase: s.Passphrase, KeyFile: s.KeyFile}
	_, err = r.Use(ctx, s.key(), func(slot KeySlot) error { return a.keepKey(t, kept, slot.ID) })
	return err
}

// RotateVolumeKey makes a new key for a volume in a target: backups that begin
// after it are sealed with that. It returns the key's number. The volume may be
// one that only the target knows.
func (a *Agent) RotateVolumeKey(ctx context.Context, ref, volume string) (epoch uint32, err error) {
	err = a.withKeys(ctx, ref, "rotate a volume's key in", func(ctx context.Context, r *repo.Repo, t catalog.Target) error {
		id, err := a.volumeIn(t, volume)
		if err != nil {
			return err
		}
		epoch, err = r.RotateVolumeKey(ctx, id)
		return err
	})
	return epoch, err
}

// volumeIn finds a volume by its ID, or by its name among the backups of a
// target.
func (a *Agent) volumeIn(t catalog.Target, ref string) (layers.ID, error) {
	if id, err := layers.ParseID(ref); err == nil {
		return id, nil
	}
	backups, err := a.backupsIn(t.ID)
	if err != nil {
		return layers.ID{}, err
	}
	volumes := map[layers.ID]catalog.Backup{}
	for _, b := range backups {
		volumes[b.VolumeID] = b
	}
	var found []catalog.Backup
	for _, b := range volumes {
		if b.VolumeName == ref {
			found = append(found, b)
		}
	}
	if len(found) == 0 {
		return layers.ID{}, fail(NotFound, "target %s has no backup of a volume %q", t.Name, ref)
	}
	b, err := resolve("volume", ref, found, func(b catalog.Backup) named { return named{b.VolumeID, b.VolumeName, ""} })
	return b.VolumeID, err
}

// withKeys opens a target's repository for an act on its keys.
func (a *Agent) withKeys(ctx context.Context, ref, doing string, act func(context.Context, *repo.Repo, catalog.Target) error) error {
	t, err := a.Target(ctx, ref)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	r, release, err := a.useTarget(ctx, t)
	if err != nil {
		return err
	}
	defer release()
	held := a.targetOf(t)
	if err := held.enter(ctx); err != nil { // One change of the secrets at a time.
		return keyError(t, doing, err)
	}
	defer held.leave()
	if err := act(ctx, r, t); err != nil {
		return keyError(t, doing, err)
	}
	return nil
}

// draw returns the key, and its text if it was drawn here.
func (n NewKey) draw() (key repo.Key, recovery string, err error) {
	count := 0
	for _, set := range []bool{n.Passphrase != "", len(n.KeyFile) > 0, n.Recovery} {
		if set {
			count++
		}
	}
	switch {
	case count != 1:
		return key, "", fail(Invalid, "give one of a new passphrase, a new key file, and the wish for a recovery key")
	case n.Recovery:
		recovery = repo.NewRecoveryKey().String()
		return repo.Key{Passphrase: recovery}, recovery, nil
	}
	return repo.Key{Passphrase: n.Passphrase, KeyFile: string(n.KeyFile)}, "", nil
}

// keepKey makes a key the one that the daemon opens a target with.
func (a *Agent) keepKey(t catalog.Target, n NewKey, slot layers.ID) error {
	s, err := a.readSecrets(t.ID)
	if err != nil {
		return err
	}
	s.Passphrase, s.KeyFile, s.Slot = n.Passphrase, n.KeyFile, slot.String()
	if err := a.writeSecrets(t.ID, s); err != nil {
		return fail(Unavailable, "keep the secrets of target %s: %w", t.Name, err)
	}
	return nil
}

// keyError is targetError for what is done to keys.
func keyError(t catalog.Target, doing string, err error) error {
	var own *Error
	what := doing + " target " + t.Name
	switch {
	case errors.As(err, &own): // targetError keeps its reason
	case errors.Is(err, repo.ErrNotEncrypted):
		return fail(Conflict, "%s: %w; make a target with encryption elsewhere, and back up to that", what, err)
	case errors.Is(err, repo.ErrSlotNeeded):
		return fail(InUse, "%s: %w: rotate it, or let the daemon use another key first (target key use)", what, err)
	case errors.Is(err, fs.ErrNotExist):
		return fail(NotFound, "%s: %w", what, err)
	case errors.Is(err, fs.ErrExist):
		return fail(Conflict, "%s: %w", what, err)
	}
	return targetError(t, doing, err)
}
