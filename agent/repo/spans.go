package repo

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"varve/layers"
)

const (
	spansVersion = 1
	spanUnit     = splitBlocks // of the columns skip and class
	maxLeaves    = 5           // of a row: a base and 4 deltas
	classLeaves  = 0x07        // leaves - 1
	classSplit   = 1 << 3

	// maxSpansText bounds the memory for a root: 5 leaves for each GiB of a
	// volume of 1 PiB take less.
	maxSpansText = 128 << 20
)

// A leafPack is an object that holds leaves.
type leafPack struct {
	id    objectID
	where place
	key   keyRef
	size  int64 // of the object, bytes
}

func (p *leafPack) name() string { return packName(p.where, p.id) }

// A leafRef says where a leaf is. A leaf of a backup that is still being
// written has no pack yet, but text.
type leafRef struct {
	pack   *leafPack
	number uint32
	off    int64  // bytes, in the object
	stored uint32 // bytes, with the tag
}

// A row lists the leaves of one span, newest first; the last one is the base.
type row struct {
	first, blocks int64
	leaves        []leafRef
}

// spans are the rows of a root, ascending, with the packs that they name.
type spans struct {
	packs []*leafPack
	rows  []row
}

// find returns the index of the first row that ends after the block.
func (s *spans) find(block int64) int {
	i, _ := slices.BinarySearchFunc(s.rows, block, func(r row, block int64) int {
		if r.first+r.blocks <= block {
			return -1
		}
		return 1
	})
	return i
}

// collectPacks makes packs anew from the rows, in the order of their use,
// with those of more behind them.
func (s *spans) collectPacks(more ...*leafPack) {
	s.packs = nil
	seen := make(map[*leafPack]bool)
	add := func(p *leafPack) {
		if p != nil && !seen[p] {
			seen[p] = true
			s.packs = append(s.packs, p)
		}
	}
	for i := range s.rows {
		for _, leaf := range s.rows[i].leaves {
			add(leaf.pack)
		}
	}
	for _, p := range more {
		add(p)
	}
}

// append writes the text of the spans: docs/format.md 2.8.
func (s *spans) append(b []byte, own layers.ID) []byte {
	keys := keyTable{own: own}
	index := make(map[*leafPack]int64, len(s.packs))
	keyOf := make([]int, len(s.packs))
	for i, p := range s.packs {
		index[p] = int64(i)
		keyOf[i] = keys.index(p.key)
	}
	b = append(b, spansVersion, 0)
	b = keys.append(b)
	b = binary.AppendUvarint(b, uint64(len(s.packs)))
	for _, p := range s.packs {
		b = append(b, p.id[:]...)
	}
	for _, p := range s.packs {
		b = append(b, byte(p.where))
	}
	for _, i := range keyOf {
		b = binary.AppendUvarint(b, uint64(i))
	}
	for _, p := range s.packs {
		b = binary.AppendUvarint(b, uint64(p.size))
	}

	b = binary.AppendUvarint(b, uint64(len(s.rows)))
	end := int64(0)
	for i := range s.rows {
		b = binary.AppendUvarint(b, uint64((s.rows[i].first-end)/spanUnit))
		end = s.rows[i].first + s.rows[i].blocks
	}
	for i := range s.rows {
		class := byte(len(s.rows[i].leaves) - 1)
		if s.rows[i].blocks == splitBlocks {
			class |= classSplit
		}
		b = append(b, class)
	}
	var above [maxLeaves]int64 // pack of each leaf of the row before
	for i := range s.rows {
		for j, leaf := range s.rows[i].leaves {
			at := index[leaf.pack]
			b = appendSvarint(b, at-above[j])
			above[j] = at
		}
	}
	return s.appendPlaces(b, index)
}

func (s *spans) appendPlaces(b []byte, index map[*leafPack]int64) []byte {
	var offsets, lengths []byte
	next := s.cursors()
	for i := range s.rows {
		for _, leaf := range s.rows[i].leaves {
			c := &next[index[leaf.pack]]
			b = appendSvarint(b, int64(leaf.number)-int64(c.number))
			offsets = appendSvarint(offsets, leaf.off-c.off)
			lengths = binary.AppendUvarint(lengths, uint64(leaf.stored))
			c.number, c.off = leaf.number+1, leaf.off+int64(leaf.stored)
		}
	}
	return append(append(b, offsets...), lengths...)
}

// cursors are the expected places in the packs at the front of the rows.
func (s *spans) cursors() []packCursor {
	next := make([]packCursor, len(s.packs))
	for i := range next {
		next[i].off = headerSize
	}
	return next
}

// parseSpans reads the text of the spans.
func parseSpans(b []byte, own layers.ID) (*spans, error) {
	d := &decoder{rest: b}
	if v := d.u8(); d.err == nil && v != spansVersion {
		return nil, fmt.Errorf("spans version %d, this program knows version %d: %w", v, spansVersion, ErrVersion)
	}
	if level := d.u8(); level != 0 {
		return nil, fmt.Errorf("spans of level %d: %w", level, ErrVersion)
	}
	s := new(spans)
	keys := parseKeys(d, own)
	s.parsePacks(d, keys)
	s.parseRows(d)
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("spans: %w", err)
	}
	return s, nil
}

func (s *spans) parsePacks(d *decoder, keys []keyRef) {
	s.packs = make([]*leafPack, d.count(23, "number of packs"))
	for i := range s.packs {
		s.packs[i] = new(leafPack)
		copy(s.packs[i].id[:], d.bytes(20))
	}
	for _, p := range s.packs {
		p.where = place(d.u8())
		if p.where > inLeaves {
			d.failf("unknown place %d of a pack", p.where)
		}
	}
	used := 0
	for _, p := range s.packs {
		p.key, used = keyAt(d, keys, used)
	}
	if d.err == nil && used != len(keys) {
		d.failf("%d of %d keys are used", used, len(keys))
	}
	for _, p := range s.packs {
		p.size = d.upTo(maxOffset, "size of a pack")
	}
}

func (s *spans) parseRows(d *decoder) {
	s.rows = make([]row, d.count(6, "number of rows"))
	for i := range s.rows {
		s.rows[i].first = d.upTo(maxBlocks/spanUnit, "skip") * spanUnit
	}
	end, total := int64(0), 0
	for i := range s.rows {
		r := &s.rows[i]
		class := d.u8()
		n := int(class&classLeaves) + 1
		if d.err == nil && (class&^(classLeaves|classSplit) != 0 || n > maxLeaves) {
			d.failf("unknown class %#x of a row", class)
		}
		r.blocks = spanBlocks
		if class&classSplit != 0 {
			r.blocks = splitBlocks
		}
		r.first += end
		end = r.first + r.blocks
		if d.err == nil && (end > maxBlocks || r.first%r.blocks != 0) {
			d.failf("a span of %d blocks at block %d", r.blocks, r.first)
		}
		total += n
		if d.err == nil && total > len(d.rest)/4 {
			d.fail(errCut)
		}
		if d.err != nil {
			return
		}
		r.leaves = make([]leafRef, n)
	}
	s.parseLeaves(d)
}

func (s *spans) parseLeaves(d *decoder) {
	each := func(f func(j int, leaf *leafRef)) {
		for i := range s.rows {
			for j := range s.rows[i].leaves {
				if d.err == nil {
					f(j, &s.rows[i].leaves[j])
				}
			}
		}
	}
	index := make(map[*leafPack]int, len(s.packs))
	for i, p := range s.packs {
		index[p] = i
	}
	var above [maxLeaves]int64
	each(func(j int, leaf *leafRef) {
		at := above[j] + d.svarint()
		if at < 0 || at >= int64(len(s.packs)) {
			d.failf("pack %d of %d", at, len(s.packs))
			return
		}
		leaf.pack, above[j] = s.packs[at], at
	})

	// Numbers and offsets count on from leaf to leaf in a pack; the offsets
	// need the lengths, which come last.
	next := s.cursors()
	each(func(_ int, leaf *leafRef) {
		c := &next[index[leaf.pack]]
		number := int64(c.number) + d.svarint()
		if number < 0 || number > 1<<32-2 {
			d.failf("section %d", number)
			return
		}
		leaf.number, c.number = uint32(number), uint32(number)+1
	})
	each(func(_ int, leaf *leafRef) { leaf.off = d.svarint() })
	each(func(_ int, leaf *leafRef) {
		c := &next[index[leaf.pack]]
		leaf.stored = uint32(d.upTo(maxLeafText, "length of a leaf"))
		leaf.off += c.off
		c.off = leaf.off + int64(leaf.stored)
		if d.err == nil && (leaf.stored <= tagSize || leaf.off < headerSize || leaf.off > maxOffset) {
			d.fail(errors.New("a leaf that cannot be where it should"))
		}
	})
}
