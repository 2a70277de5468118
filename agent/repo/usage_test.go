package repo

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// stored adds up the roots and packs in a store.
func stored(t *testing.T, s object.Store) (a Amount) {
	t.Helper()
	for info, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		_, _, isPack := parsePack(info.Name)
		if name, ok := parseVolumeName(info.Name); isPack || ok && name.kind == "b" {
			a.add(info.Size)
		}
	}
	return a
}

func usage(t *testing.T, r *Repo) Usage {
	t.Helper()
	u, err := r.Usage(t.Context())
	if err != nil || len(u.Damage) > 0 {
		t.Fatalf("%v, damage %v", err, u.Damage)
	}
	return u
}

func plus(a, b Amount) Amount { return Amount{a.Objects + b.Objects, a.Bytes + b.Bytes} }

// What a backup alone needs is what pruning frees after its deletion, to the
// byte; and what a repository takes is all accounted for at each step.
func TestUniqueIsWhatPruningFrees(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			store := object.NewMem()
			r := testRepo(t, store, encrypted)
			r.packTarget = 64 << 10
			v, w := newVolume(2<<20), newVolume(1<<20)
			ids, _ := lineage(t, r, v, 7)
			others, _ := lineage(t, r, w, 2)
			time.Sleep(48 * time.Hour)
			if _, err := r.Unique(t.Context(), layers.NewID()); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("unique to a backup that is not there: %v", err)
			}
			// The oldest goes last: until then it needs what no other does.
			for _, id := range []layers.ID{ids[0], ids[3], ids[6], others[1], ids[1], ids[5], others[0]} {
				before := stored(t, store)
				only, err := r.Unique(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				u := usage(t, r)
				sum := plus(u.Garbage, u.Unfinished)
				for _, v := range u.Volumes {
					sum = plus(sum, v.Stored)
				}
				if sum != before || u.Garbage.Objects != 0 || u.Unfinished.Objects != 0 {
					t.Fatalf("%+v is accounted for, %+v is there: %+v", sum, before, u)
				}
				if err := r.Delete(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				if got := usage(t, r).Garbage; got != only {
					t.Errorf("garbage after the deletion: %+v, unique were %+v", got, only)
				}
				for range 3 {
					time.Sleep(25 * time.Hour)
					prunes(t, r, PruneOptions{})
				}
				if after := stored(t, store); plus(after, only) != before {
					t.Errorf("pruning left %+v of %+v, unique to the backup were %+v", after, before, only)
				}
			}
			u := usage(t, r)
			if len(u.Volumes) != 1 || u.Volumes[0].Volume != v.id || u.Volumes[0].Backups != 2 || u.Volumes[0].Name != "data" || u.Volumes[0].Logical == 0 {
				t.Errorf("%+v", u)
			}
		})
	}
}

// Packs of a backup that was cut off are neither a volume's nor garbage while it
// may go on, and garbage after that.
func TestUsageOfWhatWasCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hook := &objecttest.Hook{Store: object.NewMem()}
		r := testRepo(t, hook, true)
		r.packTarget = 64 << 10
		v := newVolume(1 << 20)
		rnd := newRand(t)
		v.scribble(rnd)
		hook.Before = func(op, name string) error {
			if op == "delete" || op == "put" && strings.Contains(name, "/b/") {
				return errStopped
			}
			return nil
		}
		if _, err := v.backup(t.Context(), r, layers.ID{}); !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		hook.Before = nil
		there := stored(t, hook)
		if u := usage(t, r); there.Objects == 0 || u.Unfinished != there || u.Garbage.Objects != 0 {
			t.Errorf("%+v, want %+v unfinished", u, there)
		}
		time.Sleep(100 * time.Hour)
		w := newVolume(1 << 16) // tells the time
		w.write(0, []byte("later"))
		if _, err := w.backup(t.Context(), r, layers.ID{}); err != nil {
			t.Fatal(err)
		}
		prunes(t, r, PruneOptions{}) // takes the session away
		if u := usage(t, r); u.Unfinished.Objects != 0 || u.Garbage != there {
			t.Errorf("%+v, want %+v garbage", u, there)
		}
	})
}

// What cannot be read is told, counts as needed, and hides nothing else.
func TestUsageOfADamagedRepository(t *testing.T) {
	store := object.NewMem()
	r := testRepo(t, store, true)
	v := newVolume(1 << 20)
	v.write(0, []byte("first"))
	a, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	v.forget()
	v.write(512<<10, []byte("second"))
	b, err := v.backup(t.Context(), r, a.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), a.ID); err != nil {
		t.Fatal(err)
	}
	for name, object := range contents(t, store) {
		if strings.HasSuffix(name, b.ID.String()) && strings.Contains(name, "/b/") {
			object[len(object)-1] ^= 1
			if err := store.Put(t.Context(), name, object); err != nil {
				t.Fatal(err)
			}
		}
	}
	u, err := r.Usage(t.Context())
	if err != nil || len(u.Damage) == 0 || !errors.Is(u.Damage[0], ErrCorrupt) || len(u.Volumes) != 1 || u.Volumes[0].Backups != 1 {
		t.Errorf("%+v, %v", u, err)
	}
	if packs := packsOf(t, store, a.ID); len(packs) == 0 || u.Garbage.Objects != 1 { // the deleted root
		t.Errorf("%d packs of the deleted one; garbage %+v", len(packs), u.Garbage)
	}
	if _, err := r.Unique(t.Context(), b.ID); !errors.Is(err, ErrCorrupt) {
		t.Errorf("unique to a damaged backup: %v", err)
	}
}
