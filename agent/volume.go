package agent

import (
	"context"
	"time"

	"varve/catalog"
	"varve/layers"
)

// NewVolume says what volume to create. Size is in bytes.
type NewVolume struct {
	Name        string
	Description string
	Size        int64
	Properties  map[string]string
}

// An Attachment is one writable opening of a volume, by an NBD client say.
type Attachment struct {
	ID     layers.ID
	Export string // the name that it was opened by
	Since  time.Time
}

// VolumeView is a volume as it is shown.
type VolumeView struct {
	catalog.Volume
	Attachments []Attachment
	Allocated   int64           // bytes on disk, snapshots included
	Live        int64           // bytes on disk that the live volume reads
	Snapshots   []SnapshotUsage // oldest first, those that the system made included
}

// SnapshotUsage is what one snapshot alone holds.
type SnapshotUsage struct {
	ID    layers.ID
	Name  string
	Bytes int64 // on disk
}

// CreateVolume makes an empty volume.
func (a *Agent) CreateVolume(ctx context.Context, n NewVolume) (catalog.Volume, error) {
	return catalog.Volume{}, fail(Internal, "not built yet")
}

// Volumes returns every volume, oldest first.
func (a *Agent) Volumes(ctx context.Context) ([]VolumeView, error) {
	return nil, fail(Internal, "not built yet")
}

// Volume returns the volume that ref, a name or an id, means.
func (a *Agent) Volume(ctx context.Context, ref string) (VolumeView, error) {
	return VolumeView{}, fail(Internal, "not built yet")
}

// GrowVolume makes a volume size bytes long. It may be in use.
func (a *Agent) GrowVolume(ctx context.Context, ref string, size int64) (VolumeView, error) {
	return VolumeView{}, fail(Internal, "not built yet")
}

// DeleteVolume removes a volume and its snapshots. Its backups stay.
func (a *Agent) DeleteVolume(ctx context.Context, ref string) error {
	return fail(Internal, "not built yet")
}
