package repo

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
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
	d := decoder{rest: []byte{r.shape}}
	p := sectionPlace{pack: l.objects[r.object], number: r.number, off: int64(r.off), stored: r.stored}
	p.kind, p.blocks, p.zstd = d.shape()
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

// A relocating gathers rows in any order.
type relocating struct {
	packs   map[objectID]*movingPack
	objects []packRef
	index   map[packRef]uint32
	rows    int
}

type movingPack struct {
	class movedClass
	rows  []movedRow
	has   liveSet // the sections in rows
}

func newRelocating() *relocating {
	return &relocating{packs: make(map[objectID]*movingPack), index: make(map[packRef]uint32)}
}

// add says where a section is. There is one place for each.
func (g *relocating) add(from sectionKey, to *sectionPlace) {
	at, ok := g.index[to.pack]
	if !ok {
		at = uint32(len(g.objects))
		g.objects, g.index[to.pack] = append(g.objects, to.pack), at
	}
	p := g.packs[from.id]
	if p == nil {
		p = new(movingPack)
		g.packs[from.id] = p
	}
	p.has.take(from.number, to.stored)
	p.rows = append(p.rows, movedRow{from.number, at, to.number, uint32(to.off), to.stored, shapeByte(to.kind, to.blocks, to.zstd)})
	g.rows++
}

// has reports whether something is said of a section.
func (g *relocating) has(name sectionKey) bool {
	p := g.packs[name.id]
	return p != nil && p.has.has(name.number)
}

// setClass says how much of a pack was moved, if anything was.
func (g *relocating) setClass(id objectID, class movedClass) {
	if p := g.packs[id]; p != nil {
		p.class = class
	}
}

func (g *relocating) clone() *relocating {
	c := &relocating{packs: make(map[objectID]*movingPack, len(g.packs)), objects: slices.Clone(g.objects), index: maps.Clone(g.index), rows: g.rows}
	for id, p := range g.packs {
		q := *p
		q.rows, q.has.words = slices.Clone(p.rows), slices.Clone(p.has.words)
		c.packs[id] = &q
	}
	return c
}

// build orders the rows as they are written.
func (g *relocating) build() *relocations {
	l := &relocations{rows: make([]movedRow, 0, g.rows)}
	for id, p := range g.packs {
		l.packs = append(l.packs, movedPack{id: id, class: p.class})
	}
	slices.SortFunc(l.packs, func(a, b movedPack) int { return slices.Compare(a.id[:], b.id[:]) })
	renamed := make(map[uint32]uint32)
	for i := range l.packs {
		p := &l.packs[i]
		rows := g.packs[p.id].rows
		slices.SortFunc(rows, func(a, b movedRow) int { return cmp.Compare(a.section, b.section) })
		p.first = len(l.rows)
		for _, r := range rows {
			at, ok := renamed[r.object]
			if !ok {
				at = uint32(len(l.objects))
				l.objects, renamed[r.object] = append(l.objects, g.objects[r.object]), at
			}
			r.object = at
			l.rows = append(l.rows, r)
		}
		p.end = len(l.rows)
	}
	return l
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
		shape := decoder{rest: d.bytes(1)}
		kind, blocks, zstd := shape.shape()
		if d.err == nil && shape.err != nil {
			d.fail(shape.err)
		}
		if d.err == nil {
			r.shape = shapeByte(kind, blocks, zstd)
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

func relocationPrefix(volume layers.ID) string { return volumePrefix(volume) + "r/" }

func relocationName(volume layers.ID, id objectID) string {
	return relocationPrefix(volume) + id.String()
}

// parseRelocationName reads what relocationName wrote.
func parseRelocationName(name string) (volume layers.ID, id objectID, ok bool) {
	n, is := parseVolumeName(name)
	if !is {
		return volume, id, false
	}
	id, ok = n.relocation()
	return n.volume, id, ok
}

func (n volumeName) relocation() (id objectID, ok bool) {
	if n.kind != "r" || len(n.rest) != 2*len(id) {
		return id, false
	}
	_, err := hex.Decode(id[:], []byte(n.rest))
	return id, err == nil && relocationName(n.volume, id) == n.String()
}

// sealRelocations returns the object of relocations that stand for others too.
func (r *Repo) sealRelocations(id objectID, volume layers.ID, l *relocations, replaces []objectID) []byte {
	f := make(fields)
	f.setID(bodyVolume, volume)
	f.setTime(bodyTime, r.now())
	f.setText(bodyHost, hostName())
	f[bodyRows] = compress(nil, l.append(nil, volume))
	for i := range replaces {
		f[bodyReplaces] = append(f[bodyReplaces], replaces[i][:]...)
	}
	return r.sealObject(kindRelocation, id, f)
}

// writeRelocations makes relocations durable, and known to this Repo. What they
// name is durable already. It returns the name of the object.
func (r *Repo) writeRelocations(ctx context.Context, volume, session layers.ID, l *relocations, replaces []objectID) (string, error) {
	id := newObjectID(session)
	name, object := relocationName(volume, id), r.sealRelocations(id, volume, l, replaces)
	if err := r.store.Put(ctx, name, object); err != nil {
		return "", fmt.Errorf("write relocation: %w", err)
	}
	r.moves.add(volume, &moveObject{relocations: l, name: name, id: id, size: int64(len(object)), replaces: replaces})
	return name, nil
}

// maxReplaced bounds the relocations that one stands for.
const maxReplaced = 4096

// parseRelocation reads a relocation object.
func (r *Repo) parseRelocation(name string, b []byte) (*moveObject, error) {
	volume, id, ok := parseRelocationName(name)
	h, err := parseHeader(b)
	if err != nil {
		return nil, err
	}
	if !ok || h.id != id {
		return nil, fmt.Errorf("it is object %s", h.id)
	}
	f, err := r.openBody(b, kindRelocation)
	if err != nil {
		return nil, err
	}
	if of, err := f.id(bodyVolume); err != nil || of != volume {
		return nil, fmt.Errorf("it is of volume %s", of)
	}
	o := &moveObject{name: name, id: id}
	list := f[bodyReplaces]
	if len(list)%len(id) != 0 || len(list)/len(id) > maxReplaced {
		return nil, fmt.Errorf("what it replaces takes %d bytes, not %d for each of at most %d", len(list), len(id), maxReplaced)
	}
	for other := range slices.Chunk(list, len(id)) {
		o.replaces = append(o.replaces, objectID(other))
	}
	text, err := expand(f[bodyRows], relocationLimit)
	if err != nil {
		return nil, err
	}
	o.relocations, err = parseRelocations(text, volume)
	return o, err
}
