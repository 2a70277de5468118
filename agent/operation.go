package agent

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync"
	"time"

	"varve/agent/object"
	"varve/catalog"
	"varve/layers"
)

// maxHistory is how many ended operations the catalog remembers.
const maxHistory = 1000

// A job is an operation to be started.
type job struct {
	kind    string
	subject layers.ID

	// begin is recorded together with the operation. It may find that the job
	// is not possible; then nothing is recorded.
	begin func(*catalog.Tx) error

	// state, if not nil, is the operation's first checkpoint: it goes on under
	// the next daemon. See checkpoint.go.
	state any

	// work does it. The context ends when the job is canceled or the daemon
	// stops; work then returns soon.
	work func(context.Context, *operation) error

	// settle records what the outcome means, in one transaction with the
	// operation's own end. err is what work returned, or why it was stopped.
	settle func(tx *catalog.Tx, err error) error

	// release gives back what the job has claimed. It is called exactly once,
	// also if the job could not be started.
	release func()
}

// An operation is a job that runs.
type operation struct {
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed after everything is recorded and released

	mu      sync.Mutex
	record  catalog.Operation
	changed chan struct{} // closed at the next change
}

// state returns the record as it stands, and what closes when it changes.
func (o *operation) state() (catalog.Operation, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.record, o.changed
}

func (o *operation) change(f func(*catalog.Operation)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f(&o.record)
	close(o.changed)
	o.changed = make(chan struct{})
}

// progress says that done of total bytes are through. It is kept in memory
// only.
func (o *operation) progress(done, total int64) {
	o.change(func(r *catalog.Operation) { r.Done, r.Total = done, total })
}

// note keeps something that whoever asked should know.
func (o *operation) note(text string) {
	o.change(func(r *catalog.Operation) { r.Note = text })
}

// addNote is note beside what was noted before.
func (o *operation) addNote(text string) {
	o.change(func(r *catalog.Operation) {
		if r.Note != "" {
			text = r.Note + "; " + text
		}
		r.Note = text
	})
}

// waits says what the job waits for before it goes on; empty: for nothing.
func (o *operation) waits(text string) {
	o.change(func(r *catalog.Operation) { r.Waits = text })
}

// start records the job and begins it.
func (a *Agent) start(j job) (catalog.Operation, error) {
	record := catalog.Operation{
		ID: layers.NewID(), Kind: j.kind, Subject: j.subject, State: catalog.Running, Started: time.Now().UTC(),
	}
	ctx, op := a.admitOperation(record)
	if op == nil {
		j.release()
		return catalog.Operation{}, errStopped
	}
	err := a.update(func(tx *catalog.Tx) error {
		if err := catalog.Operations.Put(tx, record); err != nil {
			return err
		}
		if j.state != nil {
			if err := putCheckpoint(tx, record.ID, j.state); err != nil {
				return err
			}
		}
		return j.begin(tx)
	})
	if err != nil {
		a.forget(op, j)
		return catalog.Operation{}, err
	}
	go a.carryOut(ctx, op, j)
	return record, nil
}

// carryOn begins a job whose operation is recorded already.
func (a *Agent) carryOn(record catalog.Operation, j job) {
	ctx, op := a.admitOperation(record)
	if op == nil {
		j.release()
		return
	}
	go a.carryOut(ctx, op, j)
}

// admitOperation takes an operation among those that run; nil if the agent is
// closed.
func (a *Agent) admitOperation(record catalog.Operation) (context.Context, *operation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, nil
	}
	ctx, cancel := context.WithCancelCause(object.WithClass(a.ctx, object.Copy))
	op := &operation{cancel: cancel, ended: make(chan struct{}), changed: make(chan struct{}), record: record}
	a.work.Add(1)
	a.running[record.ID] = op
	return ctx, op
}

// carryOut runs a job to its end and records that.
func (a *Agent) carryOut(ctx context.Context, op *operation, j job) {
	defer a.forget(op, j)
	err := j.work(a.considerate(ctx, op), op)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	if j.state != nil && errors.Is(err, errStopped) {
		return // the next daemon goes on
	}
	last, _ := op.state()
	last.Waits, last.Ended = "", time.Now().UTC()
	last.State = catalog.Succeeded
	if err != nil {
		last.State, last.Error, last.Reason = catalog.Failed, shorten(err.Error()), string(ReasonOf(err))
	}
	if errors.Is(err, errCanceled) {
		last.State = catalog.Canceled
	}
	recordErr := a.update(func(tx *catalog.Tx) error {
		if err := catalog.Operations.Put(tx, last); err != nil {
			return err
		}
		if err := catalog.Checkpoints.Delete(tx, last.ID); err != nil {
			return err
		}
		return j.settle(tx, err)
	})
	if recordErr != nil {
		// The catalog still says that it runs; the next start puts that right.
		a.log.Error("the end of an operation cannot be recorded",
			"operation", last.ID, "kind", last.Kind, "error", recordErr, "outcome", err)
		last.State, last.Error = catalog.Failed, "it cannot be recorded: "+recordErr.Error()
	}
	if err != nil {
		a.log.Warn("an operation did not succeed", "operation", last.ID, "kind", last.Kind, "subject", last.Subject, "error", err)
	}
	op.change(func(r *catalog.Operation) { *r = last })
}

// forget releases what a job has claimed and takes it off the list of those
// that run.
func (a *Agent) forget(op *operation, j job) {
	defer a.work.Done()
	j.release()
	op.cancel(nil)
	record, _ := op.state()
	a.mu.Lock()
	delete(a.running, record.ID)
	a.mu.Unlock()
	close(op.ended)
}

// stopped reports whether the daemon's end is why a context ended.
func stopped(ctx context.Context) bool { return errors.Is(context.Cause(ctx), errStopped) }

// place waits until few enough operations move data. The caller gives the
// place back.
func (a *Agent) place(ctx context.Context) (leave func(), err error) {
	select {
	case a.moving <- struct{}{}:
		return func() { <-a.moving }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// runningOperation returns the operation of that id if it runs.
func (a *Agent) runningOperation(id layers.ID) *operation {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running[id]
}

// Operations returns the running and the latest ended operations, newest
// first.
func (a *Agent) Operations(ctx context.Context) ([]catalog.Operation, error) {
	records, err := list(a, catalog.Operations)
	if err != nil {
		return nil, err
	}
	slices.Reverse(records)
	for i, record := range records {
		if op := a.runningOperation(record.ID); op != nil {
			records[i], _ = op.state()
		}
	}
	return records, nil
}

// Operation returns one operation as it stands.
func (a *Agent) Operation(ctx context.Context, id layers.ID) (catalog.Operation, error) {
	if op := a.runningOperation(id); op != nil {
		record, _ := op.state()
		return record, nil
	}
	var record catalog.Operation
	err := a.view(func(tx *catalog.Tx) (err error) {
		record, err = catalog.Operations.Get(tx, id)
		return err
	})
	if ReasonOf(err) == NotFound {
		err = fail(NotFound, "no operation has the id %s: the last %d are remembered", id, maxHistory)
	}
	return record, err
}

// WatchOperation yields the operation as it stands and again after changes,
// the last time when it has ended. It ends early when ctx does, and yields
// nothing if there is no such operation.
func (a *Agent) WatchOperation(ctx context.Context, id layers.ID) iter.Seq[catalog.Operation] {
	return func(yield func(catalog.Operation) bool) {
		op := a.runningOperation(id)
		if op == nil {
			if record, err := a.Operation(ctx, id); err == nil {
				yield(record)
			}
			return
		}
		for {
			record, changed := op.state()
			if record.State != catalog.Running {
				<-op.ended // So that what it claimed is free for whoever waited.
			}
			if !yield(record) || record.State != catalog.Running {
				return
			}
			select {
			case <-changed:
			case <-op.ended:
				if last, _ := op.state(); last.State == catalog.Running {
					return // It could not be recorded even as begun, or goes on under the next daemon.
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// CancelOperation asks a running operation to stop and returns when it has. One
// that has ended already is an Error of reason Conflict.
func (a *Agent) CancelOperation(ctx context.Context, id layers.ID) error {
	op := a.runningOperation(id)
	if op == nil {
		record, err := a.Operation(ctx, id)
		if err != nil {
			return err
		}
		return fail(Conflict, "operation %s has ended already: %s", id, record.State)
	}
	op.cancel(errCanceled)
	select {
	case <-op.ended:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// trimHistory removes the oldest ended operations.
func (a *Agent) trimHistory(tx *catalog.Tx) error {
	var ended []layers.ID
	for _, record := range all(a, tx, catalog.Operations) {
		if record.State != catalog.Running {
			ended = append(ended, record.ID)
		}
	}
	for _, id := range ended[:max(0, len(ended)-maxHistory)] {
		if err := catalog.Operations.Delete(tx, id); err != nil {
			return err
		}
	}
	return nil
}
