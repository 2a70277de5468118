package repo

import (
	"maps"
	"slices"
	"testing"
	"time"

	"varve/agent/object"
	"varve/layers"
)

// known is the standing of a backup with that number.
func known(number byte, size int, sure moment) *standing {
	return &standing{rootName{volume: layers.ID{number}, epoch: 1, seq: 1, backup: layers.ID{0x80 | number}}, make([]byte, size), sure}
}

// Roots take so many bytes of memory: of more those go that were not heard of
// for longest.
func TestStandingsAreBounded(t *testing.T) {
	r := testRepo(t, object.NewMem(), false)
	now := r.moment()
	ago := func(n int) moment { return now.before(time.Duration(n) * time.Hour) }
	passed := func(m moment) time.Duration { return now.at.Sub(m.at) }
	x := newIndex()
	for number, hours := range map[byte]int{1: 2, 2: 4, 3: 1, 4: 3} {
		x.keep(known(number, standingsMax/4, ago(hours)), passed)
	}
	if len(x.standings) != 4 {
		t.Errorf("of four that just fit %d are kept", len(x.standings))
	}
	x.keep(known(5, standingsMax/4+1, ago(0)), passed)
	left := slices.SortedFunc(maps.Keys(x.standings), func(a, b layers.ID) int { return slices.Compare(a[:], b[:]) })
	if want := []layers.ID{{1}, {3}, {5}}; !slices.Equal(left, want) {
		t.Errorf("those of the volumes %v are kept, want %v", left, want)
	}
	x.keep(known(5, 9, ago(0)), passed)
	if s, ok := x.standing(known(5, 0, now).name); !ok || len(s.object) != 9 || len(x.standings) != 3 {
		t.Errorf("a volume has one standing, the last: %t, %d bytes", ok, len(s.object))
	}
	x.forget(layers.ID{0x80 | 5})
	x.forget(layers.ID{0x80 | 9})
	if _, ok := x.standing(known(5, 0, now).name); ok || len(x.standings) != 2 {
		t.Errorf("a backup is forgotten, and %d standings are left", len(x.standings))
	}
}

// A listing that has the root, and no tombstone, proves that a backup was there
// an hour before it, unless a tombstone may have come and gone since the last
// proof. // C5
func TestWhatListingsConfirm(t *testing.T) {
	const hour = time.Hour
	for _, c := range []struct {
		what                   string
		sure                   time.Duration // before now
		other, deleted, absent bool
		want                   time.Duration
	}{
		{what: "proved long ago", sure: 5 * hour, want: sessionAfter},
		{what: "almost a grace ago", sure: PruneGrace - time.Minute, want: sessionAfter},
		{what: "a grace ago", sure: PruneGrace + time.Minute, want: PruneGrace + time.Minute},
		{what: "proved since", sure: hour / 2, want: hour / 2},
		{what: "deleted", sure: 5 * hour, deleted: true, want: 5 * hour},
		{what: "another one is listed", sure: 5 * hour, other: true, want: 5 * hour},
		{what: "none is listed", sure: 5 * hour, absent: true, want: 5 * hour},
	} {
		r := testRepo(t, object.NewMem(), false)
		now := r.moment()
		s := known(1, 100, now.before(c.sure))
		r.index.keep(s, r.passed)
		listed := s.name
		if c.other {
			listed.seq++
		}
		l := &listing{deleted: map[layers.ID]bool{s.name.backup: c.deleted}, roots: []listedRoot{{name: listed}, {name: rootName{volume: layers.ID{7}, backup: layers.ID{8}}}}}
		if c.absent {
			l.roots = nil
		}
		r.confirm(l, now)
		got, ok := r.index.standing(s.name)
		if sure := now.at.Sub(got.sure.at); !ok || sure != c.want || len(got.object) != 100 {
			t.Errorf("%s: there %t, proved %v ago, want %v", c.what, ok, sure, c.want)
		}
	}
}
