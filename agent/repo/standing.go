package repo

import (
	"bytes"
	"context"
	"time"

	"varve/layers"
)

// standingsMax bounds the bytes of roots that an open repository keeps: those
// of some hundred volumes of 1 TiB.
const standingsMax = 16 << 20

// A standing is what an open repository knows of a backup that it made, or built
// on: the root as the store has it, and a moment at which it was there and not
// deleted. The next backup of the volume needs no request for its parent then:
// design.md, section 7, "Requests of a backup".
type standing struct {
	name   rootName
	object []byte // sealed
	sure   moment
}

// keep makes the standing of a backup that of its volume. Of too many the one
// goes that was not heard of for longest.
func (x *index) keep(s *standing, passed func(moment) time.Duration) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.standings[s.name.volume] = s
	for x.sum() > standingsMax {
		var oldest *standing
		for _, other := range x.standings {
			if oldest == nil || passed(other.sure) > passed(oldest.sure) {
				oldest = other
			}
		}
		delete(x.standings, oldest.name.volume)
	}
}

// sum is how many bytes the standings have. The caller holds mu.
func (x *index) sum() (n int) {
	for _, s := range x.standings {
		n += len(s.object)
	}
	return n
}

// standing returns the root of that name as the store has it, and whether it is
// known.
func (x *index) standing(name rootName) (standing, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if s := x.standings[name.volume]; s != nil && s.name == name {
		return *s, true
	}
	return standing{}, false
}

// confirm takes in that a listing, asked for at that moment, has roots and no
// tombstones of them. Each name may be as it was sessionAfter before. That a
// backup was not deleted then follows only if no tombstone can have come and
// gone since it was known the last time, and those stay for a grace.
func (r *Repo) confirm(l *listing, asked moment) {
	x := r.index
	x.mu.Lock()
	defer x.mu.Unlock()
	seen := asked.before(sessionAfter)
	for i := range l.roots {
		s := x.standings[l.roots[i].name.volume]
		if s == nil || s.name != l.roots[i].name || l.deleted[s.name.backup] {
			continue
		}
		if r.passed(s.sure) < PruneGrace && r.passed(seen) < r.passed(s.sure) {
			x.standings[s.name.volume] = &standing{s.name, s.object, seen}
		}
	}
}

// knownParent returns the root of the parent if no request is needed for it: the
// listing that was just made has it, as long as it should be, and it was not
// deleted as far as such a listing can tell.
func (w *writer) knownParent(name rootName, l *listing) (*standing, bool) {
	s, known := w.repo.index.standing(name)
	if !known || w.repo.passed(s.sure) > sessionAfter+footingFresh {
		return nil, false
	}
	listed, there := l.root(name)
	return &s, there && listed.size == int64(len(s.object))
}

// fetchParent reads the root of the parent. In this order: a tombstone goes
// after its root. So one that the listing has no more is told by the root's
// absence. Where the listing lags behind the root, it tells nothing about the
// tombstone either, which is asked for by name.
func (w *writer) fetchParent(ctx context.Context, listed listedRoot, l *listing) (*root, error) {
	if _, there := l.root(listed.name); !there {
		if err := w.repo.checkLive(ctx, listed.name); err != nil {
			return nil, err
		}
	}
	object, err := w.repo.readRootObject(ctx, listed)
	if err != nil {
		return nil, err
	}
	s := &standing{listed.name, bytes.Clone(object), w.footing.asked.before(sessionAfter)}
	parent, err := w.repo.openRootObject(ctx, object, listed.name) // in place
	if err == nil {
		w.repo.index.keep(s, w.repo.passed)
	}
	return parent, err
}

// forgetStanding forgets the standing of a backup. The caller holds mu.
func (x *index) forgetStanding(id layers.ID) {
	for volume, s := range x.standings {
		if s.name.backup == id {
			delete(x.standings, volume)
		}
	}
}
