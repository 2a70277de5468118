package api

import (
	"context"

	"github.com/danielgtaylor/huma/v2"
)

type statusBody struct {
	Status Status `json:"status"`
}

func (s *Server) addStatus(h huma.API) {
	huma.Get(h, "/v1/status", func(ctx context.Context, _ *struct{}) (*answer[statusBody], error) {
		st, err := s.config.Agent.Status(ctx)
		if err != nil {
			return nil, answerFor(err)
		}
		out := Status{
			State: st.State, PID: st.PID, Version: s.config.Version, StartedAt: Time{st.Started},
			FreeBytes: st.Free, CapacityBytes: st.Capacity,
			Volumes: st.Volumes, InUse: st.InUse, Snapshots: st.Snapshots, Backups: st.Backups,
			Targets:  make([]TargetStatus, len(st.Targets)),
			Running:  make([]Operation, len(st.Running)),
			Mounts:   s.mounts(),
			Warnings: append([]string{}, st.Warnings...),
		}
		for i, t := range st.Targets {
			out.Targets[i] = TargetStatus{Target: target(t.Target), Backups: t.Backups, Error: optional(t.Error)}
		}
		for i, o := range st.Running {
			out.Running[i] = operation(o)
		}
		return &answer[statusBody]{statusBody{out}}, nil
	})
}
