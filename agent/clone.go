package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"varve/catalog"
	"varve/layers"
)

// A clone is recorded, then linked, then available; a crash in between leaves a
// volume in status creating, which the next start removes. It shares the layers
// of its origin: how the engine counts who needs one is its affair, the catalog
// remembers the names alone.

// CloneVolume makes a volume of the snapshot n.Snapshot, or of the present
// state of the volume n.Source. It copies nothing. A size of 0 is that of the
// snapshot; it may be larger.
func (a *Agent) CloneVolume(ctx context.Context, n NewVolume) (catalog.Volume, error) {
	if err := errors.Join(checkName("volume", n.Name), checkTexts("volume", n.Description, n.Properties)); err != nil {
		return catalog.Volume{}, firstError(err)
	}
	if n.Size != 0 {
		if err := checkSize(n.Size); err != nil {
			return catalog.Volume{}, err
		}
	}
	s, release, err := a.cloneSource(context.WithoutCancel(ctx), n)
	if err != nil {
		return catalog.Volume{}, err
	}
	defer release()
	if n.Size != 0 && n.Size < s.Size {
		return catalog.Volume{}, fail(Invalid, "a clone of snapshot %s has at least its %d bytes, and cannot have %d: what lies behind would be lost", s.Name, s.Size, n.Size)
	}
	return a.cloneSnapshot(n, s)
}

// cloneSource returns the snapshot to clone, and keeps it until release. Of a
// volume's present state there is one for the time of the clone.
func (a *Agent) cloneSource(ctx context.Context, n NewVolume) (s catalog.Snapshot, release func(), err error) {
	switch {
	case n.Snapshot != "" && n.Source != "":
		return s, nil, fail(Invalid, "a snapshot and a volume to clone are named: leave one of them out")
	case n.Snapshot != "":
		view, err := a.Snapshot(ctx, n.Snapshot)
		if err != nil {
			return s, nil, err
		}
		if view.Status != catalog.Available {
			return s, nil, fail(Conflict, "snapshot %s is in status %s: only one that is available can be cloned", view.Name, view.Status)
		}
		_, v, err := a.findVolume(view.VolumeID.String())
		if err != nil {
			return s, nil, err
		}
		return view.Snapshot, a.holdSnapshot(v, view.ID), nil
	}
	record, v, err := a.findVolume(n.Source)
	if err != nil {
		return s, nil, err
	}
	id := layers.NewID()
	s = catalog.Snapshot{ID: id, VolumeID: v.id, Name: "clone_" + id.String(), System: true, Created: time.Now().UTC()}
	letGo := a.holdSnapshot(v, id) // Before it is there, or a tidying might take it for a leftover.
	if err := a.makeSnapshot(ctx, record, v, &s, n.Quiesce, nil); err != nil {
		letGo()
		return s, nil, volumeError("snapshot volume "+record.Name, err)
	}
	return s, func() {
		letGo()
		a.dropLeftovers(v)
	}, nil
}

// holdSnapshot is hold for callers without Agent.mu.
func (a *Agent) holdSnapshot(v *volume, id layers.ID) (release func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.hold(v, id)
}

// dropLeftovers removes what the system made in a volume and nobody needs any
// more.
func (a *Agent) dropLeftovers(v *volume) {
	v.chain.Lock()
	defer v.chain.Unlock()
	a.mu.Lock()
	data := v.data
	a.mu.Unlock()
	if data != nil {
		a.tidyChain(v, data)
	}
}

// cloneSnapshot makes the volume. The caller holds the snapshot.
func (a *Agent) cloneSnapshot(n NewVolume, s catalog.Snapshot) (catalog.Volume, error) {
	origin, v, err := a.findVolume(s.VolumeID.String())
	if err != nil {
		return catalog.Volume{}, err
	}
	now := time.Now().UTC()
	record := catalog.Volume{
		ID: layers.NewID(), Name: n.Name, Description: n.Description, Size: max(n.Size, s.Size), Status: catalog.Creating,
		Type: origin.Type, Bootable: origin.Bootable, Properties: n.Properties, Origins: append([]layers.ID{origin.ID}, origin.Origins...),
		Created: now, Updated: now,
	}
	if s.System {
		record.SourceVolumeID = origin.ID
	} else {
		record.SnapshotID = s.ID
	}
	if err := a.recordVolume(record); err != nil {
		return catalog.Volume{}, err
	}
	clone, err := a.link(origin, v, record, s)
	if err == nil {
		record.Status = catalog.Available
		a.addVolume(newVolume(record.ID, clone, nil))
		err = a.update(func(tx *catalog.Tx) error { return catalog.Volumes.Put(tx, record) })
		if err != nil {
			a.dropVolume(record.ID)
			clone.Close() // It goes anyway.
		}
	}
	if err != nil {
		return catalog.Volume{}, errors.Join(volumeError("clone snapshot "+s.Name+" of volume "+origin.Name, err), a.unmakeVolume(record.ID))
	}
	return record, nil
}

// link makes the clone's folder. It holds the origin's chain, so that nobody
// deletes the volume meanwhile.
func (a *Agent) link(origin catalog.Volume, v *volume, record catalog.Volume, s catalog.Snapshot) (*layers.Volume, error) {
	v.chain.Lock()
	defer v.chain.Unlock()
	data, err := a.usable(origin, v)
	if err != nil {
		return nil, err
	}
	clone, err := data.Clone(a.volumeDir(record.ID), record.ID, s.ID, a.volumeOptions())
	if err != nil || record.Size == clone.Size() {
		return clone, err
	}
	if err := clone.Grow(record.Size); err != nil {
		clone.Close() // It goes anyway.
		return nil, err
	}
	return clone, nil
}

// volumeError is dataError for what may be a refusal of the agent's already.
func volumeError(doing string, err error) error {
	var refused *Error
	if errors.As(err, &refused) {
		return err
	}
	return dataError(doing, err)
}

// checkLent refuses to delete a volume whose layers clones need. The caller has
// claimed it.
func (a *Agent) checkLent(record catalog.Volume, v *volume) error {
	a.mu.Lock()
	data := v.data
	a.mu.Unlock()
	if data == nil {
		return nil // It cannot be known, and does no harm to the clones.
	}
	lent, err := data.Lent()
	if err != nil {
		return dataError("look for clones of volume "+record.Name, err)
	}
	if lent == 0 {
		return nil
	}
	names := "unknown ones"
	if records, err := list(a, catalog.Volumes); err == nil {
		if clones := clonesOf(record.ID, records); len(clones) > 0 {
			names = strings.Join(clones, ", ")
		}
	}
	return fail(InUse, "volume %s has clones that need its layers, so that deleting it would give no space back: %s. Delete them first", record.Name, names)
}

// clonesOf returns the names of the volumes that were made of another, directly
// or through others.
func clonesOf(id layers.ID, records []catalog.Volume) []string {
	var names []string
	for _, r := range records {
		if slices.Contains(r.Origins, id) {
			names = append(names, r.Name)
		}
	}
	return names
}
