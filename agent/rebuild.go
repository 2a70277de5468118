package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"varve/catalog"
	"varve/layers"
)

// foundDescription is that of a volume or snapshot whose record was lost.
const (
	foundVolume   = "found in the state folder"
	foundSnapshot = "found in the volume"
)

// Rebuilt says what a new catalog was made of.
type Rebuilt struct {
	Old       string // where the catalog before is kept; empty if there was none
	Volumes   int
	Snapshots int
	Targets   int
	Backups   int
	Problems  []string // what could not be read, each a sentence
}

// Rebuild makes a new catalog for the state folder from its copy, the volumes
// and the targets: behaviour C4. The one that is there is kept under another
// name. No daemon may run on the folder.
func Rebuild(ctx context.Context, c Config) (Rebuilt, error) {
	if _, err := os.Stat(c.State); err != nil {
		return Rebuilt{}, fail(NotFound, "rebuild the catalog: %w: name the state folder with --state", err)
	}
	lock, err := lockState(c.State)
	if err != nil {
		return Rebuilt{}, err
	}
	old, err := setAside(catalogDir(c.State))
	if err != nil {
		return Rebuilt{}, errors.Join(fail(Unavailable, "rebuild the catalog: %w", err), lock.release())
	}
	c.PollInterval, c.Devices = 0, nil // A rebuild serves nobody.
	a, err := openToRebuild(ctx, c, lock)
	if err != nil {
		return Rebuilt{Old: old}, errors.Join(err, lock.release())
	}
	r, err := a.rebuild(ctx)
	r.Old = old
	return r, errors.Join(err, a.Close())
}

// setAside gives a folder a name that nothing has. None is no error.
func setAside(dir string) (aside string, err error) {
	aside = dir + ".old-" + time.Now().UTC().Format("20060102T150405.000000000")
	err = os.Rename(dir, aside)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return aside, err
}

func openToRebuild(ctx context.Context, c Config, lock *stateLock) (*Agent, error) {
	cat, err := catalog.Open(catalogDir(c.State), c.Log)
	if err != nil {
		return nil, fail(Unavailable, "%w", err)
	}
	return newAgent(ctx, c, lock, cat), nil
}

func (a *Agent) rebuild(ctx context.Context) (r Rebuilt, err error) {
	if err := errors.Join(a.adoptCopy(), a.adoptVolumes()); err != nil {
		return r, err
	}
	volumes, err := list(a, catalog.Volumes)
	if err != nil {
		return r, err
	}
	for _, v := range volumes {
		if err := a.rebuildVolume(v); err != nil {
			r.Problems = append(r.Problems, fmt.Sprintf("Volume %s (%s) cannot be opened: %v.", v.Name, v.ID, err))
		}
	}
	targets, err := list(a, catalog.Targets)
	if err != nil {
		return r, err
	}
	for _, t := range targets {
		if err := a.sync(ctx, t, everyRoot); err != nil {
			r.Problems = append(r.Problems, fmt.Sprintf("The backups of target %s are not known yet: %v.", t.Name, err))
		}
	}
	if err := a.update(a.nameFromBackups); err != nil {
		return r, err
	}
	return r, a.view(func(tx *catalog.Tx) error {
		r.Volumes, r.Snapshots = len(all(a, tx, catalog.Volumes)), len(all(a, tx, catalog.Snapshots))
		r.Targets, r.Backups = len(targets), len(all(a, tx, catalog.Backups))
		return nil
	})
}

// rebuildVolume records the size of a volume and its snapshots.
func (a *Agent) rebuildVolume(record catalog.Volume) error {
	data, err := a.openVolume(record.ID)
	if err != nil {
		return err
	}
	size := data.Size()
	err = a.recoverSnapshots(newVolume(record.ID, data, nil), data)
	if err = errors.Join(err, data.Close()); err != nil {
		return err
	}
	return a.update(func(tx *catalog.Tx) error {
		return change(tx, catalog.Volumes, record.ID, func(v *catalog.Volume) { v.Size = size })
	})
}

// nameFromBackups gives volumes whose names are lost those that their newest
// backups know.
func (a *Agent) nameFromBackups(tx *catalog.Tx) error {
	newest := map[layers.ID]catalog.Backup{}
	for _, b := range all(a, tx, catalog.Backups) {
		if known, is := newest[b.VolumeID]; !is || newer(b, known) {
			newest[b.VolumeID] = b
		}
	}
	var errs []error
	for _, v := range all(a, tx, catalog.Volumes) {
		if v.Description != foundVolume || v.Name != lostName(v.ID) || checkName("volume", newest[v.ID].VolumeName) != nil {
			continue
		}
		v.Name = newest[v.ID].VolumeName
		errs = append(errs, catalog.Volumes.Put(tx, v))
	}
	return errors.Join(errs...)
}

// lostName is what a volume is called whose record was lost.
func lostName(id layers.ID) string { return "volume-" + id.String() }
