package repo

import (
	"bytes"
	"cmp"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// copier is a repository with one full backup of several packs, and what is about
// to copy them. What was needed of each is all.
func copier(t *testing.T) (*object.Mem, *repacker, []source, Backup) {
	t.Helper()
	store := object.NewMem()
	r := testRepo(t, store, true)
	r.packTarget = 100 << 10 // one frame of what is half noise
	v := newVolume(1 << 20)
	fill(newRand(t), v.bytes)
	v.mark(0, int64(len(v.bytes)), layers.Data)
	b, err := v.backup(t.Context(), r, layers.ID{})
	if err != nil {
		t.Fatal(err)
	}
	p := newPrune(r, PruneOptions{Grace: PruneGrace, RepackBelow: RepackBelow})
	p.survey = new(survey)
	k := newRepacker(p, v.id)
	if k.key, err = k.newestKey(t.Context()); err != nil {
		t.Fatal(err)
	}
	var from []source
	for name, object := range contents(t, store) {
		if id, ok := packOf(name); ok && id.where == inData {
			from = append(from, source{packSize: packSize{inData, id.id, int64(len(object))}, all: true})
		}
	}
	if len(from) < 3 {
		t.Fatalf("%d packs", len(from))
	}
	slices.SortFunc(from, func(a, b source) int { return slices.Compare(a.id[:], b.id[:]) })
	return store, k, from, b
}

// packsBut are the packs that are there beside those of sources.
func packsBut(t *testing.T, store object.Store, from []source) (ids []packID, sizes []int) {
	t.Helper()
	for name, b := range contents(t, store) {
		id, ok := packOf(name)
		if ok && id.where == inData && !slices.ContainsFunc(from, func(s source) bool { return s.id == id.id }) {
			ids, sizes = append(ids, id), append(sizes, len(b))
		}
	}
	return ids, sizes
}

// A pack that is damaged, of another volume, or without a section that maps name
// is told of and stays as it is; the others are copied, and all they held is in
// the new ones. // B15
func TestPacksThatCannotBeCopied(t *testing.T) {
	const middle = headerSize + 1000
	for what, spoil := range map[string]func(k *repacker, s *source, b []byte) []byte{
		"header":         func(_ *repacker, _ *source, b []byte) []byte { b[0] ^= 1; return b },
		"trailer":        func(_ *repacker, _ *source, b []byte) []byte { b[len(b)-footerSize-20] ^= 1; return b },
		"frame":          func(_ *repacker, _ *source, b []byte) []byte { b[middle] ^= 1; return b },
		"end":            func(_ *repacker, _ *source, b []byte) []byte { return b[:len(b)-1] },
		"another volume": func(k *repacker, _ *source, b []byte) []byte { k.volume = layers.NewID(); return b },
		"no such section": func(_ *repacker, s *source, b []byte) []byte {
			s.all = false
			s.live.take(0, 1)
			s.live.take(100, 1)
			return b
		},
	} {
		for _, small := range []bool{true, false} { // it is read at once, or in parts
			store, k, from, _ := copier(t)
			if small {
				k.repo.packTarget = 1 << 20
			}
			name, volume := packName(inData, from[0].id), k.volume
			if err := store.Put(t.Context(), name, spoil(k, &from[0], contents(t, store)[name])); err != nil {
				t.Fatal(err)
			}
			if err := k.copy(t.Context(), &from[0]); err != nil || len(k.report.Kept) != 1 || len(k.pending) != 0 || len(k.whole) != 0 {
				t.Errorf("%s, small %t: %v, %d sections are copied; kept: %v", what, small, err, len(k.pending), k.report.Kept)
				continue
			}
			k.volume = volume
			if err := k.run(t.Context(), from[1:]); err != nil {
				t.Errorf("%s, small %t: %v", what, small, err)
			}
			if made := k.repo.moves.known(volume); len(made) != 1 || len(made[0].packs) != len(from)-1 {
				t.Errorf("%s, small %t: the relocations are %v", what, small, made)
			}
		}
	}
}

// What is copied goes into packs as large as others as soon as there is enough
// for one, so that no more than that is in memory, and the bytes that were copied
// are those of their sections. // B3
func TestCopiesAreWrittenPackByPack(t *testing.T) {
	store, k, from, b := copier(t)
	k.repo.packTarget = 150 << 10 // two frames
	for i := range from {
		if err := k.copy(t.Context(), &from[i]); err != nil {
			t.Fatal(err)
		}
		if k.bytes >= int64(k.repo.packTarget) || len(k.pending) == 0 && k.bytes != 0 {
			t.Errorf("%d bytes wait in %d sections", k.bytes, len(k.pending))
		}
	}
	if err := k.commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	ids, sizes := packsBut(t, store, from)
	total := Amount{}
	for _, size := range sizes {
		total.add(int64(size))
	}
	if len(ids) != 4 || slices.Max(sizes) > k.repo.packTarget || k.report.Rewritten != total || k.bytes != 0 || k.since != 0 {
		t.Errorf("packs of %v bytes; told are %+v; %d bytes wait, %d since", sizes, k.report.Rewritten, k.bytes, k.since)
	}
	for i := range from {
		store.Delete(t.Context(), packName(inData, from[i].id))
	}
	d := newDisk(int(b.Size))
	if err := hostOf(t, store).Restore(t.Context(), b.ID, d, RestoreOptions{}); err != nil {
		t.Error(err)
	}
}

// Also where each section fills a pack, a relocation says at the end where all of
// them are.
func TestNothingWaitsAtTheEnd(t *testing.T) {
	_, k, from, _ := copier(t)
	k.repo.packTarget = 60 << 10
	rows := 0
	if err := k.run(t.Context(), from); err != nil || len(k.written) != 1 {
		t.Fatalf("%v, %d relocations", err, len(k.written))
	}
	for _, row := range k.repo.moves.known(k.volume)[0].packs {
		rows += row.end - row.first
		if row.class != movedAll {
			t.Errorf("pack %s has class %d", row.id, row.class)
		}
	}
	if rows < len(from) || k.report.Rewritten.Objects != int64(rows) {
		t.Errorf("%d sections are moved from %d packs to %d", rows, len(from), k.report.Rewritten.Objects)
	}
}

// A small pack is copied with one request. Of a larger one its ends are read with
// one each, and what is needed with one for 8 MiB, or for what stands near each
// other. // B3
func TestRequestsOfCopying(t *testing.T) {
	c := countRequests(object.NewMem())
	r := testRepo(t, c, true)
	r.packTarget = 16 << 20
	v := newVolume(9 << 20)
	rnd := rand.NewChaCha8([32]byte{})
	rnd.Read(v.bytes) // never fails
	v.mark(0, int64(len(v.bytes)), layers.Data)
	must(v.backup(t.Context(), r, layers.ID{}))(t)
	ids, sizes := packsBut(t, c.Store, nil)
	if len(ids) != 1 {
		t.Fatalf("%d packs", len(ids))
	}
	for _, x := range []struct {
		what   string
		target int
		needed []uint32 // frames; nil: all
		want   int
	}{
		{"a small pack", 128 << 20, nil, 1},
		{"9 MiB", 16 << 20, nil, 2 + 2},
		{"one frame", 16 << 20, []uint32{7}, 2 + 1},
		{"frames with 4 between them", 16 << 20, []uint32{0, 4}, 2 + 1},
		{"frames with 5 between them", 16 << 20, []uint32{0, 6}, 2 + 2},
	} {
		p := newPrune(r, PruneOptions{})
		k := newRepacker(p, v.id)
		k.key, r.packTarget = must(k.newestKey(t.Context()))(t), x.target
		from := source{packSize: packSize{inData, ids[0].id, int64(sizes[0])}, all: x.needed == nil}
		for _, n := range x.needed {
			from.live.take(n, 1)
		}
		c.take()
		pack := must(k.readSource(t.Context(), &from))(t)
		sections := must(k.sections(t.Context(), &from, pack))(t)
		if got := len(c.take()); got != x.want || len(sections) != cmp.Or(len(x.needed), len(pack.sections)) {
			t.Errorf("%s: %d requests for %d sections, want %d", x.what, got, len(sections), x.want)
		}
	}
}

// In a new pack frames stand in the order of the volume, and what is no frame
// after them.
func TestCopiesStandInTheOrderOfAddresses(t *testing.T) {
	store, k, from, _ := copier(t)
	k.repo.packTarget = 1 << 20
	frame := func(block int64) copiedSection {
		return copiedSection{section: section{kind: sectionFrame, blocks: 1, runs: []run{{block, 1}}}}
	}
	leaf := func(first int64) copiedSection {
		return copiedSection{section: section{kind: sectionLeaf, first: first, zstd: true}}
	}
	k.pending = []copiedSection{leaf(spanBlocks), frame(9), leaf(0), frame(2), frame(70_000)}
	for i := range k.pending {
		k.pending[i].name = sectionKey{from[0].id, uint32(i)}
		k.pending[i].text = bytes.Repeat([]byte{1}, layers.BlockSize)
		k.bytes += layers.BlockSize
	}
	if err := k.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	ids, _ := packsBut(t, store, from)
	if len(ids) != 1 || k.bytes != 0 || k.since != 5*layers.BlockSize {
		t.Fatalf("%d packs; %d bytes wait, %d since", len(ids), k.bytes, k.since)
	}
	var p checkedPack
	if err := p.read(t.Context(), k.repo, inData, packRef{ids[0].id, k.key.ref}, true); err != nil {
		t.Fatal(err)
	}
	var got []int64
	for i := range p.sections {
		if s := &p.sections[i]; s.kind == sectionFrame {
			got = append(got, s.runs[0].block)
		} else {
			got = append(got, -1-s.first)
		}
	}
	if want := []int64{2, 9, 70_000, -1, -1 - spanBlocks}; !slices.Equal(got, want) {
		t.Errorf("the sections stand in the order %v, want %v", got, want)
	}
}

// After each GiB a relocation tells of what was copied, so that a crash costs no
// more; and no more is copied than a relocation has room for.
func TestHowMuchIsCopiedAtATime(t *testing.T) {
	_, k, from, _ := copier(t)
	k.since = commitEvery - 1 // so that any pack makes it a GiB
	if err := k.run(t.Context(), from); err != nil || len(k.written) != 2 {
		t.Errorf("%v, %d relocations, want one for the first pack, and one for the others", err, len(k.written))
	}
	_, k, from, _ = copier(t)
	k.places = &volumePlaces{replaced: make(map[*moveObject]bool)}
	one := &moveObject{relocations: &relocations{rows: make([]movedRow, maxRelocations*3/4)}}
	gone := &moveObject{relocations: &relocations{rows: make([]movedRow, 9)}}
	k.places.objects, k.places.replaced[gone] = []*moveObject{one, gone}, true
	if k.full() {
		t.Errorf("full with %d rows", len(one.rows))
	}
	k.pending = make([]copiedSection, 1)
	if !k.full() {
		t.Errorf("not full with %d rows and one that waits", len(one.rows))
	}
	k.pending, k.moved.rows = nil, 1
	if err := k.run(t.Context(), from); err != nil || len(k.report.Kept) != 1 || k.report.Rewritten.Objects != 0 {
		t.Errorf("full: %v, %+v", err, k.report)
	}
}

// A pack of which rows are taken over is moved whole only as long as all of them
// are: else what is left out would be looked for where it is not. // B15
func TestAPackIsMovedWholeWithAllItsRows(t *testing.T) {
	to := &sectionPlace{pack: packRef{id: objectID{9}}, kind: sectionLeaf, stored: 100, off: headerSize}
	for class, want := range map[movedClass][]movedClass{
		movedSome: {movedSome, movedSome}, movedNeeded: {movedNeeded, movedNeeded}, movedAll: {movedNeeded, movedAll},
	} {
		id, g, all := objectID{5}, newRelocating(), newRelocating()
		g.add(sectionKey{objectID{1}, 0}, to) // so that its rows are not the first
		for i := range uint32(2) {
			g.add(sectionKey{id, i}, to)
		}
		g.setClass(id, class)
		l := g.build()
		for i := range uint32(2) {
			all.add(sectionKey{id, i}, to)
			if got := l.classAfter(id, all); got != want[i] {
				t.Errorf("class %d, %d of 2 rows: class %d, want %d", class, i+1, got, want[i])
			}
		}
	}
}

// A section that maps name, and that would be left behind in a pack of which all
// that is needed was copied, ends the run. // B15
func TestNothingIsLeftBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, _, _ := repacked(t)
		time.Sleep(time.Hour)
		k := surveyed(t, hostOf(t, store))
		before := relocationsIn(t, store)
		k.whole[k.places.objects[0].objects[0].id] = movedNeeded
		if err := k.commit(t.Context()); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "was not copied") {
			t.Errorf("it says %v", err)
		}
		if after := relocationsIn(t, store); !slices.Equal(before, after) {
			t.Errorf("the relocations are %q, once %q", after, before)
		}
	})
}
