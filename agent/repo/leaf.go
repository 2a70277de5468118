package repo

import (
	"cmp"
	"slices"

	"varve/layers"
)

const (
	frameBlocks = 32 // at most, in a frame; the region of a dense one
	frameBytes  = frameBlocks * layers.BlockSize

	spanBlocks  = 1 << 30 / layers.BlockSize // of a leaf
	splitParts  = 8
	splitBlocks = spanBlocks / splitParts // of a leaf in a span that was cut

	// maxBlocks is how many blocks a volume can have: its size is an int64.
	maxBlocks = 1<<63/layers.BlockSize - 1
)

// A packRef names a data pack and the key that it is sealed with.
type packRef struct {
	id  objectID
	key keyRef
}

// A frameRef is all that a reader needs to fetch a frame and open it.
type frameRef struct {
	pack   int32 // index in leaf.packs
	number uint32
	off    int64  // bytes, in the pack
	stored uint32 // bytes, with the tag
	blocks uint8  // 1 to frameBlocks
	zstd   bool
}

func (f *frameRef) end() int64 { return f.off + int64(f.stored) }

// A piece is a run of blocks of the volume that stand side by side in one
// frame, or are zero.
type piece struct {
	block int64 // of the volume
	count int32 // blocks
	frame int32 // index in leaf.frames; zeroPiece
	at    int32 // first block in the frame
}

const zeroPiece = -1

func (p *piece) end() int64   { return p.block + int64(p.count) }
func (p *piece) isZero() bool { return p.frame == zeroPiece }

// from returns the part of p from the given block on.
func (p piece) from(block int64) piece {
	if cut := int32(block - p.block); cut > 0 {
		p.block, p.count, p.at = block, p.count-cut, p.at+cut
	}
	return p
}

// to returns the part of p before the given block.
func (p piece) to(block int64) piece {
	p.count = min(p.count, int32(block-p.block))
	return p
}

// A leaf says where the blocks of one span are. Pieces ascend and do not
// overlap. A base is silent about zeros, a delta about what did not change.
type leaf struct {
	base   bool
	first  int64 // block of the volume
	blocks int64 // of the span
	packs  []packRef
	frames []frameRef
	pieces []piece
}

// covers reports whether the pieces leave no gap in the span.
func (l *leaf) covers() bool {
	next := l.first
	for i := range l.pieces {
		if l.pieces[i].block != next {
			return false
		}
		next = l.pieces[i].end()
	}
	return next == l.first+l.blocks
}

// dataBlocks counts the blocks that are not zero.
func (l *leaf) dataBlocks() (n int64) {
	for i := range l.pieces {
		if !l.pieces[i].isZero() {
			n += int64(l.pieces[i].count)
		}
	}
	return n
}

// overLeaf puts upper on top of lower: where upper says nothing, lower shows.
// Both stay as they are. The result is a base if lower is one.
func overLeaf(upper, lower *leaf) *leaf {
	l := &leaf{base: lower.base, first: lower.first, blocks: lower.blocks}
	l.packs = append(slices.Clone(upper.packs), lower.packs...)
	l.frames = append(slices.Clone(upper.frames), lower.frames...)
	for i := len(upper.frames); i < len(l.frames); i++ {
		l.frames[i].pack += int32(len(upper.packs))
	}
	l.pieces = overlay(upper.pieces, lower.pieces, int32(len(upper.frames)))
	return l
}

// overlay merges two ascending sequences; upper wins. shift is added to the
// frames of lower.
func overlay(upper, lower []piece, shift int32) []piece {
	out := make([]piece, 0, len(upper)+len(lower))
	var below piece // what is left of the lower piece at hand
	advance := func() {
		below = piece{}
		if len(lower) > 0 {
			below, lower = lower[0], lower[1:]
			if !below.isZero() {
				below.frame += shift
			}
		}
	}
	advance()
	for _, above := range upper {
		for below.count > 0 && below.block < above.end() {
			if below.block < above.block {
				out = append(out, below.to(above.block))
			}
			if below.end() > above.end() {
				below = below.from(above.end())
				break
			}
			advance()
		}
		out = append(out, above)
	}
	for ; below.count > 0; advance() {
		out = append(out, below)
	}
	return out
}

// tidy drops what the pieces do not need: unused frames and packs, and zeros
// in a base; it joins equal packs, and orders packs by their first use and
// frames by their number, as an encoded leaf has them.
func (l *leaf) tidy() {
	if l.base {
		l.pieces = slices.DeleteFunc(l.pieces, func(p piece) bool { return p.isZero() })
	}
	packs := make([]packRef, 0, len(l.packs))
	index := make(map[packRef]int32)
	used := make([]bool, len(l.frames))
	for i := range l.pieces {
		frame := l.pieces[i].frame
		if frame == zeroPiece || used[frame] {
			continue
		}
		used[frame] = true
		ref := l.packs[l.frames[frame].pack]
		if _, ok := index[ref]; !ok {
			index[ref] = int32(len(packs))
			packs = append(packs, ref)
		}
	}

	old := make([]int32, 0, len(l.frames)) // the used frames in their new order
	for i := range l.frames {
		if used[i] {
			l.frames[i].pack = index[l.packs[l.frames[i].pack]]
			old = append(old, int32(i))
		}
	}
	slices.SortFunc(old, func(a, b int32) int {
		x, y := &l.frames[a], &l.frames[b]
		return cmp.Or(cmp.Compare(x.pack, y.pack), cmp.Compare(x.number, y.number))
	})
	frames := make([]frameRef, 0, len(old))
	renamed := make([]int32, len(l.frames))
	for _, i := range old {
		f := l.frames[i]
		if n := len(frames); n == 0 || frames[n-1].pack != f.pack || frames[n-1].number != f.number {
			frames = append(frames, f)
		}
		renamed[i] = int32(len(frames) - 1)
	}
	for i := range l.pieces {
		if !l.pieces[i].isZero() {
			l.pieces[i].frame = renamed[l.pieces[i].frame]
		}
	}
	l.packs, l.frames = packs, frames
}

// split cuts a leaf of a whole span into those of its parts, without the
// empty ones.
func (l *leaf) split() []*leaf {
	var parts []*leaf
	for first := l.first; first < l.first+spanBlocks; first += splitBlocks {
		part := &leaf{base: l.base, first: first, blocks: splitBlocks, packs: slices.Clone(l.packs), frames: slices.Clone(l.frames)}
		for _, p := range l.pieces {
			if p.end() <= first || p.block >= first+splitBlocks {
				continue
			}
			part.pieces = append(part.pieces, p.from(first).to(first+splitBlocks))
		}
		part.tidy()
		if len(part.pieces) > 0 {
			parts = append(parts, part)
		}
	}
	return parts
}
