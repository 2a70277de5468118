package repo

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	"varve/layers"
)

// A Fork is where a lineage goes on in several ways: a host took the volume
// over, and the one before went on all the same, or had made backups after the
// one that was taken over. All of them are whole.
type Fork struct {
	Volume layers.ID
	After  layers.ID // the last backup that the sides have in common; it may be deleted by now
	Sides  []Side    // two or more
}

// A Side is one of the ways in which a lineage goes on after a fork.
type Side struct {
	Hosts   []string    // who wrote it, in the order of their first backups
	Backups []layers.ID // oldest first, at least one
}

// Forks finds the forks among backups, of which Epoch, Number, Claim, Host and
// Parent count, with the claims on their volumes. Where all backups of a side
// were deleted there is no fork any more. One host alone forks nothing, also if
// it backs up older snapshots, or goes back in time.
//
// Each claim begins a line; what was written without one is the first line. The
// lines of a volume are a tree, in which a line hangs on a place of another.
func Forks(backups []Backup, claims []Claim) []Fork {
	byVolume := make(map[layers.ID]*lineageOf)
	of := func(volume layers.ID) *lineageOf {
		if byVolume[volume] == nil {
			byVolume[volume] = &lineageOf{made: make(map[layers.ID][]*Backup), hangs: make(map[layers.ID][]*Claim)}
		}
		return byVolume[volume]
	}
	for i := range backups {
		if b := &backups[i]; b.Number > 0 { // else its root cannot be read
			l := of(b.Volume)
			l.made[b.Claim] = append(l.made[b.Claim], b)
		}
	}
	for i := range claims {
		l := of(claims[i].Volume)
		l.claims = append(l.claims, &claims[i])
	}
	var forks []Fork
	for _, volume := range slices.SortedFunc(maps.Keys(byVolume), compareIDs) {
		for _, f := range byVolume[volume].forks() {
			f.Volume = volume
			forks = append(forks, f)
		}
	}
	return forks
}

// A lineageOf is what is known of one volume's. Lines go by their claims, the
// first by the zero ID.
type lineageOf struct {
	claims []*Claim
	made   map[layers.ID][]*Backup // by line
	hangs  map[layers.ID][]*Claim  // by the line that they hang on
}

func (l *lineageOf) forks() []Fork {
	l.hang()
	var forks []Fork
	for _, line := range slices.SortedFunc(maps.Keys(l.hangs), compareIDs) {
		byAfter := make(map[Position][]*Claim)
		for _, c := range l.hangs[line] {
			byAfter[c.After] = append(byAfter[c.After], c)
		}
		for _, after := range slices.SortedFunc(maps.Keys(byAfter), Position.compareAll) {
			sides := [][]*Backup{l.beyond(line, after.Number)}
			for _, c := range byAfter[after] {
				sides = append(sides, l.under(c))
			}
			forks = appendFork(forks, after.Backup, sides)
		}
	}
	for _, line := range slices.SortedFunc(maps.Keys(l.made), compareIDs) {
		forks = append(forks, siblings(l.made[line])...)
	}
	return forks
}

func (p Position) compareAll(q Position) int {
	return cmp.Or(p.Compare(q), compareIDs(p.Backup, q.Backup))
}

// hang finds on which line each claim hangs: that of the backup which it goes
// on from or, if that is gone, the first of its epoch.
func (l *lineageOf) hang() {
	slices.SortFunc(l.claims, func(a, b *Claim) int { return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), compareIDs(a.ID, b.ID)) })
	line, first := make(map[layers.ID]layers.ID), make(map[uint64]layers.ID)
	for claim, made := range l.made {
		for _, b := range made {
			line[b.ID] = claim
		}
	}
	for _, c := range l.claims {
		if _, known := first[c.Epoch]; !known {
			first[c.Epoch] = c.ID
		}
		on, there := line[c.After.Backup]
		if !there {
			on = first[c.After.Epoch]
		}
		if on != c.ID { // else somebody who has the keys made it up
			l.hangs[on] = append(l.hangs[on], c)
		}
	}
}

// under returns what was made under a claim, and under those that hang on its
// line. Epochs grow from line to line, so that this ends.
func (l *lineageOf) under(c *Claim) []*Backup {
	made := slices.Clone(l.made[c.ID])
	for _, other := range l.hangs[c.ID] {
		if other.Epoch > c.Epoch {
			made = append(made, l.under(other)...)
		}
	}
	return made
}

// beyond returns what was made on a line behind a number, and on the lines that
// hang there.
func (l *lineageOf) beyond(line layers.ID, number uint64) []*Backup {
	var made []*Backup
	for _, b := range l.made[line] {
		if b.Number > number {
			made = append(made, b)
		}
	}
	for _, c := range l.hangs[line] {
		if c.After.Number > number {
			made = append(made, l.under(c)...)
		}
	}
	return made
}

// siblings finds on one line the backups of one parent that several hosts made:
// the volume is on each of them, and nobody took it over.
func siblings(made []*Backup) []Fork {
	first := make(map[layers.ID]map[string]*Backup) // by parent and host, the one with the lowest number
	for _, b := range made {
		if b.Parent.IsZero() {
			continue
		}
		if first[b.Parent] == nil {
			first[b.Parent] = make(map[string]*Backup)
		}
		if known := first[b.Parent][b.Host]; known == nil || b.Number < known.Number {
			first[b.Parent][b.Host] = b
		}
	}
	var forks []Fork
	for _, parent := range slices.SortedFunc(maps.Keys(first), compareIDs) {
		var sides [][]*Backup
		for _, host := range slices.Sorted(maps.Keys(first[parent])) {
			sides = append(sides, slices.DeleteFunc(slices.Clone(made), func(b *Backup) bool {
				return b.Host != host || b.Number < first[parent][host].Number
			}))
		}
		forks = appendFork(forks, parent, sides)
	}
	return forks
}

// appendFork adds a fork if it has more than one side.
func appendFork(forks []Fork, after layers.ID, sides [][]*Backup) []Fork {
	f := Fork{After: after}
	for _, made := range sides {
		if len(made) == 0 {
			continue
		}
		slices.SortFunc(made, func(a, b *Backup) int {
			return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Number, b.Number), compareIDs(a.ID, b.ID))
		})
		var s Side
		for _, b := range made {
			s.Backups = append(s.Backups, b.ID)
			if !slices.Contains(s.Hosts, b.Host) {
				s.Hosts = append(s.Hosts, b.Host)
			}
		}
		f.Sides = append(f.Sides, s)
	}
	if len(f.Sides) < 2 {
		return forks
	}
	return append(forks, f)
}

func compareIDs(a, b layers.ID) int { return bytes.Compare(a[:], b[:]) }
