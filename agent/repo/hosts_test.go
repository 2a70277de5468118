package repo

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// The simulation of C5: hosts that back up, resume, delete, prune, repack, take
// volumes over from each other and verify,
// that stand still and crash at any request, and whose clocks lie by hours,
// over a store whose listings lag by up to an hour, for each name by another
// time. Whatever happens, a backup that has a root and no tombstone reads as
// what was backed up; and when all is quiet, garbage goes within two graces.
//
// A seed steers what happens. Goroutines of one backup may still come to the
// store in another order when it is run again.

const worldDays = 12

// The world must be able to tell that a rule is missing: it breaks each. That
// takes up to some hundred seeds, so it is part of make soak alone.
func TestHostsMissEveryRule(t *testing.T) {
	const most = 2000 // seeds
	if os.Getenv("SEEDS") == "" {
		return
	}
	flaws := []flaw{trusting, blindToRunning, greedy, rootsFirst}
	for _, f := range flaws {
		t.Run(strings.ReplaceAll(string(f), " ", "-"), func(t *testing.T) {
			first := firstSeed()
			for i := range uint64(most) {
				if w := simulate(t, f, busy, first+i); w.lost != nil {
					t.Logf("seed %d, the %d. one: %v", first+i, i+1, w.lost)
					return
				}
			}
			t.Errorf("%d seeds did not find it", most)
		})
	}
}

// simulate runs a world. It returns the first loss.
func simulate(t *testing.T, f flaw, sky weather, seed uint64) (w *world) {
	synctest.Test(t, func(t *testing.T) {
		w = &world{
			flaw: f, weather: sky, mem: object.NewMem(), past: make(map[string][]span2),
			images: make(map[layers.ID][]byte), made: make(map[layers.ID][]layers.ID),
			volumes: []layers.ID{layers.NewID(), layers.NewID()},
			end:     time.Now().Add(worldDays * 24 * time.Hour),
		}
		init := w.newHost(0)
		init.calm = true
		r, err := Init(t.Context(), init, Key{}, Params{NoEncryption: true})
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		var hosts sync.WaitGroup
		for i := range uint64(3) {
			hosts.Go(func() { w.live(seed*16 + i + 1) })
		}
		for time.Now().Before(w.end) && w.failed() == nil {
			time.Sleep(12 * time.Hour)
			w.check()
		}
		hosts.Wait()
		w.check()
		if w.failed() != nil {
			return
		}
		if left := w.settle(); len(left) > 0 {
			w.fail(fmt.Errorf("two graces after the last change these are left: %q", left))
		}
		w.check()
	})
	return w
}

func TestHosts(t *testing.T) {
	// C5, B9, B17, B19.
	seeds := uint64(20)
	if testing.Short() {
		seeds = 5
	}
	if n, err := strconv.ParseUint(os.Getenv("SEEDS"), 10, 32); err == nil {
		seeds = n
	}
	first := firstSeed()
	if *seedFlag != 0 {
		seeds = 1
	}
	var sum world
	for i := range seeds {
		f := sound
		if (first+i)%2 == 1 {
			f = hasty // the argument of design.md says that one look would do
		}
		sky := []weather{fair, rough, busy}[(first+i)/2%3]
		w := simulate(t, f, sky, first+i)
		if w.lost != nil {
			t.Errorf("replay with -seed %d (%s): %v", first+i, f, w.lost)
		}
		sum.backups += w.backups
		sum.resumed += w.resumed
		sum.deleted += w.deleted
		sum.prunes += w.prunes
		sum.repacked += w.repacked
		sum.takeovers += w.takeovers
		sum.crashes += w.crashes
		sum.refused += w.refused
		sum.requests += w.requests
	}
	t.Logf("seeds %d to %d: %d requests, %d backups, %d resumed, %d without the parent they wanted, %d deletions, %d prunes, %d of which copied packs, %d takeovers, %d crashes",
		first, first+seeds-1, sum.requests, sum.backups, sum.resumed, sum.refused, sum.deleted, sum.prunes, sum.repacked, sum.takeovers, sum.crashes)
}
