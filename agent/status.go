package agent

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"varve/catalog"
	"varve/layers"
)

// Status is the daemon at a glance.
type Status struct {
	State     string // the state folder
	PID       int
	Started   time.Time
	Free      int64 // bytes free in the file system of the state folder
	Capacity  int64 // bytes it has
	Volumes   int
	InUse     int // volumes with attachments
	Snapshots int // those that users made
	Backups   int
	Targets   []TargetStatus
	Running   []catalog.Operation // newest first
	Warnings  []string            // what an operator should look at, each a sentence
}

// TargetStatus is a target and whether it answers.
type TargetStatus struct {
	catalog.Target
	Backups int
	Error   string // why it does not answer; empty if it does
}

// Status looks at everything. Targets that do not answer within a few seconds
// count as away.
func (a *Agent) Status(ctx context.Context) (Status, error) {
	s := Status{State: a.config.State, PID: os.Getpid(), Started: a.started}
	volumes, err := a.Volumes(ctx)
	if err != nil {
		return Status{}, err
	}
	s.Volumes = len(volumes)
	for _, v := range volumes {
		if len(v.Attachments) > 0 {
			s.InUse++
		}
		if v.Chain.Failure != nil {
			s.warn("Volume %s (%s) takes no more writes: %v. When the disk is well, start the daemon again.", v.Name, v.ID, v.Chain.Failure)
		}
		if failed(v.Status) {
			s.warn("Volume %s (%s) is in status %s: %s.", v.Name, v.ID, v.Status, v.Reason)
		}
	}
	if err := a.catalog.Failure(); err != nil {
		s.warn("The disk of the state folder failed: %v. Volumes can be read. When the disk is well, start the daemon again.", err)
	}
	snapshots, err := a.Snapshots(ctx, "", false)
	if err != nil {
		return Status{}, err
	}
	s.Snapshots = len(snapshots)
	operations, err := a.Operations(ctx)
	if err != nil {
		return Status{}, err
	}
	for _, op := range operations {
		if op.State == catalog.Running {
			s.Running = append(s.Running, op)
		}
	}
	if err := a.addTargets(ctx, &s); err != nil {
		return Status{}, err
	}
	r, err := roomOf(s.State)
	if err != nil {
		return Status{}, err
	}
	s.Free, s.Capacity = r.free, r.capacity
	if warning := a.warnRoom(time.Now(), r); warning != "" {
		s.Warnings = append(s.Warnings, warning)
	}
	return s, nil
}

func (s *Status) warn(format string, args ...any) {
	s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...))
}

// addTargets asks all targets at once whether they are there.
func (a *Agent) addTargets(ctx context.Context, s *Status) error {
	targets, err := a.Targets(ctx)
	if err != nil {
		return err
	}
	backups, err := list(a, catalog.Backups)
	if err != nil {
		return err
	}
	s.Backups = len(backups)
	count := map[layers.ID]int{}
	for _, b := range backups {
		count[b.TargetID]++
	}
	s.Targets = make([]TargetStatus, len(targets))
	var wg sync.WaitGroup
	for i, t := range targets {
		s.Targets[i] = TargetStatus{Target: t, Backups: count[t.ID]}
		wg.Go(func() {
			if err := a.probe(ctx, t); err != nil {
				s.Targets[i].Error = err.Error()
			}
		})
	}
	wg.Wait()
	for _, t := range s.Targets {
		if t.Error != "" {
			s.warn("Target %s (%s) cannot be used: %s.", t.Name, t.URL, t.Error)
		}
		s.Warnings = append(s.Warnings, a.leftKeys(t.Target)...)
		if v := t.Verified; v.Damage > 0 {
			s.warn("Target %s was verified at %s: %d places are damaged. See varve operation show %s, and try varve target verify %s --mode %s --repair.",
				t.Name, v.Ended.Format(time.DateTime), v.Damage, v.Operation, t.Name, v.Mode)
		}
	}
	return nil
}
