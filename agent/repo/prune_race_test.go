package repo

import (
	"bytes"
	"context"
	"errors"
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

// pruneEvery prunes again and again until stop is called.
func pruneEvery(t *testing.T, r *Repo, pause time.Duration) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if _, err := r.Prune(ctx, PruneOptions{}); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

func TestPruneLeavesARunningBackupAlone(t *testing.T) {
	// C5: a backup of many days, whose parent is deleted as soon as it has
	// begun, beside a host that prunes every six hours.
	synctest.Test(t, func(t *testing.T) {
		store := object.NewMem()
		r := testRepo(t, store, true)
		r.packTarget = 64 << 10
		v := newVolume(2 << 20)
		v.write(0, bytes.Repeat([]byte("old data"), 1<<17))
		parent, err := v.backup(t.Context(), r, layers.ID{})
		if err != nil {
			t.Fatal(err)
		}
		v.forget()
		rnd := newRand(t)
		noise := make([]byte, layers.BlockSize) // so that it fills packs all the time
		for off := int64(1 << 19); off < 1<<21; off += 3 << 12 {
			for i := range noise {
				noise[i] = byte(rnd.Uint32())
			}
			v.write(off, noise)
		}
		other, err := Open(t.Context(), store, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		stop := pruneEvery(t, other, 6*time.Hour)
		go func() {
			time.Sleep(time.Hour)
			if err := other.Delete(t.Context(), parent.ID); err != nil {
				t.Error(err)
			}
		}()
		id, began := layers.NewID(), time.Now()
		_, err = r.Create(t.Context(), Job{ID: id, Volume: v.id, Parent: parent.ID, Source: slowly(v.source(), time.Hour), Changes: v.changes()})
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 4*PruneGrace {
			t.Errorf("the backup took %v: too short to prove anything", took)
		}
		time.Sleep(4 * PruneGrace)
		stop()
		compare(t, other, id, v.bytes)
		if len(sessionsIn(t, store)) > 0 {
			t.Errorf("sessions are left: %q", sessionsIn(t, store))
		}
	})
}

func TestPruneFreesWhatACrashLeft(t *testing.T) {
	// What a crashed backup had written goes within two graces, and half a day
	// for being sure that it crashed.
	synctest.Test(t, func(t *testing.T) {
		store, _, v, parent, before := crashCase(t)
		whole := contents(t, store)
		var crashed atomic.Bool
		hook := &objecttest.Hook{Store: store, Before: func(op, name string) error {
			if strings.Contains(name, "/b/") && op == "put" {
				crashed.Store(true)
			}
			if crashed.Load() {
				return errStopped
			}
			return nil
		}}
		r, err := Open(t.Context(), hook, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		r.packTarget = 64 << 10
		if err := v.incremental(t.Context(), r, layers.NewID(), parent); !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		if len(contents(t, store)) < len(whole)+3 {
			t.Fatal("the crash left nothing")
		}
		hook.Before = nil
		for range int((2*PruneGrace + sessionDead) / (6 * time.Hour)) {
			prunes(t, r, PruneOptions{})
			time.Sleep(6 * time.Hour)
		}
		prunes(t, r, PruneOptions{})
		for name := range contents(t, store) {
			if whole[name] == nil {
				t.Errorf("%s is left", name)
			}
		}
		compare(t, r, parent, before)
	})
}

// blind hides names from listings.
type blind struct {
	object.Store
	hides func(name string) bool
}

func (b *blind) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		for info, err := range b.Store.List(ctx, prefix) {
			if (err != nil || !b.hides(info.Name)) && !yield(info, err) {
				return
			}
		}
	}
}

func TestABackupWithoutItsParentIsRefused(t *testing.T) {
	// C5: a writer that stood still between two requests, for as long as
	// pruning takes to remove its parent, finds that out by itself, whatever
	// its listing showed. It reads the parent's root, or begins its session.
	// One that shows its session meanwhile keeps the parent.
	for _, pause := range []time.Duration{time.Hour, 3 * PruneGrace} {
		for _, where := range []string{"get v/", "list s/", "put p/"} {
			synctest.Test(t, func(t *testing.T) {
				store := object.NewMem()
				r := testRepo(t, store, true)
				v := newVolume(1 << 20)
				v.write(0, bytes.Repeat([]byte("data"), 1<<18))
				parent, err := v.backup(t.Context(), r, layers.ID{})
				if err != nil {
					t.Fatal(err)
				}
				v.forget()
				v.write(100_000, []byte("new"))
				other, err := Open(t.Context(), store, Key{Passphrase: secret})
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
				stood := false
				hook := &objecttest.Hook{Store: store, Before: func(op, name string) error {
					if strings.HasPrefix(op+" "+name, where) && !stood {
						stood = true
						if err := other.Delete(t.Context(), parent.ID); err != nil {
							t.Error(err)
						}
						stop := pruneEvery(t, other, time.Hour)
						time.Sleep(pause)
						stop()
					}
					return nil
				}}
				writer, err := Open(t.Context(), hook, Key{Passphrase: secret})
				if err != nil {
					t.Fatal(err)
				}
				defer writer.Close()
				b, err := writer.Create(t.Context(), Job{
					ID: layers.NewID(), Volume: v.id, Parent: parent.ID, Source: slowly(v.source(), 6*time.Minute), Changes: v.changes(),
				})
				if !stood {
					t.Fatalf("%s: the writer was not held up: %v", where, err)
				}
				if where == "put p/" {
					if err != nil {
						t.Fatalf("%s, %v: %v", where, pause, err)
					}
					compare(t, other, b.ID, v.bytes)
				} else if !errors.Is(err, ErrParentGone) && !errors.Is(err, ErrStale) {
					t.Errorf("%s, %v: a backup whose parent was pruned meanwhile: %v, %v", where, pause, b.ID, err)
				}
			})
		}
	}
}

func TestARootThatIsNotListedKeepsItsData(t *testing.T) {
	// C5: a root that a listing does not have. It was there when its data was
	// condemned, or it is not there again and again: the first is asked for.
	synctest.Test(t, func(t *testing.T) {
		store := object.NewMem()
		hidden := ""
		listing := &blind{store, func(name string) bool { return hidden != "" && strings.HasSuffix(name, hidden) }}
		r := testRepo(t, listing, true)
		v := newVolume(1 << 20)
		ids, images := lineage(t, r, v, 3)
		if err := r.Delete(t.Context(), ids[0]); err != nil {
			t.Fatal(err)
		}
		delete(images, ids[0])
		time.Sleep(48 * time.Hour)
		hidden = ids[2].String()     // its packs look like garbage
		prunes(t, r, PruneOptions{}) // removes its session
		if report := prunes(t, r, PruneOptions{}); report.Condemned.Objects == 0 {
			t.Fatalf("nothing was condemned: %+v", report)
		}
		hidden = ""
		time.Sleep(25 * time.Hour)
		prunes(t, r, PruneOptions{})
		hidden = ids[1].String() // was there when the list was written
		time.Sleep(25 * time.Hour)
		prunes(t, r, PruneOptions{})
		time.Sleep(25 * time.Hour)
		prunes(t, r, PruneOptions{})
		hidden = ""
		for id, want := range images {
			compare(t, r, id, want)
		}
	})
}

func TestPruneLeavesAVolumeAloneThatItCannotRead(t *testing.T) {
	// C3: a damaged backup may need anything of its volume. Others are pruned.
	synctest.Test(t, func(t *testing.T) {
		store := object.NewMem()
		r := testRepo(t, store, true)
		r.packTarget = 64 << 10
		damagedVolume, other := newVolume(1<<20), newVolume(1<<20)
		ids, _ := lineage(t, r, damagedVolume, 3)
		others, images := lineage(t, r, other, 3)
		for _, id := range []layers.ID{ids[0], ids[1], others[0]} {
			if err := r.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		name, _ := r.index.find(ids[2])
		b := contents(t, store)[name.name.String()]
		b[len(b)-1] ^= 1
		if err := store.Put(t.Context(), name.name.String(), b); err != nil {
			t.Fatal(err)
		}
		packs := packsOf(t, store, ids[0])
		for range 4 {
			time.Sleep(25 * time.Hour)
			report, err := r.Prune(t.Context(), PruneOptions{})
			if err != nil || len(report.Kept) != 1 || !errors.Is(report.Kept[0], ErrCorrupt) {
				t.Fatalf("%+v, %v", report, err)
			}
		}
		if left := packsOf(t, store, ids[0]); len(left) != len(packs) {
			t.Errorf("of %d packs of a volume with a damaged backup %d are left", len(packs), len(left))
		}
		compare(t, r, others[2], images[others[2]])
	})
}

func TestARootThatTookTooLongIsTakenBack(t *testing.T) {
	// Its Put was under way for longer than pruning can be relied on to wait.
	synctest.Test(t, func(t *testing.T) {
		hook := &objecttest.Hook{Store: object.NewMem(), Before: func(op, name string) error {
			if op == "put" && strings.Contains(name, "/b/") {
				time.Sleep(13 * time.Hour)
			}
			return nil
		}}
		r := testRepo(t, hook, true)
		v := newVolume(1 << 20)
		v.write(0, []byte("data"))
		b, err := v.backup(t.Context(), r, layers.ID{})
		if err == nil || !strings.Contains(err.Error(), "was under way for longer than 12h") {
			t.Errorf("backup %s: %v", b.ID, err)
		}
		for name := range contents(t, hook.Store) {
			if strings.Contains(name, "/b/") {
				t.Errorf("%s is left", name)
			}
		}
	})
}

func TestAResumedBackupTakesNothingUpThatIsCondemned(t *testing.T) {
	// C5: its earlier packs were condemned while nobody knew that it would go
	// on. The next run may remove them before it sees the new session.
	synctest.Test(t, func(t *testing.T) {
		store := object.NewMem()
		var cut atomic.Bool
		hook := &objecttest.Hook{Store: store}
		hook.Before = func(op, name string) error {
			if op == "put" && strings.HasPrefix(name, "m/") {
				cut.Store(true)
			}
			if cut.Load() {
				return errStopped
			}
			return nil
		}
		r := testRepo(t, hook, true)
		r.packTarget = 64 << 10
		v := newVolume(1 << 20)
		rnd := newRand(t)
		for i := range v.bytes {
			v.bytes[i] = byte(rnd.Uint32())
		}
		var point Checkpoint
		j := Job{ID: layers.NewID(), Volume: v.id, Source: v.source(), Checkpoint: func(c Checkpoint) error {
			point = c
			return nil
		}}
		if _, err := r.Create(t.Context(), j); !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		hook.Before = nil
		earlier := packsOf(t, store, j.ID)
		if len(earlier) < 5 {
			t.Fatalf("the first try left %q", earlier)
		}
		for range 3 { // its session goes, then its packs are condemned
			time.Sleep(19 * time.Hour)
			if _, err := r.Prune(t.Context(), PruneOptions{Grace: 1000 * time.Hour}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.Prune(t.Context(), PruneOptions{Grace: 30 * time.Hour}); err != nil {
			t.Fatal(err)
		}
		if left := packsOf(t, store, j.ID); len(left) != len(earlier) {
			t.Fatalf("packs went before they were condemned: %q of %q", left, earlier)
		}
		j.Resume = point
		if _, err := r.Create(t.Context(), j); err != nil {
			t.Fatal(err)
		}
		for _, name := range earlier { // as a run does that had looked before
			if err := store.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
		compare(t, r, j.ID, v.bytes)
	})
}

// A host that stands still for days while it asks for its footing, just before
// the commit, puts no root: it might die before it can take it back.
func TestFootingIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var packs, asleep atomic.Bool
		hook := &objecttest.Hook{Store: object.NewMem()}
		r := testRepo(t, hook, true)
		v := newVolume(1 << 20)
		v.write(0, []byte("first"))
		parent, err := v.backup(t.Context(), r, layers.ID{})
		if err != nil {
			t.Fatal(err)
		}
		v.write(4096, []byte("second"))
		hook.Before = func(op, name string) error {
			switch {
			case op == "put" && strings.HasPrefix(name, "p/"):
				packs.Store(true)
				time.Sleep(time.Hour) // what it asked for when it began is old
			case op == "get" && packs.Load() && strings.Contains(name, "/d/"):
				asleep.Store(true)
				time.Sleep(80 * time.Hour)
			case op == "put" && strings.Contains(name, "/b/"):
				t.Errorf("%s is put", name)
			case asleep.Load() && op == "put":
				return errStopped // no session is renewed meanwhile
			}
			return nil
		}
		_, err = r.Create(t.Context(), Job{ID: layers.NewID(), Volume: v.id, Parent: parent.ID, Source: v.source(), Changes: v.changes()})
		if !asleep.Load() || !errors.Is(err, ErrStale) {
			t.Errorf("after a sleep of days: %v, want that the backup is stale", err)
		}
	})
}
