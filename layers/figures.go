package layers

import (
	"fmt"
	"hash/fnv"
	"math/bits"
)

// State is how a volume is doing.
type State struct {
	Layers      int   // of all branches, with the head
	Shared      int   // layers that other volumes have too: clones, or what this one is a clone of
	Unsummed    int   // sealed layers whose checksums are still being made
	Tidying     bool  // work goes on in the background: space comes back, layers are merged
	Journal     int64 // bytes of the journal that would be replayed after a crash now
	JournalSize int64 // bytes that there is room for
	Failure     error // why the volume takes no more writes until it is opened again; nil: it takes them
}

// State returns how the volume is doing. It is cheap.
func (v *Volume) State() (State, error) {
	s := State{Tidying: v.tidies.Load(), Failure: v.Failure()}
	v.ring.Lock()
	s.Journal, s.JournalSize = v.journal.used(), v.journal.ring()
	v.ring.Unlock()
	v.mu.RLock() // what is in the chain is open
	defer v.mu.RUnlock()
	if v.closed.Load() {
		return s, v.errClosed()
	}
	s.Layers = len(v.files)
	for i, l := range v.files {
		if i != v.chain.Head && !l.summed.Load() {
			s.Unsummed++
		}
		lent, err := v.chain.Layers[i].lent(l)
		if err != nil {
			return s, err
		}
		if lent {
			s.Shared++
		}
	}
	return s, nil
}

// Exclusive returns for each snapshot how many bytes of data would come back if
// it alone were deleted, on this volume. A snapshot whose figure is not known yet,
// because it was sealed or changed a moment ago, is left out: the background work
// finds it out. What the live volume hides is followed at each call, so asking
// every second costs little with any number of snapshots.
func (v *Volume) Exclusive() (map[ID]int64, error) {
	v.mu.RLock()
	if v.closed.Load() {
		v.mu.RUnlock()
		return nil, v.errClosed()
	}
	at := v.standing()
	for _, l := range at.files {
		l.refs.Add(1)
	}
	v.mu.RUnlock()
	defer func() {
		for _, l := range at.files {
			l.release() // the volume's own reference reports a close that goes wrong
		}
	}()
	t, err := v.treeOf(at)
	if err != nil {
		return nil, err
	}
	v.figures.Lock()
	defer v.figures.Unlock()
	known := map[ID]int64{}
	for i := range t.links {
		l := &t.links[i]
		if !l.snapshot {
			continue
		}
		s := newHolding(l)
		if !s.settled {
			if err := s.count(); err != nil {
				return nil, fmt.Errorf("size of snapshot %s of volume %s: %w", l.boundary, v.id, err)
			}
		}
		if h := l.held; h != nil && h.key == s.key {
			known[l.boundary] = h.blocks * BlockSize
		}
	}
	return known, nil
}

// countStep finds out what some snapshots alone hold, if that does not change
// with the live volume.
func (v *Volume) countStep(t *tree) (did bool, err error) {
	v.figures.Lock()
	defer v.figures.Unlock()
	counted := 0
	for i := range t.links {
		l := &t.links[i]
		if !l.snapshot || !l.settled {
			continue
		}
		s := newHolding(l)
		if !s.settled || l.held != nil && l.held.key == s.key {
			continue
		}
		if err := s.count(); err != nil {
			return did, err
		}
		did = true
		if counted += len(l.present()); counted > 16*pagesAtOnce {
			break
		}
	}
	return did, nil
}

// held is what a snapshot alone holds. Volume.figures guards it.
type held struct {
	key    uint64 // of the layers that say so
	blocks int64
	groups map[uint32]heldGroup // if some of them still change; else nil
}

// heldGroup is the part of one group.
type heldGroup struct{ key, blocks int64 }

// A holding is a snapshot whose deletion is thought through: the layers whose
// data it alone keeps, which are its own and those below that end at no boundary
// that is kept, and what would hide that data then.
type holding struct {
	snapshot *link
	layers   []*link
	around   []*link // all whose change makes another figure
	key      uint64
	settled  bool // none of them changes but by tidying
}

func newHolding(s *link) *holding {
	h := &holding{snapshot: s, settled: true}
	for l := s; l != nil && (l == s || !l.kept); l = l.below {
		h.layers = append(h.layers, l)
		h.around = append(h.around, l)
		l.hiders(func(up *link) { h.around = append(h.around, up) })
	}
	sum := fnv.New64a()
	for _, l := range h.around {
		commits := uint64(0)
		if l.settled {
			commits = l.committed()
		} else {
			h.settled = false
		}
		fmt.Fprintf(sum, "%s %d %d %v\n", l.id, commits, len(l.up), l.kept) // a hash never fails
	}
	h.key = sum.Sum64()
	return h
}

// count counts the blocks, but for groups that are as they were.
func (h *holding) count() error {
	old := h.snapshot.held
	if old == nil || old.key != h.key {
		old = new(held)
	}
	next := &held{key: h.key}
	if !h.settled {
		next.groups = map[uint32]heldGroup{}
	}
	for _, l := range h.layers {
		for _, g := range l.present() {
			part := heldGroup{key: h.keyOf(g)}
			if was, ok := old.groups[g]; ok && was.key == part.key && len(h.layers) == 1 {
				part = was
			} else if err := h.countGroup(l, g, &part.blocks); err != nil {
				return err
			}
			next.blocks += part.blocks
			if next.groups != nil {
				next.groups[g] = part
			}
		}
	}
	h.snapshot.held = next
	return nil
}

// keyOf is a number that changes when what the layers say of a group does.
func (h *holding) keyOf(g uint32) (key int64) {
	for _, l := range h.around {
		l.mu.RLock()
		if gr := l.groups[g]; gr != nil {
			key += int64(gr.says) + int64(gr.stamp)<<20
		}
		l.mu.RUnlock()
	}
	return key
}

// countGroup adds the blocks of data of a group that nobody would read.
func (h *holding) countGroup(l *link, g uint32, blocks *int64) error {
	hidden, err := l.hidden(g, hidingAs{load: (*link).loadNow, given: h.snapshot})
	if err != nil {
		return err
	}
	var kinds kindBits
	if _, err := l.load(g, &kinds); err != nil {
		return err
	}
	for i, w := range kinds {
		*blocks += int64(bits.OnesCount64(lows(^(w ^ spread(Data))) & hidden.far[i]))
	}
	return nil
}

// loadNow copies the kinds of a group as they are in memory.
func (l *link) loadNow(g uint32, into *kindBits) error {
	*into = kindBits{}
	_, err := l.load(g, into)
	return err
}
