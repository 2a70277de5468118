package layers

import (
	"fmt"
	"io/fs"
	"iter"
	"sync"
	"sync/atomic"
)

// A View is a Layer over what a snapshot holds, or over what changed between
// two boundaries. It never changes, and keeps the layers that it needs until it
// is closed.
//
// It finds out where its blocks are page by page, when they are asked for, and
// remembers at most viewPages pages.
type View struct {
	v      *Volume
	size   int64
	stack  []*layerFile // from the top down; the content
	over   []*layerFile // of a diff: the layers whose blocks it shows; else nil
	ends   []*anchor    // the boundaries that must stay
	closed atomic.Bool

	mu    sync.RWMutex
	pages map[uint32]*viewPage
}

// viewPages bounds the pages that one view remembers: 31 KiB for each 62 MiB of
// volume, 8 MiB in all.
const viewPages = 256

// viewPage says for each block of a page where it is: cellAbsent, cellZero, or
// slotBase + the index of a layer in View.stack.
type viewPage struct {
	gen  uint64 // Volume.layoutGen when it was made
	vals [pageBlocks]uint16
}

// anchor counts the views that need a boundary, even if it is given up
// meanwhile. Volume.mu guards it.
type anchor struct{ views int }

// View opens the whole content of a snapshot. One that is not there, or is a
// mark, is fs.ErrNotExist.
func (v *Volume) View(id ID) (*View, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	w, err := v.viewLocked(id)
	if err != nil {
		return nil, fmt.Errorf("view of snapshot %s of volume %s: %w", id, v.id, err)
	}
	w.hold()
	return w, nil
}

// viewLocked makes a view that holds nothing yet. The caller holds mu.
func (v *Volume) viewLocked(id ID) (*View, error) {
	if v.closed.Load() {
		return nil, ErrClosed
	}
	at := v.chain.find(id)
	if at < 0 || v.chain.Layers[at].Flags != flagSnapshot {
		return nil, fs.ErrNotExist
	}
	w := &View{v: v, size: v.chain.Layers[at].Size, pages: map[uint32]*viewPage{}}
	for _, i := range v.chain.line(at) {
		w.stack = append(w.stack, v.files[i])
	}
	w.ends = append(w.ends, v.anchor(v.files[at]))
	return w, nil
}

// anchor returns the anchor of the boundary above a layer. The caller holds mu.
func (v *Volume) anchor(l *layerFile) *anchor {
	a := v.anchors[l]
	if a == nil {
		a = new(anchor)
		v.anchors[l] = a
	}
	return a
}

// Diff opens what may differ between two boundaries: for the blocks that were
// written between them, and maybe some more, the content of to; a block that to
// does not have is Zero. All else is absent. from may be a mark, may be the newer
// of the two and may be on another branch; to is a snapshot. Bytes past the end
// of to are not in it. A boundary that is not there is fs.ErrNotExist.
func (v *Volume) Diff(from, to ID) (*View, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	w, err := v.diffLocked(from, to)
	if err != nil {
		return nil, fmt.Errorf("diff of %s and %s of volume %s: %w", from, to, v.id, err)
	}
	w.hold()
	return w, nil
}

func (v *Volume) diffLocked(from, to ID) (*View, error) {
	w, err := v.viewLocked(to)
	if err != nil {
		return nil, err
	}
	a, b := v.chain.find(from), v.chain.find(to)
	if a < 0 {
		return nil, fs.ErrNotExist
	}
	w.over = []*layerFile{}
	for _, i := range v.chain.between(a, b) {
		w.over = append(w.over, v.files[i])
	}
	w.ends = append(w.ends, v.anchor(v.files[a]))
	return w, nil
}

// hold keeps the layers of the view. The caller holds v.mu.
func (w *View) hold() {
	for _, a := range w.ends {
		a.views++
	}
	for _, l := range w.stack {
		l.refs.Add(1)
	}
	for _, l := range w.over {
		l.refs.Add(1)
	}
}

// Close lets go of the layers. Reads under way end first.
func (w *View) Close() error {
	if w.closed.Swap(true) {
		return fmt.Errorf("view of volume %s: %w", w.v.id, ErrClosed)
	}
	w.v.grace.wait()
	w.v.mu.Lock()
	for _, a := range w.ends {
		a.views--
	}
	w.v.mu.Unlock()
	var first error
	for _, list := range [][]*layerFile{w.stack, w.over} {
		for _, l := range list {
			if err := l.release(); err != nil && first == nil {
				first = err
			}
		}
	}
	w.v.gaveUp()
	return first
}

// Volume is what it is a view of.
func (w *View) Volume() *Volume { return w.v }

// Size is the volume's size at the boundary, in bytes.
func (w *View) Size() int64 { return w.size }

// ReadAt reads len(p) bytes at off. What is absent reads as zeros. Whole blocks
// are compared with their checksums, if they have them already; damage is a
// *CorruptError, and what comes before it has been read. After a Failure of the
// volume it reads what the next open will find.
func (w *View) ReadAt(p []byte, off int64) (int, error) {
	if w.v.failed.Load() == nil {
		n, err := w.readNow(p, off, nil)
		if w.v.failed.Load() == nil {
			return n, err
		}
	}
	known, err := w.v.promises()
	if err != nil {
		return 0, err
	}
	return w.readNow(p, off, known)
}

// readNow is ReadAt of what is there: in the page cache too if known is nil.
func (w *View) readNow(p []byte, off int64, known *promised) (int, error) {
	g := w.v.grace.enter()
	defer w.v.grace.leave(g)
	n, err := clip(len(p), off, w.size)
	if n == 0 {
		return 0, err
	}
	last := blocksOf(off + int64(n))
	for done := 0; done < n; {
		at := off + int64(done)
		val, stop, rerr := w.run(at/BlockSize, last)
		if rerr != nil {
			return done, rerr
		}
		part := p[done:min(int64(n), stop*BlockSize-off)]
		switch {
		case val < slotBase:
			clear(part)
		case known != nil:
			rerr = known.readData(w.stack[val-slotBase], part, at)
		default:
			rerr = w.stack[val-slotBase].readSealed(part, at)
		}
		if rerr != nil {
			return done, rerr
		}
		done += len(part)
	}
	return n, err
}

// Extents yields what the view holds.
func (w *View) Extents(off, n int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		off, end, ok := clipRange(off, n, w.size)
		if !ok {
			return
		}
		var out extentRun
		for b, last := off/BlockSize, blocksOf(end); b < last; {
			val, stop, err := w.runInGrace(b, last)
			if err != nil {
				yield(Extent{}, err)
				return
			}
			if !out.add(b, stop, kindOf(val), off, end, yield) {
				return
			}
			b = stop
		}
		out.flush(off, end, yield)
	}
}

// kindOf returns the kind of a block from its value in a map.
func kindOf(val uint16) Kind {
	switch val {
	case cellAbsent:
		return Absent
	case cellZero:
		return Zero
	}
	return Data
}

func (w *View) runInGrace(b, end int64) (uint16, int64, error) {
	g := w.v.grace.enter()
	defer w.v.grace.leave(g)
	return w.run(b, end)
}

// run returns the value of block b and the end of its run, at most end and at
// most the end of the page. The caller is in grace, so what it returns can be
// read.
func (w *View) run(b, end int64) (uint16, int64, error) {
	if w.closed.Load() || w.v.closed.Load() {
		return 0, 0, fmt.Errorf("view of volume %s: %w", w.v.id, ErrClosed)
	}
	g := uint32(b / pageBlocks)
	p, err := w.page(g)
	if err != nil {
		return 0, 0, err
	}
	first := int64(g) * pageBlocks
	i, stop := b-first, min(end-first, pageBlocks)
	val := p.vals[i]
	for i++; i < stop && p.vals[i] == val; i++ {
	}
	return val, first + i, nil
}

// page returns the page of a group, from memory if no block has moved since it
// was made.
func (w *View) page(g uint32) (*viewPage, error) {
	w.mu.RLock()
	p := w.pages[g]
	w.mu.RUnlock()
	if p != nil && p.gen == w.v.layoutGen.Load() {
		return p, nil
	}
	p, err := w.resolve(g)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for other := range w.pages {
		if len(w.pages) < viewPages {
			break
		}
		delete(w.pages, other) // any will do: a scan never comes back, a random reader may hit all
	}
	w.pages[g] = p
	return p, nil
}

// resolve finds out where the blocks of a page are.
func (w *View) resolve(g uint32) (*viewPage, error) {
	w.v.layout.RLock()
	defer w.v.layout.RUnlock()
	p := &viewPage{gen: w.v.layoutGen.Load()}
	var kinds kindBits
	for i, l := range w.stack {
		ok, err := l.load(g, &kinds)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if err := p.under(&kinds, uint16(i+slotBase)); err != nil {
			return nil, &CorruptError{l.path, groupOffset(g), "data that a reader needs", err.Error()}
		}
	}
	if w.over == nil {
		return p, nil
	}
	return p, w.mask(g, p)
}

// under adds what a layer says beneath all that was added before.
func (p *viewPage) under(kinds *kindBits, val uint16) error {
	for i, word := range kinds {
		if word == 0 {
			continue
		}
		for j := i * 32; j < i*32+32; j++ {
			if p.vals[j] != cellAbsent {
				continue
			}
			switch kinds.at(j) {
			case Data:
				p.vals[j] = val
			case Zero:
				p.vals[j] = cellZero
			case dropped:
				return fmt.Errorf("block %d of the group was given up", j)
			}
		}
	}
	return nil
}

// mask leaves in a page of a diff only what the layers between say something
// about; what the snapshot does not have there is zero.
func (w *View) mask(g uint32, p *viewPage) error {
	var changed [pageWords]uint64 // the low bit of each pair
	for _, l := range w.over {
		var kinds kindBits
		if _, err := l.load(g, &kinds); err != nil {
			return err
		}
		for i, word := range kinds {
			changed[i] |= says(word)
		}
	}
	for j := range p.vals {
		switch {
		case changed[j>>5]>>(2*(j&31))&1 == 0:
			p.vals[j] = cellAbsent
		case p.vals[j] == cellAbsent:
			p.vals[j] = cellZero
		}
	}
	return nil
}
