package repo

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"

	"varve/layers"
)

// How a lost leaf is made again. What the backup that wrote it has stored in its
// span, the trailers of that backup's packs say. A leaf is what they say and,
// if it is the base of an increment, what lay below it in the parent. What they
// do not say is which blocks became zero, so a leaf that was made again is
// believed only if one of these holds:
//
//   - its text has the id that the trailer of its own pack has for it;
//   - the packs have all blocks that the root of the backup counts, and the
//     backup is full, or counts no blocks that became zero;
//   - the packs have all blocks, and the volume itself knows of every block that
//     shows from below whether it was zero at the backup's boundary.
//
// It goes into a new pack, and a relocation leads to it from where it was.

// A lostLeaf is a leaf that backups need and that cannot be read, or that
// stands in a pack which says wrong things of itself.
type lostLeaf struct {
	ref           leafRef
	first, blocks int64
	below         row  // the leaves below it; none: it is a base
	readable      bool // it needs to be moved only
	frames        []foundFrame
}

func (l *lostLeaf) base() bool { return len(l.below.leaves) == 0 }
func (l *lostLeaf) end() int64 { return l.first + l.blocks }

// A foundFrame is a frame as the trailer of its pack has it.
type foundFrame struct {
	pack  packRef
	frame frameRef
	*section
}

// loseLeaf remembers leaf i of a row, if it is to be made again or moved.
func (a *audit) loseLeaf(row *row, i int, readable bool) {
	ref := row.leaves[i]
	at := a.repo.placeOf(ref.place(sectionLeaf))
	if readable && !a.account[packID{at.where, at.pack.id}] {
		return
	}
	below := *row
	below.leaves = row.leaves[i+1:]
	a.leaves[ref.name()] = &lostLeaf{ref: ref, first: row.first, blocks: row.blocks, below: below, readable: readable}
}

// spansAtOnce bounds the leaves that are made again from one reading of the
// trailers: what those say of their spans is in memory.
const spansAtOnce = 64

// mapRounds is how often leaves are looked for that can be made again now that
// others were: each may need those below it.
const mapRounds = maxLeaves + 1

// healMap makes leaves and inventories again as far as that can be, and moves
// those that stand in packs whose own account is damaged.
func (a *audit) healMap(ctx context.Context) error {
	for range mapRounds {
		before := a.report.Rebuilt
		byVolume := make(map[layers.ID][]*lostLeaf) // a volume whose inventories alone are lost is there too
		for _, l := range a.lists {
			byVolume[l.root.inventory.pack.key.volume] = nil
		}
		for _, l := range a.leaves {
			byVolume[l.ref.pack.key.volume] = append(byVolume[l.ref.pack.key.volume], l)
		}
		for volume, leaves := range byVolume {
			h := &mapHealer{healer: a.newHealer(volume)}
			if err := h.run(ctx, leaves); err != nil {
				return fmt.Errorf("make maps of volume %s again: %w", volume, err)
			}
		}
		if a.report.Rebuilt == before {
			return nil
		}
		if err := a.trace(ctx); err != nil {
			return err
		}
	}
	return nil
}

// A mapHealer makes the maps of one volume again.
type mapHealer struct {
	*healer
	writer *root   // of the leaves at hand; nil: it is not there
	stored []Range // of the volume, that its packs hold
}

func (h *mapHealer) run(ctx context.Context, leaves []*lostLeaf) error {
	if err := h.open(ctx); err != nil {
		return err
	}
	defer h.close()
	slices.SortFunc(leaves, func(x, y *lostLeaf) int {
		p, q := x.ref.pack.id.session(), y.ref.pack.id.session()
		return cmp.Or(slices.Compare(p[:], q[:]), cmp.Compare(x.first, y.first), cmp.Compare(x.blocks, y.blocks))
	})
	for len(leaves) > 0 {
		session, n := leaves[0].ref.pack.id.session(), 1
		for n < min(len(leaves), spansAtOnce) && leaves[n].ref.pack.id.session() == session {
			n++
		}
		if err := h.gather(ctx, session, leaves[:n]); err != nil {
			return err
		}
		for _, l := range leaves[:n] {
			if err := h.heal(ctx, l); err != nil {
				return err
			}
			l.frames = nil
		}
		leaves = leaves[n:]
	}
	for _, l := range h.a.lists {
		if l.root.inventory.pack.key.volume == h.volume {
			if err := h.healList(ctx, l); err != nil {
				return err
			}
		}
	}
	return h.flush(ctx)
}

// heal makes one leaf again, if that can be.
func (h *mapHealer) heal(ctx context.Context, l *lostLeaf) error {
	if l.readable {
		text, err := h.a.repo.readSection(ctx, &l.ref, sectionLeaf)
		if err == nil {
			text, err = expand(text, maxLeafText)
		}
		if err != nil {
			_, err := h.a.note(err)
			return err
		}
		return h.writeLeaf(ctx, l, text)
	}
	again, err := h.make(ctx, l)
	if again == nil || err != nil {
		return err
	}
	return h.writeLeaf(ctx, l, again.append(nil, h.volume))
}

func (h *mapHealer) writeLeaf(ctx context.Context, l *lostLeaf, text []byte) error {
	key, err := h.a.repo.volumeKey(ctx, l.ref.pack.key)
	if err != nil {
		_, err := h.a.note(err)
		return err
	}
	s := section{kind: sectionLeaf, zstd: true, id: sectionID(newKeyed(key.ids), text), first: l.first}
	if err := h.put(ctx, key, l.ref.name(), compress(nil, text), s); err != nil {
		return err
	}
	h.places = append(h.places, damagePlace{l.ref.pack.name(), l.ref.off})
	h.a.report.Rebuilt++
	return nil
}

// gather reads what the packs of a backup say of the spans of leaves.
func (h *mapHealer) gather(ctx context.Context, session sessionID, leaves []*lostLeaf) error {
	h.writer, h.stored = nil, nil
	for _, root := range h.roots {
		if sessionOf(root.backup.ID) == session {
			h.writer = root
		}
	}
	if !slices.ContainsFunc(leaves, func(l *lostLeaf) bool { return !l.readable }) {
		return nil
	}
	limit := 1 << 10
	for _, listed := range h.a.listed {
		if listed.where != inData || listed.id.session() != session {
			continue
		}
		ref, account, err := h.openAccount(ctx, listed.packID)
		if err != nil {
			return err
		}
		if account == nil {
			continue
		}
		for i := range account.sections {
			if s := &account.sections[i]; s.kind == sectionFrame {
				f := frameRef{number: uint32(i), off: account.offsets[i], stored: s.stored, blocks: s.blocks, zstd: s.zstd}
				h.take(foundFrame{ref, f, s}, leaves)
			}
		}
		if len(h.stored) > limit {
			h.stored = JoinRanges(h.stored)
			limit = 2*len(h.stored) + 1<<10
		}
	}
	h.stored = JoinRanges(h.stored)
	return nil
}

// take notes a frame of the writer.
func (h *mapHealer) take(f foundFrame, leaves []*lostLeaf) {
	places := f.places()
	for _, r := range places {
		off, n := r.block*layers.BlockSize, r.count*layers.BlockSize
		if k := len(h.stored); k > 0 && h.stored[k-1].Off+h.stored[k-1].Len == off {
			h.stored[k-1].Len += n
			continue
		}
		h.stored = append(h.stored, Range{off, n})
	}
	for _, l := range leaves {
		if slices.ContainsFunc(places, func(r run) bool { return r.block < l.end() && r.block+r.count > l.first }) {
			l.frames = append(l.frames, f)
		}
	}
}

// openAccount is what a pack of the volume says of itself; nil if that is
// damaged.
func (h *mapHealer) openAccount(ctx context.Context, id packID) (packRef, *checkedPack, error) {
	front := make([]byte, headerSize)
	err := h.a.repo.readRange(ctx, id.name(), front, 0)
	ref, account := packRef{id: id.id}, new(checkedPack)
	if err == nil {
		var head header
		if head, err = parseHeader(front); err != nil {
			err = damaged(id.name(), 0, err)
		} else if head.key.volume != h.volume {
			return ref, nil, nil
		}
		ref.key = head.key
	}
	if err == nil {
		err = account.readBehind(ctx, h.a.repo, id.where, ref, front, true)
	}
	if isDamage(err) {
		return ref, nil, nil
	}
	return ref, account, err
}

// complete reports whether the packs have all that the writer stored.
func (h *mapHealer) complete() bool {
	if h.writer == nil {
		return false
	}
	total := int64(0)
	for _, r := range h.stored {
		total += r.Len
	}
	return total == h.writer.backup.Logical
}

// make is a lost leaf again, or nil if nothing proves one.
func (h *mapHealer) make(ctx context.Context, l *lostLeaf) (*leaf, error) {
	id, proved, err := h.idOf(ctx, &l.ref)
	if err != nil {
		return nil, err
	}
	key, err := h.a.repo.volumeKey(ctx, l.ref.pack.key)
	if err != nil {
		_, err := h.a.note(err)
		return nil, err
	}
	is := func(c *leaf) bool {
		return proved && sectionID(newKeyed(key.ids), c.append(nil, h.volume)) == id
	}
	complete := h.complete()
	alone := l.made(nil, nil)
	full := h.writer != nil && !h.writer.backup.Incremental
	noZeros := h.writer != nil && h.writer.backup.Changed == h.writer.backup.Logical
	if is(alone) || complete && (full || noZeros && !l.base()) {
		return alone, nil
	}
	below, err := h.below(ctx, l)
	if below == nil || err != nil {
		return nil, err
	}
	if l.base() {
		if merged := l.made(nil, below); is(merged) || complete && noZeros {
			return merged, nil
		}
	}
	if !complete {
		return nil, nil
	}
	zeros, known, err := h.zeros(ctx, alone, below)
	if !known || err != nil {
		return nil, err
	}
	if !l.base() {
		below = nil
	}
	return l.made(zeros, below), nil
}

// made puts a leaf together from the frames that were found in its span, blocks
// that became zero, and what lies below, if it is to be in it.
func (l *lostLeaf) made(zeros []run, below *leaf) *leaf {
	c := &leaf{base: l.base(), first: l.first, blocks: l.blocks}
	for _, f := range l.frames {
		c.addSection(f.pack, f.frame, f.section)
	}
	slices.SortStableFunc(c.pieces, func(a, b piece) int { return cmp.Compare(a.block, b.block) })
	c.pieces = withoutOverlap(c.pieces)
	for _, z := range zeros {
		c.pieces = append(c.pieces, piece{block: z.block, count: int32(z.count), frame: zeroPiece})
	}
	slices.SortFunc(c.pieces, func(a, b piece) int { return cmp.Compare(a.block, b.block) })
	if below != nil {
		c = overLeaf(c, below)
		c.base = l.base()
	}
	c.clip(l.first, l.end())
	c.tidy()
	return c
}

// clip cuts off what is not of blocks [first, end).
func (l *leaf) clip(first, end int64) {
	kept := l.pieces[:0]
	for _, p := range l.pieces {
		if p.end() > first && p.block < end {
			kept = append(kept, p.from(first).to(end))
		}
	}
	l.pieces = kept
}

// below is what shows where the writer of a leaf stored nothing: the leaves
// below it, or under a base what the parent has there. Nil: that cannot be read,
// or nobody knows.
func (h *mapHealer) below(ctx context.Context, l *lostLeaf) (*leaf, error) {
	rows := []row{l.below}
	if l.base() {
		if h.writer == nil || h.writer.backup.Parent.IsZero() {
			return nil, nil
		}
		i := slices.IndexFunc(h.roots, func(r *root) bool { return r.backup.ID == h.writer.backup.Parent })
		if i < 0 {
			return nil, nil
		}
		rows = h.roots[i].spans.rows
	}
	all := &leaf{base: true, first: l.first, blocks: l.blocks}
	for i := range rows {
		if rows[i].first >= l.end() || rows[i].first+rows[i].blocks <= l.first {
			continue
		}
		part, err := h.a.repo.readRow(ctx, h.volume, rows[i])
		if isDamage(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		all = overLeaf(part, all)
	}
	all.base = true
	all.clip(l.first, l.end())
	all.tidy()
	return all, nil
}

// zeros are the blocks with data below that were zero at the writer's boundary.
// It is not known if there is one that the volume cannot tell.
func (h *mapHealer) zeros(ctx context.Context, upper, below *leaf) (zeros []run, known bool, err error) {
	if h.source.Exact == nil || h.writer.backup.Boundary.IsZero() {
		return nil, false, nil
	}
	own := make(map[int64]bool)
	for _, p := range upper.pieces {
		for i := range p.count {
			own[p.block+int64(i)] = true
		}
	}
	block := make([]byte, layers.BlockSize)
	for _, p := range below.pieces {
		for b := p.block; b < p.end(); b++ {
			if own[b] {
				continue
			}
			if err := ctx.Err(); err != nil {
				return nil, false, context.Cause(ctx)
			}
			known, err := h.source.Exact(h.writer.backup.Boundary, block, b*layers.BlockSize)
			if !known || err != nil {
				return nil, false, err
			}
			if !bytes.Equal(block, zeroBlock[:]) {
				continue
			}
			if n := len(zeros); n > 0 && zeros[n-1].block+zeros[n-1].count == b {
				zeros[n-1].count++
				continue
			}
			zeros = append(zeros, run{b, 1})
		}
	}
	return zeros, true, nil
}

// idOf is the id of a leaf by the trailer of its pack, or of one that it was
// copied to.
func (h *mapHealer) idOf(ctx context.Context, ref *leafRef) (id frameID, known bool, err error) {
	written := ref.place(sectionLeaf)
	places := []sectionPlace{written}
	for _, o := range h.a.repo.moves.known(h.volume) {
		if to, ok := o.find(ref.name()); ok && to.kind == sectionLeaf {
			places = append(places, to)
		}
	}
	for _, at := range places {
		_, account, err := h.openAccount(ctx, packID{at.where, at.pack.id})
		if err != nil {
			return id, false, err
		}
		if account == nil || int(at.number) >= len(account.sections) {
			continue
		}
		if s := &account.sections[at.number]; s.kind == sectionLeaf {
			return s.id, true, nil
		}
	}
	return id, false, nil
}
