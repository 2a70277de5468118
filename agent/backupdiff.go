package agent

import (
	"context"
	"iter"

	"varve/agent/repo"
	"varve/catalog"
	"varve/layers"
)

// A BackupDiff is what may differ between two backups of a volume in a target.
// Close it.
type BackupDiff struct {
	From, To BackupView
	target   catalog.Target
	repo     *repo.Repo
	release  func()
}

// DiffBackups compares two backups of one volume in one target by their maps;
// no data is read. The first may be the newer one.
func (a *Agent) DiffBackups(ctx context.Context, fromRef, toRef string) (*BackupDiff, error) {
	from, t, release, err := a.wholeBackup(ctx, fromRef)
	if err != nil {
		return nil, err
	}
	defer release()
	to, _, releaseTo, err := a.wholeBackup(ctx, toRef)
	if err != nil {
		return nil, err
	}
	defer releaseTo()
	switch {
	case from.VolumeID != to.VolumeID:
		return nil, fail(Invalid, "backups %s and %s are of different volumes: only those of one volume can be compared", from.Name, to.Name)
	case from.TargetID != to.TargetID:
		return nil, fail(Invalid, "backups %s and %s are in different targets, %s and %s: maps can be compared within one target only",
			from.Name, to.Name, from.TargetName, to.TargetName)
	}
	r, done, err := a.useTarget(ctx, t)
	if err != nil {
		return nil, err
	}
	return &BackupDiff{From: from, To: to, target: t, repo: r, release: done}, nil
}

// Extents yields the ranges that may differ, in ascending order, without
// overlap: Data and Zero are what To reads there.
func (d *BackupDiff) Extents(ctx context.Context) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		for e, err := range d.repo.Diff(ctx, d.From.ID, d.To.ID) {
			if err != nil {
				err = targetError(d.target, "compare backups in", err)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Close lets the target be removed.
func (d *BackupDiff) Close() error {
	d.release()
	return nil
}
