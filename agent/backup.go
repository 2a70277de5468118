package agent

import (
	"context"

	"varve/catalog"
)

// NewBackup says what backup to create. Volume and Target are names or ids;
// an empty Target means the only one there is.
type NewBackup struct {
	Volume      string
	Target      string
	Name        string // empty means the time
	Description string
	Snapshot    string // of that volume; empty means the present state
	Force       bool   // also if the volume is in use
	Incremental bool   // only what changed since the newest backup
}

// BackupView is a backup as it is shown.
type BackupView struct {
	catalog.Backup
	TargetName    string
	TargetURL     string
	HasDependents bool
	Done, Total   int64 // bytes, while it is being made or restored; Total 0: not known yet
}

// Incremental reports whether the backup has a parent.
func (b BackupView) Incremental() bool { return !b.ParentID.IsZero() }

// CreateBackup begins a backup and returns at once. The operation's subject is
// the backup.
func (a *Agent) CreateBackup(ctx context.Context, n NewBackup) (BackupView, catalog.Operation, error) {
	return BackupView{}, catalog.Operation{}, fail(Internal, "not built yet")
}

// Backups returns the backups in every target, newest first, from the catalog.
func (a *Agent) Backups(ctx context.Context) ([]BackupView, error) {
	return nil, fail(Internal, "not built yet")
}

// Backup returns the backup that ref, a name or an id, means.
func (a *Agent) Backup(ctx context.Context, ref string) (BackupView, error) {
	return BackupView{}, fail(Internal, "not built yet")
}

// DeleteBackup begins to delete a backup. One with dependents is refused
// unless force is set; the dependents stay whole then.
func (a *Agent) DeleteBackup(ctx context.Context, ref string, force bool) (catalog.Operation, error) {
	return catalog.Operation{}, fail(Internal, "not built yet")
}

// RestoreRequest says where a backup goes.
type RestoreRequest struct {
	Volume string // an existing volume to overwrite; empty means a new one
	Name   string // of the new volume; empty means the source's
	Force  bool   // must be set to overwrite
}

// RestoreBackup begins to restore a backup. The operation's subject is the
// volume.
func (a *Agent) RestoreBackup(ctx context.Context, ref string, r RestoreRequest) (catalog.Volume, catalog.Operation, error) {
	return catalog.Volume{}, catalog.Operation{}, fail(Internal, "not built yet")
}

// VerifyBackup begins to check that a backup is whole in its target; deep
// reads all its data.
func (a *Agent) VerifyBackup(ctx context.Context, ref string, deep bool) (catalog.Operation, error) {
	return catalog.Operation{}, fail(Internal, "not built yet")
}
