package repo

import (
	"context"
	"encoding/binary"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// pruneFor lets some graces go by with a pruning before and after each, and
// returns why volumes were left alone.
func pruneFor(t *testing.T, r *Repo, graces int) (kept []error) {
	t.Helper()
	for i := range graces + 1 {
		if i > 0 {
			time.Sleep(25 * time.Hour)
		}
		report, err := r.Prune(t.Context(), PruneOptions{})
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, report.Kept...)
	}
	return kept
}

// TestForgedTombstoneHidesAndDestroysNothing: a tombstone that nobody with the
// key wrote hides its backup; once it is gone the backup is there again. // B17
func TestForgedTombstoneHidesAndDestroysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := object.NewMem()
		r := testRepo(t, store, true)
		r.packTarget = 64 << 10
		v := newVolume(1 << 20)
		ids, images := lineage(t, r, v, 3)
		if err := r.Delete(t.Context(), ids[0]); err != nil {
			t.Fatal(err)
		}
		delete(images, ids[0])
		genuine, err := object.ReadAll(t.Context(), store, tombstoneName(v.id, ids[0]), maxBody)
		if err != nil {
			t.Fatal(err)
		}
		for name, forged := range map[string][]byte{
			tombstoneName(v.id, ids[1]):         {},
			tombstoneName(v.id, ids[2]):         genuine,
			tombstoneName(layers.ID{9}, ids[2]): genuine,
		} {
			if err := store.Put(t.Context(), name, forged); err != nil {
				t.Fatal(err)
			}
			kept := pruneFor(t, r, 2)
			if !slices.ContainsFunc(kept, func(err error) bool { return strings.Contains(err.Error(), name) }) {
				t.Errorf("pruning does not name the forged %s: %v", name, kept)
			}
			store.Delete(t.Context(), name)
			fresh, err := Open(t.Context(), store, Key{Passphrase: secret})
			if err != nil {
				t.Fatal(err)
			}
			for id, image := range images {
				compare(t, fresh, id, image)
			}
			fresh.Close()
		}
	})
}

// TestNamesOfOthersMakeNothingGarbage: what stands in the store under names and
// in headers that need no key does not make pruning look for a pack in the
// wrong volume, and so take it from backups that need it. // B17
func TestNamesOfOthersMakeNothingGarbage(t *testing.T) {
	for what, attack := range map[string]func(t *testing.T, store object.Store, gone layers.ID, other layers.ID){
		"a tombstone in another volume": func(t *testing.T, store object.Store, gone, other layers.ID) {
			store.Put(t.Context(), tombstoneName(other, gone), nil)
		},
		"headers of another volume": func(t *testing.T, store object.Store, gone, other layers.ID) {
			for _, name := range packsOf(t, store, gone) {
				b, err := object.ReadAll(t.Context(), store, name, 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				copy(b[48:64], other[:])
				binary.LittleEndian.PutUint32(b[108:], checksum(b[:108]))
				if h, err := parseHeader(b); err != nil || h.key.volume != other {
					t.Fatalf("the forged header does not read: %v", err)
				}
				store.Put(t.Context(), name, b)
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			store := object.NewMem()
			r := testRepo(t, store, true)
			r.packTarget = 64 << 10
			v, w := newVolume(1<<20), newVolume(1<<20)
			v.write(0, []byte("of the first backup alone"))
			ids, images := lineage(t, r, v, 2)
			lineage(t, r, w, 1)
			if err := r.Delete(t.Context(), ids[0]); err != nil {
				t.Fatal(err)
			}
			delete(images, ids[0])
			time.Sleep(30 * time.Hour)
			pruneFor(t, r, 2) // its root is gone, its packs are needed
			if len(packsOf(t, store, ids[0])) == 0 {
				t.Fatal("no pack is left of the deleted backup")
			}
			attack(t, store, ids[0], w.id)
			fresh, err := Open(t.Context(), store, Key{Passphrase: secret})
			if err != nil {
				t.Fatal(err)
			}
			defer fresh.Close()
			pruneFor(t, fresh, 3)
			for id, image := range images {
				d := newDisk(len(image))
				if err := fresh.Restore(t.Context(), id, d, RestoreOptions{}); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}

// TestFalseNumbersMakeNothingGarbage: a name in the store that gives a backup
// which is gone a lower number, or another volume, does not hide from pruning
// what the leaves name that it wrote. // B17
func TestFalseNumbersMakeNothingGarbage(t *testing.T) {
	var x struct {
		store  *object.Mem
		ids    []layers.ID
		images map[layers.ID][]byte
		volume layers.ID
		age    time.Duration
	}
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		x.store = object.NewMem()
		r := testRepo(t, x.store, true)
		v := newVolume(2 << 20)
		v.write(0, []byte("of the first backup"))
		x.ids, x.images = lineage(t, r, v, 8)
		x.volume, x.age = v.id, time.Since(begun)
	})
	for i, owner := range x.ids[:len(x.ids)-1] {
		for j, writer := range x.ids[:len(x.ids)-1] {
			if j <= i {
				continue
			}
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(x.age)
				store := x.store.Clone()
				r, err := Open(t.Context(), store, Key{Passphrase: secret})
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				if err := r.Delete(t.Context(), writer); err != nil {
					t.Fatal(err)
				}
				pruneFor(t, r, 2)
				for _, volume := range []layers.ID{x.volume, {15: 255}} {
					store.Put(t.Context(), rootName{volume: volume, epoch: 1, seq: 1, backup: writer}.String(), nil)
				}
				if err := r.Delete(t.Context(), owner); err != nil {
					t.Fatal(err)
				}
				fresh, err := Open(t.Context(), store, Key{Passphrase: secret})
				if err != nil {
					t.Fatal(err)
				}
				defer fresh.Close()
				pruneFor(t, fresh, 3)
				for k, id := range x.ids {
					if k == i || k == j {
						continue
					}
					d := newDisk(len(x.images[id]))
					if err := fresh.Restore(t.Context(), id, d, RestoreOptions{}); err != nil {
						t.Errorf("backup %d deleted, %d named falsely: %v", i, j, err)
					}
				}
			})
		}
	}
}

// lateStore claims of one object that it is from a time to come.
type lateStore struct {
	object.Store
	name string
}

func (s lateStore) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		for info, err := range s.Store.List(ctx, prefix) {
			if info.Name == s.name {
				info.Modified = info.Modified.AddDate(100, 0, 0)
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// TestOneLyingTimeEndsNoGrace: an object that claims to be from next century
// makes nothing else old. // B17
func TestOneLyingTimeEndsNoGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := object.NewMem()
		r := testRepo(t, store, true)
		v := newVolume(1 << 20)
		ids, _ := lineage(t, r, v, 2)
		if err := r.Delete(t.Context(), ids[1]); err != nil {
			t.Fatal(err)
		}
		last := layers.NewID() // of a session that is listed behind that of the run
		last[0] = 0xff
		showLeaning(t, r, last, v.id, "", 0)
		for name := range contents(t, store) {
			late, err := Open(t.Context(), lateStore{store, name}, Key{Passphrase: secret})
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if report := prunes(t, late, PruneOptions{}); report.Freed.Objects > 0 {
					t.Errorf("%s claims to be from the future: %+v", name, report)
				}
			}
			late.Close()
		}
		if len(packsOf(t, store, ids[1])) == 0 {
			t.Error("the packs of a backup that was deleted today are gone")
		}
	})
}
