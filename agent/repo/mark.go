package repo

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"varve/layers"
)

const (
	markVolumes = 4 // whose maps are read at a time
	markFetches = 8 // headers of packs that nobody is known to have written
)

// mark takes out of packs what the roots reach. What it has to read is: the
// roots of the volumes that packs are of, as far as they are later than the
// backups that wrote the packs, and the leaves in them that are too. It stops
// as soon as nothing is left to look for; unless gather is set, then it goes
// through all and takes down which sections are named.
//
// What is left in packs may be lingering: its content was moved, but not every
// reader may know that yet.
func (p *prune) mark(ctx context.Context, roots rootsOf, packs suspects, gather bool) error {
	volumes, err := p.byVolume(ctx, packs)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(markVolumes)
	var mu sync.Mutex
	for volume, some := range volumes {
		g.Go(func() error {
			m := &marking{prune: p, packs: some, gather: gather && !volume.IsZero()}
			candidates := roots[volume]
			if volume.IsZero() { // nobody knows whose they are
				for _, more := range roots {
					candidates = append(candidates, more...)
				}
			}
			reached, err := m.run(ctx, volume, candidates)
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) {
				p.keep(err)
				reached, err = ids(some), nil
				p.unclear[volume] = true
			}
			for _, id := range reached {
				delete(packs, id)
			}
			return err
		})
	}
	return g.Wait()
}

func ids(packs []*suspect) []objectID {
	out := make([]objectID, len(packs))
	for i, s := range packs {
		out[i] = s.id
	}
	return out
}

// byVolume sorts packs by their volumes. Where the root of the backup is gone
// that wrote a pack, the pack says so itself.
func (p *prune) byVolume(ctx context.Context, packs suspects) (map[layers.ID][]*suspect, error) {
	volumes := make(map[layers.ID][]*suspect)
	unknown := make(map[sessionID][]*suspect)
	for id, s := range packs {
		if o, ok := p.owners[id.session()]; ok {
			volumes[o.root.volume] = append(volumes[o.root.volume], s)
		} else {
			unknown[id.session()] = append(unknown[id.session()], s)
		}
	}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(markFetches)
	for session, some := range unknown {
		g.Go(func() error {
			volume, there, err := p.repo.volumeOf(ctx, session, some)
			mu.Lock()
			defer mu.Unlock()
			if there {
				volumes[volume] = append(volumes[volume], some...)
				return err
			}
			for _, s := range some {
				delete(packs, s.id)
			}
			return err
		})
	}
	return volumes, g.Wait()
}

// volumeOf reads the volume of packs of one session in their headers; zero if
// all are damaged. It is not there if none of them is. A header is believed
// only if it shows that who wrote it had the key of that volume.
func (r *Repo) volumeOf(ctx context.Context, session sessionID, packs []*suspect) (volume layers.ID, there bool, err error) {
	if volume, ok := r.reach.volume(session); ok {
		return volume, true, nil
	}
	for _, s := range packs {
		front := make([]byte, headerSize)
		name := packName(s.where, s.id)
		_, err := r.store.Get(ctx, name, front, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another run removed it since it was listed
		}
		if err != nil && err != io.EOF {
			return layers.ID{}, false, err
		}
		there = true
		h, err := parseHeader(front)
		if err != nil || h.id != s.id {
			continue
		}
		_, err = r.keyOf(ctx, &h, name)
		if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) {
			continue
		}
		if err == nil {
			r.reach.setVolume(session, h.key.volume)
		}
		return h.key.volume, true, err
	}
	return layers.ID{}, there, nil
}

// A marking looks for packs in the maps of some backups.
type marking struct {
	*prune
	packs  []*suspect
	gather bool     // which sections of packs are named, and which moved packs
	oldest rootName // no backup before it has any of them

	suspects map[objectID]*suspect
	wanted   map[objectID]bool // not decided yet
	reached  []objectID
}

func (m *marking) run(ctx context.Context, volume layers.ID, roots []listedRoot) ([]objectID, error) {
	m.wanted, m.suspects = make(map[objectID]bool, len(m.packs)), make(map[objectID]*suspect, len(m.packs))
	for _, s := range m.packs {
		m.wanted[s.id], m.suspects[s.id] = true, s
	}
	if err := m.unreadable(volume, roots); err != nil {
		return ids(m.packs), nil // it is told already
	}
	m.findOldest()
	walk := m.takeMoved(volume)
	walks := make(map[layers.ID]*mapWalk)
	for _, listed := range roots {
		if len(m.wanted) == 0 && !walk {
			break
		}
		if before(listed.name, m.oldest) {
			continue
		}
		root, err := m.repo.readRoot(ctx, listed)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another run removed it since it was listed
		}
		if err != nil {
			return nil, err
		}
		w := walks[listed.name.volume]
		if w == nil {
			w = m.walk(m.places[listed.name.volume])
			walks[listed.name.volume] = w
		}
		if err := w.root(ctx, root); err != nil {
			return nil, err
		}
	}
	if v := m.places[volume]; v != nil && m.gather {
		v.walks++
	}
	return m.reached, nil
}

// unreadable is why it cannot be said what is needed; nil if it can.
func (m *marking) unreadable(volume layers.ID, roots []listedRoot) error {
	if v := m.places[volume]; v != nil && v.err != nil {
		return v.err
	}
	for _, root := range roots {
		if v := m.places[root.name.volume]; v != nil && v.err != nil {
			return v.err
		}
	}
	return nil
}

// walk goes through maps of a volume.
func (m *marking) walk(v *volumePlaces) *mapWalk {
	w := &mapWalk{repo: m.repo, places: v, every: m.gather, skip: m.tooOld}
	w.section = func(name sectionKey, stored uint32) { m.need(v, name, stored) }
	w.pack = func(id objectID) (more bool) {
		if v == nil {
			m.take(id)
			return false
		}
		class, moved := v.from[id]
		switch {
		case !moved:
			m.take(id)
		case class == movedAll:
			m.needAll(v, id)
		}
		return moved && class != movedAll
	}
	return w
}

// need notes that maps name a section: all places are needed where a relocation
// has it, and where it was written if none does, or none that is old enough.
func (m *marking) need(v *volumePlaces, name sectionKey, stored uint32) {
	at, covered, old := sectionKey{}, false, false
	if v != nil {
		if m.gather {
			v.name(name)
		}
		for _, o := range v.objects {
			to, ok := o.find(name)
			if !ok {
				continue
			}
			if !covered {
				at, stored = sectionKey{to.pack.id, to.number}, to.stored
			}
			covered, old = true, old || v.old[o]
			m.take(to.pack.id)
		}
	}
	if !covered {
		at = name
		m.take(name.id)
	} else if s := m.suspects[name.id]; s != nil {
		s.moved, s.lingering = true, s.lingering || !old
	}
	if s := m.suspects[at.id]; s != nil && m.gather {
		s.live.take(at.number, stored)
	}
}

// needAll is need for all sections of a pack that was moved whole.
func (m *marking) needAll(v *volumePlaces, id objectID) {
	old := false
	for _, o := range v.objects {
		i, ok := o.at(id)
		if !ok {
			continue
		}
		from := &o.packs[i]
		for _, row := range o.rows[from.first:from.end] {
			m.take(o.objects[row.object].id)
		}
		old = old || v.old[o] && from.class == movedAll
	}
	if s := m.suspects[id]; s != nil {
		s.moved, s.lingering = true, s.lingering || !old
	}
}

// takeMoved decides what can be said of a volume without its maps: packs of
// backups that are there, moved whole, are needed where they are now. It reports
// whether the maps have to be gone through for what they name.
func (m *marking) takeMoved(volume layers.ID) (walk bool) {
	v := m.places[volume]
	if v == nil {
		return m.gather && len(m.wanted) > 0
	}
	for id, class := range v.from {
		if class != movedAll || !m.owners[id.session()].keeps {
			walk = m.gather
			continue
		}
		m.needAll(v, id)
		delete(m.wanted, id)
		if m.gather {
			v.whole[id] = true
			m.gatherAll(v, id)
		}
	}
	if walk = walk || m.gather && len(m.wanted) > 0; walk {
		m.oldest = rootName{}
	}
	return walk
}

// gatherAll notes that all sections of a pack are named.
func (m *marking) gatherAll(v *volumePlaces, id objectID) {
	seen := make(map[uint32]bool)
	for _, o := range v.objects {
		i, ok := o.at(id)
		if !ok {
			continue
		}
		for _, row := range o.rows[o.packs[i].first:o.packs[i].end] {
			if !seen[row.section] {
				seen[row.section] = true
				if s := m.suspects[o.objects[row.object].id]; s != nil {
					s.live.take(row.number, row.stored)
				}
			}
		}
	}
}

// findOldest finds the first of the backups that wrote the packs; none if one
// of them is not known.
func (m *marking) findOldest() {
	for i, s := range m.packs {
		root := m.owners[s.id.session()].root
		if i == 0 || before(root, m.oldest) {
			m.oldest = root
		}
	}
}

// before reports whether a backup has a lower number than another one of its
// volume.
func before(a, b rootName) bool {
	return cmp.Or(cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.seq, b.seq)) < 0
}

// take notes that a pack is needed.
func (m *marking) take(id objectID) {
	if m.wanted[id] {
		delete(m.wanted, id)
		m.reached = append(m.reached, id)
	}
}

// tooOld reports whether a leaf that a root names was written before any of the
// packs. The root's own word on its ancestors goes before the numbers in names,
// which anybody can give to an object; those decide only about packs of a backup
// that is further back than a root tells.
func (m *marking) tooOld(root *root, ref *leafRef) bool {
	writer := ref.pack.id.session()
	at := func(s sessionID) int {
		return slices.IndexFunc(root.ancestors, func(id layers.ID) bool { return sessionOf(id) == s })
	}
	if writer == sessionOf(root.name.backup) {
		return false
	}
	if oldest := at(sessionOf(m.oldest.backup)); oldest >= 0 {
		wrote := at(writer)
		return wrote < 0 || wrote > oldest // What is not among them is older than all of them.
	}
	o, ok := m.owners[writer]
	return ok && o.root.seq > 0 && before(o.root, m.oldest)
}
