package repo

import (
	"bytes"
	"context"
	"iter"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// What guards repacking against what no seed of the simulation met.

// An unlisting store leaves some names out of its listings.
type unlisting struct {
	object.Store
	hidden map[string]bool
}

func (f *unlisting) List(ctx context.Context, prefix string) iter.Seq2[object.Info, error] {
	return func(yield func(object.Info, error) bool) {
		for info, err := range f.Store.List(ctx, prefix) {
			if !f.hidden[info.Name] && !yield(info, err) {
				return
			}
		}
	}
}

// repacked is a store of full backups that share nothing, whose packs were put
// together in one. The old ones are gone, and nothing is condemned, so that no
// list names their roots.
func repacked(t *testing.T) (*object.Mem, []layers.ID, map[layers.ID][]byte) {
	t.Helper()
	store := object.NewMem()
	r := testRepo(t, store, true)
	v, images := newVolume(64<<10), make(map[layers.ID][]byte)
	rnd := newRand(t)
	var ids []layers.ID
	for range mergePacks + 1 {
		fill(rnd, v.bytes)
		v.mark(0, int64(len(v.bytes)), layers.Data)
		b := must(v.backup(t.Context(), r, layers.ID{}))(t)
		ids, images[b.ID] = append(ids, b.ID), bytes.Clone(v.bytes)
	}
	r.packTarget = 4 << 20
	for range 5 {
		time.Sleep(25 * time.Hour)
		prunes(t, r, PruneOptions{RepackBelow: RepackBelow})
	}
	packs := 0
	for name := range contents(t, store) {
		if _, is := packOf(name); is {
			packs++
		}
	}
	if n := len(relocationsIn(t, store)); n != 1 || packs != 1 {
		t.Fatalf("%d relocations, %d packs", n, packs)
	}
	return store, ids, images
}

func relocationsIn(t *testing.T, store object.Store) (names []string) {
	t.Helper()
	for info, err := range store.List(t.Context(), volumesRoot) {
		if err != nil {
			t.Fatal(err)
		}
		if _, _, ok := parseRelocationName(info.Name); ok {
			names = append(names, info.Name)
		}
	}
	return names
}

// rootNameOf is the name of a backup's root.
func rootNameOf(t *testing.T, store object.Store, id layers.ID) string {
	t.Helper()
	for info, err := range store.List(t.Context(), volumesRoot) {
		if err != nil {
			t.Fatal(err)
		}
		if root, ok := parseRoot(info.Name); ok && root.backup == id {
			return info.Name
		}
	}
	t.Fatalf("no root of backup %s", id)
	return ""
}

// The second look: a relocation was written while a listing had not all roots,
// and leaves out what those need. The one before it stays, since when it is to
// go somebody looks what maps name once more.
func TestRelocationGoesAfterASecondLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, ids, images := repacked(t)
		first := relocationsIn(t, store)[0]
		view := &unlisting{Store: store, hidden: map[string]bool{rootNameOf(t, store, ids[3]): true}}
		if less := mergeMoves(t, hostOf(t, view)); !less {
			t.Fatal("the new relocation says as much as the one before it")
		}
		clear(view.hidden)
		for range 4 {
			time.Sleep(25 * time.Hour)
			prunes(t, hostOf(t, view), PruneOptions{})
		}
		if left := relocationsIn(t, store); !slices.Contains(left, first) {
			t.Error("the relocation that a backup needs is gone")
		}
		for id, image := range images {
			compare(t, hostOf(t, store), id, image)
		}
	})
}

// mergeMoves lets a run write a relocation that stands for all others, with what
// it sees that maps need, and reports whether that is less than there was.
func mergeMoves(t *testing.T, r *Repo) (less bool) {
	t.Helper()
	k := surveyed(t, r)
	rows := 0
	for _, o := range k.places.objects {
		rows += len(o.rows)
	}
	if err := k.commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, o := range r.moves.known(k.volume) {
		if o.id == k.written[0] {
			return len(o.rows) < rows
		}
	}
	t.Fatal("nothing was written")
	return false
}

// surveyed is a run that has gone through the store and is about to repack its
// only volume.
func surveyed(t *testing.T, r *Repo) *repacker {
	t.Helper()
	p := newPrune(r, PruneOptions{Grace: PruneGrace, RepackBelow: RepackBelow})
	if err := p.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end(context.Background()) })
	var err error
	if p.survey, err = r.survey(t.Context(), p.id); err != nil {
		t.Fatal(err)
	}
	p.sortRoots()
	if err := p.readMoves(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.readLists(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.findOwners()
	if err := p.packs(t.Context()); err != nil {
		t.Fatal(err)
	}
	for volume := range p.places {
		return newRepacker(p, volume)
	}
	t.Fatal("nothing was moved")
	return nil
}

// What was deleted lately is gathered too: a relocation that stands for others
// has the rows of a backup that was deleted an hour ago, on which somebody may
// be building one that no listing has yet.
func TestRelocationKeepsWhatWasDeletedLately(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, ids, images := repacked(t)
		if err := hostOf(t, store).Delete(t.Context(), ids[3]); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		first := relocationsIn(t, store)[0]
		mergeMoves(t, hostOf(t, store))
		// Only the new one counts, and the backup is there again.
		if err := store.Delete(t.Context(), first); err != nil {
			t.Fatal(err)
		}
		for name := range contents(t, store) {
			if kindInVolume(name) == "d" {
				store.Delete(t.Context(), name)
			}
		}
		for id, image := range images {
			compare(t, hostOf(t, store), id, image)
		}
	})
}

// The limit of time: a run that stood still for longer than half of the grace
// since it looked commits nothing, also when that was in the commit itself:
// other runs may have taken what it leads to for garbage.
func TestRelocationThatComesTooLate(t *testing.T) {
	for _, slow := range []string{"p/", volumesRoot} {
		synctest.Test(t, func(t *testing.T) {
			store, images := toRepack(t)
			slept := false
			hook := &objecttest.Hook{Store: store, After: func(op, name string) error {
				if op == "put" && slept && strings.Contains(name, "/r/") {
					t.Errorf("slow at %s: %s is written", slow, name)
				}
				if op == "put" && strings.HasPrefix(name, slow) && !slept {
					slept = true
					time.Sleep(sessionGrace + time.Minute)
				}
				return nil
			}}
			r := hostOf(t, hook)
			r.packTarget = 512 << 10
			report, err := r.Prune(t.Context(), PruneOptions{RepackBelow: RepackBelow})
			if err != nil || !slept || len(report.Kept) != 1 || !strings.Contains(report.Kept[0].Error(), errLate.Error()) {
				t.Errorf("slow at %s: %v, %+v", slow, err, report)
			}
			if left := relocationsIn(t, store); len(left) > 0 {
				t.Errorf("slow at %s: %q is left", slow, left)
			}
			for id, image := range images {
				compare(t, hostOf(t, store), id, image)
			}
			hook.After = nil
			for range 6 { // and the next runs come to the end
				time.Sleep(25 * time.Hour)
				prunes(t, r, PruneOptions{RepackBelow: RepackBelow})
			}
			if n := len(relocationsIn(t, store)); n != 1 {
				t.Errorf("slow at %s: %d relocations in the end", slow, n)
			}
			for id, image := range images {
				compare(t, hostOf(t, store), id, image)
			}
		})
	}
}

// B7: what two backups differ in is the same before and after their packs were
// repacked and the old ones went, and the extents that it yields read alike.
// What each alone needs is then what pruning frees, to the byte.
func TestDiffAndUniqueOfRepackedBackups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, images := toRepack(t)
		var ids []layers.ID
		for b, err := range hostOf(t, store).Backups(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, b.ID)
		}
		diff := func(store object.Store) (extents []layers.Extent) {
			for e, err := range hostOf(t, store).Diff(t.Context(), ids[0], ids[1]) {
				if err != nil {
					t.Fatal(err)
				}
				extents = append(extents, e)
			}
			return extents
		}
		before := diff(store)
		r := hostOf(t, store)
		r.packTarget = 512 << 10
		old := contents(t, store)
		for range 6 {
			time.Sleep(25 * time.Hour)
			prunes(t, r, PruneOptions{RepackBelow: RepackBelow})
		}
		gone := 0
		now := contents(t, store)
		for name := range old {
			if _, is := packOf(name); is && now[name] == nil {
				gone++
			}
		}
		if len(relocationsIn(t, store)) == 0 || gone == 0 {
			t.Fatal("nothing was moved")
		}
		after := diff(store)
		if len(before) == 0 || len(before) != len(after) {
			t.Fatalf("%d extents, then %d", len(before), len(after))
		}
		for i := range before {
			if before[i] != after[i] {
				t.Errorf("%+v, then %+v", before[i], after[i])
			}
		}
		for _, id := range ids {
			store := store.Clone()
			r := hostOf(t, store)
			only := must(r.Unique(t.Context(), id))(t)
			was := stored(t, store)
			if err := r.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			for range 4 {
				time.Sleep(25 * time.Hour)
				prunes(t, r, PruneOptions{})
			}
			if is := stored(t, store); plus(is, only) != was {
				t.Errorf("unique to backup %s are %+v, pruning freed %d objects, %d bytes", id, only, was.Objects-is.Objects, was.Bytes-is.Bytes)
			}
			left := maps.Clone(images)
			delete(left, id)
			for id, image := range left {
				compare(t, hostOf(t, store), id, image)
			}
		}
	})
}
