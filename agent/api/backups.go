package api

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"varve/agent"
	"varve/catalog"
)

type (
	backupBody struct {
		Backup Backup `json:"backup"`
	}
	backupsBody struct {
		Backups []Backup `json:"backups"`
	}
	newBackupBody struct {
		Backup NewBackup `json:"backup"`
	}
	begunBackup struct {
		Backup    Backup    `json:"backup"`
		Operation Operation `json:"operation"`
	}
	backupChangeBody struct {
		Backup BackupChange `json:"backup"`
	}
	newRestoreBody struct {
		Restore NewRestore `json:"restore"`
	}
	begunRestore struct {
		Restore   Restore   `json:"restore"`
		Operation Operation `json:"operation"`
	}
	newVerifyBody struct {
		Verify NewVerify `json:"verify"`
	}
	operationBody struct {
		Operation Operation `json:"operation"`
	}
	backupRef struct {
		Backup string `path:"backup" doc:"id or name"`
	}
)

// BackupChange says what of a backup to change. What is left out stays.
type BackupChange struct {
	Name          *string           `json:"name,omitempty"`
	Description   *string           `json:"description,omitempty"`
	Metadata      map[string]string `json:"metadata,omitempty" doc:"all of it"`
	NoMetadata    bool              `json:"no_metadata,omitempty" doc:"remove all metadata first"`
	SetMetadata   map[string]string `json:"set_metadata,omitempty" doc:"these keys; the others stay"`
	UnsetMetadata []string          `json:"unset_metadata,omitempty" doc:"keys to remove; those that are not there are passed over"`
	Protected     *bool             `json:"protected,omitempty" doc:"it cannot be deleted, by no host"`
}

// NewVerify says how to check a backup.
type NewVerify struct {
	Deep bool `json:"deep,omitempty" doc:"read all its data"`
}

func (s *Server) addBackups(h huma.API) {
	huma.Get(h, "/v1/backups", func(ctx context.Context, in *Filter) (*answer[backupsBody], error) {
		views, err := s.config.Agent.Backups(ctx)
		if err != nil {
			return nil, answerFor(err)
		}
		body := backupsBody{Backups: make([]Backup, len(views))}
		for i, v := range views {
			body.Backups[i] = backup(v)
		}
		if body.Backups, err = FilterBackups(body.Backups, *in); err != nil {
			return nil, answerFor(err)
		}
		return &answer[backupsBody]{body}, nil
	})
	huma.Post(h, "/v1/backups", func(ctx context.Context, in *struct{ Body newBackupBody }) (*answer[begunBackup], error) {
		n, err := newBackup(in.Body.Backup)
		if err != nil {
			return nil, answerFor(err)
		}
		v, o, err := s.config.Agent.CreateBackup(ctx, n)
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[begunBackup]{begunBackup{backup(v), operation(o)}}, nil
	}, accepted)
	huma.Get(h, "/v1/backups/{backup}", func(ctx context.Context, in *backupRef) (*answer[backupBody], error) {
		v, err := s.config.Agent.Backup(ctx, in.Backup)
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[backupBody]{backupBody{backup(v)}}, nil
	})
	huma.Delete(h, "/v1/backups/{backup}", func(ctx context.Context, in *struct {
		Backup string `path:"backup" doc:"id or name"`
		Force  bool   `query:"force" doc:"also if incremental backups depend on it; they stay whole"`
	}) (*answer[operationBody], error) {
		return begun(s.config.Agent.DeleteBackup(ctx, in.Backup, in.Force))
	}, accepted)
	huma.Put(h, "/v1/backups/{backup}", func(ctx context.Context, in *struct {
		Backup string `path:"backup" doc:"id or name"`
		Body   backupChangeBody
	}) (*answer[backupBody], error) {
		v, err := s.config.Agent.ChangeBackup(ctx, in.Backup, backupChange(in.Body.Backup))
		if err != nil {
			return nil, answerFor(err)
		}
		return &answer[backupBody]{backupBody{backup(v)}}, nil
	})
	huma.Post(h, "/v1/backups/expire", s.expire, accepted)
	huma.Post(h, "/v1/backups/{backup}/restore", s.restore, accepted)
	huma.Post(h, "/v1/backups/{backup}/verify", func(ctx context.Context, in *struct {
		Backup string `path:"backup" doc:"id or name"`
		Body   newVerifyBody
	}) (*answer[operationBody], error) {
		return begun(s.config.Agent.VerifyBackup(ctx, in.Backup, in.Body.Verify.Deep))
	}, accepted)
}

func (s *Server) restore(ctx context.Context, in *struct {
	Backup string `path:"backup" doc:"id or name"`
	Body   newRestoreBody
}) (*answer[begunRestore], error) {
	source, err := s.config.Agent.Backup(ctx, in.Backup)
	if err != nil {
		return nil, answerFor(err)
	}
	n := in.Body.Restore
	request := agent.RestoreRequest{Volume: text(n.VolumeID), Name: text(n.Name), Force: n.Force, Adopt: n.Adopt, AllowDamaged: n.AllowDamaged}
	v, o, err := s.config.Agent.RestoreBackup(ctx, source.ID.String(), request)
	if err != nil {
		return nil, answerFor(err)
	}
	begun := Restore{BackupID: source.ID.String(), VolumeID: v.ID.String(), VolumeName: v.Name}
	return &answer[begunRestore]{begunRestore{begun, operation(o)}}, nil
}

// begun answers with an operation that goes on.
func begun(o catalog.Operation, err error) (*answer[operationBody], error) {
	if err != nil {
		return nil, answerFor(err)
	}
	return &answer[operationBody]{operationBody{operation(o)}}, nil
}

func backupChange(c BackupChange) agent.BackupChange {
	out := agent.BackupChange{
		Name: c.Name, Description: c.Description, Properties: c.Metadata, Set: c.SetMetadata, Unset: c.UnsetMetadata, Protected: c.Protected,
	}
	if c.NoMetadata && out.Properties == nil {
		out.Properties = map[string]string{}
	}
	return out
}

// newBackup takes the name and the description under either of their words.
func newBackup(n NewBackup) (agent.NewBackup, error) {
	name, err := either("name", n.Name, "display_name", n.DisplayName)
	if err != nil {
		return agent.NewBackup{}, err
	}
	description, err := either("description", n.Description, "display_description", n.DisplayDescription)
	if err != nil {
		return agent.NewBackup{}, err
	}
	return agent.NewBackup{
		Volume:      n.VolumeID,
		Target:      text(n.Container),
		Name:        name,
		Description: description,
		Snapshot:    text(n.SnapshotID),
		Force:       n.Force,
		Incremental: n.Incremental,
		Quiesce:     quiesce(n.Quiesce),
		Compression: n.Compression,
		Properties:  n.Metadata,
	}, nil
}

func either(nameA string, a *string, nameB string, b *string) (string, error) {
	first, second := text(a), text(b)
	if first == "" {
		return second, nil
	}
	if second != "" && second != first {
		return "", invalid(nameA + " and " + nameB + " differ: give one")
	}
	return first, nil
}

// text is *s, or empty for null.
func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func backup(v agent.BackupView) Backup {
	return Backup{
		ID:                  v.ID.String(),
		Name:                v.Name,
		Description:         optional(v.Description),
		Status:              string(v.Status),
		FailReason:          optional(v.FailReason),
		Size:                gib(v.Size),
		VolumeID:            v.VolumeID.String(),
		SnapshotID:          optionalID(v.SnapshotID),
		Container:           v.TargetName,
		IsIncremental:       v.Incremental(),
		HasDependentBackups: v.HasDependents,
		ObjectCount:         v.ObjectCount,
		DataTimestamp:       Time{v.DataTimestamp},
		CreatedAt:           Time{v.Created},
		UpdatedAt:           Time{v.Updated},
		VolumeName:          v.VolumeName,
		TempSnapshotID:      optionalID(v.TempSnapshotID),
		ParentID:            optionalID(v.ParentID),
		TargetID:            v.TargetID.String(),
		TargetURL:           v.TargetURL,
		SizeBytes:           v.Size,
		LogicalBytes:        v.Logical,
		ChangedBytes:        v.Changed,
		StoredBytes:         v.Stored,
		Protected:           v.Protected,
		DurationMS:          v.Duration.Milliseconds(),
		DoneBytes:           v.Done,
		TotalBytes:          v.Total,
		Host:                optional(v.Host),
		Forks:               Forks(v.Forks),
		Damage:              optional(v.Damage),
		Metadata:            properties(v.Properties),
	}
}

// properties is an empty map for none: never null.
func properties(p map[string]string) map[string]string {
	if p == nil {
		return map[string]string{}
	}
	return p
}
