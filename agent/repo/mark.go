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
	markFetches = 8 // groups of leaves that are under way at a time, for each
)

// mark takes out of packs what the roots reach. What it has to read is: the
// roots of the volumes that packs are of, as far as they are later than the
// backups that wrote the packs, and the leaves in them that are too. It stops
// as soon as nothing is left to look for.
func (p *prune) mark(ctx context.Context, roots rootsOf, packs suspects) error {
	volumes, err := p.byVolume(ctx, packs)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(markVolumes)
	var mu sync.Mutex
	for volume, some := range volumes {
		g.Go(func() error {
			m := &marking{prune: p, packs: some, seen: make(map[sectionKey]bool)}
			candidates := roots[volume]
			if volume.IsZero() { // nobody knows whose they are
				for _, more := range roots {
					candidates = append(candidates, more...)
				}
			}
			reached, err := m.run(ctx, candidates)
			if err == nil {
				reached, err = m.moved(ctx, candidates)
			}
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) {
				p.keep(err)
				reached, err = ids(some), nil
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
	oldest rootName // no backup before it has any of them

	mu      sync.Mutex
	seen    map[sectionKey]bool // leaves
	wanted  map[objectID]bool
	reached []objectID
}

func (m *marking) run(ctx context.Context, roots []listedRoot) ([]objectID, error) {
	m.wanted = make(map[objectID]bool, len(m.packs))
	for _, s := range m.packs {
		m.wanted[s.id] = true
	}
	m.findOldest()
	for _, listed := range roots {
		if len(m.wanted) == 0 {
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
		for _, pack := range root.spans.packs {
			m.take(pack.id)
		}
		if err := m.leaves(ctx, root); err != nil {
			return nil, err
		}
	}
	return m.reached, nil
}

// moved adds to what is reached the packs that relocations lead to: they are
// needed as long as a pack that they lead from. One of those that is gone may be
// needed as long as the volume has a backup.
func (m *marking) moved(ctx context.Context, roots []listedRoot) ([]objectID, error) {
	suspect, read := make(map[objectID]bool, len(m.packs)), make(map[layers.ID]bool)
	for _, s := range m.packs {
		suspect[s.id] = true
	}
	var hops []hop
	for _, root := range roots {
		if volume := root.name.volume; !read[volume] && len(m.wanted) > 0 {
			read[volume] = true
			more, err := m.repo.hops(ctx, volume)
			if err != nil {
				return nil, err
			}
			hops = append(hops, more...)
		}
	}
	for more := true; more; {
		more = false
		for _, h := range hops {
			if m.wanted[h.to.id] && (!suspect[h.from] || !m.wanted[h.from]) {
				m.take(h.to.id)
				more = true
			}
		}
	}
	return m.reached, nil
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

// leaves looks at the leaves of a root that no root before had.
func (m *marking) leaves(ctx context.Context, root *root) error {
	var refs []*leafRef
	for i := range root.spans.rows {
		for j := range root.spans.rows[i].leaves {
			ref := &root.spans.rows[i].leaves[j]
			key := sectionKey{ref.pack.id, ref.number}
			if m.seen[key] || m.tooOld(root, ref) {
				continue
			}
			m.seen[key] = true
			if packs, ok := m.repo.reach.packs(key); ok {
				for _, id := range packs {
					m.take(id)
				}
				continue
			}
			refs = append(refs, ref)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(markFetches)
	for group := range leafGroups(refs) {
		g.Go(func() error {
			return m.repo.readReach(ctx, root.name.volume, group, func(packs []objectID) {
				m.mu.Lock()
				defer m.mu.Unlock()
				for _, id := range packs {
					m.take(id)
				}
			})
		})
	}
	return g.Wait()
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

// leafGroups yields leaves that one request can fetch.
func leafGroups(refs []*leafRef) func(func([]*leafRef) bool) {
	slices.SortFunc(refs, func(a, b *leafRef) int {
		return cmp.Or(slices.Compare(a.pack.id[:], b.pack.id[:]), cmp.Compare(a.off, b.off))
	})
	return func(yield func([]*leafRef) bool) {
		for start := 0; start < len(refs); {
			end, n := refs[start].off+int64(refs[start].stored), start+1
			for n < len(refs) && refs[n].pack.id == refs[start].pack.id && refs[n].off >= end &&
				refs[n].off-end <= gapMax && refs[n].off+int64(refs[n].stored)-refs[start].off <= groupMax {
				end = refs[n].off + int64(refs[n].stored)
				n++
			}
			if !yield(refs[start:n]) {
				return
			}
			start = n
		}
	}
}
