package agent

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"varve/catalog"
)

// A1: whatever an operation asks of a target, and what it computes, waits for its
// turn, so that guests have theirs.
func TestOperationsTakeTurns(t *testing.T) {
	w, a := startWithTarget(t)
	var turns, requests atomic.Int64
	a.turn = func(context.Context) (func(), error) {
		turns.Add(1)
		return func() {}, nil
	}
	w.store(url("t1")).on(func(context.Context, string, string) error {
		requests.Add(1)
		return nil
	})
	createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, mib)

	ctx := t.Context()
	begun := func(op catalog.Operation, err error) catalog.Operation {
		t.Helper()
		return must(op, err)(t)
	}
	for _, c := range []struct {
		name  string
		begin func() catalog.Operation
	}{
		{"full backup", func() catalog.Operation {
			_, op, err := a.CreateBackup(ctx, NewBackup{Volume: "v", Name: "full"})
			return begun(op, err)
		}},
		{"incremental backup", func() catalog.Operation {
			write(t, a, "v", 2, 2*mib, 8192)
			_, op, err := a.CreateBackup(ctx, NewBackup{Volume: "v", Name: "more", Incremental: true})
			return begun(op, err)
		}},
		{"restore", func() catalog.Operation {
			_, op, err := a.RestoreBackup(ctx, "more", RestoreRequest{Name: "copy"})
			return begun(op, err)
		}},
		{"backup verify", func() catalog.Operation { return begun(a.VerifyBackup(ctx, "more", true)) }},
		{"target verify", func() catalog.Operation {
			return begun(a.VerifyTarget(ctx, "t1", VerifyRequest{Mode: "deep"}))
		}},
		{"prune", func() catalog.Operation { return begun(a.PruneTarget(ctx, "t1", Prune{})) }},
		{"check", func() catalog.Operation { return begun(a.CheckVolume(ctx, "v", false)) }},
	} {
		turns.Store(0)
		requests.Store(0)
		succeed(t, a, c.begin())
		if made, taken := requests.Load(), turns.Load(); taken < made || taken == 0 {
			t.Errorf("%s: %d turns for %d requests", c.name, taken, made)
		}
	}
}

// An operation that is told to go at full speed waits for no turn from then on,
// and goes on so under the next daemon.
func TestFullSpeed(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	a := must(Start(t.Context(), w.config(dir)))(t)
	addTarget(t, a, "t1")
	createVolume(t, a, "v", 4*mib)
	write(t, a, "v", 1, 0, mib)
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})

	// A pruning begins with the put of its session, and with nothing beside it.
	asked, answered := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var turns atomic.Int64
	a.turn = func(context.Context) (func(), error) {
		turns.Add(1)
		once.Do(func() {
			close(asked)
			<-answered
		})
		return func() {}, nil
	}
	reached := w.store(url("t1")).waitAt("list", 1)
	op := must(a.PruneTarget(t.Context(), "t1", Prune{}))(t)
	<-asked
	if op = must(a.SetFullSpeed(t.Context(), op.ID, true))(t); !op.FullSpeed {
		t.Errorf("operation: %+v", op)
	}
	close(answered)
	<-reached
	if n := turns.Load(); n != 1 {
		t.Errorf("%d turns, one before it was told and none since", n)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	w.store(url("t1")).on(nil)
	a = w.start(dir)
	if last := succeed(t, a, op); !last.FullSpeed {
		t.Errorf("under the next daemon: %+v", last)
	}
	_, err := a.SetFullSpeed(t.Context(), op.ID, false)
	wantError(t, err, Conflict, "ended already")
}
