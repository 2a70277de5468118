package api

import (
	"cmp"
	"context"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"varve/agent"
)

type (
	snapshotBody struct {
		Snapshot Snapshot `json:"snapshot"`
	}
	snapshotsBody struct {
		Snapshots []Snapshot `json:"snapshots"`
	}
	newSnapshotBody struct {
		Snapshot NewSnapshot `json:"snapshot"`
	}
	snapshotRef struct {
		Snapshot string `path:"snapshot" doc:"id, name, or VOLUME@SNAPSHOT"`
	}
)

func (s *Server) addSnapshots(h huma.API) {
	huma.Get(h, "/v1/snapshots", func(ctx context.Context, in *struct {
		Volume string `query:"volume" doc:"id or name; only this volume's"`
		System bool   `query:"system" doc:"also those that Varve made itself"`
		Page
	}) (*answer[snapshotsBody], error) {
		views, err := s.config.Agent.Snapshots(ctx, in.Volume, in.System)
		if err != nil {
			return nil, answerFor(err)
		}
		body := snapshotsBody{Snapshots: make([]Snapshot, len(views))}
		for i, v := range views {
			body.Snapshots[i] = snapshot(v)
		}
		if body.Snapshots, err = filterSnapshots(body.Snapshots, in.Page); err != nil {
			return nil, answerFor(err)
		}
		return &answer[snapshotsBody]{body}, nil
	})
	huma.Post(h, "/v1/snapshots", func(ctx context.Context, in *struct{ Body newSnapshotBody }) (*answer[snapshotBody], error) {
		n := in.Body.Snapshot
		made, err := s.config.Agent.CreateSnapshot(ctx, n.VolumeID, agent.NewSnapshot{
			Name: n.Name, Description: n.Description, Quiesce: quiesce(n.Quiesce),
		})
		if err != nil {
			return nil, answerFor(err)
		}
		return s.snapshotAnswer(ctx, made.ID.String())
	}, created)
	huma.Get(h, "/v1/snapshots/{snapshot}", func(ctx context.Context, in *snapshotRef) (*answer[snapshotBody], error) {
		return s.snapshotAnswer(ctx, in.Snapshot)
	})
	s.addDiff(h)
	huma.Delete(h, "/v1/snapshots/{snapshot}", func(ctx context.Context, in *snapshotRef) (*struct{}, error) {
		return nil, answerFor(s.config.Agent.DeleteSnapshot(ctx, in.Snapshot))
	})
}

func (s *Server) snapshotAnswer(ctx context.Context, ref string) (*answer[snapshotBody], error) {
	v, err := s.config.Agent.Snapshot(ctx, ref)
	if err != nil {
		return nil, answerFor(err)
	}
	return &answer[snapshotBody]{snapshotBody{snapshot(v)}}, nil
}

func quiesce(q Quiesce) agent.Quiesce {
	return agent.Quiesce{
		Mounts: q.Freeze, NoFreeze: q.NoFreeze, NoHooks: q.NoHooks, FreezeLimit: time.Duration(q.FreezeLimit * float64(time.Second)),
	}
}

func snapshot(v agent.SnapshotView) Snapshot {
	return Snapshot{
		ID:          v.ID.String(),
		Name:        v.Name,
		Description: optional(v.Description),
		Status:      string(v.Status),
		Size:        gib(v.Size),
		VolumeID:    v.VolumeID.String(),
		CreatedAt:   Time{v.Created},
		VolumeName:  v.VolumeName,
		SizeBytes:   v.Size,
		FailReason:  optional(v.Reason),
		System:      v.System,
		Bytes:       v.Usage.Bytes,
		Exclusive:   known(v.Usage.Exclusive),
		ParentID:    optionalID(v.ParentID),
		Live:        v.Live,
		Consistency: cmp.Or(string(v.Consistency), "crash"),
		Note:        optional(v.Note),
	}
}
