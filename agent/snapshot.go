package agent

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"varve/catalog"
	"varve/layers"
)

// NewSnapshot says what snapshot to create. An empty name means the time.
type NewSnapshot struct {
	Name        string
	Description string
	Quiesce     Quiesce
}

// SnapshotView is a snapshot as it is shown.
type SnapshotView struct {
	catalog.Snapshot
	VolumeName string
	Usage      SnapshotUsage
	ParentID   layers.ID // the snapshot that it lies on; zero: none
	Live       bool      // the volume lies on it, directly or not; false: it is on another branch
}

// CreateSnapshot keeps the present state of a volume under a name.
func (a *Agent) CreateSnapshot(ctx context.Context, volumeRef string, n NewSnapshot) (catalog.Snapshot, error) {
	now := instant()
	if n.Name == "" {
		n.Name = timeName(now)
	}
	if err := errors.Join(checkName("snapshot", n.Name), checkTexts("snapshot", n.Description, nil)); err != nil {
		return catalog.Snapshot{}, firstError(err)
	}
	record, v, err := a.findVolume(volumeRef)
	if err != nil {
		return catalog.Snapshot{}, err
	}
	s := catalog.Snapshot{ID: layers.NewID(), VolumeID: v.id, Name: n.Name, Description: n.Description, Created: now}
	// What was begun ends well, also if whoever asked has gone.
	err = a.makeSnapshot(context.WithoutCancel(ctx), record, v, &s, n.Quiesce, func(tx *catalog.Tx) error {
		return a.admit(tx, demand{catalog.SnapshotCount, 1})
	})
	if err != nil {
		return catalog.Snapshot{}, volumeError("snapshot volume "+record.Name, err)
	}
	return s, nil
}

// unseal takes a boundary's data out of the chain, whether it is a snapshot, a
// mark already, or not there at all, then its record. keepMark leaves a mark.
// also is recorded together; it may be nil. The caller holds the chain.
func (a *Agent) unseal(data *layers.Volume, id layers.ID, keepMark bool, also func(*catalog.Tx) error) error {
	err := giveUp(data, id, keepMark)
	if errors.Is(err, syscall.ENOSPC) {
		// On a full disk this is what makes room, and the chain takes a block
		// to be written anew.
		err = a.catalog.GiveRoom()
		if err == nil {
			err = giveUp(data, id, keepMark)
		}
	}
	if err != nil {
		return err
	}
	return a.update(func(tx *catalog.Tx) error {
		if also != nil {
			if err := also(tx); err != nil {
				return err
			}
		}
		return catalog.Snapshots.Delete(tx, id)
	})
}

// boundaryOf finds a boundary of the chain.
func boundaryOf(data *layers.Volume, id layers.ID) (layers.Boundary, bool) {
	boundaries := data.Boundaries()
	i := slices.IndexFunc(boundaries, func(b layers.Boundary) bool { return b.ID == id })
	if i < 0 {
		return layers.Boundary{}, false
	}
	return boundaries[i], true
}

// Snapshots returns the snapshots of one volume, or of all if volumeRef is
// empty, oldest first. Those that the system made are left out unless
// includeSystem is set.
func (a *Agent) Snapshots(ctx context.Context, volumeRef string, includeSystem bool) ([]SnapshotView, error) {
	volumes, snapshots, err := a.volumeRecords()
	if err != nil {
		return nil, err
	}
	if volumeRef != "" {
		v, err := resolve("volume", volumeRef, volumes, ofVolume)
		if err != nil {
			return nil, err
		}
		snapshots = slices.DeleteFunc(snapshots, func(s catalog.Snapshot) bool { return s.VolumeID != v.ID })
	}
	if !includeSystem {
		snapshots = slices.DeleteFunc(snapshots, func(s catalog.Snapshot) bool { return s.System })
	}
	return a.viewSnapshots(snapshots, volumes), nil
}

// Snapshot returns the snapshot that ref means: an id, a name, or
// VOLUME@SNAPSHOT with a name or id on either side.
func (a *Agent) Snapshot(ctx context.Context, ref string) (SnapshotView, error) {
	volumes, snapshots, err := a.volumeRecords()
	if err != nil {
		return SnapshotView{}, err
	}
	s, err := resolveSnapshot(ref, volumes, snapshots)
	if err != nil {
		return SnapshotView{}, err
	}
	return a.viewSnapshots([]catalog.Snapshot{s}, volumes)[0], nil
}

func resolveSnapshot(ref string, volumes []catalog.Volume, snapshots []catalog.Snapshot) (catalog.Snapshot, error) {
	names := map[layers.ID]string{}
	for _, v := range volumes {
		names[v.ID] = v.Name
	}
	if volumeRef, name, cut := strings.Cut(ref, "@"); cut {
		v, err := resolve("volume", volumeRef, volumes, ofVolume)
		if err != nil {
			return catalog.Snapshot{}, err
		}
		ref = name
		snapshots = slices.DeleteFunc(slices.Clone(snapshots), func(s catalog.Snapshot) bool { return s.VolumeID != v.ID })
	}
	return resolve("snapshot", ref, snapshots, func(s catalog.Snapshot) named {
		return named{s.ID, s.Name, "of volume " + names[s.VolumeID] + ", created " + s.Created.Format(time.DateTime)}
	})
}

// viewSnapshots adds to records what is known of the snapshots besides.
func (a *Agent) viewSnapshots(records []catalog.Snapshot, volumes []catalog.Volume) []SnapshotView {
	names := map[layers.ID]string{}
	for _, v := range volumes {
		names[v.ID] = v.Name
	}
	chains := map[layers.ID]*figures{} // by volume
	views := make([]SnapshotView, 0, len(records))
	for _, s := range records {
		if chains[s.VolumeID] == nil {
			chains[s.VolumeID] = a.figuresOf(s.VolumeID)
		}
		f := chains[s.VolumeID]
		views = append(views, SnapshotView{
			Snapshot: s, VolumeName: names[s.VolumeID], Usage: f.usage(s.ID, s.Name), ParentID: f.parent(s.ID), Live: f.boundaries[s.ID].Live,
		})
	}
	return views
}

// DeleteSnapshot removes a snapshot. All others, and the volume, read as
// before.
func (a *Agent) DeleteSnapshot(ctx context.Context, ref string) error {
	volumes, snapshots, err := a.volumeRecords()
	if err != nil {
		return err
	}
	s, err := resolveSnapshot(ref, volumes, snapshots)
	if err != nil {
		return err
	}
	record, v, err := a.findVolume(s.VolumeID.String())
	if err != nil {
		return err
	}
	if s.Status == catalog.Creating {
		return fail(Conflict, "snapshot %s of volume %s is being made: try again when that is over", s.Name, record.Name)
	}
	v.chain.Lock()
	defer v.chain.Unlock()
	data, err := a.usable(record, v)
	if err != nil {
		return err
	}
	a.mu.Lock()
	readers := v.readers[s.ID]
	a.mu.Unlock()
	if readers > 0 {
		return fail(InUse, "snapshot %s of volume %s is being read, by a backup, an export or a mount: end that first", s.Name, record.Name)
	}
	err = a.removeSnapshot(data, s)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(NotFound, "snapshot %s of volume %s is gone already", s.Name, record.Name)
	}
	if err != nil {
		return dataError("delete snapshot "+s.Name+" of volume "+record.Name, err)
	}
	a.tidyChain(v, data)
	return nil
}

// giveUp takes a boundary's data out of the chain; keepMark leaves a mark. One
// that is not there is no error.
func giveUp(data *layers.Volume, id layers.ID, keepMark bool) error {
	switch b, there := boundaryOf(data, id); {
	case there && !b.Mark:
		return data.DeleteSnapshot(id, keepMark)
	case there && !keepMark:
		return data.DropMark(id)
	}
	return nil
}

// removeSnapshot deletes a snapshot and leaves a mark where the next
// incremental backup needs one. The caller holds the chain.
func (a *Agent) removeSnapshot(data *layers.Volume, s catalog.Snapshot) error {
	var needed map[layers.ID]bool
	err := a.update(func(tx *catalog.Tx) error {
		needed = a.neededMarks(tx, data)
		return change(tx, catalog.Snapshots, s.ID, func(r *catalog.Snapshot) { r.Status = catalog.Deleting })
	})
	if err != nil {
		return err
	}
	err = a.unseal(data, s.ID, needed[s.ID], nil)
	if err == nil {
		return nil
	}
	recordErr := a.update(func(tx *catalog.Tx) error {
		return change(tx, catalog.Snapshots, s.ID, func(r *catalog.Snapshot) { r.Status, r.Reason = catalog.ErrorDeleting, shorten(err.Error()) })
	})
	return errors.Join(err, recordErr)
}

// neededMarks returns the boundaries that the next incremental backup of the
// volume into each target goes by: those of the backups that it goes on from.
func (a *Agent) neededMarks(tx *catalog.Tx, data *layers.Volume) map[layers.ID]bool {
	backups := all(a, tx, catalog.Backups)
	needed := map[layers.ID]bool{}
	for _, b := range backups {
		if b.VolumeID == data.ID() && b.Status == catalog.Creating {
			needed[b.BoundaryID] = true
		}
	}
	for _, b := range newestIn(places(data, layers.ID{}), backups, data.ID()) {
		needed[b.BoundaryID] = true
	}
	return needed
}

// tidyChain removes from a chain what nobody needs any more: system snapshots
// that no backup reads, and marks that no backup goes by, unless there is a
// target whose backups are not known yet. What does not go now goes next time.
// The caller holds the chain.
func (a *Agent) tidyChain(v *volume, data *layers.Volume) {
	var needed map[layers.ID]bool
	var leftover []layers.ID
	synced := true
	err := a.view(func(tx *catalog.Tx) error {
		needed = a.neededMarks(tx, data)
		for _, t := range all(a, tx, catalog.Targets) {
			synced = synced && !t.Synced.IsZero()
		}
		using := map[layers.ID]bool{}
		for _, b := range all(a, tx, catalog.Backups) {
			using[b.TempSnapshotID] = b.Status == catalog.Creating || using[b.TempSnapshotID]
		}
		for _, s := range all(a, tx, catalog.Snapshots) {
			if s.VolumeID == v.id && s.System && !using[s.ID] {
				leftover = append(leftover, s.ID)
			}
		}
		return nil
	})
	for _, id := range leftover {
		a.mu.Lock()
		readers := v.readers[id]
		a.mu.Unlock()
		if readers == 0 {
			err = errors.Join(err, a.unseal(data, id, needed[id], func(tx *catalog.Tx) error { return a.forgetTemporary(tx, id) }))
		}
	}
	for _, b := range data.Boundaries() {
		if b.Mark && !needed[b.ID] && synced {
			err = errors.Join(err, data.DropMark(b.ID))
		}
	}
	if err != nil {
		a.log.Error("what a volume no longer needs stays for now", "volume", v.id, "error", err)
	}
}

// forgetTemporary takes a temporary snapshot's id out of the backups that name
// it.
func (a *Agent) forgetTemporary(tx *catalog.Tx, id layers.ID) error {
	for _, b := range all(a, tx, catalog.Backups) {
		if b.TempSnapshotID != id {
			continue
		}
		b.TempSnapshotID = layers.ID{}
		if err := catalog.Backups.Put(tx, b); err != nil {
			return err
		}
	}
	return nil
}

// hold keeps a snapshot from being deleted until the returned function is
// called. The caller holds Agent.mu.
func (a *Agent) hold(v *volume, snapshot layers.ID) (release func()) {
	v.readers[snapshot]++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if v.readers[snapshot]--; v.readers[snapshot] == 0 {
			delete(v.readers, snapshot)
		}
	}
}
