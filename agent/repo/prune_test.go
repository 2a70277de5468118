package repo

import (
	"bytes"
	"errors"
	"io/fs"
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

func prunes(t *testing.T, r *Repo, o PruneOptions) PruneReport {
	t.Helper()
	report, err := r.Prune(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range report.Kept {
		t.Errorf("kept: %v", err)
	}
	return report
}

// lineage makes a full backup and increments on it.
func lineage(t *testing.T, r *Repo, v *volume, n int) (ids []layers.ID, images map[layers.ID][]byte) {
	t.Helper()
	rnd := newRand(t)
	images = make(map[layers.ID][]byte)
	var parent layers.ID
	for range n {
		v.scribble(rnd)
		b, err := v.backup(t.Context(), r, parent)
		if err != nil {
			t.Fatal(err)
		}
		v.forget()
		parent = b.ID
		ids = append(ids, b.ID)
		images[b.ID] = bytes.Clone(v.bytes)
		time.Sleep(time.Hour)
	}
	return ids, images
}

// packsOf are the packs in a store that a backup wrote.
func packsOf(t *testing.T, s object.Store, backup layers.ID) (names []string) {
	for name := range contents(t, s) {
		if _, id, ok := parsePack(name); ok && id.session() == sessionOf(backup) {
			names = append(names, name)
		}
	}
	return names
}

func TestPruneFreesWhatIsDeleted(t *testing.T) {
	// B9, B17: a backup in the middle goes with force, the others stay whole;
	// the space that only it took comes back after the grace, and when all are
	// deleted nothing is left but the head and the keys.
	for _, encrypted := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			store := object.NewMem()
			r := testRepo(t, store, encrypted)
			r.packTarget = 64 << 10
			v := newVolume(2 << 20)
			ids, images := lineage(t, r, v, 6)
			time.Sleep(48 * time.Hour)
			if report := prunes(t, r, PruneOptions{}); report.Freed.Objects+report.Condemned.Objects+report.Young.Objects != 0 {
				t.Errorf("nothing was deleted, but: %+v", report)
			}
			for _, id := range []layers.ID{ids[2], ids[0], ids[5]} {
				if err := r.Delete(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				delete(images, id)
			}
			before := contents(t, store)
			first := prunes(t, r, PruneOptions{})
			if first.Freed.Objects != 0 || first.Condemned.Bytes == 0 || first.Waiting != 3 {
				t.Errorf("the first run after the deletion: %+v", first)
			}
			after := contents(t, store)
			for name := range before {
				if after[name] == nil && !strings.HasPrefix(name, sessionRoot) {
					t.Errorf("%s went at once", name)
				}
			}
			time.Sleep(25 * time.Hour)
			would := prunes(t, r, PruneOptions{DryRun: true})
			if got := contents(t, store); len(got) != len(after) {
				t.Error("a dry run changes the store")
			}
			did := prunes(t, r, PruneOptions{})
			if did.Freed != would.Freed || did.Freed.Bytes < first.Condemned.Bytes || did.Backups != 3 {
				t.Errorf("freed %+v, a dry run said %+v, condemned were %+v", did, would.Freed, first.Condemned)
			}
			if left := packsOf(t, store, ids[5]); len(left) != 0 {
				t.Errorf("packs of the last backup, which nobody else needs, are left: %q", left)
			}
			fresh, err := Open(t.Context(), store, Key{Passphrase: map[bool]string{true: secret}[encrypted]})
			if err != nil {
				t.Fatal(err)
			}
			defer fresh.Close()
			for id, want := range images {
				compare(t, fresh, id, want)
				if _, err := fresh.Verify(t.Context(), id, VerifyOptions{Level: Deep}); err != nil {
					t.Error(err)
				}
			}
			if _, err := fresh.Backup(t.Context(), ids[0]); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a pruned backup: %v", err)
			}

			for id := range images {
				if err := r.Delete(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
			prunes(t, fresh, PruneOptions{})
			time.Sleep(25 * time.Hour)
			prunes(t, fresh, PruneOptions{})
			for name := range contents(t, store) {
				if name != headName && !strings.HasPrefix(name, slotPrefix) && !strings.Contains(name, "/k/") {
					t.Errorf("all is deleted and pruned, and %s is left", name)
				}
			}
		})
	}
}

func TestPruneCanStopAnywhere(t *testing.T) {
	// Every request fails once: what is there stays whole, and the next run
	// does the rest.
	synctest.Test(t, func(t *testing.T) {
		first := object.NewMem()
		r := testRepo(t, first, true)
		r.packTarget = 64 << 10
		v := newVolume(2 << 20)
		ids, images := lineage(t, r, v, 4)
		for _, id := range []layers.ID{ids[0], ids[3]} {
			if err := r.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			delete(images, id)
		}
		time.Sleep(30 * time.Hour)
		prunes(t, r, PruneOptions{})
		time.Sleep(30 * time.Hour)
		var done map[string][]byte
		for k := 0; ; k++ {
			store := first.Clone()
			var mu sync.Mutex
			seen, stop := 0, true
			hook := &objecttest.Hook{Store: store}
			r, err := Open(t.Context(), hook, Key{Passphrase: secret})
			if err != nil {
				t.Fatal(err)
			}
			hook.Before = func(op, name string) error {
				mu.Lock()
				defer mu.Unlock()
				if seen++; seen > k && stop {
					return errStopped
				}
				return nil
			}
			_, err = r.Prune(t.Context(), PruneOptions{})
			synctest.Wait() // for requests on their way that nobody waits for: what comes would share their answers
			mu.Lock()
			whole := err == nil && seen <= k
			stop = false
			mu.Unlock()
			if err != nil && !errors.Is(err, errStopped) {
				t.Fatalf("request %d: %v", k, err)
			}
			for id, want := range images {
				compare(t, r, id, want)
			}
			if whole {
				break
			}
			prunes(t, r, PruneOptions{})
			time.Sleep(30 * time.Hour) // what the stopped one may have left: its session, a second list
			prunes(t, r, PruneOptions{})
			time.Sleep(30 * time.Hour)
			prunes(t, r, PruneOptions{})
			if got := contents(t, store); done == nil {
				done = got
			} else if want, got := slices.Sorted(maps.Keys(done)), slices.Sorted(maps.Keys(got)); !slices.Equal(got, want) {
				t.Fatalf("stopped at request %d, then there is\n%q\nwant\n%q", k, got, want)
			}
			for id, want := range images {
				compare(t, r, id, want)
			}
			r.Close()
		}
	})
}

func TestRequestsOfPruning(t *testing.T) {
	// They grow with what goes, not with the repository: the newest backup of
	// one volume is deleted, beside few others or many.
	synctest.Test(t, func(t *testing.T) {
		requests := func(volumes int) (condemning, removing int) {
			c := countRequests(object.NewMem())
			r := testRepo(t, c, true)
			r.packTarget = 64 << 10
			var last layers.ID
			for range volumes {
				v := newVolume(1 << 20)
				ids, _ := lineage(t, r, v, 5)
				last = ids[4]
			}
			time.Sleep(48 * time.Hour)
			prunes(t, r, PruneOptions{}) // what a first look costs, and old sessions
			if err := r.Delete(t.Context(), last); err != nil {
				t.Fatal(err)
			}
			again, err := Open(t.Context(), c, Key{Passphrase: secret})
			if err != nil {
				t.Fatal(err)
			}
			defer again.Close()
			c.take()
			if report := prunes(t, again, PruneOptions{}); report.Condemned.Objects == 0 {
				t.Errorf("nothing was condemned: %+v", report)
			}
			seen := c.take()
			condemning = len(seen) - count(seen, "list ")
			time.Sleep(25 * time.Hour)
			if report := prunes(t, again, PruneOptions{}); report.Freed.Objects == 0 {
				t.Errorf("nothing was freed: %+v", report)
			}
			seen = c.take()
			return condemning, len(seen) - count(seen, "list ")
		}
		condemning, removing := requests(1)
		manyCondemning, manyRemoving := requests(20)
		t.Logf("%d and %d requests beside listings", condemning, removing)
		if manyCondemning != condemning || manyRemoving != removing || condemning > 10 || removing > 15 {
			t.Errorf("with 20 volumes it takes %d and %d requests, with one %d and %d", manyCondemning, manyRemoving, condemning, removing)
		}
	})
}
