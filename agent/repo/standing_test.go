package repo

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// past shows names that are gone, as a listing that lags.
type past struct {
	object.Store
	shown []object.Info
}

func (p *past) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		for _, info := range p.shown {
			if strings.HasPrefix(info.Name, prefix) && !yield(info, nil) {
				return
			}
		}
		for info, err := range p.Store.List(ctx, prefix) {
			if !yield(info, err) {
				return
			}
		}
	}
}

// infoOf returns what a listing says of an object.
func infoOf(t *testing.T, s object.Store, name string) object.Info {
	t.Helper()
	for info, err := range s.List(t.Context(), name) {
		if err != nil {
			t.Fatal(err)
		}
		return info
	}
	t.Fatalf("%s is not there", name)
	return object.Info{}
}

// What a host knows of its last backup is worth nothing once a tombstone of it
// can have come and gone: a listing that still shows the root, and the tombstone
// no more, would have it build on packs that are pruned. As long as it cannot,
// that backup is built on without another look.
func TestAParentThatWasPrunedIsNotBuiltOn(t *testing.T) {
	for _, polls := range []bool{false, true} { // whether the host lists now and then, as long as the parent is there
		synctest.Test(t, func(t *testing.T) {
			store := object.NewMem()
			listing := &past{Store: store}
			r := testRepo(t, listing, true)
			v := newVolume(1 << 20)
			v.write(0, bytes.Repeat([]byte("data"), 1<<18))
			parent, err := v.backup(t.Context(), r, layers.ID{})
			if err != nil {
				t.Fatal(err)
			}
			v.forget()
			listed, _ := r.index.find(parent.ID)
			other := hostOf(t, store)
			if polls {
				for range 30 {
					time.Sleep(2 * time.Hour)
					if _, err := r.list(t.Context(), volumesRoot); err != nil {
						t.Fatal(err)
					}
				}
				c := countRequests(nil)
				c.Store, listing.Store = listing.Store, c
				idle, err := v.backup(t.Context(), r, parent.ID)
				if seen := c.take(); err != nil || len(seen) != 2 {
					t.Fatalf("an unchanged backup days after its parent: %v, %q, want a listing and the root", err, seen)
				}
				if err := other.Delete(t.Context(), idle.ID); err != nil {
					t.Fatal(err)
				}
				v.forget()
			}
			root := infoOf(t, store, listed.name.String())
			if err := other.Delete(t.Context(), parent.ID); err != nil {
				t.Fatal(err)
			}
			prunes(t, other, PruneOptions{})
			time.Sleep(25 * time.Hour)
			prunes(t, other, PruneOptions{})
			time.Sleep(25 * time.Hour)
			prunes(t, other, PruneOptions{})
			if left := packsOf(t, store, parent.ID); len(left) > 0 {
				t.Fatalf("%q are left", left)
			}
			listing.shown = []object.Info{root}
			b, err := v.backup(t.Context(), r, parent.ID)
			if !errors.Is(err, ErrParentGone) {
				t.Errorf("a backup whose parent was pruned: %s, %v", b.ID, err)
			}
		})
	}
}

// A root that a listing has with another length is read again, and one that
// another host deleted is refused.
func TestAKnownParentIsLookedAt(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	v := newVolume(1 << 20)
	v.write(0, []byte("one"))
	parent, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	v.forget()
	listed, _ := r.index.find(parent.ID)
	whole := contents(t, store)[listed.name.String()]
	if err := store.Put(t.Context(), listed.name.String(), whole[:len(whole)-1]); err != nil {
		t.Fatal(err)
	}
	if _, err := v.backup(t.Context(), r, parent.ID); !errors.Is(err, ErrParentDamaged) {
		t.Errorf("a backup on a root that was cut: %v", err)
	}
	if err := store.Put(t.Context(), listed.name.String(), whole); err != nil {
		t.Fatal(err)
	}
	if err := hostOf(t, store).Delete(t.Context(), parent.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := v.backup(t.Context(), r, parent.ID); !errors.Is(err, ErrParentGone) {
		t.Errorf("a backup on a parent that another host deleted: %v", err)
	}
}

// A host that stood still before the commit, but not for so long that it has to
// give up, shows first that it is at work: the root may be under way for hours
// too. So does one that shows no session yet.
func TestSessionIsRenewedBeforeTheCommit(t *testing.T) {
	for _, slept := range []time.Duration{time.Minute, time.Hour, 11 * time.Hour} {
		for _, long := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				var ahead time.Duration // what its clock gained asleep
				var since []string      // puts after the sleep
				hook := &objecttest.Hook{Store: object.NewMem()}
				r := testRepo(t, hook, true)
				r.now = func() time.Time { return time.Now().Add(ahead) }
				v := newVolume(1 << 20)
				v.write(0, []byte("data"))
				hook.Before = func(op, name string) error {
					if op == "put" && ahead > 0 {
						since = append(since, name[:2])
					}
					return nil
				}
				hook.After = func(op, name string) error {
					if op == "put" && strings.HasPrefix(name, "p/") {
						ahead = slept
					}
					return nil
				}
				pause := time.Duration(0)
				if long {
					pause = 6 * time.Minute // with a session before the sleep
				}
				b, err := r.Create(t.Context(), Job{ID: layers.NewID(), Volume: v.id, Source: slowly(v.source(), pause)})
				if err != nil {
					t.Fatal(err)
				}
				want := []string{"s/", "v/"}
				if slept < 2*sessionRenewal {
					want = want[1:]
				}
				if strings.Join(since, " ") != strings.Join(want, " ") {
					t.Errorf("after a sleep of %v, with a session before: %t, these are put: %q, want %q", slept, long, since, want)
				}
				compare(t, r, b.ID, v.bytes)
			})
		}
	}
}

// A backup that stood still for longer than pruning can be relied on to wait,
// before it showed a session, is made again.
func TestABackupThatSleptWithoutASessionStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ahead time.Duration
		hook := &objecttest.Hook{Store: object.NewMem()}
		r := testRepo(t, hook, true)
		r.now = func() time.Time { return time.Now().Add(ahead) }
		hook.After = func(op, name string) error {
			if op == "put" && strings.HasPrefix(name, "p/") {
				ahead = 13 * time.Hour
			}
			return nil
		}
		v := newVolume(1 << 20)
		v.write(0, []byte("data"))
		if b, err := v.backup(t.Context(), r, layers.ID{}); !errors.Is(err, ErrStale) {
			t.Errorf("backup %s: %v", b.ID, err)
		}
	})
}
