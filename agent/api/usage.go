package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"varve/agent"
)

// A TargetUsage says what a target takes: roots and packs; what else there is,
// keys, tombstones and sessions, is small.
type TargetUsage struct {
	Volumes           []VolumeBackups `json:"volumes"`
	UnfinishedObjects int64           `json:"unfinished_objects" doc:"of backups that are being made, or were cut off lately"`
	UnfinishedBytes   int64           `json:"unfinished_bytes"`
	GarbageObjects    int64           `json:"garbage_objects" doc:"that no backup needs: prune frees them, once its graces are over"`
	GarbageBytes      int64           `json:"garbage_bytes"`
	Damage            []string        `json:"damage" doc:"what could not be read; what it may need counts as needed"`
}

// VolumeBackups is what the backups of a volume take in a target.
type VolumeBackups struct {
	VolumeID      string `json:"volume_id"`
	VolumeName    string `json:"volume_name"`
	Backups       int64  `json:"backups"`
	LogicalBytes  int64  `json:"logical_bytes" doc:"of data that they added, before compression"`
	StoredBytes   int64  `json:"stored_bytes" doc:"that they need, of deleted ones too"`
	StoredObjects int64  `json:"stored_objects"`
}

// A BackupCost is what would be freed if a backup alone were deleted, once that
// is pruned.
type BackupCost struct {
	UniqueObjects int64 `json:"unique_objects"`
	UniqueBytes   int64 `json:"unique_bytes"`
}

type (
	usageBody struct {
		Usage TargetUsage `json:"usage"`
	}
	costBody struct {
		Cost BackupCost `json:"cost"`
	}
)

func (s *Server) addUsage(h huma.API) {
	huma.Get(h, "/v1/targets/{target}/usage", func(ctx context.Context, in *targetRef) (*answer[usageBody], error) {
		u, err := s.config.Agent.TargetUsage(ctx, in.Target)
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[usageBody]{usageBody{DescribeUsage(u)}}, nil
	})
	huma.Get(h, "/v1/backups/{backup}/cost", func(ctx context.Context, in *struct {
		Backup string `path:"backup" doc:"id or name"`
	}) (*answer[costBody], error) {
		objects, bytes, err := s.config.Agent.UniqueTo(ctx, in.Backup)
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[costBody]{costBody{BackupCost{objects, bytes}}}, nil
	})
}

// DescribeUsage is a usage as the API shows it.
func DescribeUsage(u agent.TargetUsage) TargetUsage {
	out := TargetUsage{
		Volumes:           make([]VolumeBackups, len(u.Volumes)),
		UnfinishedObjects: u.Unfinished.Objects, UnfinishedBytes: u.Unfinished.Bytes,
		GarbageObjects: u.Garbage.Objects, GarbageBytes: u.Garbage.Bytes,
		Damage: make([]string, len(u.Damage)),
	}
	for i, v := range u.Volumes {
		out.Volumes[i] = VolumeBackups{
			VolumeID: v.Volume.String(), VolumeName: v.Name, Backups: int64(v.Backups),
			LogicalBytes: v.Logical, StoredBytes: v.Stored.Bytes, StoredObjects: v.Stored.Objects,
		}
	}
	for i, err := range u.Damage {
		out.Damage[i] = err.Error()
	}
	return out
}

// TargetUsage looks through a whole target.
func (c *Client) TargetUsage(ctx context.Context, target string) (TargetUsage, error) {
	out, err := call[usageBody](ctx, c, http.MethodGet, "targets", "target", target, "usage", nil)
	return out.Usage, err
}

// BackupCost asks a backup's target what it alone takes there.
func (c *Client) BackupCost(ctx context.Context, backup string) (BackupCost, error) {
	out, err := call[costBody](ctx, c, http.MethodGet, "backups", "backup", backup, "cost", nil)
	return out.Cost, err
}
