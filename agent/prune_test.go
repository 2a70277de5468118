package agent

import (
	"context"
	"sync"
	"testing"
	"time"

	"varve/catalog"
)

// deadAt lets a store stand still before its n-th call of op. From dead on it
// answers with errors alone.
func deadAt(s *faulty, op string, n int) (reached <-chan struct{}, dead func()) {
	var mu sync.Mutex
	come, ended := make(chan struct{}), make(chan struct{})
	s.on(func(_ context.Context, called, _ string) error {
		mu.Lock()
		if called == op && n > 0 {
			if n--; n == 0 {
				close(come)
			}
		}
		stands := n == 0
		mu.Unlock()
		if !stands {
			return nil
		}
		<-ended
		return errNotMounted
	})
	return come, sync.OnceFunc(func() { close(ended) })
}

// The daemon dies in a pruning with a short grace, before each of the objects
// that it removes or puts: the next one goes on with it, and removes nothing
// before its time; one that is asked for after that ends it. Backups stay whole. B17
func TestDaemonDiesDuringAPruning(t *testing.T) {
	for _, call := range []string{"put", "delete"} {
		for n := 1; ; n++ {
			w := newWorld(t)
			dir := t.TempDir()
			a := w.start(dir)
			addTarget(t, a, "t1")
			createVolume(t, a, "v", mib)
			write(t, a, "v", 1, 0, mib)
			gone := backUp(t, a, NewBackup{Volume: "v", Name: "gone"})
			write(t, a, "v", 2, 0, mib)
			kept := backUp(t, a, NewBackup{Volume: "v", Name: "kept"})
			want := content(t, a, "v")
			succeed(t, a, must(a.DeleteBackup(t.Context(), gone.ID.String(), true))(t))
			if call == "delete" {
				succeed(t, a, must(a.PruneTarget(t.Context(), "t1", Prune{}))(t))
			}
			store := w.store(url("t1"))
			objects := len(objectsOf(t, store))
			reached, dead := deadAt(store, call, n)
			op := must(a.PruneTarget(t.Context(), "t1", Prune{Grace: time.Nanosecond}))(t)
			over := false
			select {
			case <-reached:
			case <-ended(a, op):
				over = true
			}
			died := copyState(t, dir)
			dead()
			a.Close()
			store.on(nil)
			if over {
				if n < 2 {
					t.Errorf("a pruning makes %d calls of %s", n-1, call)
				}
				break
			}
			left := len(objectsOf(t, store))
			a = w.start(died)
			last := finish(t, a, op)
			if last.State != catalog.Succeeded || last.ID != op.ID || last.Pruned == nil || last.Pruned.Freed.Objects > 0 {
				t.Fatalf("%s %d: operation %+v, %+v", call, n, last, last.Pruned)
			}
			if now := len(objectsOf(t, store)); call == "delete" && now < left-1 { // a session at most
				t.Errorf("%s %d: of %d objects %d were there when it died, and %d are left", call, n, objects, left, now)
			}
			for range 2 {
				succeed(t, a, must(a.PruneTarget(t.Context(), "t1", Prune{Grace: time.Nanosecond}))(t))
			}
			again := must(a.PruneTarget(t.Context(), "t1", Prune{DryRun: true}))(t)
			if p := succeed(t, a, again).Pruned; p.Condemned.Objects+p.Freed.Objects > 0 {
				t.Errorf("%s %d: pruning leaves %+v", call, n, p)
			}
			same(t, "the other backup", imageContent(t, a, kept.ID), want)
			nothingLeft(t, a)
			a.Close()
		}
	}
}
