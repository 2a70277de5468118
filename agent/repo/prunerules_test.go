package repo

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// Rules of pruning that random schedules seldom meet. Each was taken out once,
// and a test here failed.

// showLeaning writes the nth session of a backup that is being made, on a parent
// with that root if it is not empty.
func showLeaning(t *testing.T, r *Repo, backup, volume layers.ID, parentRoot string, n int64) {
	t.Helper()
	j := &Job{ID: backup, Volume: volume}
	w := &writer{repo: r, job: j, ledger: newLedger(j), root: &root{name: rootName{volume, 1, 1, backup}}}
	if err := newSession(w, nil, parentRoot, n).write(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// C5: a root that a listing had when something was condemned, and has not when
// that is over, is asked for by its name: what it needs stays, though another
// listing before that lacked it, too.
func TestARootThatAListSawIsAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, hidden := object.NewMem(), ""
		r := testRepo(t, &blind{store, func(name string) bool { return hidden != "" && strings.HasSuffix(name, hidden) }}, true)
		r.packTarget = 64 << 10
		ids, images := lineage(t, r, newVolume(1<<20), 2)
		others, _ := lineage(t, r, newVolume(1<<20), 1)
		time.Sleep(48 * time.Hour)
		prunes(t, r, PruneOptions{})
		hidden = ids[1].String()
		if report := prunes(t, r, PruneOptions{}); report.Condemned.Objects == 0 {
			t.Fatalf("nothing was condemned of a backup that is not listed: %+v", report)
		}
		hidden = ""
		if err := r.Delete(t.Context(), others[0]); err != nil {
			t.Fatal(err)
		}
		if report := prunes(t, r, PruneOptions{}); report.Condemned.Objects == 0 {
			t.Fatalf("nothing was condemned of a backup that is deleted: %+v", report)
		}
		time.Sleep(25 * time.Hour)
		hidden = ids[1].String()
		prunes(t, r, PruneOptions{})
		hidden = ""
		compare(t, r, ids[1], images[ids[1]])
	})
}

// A backup that is deleted keeps its root for a grace, and as long as another
// one is being made on it, whether listings have that root or not. Its tombstone
// stays with it. // B17, C5
func TestADeletedRootGoesInItsTime(t *testing.T) {
	for _, listed := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			store, hidden := object.NewMem(), false
			var root rootName
			r := testRepo(t, &blind{store, func(name string) bool { return hidden && name == root.String() }}, true)
			v := newVolume(1 << 20)
			ids, images := lineage(t, r, v, 2)
			time.Sleep(48 * time.Hour)
			known, _ := r.index.find(ids[0])
			root = known.name
			if err := r.Delete(t.Context(), ids[0]); err != nil {
				t.Fatal(err)
			}
			hidden = !listed
			expect := func(when string, want bool) {
				t.Helper()
				prunes(t, r, PruneOptions{})
				now := contents(t, store)
				for _, name := range []string{root.String(), tombstoneName(v.id, ids[0])} {
					if _, there := now[name]; there != want {
						t.Errorf("listed %t, %s: %s is there: %t", listed, when, name, there)
					}
				}
				compare(t, r, ids[1], images[ids[1]])
			}
			expect("deleted just now", true)
			time.Sleep(25 * time.Hour)
			showLeaning(t, r, layers.NewID(), v.id, root.String(), 0)
			expect("while a backup is made on it", true)
			time.Sleep(sessionDead + time.Hour)
			expect("when that has crashed", false)
		})
	}
}

// The session of a backup that was committed just now stays: a listing elsewhere
// may not have the root yet. // C5
func TestASessionOutlastsItsCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := object.NewMem()
		r := testRepo(t, store, true)
		v := newVolume(1 << 20)
		b, err := v.backup(t.Context(), r, layers.ID{})
		if err != nil {
			t.Fatal(err)
		}
		showLeaning(t, r, b.ID, v.id, "", 0)
		for _, want := range []int{1, 1, 0} {
			prunes(t, r, PruneOptions{})
			if got := sessionsIn(t, store); len(got) != want {
				t.Errorf("sessions %q, want %d", got, want)
			}
			time.Sleep(sessionAfter - 10*time.Minute)
		}
	})
}

// C5: packs that are condemned stay, and so does the list that says so, while
// their backup is gone on with: no try of it may take up what another run is
// about to remove. Once it is given up both go.
func TestAListStaysWhileItsPacksAreInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := object.NewMem()
		r := testRepo(t, store, true)
		v := newVolume(1 << 20)
		fillNoise(t, v)
		j := &Job{ID: layers.NewID(), Volume: v.id, Source: v.source()}
		if _, err := (&line{left: 6}).try(t, store, j, 64<<10); !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		packs := packsOf(t, store, j.ID)
		lists := func() (n int) {
			for name := range contents(t, store) {
				if strings.HasPrefix(name, listRoot) {
					n++
				}
			}
			return n
		}
		time.Sleep(25 * time.Hour)
		if prunes(t, r, PruneOptions{}); lists() != 1 || len(packs) < 3 {
			t.Fatalf("%d lists of the packs %q", lists(), packs)
		}
		showLeaning(t, r, j.ID, v.id, "", 0)
		time.Sleep(13 * time.Hour)
		showLeaning(t, r, j.ID, v.id, "", 1)
		time.Sleep(13 * time.Hour)
		prunes(t, r, PruneOptions{})
		if left := packsOf(t, store, j.ID); len(left) != len(packs) || lists() != 1 {
			t.Errorf("while the backup is made there are %d lists, and of the packs %q there are %q", lists(), packs, left)
		}
		for range 4 {
			time.Sleep(25 * time.Hour)
			prunes(t, r, PruneOptions{})
		}
		if left := packsOf(t, store, j.ID); len(left) != 0 || lists() != 0 {
			t.Errorf("when it has crashed there are %d lists, and the packs %q", lists(), left)
		}
	})
}

// A grace or a threshold that makes no sense is refused before anything is
// looked at.
func TestPruneRefusesOptions(t *testing.T) {
	r := testRepo(t, object.NewMem(), false)
	for _, o := range []PruneOptions{{Grace: -1}, {RepackBelow: -1}, {RepackBelow: 101}} {
		if _, err := r.Prune(t.Context(), o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// A backup whose session somebody took away may have lost what it built on, and
// stops, whatever its own clock says of the time since. // C5
func TestABackupWhoseSessionIsGoneStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hook := &objecttest.Hook{Store: object.NewMem()}
		r := testRepo(t, hook, true)
		v := newVolume(1 << 20)
		v.write(0, []byte("data"))
		taken := false
		hook.Before = func(op, name string) error {
			switch {
			case op == "put" && strings.HasPrefix(name, "p/") && !taken:
				taken = true
				sessions := sessionsIn(t, hook.Store)
				if len(sessions) == 0 {
					t.Error("the backup shows no session")
				}
				hook.Store.Delete(t.Context(), sessions...)
				time.Sleep(footingFresh + time.Minute) // so that it looks again
			case op == "put" && strings.Contains(name, "/b/"):
				t.Errorf("%s is put", name)
			}
			return nil
		}
		_, err := r.Create(t.Context(), Job{ID: layers.NewID(), Volume: v.id, Source: slowly(v.source(), 6*time.Minute)})
		if !taken || !errors.Is(err, ErrStale) {
			t.Errorf("%v, want that the backup is stale", err)
		}
	})
}

// A session goes on behind the numbers that a listing has, also where no
// checkpoint tells of them: no name is written twice. // C5
func TestSessionNumbersGoOnFromTheListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hook := &objecttest.Hook{Store: object.NewMem()}
		r := testRepo(t, hook, true)
		v := newVolume(1 << 20)
		v.write(0, []byte("data"))
		id := layers.NewID()
		showLeaning(t, r, id, v.id, "", 3) // the one before is gone
		var mu sync.Mutex
		written := make(map[string]bool)
		hook.Before = func(op, name string) error {
			mu.Lock()
			defer mu.Unlock()
			if op == "put" && strings.HasPrefix(name, sessionRoot) {
				written[name] = true
			}
			return nil
		}
		if _, err := r.Create(t.Context(), Job{ID: id, Volume: v.id, Source: slowly(v.source(), 32*time.Minute)}); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if written[sessionName(id, 0)] || written[sessionName(id, 3)] || !written[sessionName(id, 4)] {
			t.Errorf("written are the sessions %v", slices.Sorted(maps.Keys(written)))
		}
	})
}
