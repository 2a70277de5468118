package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"varve/layers"
)

// A sharedLeaf is a leaf that roots of one volume name.
type sharedLeaf struct {
	ref           leafRef
	first, blocks int64
	base          bool
}

// checkVolume reads the roots of one volume and their inventories, and from Map
// on all their leaves.
func (a *audit) checkVolume(ctx context.Context, volume int32, roots []listedRoot) error {
	leaves := make(map[sectionKey]sharedLeaf)
	if _, err := a.repo.loadMoves(ctx, roots[0].name.volume); err != nil {
		if _, err = a.note(err); err != nil {
			return err
		}
	}
	for _, listed := range roots {
		root, err := a.readRoot(ctx, listed)
		if err != nil {
			return err
		}
		if root == nil {
			continue
		}
		if err := a.checkInventory(ctx, volume, root); err != nil {
			return err
		}
		for i := range root.spans.rows {
			row := &root.spans.rows[i]
			for j, ref := range row.leaves {
				a.needLeaf(volume, &ref, sectionLeaf)
				leaves[sectionKey{ref.pack.id, ref.number}] = sharedLeaf{ref, row.first, row.blocks, j == len(row.leaves)-1}
			}
		}
	}
	if a.options.Level < Map {
		return nil
	}
	return a.checkLeaves(ctx, volume, roots[0].name.volume, slices.Collect(maps.Values(leaves)))
}

// needLeaf remembers that a volume needs the pack in which a section is that a
// root names, and returns that.
func (a *audit) needLeaf(volume int32, ref *leafRef, kind sectionKind) packID {
	size, written := int64(0), ref.place(kind)
	at := a.repo.placeOf(written)
	if at == written {
		size = ref.pack.size
	}
	pack := packID{at.where, at.pack.id}
	a.need(volume, pack, at.pack.key, size)
	return pack
}

// classOf is how much was moved of a pack; notMoved.
func (a *audit) classOf(pack objectID, volume layers.ID) movedClass {
	class := notMoved
	for _, o := range a.repo.moves.known(volume) {
		if i, ok := o.at(pack); ok {
			class = max(class, o.packs[i].class)
		}
	}
	return class
}

// readRoot is nil for a root that is damaged, or deleted since it was listed.
func (a *audit) readRoot(ctx context.Context, listed listedRoot) (*root, error) {
	root, err := a.repo.readRoot(ctx, listed)
	if errors.Is(err, fs.ErrNotExist) {
		if live := a.repo.checkLive(ctx, listed.name); errors.Is(live, fs.ErrNotExist) {
			return nil, nil
		}
		err = damaged(listed.name.String(), 0, errMissing)
	}
	i, other := a.note(err)
	if other != nil || err == nil {
		return root, other
	}
	if a.lost[listed.name.backup] != nil {
		return nil, nil // told already
	}
	a.touch(i, Touched{Backup: listed.name.backup, Volume: listed.name.volume}, nil)
	return nil, nil
}

// checkInventory reads which packs a backup added, and how long they are.
func (a *audit) checkInventory(ctx context.Context, volume int32, root *root) error {
	ref := root.inventory
	if ref == nil {
		return nil
	}
	at := a.needLeaf(volume, ref, sectionInventory)
	packs, err := a.repo.readInventory(ctx, root)
	if err != nil {
		return a.noteIn(at, err)
	}
	for _, p := range packs {
		// Of a pack that something was moved from, leaves say what is needed.
		if class := a.classOf(p.id, ref.pack.key.volume); class >= movedNeeded || class > notMoved && a.options.Level >= Map {
			continue
		}
		// What is in the inventory is sealed with the key of the root's own leaves.
		a.need(volume, packID{p.where, p.id}, ref.pack.key, p.size)
	}
	return nil
}

// readInventory reads the packs that a backup added, but for the one that the
// inventory stands in.
func (r *Repo) readInventory(ctx context.Context, root *root) ([]packSize, error) {
	ref := root.inventory
	text, err := r.readSection(ctx, ref, sectionInventory)
	if err != nil {
		return nil, err
	}
	text, err = expand(text, maxLeafText)
	if err == nil {
		var packs []packSize
		if packs, err = parseInventory(text); err == nil {
			return packs, nil
		}
	}
	return nil, damaged(ref.pack.name(), ref.off, err)
}

// A stretch is what the leaves of one span name of a pack: frames from one
// number and offset to another.
type stretch struct {
	span       int64  // its first block
	from, to   uint32 // numbers, half open
	begin, end int64  // bytes in the pack, half open
}

// checkLeaves reads the leaves span by span. No frame belongs to two spans, so
// frames that overlap are found with those of one span in memory, and one
// stretch for each span of each pack.
func (a *audit) checkLeaves(ctx context.Context, volume int32, id layers.ID, leaves []sharedLeaf) error {
	slices.SortFunc(leaves, func(x, y sharedLeaf) int {
		return cmp.Or(cmp.Compare(x.first, y.first), slices.Compare(x.ref.pack.id[:], y.ref.pack.id[:]), cmp.Compare(x.ref.number, y.ref.number))
	})
	a.expect(leaves)
	stretches := make(map[packID][]stretch)
	for len(leaves) > 0 {
		n := 1
		for n < len(leaves) && leaves[n].first/spanBlocks == leaves[0].first/spanBlocks {
			n++
		}
		if err := a.checkSpan(ctx, volume, id, leaves[:n], stretches); err != nil {
			return err
		}
		leaves = leaves[n:]
	}
	for pack, list := range stretches {
		if err := a.checkStretches(pack, list); err != nil {
			return err
		}
	}
	return nil
}

// expect adds what is to be read of a volume's map to the progress, and at
// first what the packs take.
func (a *audit) expect(leaves []sharedLeaf) {
	n := int64(0)
	for i := range leaves {
		n += int64(leaves[i].ref.stored)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.total == 0 && a.options.Level == Deep {
		for _, p := range a.listed {
			a.total += p.size
		}
	}
	a.total += n
}

// checkSpan reads the leaves of one span, a few at a time.
func (a *audit) checkSpan(ctx context.Context, volume int32, id layers.ID, leaves []sharedLeaf, stretches map[packID][]stretch) error {
	frames := make(map[packRef][]frameRef)
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(restoreFetches)
	for i := range leaves {
		g.Go(func() error {
			shared := &leaves[i]
			defer a.advance(int64(shared.ref.stored))
			l, err := a.repo.readOneLeaf(ctx, id, &shared.ref, shared.first, shared.blocks, shared.base)
			if err != nil {
				at := a.repo.placeOf(shared.ref.place(sectionLeaf))
				return a.noteIn(packID{at.where, at.pack.id}, err)
			}
			mu.Lock()
			defer mu.Unlock()
			a.report.Leaves++
			for _, f := range l.frames {
				ref := l.packs[f.pack]
				if to, ok := firstPlace(a.repo.moves.known(ref.key.volume), sectionKey{ref.id, f.number}); ok {
					p := a.need(volume, packID{to.where, to.pack.id}, to.pack.key, 0)
					p.least = max(p.least, to.off+int64(to.stored)+tagSize+footerSize)
					continue
				}
				f.pack = 0
				frames[ref] = append(frames[ref], f)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for ref, list := range frames {
		pack := packID{inData, ref.id}
		a.need(volume, pack, ref.key, 0)
		s, err := stretchOf(pack, list)
		if err != nil {
			if err := a.noteIn(pack, err); err != nil {
				return err
			}
			continue
		}
		s.span = leaves[0].first
		stretches[pack] = append(stretches[pack], s)
	}
	return nil
}

// stretchOf joins the frames that the leaves of a span name in one pack. Two
// that have one number are the same, others do not overlap.
func stretchOf(pack packID, frames []frameRef) (stretch, error) {
	slices.SortFunc(frames, func(x, y frameRef) int { return cmp.Or(cmp.Compare(x.number, y.number), cmp.Compare(x.off, y.off)) })
	s := stretch{from: frames[0].number, begin: frames[0].off}
	for i := range frames {
		f := &frames[i]
		if i > 0 && *f == frames[i-1] {
			continue
		}
		if f.off < s.end {
			return s, damaged(pack.name(), f.off, fmt.Errorf("the map has frame %d there, and frame %d ends at %d", f.number, frames[i-1].number, s.end))
		}
		s.to, s.end = f.number+1, f.end()
	}
	return s, nil
}

// checkStretches compares what the spans of a volume name in one pack.
func (a *audit) checkStretches(pack packID, list []stretch) error {
	slices.SortFunc(list, func(x, y stretch) int { return cmp.Compare(x.from, y.from) })
	var last stretch
	for _, s := range list {
		if s.from < last.to || s.begin < last.end {
			err := damaged(pack.name(), s.begin, fmt.Errorf("the map has frames of the span at block %d there, and others of the span at block %d up to offset %d", s.span, last.span, last.end))
			if err := a.noteIn(pack, err); err != nil {
				return err
			}
		}
		last = s
	}
	p := &a.packs[a.index[pack]]
	p.least = max(p.least, last.end+tagSize+footerSize)
	return nil
}
