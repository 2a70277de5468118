package repo

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"varve/layers"
)

// walkFetches is how many groups of leaves a mapWalk reads at a time.
const walkFetches = 8

// A mapWalk goes through the maps of backups of one volume, and tells what they
// name. A leaf that several have is looked at once. Its functions are called by
// one goroutine at a time.
type mapWalk struct {
	repo   *Repo
	places *volumePlaces // what was moved; nil: nothing

	// pack is told of a pack that a leaf names frames of, section of a section.
	// Where every is not set, section is told only those of packs that pack
	// says it has to know more of.
	every   bool
	pack    func(id objectID) (more bool)
	section func(name sectionKey, stored uint32)
	skip    func(*root, *leafRef) bool // leaves of it that need not be looked at; nil: none

	mu   sync.Mutex
	seen map[sectionKey]bool // leaves
}

// A placedRef is a leaf that a root names, with the place where it is.
type placedRef struct {
	*leafRef
	at sectionPlace
}

// root goes through the map of one backup.
func (w *mapWalk) root(ctx context.Context, root *root) error {
	if w.seen == nil {
		w.seen = make(map[sectionKey]bool)
	}
	if ref := root.inventory; ref != nil {
		w.section(ref.name(), ref.stored)
	}
	var refs []placedRef
	for i := range root.spans.rows {
		for j := range root.spans.rows[i].leaves {
			ref := &root.spans.rows[i].leaves[j]
			if w.seen[ref.name()] {
				continue
			}
			w.section(ref.name(), ref.stored)
			w.seen[ref.name()] = true
			if w.skip != nil && w.skip(root, ref) || w.known(ref) {
				continue
			}
			refs = append(refs, placedRef{ref, w.places.first(ref.place(sectionLeaf))})
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(walkFetches)
	for group := range leafGroups(refs) {
		g.Go(func() error { return w.read(ctx, root.name.volume, group) })
	}
	return g.Wait()
}

// known tells what a leaf names that was read before, if its packs are all that
// is to be known.
func (w *mapWalk) known(ref *leafRef) bool {
	packs, ok := w.repo.reach.packs(ref.name())
	if !ok || w.every {
		return false
	}
	more := false
	for _, id := range packs {
		more = w.pack(id) || more
	}
	return !more
}

// read reads leaves that stand near each other in one object.
func (w *mapWalk) read(ctx context.Context, volume layers.ID, refs []placedRef) error {
	first, last := &refs[0].at, &refs[len(refs)-1].at
	name := packName(first.where, first.pack.id)
	key, err := w.repo.volumeKey(ctx, first.pack.key)
	if err != nil {
		return err
	}
	b := make([]byte, last.off+int64(last.stored)-first.off)
	if err := w.repo.readRange(ctx, name, b, first.off); err != nil {
		return err
	}
	s := key.sealer(first.pack.id)
	for _, ref := range refs {
		from := ref.at.off - first.off
		text, err := s.open(b[from:from+int64(ref.at.stored)], sectionLeaf, ref.at.number, nil)
		if err == nil {
			text, err = expand(text, maxLeafText)
		}
		var l *leaf
		if err == nil {
			l, err = parseLeaf(text, volume)
		}
		if err != nil {
			return damaged(name, ref.at.off, err)
		}
		w.leaf(ref.name(), l)
	}
	return nil
}

// leaf tells what a leaf names.
func (w *mapWalk) leaf(name sectionKey, l *leaf) {
	packs, more := make([]objectID, len(l.packs)), make([]bool, len(l.packs))
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range l.packs {
		packs[i] = l.packs[i].id
		more[i] = w.pack(packs[i]) || w.every
	}
	w.repo.reach.add(name, packs)
	for i := range l.frames {
		if f := &l.frames[i]; more[f.pack] {
			w.section(sectionKey{packs[f.pack], f.number}, f.stored)
		}
	}
}

// leafGroups yields leaves that one request can fetch.
func leafGroups(refs []placedRef) func(func([]placedRef) bool) {
	slices.SortFunc(refs, func(a, b placedRef) int {
		return cmp.Or(slices.Compare(a.at.pack.id[:], b.at.pack.id[:]), cmp.Compare(a.at.off, b.at.off))
	})
	end := func(r *placedRef) int64 { return r.at.off + int64(r.at.stored) }
	return func(yield func([]placedRef) bool) {
		for start := 0; start < len(refs); {
			n := start + 1
			for n < len(refs) && refs[n].at.pack.id == refs[start].at.pack.id && refs[n].at.off >= end(&refs[n-1]) &&
				refs[n].at.off-end(&refs[n-1]) <= gapMax && end(&refs[n])-refs[start].at.off <= groupMax {
				n++
			}
			if !yield(refs[start:n]) {
				return
			}
			start = n
		}
	}
}
