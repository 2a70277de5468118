package repo

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// expectAll opens a store anew and compares its backups with the images, by
// restore, by reading, by verification and by an audit.
func expectAll(t *testing.T, store object.Store, images map[layers.ID][]byte) {
	t.Helper()
	r, err := Open(t.Context(), store, Key{Passphrase: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for id, want := range images {
		compare(t, r, id, want)
		got, err := readWhole(r, id)
		if err != nil || differ(got, want) >= 0 {
			t.Errorf("backup %s reads otherwise at %d: %v", id, differ(got, want), err)
		}
		if report, err := r.Verify(t.Context(), id, VerifyOptions{Level: Deep}); err != nil {
			t.Errorf("verify: %v, %v", err, report.Damage)
		}
	}
	for level := Presence; level <= Deep; level++ {
		if report, err := r.Audit(t.Context(), AuditOptions{Level: level}); err != nil {
			t.Errorf("audit %v: %v, %+v", level, err, report.Findings)
		}
	}
}

// wasteful makes a repository where old packs hold little that is needed: full
// backups that were written over, block by block, and deleted.
func wasteful(t *testing.T, r *Repo) (v *volume, ids []layers.ID, images map[layers.ID][]byte) {
	t.Helper()
	rnd := newRand(t)
	v = newVolume(2 << 20)
	for i := range v.bytes {
		v.bytes[i] = byte(rnd.Uint32())
	}
	v.mark(0, int64(len(v.bytes)), layers.Data)
	images = make(map[layers.ID][]byte)
	var parent layers.ID
	for range 8 { // the map is merged with the sixth
		b, err := v.backup(t.Context(), r, parent)
		if err != nil {
			t.Fatal(err)
		}
		v.forget()
		parent = b.ID
		ids = append(ids, b.ID)
		images[b.ID] = slices.Clone(v.bytes)
		for range 5 {
			p := make([]byte, frameBytes)
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			v.write(rnd.Int64N(int64(len(v.bytes)/frameBytes))*frameBytes, p)
		}
		time.Sleep(time.Hour)
	}
	return v, ids, images
}

func TestRepackFreesWhatPacksWaste(t *testing.T) {
	for _, encrypted := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			store := object.NewMem()
			r := testRepo(t, store, encrypted)
			r.packTarget = 512 << 10
			_, ids, images := wasteful(t, r)
			for _, id := range ids[:7] {
				if err := r.Delete(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				delete(images, id)
			}
			for range 3 {
				time.Sleep(25 * time.Hour)
				prunes(t, r, PruneOptions{})
			}
			before := r.taken(t)
			for day := range 6 {
				time.Sleep(25 * time.Hour)
				report := prunes(t, r, PruneOptions{RepackBelow: RepackBelow})
				t.Logf("day %d: %+v", day, report)
				if encrypted {
					expectAll(t, store, images)
				}
			}
			after := r.taken(t)
			t.Logf("%d bytes, then %d", before, after)
			if after >= before {
				t.Error("nothing was won")
			}
		})
	}
}

// taken is what all packs take.
func (r *Repo) taken(t *testing.T) (n int64) {
	err := r.eachPack(t.Context(), func(s *suspect) error {
		n += s.size
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMergeOfSmallPacks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := object.NewMem()
		r := testRepo(t, store, true)
		v := newVolume(1 << 20)
		ids, images := lineage(t, r, v, 12)
		r.packTarget = 4 << 20
		time.Sleep(30 * time.Hour)
		count := func() (n int) {
			for name := range contents(t, store) {
				if strings.HasPrefix(name, "p/") || strings.HasPrefix(name, "m/") {
					n++
				}
			}
			return n
		}
		before := count()
		for range 5 {
			report := prunes(t, r, PruneOptions{RepackBelow: 60})
			t.Logf("%+v", report)
			expectAll(t, store, images)
			time.Sleep(25 * time.Hour)
		}
		t.Logf("%d packs, then %d", before, count())
		if count() > 2 {
			t.Errorf("%q are left", slices.Sorted(maps.Keys(contents(t, store))))
		}
		u, err := r.Usage(t.Context())
		if err != nil || len(u.Damage) > 0 || u.Garbage != (Amount{}) || len(u.Volumes) != 1 || u.Volumes[0].Stored.Objects != int64(1+len(ids)) {
			t.Errorf("usage: %+v, %v; want one pack and a root for each backup, and no garbage", u, err)
		}
		if only, err := r.Unique(t.Context(), ids[3]); err != nil || only.Objects != 1 {
			t.Errorf("only one backup needs %+v, %v; want its root", only, err)
		}
		for _, id := range ids {
			if err := r.Delete(context.Background(), id); err != nil {
				t.Fatal(err)
			}
		}
		for range 4 {
			time.Sleep(25 * time.Hour)
			prunes(t, r, PruneOptions{RepackBelow: 60})
		}
		for name := range contents(t, store) {
			if name != headName && !strings.HasPrefix(name, slotPrefix) && !strings.Contains(name, "/k/") {
				t.Errorf("all is deleted and pruned, and %s is left", name)
			}
		}
	})
}

// A host that knew a backup before its packs were moved and removed verifies it
// where it is now: what it looked for is no damage.
func TestVerifyOfWhatWasMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := object.NewMem()
		r := testRepo(t, store, true)
		r.packTarget = 64 << 10 // so that leaves have packs of their own
		_, ids, _ := wasteful(t, r)
		last := ids[len(ids)-1]
		other := hostOf(t, store)
		other.packTarget, other.mergePacks = r.packTarget, 2
		old := packsOf(t, store, last)
		for range 6 {
			time.Sleep(25 * time.Hour)
			prunes(t, other, PruneOptions{RepackBelow: 100})
		}
		left := packsOf(t, store, last)
		if !slices.ContainsFunc(old, func(name string) bool { return strings.HasPrefix(name, "m/") && !slices.Contains(left, name) }) {
			t.Fatalf("no pack of leaves was moved: %q, %q are left", old, left)
		}
		for level := Presence; level <= Deep; level++ {
			if report, err := r.Verify(t.Context(), last, VerifyOptions{Level: level}); err != nil {
				t.Errorf("%v: %v, %v", level, err, report.Damage)
			}
		}
	})
}
