package repo

import (
	"bytes"
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

// B17: every request of a run that repacks fails once, and then the run that
// comes after it is stopped too. All backups are whole at each point, and the
// runs after them bring the store to where it would have been.
func TestRepackCanStopAnywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, images := toRepack(t)
		var done []string
		for k := 0; ; k++ {
			store := first.Clone()
			hook := &objecttest.Hook{Store: store}
			r, err := Open(t.Context(), hook, Key{Passphrase: secret})
			if err != nil {
				t.Fatal(err)
			}
			r.packTarget = 512 << 10
			var mu sync.Mutex
			seen, stop := 0, true
			hook.Before = func(op, name string) error {
				mu.Lock()
				defer mu.Unlock()
				if seen++; seen > k && stop {
					return errStopped
				}
				return nil
			}
			_, err = r.Prune(t.Context(), PruneOptions{RepackBelow: RepackBelow})
			if err != nil && !errors.Is(err, errStopped) {
				t.Fatalf("request %d: %v", k, err)
			}
			synctest.Wait() // for requests on their way that nobody waits for: what comes would share their answers
			mu.Lock()
			whole := err == nil && seen <= k
			stop = false
			mu.Unlock()
			for id, want := range images {
				compare(t, r, id, want)
			}
			for range 5 {
				time.Sleep(25 * time.Hour)
				prunes(t, r, PruneOptions{RepackBelow: RepackBelow})
			}
			var packs int
			for name := range contents(t, store) {
				if _, ok := packOf(name); ok {
					packs++
				}
			}
			kinds := []string{strings.Repeat("p", packs)}
			for name := range contents(t, store) {
				if _, ok := packOf(name); !ok && strings.Contains(name, "/r/") {
					kinds = append(kinds, "r")
				} else if !ok {
					kinds = append(kinds, name)
				}
			}
			slices.Sort(kinds)
			if done == nil {
				done = kinds
			} else if !slices.Equal(kinds, done) {
				t.Fatalf("stopped at request %d, then there is\n%q\nwant\n%q", k, kinds, done)
			}
			for id, want := range images {
				compare(t, r, id, want)
			}
			r.Close()
			if whole {
				return
			}
		}
	})
}

// toRepack is a store with packs that the next run repacks, and its backups.
func toRepack(t *testing.T) (*object.Mem, map[layers.ID][]byte) {
	t.Helper()
	store := object.NewMem()
	r := testRepo(t, store, true)
	r.packTarget = 512 << 10
	_, ids, images := wasteful(t, r)
	for _, id := range ids[:6] {
		if err := r.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		delete(images, id)
	}
	for range 3 {
		time.Sleep(25 * time.Hour)
		prunes(t, r, PruneOptions{})
	}
	return store, images
}

// B15: a restore that was cut off, and goes on when what it reads was moved and
// the old packs are gone, is exact: what it had counted as done is counted anew
// where the order of packs is another one.
func TestRestoreGoesOnAfterRepacking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, images := toRepack(t)
		for id, want := range images {
			for k := 1; ; k++ {
				store := store.Clone()
				hook := &objecttest.Hook{Store: store}
				r, err := Open(t.Context(), hook, Key{Passphrase: secret})
				if err != nil {
					t.Fatal(err)
				}
				r.packTarget = 512 << 10
				dst := &ram{bytes: make([]byte, len(want))}
				var mu sync.Mutex
				var point RestorePoint
				kept, seen, stop := bytes.Clone(dst.bytes), 0, true
				hook.Before = func(op, name string) error {
					mu.Lock()
					defer mu.Unlock()
					if id, ok := packOf(name); ok && id.where == inData && op == "get" {
						if seen++; seen > k && stop {
							return errStopped
						}
					}
					return nil
				}
				err = r.Restore(t.Context(), id, dst, RestoreOptions{Blank: true, Checkpoint: func(p RestorePoint) error {
					dst.mu.Lock()
					defer dst.mu.Unlock()
					point, kept = p, bytes.Clone(dst.bytes)
					return nil
				}})
				if err == nil {
					break
				}
				if !errors.Is(err, errStopped) {
					t.Fatal(err)
				}
				synctest.Wait() // as above
				mu.Lock()
				stop = false
				mu.Unlock()
				for range 4 {
					prunes(t, r, PruneOptions{RepackBelow: RepackBelow})
					time.Sleep(25 * time.Hour)
				}
				again := &ram{bytes: kept}
				if err := r.Restore(t.Context(), id, again, RestoreOptions{Blank: true, From: point}); err != nil {
					t.Fatal(err)
				}
				if at := differ(again.bytes, want); at >= 0 {
					t.Fatalf("cut after %d packs at %+v: backup %s differs at %d", k, point, id, at)
				}
				r.Close()
			}
		}
	})
}

// ram takes a restore.
type ram struct {
	mu    sync.Mutex
	bytes []byte
}

func (m *ram) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(m.bytes[off:], p), nil
}

func (m *ram) WriteZeroes(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.bytes[off : off+n])
	return nil
}

// What a repacking wrote is verified as all else: a new pack that is damaged
// while the old one is there still costs no reader anything, and what is lost
// is named otherwise.
func TestDamageAfterRepacking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, images := toRepack(t)
		r, err := Open(t.Context(), store, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		r.packTarget = 512 << 10
		before := contents(t, store)
		if report := prunes(t, r, PruneOptions{RepackBelow: RepackBelow}); report.Rewritten.Objects == 0 {
			t.Fatalf("nothing was copied: %+v", report)
		}
		written := ""
		for _, name := range slices.Sorted(maps.Keys(contents(t, store))) {
			if _, ok := packOf(name); ok && before[name] == nil {
				written = name
			}
		}
		broken := contents(t, store)[written]
		broken[headerSize+100] ^= 1
		if err := store.Put(t.Context(), written, broken); err != nil {
			t.Fatal(err)
		}
		fresh, err := Open(t.Context(), store, Key{Passphrase: secret})
		if err != nil {
			t.Fatal(err)
		}
		defer fresh.Close()
		for id, want := range images {
			compare(t, fresh, id, want)
		}
		for range 3 {
			time.Sleep(25 * time.Hour)
			r.Prune(t.Context(), PruneOptions{})
		}
		report, err := fresh.Audit(t.Context(), AuditOptions{Level: Deep})
		if !errors.Is(err, ErrCorrupt) || len(report.Damaged) == 0 || report.Findings[0].Object != written {
			t.Errorf("audit: %v, %+v", err, report)
		}
	})
}
