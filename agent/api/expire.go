package api

import (
	"context"

	"varve/agent"
)

type (
	newExpiryBody struct {
		Expire NewExpiry `json:"expire"`
	}
	expiryBody struct {
		Decisions  []Decision  `json:"decisions"`
		Operations []Operation `json:"operations" doc:"the deletions that have begun"`
	}
)

// NewExpiry says which backups of each volume in each target to keep.
type NewExpiry struct {
	VolumeID    string `json:"volume_id,omitempty" doc:"id or name, also of a volume that is gone; every volume if left out"`
	Container   string `json:"container,omitempty" doc:"id or name of a target; every target if left out"`
	KeepLast    int    `json:"keep_last,omitempty" minimum:"0"`
	KeepHourly  int    `json:"keep_hourly,omitempty" minimum:"0" doc:"hours of which the newest backup is kept, counted from the newest that has one"`
	KeepDaily   int    `json:"keep_daily,omitempty" minimum:"0"`
	KeepWeekly  int    `json:"keep_weekly,omitempty" minimum:"0"`
	KeepMonthly int    `json:"keep_monthly,omitempty" minimum:"0"`
	KeepYearly  int    `json:"keep_yearly,omitempty" minimum:"0"`
	DryRun      bool   `json:"dry_run,omitempty" doc:"decide, and delete nothing"`
}

// A Decision is what becomes of a backup.
type Decision struct {
	Backup  Backup   `json:"backup"`
	Keep    bool     `json:"keep"`
	Reasons []string `json:"reasons" doc:"why it is kept"`
}

func (s *Server) expire(ctx context.Context, in *struct{ Body newExpiryBody }) (*answer[expiryBody], error) {
	n := in.Body.Expire
	decisions, begun, err := s.config.Agent.ExpireBackups(ctx, agent.Expiry{
		Volume: n.VolumeID, Target: n.Container, DryRun: n.DryRun,
		Keep: agent.Retention{
			Last: n.KeepLast, Hourly: n.KeepHourly, Daily: n.KeepDaily,
			Weekly: n.KeepWeekly, Monthly: n.KeepMonthly, Yearly: n.KeepYearly,
		},
	})
	if err != nil {
		return nil, answerFor(err)
	}
	body := expiryBody{Decisions: make([]Decision, len(decisions)), Operations: make([]Operation, len(begun))}
	for i, d := range decisions {
		body.Decisions[i] = Decision{backup(d.Backup), d.Keep(), append([]string{}, d.Reasons...)}
	}
	for i, o := range begun {
		body.Operations[i] = operation(o)
	}
	return &answer[expiryBody]{body}, nil
}
