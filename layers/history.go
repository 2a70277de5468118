package layers

import (
	"fmt"
	"io/fs"
	"iter"
)

// Depths yields how deep in the stack the layer lies that answers for the bytes
// of a snapshot, or of the live volume if at is zero: 1 for the topmost layer,
// which is the head of the live volume, 2 for the one below it, and so on.
// Bytes that no layer says anything about are in no run. Layers count as they
// lie now: tidying makes one of two. No data is read, and runs end at blocks.
func (v *Volume) Depths(at ID, off, n int64) iter.Seq2[Run, error] {
	return v.history(ID{}, at, off, n, func(p *historyPage, layer int, kinds *kindBits) {
		for i, word := range kinds {
			if word == 0 {
				continue
			}
			for j := i * 32; j < i*32+32; j++ {
				if p[j] == 0 && kinds.at(j) != Absent {
					p[j] = uint32(layer + 1)
				}
			}
		}
	})
}

// Changes yields, with the value 1, what may differ between a snapshot or mark
// and a snapshot, or the live volume if at is zero: the blocks that were
// written between them, and maybe some more. from may be the newer one, and on
// another branch. Bytes past the end of at are in no run. A boundary that is not
// there is fs.ErrNotExist. No data is read.
func (v *Volume) Changes(from, at ID, off, n int64) iter.Seq2[Run, error] {
	if from.IsZero() {
		return func(yield func(Run, error) bool) {
			yield(Run{}, fmt.Errorf("changes of volume %s: no boundary is named: %w", v.id, fs.ErrInvalid))
		}
	}
	return v.history(from, at, off, n, func(p *historyPage, _ int, kinds *kindBits) {
		for i, word := range kinds {
			if word == 0 {
				continue
			}
			for j := i * 32; j < i*32+32; j++ {
				if kinds.at(j) != Absent {
					p[j] = 1
				}
			}
		}
	})
}

// historyPage are the values of the blocks of one page.
type historyPage [pageBlocks]uint32

// history yields the values that add leaves in the pages of [off, off+n), called
// for each layer that says something there, from the top down.
func (v *Volume) history(from, at ID, off, n int64, add func(p *historyPage, layer int, kinds *kindBits)) iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		stack, size, done, err := v.holdHistory(from, at)
		if err != nil {
			yield(Run{}, fmt.Errorf("history of volume %s: %w", v.id, err))
			return
		}
		defer done()
		off, end, ok := clipRange(off, n, size)
		if !ok {
			return
		}
		var page historyPage
		var open Run // not yielded yet; a value of 0 is none
		for b, last := off/BlockSize, blocksOf(end); b < last; {
			g := uint32(b / pageBlocks)
			if err := v.historyPage(g, stack, &page, add); err != nil {
				yield(Run{}, err)
				return
			}
			for first := int64(g) * pageBlocks; b < min(first+pageBlocks, last); b++ {
				val := page[b-first]
				if start := max(b*BlockSize, off); val != open.Value {
					if open.Value != 0 && !yield(open, nil) {
						return
					}
					open = Run{Off: start, Value: val}
				}
				open.Len = min((b+1)*BlockSize, end) - open.Off
			}
		}
		if open.Value != 0 {
			yield(open, nil)
		}
	}
}

// historyPage fills the page of a group.
func (v *Volume) historyPage(g uint32, stack []*layerFile, page *historyPage, add func(p *historyPage, layer int, kinds *kindBits)) error {
	v.layout.RLock()
	defer v.layout.RUnlock()
	if v.closed.Load() {
		return v.errClosed()
	}
	*page = historyPage{}
	for i, l := range stack {
		var kinds kindBits
		says, err := l.load(g, &kinds)
		if err != nil {
			return err
		}
		if says {
			add(page, i, &kinds)
		}
	}
	return nil
}

// holdHistory returns the layers of a snapshot or of the live volume, from the
// top down; if from is not zero, those between it and that instead. The
// boundaries stay until done is called.
func (v *Volume) holdHistory(from, at ID) (stack []*layerFile, size int64, done func(), err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed.Load() {
		return nil, 0, nil, ErrClosed
	}
	top, size := v.chain.Head, v.size.Load()
	var ends []*anchor
	if !at.IsZero() {
		if top = v.chain.find(at); top < 0 {
			return nil, 0, nil, fmt.Errorf("snapshot %s: %w", at, fs.ErrNotExist)
		}
		size = v.chain.Layers[top].Size
		ends = append(ends, v.anchor(v.files[top]))
	}
	list := v.chain.line(top)
	if !from.IsZero() {
		bottom := v.chain.find(from)
		if bottom < 0 {
			return nil, 0, nil, fmt.Errorf("snapshot %s: %w", from, fs.ErrNotExist)
		}
		list = v.chain.between(bottom, top)
		ends = append(ends, v.anchor(v.files[bottom]))
	}
	for _, i := range list {
		v.files[i].refs.Add(1)
		stack = append(stack, v.files[i])
	}
	for _, a := range ends {
		a.views++
	}
	return stack, size, func() { v.releaseHistory(stack, ends) }, nil
}

func (v *Volume) releaseHistory(stack []*layerFile, ends []*anchor) {
	v.mu.Lock()
	for _, a := range ends {
		a.views--
	}
	v.mu.Unlock()
	for _, l := range stack {
		if err := l.release(); err != nil {
			v.log.Warn("close of a layer that is gone", "volume", v.id, "layer", l.id, "error", err)
		}
	}
	v.gaveUp() // a boundary may have been given up meanwhile
}
