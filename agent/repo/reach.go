package repo

import (
	"context"
	"sync"

	"varve/layers"
)

// reachMax bounds a reach, in packs that are named: about 24 MiB.
const reachMax = 1 << 20

// A reach remembers which packs leaves name, and of which volume packs are, so
// that a run of Prune reads only what it has not read before. Neither ever
// changes. It is safe for concurrent use.
type reach struct {
	mu      sync.Mutex
	leaves  map[sectionKey][]objectID
	held    int // packs in leaves
	volumes map[sessionID]layers.ID
}

func newReach() *reach {
	return &reach{leaves: make(map[sectionKey][]objectID), volumes: make(map[sessionID]layers.ID)}
}

func (x *reach) packs(key sectionKey) ([]objectID, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	packs, ok := x.leaves[key]
	return packs, ok
}

func (x *reach) add(key sectionKey, packs []objectID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.held+len(packs)+1 > reachMax {
		clear(x.leaves)
		x.held = 0
	}
	x.leaves[key] = packs
	x.held += len(packs) + 1
}

func (x *reach) volume(s sessionID) (layers.ID, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	volume, ok := x.volumes[s]
	return volume, ok
}

func (x *reach) setVolume(s sessionID, volume layers.ID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.volumes) >= reachMax {
		clear(x.volumes)
	}
	x.volumes[s] = volume
}

// readReach reads leaves that stand near each other in one object, and tells
// each which packs one of them names.
func (r *Repo) readReach(ctx context.Context, volume layers.ID, refs []*leafRef, each func([]objectID)) error {
	first, last := refs[0], refs[len(refs)-1]
	name := first.pack.name()
	key, err := r.volumeKey(ctx, first.pack.key)
	if err != nil {
		return err
	}
	b := make([]byte, last.off+int64(last.stored)-first.off)
	if err := r.readRange(ctx, name, b, first.off); err != nil {
		return err
	}
	s := key.sealer(first.pack.id)
	for _, ref := range refs {
		at := ref.off - first.off
		text, err := s.open(b[at:at+int64(ref.stored)], sectionLeaf, ref.number, nil)
		if err == nil {
			text, err = expand(text, maxLeafText)
		}
		var l *leaf
		if err == nil {
			l, err = parseLeaf(text, volume)
		}
		if err != nil {
			return damaged(name, ref.off, err)
		}
		packs := make([]objectID, len(l.packs))
		for i := range l.packs {
			packs[i] = l.packs[i].id
		}
		r.reach.add(sectionKey{ref.pack.id, ref.number}, packs)
		each(packs)
	}
	return nil
}
