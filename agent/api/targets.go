package api

import (
	"context"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"varve/agent"
	"varve/catalog"
)

type (
	targetBody struct {
		Target Target `json:"target"`
	}
	targetsBody struct {
		Targets []Target `json:"targets"`
	}
	addedTargetBody struct {
		Target      Target  `json:"target"`
		RecoveryKey *string `json:"recovery_key,omitempty" doc:"opens the repository, if that was made now; told once and kept nowhere"`
	}
	newTargetBody struct {
		Target NewTarget `json:"target"`
	}
	targetChangeBody struct {
		Target TargetChange `json:"target"`
	}
	newTargetVerifyBody struct {
		Verify NewTargetVerify `json:"verify"`
	}
	targetRef struct {
		Target string `path:"target" doc:"id or name"`
	}
)

func (s *Server) addTargets(h huma.API) {
	huma.Get(h, "/v1/targets", func(ctx context.Context, _ *struct{}) (*answer[targetsBody], error) {
		all, err := s.config.Agent.Targets(ctx)
		if err != nil {
			return nil, answerFor(err)
		}
		body := targetsBody{Targets: make([]Target, len(all))}
		for i, t := range all {
			body.Targets[i] = target(t)
		}
		return &answer[targetsBody]{body}, nil
	})
	huma.Post(h, "/v1/targets", func(ctx context.Context, in *struct{ Body newTargetBody }) (*answer[addedTargetBody], error) {
		n := in.Body.Target
		added, err := s.config.Agent.AddTarget(ctx, agent.NewTarget{
			Name: n.Name, URL: n.URL, Passphrase: n.Passphrase, KeyFile: n.KeyFile, NoEncryption: n.NoEncryption, Compression: n.Compression, Env: n.Credentials,
			Settings: targetSettings(n.TargetChange),
		})
		if err != nil {
			return nil, answerFor(err)
		}
		body := addedTargetBody{Target: target(added.Target)}
		if added.RecoveryKey != "" {
			body.RecoveryKey = &added.RecoveryKey
		}
		return &answer[addedTargetBody]{body}, nil
	}, created)
	huma.Get(h, "/v1/targets/{target}", func(ctx context.Context, in *targetRef) (*answer[targetBody], error) {
		return targetAnswer(s.config.Agent.Target(ctx, in.Target))
	})
	huma.Put(h, "/v1/targets/{target}", func(ctx context.Context, in *struct {
		Target string `path:"target" doc:"id or name"`
		Body   targetChangeBody
	}) (*answer[targetBody], error) {
		c := in.Body.Target
		return targetAnswer(s.config.Agent.ChangeTarget(ctx, in.Target, targetSettings(c), c.Credentials))
	})
	huma.Delete(h, "/v1/targets/{target}", func(ctx context.Context, in *targetRef) (*struct{}, error) {
		return nil, answerFor(s.config.Agent.RemoveTarget(ctx, in.Target))
	})
	s.addPrune(h)
	huma.Post(h, "/v1/targets/{target}/sync", func(ctx context.Context, in *targetRef) (*answer[targetBody], error) {
		if err := s.config.Agent.SyncTarget(ctx, in.Target); err != nil {
			return nil, answerFor(err)
		}
		return targetAnswer(s.config.Agent.Target(ctx, in.Target))
	})
	huma.Post(h, "/v1/targets/{target}/verify", func(ctx context.Context, in *struct {
		Target string `path:"target" doc:"id or name"`
		Body   newTargetVerifyBody
	}) (*answer[operationBody], error) {
		n := in.Body.Verify
		return begun(s.config.Agent.VerifyTarget(ctx, in.Target, agent.VerifyRequest{
			Mode: n.Mode, Samples: n.Samples, MaxRate: n.MaxRate, Repair: n.Repair, OlderThan: time.Duration(n.OlderThan) * time.Second,
		}))
	}, accepted)
}

func targetAnswer(t catalog.Target, err error) (*answer[targetBody], error) {
	if err != nil {
		return nil, answerFor(err)
	}
	return &answer[targetBody]{targetBody{target(t)}}, nil
}

func target(t catalog.Target) Target {
	return Target{
		ID: t.ID.String(), RepositoryID: t.RepositoryID.String(), Name: t.Name, URL: t.URL, Encrypted: t.Encrypted,
		CreatedAt: Time{t.Created}, SyncedAt: Time{t.Synced}, VerifyEvery: int64(t.VerifyEvery / time.Second), VerifyRate: t.VerifyRate, Verified: verified(t.Verified),
		MaxUpload: t.MaxUpload, MaxDownload: t.MaxDownload, MaxRequests: t.MaxRequests, CAFile: optional(t.CAFile), Proxy: optional(t.Proxy),
	}
}

func targetSettings(c TargetChange) agent.TargetSettings {
	settings := agent.TargetSettings{
		MaxUpload: c.MaxUpload, MaxDownload: c.MaxDownload, MaxRequests: c.MaxRequests, CAFile: c.CAFile, Proxy: c.Proxy, VerifyRate: c.VerifyRate,
	}
	if c.VerifyEvery != nil {
		every := time.Duration(*c.VerifyEvery) * time.Second
		settings.VerifyEvery = &every
	}
	return settings
}

// verified is nil if there was no verification.
func verified(v catalog.Verification) *Verification {
	if v.Ended.IsZero() {
		return nil
	}
	return &Verification{
		OperationID: v.Operation.String(), Mode: v.Mode, EndedAt: Time{v.Ended},
		Backups: v.Backups, Packs: v.Packs, Read: v.Read, OldestAt: Time{v.Oldest}, Damage: v.Damage,
	}
}

func losses(all []catalog.Loss) []Loss {
	out := make([]Loss, len(all))
	for i, l := range all {
		out[i] = Loss{BackupID: l.BackupID.String(), Name: l.Name, VolumeName: l.VolumeName, Bytes: l.Bytes, Ranges: make([]Range, len(l.Ranges))}
		for j, r := range l.Ranges {
			out[i].Ranges[j] = Range{r.Off, r.Len}
		}
	}
	return out
}
