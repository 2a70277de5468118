package repo

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
	"slices"
	"sort"

	"varve/layers"
)

// Blocks that have the content of earlier ones are not stored again if a frame
// of the same span and the same pack has it, so that all a pack says of its
// blocks is true by itself: whoever verifies, repairs or repacks it, or resumes
// its backup, needs no other. Blocks are matched before they are compressed,
// in the order of the tasks; what became of the pack meanwhile is seen when
// their turn comes to be stored. So how the workers interleave matters only
// where it decides that a frame is not tried to be compressed (trier), and a
// pack is full sooner.

// repeatLeast is how many blocks side by side must have been there side by
// side: shorter repeats would save little, and cut the map and reads in pieces.
const repeatLeast = 8

// repeatsMax bounds the trailer of a pack: it takes little more.
const repeatsMax = 1 << 16

// A repeat is a run of blocks of the volume that a frame holds beside those
// that it was made of.
type repeat struct {
	run
	at int64 // first block in the frame
}

// A match is a run of blocks with the content of as many earlier ones.
type match struct {
	run
	from int64 // first of the earlier blocks
}

// A matcher finds blocks that have the content of earlier ones in their span.
// What it finds is to be compared: it knows blocks by their checksums.
type matcher struct {
	span int64    // first block
	sums []uint32 // by block of the span; 0: not there
	last []uint32 // by the low bits of a sum: 1 + the last block of the span with it; 0: none
}

// matchSlots is twice the blocks of a pack that shrinks as most do.
const matchSlots = 1 << 16

// enter makes the matcher forget all other spans.
func (m *matcher) enter(span run) {
	switch {
	case m.sums == nil:
		m.sums, m.last = make([]uint32, spanBlocks), make([]uint32, matchSlots)
	case m.span != span.block:
		clear(m.sums)
		clear(m.last)
	}
	m.span = span.block
}

// match appends to matches the runs of blocks, which ascend, that are repeats
// of those of earlier calls, and remembers the blocks.
func (m *matcher) match(matches []match, blocks []int64, sums []uint32) []match {
	first := 0 // that no match has
	for i := 0; i < len(blocks); i++ {
		slot := m.last[sums[i]%matchSlots]
		if slot == 0 || m.sums[slot-1] != sums[i] {
			continue
		}
		from := int64(slot - 1)
		begin, end := i, i+1
		for begin > first && m.extends(blocks, sums, begin-1, blocks[begin], from-1) {
			begin, from = begin-1, from-1
		}
		for next := int64(slot); end < len(blocks) && m.extends(blocks, sums, end, blocks[end-1]+2, next); next++ {
			end++
		}
		if end-begin < repeatLeast {
			continue
		}
		matches = append(matches, match{run{blocks[begin], int64(end - begin)}, m.span + from})
		first, i = end, end-1
	}
	for i, b := range blocks {
		m.sums[b-m.span] = sums[i]
		m.last[sums[i]%matchSlots] = uint32(b-m.span) + 1
	}
	return matches
}

// extends reports whether block i, if it is the one before after, is as the
// block of that place in the span.
func (m *matcher) extends(blocks []int64, sums []uint32, i int, after, place int64) bool {
	return blocks[i] == after-1 && place >= 0 && place < spanBlocks && m.sums[place] == sums[i]
}

// sumOfBlock is never 0.
func sumOfBlock(b []byte) uint32 { return max(crc32.Checksum(b, castagnoli), 1) }

// proves reports whether the source has the same bytes where a match says so.
// buf has room for them.
func (t *task) proves(m *match, source io.ReaderAt, buf []byte) bool {
	buf = buf[:m.count*layers.BlockSize]
	if n, _ := source.ReadAt(buf, m.from*layers.BlockSize); n < len(buf) {
		return false // it is stored once more
	}
	i, _ := slices.BinarySearch(t.blocks, m.block)
	return bytes.Equal(buf, t.plain[i*layers.BlockSize:][:len(buf)])
}

// dropMatched takes the blocks of the matches out of the task, or forgets the
// matches: all of them if one does not hold. Those from blocks before oldest
// can't be of use any more.
func (t *task) dropMatched(source io.ReaderAt, oldest int64) {
	for i := range t.matches {
		if m := &t.matches[i]; m.from < oldest || !t.proves(m, source, t.packed[:cap(t.packed)]) {
			t.matches = t.matches[:0]
			return
		}
	}
	if len(t.matches) == 0 {
		return
	}
	plain, blocks := t.plain, t.blocks
	t.plain, t.blocks = t.plain[:0], t.blocks[:0]
	matches := t.matches
	for i, b := range blocks {
		for len(matches) > 0 && b >= matches[0].block+matches[0].count {
			matches = matches[1:]
		}
		if len(matches) == 0 || b < matches[0].block {
			t.plain = append(t.plain, plain[i*layers.BlockSize:(i+1)*layers.BlockSize]...)
			t.blocks = append(t.blocks, b)
		}
	}
}

// places are all runs of blocks that a frame has.
func (s *section) places() []run {
	places := slices.Clone(s.runs)
	for _, r := range s.repeats {
		places = append(places, r.run)
	}
	return places
}

// appendRepeats writes what follows a frame's runs in a trailer; end is that of
// the last run.
func (s *section) appendRepeats(b []byte, end int64) []byte {
	if len(s.repeats) == 0 {
		return b
	}
	b = binary.AppendUvarint(b, uint64(len(s.repeats)-1))
	for _, r := range s.repeats {
		b = binary.AppendUvarint(b, uint64(r.at))
		b = appendSvarint(b, r.block-end)
		b = binary.AppendUvarint(b, uint64(r.count-1))
		end = r.block + r.count
	}
	return b
}

func (s *section) parseRepeats(d *decoder, end int64) {
	s.repeats = make([]repeat, d.count(3, "number of repeats less 1")+1)
	for i := range s.repeats {
		r := &s.repeats[i]
		r.at = d.upTo(int64(s.blocks)-1, "place of a repeat")
		r.block = end + d.svarint()
		r.count = d.upTo(int64(s.blocks)-1-r.at, "repeat less 1") + 1
		if d.err == nil && (r.block < 0 || r.block > maxBlocks) {
			d.failf("a repeat at block %d", r.block)
		}
		if d.err != nil {
			return
		}
		end = r.block + r.count
	}
}

// A stored repeat is one that a pack has taken down.
type storedRepeat struct {
	repeat
	number int // of the section
}

// place finds a block in the pack, whose frames have ascending blocks: the
// section, the place in it, and how many blocks follow there.
func (b *packBuilder) place(block int64) (number int, at, count int64, ok bool) {
	number = sort.Search(len(b.sections), func(i int) bool { return b.sections[i].runs[0].block > block }) - 1
	if number >= 0 {
		for _, r := range b.sections[number].runs {
			if block >= r.block && block < r.block+r.count {
				return number, at + block - r.block, r.block + r.count - block, true
			}
			at += r.count
		}
	}
	i := sort.Search(len(b.repeats), func(i int) bool { return b.repeats[i].block > block }) - 1
	if i < 0 || block >= b.repeats[i].block+b.repeats[i].count {
		return 0, 0, 0, false
	}
	r := &b.repeats[i]
	skip := block - r.block
	return r.number, r.at + skip, r.count - skip, true
}

// repeat takes down the matches in the pack at hand and in the leaf. It reports
// false, and does nothing, unless the pack has all of them.
func (w *writer) repeat(matches []match) bool {
	b, l := &w.data, w.leaf
	if len(b.repeats) > repeatsMax {
		w.closeData()
	}
	if b.sealer == nil {
		return false
	}
	first := len(b.sections) - len(l.frames) // the section of the leaf's first frame, if all are in this pack
	found := w.found[:0]
	for _, m := range matches {
		for m.count > 0 {
			number, at, count, ok := b.place(m.from)
			if !ok || number < first {
				return false
			}
			count = min(count, m.count)
			found = append(found, storedRepeat{repeat{run{m.block, count}, at}, number})
			m.block, m.from, m.count = m.block+count, m.from+count, m.count-count
		}
	}
	w.found = found
	for _, r := range found {
		l.addRepeat(int32(r.number-first), r.repeat)
		w.root.backup.Logical += r.count * layers.BlockSize
		b.repeats = append(b.repeats, r)
	}
	return true
}

// holds reports whether the frame has a block of the volume at that place.
func (s *section) holds(block, at int64) bool {
	place := at
	for _, r := range s.runs {
		if place < r.count {
			if r.block+place == block {
				return true
			}
			break
		}
		place -= r.count
	}
	return slices.ContainsFunc(s.repeats, func(r repeat) bool {
		return at >= r.at && at < r.at+r.count && block-r.block == at-r.at
	})
}
