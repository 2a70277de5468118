package repo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"varve/layers"
)

// How an interrupted backup goes on. The earlier tries left packs of data in
// the order of the volume's addresses, but for those that were under way. Each
// has a trailer that says which blocks it holds, so nothing else need be
// known: the cutter leaves out the changes that some pack has, and the leaf of
// each span begins with the frames of those packs. A pack that is missing or
// damaged has nothing, and its blocks are copied again. So what was pruned
// meanwhile, because the session grew too old, is found out by the way.
//
// The packs are read beside the copy, a few ahead of it, as the cutter comes
// to their spans. Leaves that the earlier tries wrote are made again: they are
// small, and the spans that they tell of may be cut otherwise.

// readAhead is how many packs of each earlier try are read before they are
// needed.
const readAhead = 4

// taken is what the earlier tries of a backup have stored. It belongs to the
// goroutine of the cutter until that has ended.
type taken struct {
	writer *writer
	tries  []*takenTry

	condemned map[objectID]bool // their packs that pruning may be about to remove

	span   run
	pieces []piece // of the span, ascending, without overlap
	next   int     // pieces before it are behind the last change
	seed   *leaf   // with those pieces; nil: none, or a task has it

	packs   []packSize // that are used
	used    map[objectID]bool
	logical int64 // bytes of their frames, before compression
}

// newTaken returns nil if there is nothing to take up.
func newTaken(w *writer, earlier []Try) *taken {
	k := &taken{writer: w, used: make(map[objectID]bool)}
	for _, try := range earlier {
		if try.Data > 0 {
			k.tries = append(k.tries, &takenTry{writer: w, try: try})
		}
	}
	if len(k.tries) == 0 {
		return nil
	}
	return k
}

// add passes on to c the blocks of a change that no pack has.
func (k *taken) add(ctx context.Context, c *cutter, ch change) error {
	for ch.count > 0 {
		if k.span.count == 0 || ch.block >= k.span.block+k.span.count {
			if err := k.leave(c); err != nil {
				return err
			}
			if err := k.enter(ctx, k.writer.spanOf(ch.block)); err != nil {
				return err
			}
		}
		n, missing := k.until(ch.block, min(ch.count, k.span.block+k.span.count-ch.block))
		if missing {
			if err := c.add(change{run{ch.block, n}, ch.zero}); err != nil {
				return err
			}
		}
		ch.block, ch.count = ch.block+n, ch.count-n
	}
	return nil
}

// until returns how many of the count blocks from block on are all there, or
// all missing.
func (k *taken) until(block, count int64) (n int64, missing bool) {
	for k.next < len(k.pieces) && k.pieces[k.next].end() <= block {
		k.next++
	}
	if k.next == len(k.pieces) {
		return count, true
	}
	p := &k.pieces[k.next]
	if p.block > block {
		return min(count, p.block-block), true
	}
	return min(count, p.end()-block), false
}

// enter gathers what the packs have of a span. Spans come in ascending order.
func (k *taken) enter(ctx context.Context, span run) error {
	k.span, k.next, k.seed = span, 0, nil
	l := &leaf{first: span.block, blocks: span.count}
	for _, try := range k.tries {
		if err := try.gather(ctx, k, l); err != nil {
			return err
		}
	}
	slices.SortFunc(l.pieces, func(a, b piece) int { return cmp.Compare(a.block, b.block) })
	l.pieces = withoutOverlap(l.pieces)
	if k.pieces = slices.Clone(l.pieces); len(l.pieces) > 0 {
		k.seed = l
	}
	return nil
}

// withoutOverlap cuts from each piece what the one before has.
func withoutOverlap(pieces []piece) []piece {
	end, kept := int64(0), pieces[:0]
	for _, p := range pieces {
		if p.end() <= end {
			continue
		}
		p = p.from(end)
		end = p.end()
		kept = append(kept, p)
	}
	return kept
}

// leave makes sure that the leaf of the span at hand begins with what the
// packs have of it, also if nothing is missing.
func (k *taken) leave(c *cutter) error {
	if k == nil || k.seed == nil {
		return nil
	}
	if err := c.flush(); err != nil || k.seed == nil {
		return err
	}
	return c.emit(k.span, nil, nil)
}

// hand gives the leaf to the first task of its span.
func (k *taken) hand(span run) *leaf {
	if k == nil || k.seed == nil || span != k.span {
		return nil
	}
	l := k.seed
	k.seed = nil
	return l
}

// settle counts the packs that are used among those of the backup. The cutter
// has ended.
func (k *taken) settle(w *writer) {
	if k == nil {
		return
	}
	for _, p := range k.packs {
		w.packs = append(w.packs, p)
		w.objects++
		w.stored += p.size
		w.root.packs++
	}
	w.root.backup.Logical += k.logical
}

// clear removes what the earlier tries stored and the backup does not need. If
// one of them may have written a root, it stays for pruning: that root may yet
// come to stand in the place of this one's, and must be whole.
func (k *taken) clear(ctx context.Context, w *writer) {
	if w.job.Resume.Root != "" {
		return
	}
	var names []string
	for _, try := range w.job.Resume.stored() {
		for n := range try.Data {
			if id := try.pack(w.job.ID, n); k == nil || !k.used[id] {
				names = append(names, packName(inData, id))
			}
		}
		names = append(names, try.names(w.job.ID, try.Data)...)
	}
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer stop()
	w.repo.deleteAll(ctx, names) // what stays is named by nothing: pruning removes it
}

// A takenTry reads the packs of one earlier try, in their order.
type takenTry struct {
	writer *writer
	try    Try
	begun  uint32 // packs whose reading was begun
	ahead  []chan *takenPack
	pack   *takenPack // at hand; nil at first
	at     int        // sections of it before this one are dealt with
}

// A takenPack is what a pack says about itself. One that is not there, or is
// not what it should be, has no sections.
type takenPack struct {
	checkedPack
	id  objectID
	err error // of the store
}

// readTaken reads the trailer of a pack of data. One that is condemned is as
// good as gone.
func (w *writer) readTaken(ctx context.Context, id objectID) *takenPack {
	p := &takenPack{id: id}
	if w.taken.condemned[id] {
		return p
	}
	err := p.checkedPack.read(ctx, w.repo, inData, packRef{id, w.key.ref}, true)
	switch {
	case errors.Is(err, ErrCorrupt), errors.Is(err, ErrVersion):
		p.sections = nil
	case err != nil:
		p.err = err
	}
	return p
}

// advance takes the next pack at hand, and reports whether there is one.
func (t *takenTry) advance(ctx context.Context) (bool, error) {
	for ; len(t.ahead) < readAhead && t.begun < t.try.Data; t.begun++ {
		answer, id := make(chan *takenPack, 1), t.try.pack(t.writer.job.ID, t.begun)
		go func() { answer <- t.writer.readTaken(ctx, id) }()
		t.ahead = append(t.ahead, answer)
	}
	if len(t.ahead) == 0 {
		return false, nil
	}
	select {
	case t.pack = <-t.ahead[0]:
		t.at, t.ahead = 0, t.ahead[1:]
		return true, t.pack.err
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// gather adds to l the frames of its span, and passes over those of spans
// before.
func (t *takenTry) gather(ctx context.Context, k *taken, l *leaf) error {
	for {
		for ; t.pack != nil && t.at < len(t.pack.sections); t.at++ {
			s := &t.pack.sections[t.at]
			if s.kind != sectionFrame {
				continue
			}
			if s.runs[0].block >= l.first+l.blocks {
				return nil
			}
			k.use(t.pack, t.at, l)
		}
		if more, err := t.advance(ctx); !more || err != nil {
			return err
		}
	}
}

// use adds a frame to l, if all of it belongs there.
func (k *taken) use(p *takenPack, number int, l *leaf) {
	s := &p.sections[number]
	end := min(l.first+l.blocks, blocksOf(k.writer.job.Source.Size()))
	if slices.ContainsFunc(s.places(), func(r run) bool { return r.block < l.first || r.block+r.count > end }) {
		return
	}
	if !k.used[p.id] {
		k.used[p.id] = true
		k.packs = append(k.packs, packSize{inData, p.id, p.total})
	}
	k.logical += int64(s.blocks) * layers.BlockSize
	for _, r := range s.repeats {
		k.logical += r.count * layers.BlockSize
	}
	l.addSection(packRef{p.id, k.writer.key.ref}, frameRef{
		number: uint32(number), off: p.offsets[number], stored: s.stored, blocks: s.blocks, zstd: s.zstd,
	}, s)
}

// addSection appends a frame with all that the trailer of its pack says of it.
func (l *leaf) addSection(pack packRef, f frameRef, s *section) {
	l.add(pack, f, s.runs)
	for _, r := range s.repeats {
		l.addRepeat(int32(len(l.frames)-1), r)
	}
}

// add appends a frame with its blocks.
func (l *leaf) add(pack packRef, f frameRef, runs []run) {
	if n := len(l.packs); n == 0 || l.packs[n-1] != pack {
		l.packs = append(l.packs, pack)
	}
	f.pack = int32(len(l.packs) - 1)
	l.frames = append(l.frames, f)
	at := int32(0)
	for _, r := range runs {
		l.pieces = append(l.pieces, piece{block: r.block, count: int32(r.count), frame: int32(len(l.frames) - 1), at: at})
		at += int32(r.count)
	}
}

// addRepeat says that a frame has blocks of another place too.
func (l *leaf) addRepeat(frame int32, r repeat) {
	l.pieces = append(l.pieces, piece{block: r.block, count: int32(r.count), frame: frame, at: int32(r.at)})
}

// findMade looks whether an earlier try got as far as the commit.
func (w *writer) findMade(ctx context.Context, l *listing) error {
	var found *listedRoot
	for i := range l.roots {
		if l.roots[i].name.backup == w.job.ID {
			found = &l.roots[i]
		}
	}
	switch resume := &w.job.Resume; {
	case found != nil && resume.Sessions == 0 && resume.Root == "":
		return fmt.Errorf("the volume has this backup already: %w", fs.ErrExist)
	case found == nil && resume.Root == "":
		return nil
	case found == nil:
		name, err := w.earlierRoot()
		if err != nil {
			return err
		}
		// Should that Put come late, it must not make a second backup.
		w.root.name, found = name, &listedRoot{name: name}
	}
	if err := w.repo.checkLive(ctx, found.name); err != nil {
		return err
	}
	there, err := w.repo.exists(ctx, found.name.String())
	if err != nil || !there {
		return err
	}
	w.root.backup, err = w.repo.readSummary(ctx, *found)
	w.done = err == nil
	return err
}

// earlierRoot is the name of the root that an earlier try may have written.
func (w *writer) earlierRoot() (rootName, error) {
	if name, ok := parseVolumeName(w.job.Resume.Root); ok {
		if root, ok := name.root(); ok && root.backup == w.job.ID && root.volume == w.job.Volume {
			return root, nil
		}
	}
	return rootName{}, fmt.Errorf("the checkpoint is of another backup: root %q", w.job.Resume.Root)
}

// exists asks for an object by name.
func (r *Repo) exists(ctx context.Context, name string) (bool, error) {
	var p [1]byte
	_, err := r.store.Get(ctx, name, p[:], 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil && err != io.EOF:
		return false, err
	}
	return true, nil
}
