package agent

import (
	"context"

	"varve/catalog"
)

// NewSnapshot says what snapshot to create. An empty name means the time.
type NewSnapshot struct {
	Name        string
	Description string
}

// SnapshotView is a snapshot as it is shown.
type SnapshotView struct {
	catalog.Snapshot
	VolumeName string
	Bytes      int64 // on disk, that this snapshot alone holds
}

// CreateSnapshot keeps the present state of a volume under a name.
func (a *Agent) CreateSnapshot(ctx context.Context, volumeRef string, n NewSnapshot) (catalog.Snapshot, error) {
	return catalog.Snapshot{}, fail(Internal, "not built yet")
}

// Snapshots returns the snapshots of one volume, or of all if volumeRef is
// empty, oldest first. Those that the system made are left out unless
// includeSystem is set.
func (a *Agent) Snapshots(ctx context.Context, volumeRef string, includeSystem bool) ([]SnapshotView, error) {
	return nil, fail(Internal, "not built yet")
}

// Snapshot returns the snapshot that ref means: an id, a name, or
// VOLUME@SNAPSHOT with a name or id on either side.
func (a *Agent) Snapshot(ctx context.Context, ref string) (SnapshotView, error) {
	return SnapshotView{}, fail(Internal, "not built yet")
}

// DeleteSnapshot removes a snapshot. All others, and the volume, read as
// before.
func (a *Agent) DeleteSnapshot(ctx context.Context, ref string) error {
	return fail(Internal, "not built yet")
}
