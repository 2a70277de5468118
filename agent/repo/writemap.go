package repo

import (
	"cmp"
	"context"
	"slices"

	"varve/layers"
)

const (
	maxDeltas = maxLeaves - 1
	// splitLeaf is the stored length from which on the leaf of a whole span is
	// cut in splitParts.
	splitLeaf = 256 << 10
)

// A newLeaf waits for its place in a pack.
type newLeaf struct {
	ref   leafRef
	id    frameID
	text  []byte // compressed
	first int64
}

// A spanUpdate says which rows stand for a span from this backup on: none if
// it is all zeros, several if it was cut. fresh are the first leaves of rows.
type spanUpdate struct {
	first int64
	rows  []row
	fresh []*newLeaf
}

// closeSpan makes the leaf of the span at hand.
func (w *writer) closeSpan(ctx context.Context) error {
	l := w.leaf
	w.leaf = nil
	if l == nil || len(l.pieces) == 0 {
		return nil
	}
	slices.SortFunc(l.pieces, func(a, b piece) int { return cmp.Compare(a.block, b.block) })
	old, found := w.parentRow(l.first)
	switch {
	case !found || l.covers():
		l.base = true
		l.tidy()
		w.addBase(l)
	default:
		l.tidy()
		text := compress(nil, l.append(nil, w.job.Volume))
		if len(text) > w.repo.splitLeaf || mustMerge(old, len(text)+tagSize) {
			w.merges.Go(func() error { return w.merge(ctx, l, old) })
			break
		}
		w.addUpdate(&spanUpdate{
			first: l.first,
			rows:  []row{{first: l.first, blocks: l.blocks, leaves: append([]leafRef{{}}, old.leaves...)}},
			fresh: []*newLeaf{w.newLeaf(l, text)},
		})
	}
	if w.waitingBytes() < leavesMax {
		return nil
	}
	return w.flush(ctx, false)
}

// parentRow finds the row of the span that begins at first.
func (w *writer) parentRow(first int64) (row, bool) {
	if w.parent == nil {
		return row{}, false
	}
	i := w.parent.find(first)
	if i == len(w.parent.rows) || w.parent.rows[i].first != first {
		return row{}, false
	}
	return w.parent.rows[i], true
}

// mustMerge decides whether one more delta of that stored length would make
// the row too long to read, or too wasteful.
func mustMerge(old row, delta int) bool {
	base := old.leaves[len(old.leaves)-1]
	sum := delta
	for _, leaf := range old.leaves[:len(old.leaves)-1] {
		sum += int(leaf.stored)
	}
	return len(old.leaves) > maxDeltas || sum > int(base.stored)/2+smallDeltas
}

// smallDeltas is what deltas may always take: a merge of small leaves saves
// nothing and costs requests.
const smallDeltas = 4 << 10

// merge makes a base of a delta and what stood below it in the parent.
func (w *writer) merge(ctx context.Context, l *leaf, old row) error {
	below, err := w.repo.readRow(ctx, w.job.Volume, old)
	if err != nil {
		return damagedParent(err)
	}
	merged := overLeaf(l, below)
	merged.tidy()
	w.addBase(merged)
	return nil
}

// addBase adds a tidy base, cut in parts if it is too long. One without data
// needs no row.
func (w *writer) addBase(l *leaf) {
	u := &spanUpdate{first: l.first}
	add := func(l *leaf, text []byte) {
		u.rows = append(u.rows, row{first: l.first, blocks: l.blocks, leaves: make([]leafRef, 1)})
		u.fresh = append(u.fresh, w.newLeaf(l, text))
	}
	text := compress(nil, l.append(nil, w.job.Volume))
	switch {
	case len(l.pieces) == 0:
	case len(text) <= w.repo.splitLeaf || l.blocks == splitBlocks:
		add(l, text)
	default:
		for _, part := range l.split() {
			add(part, compress(nil, part.append(nil, w.job.Volume)))
		}
	}
	w.addUpdate(u)
}

func (w *writer) newLeaf(l *leaf, text []byte) *newLeaf {
	return &newLeaf{first: l.first, text: text, id: sectionID(newKeyed(w.key.ids), l.append(nil, w.job.Volume))}
}

func (w *writer) addUpdate(u *spanUpdate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.updates = append(w.updates, u)
	for _, leaf := range u.fresh {
		w.waiting = append(w.waiting, leaf)
		w.waitBytes += len(leaf.text)
	}
}

func (w *writer) waitingBytes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waitBytes
}

// flush writes the leaves that wait. At the end of a small backup they ride in
// its only data pack; otherwise they get packs of their own, once the data
// that they name is durable.
func (w *writer) flush(ctx context.Context, last bool) error {
	w.mu.Lock()
	leaves, size := w.waiting, w.waitBytes
	w.waiting, w.waitBytes = nil, 0
	w.mu.Unlock()
	slices.SortFunc(leaves, func(a, b *newLeaf) int { return cmp.Compare(a.first, b.first) })

	if last && len(leaves) > 0 && len(w.packs) == 0 && w.data.sealer != nil && len(w.data.buf)+size+len(leaves)*tagSize < smallMax {
		pack := w.leafPack(&w.data)
		for _, leaf := range leaves {
			w.place(&w.data, pack, leaf)
		}
		w.root.packs++
		w.sendLeaves(&w.data, pack)
		return w.up.wait()
	}
	w.closeData()
	if err := w.up.wait(); err != nil {
		return err
	}
	if len(leaves) == 0 {
		return nil
	}
	return w.writeLeaves(ctx, leaves, last)
}

// writeLeaves makes packs of leaves; the last one has the inventory too.
func (w *writer) writeLeaves(ctx context.Context, leaves []*newLeaf, last bool) error {
	var b packBuilder
	var pack *leafPack
	for _, leaf := range leaves {
		if b.sealer != nil && !b.fits(len(leaf.text)+tagSize, w.repo.packTarget) {
			w.sendLeaves(&b, pack)
		}
		if b.sealer == nil {
			if err := w.begin(ctx, &b, inLeaves); err != nil {
				return err
			}
			pack = w.leafPack(&b)
		}
		w.place(&b, pack, leaf)
	}
	if last && len(w.packs) > 0 {
		w.placeInventory(&b, pack)
	}
	w.sendLeaves(&b, pack)
	return w.up.wait()
}

func (w *writer) leafPack(b *packBuilder) *leafPack {
	return &leafPack{id: b.id, where: b.where, key: w.key.ref}
}

func (w *writer) place(b *packBuilder, pack *leafPack, leaf *newLeaf) {
	leaf.ref.pack = pack
	leaf.ref.number, leaf.ref.off, leaf.ref.stored = b.add(leaf.text, section{
		kind: sectionLeaf, zstd: true, id: leaf.id, first: leaf.first,
	})
	leaf.text = nil
}

func (w *writer) placeInventory(b *packBuilder, pack *leafPack) {
	text := appendInventoryText(nil, w.packs)
	ref := &leafRef{pack: pack}
	ref.number, ref.off, ref.stored = b.add(compress(nil, text), section{
		kind: sectionInventory, zstd: true, id: sectionID(newKeyed(w.key.ids), text),
	})
	w.root.inventory = ref
}

func (w *writer) sendLeaves(b *packBuilder, pack *leafPack) {
	w.send(b)
	pack.size = w.packs[len(w.packs)-1].size
}

// assemble makes the rows of the root: those of the parent, but for the spans
// that were updated.
func (w *writer) assemble() {
	updated := make(map[int64]bool)
	var rows []row
	for _, u := range w.updates {
		updated[u.first] = true
		for i := range u.rows {
			u.rows[i].leaves[0] = u.fresh[i].ref
			rows = append(rows, u.rows[i])
		}
	}
	if w.parent != nil {
		for _, r := range w.parent.rows {
			if !updated[r.first] {
				rows = append(rows, r)
			}
		}
	}
	slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.first, b.first) })
	w.root.spans = &spans{rows: rows}
	if w.root.inventory != nil {
		w.root.spans.collectPacks(w.root.inventory.pack)
	} else {
		w.root.spans.collectPacks()
	}
}

// readRow reads the leaves of a row and stacks them.
func (r *Repo) readRow(ctx context.Context, volume layers.ID, row row) (*leaf, error) {
	parts := make([]*leaf, len(row.leaves))
	if err := r.readLeaves(ctx, volume, row, parts); err != nil {
		return nil, err
	}
	stacked := parts[len(parts)-1]
	for i := len(parts) - 2; i >= 0; i-- {
		stacked = overLeaf(parts[i], stacked)
	}
	stacked.tidy()
	return stacked, nil
}
