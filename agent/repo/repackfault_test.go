package repo

import (
	"errors"
	"maps"
	"reflect"
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

// movedTwice is a store whose packs two hosts repacked at once: each relocation
// says of all that was moved where that host put it. They come with the packs
// that they lead to.
func movedTwice(t *testing.T) (store *object.Mem, images map[layers.ID][]byte, packs map[string][]string) {
	t.Helper()
	store, images = toRepack(t)
	hook := &objecttest.Hook{Store: store}
	slow, fast := hostOf(t, hook), hostOf(t, store)
	slow.packTarget, fast.packTarget = 512<<10, 512<<10
	var once sync.Once
	hook.Before = func(op, name string) error {
		if op == "put" && strings.HasPrefix(name, "p/") {
			once.Do(func() { prunes(t, fast, PruneOptions{RepackBelow: RepackBelow}) })
		}
		return nil
	}
	time.Sleep(time.Minute) // the sessions of both are at different times
	prunes(t, slow, PruneOptions{RepackBelow: RepackBelow})
	packs = make(map[string][]string)
	for _, o := range surveyed(t, hostOf(t, store)).places.objects {
		for i := range o.objects {
			packs[o.name] = append(packs[o.name], packName(inData, o.objects[i].id))
		}
	}
	if len(packs) != 2 {
		t.Fatalf("the relocations are %v, want two", packs)
	}
	return store, images, packs
}

// B19: a request that fails makes the run fail, wherever it is: what it did not
// see it does not take for what is not there. Only the removal of its own session
// at the end may fail.
func TestEveryRequestOfARepackingCounts(t *testing.T) {
	once := func(t *testing.T) *object.Mem {
		store, _ := toRepack(t)
		return store
	}
	twice := func(t *testing.T) *object.Mem {
		store, _, _ := movedTwice(t)
		return store
	}
	fading := func(t *testing.T) *object.Mem {
		store, images := toRepack(t)
		ids := slices.SortedFunc(maps.Keys(images), func(a, b layers.ID) int { return slices.Compare(a[:], b[:]) })
		if err := hostOf(t, store).Delete(t.Context(), ids[0]); err != nil {
			t.Fatal(err)
		}
		return store
	}
	going := func(t *testing.T) *object.Mem { // packs and relocations
		store, _, _ := movedTwice(t)
		daysOfPruning(t, store, 2)
		return store
	}
	for _, c := range []struct {
		what  string
		first func(*testing.T) *object.Mem
	}{{"packs are copied", once}, {"relocations are merged", twice}, {"a backup was deleted just now", fading}, {"what was copied goes", going}} {
		synctest.Test(t, func(t *testing.T) {
			first := c.first(t)
			for k := 0; ; k++ {
				hook := &objecttest.Hook{Store: first.Clone()}
				r := hostOf(t, hook)
				r.packTarget = 512 << 10
				var mu sync.Mutex
				seen, failed := 0, ""
				hook.Before = func(op, name string) error {
					mu.Lock()
					defer mu.Unlock()
					if seen++; seen == k+1 {
						failed = op + " " + name
						return errStopped
					}
					return nil
				}
				var done, total int64
				report, err := r.Prune(t.Context(), PruneOptions{RepackBelow: RepackBelow, Progress: func(d, n int64) { done, total = d, n }})
				if mu.Lock(); failed == "" {
					if err != nil || len(report.Kept) > 0 || k < 10 || done != total {
						t.Errorf("%s: %d requests: %v, %+v, %d of %d bytes", c.what, k, err, report, done, total)
					}
					return
				}
				if !errors.Is(err, errStopped) && !strings.HasPrefix(failed, "delete "+sessionRoot) {
					t.Errorf("%s: %s failed, and the run says %v, %+v", c.what, failed, err, report)
				}
				mu.Unlock()
			}
		})
	}
}

// daysOfPruning prunes until what is given up is gone.
func daysOfPruning(t *testing.T, store object.Store, days int) (kept []error) {
	t.Helper()
	r := hostOf(t, store)
	r.packTarget = 512 << 10
	for range days {
		report, err := r.Prune(t.Context(), PruneOptions{RepackBelow: RepackBelow})
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, report.Kept...)
		time.Sleep(25 * time.Hour)
	}
	return kept
}

// Of two places where a section was moved to the next relocation has the one
// that is whole: nothing is lost when one of the two packs is damaged, or gone,
// whichever it is. // B15
func TestTheWholePlaceIsTakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, images, packs := movedTwice(t)
		for relocation, names := range packs {
			for _, gone := range []bool{false, true} {
				store := first.Clone()
				for _, name := range names {
					b := contents(t, store)[name]
					for i := headerSize + 10; i < len(b)-footerSize; i += 1000 {
						b[i] ^= 1
					}
					if err := store.Put(t.Context(), name, b); err != nil {
						t.Fatal(err)
					}
					if gone {
						store.Delete(t.Context(), name)
					}
				}
				daysOfPruning(t, store, 6)
				if left := relocationsIn(t, store); len(left) != 1 || left[0] == relocation {
					t.Errorf("the relocations are %q", left)
				}
				for id, image := range images {
					compare(t, hostOf(t, store), id, image)
				}
			}
		}
	})
}

// A relocation to packs that are missing is not taken over while what it moved is
// where it was first, and the run says so. // B15
func TestRelocationsToMissingPacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, images, packs := movedTwice(t)
		for _, names := range packs {
			if err := store.Delete(t.Context(), names...); err != nil {
				t.Fatal(err)
			}
		}
		kept := daysOfPruning(t, store, 1)
		if !slices.ContainsFunc(kept, func(err error) bool { return strings.Contains(err.Error(), "is there in its place") }) {
			t.Errorf("kept: %v", kept)
		}
		daysOfPruning(t, store, 4)
		for name := range packs {
			if slices.Contains(relocationsIn(t, store), name) {
				t.Errorf("%s is there", name)
			}
		}
		for id, image := range images {
			compare(t, hostOf(t, store), id, image)
		}
	})
}

// A relocation that stands for another one, where all backups are there, says all
// that it said. // B15
func TestARelocationSaysWhatTheOneBeforeItDid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, _, _ := repacked(t)
		r := hostOf(t, store)
		before := surveyed(t, r).places.objects[0]
		time.Sleep(time.Hour)
		mergeMoves(t, hostOf(t, store))
		for _, o := range surveyed(t, hostOf(t, store)).places.objects {
			if !reflect.DeepEqual(o.relocations, before.relocations) {
				t.Errorf("%s says %+v, the one before it %+v", o.name, o.packs, before.packs)
			}
		}
	})
}

// Where what was moved is missing and what was there first too, the next
// relocation says of it what the last one did: who finds the packs has all. Where
// something is still in a first place, whatever it is, its rows are left out. // B15
func TestRelocationsOfWhatIsMissingEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, images, packs := movedTwice(t)
		all := contents(t, first)
		for _, there := range []place{inData, inLeaves} {
			store := first.Clone()
			hook := &objecttest.Hook{Store: store}
			k := surveyed(t, hostOf(t, hook))
			clear(k.targets)
			from := k.places.objects[0].packs
			stays, rows := from[0].id, from[0].end-from[0].first
			for name := range all {
				if id, ok := packOf(name); ok && (id.id != stays || there == inLeaves) {
					store.Delete(t.Context(), name)
				}
			}
			if there == inLeaves {
				store.Put(t.Context(), packName(inLeaves, stays), nil)
			}
			hook.Before = func(op, name string) error {
				if op == "get" && strings.HasPrefix(name, "m/") {
					return errStopped
				}
				return nil
			}
			if err := k.commit(t.Context()); !errors.Is(err, errStopped) {
				t.Errorf("it cannot be seen whether something is there: %v", err)
			}
			hook.Before = nil
			if err := k.commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			made := k.repo.moves.known(k.volume)[0]
			if _, still := made.at(stays); still || made.id != k.written[0] || len(made.rows)+rows != len(k.places.objects[0].rows) || len(k.report.Kept) != rows {
				t.Errorf("%d rows of %d are taken over, %d are of the pack that is there; kept: %v", len(made.rows), len(k.places.objects[0].rows), rows, k.report.Kept)
			}
			for name := range packs {
				store.Delete(t.Context(), name)
			}
			for name := range all {
				if _, ok := packOf(name); ok {
					store.Put(t.Context(), name, all[name])
				}
			}
			for id, image := range images {
				compare(t, hostOf(t, store), id, image)
			}
		}
	})
}
