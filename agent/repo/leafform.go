package repo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"varve/layers"
)

const (
	leafVersion = 1
	leafBase    = 1 << 0

	shapeBlocks = 0x1f // blocks - 1
	shapeZstd   = 1 << 5
	shapeJump   = 1 << 6

	// maxLeafText is over what the leaf of a span can need: 262144 extents
	// and as many frames.
	maxLeafText = 8 << 20
	maxOffset   = 1 << 40 // of a section in an object, bytes
	maxKeys     = 1024    // in one leaf or root
)

// append writes the text of a tidy leaf: docs/format.md 2.7. own is the volume
// of the backup.
func (l *leaf) append(b []byte, own layers.ID) []byte {
	flags := byte(0)
	if l.base {
		flags = leafBase
	}
	b = append(b, leafVersion, flags)
	b = binary.AppendUvarint(b, uint64(l.first))
	b = binary.AppendUvarint(b, uint64(l.blocks))

	keys := keyTable{own: own}
	indices := make([]int, len(l.packs))
	named := make([]int, len(l.packs))
	for i := range l.packs {
		indices[i] = keys.index(l.packs[i].key)
	}
	for i := range l.frames {
		named[l.frames[i].pack]++
	}
	b = keys.append(b)
	b = binary.AppendUvarint(b, uint64(len(l.packs)))
	for i := range l.packs {
		b = append(b, l.packs[i].id[:]...)
	}
	for i := range l.packs {
		b = binary.AppendUvarint(b, uint64(indices[i]))
	}
	for i := range l.packs {
		b = binary.AppendUvarint(b, uint64(named[i]))
	}
	b = l.appendFrames(b)
	return l.appendExtents(b)
}

func (l *leaf) appendFrames(b []byte) []byte {
	var jumps []byte
	lengths := make([]uint32, len(l.frames))
	var at packCursor
	for i := range l.frames {
		f := &l.frames[i]
		at.enter(f.pack)
		shape := f.blocks - 1
		if f.zstd {
			shape |= shapeZstd
		}
		if sections, bytes := f.number-at.number, f.off-at.off; sections != 0 || bytes != 0 {
			shape |= shapeJump
			jumps = binary.AppendUvarint(jumps, uint64(sections))
			jumps = binary.AppendUvarint(jumps, uint64(bytes))
		}
		at.number, at.off = f.number+1, f.end()
		b = append(b, shape)
		lengths[i] = f.stored
	}
	b = append(b, jumps...)
	return appendU24s(b, lengths)
}

// A packCursor says where in a pack the next section would begin.
type packCursor struct {
	inside bool
	pack   int32
	number uint32
	off    int64
}

// enter moves the cursor to the front of a pack, if it is in another one.
func (c *packCursor) enter(pack int32) {
	if !c.inside || c.pack != pack {
		*c = packCursor{inside: true, pack: pack, off: headerSize}
	}
}

// An extent is what pieces look like in a stored leaf: a run of blocks that
// may go on from frame to frame. place counts the blocks of all frames.
type extent struct {
	block, count, place int64
	zero                bool
}

// follows reports whether e only lengthens last.
func (e extent) follows(last extent) bool {
	return e.block == last.block+last.count && e.zero == last.zero && (e.zero || e.place == last.place+last.count)
}

func (l *leaf) extents() []extent {
	starts := make([]int64, len(l.frames)) // place of the first block of each frame
	for i := 1; i < len(l.frames); i++ {
		starts[i] = starts[i-1] + int64(l.frames[i-1].blocks)
	}
	var extents []extent
	for _, p := range l.pieces {
		e := extent{block: p.block, count: int64(p.count), zero: p.isZero()}
		if !e.zero {
			e.place = starts[p.frame] + int64(p.at)
		}
		if n := len(extents); n > 0 && e.follows(extents[n-1]) {
			extents[n-1].count += e.count
			continue
		}
		extents = append(extents, e)
	}
	return extents
}

func (l *leaf) appendExtents(b []byte) []byte {
	extents := l.extents()
	b = binary.AppendUvarint(b, uint64(len(extents)))
	end := l.first
	for _, e := range extents {
		b = binary.AppendUvarint(b, uint64(e.block-end))
		end = e.block + e.count
	}
	for _, e := range extents {
		run := uint64(e.count-1) * 2
		if e.zero {
			run++
		}
		b = binary.AppendUvarint(b, run)
	}
	next := int64(0)
	for _, e := range extents {
		if !e.zero {
			b = appendSvarint(b, e.place-next)
			next = e.place + e.count
		}
	}
	return b
}

// parseLeaf reads the text of a leaf.
func parseLeaf(b []byte, own layers.ID) (*leaf, error) {
	d := &decoder{rest: b}
	if v := d.u8(); d.err == nil && v != leafVersion {
		return nil, fmt.Errorf("leaf version %d, this program knows version %d: %w", v, leafVersion, ErrVersion)
	}
	flags := d.u8()
	if flags&^leafBase != 0 {
		return nil, fmt.Errorf("unknown flags %#x in a leaf: %w", flags, ErrVersion)
	}
	l := &leaf{base: flags&leafBase != 0}
	l.first = d.upTo(maxBlocks, "first block")
	l.blocks = d.upTo(spanBlocks, "span")
	if d.err == nil && (l.blocks != spanBlocks && l.blocks != splitBlocks || l.first%l.blocks != 0) {
		d.failf("span of %d blocks at block %d", l.blocks, l.first)
	}
	keys := parseKeys(d, own)
	l.parsePacks(d, keys)
	l.parseExtents(d)
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("leaf: %w", err)
	}
	return l, nil
}

func (l *leaf) parsePacks(d *decoder, keys []keyRef) {
	l.packs = make([]packRef, d.count(22, "number of packs"))
	for i := range l.packs {
		copy(l.packs[i].id[:], d.bytes(20))
	}
	used := 0
	for i := range l.packs {
		l.packs[i].key, used = keyAt(d, keys, used)
	}
	if d.err == nil && used != len(keys) {
		d.failf("%d of %d keys are used", used, len(keys))
	}
	total := 0
	named := make([]int, len(l.packs))
	for i := range named {
		named[i] = d.count(4, "number of frames")
		total += named[i]
	}
	if total > len(d.rest)/4 {
		d.fail(errCut)
	}
	if d.err != nil {
		return
	}
	l.frames = make([]frameRef, 0, total)
	for pack, n := range named {
		for range n {
			l.frames = append(l.frames, frameRef{pack: int32(pack)})
		}
	}
	l.parseFrames(d)
}

func (l *leaf) parseFrames(d *decoder) {
	shapes := d.bytes(len(l.frames))
	var jumps []struct{ sections, bytes int64 }
	for _, shape := range shapes {
		if shape&^(shapeBlocks|shapeZstd|shapeJump) != 0 {
			d.failf("unknown shape %#x of a frame", shape)
			return
		}
		if shape&shapeJump != 0 {
			sections, bytes := d.upTo(1<<32-1, "section"), d.upTo(maxOffset, "offset")
			if d.err == nil && sections == 0 && bytes == 0 {
				d.fail(errors.New("a jump to the same place"))
			}
			jumps = append(jumps, struct{ sections, bytes int64 }{sections, bytes})
		}
	}
	var at packCursor
	d.u24s(len(l.frames), func(i int, stored uint32) {
		f := &l.frames[i]
		at.enter(f.pack)
		f.blocks, f.zstd, f.stored = shapes[i]&shapeBlocks+1, shapes[i]&shapeZstd != 0, stored
		number := int64(at.number)
		if shapes[i]&shapeJump != 0 {
			number += jumps[0].sections
			at.off += jumps[0].bytes
			jumps = jumps[1:]
		}
		f.number, f.off = uint32(number), at.off
		if number > 1<<32-2 || f.off > maxOffset {
			d.failf("section %d at offset %d", number, f.off)
			number = 0
		}
		if err := f.validate(); err != nil {
			d.fail(err)
		}
		at.number, at.off = uint32(number)+1, f.end()
	})
}

// validate checks the stored length against the blocks.
func (f *frameRef) validate() error {
	plain, sealed := int(f.blocks)*layers.BlockSize, int(f.stored)-tagSize
	if f.zstd && sealed > 0 && shrinks(sealed, plain) || !f.zstd && sealed == plain {
		return nil
	}
	return fmt.Errorf("a frame of %d blocks has %d bytes", f.blocks, f.stored)
}

func (l *leaf) parseExtents(d *decoder) {
	extents := make([]extent, d.count(2, "number of extents"))
	for i := range extents {
		extents[i].block = d.upTo(l.blocks, "gap")
	}
	end := l.first
	for i := range extents {
		e := &extents[i]
		run := d.upTo(2*spanBlocks, "run")
		e.count, e.zero = run>>1+1, run&1 != 0
		e.block += end
		end = e.block + e.count
		if end > l.first+l.blocks {
			d.failf("an extent ends at block %d, the span at %d", end, l.first+l.blocks)
		}
		if e.zero && l.base {
			d.fail(errors.New("zeros in a base"))
		}
		if d.err != nil {
			return
		}
	}
	total := int64(0)
	for i := range l.frames {
		total += int64(l.frames[i].blocks)
	}
	next := int64(0)
	for i := range extents {
		e := &extents[i]
		if !e.zero {
			e.place = next + d.svarint()
			if d.err == nil && (e.place < 0 || e.place > total-e.count) {
				d.failf("blocks from %d on, of %d", e.place, total)
			}
			next = e.place + e.count
		}
		if d.err == nil && i > 0 && e.follows(extents[i-1]) {
			d.fail(errors.New("an extent that only lengthens the one before"))
		}
		if d.err != nil {
			return
		}
	}
	l.pieces = l.cut(extents)
}

// cut makes pieces of extents: one for each frame that an extent goes through.
func (l *leaf) cut(extents []extent) []piece {
	frameOf := make([]int32, 0, 4*len(l.frames)) // of each place
	at := make([]int32, 0, len(l.frames))        // place of the first block
	for i := range l.frames {
		at = append(at, int32(len(frameOf)))
		for range l.frames[i].blocks {
			frameOf = append(frameOf, int32(i))
		}
	}
	var pieces []piece
	for _, e := range extents {
		if e.zero {
			pieces = append(pieces, piece{block: e.block, count: int32(e.count), frame: zeroPiece})
			continue
		}
		for e.count > 0 {
			frame := frameOf[e.place]
			inside := int32(e.place) - at[frame]
			n := min(int32(e.count), int32(l.frames[frame].blocks)-inside)
			pieces = append(pieces, piece{block: e.block, count: n, frame: frame, at: inside})
			e.block, e.place, e.count = e.block+int64(n), e.place+int64(n), e.count-int64(n)
		}
	}
	return pieces
}

// keyTable numbers key references in the order of their first use.
type keyTable struct {
	own  layers.ID
	keys []keyRef
}

func (t *keyTable) index(key keyRef) int {
	for i := range t.keys {
		if t.keys[i] == key {
			return i
		}
	}
	t.keys = append(t.keys, key)
	return len(t.keys) - 1
}

func (t *keyTable) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(t.keys)))
	for _, key := range t.keys {
		if key.volume == t.own {
			b = append(b, 0)
		} else {
			b = append(append(b, 1), key.volume[:]...)
		}
		b = binary.AppendUvarint(b, uint64(key.epoch))
		b = binary.LittleEndian.AppendUint64(b, key.id)
	}
	return b
}

func parseKeys(d *decoder, own layers.ID) []keyRef {
	keys := make([]keyRef, d.upTo(maxKeys, "number of keys"))
	for i := range keys {
		switch foreign := d.u8(); {
		case foreign == 0:
			keys[i].volume = own
		case foreign == 1:
			copy(keys[i].volume[:], d.bytes(16))
			if d.err == nil && keys[i].volume == own {
				d.fail(errors.New("the own volume among the others"))
			}
		default:
			d.failf("unknown flags %#x of a key", foreign)
		}
		keys[i].epoch = uint32(d.upTo(1<<32-1, "epoch"))
		if id := d.bytes(8); id != nil {
			keys[i].id = binary.LittleEndian.Uint64(id)
		}
		for j := range i {
			if d.err == nil && keys[j] == keys[i] {
				d.fail(errors.New("a key stands twice"))
			}
		}
	}
	return keys
}

// keyAt reads the index of a key; used of them were named before. Keys are
// named in their order for the first time.
func keyAt(d *decoder, keys []keyRef, used int) (keyRef, int) {
	i := int(d.upTo(int64(len(keys)), "index of a key"))
	if d.err == nil && (i >= len(keys) || i > used) {
		d.failf("key %d of %d after %d", i, len(keys), used)
	}
	if d.err != nil {
		return keyRef{}, used
	}
	return keys[i], max(used, i+1)
}
