package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"varve/catalog"
	"varve/layers"
)

// An operation that a daemon leaves running, because it is stopped or dies,
// goes on under the next one if its job keeps checkpoints:
//
//	start    job.state is recorded with the operation
//	work     calls checkpoint whenever it got further
//	stop     the operation and its subjects stay as they are; a crash is no different
//	Start    resume makes the job anew from the operation's record and its last state
//	end      the checkpoint goes in the transaction that records the end
//
// So work returns soon when its context ends with errStopped, and tidies
// nothing up then. An operation whose job cannot be made again ends like those
// that keep no checkpoints.

// resumed returns what makes the job of an operation of that kind anew, or nil
// for kinds that do not go on. It is called with the volumes open and before
// any request; it claims what the job needs and brings the states of the
// job's subjects in line, since the job's begin is not called. With an error
// nothing stays claimed.
func (a *Agent) resumed(kind string) func(op catalog.Operation, state []byte) (job, error) {
	switch kind {
	case kindVerifyTarget:
		return a.resumeVerification
	case kindBackup:
		return a.resumeBackup
	case kindRestore:
		return a.resumeRestore
	case kindDelete:
		return a.resumeDelete
	case kindClean:
		return a.resumeCleaning
	case kindPrune:
		return a.resumePrune
	}
	return nil
}

// checkpoint records how far an operation got, with what its record says by
// now. state is kept as JSON; it may take some 30 KB.
func (a *Agent) checkpoint(op *operation, state any) error {
	record, _ := op.state()
	return a.update(func(tx *catalog.Tx) error {
		return errors.Join(catalog.Operations.Put(tx, record), putCheckpoint(tx, record.ID, state))
	})
}

func putCheckpoint(tx *catalog.Tx, op layers.ID, state any) error {
	text, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode a checkpoint: %w", err)
	}
	return catalog.Checkpoints.Put(tx, catalog.Checkpoint{Operation: op, State: text, Saved: time.Now().UTC()})
}

// A left is an operation that the daemon before left running and that may go on.
type left struct {
	operation  catalog.Operation
	checkpoint catalog.Checkpoint
}

// leftRunning returns the operations that may go on.
func (a *Agent) leftRunning() ([]left, error) {
	var found []left
	err := a.view(func(tx *catalog.Tx) error {
		for _, c := range all(a, tx, catalog.Checkpoints) {
			op, err := catalog.Operations.Get(tx, c.Operation)
			if err == nil && op.State == catalog.Running && a.resumed(op.Kind) != nil {
				found = append(found, left{op, c})
			}
		}
		return nil
	})
	return found, err
}

// goOn makes the jobs of operations anew and begins to carry them out. It
// returns those that cannot go on, each with the reason in its record.
func (a *Agent) goOn(found []left) (cut []catalog.Operation) {
	for _, l := range found {
		op := l.operation
		j, err := a.resumed(op.Kind)(op, l.checkpoint.State)
		if err != nil {
			a.log.Error("an operation that was left running cannot go on", "operation", op.ID, "kind", op.Kind, "error", err)
			op.Error = stoppedReason + ". It cannot go on: " + err.Error()
			cut = append(cut, op)
			continue
		}
		a.log.Info("an operation that was left running goes on", "operation", op.ID, "kind", op.Kind, "subject", op.Subject)
		a.carryOn(op, j)
	}
	return cut
}
