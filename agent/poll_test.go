package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/agent/object"
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

// A poll, which nobody waits for, makes way for guests and for all who want
// something of the target; a sync that somebody asked for does not.
func TestPollMakesWay(t *testing.T) {
	w := newWorld(t)
	a := startPolling(t, w)
	record := addTarget(t, a, "t1")
	// As many uploads as there are places. A poll's request that is under way
	// keeps one, so once all are in there is none.
	stop, inside := make(chan struct{}), make(chan struct{}, maxRequests)
	uploads := a.targetOf(record).gate.Store(&standing{Store: object.NewMem(), inside: inside, stop: stop})
	var under sync.WaitGroup
	for i := range maxRequests {
		under.Go(func() {
			if err := uploads.Put(object.WithClass(t.Context(), object.Copy), fmt.Sprint(i), nil); err != nil {
				t.Error(err)
			}
		})
	}
	for range maxRequests {
		<-inside
	}
	var asked atomic.Int64
	w.store(url("t1")).on(func(context.Context, string, string) error {
		asked.Add(1)
		return nil
	})
	var once int64
	for i := range 3 {
		if err := a.SyncTarget(t.Context(), "t1"); err != nil {
			t.Fatal(err)
		}
		if n := asked.Swap(0); i > 0 && n != once {
			t.Errorf("%d requests of a sync, and of one before %d: a poll took a place beyond the uploads", n, once)
		} else {
			once = n
		}
	}
	close(stop)
	under.Wait()
	until(t, "that it polls on", func() bool { return asked.Load() > 2*once })
}

// standing is a Store whose Puts last until stop is closed.
type standing struct {
	object.Store
	inside chan<- struct{}
	stop   <-chan struct{}
}

func (s *standing) Put(context.Context, string, []byte) error {
	s.inside <- struct{}{}
	<-s.stop
	return nil
}

// A poll's requests wait for their turns beside guests, but for those that open
// the repository: others may wait for that.
func TestPollTakesTurns(t *testing.T) {
	w, a := startWithTarget(t)
	record := must(a.Target(t.Context(), "t1"))(t)
	var turns, asked atomic.Int64
	a.turn = func(context.Context) (func(), error) {
		turns.Add(1)
		return func() {}, nil
	}
	w.store(url("t1")).on(func(context.Context, string, string) error {
		asked.Add(1)
		return nil
	})
	for _, c := range []struct {
		depth syncDepth
		turns bool
	}{{newRoots, true}, {everyRoot, false}} {
		turns.Store(0)
		asked.Store(0)
		if err := a.sync(t.Context(), record, c.depth); err != nil {
			t.Fatal(err)
		}
		if made, taken := asked.Load(), turns.Load(); made == 0 || c.turns && taken < made || !c.turns && taken > 0 {
			t.Errorf("depth %d: %d turns for %d requests", c.depth, taken, made)
		}
	}
}
