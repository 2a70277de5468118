package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"varve/catalog"
)

// startPolling starts a daemon that asks its targets all the time.
func startPolling(t *testing.T, w *world) *Agent {
	t.Helper()
	c := w.config(t.TempDir())
	c.PollInterval = time.Millisecond
	a := must(Start(t.Context(), c))(t)
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// until waits for something that happens by itself.
func until(t *testing.T, what string, happened func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !happened() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s does not happen", what)
		}
	}
}

func backupNames(t *testing.T, a *Agent) (names []string) {
	t.Helper()
	for _, b := range must(a.Backups(t.Context()))(t) {
		names = append(names, b.Name+" "+string(b.Status))
	}
	slices.Sort(names)
	return names
}

// C2: what another host adds and deletes is seen without asking, and nothing
// is read of a backup that is known.
func TestPoll(t *testing.T) {
	w := newWorld(t)
	here, other := startPolling(t, w), w.start(t.TempDir())
	for _, a := range []*Agent{here, other} {
		addTarget(t, a, "t1")
	}
	createVolume(t, other, "v", mib)
	write(t, other, "v", 1, 0, mib)
	first := backUp(t, other, NewBackup{Volume: "v", Name: "first"})
	until(t, "that the first appears", func() bool { return slices.Equal(backupNames(t, here), []string{"first available"}) })

	var lists, reads atomic.Int64
	w.store(url("t1")).on(func(_ context.Context, op, name string) error {
		switch {
		case op == "list":
			lists.Add(1)
		case strings.Contains(name, "/b/"):
			reads.Add(1)
		}
		return nil
	})
	until(t, "that it polls on", func() bool { return lists.Load() > 5 })
	if reads.Load() > 1 { // The poll that was under way may have read it.
		t.Errorf("%d roots were read by %d polls of what is known", reads.Load(), lists.Load())
	}
	backUp(t, other, NewBackup{Volume: "v", Name: "second", Incremental: true})
	succeed(t, other, must(other.DeleteBackup(t.Context(), first.ID.String(), true))(t))
	until(t, "that the first goes and the second appears", func() bool {
		return slices.Equal(backupNames(t, here), []string{"second available"})
	})
}

// C2: a target that is away is told once, loses nothing, and can be removed
// while a poll waits for it.
func TestPollOfATargetThatIsAway(t *testing.T) {
	w := newWorld(t)
	a := startPolling(t, w)
	addTarget(t, a, "t1")
	createVolume(t, a, "v", mib)
	backUp(t, a, NewBackup{Volume: "v", Name: "b"})
	const told = "the list of a target's backups cannot be read"
	w.store(url("t1")).on(func(_ context.Context, op, name string) error { return errors.New("unplugged") })
	until(t, "that it is told", func() bool { return strings.Contains(w.logged(), told) })
	w.store(url("t1")).on(nil)
	until(t, "that it is told to be back", func() bool { return strings.Contains(w.logged(), "answers again") })
	if n := strings.Count(w.logged(), told); n != 1 {
		t.Errorf("it was told %d times", n)
	}
	if b := must(a.Backup(t.Context(), "b"))(t); b.Status != catalog.Available {
		t.Errorf("the backup is %s", b.Status)
	}
	waiting := make(chan struct{}, 1)
	w.store(url("t1")).on(func(ctx context.Context, op, name string) error {
		select {
		case waiting <- struct{}{}:
		default:
		}
		<-ctx.Done()
		return ctx.Err()
	})
	<-waiting
	if err := a.RemoveTarget(t.Context(), "t1"); err != nil {
		t.Error(err)
	}
}
