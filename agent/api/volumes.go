package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"varve/agent"
	"varve/catalog"
	"varve/layers"
)

const bytesPerGiB = 1 << 30

// Bodies as they travel, for the server and the client.
type (
	volumeBody struct {
		Volume Volume `json:"volume"`
	}
	volumesBody struct {
		Volumes []Volume `json:"volumes"`
	}
	newVolumeBody struct {
		Volume NewVolume `json:"volume"`
	}
	volumeChangeBody struct {
		Volume VolumeChange `json:"volume"`
	}
	newCheckBody struct {
		Check NewCheck `json:"check"`
	}
	newRevertBody struct {
		Revert NewRevert `json:"revert"`
	}
	revertedBody struct {
		Volume   Volume   `json:"volume"`
		Snapshot Snapshot `json:"snapshot" doc:"the state before"`
	}
	growBody struct {
		Grow NewSize `json:"grow"`
	}
)

// NewSize is the size that a volume grows to.
type NewSize struct {
	SizeBytes int64 `json:"size_bytes"`
}

// NewCheck says how to check a volume.
type NewCheck struct {
	Repair bool `json:"repair,omitempty" doc:"write damaged blocks anew from backups that have them"`
}

// NewRevert says what a volume goes back to.
type NewRevert struct {
	SnapshotID string `json:"snapshot_id" doc:"id or name of a snapshot of the volume"`
}

// An answer is a body to huma, a ref the object that a path names.
type (
	answer[T any] struct{ Body T }
	volumeRef     struct {
		Volume string `path:"volume" doc:"id or name"`
	}
)

// accepted marks the operations whose work goes on after the answer.
func accepted(o *huma.Operation) { o.DefaultStatus = http.StatusAccepted }

func created(o *huma.Operation) { o.DefaultStatus = http.StatusCreated }

func (s *Server) addVolumes(h huma.API) {
	huma.Get(h, "/v1/volumes", func(ctx context.Context, in *Page) (*answer[volumesBody], error) {
		views, err := s.config.Agent.Volumes(ctx)
		if err != nil {
			return nil, answerFor(err)
		}
		body := volumesBody{Volumes: make([]Volume, len(views))}
		for i, v := range views {
			body.Volumes[i] = s.volume(v)
		}
		if body.Volumes, err = filterVolumes(body.Volumes, *in); err != nil {
			return nil, answerFor(err)
		}
		return &answer[volumesBody]{body}, nil
	})
	huma.Post(h, "/v1/volumes", func(ctx context.Context, in *struct{ Body newVolumeBody }) (*answer[volumeBody], error) {
		n, err := newVolume(in.Body.Volume)
		if err != nil {
			return nil, answerFor(err)
		}
		v, err := s.config.Agent.CreateVolume(ctx, n)
		if err != nil {
			return nil, answerFor(err)
		}
		return s.volumeAnswer(ctx, v.ID.String())
	}, created)
	huma.Get(h, "/v1/volumes/{volume}", func(ctx context.Context, in *volumeRef) (*answer[volumeBody], error) {
		return s.volumeAnswer(ctx, in.Volume)
	})
	huma.Post(h, "/v1/volumes/{volume}/grow", func(ctx context.Context, in *struct {
		Volume string `path:"volume" doc:"id or name"`
		Body   growBody
	}) (*answer[volumeBody], error) {
		v, err := s.config.Agent.GrowVolume(ctx, in.Volume, in.Body.Grow.SizeBytes)
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[volumeBody]{volumeBody{s.volume(v)}}, nil
	})
	huma.Post(h, "/v1/volumes/{volume}/check", func(ctx context.Context, in *struct {
		Volume string `path:"volume" doc:"id or name"`
		Body   newCheckBody
	}) (*answer[operationBody], error) {
		return begun(s.config.Agent.CheckVolume(ctx, in.Volume, in.Body.Check.Repair))
	}, accepted)
	huma.Post(h, "/v1/volumes/{volume}/revert", func(ctx context.Context, in *struct {
		Volume string `path:"volume" doc:"id or name"`
		Body   newRevertBody
	}) (*answer[revertedBody], error) {
		v, safety, err := s.config.Agent.RevertVolume(ctx, in.Volume, in.Body.Revert.SnapshotID)
		if err != nil {
			return nil, answerFor(err)
		}
		kept, err := s.config.Agent.Snapshot(ctx, safety.ID.String())
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[revertedBody]{revertedBody{s.volume(v), snapshot(kept)}}, nil
	})
	s.addLineage(h)
	huma.Post(h, "/v1/volumes/{volume}/maintenance", s.changing((*agent.Agent).BeginMaintenance))
	huma.Delete(h, "/v1/volumes/{volume}/maintenance", s.changing((*agent.Agent).EndMaintenance))
	huma.Post(h, "/v1/volumes/{volume}/import", s.changing((*agent.Agent).BeginImport))
	huma.Delete(h, "/v1/volumes/{volume}/import", s.changing((*agent.Agent).EndImport))
	huma.Put(h, "/v1/volumes/{volume}", func(ctx context.Context, in *struct {
		Volume string `path:"volume" doc:"id or name"`
		Body   volumeChangeBody
	}) (*answer[volumeBody], error) {
		v, err := s.config.Agent.ChangeVolume(ctx, in.Volume, volumeChange(in.Body.Volume))
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[volumeBody]{volumeBody{s.volume(v)}}, nil
	})
	huma.Delete(h, "/v1/volumes/{volume}", func(ctx context.Context, in *volumeRef) (*struct{}, error) {
		return nil, answerFor(s.config.Agent.DeleteVolume(ctx, in.Volume))
	})
}

// changing answers with the volume after a change that needs no more words.
func (s *Server) changing(change func(*agent.Agent, context.Context, string) (agent.VolumeView, error)) func(context.Context, *volumeRef) (*answer[volumeBody], error) {
	return func(ctx context.Context, in *volumeRef) (*answer[volumeBody], error) {
		v, err := change(s.config.Agent, ctx, in.Volume)
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[volumeBody]{volumeBody{s.volume(v)}}, nil
	}
}

// newVolume takes the size in either unit.
func newVolume(n NewVolume) (agent.NewVolume, error) {
	size := n.SizeBytes
	switch {
	case n.Size != 0 && n.SizeBytes != 0:
		return agent.NewVolume{}, invalid("size and size_bytes are both set: give one")
	case n.Size < 0 || n.Size > (1<<63-1)/bytesPerGiB:
		return agent.NewVolume{}, invalid(fmt.Sprintf("size %d GiB is out of range", n.Size))
	case n.Size != 0:
		size = n.Size * bytesPerGiB
	}
	return agent.NewVolume{Name: n.Name, Description: n.Description, Size: size, Properties: n.Metadata,
		Snapshot: n.SnapshotID, Source: n.SourceVolID, Quiesce: quiesce(n.Quiesce), Import: n.Importing}, nil
}

func volumeChange(c VolumeChange) agent.VolumeChange {
	out := agent.VolumeChange{
		Name: c.Name, Description: c.Description, Properties: c.Metadata, PreSnapshot: c.PreSnapshot, PostSnapshot: c.PostSnapshot,
	}
	if c.NoMetadata {
		out.Properties = map[string]string{}
	}
	if c.HookTimeout != nil {
		limit := time.Duration(*c.HookTimeout) * time.Second
		out.HookLimit = &limit
	}
	return out
}

func invalid(message string) error {
	return &agent.Error{Reason: agent.Invalid, Message: message}
}

func (s *Server) volumeAnswer(ctx context.Context, ref string) (*answer[volumeBody], error) {
	v, err := s.config.Agent.Volume(ctx, ref)
	if err != nil {
		return nil, answerFor(err)
	}
	return &answer[volumeBody]{volumeBody{s.volume(v)}}, nil
}

func (s *Server) volume(v agent.VolumeView) Volume {
	out := Volume{
		ID:             v.ID.String(),
		Name:           v.Name,
		Description:    optional(v.Description),
		Status:         string(v.Status),
		Size:           gib(v.Size),
		Attachments:    make([]Attachment, len(v.Attachments)),
		Bootable:       fmt.Sprint(v.Bootable),
		Metadata:       properties(v.Properties),
		SnapshotID:     optionalID(v.SnapshotID),
		SourceVolumeID: optionalID(v.SourceVolumeID),
		VolumeType:     v.Type,
		CreatedAt:      Time{v.Created},
		UpdatedAt:      Time{v.Updated},
		SizeBytes:      v.Size,
		PreviousStatus: optional(string(v.PreviousStatus)),
		FailReason:     optional(v.Reason),
		Maintenance:    v.Maintenance,
		PreSnapshot:    v.PreSnapshot,
		PostSnapshot:   v.PostSnapshot,
		HookTimeout:    int64(v.HookTimeout().Seconds()),
		ActualBytes:    v.Allocated,
		LiveBytes:      v.Live,
		Chain: Chain{
			Layers: v.Chain.Layers, Shared: v.Chain.Shared, Unsummed: v.Chain.Unsummed, Tidying: v.Chain.Tidying, JournalBytes: v.Chain.Journal,
		},
		Clones:        append([]string{}, v.Clones...),
		FileSystems:   make([]FileSystem, len(v.FileSystems)),
		TakenOver:     takeovers(v.TakenOver),
		SnapshotUsage: make([]SnapshotUsage, len(v.Snapshots)),
	}
	for i, fs := range v.FileSystems {
		out.FileSystems[i] = FileSystem{fs.Partition, fs.Kind, fs.UUID, append([]string{}, fs.Twins...)}
	}
	for i, a := range v.Attachments {
		out.Attachments[i] = attachment(a)
	}
	for i, u := range v.Snapshots {
		out.SnapshotUsage[i] = SnapshotUsage{ID: u.ID.String(), Name: u.Name, Bytes: u.Bytes, Exclusive: known(u.Exclusive)}
	}
	if v.Chain.Failure != nil {
		out.Chain.Failure = optional(v.Chain.Failure.Error())
	}
	if s.config.VolumeURI != nil {
		out.URI = s.config.VolumeURI(v.Name)
	}
	return out
}

// gib is n bytes in GiB, rounded up.
func gib(n int64) int64 {
	if n <= 0 {
		return 0
	}
	return (n-1)/bytesPerGiB + 1
}

// known is n, or null for what is not known yet.
func known(n int64) *int64 {
	if n < 0 {
		return nil
	}
	return &n
}

// optional is s, or null for an empty text.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func optionalID(id layers.ID) *string {
	if id.IsZero() {
		return nil
	}
	return optional(id.String())
}

func operation(o catalog.Operation) Operation {
	findings := make([]Finding, len(o.Findings))
	for i, f := range o.Findings {
		findings[i] = Finding{optionalID(f.Layer), f.File, f.Offset, f.Expected, f.Found, f.Repaired, losses(f.Backups)}
	}
	return Operation{
		Findings:   findings,
		Damage:     o.Damage,
		Pruned:     pruned(o.Pruned),
		FullSpeed:  o.FullSpeed,
		ID:         o.ID.String(),
		Kind:       o.Kind,
		SubjectID:  o.Subject.String(),
		State:      string(o.State),
		Error:      optional(o.Error),
		Reason:     optional(o.Reason),
		Note:       optional(o.Note),
		WaitsFor:   optional(o.Waits),
		DoneBytes:  o.Done,
		TotalBytes: o.Total,
		StartedAt:  Time{o.Started},
		EndedAt:    Time{o.Ended},
	}
}
