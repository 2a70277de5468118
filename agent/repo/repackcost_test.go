package repo

import (
	"context"
	"iter"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// Where a section is costs no round trip: a cold first byte of a backup whose
// data was moved, and whose old packs are gone, takes three requests after one
// another, as any other.
func TestDependentRequestsAfterRepacking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, images := toRepack(t)
		c := countRequests(store)
		note := c.Before
		var slow atomic.Bool
		c.Before = func(op, name string) error {
			if slow.Load() {
				time.Sleep(time.Second)
			}
			return note(op, name)
		}
		r, err := Open(t.Context(), c, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		r.packTarget = 512 << 10
		for range 4 {
			time.Sleep(25 * time.Hour)
			prunes(t, r, PruneOptions{RepackBelow: RepackBelow})
		}
		fresh, err := Open(t.Context(), c, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		defer fresh.Close()
		if _, err := fresh.list(t.Context(), volumesRoot); err != nil {
			t.Fatal(err)
		}
		for id, want := range images {
			off, moved := movedByte(t, r, id, want)
			if !moved {
				continue
			}
			slow.Store(true)
			began := time.Now()
			l, err := fresh.Layer(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 1)
			if _, err := l.ReadAt(p, off); err != nil || p[0] != want[off] {
				t.Errorf("byte %d: %v", off, err)
			}
			l.Close()
			slow.Store(false)
			if got := time.Since(began) / time.Second; got > 3 {
				t.Errorf("the first byte takes %d requests after one another: %q", got, c.take())
			}
			return
		}
		t.Fatal("nothing was moved")
	})
}

// movedByte returns a byte of a backup that is in a frame that was moved.
func movedByte(t *testing.T, r *Repo, id layers.ID, image []byte) (int64, bool) {
	root, err := r.openRoot(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	leaves, err := r.readRows(t.Context(), root.name.volume, root.spans.rows)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range r.placed(allWanted(leaves)) {
		if w.written != nil {
			return w.pieces[0].block * layers.BlockSize, true
		}
	}
	return 0, false
}

// Requests of a run that repacks grow with what it copies: other volumes, of
// which nothing is to be copied, cost none but listings.
func TestRequestsOfRepacking(t *testing.T) {
	requests := func(others int) (n int) {
		synctest.Test(t, func(t *testing.T) { // both begin at the same time, and so with the same seed
			store, _ := toRepack(t)
			c := countRequests(store)
			r, err := Open(t.Context(), c, Key{Passphrase: secret})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			for range others {
				lineage(t, r, newVolume(1<<20), 3)
			}
			r.packTarget = 512 << 10
			time.Sleep(48 * time.Hour)
			prunes(t, r, PruneOptions{}) // old sessions
			again, err := Open(t.Context(), c, Key{Passphrase: secret})
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			again.packTarget = 512 << 10
			c.take()
			if report := prunes(t, again, PruneOptions{RepackBelow: RepackBelow}); report.Rewritten.Objects == 0 {
				t.Errorf("nothing was copied: %+v", report)
			}
			seen := c.take()
			n = len(seen) - count(seen, "list ")
		})
		return n
	}
	one, many := requests(0), requests(10)
	t.Logf("%d requests beside listings", one)
	if one != many {
		t.Errorf("%d requests, with ten other volumes %d", one, many)
	}
}

// What a relocation empties stays until that is a grace old, whatever a
// condemned list says: a reader may not know it yet.
func TestWhatWasMovedLatelyStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, images := toRepack(t)
		hasty := &objecttest.Hook{Store: &early{store, listRoot}}
		r, err := Open(t.Context(), hasty, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		r.packTarget = 512 << 10
		old := contents(t, store)
		prunes(t, r, PruneOptions{RepackBelow: RepackBelow})
		for range 3 {
			time.Sleep(time.Hour)
			if report := prunes(t, r, PruneOptions{}); report.Condemned.Objects == 0 {
				t.Errorf("nothing was condemned: %+v", report)
			}
		}
		for name := range contents(t, store) {
			delete(old, name)
		}
		for name := range old {
			if _, ok := packOf(name); ok {
				t.Errorf("%s went before its time", name)
			}
		}
		time.Sleep(25 * time.Hour)
		prunes(t, r, PruneOptions{})
		if report := prunes(t, r, PruneOptions{}); report.Condemned.Objects != 0 {
			t.Errorf("a grace later there is %+v", report)
		}
		expectAll(t, store, images)
	})
}

// early says of objects with a prefix that they are older than they are.
type early struct {
	object.Store
	prefix string
}

func (e *early) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		for info, err := range e.Store.List(ctx, prefix) {
			if strings.HasPrefix(info.Name, e.prefix) {
				info.Modified = info.Modified.Add(-2 * PruneGrace)
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// B15: a restore goes on only where what it reads lies as it did.
func TestRestorePointKnowsWhereThingsLie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, images := toRepack(t)
		r, err := Open(t.Context(), store, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for id, want := range images {
			var point RestorePoint
			err := r.Restore(t.Context(), id, &ram{bytes: make([]byte, len(want))}, RestoreOptions{Blank: true, Checkpoint: func(p RestorePoint) error {
				if p.Groups > 0 {
					point = p
				}
				return nil
			}})
			if err != nil || point.Groups == 0 {
				t.Fatal(err, point)
			}
			same := &ram{bytes: make([]byte, len(want))}
			if err := r.Restore(t.Context(), id, same, RestoreOptions{Blank: true, From: point}); err != nil || differ(same.bytes, want) < 0 {
				t.Errorf("what the point %+v says is done was done again: %v", point, err)
			}
			point.Sum++
			moved := &ram{bytes: make([]byte, len(want))}
			if err := r.Restore(t.Context(), id, moved, RestoreOptions{Blank: true, From: point}); err != nil || differ(moved.bytes, want) >= 0 {
				t.Errorf("with everything elsewhere byte %d differs: %v", differ(moved.bytes, want), err)
			}
		}
	})
}
