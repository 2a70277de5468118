package repo

import (
	"context"
	"fmt"

	"varve/layers"
)

// Protect keeps a backup from being deleted by any host, or lets it be deleted
// again. Hosts learn of it with their next listing. Whoever can write to the
// store can take the protection away, or delete the backup itself. One that is
// not there is an error that wraps fs.ErrNotExist.
func (r *Repo) Protect(ctx context.Context, id layers.ID, on bool) error {
	if err := r.protect(ctx, id, on); err != nil {
		return fmt.Errorf("protect backup %s: %w", id, err)
	}
	return nil
}

func (r *Repo) protect(ctx context.Context, id layers.ID, on bool) error {
	known, _, err := r.find(ctx, id)
	if err != nil {
		return err
	}
	volume := known.name.volume
	l, err := r.list(ctx, volumePrefix(volume))
	if err != nil {
		return err
	}
	root, ok := r.index.find(id) // It may be younger than the listing.
	if !ok || l.deleted[id] {
		return absent(id)
	}
	names := l.holds[id]
	switch {
	case on && len(names) == 0:
		f := make(fields)
		f.setID(bodyBackup, id)
		f.setID(bodyVolume, volume)
		f.setTime(bodyTime, r.now())
		f.setText(bodyHost, hostName())
		err = r.store.Put(ctx, holdName(volume, id, newObjectID(id)), r.sealBody(kindHold, id, f))
	case !on && len(names) > 0:
		err = r.store.Delete(ctx, names...)
	}
	if err == nil {
		root.held = on
		r.index.add(root)
	}
	return err
}
