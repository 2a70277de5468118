package agent

import (
	"context"
	"fmt"
	"time"

	"varve/agent/object"
	"varve/catalog"
)

// An insistence is how an operation that can go on waits for a target that is
// away.
type insistence struct {
	first time.Duration // the first pause; each next one is twice as long
	most  time.Duration // the longest pause
	limit time.Duration // without progress, after which it gives up
}

// usualInsistence sees a network through a long weekend, and asks a target that
// is away often enough that nobody waits long when it is back.
var usualInsistence = insistence{first: 30 * time.Second, most: 15 * time.Minute, limit: 72 * time.Hour}

// insist calls try, and again after pauses for as long as it fails because the
// target is away for now. Each try goes on where the one before ended. Any
// other error is final, and so is the end of ctx, whose cause it returns. A try
// that got further than the one before begins the patience anew.
func (a *Agent) insist(ctx context.Context, op *operation, t catalog.Target, try func() error) error {
	pause, since, done := a.insistence.first, time.Now(), int64(0)
	for {
		err := try()
		if err == nil || !object.Away(err) || ctx.Err() != nil {
			return err
		}
		record, _ := op.state()
		if record.Done > done {
			pause, since, done = a.insistence.first, time.Now(), record.Done
		}
		now := time.Now()
		if now.Add(pause).Sub(since) > a.insistence.limit {
			return fail(Unavailable, "given up after %s without progress: %w", now.Sub(since).Round(time.Second), err)
		}
		op.waits(fmt.Sprintf("target %s is away, tried again at %s: %v", t.Name, now.Add(pause).UTC().Format(time.DateTime), err))
		a.log.Warn("an operation waits for its target", "operation", record.ID, "kind", record.Kind, "target", t.Name, "pause", pause, "error", err)
		if err := rest(ctx, pause); err != nil {
			return err
		}
		op.waits("")
		pause = min(2*pause, a.insistence.most)
	}
}

// rest waits for that long, or returns the cause of the context's end.
func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
