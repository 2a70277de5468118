package repo

import (
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
