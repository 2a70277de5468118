package repo

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"

	"varve/layers"
)

// A sectionPlace says where a section is, and all that is needed to open it.
type sectionPlace struct {
	pack   packRef
	where  place // of the pack; what was moved is in p/
	number uint32
	off    int64 // bytes, in the object
	stored uint32
	kind   sectionKind // frame, leaf or inventory
	blocks uint8       // of a frame
	zstd   bool
}

// frameRef is the place of a frame in its pack, without the pack.
func (p *sectionPlace) frameRef() frameRef {
	return frameRef{number: p.number, off: p.off, stored: p.stored, blocks: p.blocks, zstd: p.zstd}
}

const (
	relocationVersion = 1
	maxRelocations    = 1 << 21 // rows of one object; about 24 bytes of memory each
	relocationLimit   = 32 << 20
	rowLeast          = 9 // bytes that a row takes in a text

	bodyRows     = 12
	bodyReplaces = 13
)

// A movedClass says how much of a pack was moved when a relocation was written.
type movedClass int8

const (
	notMoved    movedClass = -1 // never written
	movedSome   movedClass = 0  // a repair moved what was lost
	movedNeeded movedClass = 1  // all that a backup needed of it
	movedAll    movedClass = 2  // every section of it
	movedLast              = movedAll
)

// A movedPack is a pack that sections were moved from: rows[first:end] of its
// relocations.
type movedPack struct {
	id         objectID
	class      movedClass
	first, end int
}

// A movedRow is a relocated section: where it was written first, and where it
// is now.
type movedRow struct {
	section uint32 // number in its pack
	object  uint32 // index in relocations.objects
	number  uint32
	off     uint32 // bytes
	stored  uint32
	shape   byte
}

// relocations say of sections of a volume's packs where they are too:
// docs/format.md 2.10. Packs ascend, rows ascend in each.
type relocations struct {
	packs   []movedPack
	rows    []movedRow
	objects []packRef // in the order of their first use
}

// at returns the index of a pack, or of the first one after it.
func (l *relocations) at(id objectID) (int, bool) {
	return slices.BinarySearchFunc(l.packs, id, func(p movedPack, id objectID) int { return slices.Compare(p.id[:], id[:]) })
}

// find returns where a section is.
func (l *relocations) find(from sectionKey) (sectionPlace, bool) {
	i, ok := l.at(from.id)
	if !ok {
		return sectionPlace{}, false
	}
	rows := l.rows[l.packs[i].first:l.packs[i].end]
	j, ok := slices.BinarySearchFunc(rows, from.number, func(r movedRow, n uint32) int { return cmp.Compare(r.section, n) })
	if !ok {
		return sectionPlace{}, false
	}
	return l.place(&rows[j]), true
}

func (l *relocations) place(r *movedRow) sectionPlace {
	p := sectionPlace{pack: l.objects[r.object], number: r.number, off: int64(r.off), stored: r.stored}
	p.kind, p.blocks, p.zstd, _ = parseShape(r.shape) // It was parsed before.
	return p
}

// names yields what maps call each section, and where it is.
func (l *relocations) names() iter.Seq2[sectionKey, *movedRow] {
	return func(yield func(sectionKey, *movedRow) bool) {
		for i := range l.packs {
			for j := l.packs[i].first; j < l.packs[i].end; j++ {
				if !yield(sectionKey{l.packs[i].id, l.rows[j].section}, &l.rows[j]) {
					return
				}
			}
		}
	}
}

// append writes the text: docs/format.md 2.10.
func (l *relocations) append(b []byte, volume layers.ID) []byte {
	keys := keyTable{own: volume}
	keyOf := make([]int, len(l.objects))
	for i := range l.objects {
		keyOf[i] = keys.index(l.objects[i].key)
	}
	b = keys.append(append(b, relocationVersion))
	b = binary.AppendUvarint(b, uint64(len(l.packs)))
	for i := range l.packs {
		b = append(b, l.packs[i].id[:]...)
	}
	for i := range l.packs {
		b = binary.AppendUvarint(b, uint64(l.packs[i].end-l.packs[i].first))
	}
	for i := range l.packs {
		b = append(b, byte(l.packs[i].class))
	}
	b = binary.AppendUvarint(b, uint64(len(l.objects)))
	for i := range l.objects {
		b = append(b, l.objects[i].id[:]...)
	}
	for _, k := range keyOf {
		b = binary.AppendUvarint(b, uint64(k))
	}
	return l.appendRows(b)
}

func (l *relocations) appendRows(b []byte) []byte {
	for i := range l.packs {
		next := uint32(0)
		for _, r := range l.rows[l.packs[i].first:l.packs[i].end] {
			b = binary.AppendUvarint(b, uint64(r.section-next))
			next = r.section + 1
		}
	}
	for i := range l.rows {
		b = binary.AppendUvarint(b, uint64(l.rows[i].object))
	}
	next := l.cursors()
	var offsets []byte
	lengths := make([]uint32, len(l.rows))
	for i := range l.rows {
		r := &l.rows[i]
		c := &next[r.object]
		b = appendSvarint(b, int64(r.number)-int64(c.number))
		offsets = appendSvarint(offsets, int64(r.off)-c.off)
		c.number, c.off = r.number+1, int64(r.off)+int64(r.stored)
		lengths[i] = r.stored
	}
	b = append(b, offsets...)
	for i := range l.rows {
		b = append(b, l.rows[i].shape)
	}
	return appendU24s(b, lengths)
}

// cursors are the expected places in the objects at the front of the rows.
func (l *relocations) cursors() []packCursor {
	next := make([]packCursor, len(l.objects))
	for i := range next {
		next[i].off = headerSize
	}
	return next
}

// parseRelocations reads the text.
func parseRelocations(b []byte, volume layers.ID) (*relocations, error) {
	d := &decoder{rest: b}
	if v := d.u8(); d.err == nil && v != relocationVersion {
		return nil, fmt.Errorf("relocations version %d, this program knows version %d: %w", v, relocationVersion, ErrVersion)
	}
	keys := parseKeys(d, volume)
	l := new(relocations)
	l.parsePacks(d)
	l.parseObjects(d, keys)
	l.parseRows(d)
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("relocations: %w", err)
	}
	return l, nil
}

func (l *relocations) parsePacks(d *decoder) {
	l.packs = make([]movedPack, d.count(22, "number of packs"))
	for i := range l.packs {
		p := &l.packs[i]
		copy(p.id[:], d.bytes(20))
		if d.err == nil && i > 0 && slices.Compare(l.packs[i-1].id[:], p.id[:]) >= 0 {
			d.fail(errors.New("packs do not ascend"))
		}
	}
	total := 0
	for i := range l.packs {
		n := int(d.upTo(maxRelocations, "number of sections"))
		l.packs[i].first, l.packs[i].end = total, total+n
		total += n
		if d.err == nil && (n == 0 || total > maxRelocations || total > len(d.rest)/rowLeast) {
			d.fail(errCut)
		}
	}
	for i := range l.packs {
		if l.packs[i].class = movedClass(d.u8()); d.err == nil && (l.packs[i].class < movedSome || l.packs[i].class > movedLast) {
			d.failf("unknown class %d of a pack", l.packs[i].class)
		}
	}
	if d.err == nil {
		l.rows = make([]movedRow, total)
	}
}

func (l *relocations) parseObjects(d *decoder, keys []keyRef) {
	l.objects = make([]packRef, d.count(21, "number of objects"))
	seen := make(map[objectID]bool, len(l.objects))
	for i := range l.objects {
		o := &l.objects[i]
		copy(o.id[:], d.bytes(20))
		if d.err == nil && seen[o.id] {
			d.fail(errors.New("an object stands twice"))
		}
		seen[o.id] = true
	}
	used := 0
	for i := range l.objects {
		l.objects[i].key, used = keyAt(d, keys, used)
	}
	if d.err == nil && used != len(keys) {
		d.failf("%d of %d keys are used", used, len(keys))
	}
}

func (l *relocations) parseRows(d *decoder) {
	for i := range l.packs {
		next := int64(0)
		for j := l.packs[i].first; j < l.packs[i].end && d.err == nil; j++ {
			next += d.upTo(1<<32-2, "section")
			if d.err == nil && next > 1<<32-2 {
				d.failf("section %d", next)
			}
			l.rows[j].section = uint32(next)
			next++
		}
	}
	used := uint32(0)
	for i := range l.rows {
		at := uint32(d.upTo(int64(len(l.objects)), "object"))
		if d.err == nil && (int(at) >= len(l.objects) || at > used) {
			d.failf("object %d of %d after %d", at, len(l.objects), used)
		}
		if d.err != nil {
			return
		}
		l.rows[i].object = at
		used = max(used, at+1)
	}
	if d.err == nil && int(used) != len(l.objects) {
		d.failf("%d of %d objects are used", used, len(l.objects))
	}
	l.parsePlaces(d)
}

// parsePlaces reads the columns of where the sections are. Offsets count on from
// row to row in an object, and need the lengths, which come last.
func (l *relocations) parsePlaces(d *decoder) {
	next := l.cursors()
	for i := range l.rows {
		if d.err != nil {
			return
		}
		c := &next[l.rows[i].object]
		number := int64(c.number) + d.svarint()
		if number < 0 || number > 1<<32-2 {
			d.failf("number %d", number)
			return
		}
		l.rows[i].number, c.number = uint32(number), uint32(number)+1
	}
	skips := make([]int64, len(l.rows))
	for i := range skips {
		skips[i] = d.svarint()
	}
	for i := range l.rows {
		r := &l.rows[i]
		r.shape = d.u8()
		if _, _, _, err := parseShape(r.shape); err != nil {
			d.fail(err)
		}
	}
	d.u24s(len(l.rows), func(i int, v uint32) { l.rows[i].stored = v })
	for i := range l.rows {
		r := &l.rows[i]
		c := &next[r.object]
		off := c.off + skips[i]
		c.off = off + int64(r.stored)
		if d.err == nil && (off < headerSize || c.off > maxPack) {
			d.failf("a section of %d bytes at offset %d", r.stored, off)
		}
		if d.err != nil {
			return
		}
		r.off = uint32(off)
		if p := l.place(r); p.kind == sectionFrame {
			f := p.frameRef()
			if err := f.validate(); err != nil {
				d.fail(err)
			}
		} else if r.stored <= tagSize {
			d.failf("a section of %d bytes", r.stored)
		}
	}
}
