package repo

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// What a listing has of relocations is read once. One that is gone since is
// passed over, one that is damaged is told beside the others, and a store that
// does not answer is an error. // B15, B19
func TestRelocationsAreRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, _, _ := movedTwice(t)
		names := relocationsIn(t, first)
		volume, _, _ := parseRelocationName(names[0])
		bytes := contents(t, first)
		load := func(store object.Store, listed ...string) (got []string, r *Repo, err error) {
			t.Helper()
			r = hostOf(t, store)
			var all []listedMove
			for _, name := range listed {
				_, id, _ := parseRelocationName(name)
				all = append(all, listedMove{name: name, id: id, size: int64(len(bytes[name]))})
			}
			r.moves.learn(map[layers.ID][]listedMove{volume: all}, volume)
			objects, err := r.loadMoves(t.Context(), volume)
			for _, o := range objects {
				if got = append(got, o.name); o.size != int64(len(bytes[o.name])) {
					t.Errorf("%s has %d bytes, it says %d", o.name, len(bytes[o.name]), o.size)
				}
			}
			slices.Sort(got)
			return got, r, err
		}
		c := countRequests(first.Clone())
		got, r, err := load(c, names...)
		if err != nil || !slices.Equal(got, names) || len(r.moves.known(volume)) != 2 {
			t.Errorf("%q, %v", got, err)
		}
		c.take()
		if again, err := r.loadMoves(t.Context(), volume); err != nil || len(again) != 2 || len(c.take()) != 0 {
			t.Errorf("the second time: %d relocations, %v", len(again), err)
		}
		if none, err := r.loadMoves(t.Context(), layers.ID{9}); none != nil || err != nil || r.moves.of(layers.ID{9}, false) != nil {
			t.Errorf("of a volume that has none: %v, %v", none, err)
		}
		gone := first.Clone()
		gone.Delete(t.Context(), names[0])
		if got, _, err := load(gone, names...); err != nil || !slices.Equal(got, names[1:]) {
			t.Errorf("one is gone: %q, %v", got, err)
		}
		broken := bytes[names[0]]
		broken[len(broken)-30] ^= 1
		gone.Put(t.Context(), names[0], broken)
		if got, _, err := load(gone, names...); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), names[0]) || !slices.Equal(got, names[1:]) {
			t.Errorf("one is damaged: %q, %v", got, err)
		}
		hook := &objecttest.Hook{Store: first.Clone()}
		away := hostOf(t, hook)
		hook.Before = func(op, name string) error { return errStopped }
		if _, err := away.loadListed(t.Context(), volume, []listedMove{{name: names[0]}}); !errors.Is(err, errStopped) {
			t.Errorf("the store does not answer: %v", err)
		}
		if err := away.refreshMoves(t.Context(), volume); !errors.Is(err, errStopped) {
			t.Errorf("the store does not answer: %v", err)
		}
	})
}

// Who misses a section lists the relocations, unless somebody did just now; one
// that cannot be read hides no other.
func TestRelocationsAreListedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, _, _ := movedTwice(t)
		names := relocationsIn(t, store)
		volume, _, _ := parseRelocationName(names[0])
		broken := contents(t, store)[names[0]]
		broken[len(broken)-30] ^= 1
		store.Put(t.Context(), names[0], broken)
		c := countRequests(store)
		r := hostOf(t, c)
		c.take()
		for i, want := range []int{1, 0, 1} {
			if err := r.refreshMoves(t.Context(), volume); err != nil {
				t.Fatal(err)
			}
			if known := r.moves.known(volume); len(known) != 1 || known[0].name != names[1] {
				t.Errorf("%d relocations are known", len(known))
			}
			if got := count(c.take(), "list "); got != want {
				t.Errorf("look %d: %d listings, want %d", i, got, want)
			}
			time.Sleep(movesFresh/2 + time.Millisecond*time.Duration(i))
		}
	})
}

// A section that cannot be read in one place is read in another: where any
// relocation has it, also one that nobody here has seen yet, and where it was
// written. A place that cannot be of it, by its kind or length, is not asked. // B15
func TestASectionIsReadInAnyPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, _, _ := movedTwice(t)
		k := surveyed(t, hostOf(t, first))
		a, b := k.places.objects[0], k.places.objects[1]
		var name sectionKey
		for n, row := range a.names() {
			if a.place(row).kind == sectionFrame {
				name = n
				break
			}
		}
		at := func(o *moveObject) sectionPlace { to, _ := o.find(name); return to }
		written := sectionPlace{}
		{
			var p checkedPack
			id := packID{inData, name.id}
			ref := packRef{id.id, must(k.newestKey(t.Context()))(t).ref}
			if err := p.read(t.Context(), k.repo, inData, ref, true); err != nil {
				t.Fatal(err)
			}
			s := p.sections[name.number]
			written = sectionPlace{pack: ref, where: inData, number: name.number, off: p.offsets[name.number], stored: s.stored, kind: s.kind, blocks: s.blocks, zstd: s.zstd}
		}
		want := must(k.repo.openPlace(t.Context(), &written))(t)
		places := []sectionPlace{at(a), at(b), written}
		for _, known := range []bool{false, true} {
			for left := range len(places) {
				store := first.Clone()
				for i, p := range places {
					if i != left {
						spoilt := contents(t, store)[packName(p.where, p.pack.id)]
						spoilt[p.off] ^= 1
						store.Put(t.Context(), packName(p.where, p.pack.id), spoilt)
					}
				}
				r := hostOf(t, store)
				if known {
					if err := r.refreshMoves(t.Context(), k.volume); err != nil {
						t.Fatal(err)
					}
				}
				for i, tried := range places {
					if i == left {
						continue
					}
					place, text, err := r.openMoved(t.Context(), name, written, tried, ErrCorrupt)
					if err != nil || *place != places[left] || !slices.Equal(text, want) {
						t.Errorf("known %t, place %d is whole, place %d was tried: %v", known, left, i, err)
					}
				}
			}
		}
		// None is whole, or none can be of it.
		store := first.Clone()
		for _, p := range places {
			store.Delete(t.Context(), packName(p.where, p.pack.id))
		}
		r := hostOf(t, store)
		if _, _, err := r.openMoved(t.Context(), name, written, written, ErrCorrupt); !errors.Is(err, ErrCorrupt) {
			t.Errorf("no place is whole: %v", err)
		}
		if _, _, err := r.openMoved(t.Context(), name, written, written, errStopped); err != errStopped {
			t.Errorf("the store did not answer: %v", err)
		}
		for _, other := range []func(*sectionPlace){func(p *sectionPlace) { p.kind = sectionLeaf }, func(p *sectionPlace) { p.blocks++ }} {
			like := written
			other(&like)
			c := countRequests(first.Clone())
			r := hostOf(t, c)
			c.take()
			if _, _, err := r.openMoved(t.Context(), name, like, like, ErrCorrupt); !errors.Is(err, ErrCorrupt) {
				t.Errorf("no place can be of it: %v", err)
			}
			if n := count(c.take(), "get p/"); n != 0 {
				t.Errorf("no place can be of it, and %d are asked", n)
			}
		}
		hook := &objecttest.Hook{Store: first.Clone()}
		away := hostOf(t, hook)
		if err := away.refreshMoves(t.Context(), k.volume); err != nil {
			t.Fatal(err)
		}
		if _, err := away.volumeKey(t.Context(), written.pack.key); err != nil {
			t.Fatal(err)
		}
		hook.Before = func(op, name string) error { return errStopped }
		if _, _, err := away.openMoved(t.Context(), name, written, written, ErrCorrupt); !errors.Is(err, errStopped) {
			t.Errorf("the store does not answer: %v", err)
		}
	})
}

// A frame has another place if a relocation has it elsewhere than here, known or
// not; of several all have to. // B15
func TestFramesThatAreElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, _, _ := movedTwice(t)
		k := surveyed(t, hostOf(t, store))
		a := k.places.objects[0]
		var moved []wanted
		for n, row := range a.names() {
			if to := a.place(row); to.kind == sectionFrame {
				moved = append(moved, wanted{pack: packRef{n.id, to.pack.key}, frame: frameRef{number: n.number, blocks: to.blocks, stored: to.stored, off: headerSize}})
			}
		}
		never := wanted{pack: packRef{objectID{1}, moved[0].pack.key}, frame: frameRef{number: 1, blocks: 1}}
		for _, c := range []struct {
			what   string
			frames []wanted
			want   bool
		}{{"moved", moved, true}, {"not all moved", append(slices.Clone(moved), never), false}, {"not moved", []wanted{never}, false}} {
			if got, err := hostOf(t, store).allElsewhere(t.Context(), c.frames); got != c.want || err != nil {
				t.Errorf("%s: %t, %v", c.what, got, err)
			}
		}
		hook := &objecttest.Hook{Store: store}
		away := hostOf(t, hook)
		hook.Before = func(op, name string) error { return errStopped }
		if _, err := away.allElsewhere(t.Context(), moved); !errors.Is(err, errStopped) {
			t.Errorf("the store does not answer: %v", err)
		}
	})
}
