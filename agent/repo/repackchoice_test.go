package repo

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"varve/agent/object"
	"varve/agent/object/objecttest"
	"varve/layers"
)

// choosing is a run that has looked at a store at an instant, and is told of
// packs one by one. A full pack has 1 MiB.
func choosing(t *testing.T, below int) (*prune, time.Time) {
	t.Helper()
	r := testRepo(t, object.NewMem(), false)
	r.packTarget = 1 << 20
	now := time.Unix(1e9, 0)
	p := newPrune(r, PruneOptions{Grace: PruneGrace, RepackBelow: below})
	p.survey = &survey{now: now, stones: make(map[layers.ID]listedStone)}
	p.owners = make(map[sessionID]owner)
	return p, now
}

// took is what was chosen of a volume.
func (p *prune) took(volume layers.ID) (wasteful, small int) {
	s := p.sources[volume]
	if s == nil {
		return 0, 0
	}
	return len(s.wasteful), len(s.small)
}

// Of packs of backups that are gone those are copied of which less is needed than
// is asked for, if enough is won, and small ones. None is that is young, or
// garbage, or of a volume that nobody knows. // B17
func TestPacksOfDeletedBackupsThatAreCopied(t *testing.T) {
	const quarter, win = 1 << 18, 1 << 15
	for _, c := range []struct {
		what            string
		size, live      int64
		age             time.Duration
		garbage, unseen bool
		wasteful, small int
	}{
		{what: "most is needed", size: 1e6, live: 600_000, age: PruneGrace},
		{what: "less is", size: 1e6, live: 599_999, age: PruneGrace, wasteful: 1},
		{what: "it is young", size: 1e6, live: 10, age: PruneGrace - 1},
		{what: "a small one is young", size: 1000, live: 1000, age: PruneGrace - 1},
		{what: "nothing is needed", size: 1e6, age: PruneGrace},
		{what: "nothing of a small one is needed", size: 1000, age: PruneGrace},
		{what: "it is garbage", size: 1e6, live: 10, age: PruneGrace, garbage: true},
		{what: "nobody knows its volume", size: 1e6, live: 10, age: PruneGrace, unseen: true},
		{what: "just not small", size: quarter, live: quarter, age: PruneGrace},
		{what: "small", size: quarter - 1, live: quarter - 1, age: PruneGrace, small: 1},
		{what: "enough is won by a small one", size: 60_000, live: 60_000 - win, age: PruneGrace, wasteful: 1},
		{what: "too little is", size: 60_000, live: 60_000 - win + 1, age: PruneGrace, small: 1},
	} {
		p, now := choosing(t, RepackBelow)
		volume, backup := layers.NewID(), layers.NewID()
		s := &suspect{packSize: packSize{inData, newObjectID(backup), c.size}, modified: now.Add(-c.age), live: liveSet{bytes: c.live}}
		if !c.unseen {
			p.owners[sessionOf(backup)] = owner{root: rootName{volume, 1, 1, backup}}
		}
		packs, garbage := suspects{s.id: s}, suspects{}
		if c.garbage {
			garbage[s.id] = s
		}
		if err := p.considerAll(t.Context(), packs, garbage); err != nil {
			t.Fatal(err)
		}
		if wasteful, small := p.took(volume); wasteful != c.wasteful || small != c.small || len(p.sources) > wasteful+small {
			t.Errorf("%s: %d wasteful and %d small packs of %d volumes, want %d and %d", c.what, wasteful, small, len(p.sources), c.wasteful, c.small)
		}
	}
}

// A pack that repacking wrote is of the volume that its relocation is of.
func TestPacksOfRepackingThatAreCopied(t *testing.T) {
	p, now := choosing(t, RepackBelow)
	volume, session := layers.NewID(), layers.NewID()
	p.repo.reach.setVolume(sessionOf(session), volume)
	s := &suspect{packSize: packSize{inData, newObjectID(session), 1e6}, modified: now.Add(-PruneGrace), live: liveSet{bytes: 10}}
	if err := p.considerAll(t.Context(), suspects{s.id: s}, nil); err != nil {
		t.Fatal(err)
	}
	if wasteful, _ := p.took(volume); wasteful != 1 {
		t.Errorf("%d packs are chosen", wasteful)
	}
}

// Of packs of backups that are there small ones are copied, whole, unless they
// are young, or their backup is being made or deleted. // B17
func TestPacksOfBackupsThatAreCopied(t *testing.T) {
	const quarter = 1 << 18
	for _, c := range []struct {
		what             string
		below            int
		size             int64
		age              time.Duration
		running, deleted bool
		small            int
	}{
		{what: "small", below: 60, size: quarter - 1, age: PruneGrace, small: 1},
		{what: "just not small", below: 60, size: quarter, age: PruneGrace},
		{what: "young", below: 60, size: 1000, age: PruneGrace - 1},
		{what: "being made", below: 60, size: 1000, age: PruneGrace, running: true},
		{what: "deleted", below: 60, size: 1000, age: PruneGrace, deleted: true},
		{what: "nothing is to be copied", below: 0, size: 1000, age: PruneGrace},
	} {
		p, now := choosing(t, c.below)
		volume, backup := layers.NewID(), layers.NewID()
		if c.deleted {
			p.stones[backup] = listedStone{volume: volume, backup: backup}
		}
		s := &suspect{packSize: packSize{inData, newObjectID(backup), c.size}, modified: now.Add(-c.age)}
		p.considerOwned(s, owner{root: rootName{volume, 1, 1, backup}, keeps: true, running: c.running})
		if wasteful, small := p.took(volume); wasteful != 0 || small != c.small {
			t.Errorf("%s: %d wasteful and %d small packs, want %d small", c.what, wasteful, small, c.small)
		} else if small > 0 {
			if from := &p.sources[volume].small[0]; from.bytes() != c.size || from.class() != movedAll {
				t.Errorf("%s: %d bytes are copied, class %d", c.what, from.bytes(), from.class())
			}
		}
	}
	if some := (&source{packSize: packSize{size: 10}, live: liveSet{bytes: 4}}); some.bytes() != 4 || some.class() != movedNeeded {
		t.Errorf("of a pack that is needed in part %d bytes are copied, class %d", some.bytes(), some.class())
	}
}

// A run copies so many packs and no more, whosever they are.
func TestPacksThatOneRunCopies(t *testing.T) {
	p, now := choosing(t, RepackBelow)
	p.considered = sourcesMax - 3
	volume, kept, gone := layers.NewID(), layers.NewID(), layers.NewID()
	p.owners[sessionOf(gone)] = owner{root: rootName{volume, 1, 1, gone}}
	pack := func(backup layers.ID) *suspect {
		return &suspect{packSize: packSize{inData, newObjectID(backup), 1000}, modified: now.Add(-PruneGrace), live: liveSet{bytes: 1000}}
	}
	for range 2 {
		p.considerOwned(pack(kept), owner{root: rootName{volume, 1, 2, kept}, keeps: true})
	}
	packs := make(suspects)
	for range 2 {
		s := pack(gone)
		packs[s.id] = s
	}
	if err := p.considerAll(t.Context(), packs, nil); err != nil {
		t.Fatal(err)
	}
	p.considerOwned(pack(kept), owner{root: rootName{volume, 1, 2, kept}, keeps: true})
	if _, small := p.took(volume); small != 3 {
		t.Errorf("%d packs are chosen where there is room for 3", small)
	}
}

// Small packs are copied once there are enough of them, wasteful ones at once,
// all in the order of their names.
func TestPacksAreCopiedInTheOrderOfTheirNames(t *testing.T) {
	pack := func(where place, first byte) source {
		return source{packSize: packSize{where: where, id: objectID{first}}}
	}
	s := &sources{
		wasteful: []source{pack(inLeaves, 1), pack(inData, 4), pack(inData, 2)},
		small:    []source{pack(inData, 3), pack(inData, 1)},
	}
	for merge, want := range map[int][]source{
		3: {pack(inData, 2), pack(inData, 4), pack(inLeaves, 1)},
		2: {pack(inData, 1), pack(inData, 2), pack(inData, 3), pack(inData, 4), pack(inLeaves, 1)},
	} {
		if got := s.chosen(merge); !reflect.DeepEqual(got, want) {
			t.Errorf("with %d small packs that are enough: %v, want %v", merge, got, want)
		}
	}
}

// What a run would copy it tells without doing it: packs and bytes, and how many
// full packs those make. A volume of which not all can be read is left alone.
func TestWhatWouldBeRepacked(t *testing.T) {
	for _, c := range []struct {
		target                  int
		moved, unclear, unknown bool // packs of the volume before; which can be read; which cannot
		want                    PruneReport
	}{
		{target: 308_000, want: PruneReport{Repacked: Amount{10, 2_008_000}, Rewritten: Amount{2, 308_001}}},
		{target: 307_999, want: PruneReport{Repacked: Amount{10, 2_008_000}, Rewritten: Amount{3, 308_001}}},
		{target: 308_000, moved: true, want: PruneReport{Repacked: Amount{10, 2_008_000}, Rewritten: Amount{2, 308_001}}},
		{target: 1 << 20, unclear: true, want: PruneReport{Repacked: Amount{1, 1_000_000}, Rewritten: Amount{1, 1}}},
		{target: 1 << 20, unknown: true, want: PruneReport{Repacked: Amount{1, 1_000_000}, Rewritten: Amount{1, 1}}},
	} {
		p, _ := choosing(t, RepackBelow)
		store := p.repo.store
		before := contents(t, store)
		volume := layers.NewID()
		p.options.DryRun, p.repo.packTarget = true, c.target
		v := p.sourcesOf(volume)
		v.wasteful = []source{{packSize: packSize{size: 1_000_000}, live: liveSet{bytes: 300_000}}}
		for range mergePacks {
			v.small = append(v.small, source{packSize: packSize{size: 1000}, all: true})
		}
		p.sourcesOf(layers.NewID()).wasteful = []source{{packSize: packSize{size: 1_000_000}, live: liveSet{bytes: 1}}}
		p.unclear[volume] = c.unclear
		if c.moved {
			p.places = map[layers.ID]*volumePlaces{volume: {}}
		}
		if c.unknown {
			p.places = map[layers.ID]*volumePlaces{volume: {err: ErrCorrupt}}
		}
		var total int64
		p.options.Progress = func(_, n int64) { total = n }
		if err := p.repack(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(p.report, c.want) || total != c.want.Rewritten.Bytes {
			t.Errorf("%+v: %+v, and %d bytes of progress", c, p.report, total)
		}
		if len(contents(t, store)) != len(before) {
			t.Error("something was written")
		}
	}
}

// A volume without a key is told of, and those after it are gone on with; a store
// that does not answer ends the run. // B19
func TestWhatEndsRepacking(t *testing.T) {
	hook := &objecttest.Hook{Store: object.NewMem()}
	r := testRepo(t, hook, true)
	run := func(r *Repo) *prune {
		p := newPrune(r, PruneOptions{Grace: PruneGrace, RepackBelow: RepackBelow})
		p.survey = new(survey)
		for range 2 {
			p.sourcesOf(layers.NewID()).wasteful = []source{{packSize: packSize{inData, newObjectID(layers.NewID()), 1000}, all: true}}
		}
		return p
	}
	if p := run(r); p.repack(t.Context()) != nil || len(p.report.Kept) != 2 || !errors.Is(p.report.Kept[0], ErrCorrupt) {
		t.Errorf("two volumes without keys: kept are %v", p.report.Kept)
	}
	hook = &objecttest.Hook{Store: object.NewMem()}
	r = testRepo(t, hook, false)
	hook.Before = func(op, name string) error { return errStopped }
	if p := run(r); !errors.Is(p.repack(t.Context()), errStopped) || len(p.report.Kept) != 0 {
		t.Errorf("a store that does not answer: kept are %v", p.report.Kept)
	}
}

// One relocation comes to stand for those of a volume when there are two that
// nothing stands for, or more than half of what the only one says is needed no
// more, but not when none of it is: then it goes. // B17
func TestRelocationsThatAreMerged(t *testing.T) {
	pack := objectID{1}
	moved := func(id byte, rows int) *moveObject {
		g := newRelocating()
		for i := range rows {
			g.add(sectionKey{pack, uint32(i)}, &sectionPlace{pack: packRef{id: objectID{id}}, kind: sectionLeaf, stored: 100, off: headerSize})
		}
		return &moveObject{relocations: g.build(), id: objectID{id}}
	}
	for _, c := range []struct {
		what   string
		rows   []int // of each relocation
		needed int   // of the rows, the first ones
		gone   int   // relocations that another one stands for
		err    error
		want   bool
	}{
		{what: "nothing was moved"},
		{what: "one, all needed", rows: []int{4}, needed: 4},
		{what: "one, half needed", rows: []int{4}, needed: 2},
		{what: "one, less needed", rows: []int{4}, needed: 1, want: true},
		{what: "one, nothing needed", rows: []int{4}},
		{what: "two", rows: []int{4, 4}, needed: 4, want: true},
		{what: "two, one replaced", rows: []int{4, 4}, needed: 4, gone: 1},
		{what: "two, both replaced", rows: []int{4, 4}, needed: 1, gone: 2},
		{what: "two, one cannot be read", rows: []int{4, 4}, needed: 4, err: ErrCorrupt},
	} {
		v := &volumePlaces{
			replaced: make(map[*moveObject]bool), from: map[objectID]movedClass{pack: movedNeeded},
			named: make(map[objectID]*liveSet), walks: 2, err: c.err,
		}
		for i, n := range c.rows {
			o := moved(byte(i+2), n)
			v.objects = append(v.objects, o)
			v.replaced[o] = i < c.gone
		}
		for i := range c.needed {
			v.name(sectionKey{pack, uint32(i)})
		}
		if got := v.merges(); got != c.want {
			t.Errorf("%s: %t", c.what, got)
		}
	}
	if (*volumePlaces)(nil).merges() {
		t.Error("a volume of which nothing was moved has relocations to merge")
	}
	p, _ := choosing(t, 0) // nothing is to be copied
	some := &volumePlaces{objects: []*moveObject{moved(2, 4), moved(3, 4)}}
	p.places = map[layers.ID]*volumePlaces{layers.NewID(): some}
	before := len(contents(t, p.repo.store))
	if err := p.repack(t.Context()); err != nil || !some.merges() || len(contents(t, p.repo.store)) != before {
		t.Errorf("a run that is not to copy anything: %v, it wrote %d objects", err, len(contents(t, p.repo.store))-before)
	}
}

// What a relocation says of backups that are gone goes with the next relocation,
// without a pack being copied; as long as it is less than half, nothing is
// written. // B17
func TestRelocationShrinksWithWhatIsNeeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, ids, images := repacked(t)
		r := hostOf(t, store)
		r.packTarget = 16 << 10 // so that the pack is no small one
		first := relocationsIn(t, store)
		rows := func() (n int) {
			for _, o := range surveyed(t, hostOf(t, store)).places.objects {
				n += len(o.rows)
			}
			return n
		}
		before := rows()
		for i, id := range ids[:5] {
			if err := r.Delete(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			delete(images, id)
			for range 4 {
				time.Sleep(25 * time.Hour)
				if report := prunes(t, r, PruneOptions{RepackBelow: 1}); report.Repacked.Objects != 0 {
					t.Fatalf("packs are copied: %+v", report)
				}
			}
			left := relocationsIn(t, store)
			if same := slices.Equal(left, first); same != (i < 4) || len(left) != 1 {
				t.Errorf("%d of %d backups are deleted: the relocations are %q, once %q", i+1, len(ids), left, first)
			}
		}
		if n := rows(); n*len(ids) != before*len(images) {
			t.Errorf("%d rows for %d backups, %d for %d", before, len(ids), n, len(images))
		}
		for id, image := range images {
			compare(t, hostOf(t, store), id, image)
		}
	})
}

// What a map needs that cannot be read nobody knows: as long as it is so, nothing
// of the volume is copied, and the packs stay that it may name. // B15, B17
func TestNothingIsRepackedUnderADamagedMap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, images := toRepack(t)
		healthy := hostOf(t, store)
		var newest *root
		for id := range images {
			if root, err := healthy.openRoot(t.Context(), id); err != nil {
				t.Fatal(err)
			} else if newest == nil || before(newest.name, root.name) {
				newest = root
			}
		}
		at := healthy.placeOf(newest.spans.rows[0].leaves[0].place(sectionLeaf))
		name := packName(at.where, at.pack.id)
		whole := contents(t, store)[name]
		broken := bytes.Clone(whole)
		broken[at.off] ^= 1
		put := func(b []byte) {
			if err := store.Put(t.Context(), name, b); err != nil {
				t.Fatal(err)
			}
		}
		put(broken)
		r := hostOf(t, store)
		r.packTarget = 512 << 10
		for range 4 {
			time.Sleep(25 * time.Hour)
			report, err := r.Prune(t.Context(), PruneOptions{RepackBelow: RepackBelow})
			if err != nil || len(report.Kept) == 0 || report.Repacked != (Amount{}) || report.Freed.Objects != 0 {
				t.Errorf("%v, %+v", err, report)
			}
		}
		put(whole)
		for id, image := range images {
			compare(t, hostOf(t, store), id, image)
		}
	})
}
