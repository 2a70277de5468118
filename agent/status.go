package agent

import (
	"context"
	"time"

	"varve/catalog"
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
	Running   []catalog.Operation
	Warnings  []string // what an operator should look at, each a sentence
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
	return Status{}, fail(Internal, "not built yet")
}
