package repo

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"varve/layers"
)

// ErrOtherVolume means that two backups are of different volumes, so that there
// is nothing to compare.
var ErrOtherVolume = errors.New("the backups are of different volumes")

// Diff yields where the backup to may differ from the backup from, in ascending
// order, without overlap: Data and Zero are what to reads there. Neighbours of
// one kind are one extent. Bytes past the end of to are not in it; past the end
// of from everything was zero. from may be the newer one. An error ends the
// sequence.
//
// It is known from the maps alone: leaves that both have are not even read, and
// a block that both have in the same place is the same. One that was written
// twice with the same content is yielded.
func (r *Repo) Diff(ctx context.Context, from, to layers.ID) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		fail := func(err error) { yield(layers.Extent{}, fmt.Errorf("compare backups %s and %s: %w", from, to, err)) }
		a, err := r.openRoot(ctx, from)
		if err != nil {
			fail(err)
			return
		}
		b, err := r.openRoot(ctx, to)
		if err != nil {
			fail(err)
			return
		}
		if a.backup.Volume != b.backup.Volume {
			fail(ErrOtherVolume)
			return
		}
		size := b.backup.Size
		var last layers.Extent // not yet yielded: it may grow
		for e, err := range r.differences(ctx, a, b, blocksOf(size)) {
			if err != nil {
				fail(err)
				return
			}
			e = e.Clip(0, size)
			if last.Len > 0 && last.Kind == e.Kind && last.End() == e.Off {
				last.Len += e.Len
				continue
			}
			if last.Len > 0 && !yield(last, nil) {
				return
			}
			last = e
		}
		if last.Len > 0 {
			yield(last, nil)
		}
	}
}

// differences compares span by span, blocks before end.
func (r *Repo) differences(ctx context.Context, a, b *root, end int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		for first := int64(0); first < end; first += spanBlocks {
			rowsA, rowsB := a.spans.within(first, first+spanBlocks), b.spans.within(first, first+spanBlocks)
			if sameRows(rowsA, rowsB) {
				continue
			}
			oldest, err := r.places(ctx, a.backup.Volume, rowsA)
			if err != nil {
				yield(layers.Extent{}, err)
				return
			}
			newest, err := r.places(ctx, b.backup.Volume, rowsB)
			if err != nil {
				yield(layers.Extent{}, err)
				return
			}
			for at, stop := first, min(first+spanBlocks, end); at < stop; {
				was, untilA := oldest.find(at)
				is, untilB := newest.find(at)
				until := min(untilA, untilB, stop)
				if was != is {
					kind := layers.Data
					if is == (blockPlace{}) {
						kind = layers.Zero
					}
					e := layers.Extent{Off: at * layers.BlockSize, Len: (until - at) * layers.BlockSize, Kind: kind}
					if !yield(e, nil) {
						return
					}
				}
				at = until
			}
		}
	}
}

// within returns the rows that begin in [first, end).
func (s *spans) within(first, end int64) []row {
	i := s.find(first)
	n := i
	for n < len(s.rows) && s.rows[n].first < end {
		n++
	}
	return s.rows[i:n]
}

// sameRows reports whether two maps say the same because they have the same
// leaves: what is below a leaf never changes.
func sameRows(a, b []row) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := &a[i].leaves[0], &b[i].leaves[0]
		if a[i].first != b[i].first || x.pack.id != y.pack.id || x.number != y.number {
			return false
		}
	}
	return true
}

// A blockPlace is where a block's data is stored; zero: nowhere, it is zero.
type blockPlace struct {
	pack  objectID
	frame uint32
	at    int32 // in the frame
}

// A placeMap is the stacked leaves of a span, read from front to back.
type placeMap struct {
	leaves []*leaf
	piece  int // in the first of the leaves
}

// places reads the leaves of rows.
func (r *Repo) places(ctx context.Context, volume layers.ID, rows []row) (*placeMap, error) {
	m := new(placeMap)
	for i := range rows {
		value, err := r.leafEntry(volume, &rows[i]).wait(ctx)
		if err != nil {
			return nil, err
		}
		m.leaves = append(m.leaves, value.(*leaf))
	}
	return m, nil
}

// find returns the place of a block, not before the one that it was called
// with last, and the first block after it that does not follow in that place.
func (m *placeMap) find(block int64) (p blockPlace, until int64) {
	for len(m.leaves) > 0 {
		l := m.leaves[0]
		for m.piece < len(l.pieces) && l.pieces[m.piece].end() <= block {
			m.piece++
		}
		if m.piece == len(l.pieces) {
			m.leaves, m.piece = m.leaves[1:], 0
			continue
		}
		piece := &l.pieces[m.piece]
		switch {
		case piece.block > block:
			return blockPlace{}, piece.block
		case piece.isZero():
			return blockPlace{}, piece.end()
		}
		frame := &l.frames[piece.frame]
		return blockPlace{l.packs[frame.pack].id, frame.number, piece.at + int32(block-piece.block)}, piece.end()
	}
	return blockPlace{}, maxBlocks
}
