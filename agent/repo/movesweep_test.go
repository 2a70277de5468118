package repo

import (
	"slices"
	"testing"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// moveOf is a relocation of sections 0 to n-1 of pack 1 to packs.
func moveOf(id byte, n int, to ...byte) *moveObject {
	g := newRelocating()
	for i := range max(n, len(to)) {
		pack := packRef{id: objectID{to[min(i, len(to)-1)]}}
		g.add(sectionKey{objectID{1}, uint32(i)}, &sectionPlace{pack: pack, kind: sectionLeaf, stored: 100, off: headerSize})
	}
	return &moveObject{relocations: g.build(), id: objectID{id}, name: string('a' + rune(id)), size: int64(id)}
}

// A relocation goes when one that every reader finds stands for it, and what maps
// name is in those that stay; or when it leads to nothing. One that is young
// never goes. // B15, B17
func TestWhichRelocationsGo(t *testing.T) {
	const there, missing = 7, 8 // packs
	type other struct {
		rows          int
		old, replaced bool
		replaces      bool // the one that is asked of
	}
	for _, c := range []struct {
		what          string
		to            []byte
		old, replaced bool
		others        []other
		want          bool
	}{
		{what: "one that is needed", to: []byte{there}, old: true},
		{what: "one that leads to nothing", to: []byte{missing}, old: true, want: true},
		{what: "one that leads to something, and to nothing", to: []byte{missing, there}, old: true},
		{what: "a young one that leads to nothing", to: []byte{missing}},
		{what: "one that another stands for", to: []byte{there}, old: true, replaced: true, others: []other{{4, true, false, true}}, want: true},
		{what: "a young one that another stands for", to: []byte{there}, replaced: true, others: []other{{4, true, false, true}}},
		{what: "one that a young one stands for", to: []byte{there}, old: true, replaced: true, others: []other{{4, false, false, true}}},
		{what: "one that nobody stands for, beside another", to: []byte{there}, old: true, others: []other{{4, true, false, false}}},
		{what: "one that one stands for which goes too", to: []byte{there}, old: true, replaced: true, others: []other{{4, true, true, true}, {4, true, false, false}}},
		{what: "one that another stands for which says less", to: []byte{there}, old: true, replaced: true, others: []other{{2, true, false, true}}},
		{what: "as much as is needed", to: []byte{there}, old: true, replaced: true, others: []other{{3, true, false, true}}, want: true},
		{what: "less, and one beside it says the rest", to: []byte{there}, old: true, replaced: true, others: []other{{2, true, false, true}, {4, true, false, false}}, want: true},
		{what: "less, and a young one says the rest", to: []byte{there}, old: true, replaced: true, others: []other{{2, true, false, true}, {4, false, false, false}}},
		{what: "less, and leads to nothing", to: []byte{missing}, old: true, replaced: true, others: []other{{2, true, false, true}}, want: true},
	} {
		r := testRepo(t, object.NewMem(), false)
		if err := r.store.Put(t.Context(), packName(inData, objectID{there}), nil); err != nil {
			t.Fatal(err)
		}
		p := newPrune(r, PruneOptions{})
		v := &volumePlaces{
			replaced: make(map[*moveObject]bool), old: make(map[*moveObject]bool), from: map[objectID]movedClass{{1}: movedNeeded},
			named: make(map[objectID]*liveSet), walks: 2,
		}
		for i := range uint32(3) { // of 4
			v.name(sectionKey{objectID{1}, i})
		}
		o := moveOf(2, 4, c.to...)
		v.objects, v.old[o], v.replaced[o] = []*moveObject{o}, c.old, c.replaced
		for i, x := range c.others {
			n := moveOf(byte(3+i), x.rows, there)
			if x.replaces {
				n.replaces = []objectID{o.id}
			}
			v.objects = append(v.objects, n)
			v.old[n], v.replaced[n] = x.old, x.replaced
		}
		if got, err := p.idle(t.Context(), v, o); got != c.want || err != nil {
			t.Errorf("%s: %t, %v", c.what, got, err)
		}
	}
}

// What goes is told, and what the store retains is not. Nothing goes of a volume
// with a relocation that cannot be read, or when a run is only to tell what it
// would do. // B17
func TestSweepOfRelocations(t *testing.T) {
	for _, c := range []struct {
		what     string
		dry      bool
		err      error
		retained bool
		want     Amount
		left     int
	}{
		{what: "two lead to nothing", want: Amount{2, 5}, left: 1},
		{what: "only to tell", dry: true, left: 3},
		{what: "one cannot be read", err: ErrCorrupt, left: 3},
		{what: "one is retained", retained: true, want: Amount{1, 2}, left: 2},
	} {
		store := object.NewMem()
		hook := &objecttest.Hook{Store: store}
		r := testRepo(t, hook, false)
		p := newPrune(r, PruneOptions{DryRun: c.dry})
		v := &volumePlaces{err: c.err, replaced: make(map[*moveObject]bool), old: make(map[*moveObject]bool)}
		for id := byte(2); id < 5; id++ {
			o := moveOf(id, 1, 100+id)
			o.name = relocationName(layers.ID{1}, o.id)
			v.objects = append(v.objects, o)
			v.old[o] = id < 4 // the last one is young
			if err := store.Put(t.Context(), o.name, nil); err != nil {
				t.Fatal(err)
			}
		}
		p.places = map[layers.ID]*volumePlaces{{1}: v}
		if c.retained {
			held := v.objects[1].name
			hook.Before = func(op, name string) error {
				if op != "delete" {
					return nil
				}
				store.Delete(t.Context(), v.objects[0].name)
				return &object.RetainedError{Names: []string{held}}
			}
		}
		if err := p.sweepMoves(t.Context()); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		hook.Before = nil
		if left := relocationsIn(t, store); p.report.Freed != c.want || len(left) != c.left {
			t.Errorf("%s: freed %+v, want %+v; %d are left, want %d", c.what, p.report.Freed, c.want, len(left), c.left)
		}
	}
}

// A listing tells which relocations there are: what was read of others is
// forgotten, of the volumes that it is of, and of no others.
func TestListingsTellOfRelocations(t *testing.T) {
	a, b, c := layers.ID{1}, layers.ID{2}, layers.ID{3}
	listed := func(objects ...*moveObject) (all []listedMove) {
		for _, o := range objects {
			all = append(all, listedMove{name: o.name, id: o.id})
		}
		return all
	}
	one, two, three := moveOf(2, 1, 9), moveOf(3, 1, 9), moveOf(4, 1, 9)
	known := func() *moves {
		m := new(moves)
		m.learn(map[layers.ID][]listedMove{a: listed(one, two), b: listed(three)}, layers.ID{})
		m.add(a, one)
		m.add(a, two)
		m.add(b, three)
		return m
	}
	expect := func(what string, m *moves, volume layers.ID, want ...*moveObject) {
		t.Helper()
		if got := m.known(volume); !slices.Equal(got, want) {
			t.Errorf("%s: of volume %s %d are known, want %d", what, volume, len(got), len(want))
		}
	}
	m := known()
	m.learn(map[layers.ID][]listedMove{a: listed(two), c: listed(three)}, layers.ID{})
	expect("a listing of all", m, a, two)
	expect("a listing of all", m, b)
	if v := m.of(c, false); v == nil || len(v.listed) != 1 {
		t.Error("a volume of which nothing was known is not taken in")
	}
	m = known()
	m.learn(map[layers.ID][]listedMove{a: listed(two)}, a)
	expect("a listing of one", m, a, two)
	expect("a listing of one", m, b, three)
	m = known()
	m.learn(nil, b)
	expect("a listing of one without any", m, a, one, two)
	expect("a listing of one without any", m, b)
	if m.of(c, false) != nil {
		t.Error("a volume is known that nobody listed")
	}
}

// The relocation is asked first that no other stands for, of those the newest,
// and one that no listing has yet before all.
func TestOrderOfRelocations(t *testing.T) {
	replaced, older, newer, alike, unlisted := moveOf(2, 1, 9), moveOf(3, 1, 9), moveOf(4, 1, 9), moveOf(5, 1, 9), moveOf(6, 1, 9)
	newer.replaces = []objectID{{77}, replaced.id}
	at := time.Unix(1e9, 0)
	listed := []listedMove{{id: replaced.id, modified: at.Add(time.Hour)}, {id: older.id, modified: at}, {id: newer.id, modified: at.Add(time.Second)}, {id: alike.id, modified: at.Add(time.Second)}}
	want := []*moveObject{unlisted, newer, alike, older, replaced}
	for _, given := range [][]*moveObject{{replaced, older, newer, alike, unlisted}, {unlisted, alike, newer, older, replaced}, {older, alike, unlisted, replaced, newer}} {
		if got := arranged(given, listed); !slices.Equal(got, want) {
			for _, o := range got {
				t.Logf("relocation %s", o.name)
			}
			t.Error("the relocations stand in this order")
		}
	}
	first, ok := firstPlace(want, sectionKey{objectID{1}, 0})
	if to, _ := unlisted.find(sectionKey{objectID{1}, 0}); !ok || first != to {
		t.Errorf("the first place is %+v, %t", first, ok)
	}
	if _, ok := firstPlace(want, sectionKey{objectID{1}, 1}); ok {
		t.Error("a section that was not moved has another place")
	}
}

// So many rows are known at a time, of all volumes: those of the volume that was
// read last stay.
func TestRowsOfRelocationsAreBounded(t *testing.T) {
	full := func(rows int) *moveObject {
		return &moveObject{relocations: &relocations{rows: make([]movedRow, rows)}}
	}
	m, a, b := new(moves), layers.ID{1}, layers.ID{2}
	m.add(a, full(maxRelocations/2))
	m.add(b, full(maxRelocations/2))
	if len(m.known(a)) != 1 || len(m.known(b)) != 1 {
		t.Errorf("of volumes with half of the rows each %d and %d relocations are known", len(m.known(a)), len(m.known(b)))
	}
	m.add(a, full(1))
	if len(m.known(a)) != 2 || len(m.known(b)) != 0 {
		t.Errorf("with one row more %d and %d relocations are known", len(m.known(a)), len(m.known(b)))
	}
}
