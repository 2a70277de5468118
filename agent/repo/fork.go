package repo

import (
	"bytes"
	"cmp"
	"maps"
	"slices"

	"varve/layers"
)

// A Fork is where a lineage goes on in several ways, each by another host: a
// host took the volume over, and one before it went on all the same, or had made
// backups after the one that was taken over. All of them are whole.
type Fork struct {
	Volume layers.ID
	After  layers.ID // the last backup that they have in common; it may be deleted by now
	Sides  []Side    // two or more
}

// A Side is what one host made after a fork.
type Side struct {
	Host    string
	Backups []layers.ID // oldest first, at least one
}

// Forks finds the forks among backups, whose Epoch, Number, Claim, Host and
// Parent count, with the claims of their volumes. Where all backups of a side
// were deleted there is no fork any more. A host that is on both sides of
// something that it did itself, such as backups of older snapshots, makes none.
func Forks(backups []Backup, claims []Claim) []Fork {
	byVolume := make(map[layers.ID]*lineageOf)
	of := func(volume layers.ID) *lineageOf {
		if byVolume[volume] == nil {
			byVolume[volume] = &lineageOf{sides: make(map[layers.ID]map[sideKey][]*Backup)}
		}
		return byVolume[volume]
	}
	for i := range backups {
		if b := &backups[i]; b.Number > 0 { // else its root cannot be read
			l := of(b.Volume)
			l.backups = append(l.backups, b)
		}
	}
	for i := range claims {
		l := of(claims[i].Volume)
		l.claims = append(l.claims, &claims[i])
	}
	var forks []Fork
	for _, volume := range slices.SortedFunc(maps.Keys(byVolume), compareIDs) {
		forks = append(forks, byVolume[volume].forks(volume)...)
	}
	return forks
}

// A lineageOf is all that is known of one volume's lineage.
type lineageOf struct {
	backups []*Backup
	claims  []*Claim
	sides   map[layers.ID]map[sideKey][]*Backup // by the backup that they go on from
}

// A sideKey tells the sides of a fork apart: the claim, and the host where
// there are several under one claim.
type sideKey struct {
	epoch uint64
	claim layers.ID
	host  string
}

func (l *lineageOf) forks(volume layers.ID) []Fork {
	for _, c := range l.claims {
		l.takenOver(c)
	}
	l.siblings()
	var forks []Fork
	for _, after := range slices.SortedFunc(maps.Keys(l.sides), compareIDs) {
		f := Fork{Volume: volume, After: after}
		for _, key := range slices.SortedFunc(maps.Keys(l.sides[after]), sideKey.compare) {
			f.Sides = append(f.Sides, sideOf(l.sides[after][key]))
		}
		if len(f.Sides) > 1 {
			forks = append(forks, f)
		}
	}
	return forks
}

func (k sideKey) compare(other sideKey) int {
	return cmp.Or(cmp.Compare(k.epoch, other.epoch), compareIDs(k.claim, other.claim), cmp.Compare(k.host, other.host))
}

func sideOf(backups []*Backup) Side {
	slices.SortFunc(backups, func(a, b *Backup) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Number, b.Number), compareIDs(a.ID, b.ID))
	})
	s := Side{Host: backups[0].Host}
	for _, b := range slices.CompactFunc(backups, func(a, b *Backup) bool { return a.ID == b.ID }) {
		s.Backups = append(s.Backups, b.ID)
	}
	return s
}

func (l *lineageOf) add(after layers.ID, key sideKey, b *Backup) {
	if l.sides[after] == nil {
		l.sides[after] = make(map[sideKey][]*Backup)
	}
	l.sides[after][key] = append(l.sides[after][key], b)
}

// takenOver finds what was made behind the backup that a claim goes on from, if
// anything was made under the claim.
func (l *lineageOf) takenOver(c *Claim) {
	heirs := l.heirs(c)
	var ahead, behind []*Backup
	for _, b := range l.backups {
		at := Position{b.ID, b.Epoch, b.Number}
		switch {
		case heirs[b.Claim]:
			ahead = append(ahead, b)
		case b.Epoch <= c.Epoch && at.Compare(c.After) > 0:
			behind = append(behind, b)
		}
	}
	if len(ahead) == 0 || len(behind) == 0 {
		return
	}
	for _, b := range ahead {
		l.add(c.After.Backup, sideKey{c.Epoch, c.ID, ""}, b)
	}
	for _, b := range behind {
		l.add(c.After.Backup, sideKey{b.Epoch, b.Claim, ""}, b)
	}
}

// heirs are the claim, and those that go on from what was made under it.
func (l *lineageOf) heirs(c *Claim) map[layers.ID]bool {
	heirs, epochs := map[layers.ID]bool{c.ID: true}, map[uint64]bool{c.Epoch: true}
	under := make(map[layers.ID]layers.ID) // claims by the backups made under them
	for _, b := range l.backups {
		under[b.ID] = b.Claim
	}
	for _, other := range slices.SortedFunc(slices.Values(l.claims), func(a, b *Claim) int { return cmp.Compare(a.Epoch, b.Epoch) }) {
		claim, there := under[other.After.Backup]
		if there && heirs[claim] || !there && epochs[other.After.Epoch] {
			heirs[other.ID], epochs[other.Epoch] = true, true
		}
	}
	return heirs
}

func compareIDs(a, b layers.ID) int { return bytes.Compare(a[:], b[:]) }

// siblings finds backups of one parent, under one claim or none, that several
// hosts made: the volume is on each of them, and nobody took it over.
func (l *lineageOf) siblings() {
	type family struct {
		parent layers.ID
		epoch  uint64
		claim  layers.ID
	}
	first := make(map[family]map[string]*Backup) // by host, the one with the lowest number
	for _, b := range l.backups {
		if b.Parent.IsZero() {
			continue
		}
		f := family{b.Parent, b.Epoch, b.Claim}
		if first[f] == nil {
			first[f] = make(map[string]*Backup)
		}
		if known := first[f][b.Host]; known == nil || b.Number < known.Number {
			first[f][b.Host] = b
		}
	}
	for f, hosts := range first {
		if len(hosts) < 2 {
			continue
		}
		for _, b := range l.backups {
			if own := hosts[b.Host]; own != nil && b.Epoch == f.epoch && b.Claim == f.claim && b.Number >= own.Number {
				l.add(f.parent, sideKey{f.epoch, f.claim, b.Host}, b)
			}
		}
	}
}
