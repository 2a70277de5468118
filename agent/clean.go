package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"varve/agent/repo"
	"varve/catalog"
	"varve/layers"
)

// kindClean is an operation that removes from a target what a backup stored
// that was canceled or failed, where the target did not do so at once. Its
// subject is that backup.
const kindClean = "backup clean"

// cleanTimeout is how long the end of a backup waits for its objects to go.
const cleanTimeout = 3 * time.Second

// A cleaning is the removal of what a backup has stored that did not come
// about.
type cleaning struct {
	a         *Agent
	target    catalog.Target
	state     cleaningState
	operation catalog.Operation // once it is recorded
}

type cleaningState struct {
	Target layers.ID
	Backup layers.ID
	Stored repo.Checkpoint
}

// now tries to remove everything at once, and reports whether it is gone.
func (c *cleaning) now(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	return c.try(ctx) == nil
}

func (c *cleaning) try(ctx context.Context) error {
	r, release, err := c.a.useTarget(ctx, c.target)
	if err != nil {
		return err
	}
	defer release()
	if err := r.Discard(ctx, c.state.Backup, c.state.Stored); err != nil {
		return targetError(c.target, "remove an unfinished backup from", err)
	}
	return nil
}

// record makes it an operation, in tx; begin begins that.
func (c *cleaning) record(tx *catalog.Tx) error {
	c.operation = catalog.Operation{
		ID: layers.NewID(), Kind: kindClean, Subject: c.state.Backup, State: catalog.Running, Started: time.Now().UTC(),
	}
	if err := catalog.Operations.Put(tx, c.operation); err != nil {
		return err
	}
	return putCheckpoint(tx, c.operation.ID, c.state)
}

// cleanUp makes a cleaning an operation and begins it; nil is nothing to do.
func (a *Agent) cleanUp(c *cleaning) error {
	if c == nil {
		return nil
	}
	if err := a.update(c.record); err != nil {
		return err
	}
	c.begin()
	return nil
}

// begin carries the operation out. One that cannot begin stays for the next
// start.
func (c *cleaning) begin() {
	release, err := c.a.holdTarget(c.target)
	if err != nil {
		c.a.log.Warn("an unfinished backup is removed later", "backup", c.state.Backup, "target", c.target.Name, "error", err)
		return
	}
	c.a.carryOn(c.operation, c.job(release))
}

func (c *cleaning) job(release func()) job {
	return job{
		kind:    kindClean,
		subject: c.state.Backup,
		state:   c.state,
		work: func(ctx context.Context, op *operation) error {
			return c.a.insist(ctx, op, c.target, func() error { return c.try(ctx) })
		},
		settle:  func(*catalog.Tx, error) error { return nil }, // what stays is left to pruning
		release: release,
	}
}

// resumeCleaning makes the job of a cleaning again.
func (a *Agent) resumeCleaning(op catalog.Operation, state []byte) (job, error) {
	c := &cleaning{a: a, operation: op}
	if err := json.Unmarshal(state, &c.state); err != nil {
		return job{}, fmt.Errorf("its checkpoint cannot be read: %w", err)
	}
	var err error
	if c.target, err = a.targetRecord(c.state.Target); err != nil {
		return job{}, err
	}
	release, err := a.holdTarget(c.target)
	if err != nil {
		return job{}, err
	}
	return c.job(release), nil
}
