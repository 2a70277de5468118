package agent

import (
	"context"
	"sync/atomic"

	"varve/agent/object"
	"varve/catalog"
	"varve/layers"
)

// considerate makes what an operation does with ctx make way for guests, for as
// long as the operation is not to go at full speed.
func (a *Agent) considerate(ctx context.Context, op *operation) context.Context {
	return object.WithTurn(ctx, func(ctx context.Context) (end func(), err error) {
		if op.full() {
			return func() {}, nil
		}
		return a.turn(ctx)
	})
}

// unasked makes what the daemon does with ctx by itself, for a target, make way
// for guests and for all who wait for that target.
func (a *Agent) unasked(ctx context.Context) context.Context {
	return object.WithTurn(object.WithClass(ctx, object.Upkeep), a.turn)
}

// full reports whether the operation goes at full speed.
func (o *operation) full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.record.FullSpeed
}

// SetFullSpeed says whether a running operation goes as fast as it can, or makes
// way for the users of volumes, which is the default. It holds at once, and when
// the daemon is started again. One that has ended is an Error of reason Conflict.
func (a *Agent) SetFullSpeed(ctx context.Context, id layers.ID, full bool) (catalog.Operation, error) {
	op := a.runningOperation(id)
	if op == nil {
		record, err := a.Operation(ctx, id)
		if err != nil {
			return catalog.Operation{}, err
		}
		return catalog.Operation{}, fail(Conflict, "operation %s has ended already: %s", id, record.State)
	}
	op.change(func(r *catalog.Operation) { r.FullSpeed = full })
	record, _ := op.state()
	if record.State != catalog.Running {
		return record, nil
	}
	return record, a.update(func(tx *catalog.Tx) error {
		return change(tx, catalog.Operations, id, func(r *catalog.Operation) {
			if r.State == catalog.Running {
				r.FullSpeed = full
			}
		})
	})
}

// easeEvery is how many bytes are written into a volume beside guests before
// they go to the disk: what the kernel has gathered goes there in one burst,
// at a time that nobody chose, and flushes of guests stand behind it.
const easeEvery = 8 << 20

// An easing is a volume that is filled beside guests. What is written goes to
// the disk while it is this operation's turn.
type easing struct {
	*layers.Volume
	a       *Agent
	op      *operation
	written atomic.Int64 // bytes since the last flush
}

// WriteAt writes, and now and then flushes.
func (e *easing) WriteAt(p []byte, off int64) (int, error) {
	n, err := e.Volume.WriteAt(p, off)
	if err == nil && e.written.Add(int64(n)) >= easeEvery && !e.op.full() && e.a.courtesy.disturbs() {
		e.written.Store(0)
		err = e.Volume.Flush()
	}
	return n, err
}

// pieces are work that is not cut into calls: each ends where the next begins.
type pieces struct{ done func() }

// next ends a piece and returns when the next may begin.
func (p *pieces) next(ctx context.Context, _ int) (err error) {
	p.end()
	p.done, err = object.TakeTurn(ctx)
	return err
}

// end ends the last piece.
func (p *pieces) end() {
	if p.done != nil {
		p.done()
		p.done = nil
	}
}
