package repo

import (
	"encoding/binary"
	"errors"
	"fmt"

	"varve/layers"
)

const (
	packTarget  = 32 << 20 // bytes; a pack is closed before it outgrows them
	footerSize  = 24
	footerMagic = "VARVTAIL"
	maxTrailer  = 16 << 20

	sectionsMax = 1 << 16 // in a pack, so that its trailer stays small
)

// A run is a number of blocks side by side in the volume.
type run struct {
	block, count int64
}

// A section is what the trailer of a pack says about one of its sections.
type section struct {
	kind   sectionKind // frame, leaf or inventory
	blocks uint8       // of a frame
	zstd   bool
	stored uint32 // bytes, with the tag
	id     frameID
	runs   []run // of a frame: where its blocks belong
	first  int64 // of a leaf: the first block of its span

	repeats []repeat // of a frame: where some of its blocks belong too
}

// A packBuilder collects sealed sections in one buffer.
type packBuilder struct {
	where    place
	id       objectID
	backup   layers.ID
	key      *volumeKey
	sealer   *sealer
	buf      []byte
	sections []section
	repeats  []storedRepeat // beside those of sections, with ascending blocks
}

// begin starts the pack of that ID in buf, which keeps its capacity.
func (b *packBuilder) begin(where place, id objectID, backup layers.ID, key *volumeKey, buf []byte) {
	*b = packBuilder{
		where: where, id: id, backup: backup, key: key, sealer: key.sealer(id),
		buf: append(buf[:0], make([]byte, headerSize)...), sections: b.sections[:0], repeats: b.repeats[:0],
	}
}

func (b *packBuilder) empty() bool { return len(b.sections) == 0 }

// fits reports whether a section of that stored length may come in.
func (b *packBuilder) fits(stored int, target int) bool {
	return b.empty() || len(b.buf)+stored+footerSize <= target && len(b.sections) < sectionsMax
}

// add seals text as the next section, and returns where it is.
func (b *packBuilder) add(text []byte, s section) (number uint32, off int64, stored uint32) {
	number, off = uint32(len(b.sections)), int64(len(b.buf))
	b.buf = b.sealer.seal(b.buf, text, s.kind, number, nil)
	s.stored = uint32(int64(len(b.buf)) - off)
	b.sections = append(b.sections, s)
	return number, off, s.stored
}

// finish returns the whole object.
func (b *packBuilder) finish() []byte {
	for _, r := range b.repeats {
		s := &b.sections[r.number]
		s.repeats = append(s.repeats, r.repeat)
	}
	text := compress(nil, appendTrailer(nil, b.backup, b.sections))
	h := header{
		kind: kindData, suite: b.key.suite, id: b.id, key: b.key.ref, commitment: b.key.commitment(b.id),
		inner: uint32(len(text) + tagSize),
		total: int64(len(b.buf) + len(text) + tagSize + footerSize),
	}
	if b.where == inLeaves {
		h.kind = kindLeaves
	}
	h.append(b.buf[:0])
	b.buf = b.sealer.seal(b.buf, text, sectionTrailer, trailerNumber, b.buf[:headerBound])
	b.buf = appendFooter(b.buf, &h)
	return b.buf
}

func appendFooter(b []byte, h *header) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, h.inner)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.total))
	sum := checksum(append(h.id[:len(h.id):len(h.id)], b[start:]...))
	b = binary.LittleEndian.AppendUint32(b, sum)
	return append(b, footerMagic...)
}

// checkFooter compares the last footerSize bytes of a pack with its header.
func checkFooter(b []byte, h *header) error {
	if want := appendFooter(nil, h); string(b) != string(want) {
		return fmt.Errorf("footer % x, expected % x", b, want)
	}
	return nil
}

// Bits 6 and 7 of a section's shape in a trailer.
var shapeOf = map[sectionKind]byte{sectionFrame: 0, sectionLeaf: 1, sectionInventory: 2}
var kindOf = [4]sectionKind{sectionFrame, sectionLeaf, sectionInventory}

// shapeByte is the shape of a section.
func shapeByte(kind sectionKind, blocks uint8, zstd bool) byte {
	shape := shapeOf[kind] << 6
	if kind == sectionFrame {
		shape |= blocks - 1
	}
	if zstd {
		shape |= shapeZstd
	}
	return shape
}

// parseShape reads what shapeByte wrote.
func parseShape(shape byte) (kind sectionKind, blocks uint8, zstd bool, err error) {
	kind, blocks, zstd = kindOf[shape>>6], shape&shapeBlocks, shape&shapeZstd != 0
	if kind == sectionFrame {
		blocks++
	}
	if kind == 0 || kind != sectionFrame && (blocks != 0 || !zstd) {
		err = fmt.Errorf("unknown shape %#x of a section", shape)
	}
	return kind, blocks, zstd, err
}

// shapeRepeats is instead of the kind, in a trailer: a frame with repeats.
const shapeRepeats = 3 << 6

const (
	trailerVersion = 1
	trailerNumber  = 1<<32 - 1 // what it is sealed as: no other section has it
)

// appendTrailer writes the text of a trailer: docs/format.md 2.6.
func appendTrailer(b []byte, backup layers.ID, sections []section) []byte {
	b = append(b, trailerVersion)
	b = append(b, backup[:]...)
	b = binary.AppendUvarint(b, uint64(len(sections)))
	lengths := make([]uint32, len(sections))
	for i := range sections {
		s := &sections[i]
		shape := shapeByte(s.kind, s.blocks, s.zstd)
		if len(s.repeats) > 0 {
			shape |= shapeRepeats
		}
		b = append(b, shape)
		lengths[i] = s.stored
	}
	b = appendU24s(b, lengths)
	for i := range sections {
		b = append(b, sections[i].id[:]...)
	}
	end := int64(0)
	for i := range sections {
		switch s := &sections[i]; s.kind {
		case sectionFrame:
			b = binary.AppendUvarint(b, uint64(len(s.runs)-1))
			for _, r := range s.runs {
				b = appendSvarint(b, r.block-end)
				b = binary.AppendUvarint(b, uint64(r.count-1))
				end = r.block + r.count
			}
			b = s.appendRepeats(b, end)
		case sectionLeaf:
			b = binary.AppendUvarint(b, uint64(s.first))
		}
	}
	return b
}

// parseTrailer reads the text of a trailer.
func parseTrailer(b []byte) (backup layers.ID, sections []section, err error) {
	d := &decoder{rest: b}
	if v := d.u8(); d.err == nil && v != trailerVersion {
		return backup, nil, fmt.Errorf("trailer version %d, this program knows version %d: %w", v, trailerVersion, ErrVersion)
	}
	copy(backup[:], d.bytes(16))
	sections = make([]section, d.count(20, "number of sections"))
	shapes := d.bytes(len(sections))
	for i, shape := range shapes {
		s := &sections[i]
		if shape >= shapeRepeats {
			shape &^= shapeRepeats
		}
		if s.kind, s.blocks, s.zstd, err = parseShape(shape); err != nil {
			d.fail(err)
			break
		}
	}
	d.u24s(len(sections), func(i int, v uint32) { sections[i].stored = v })
	for i := range sections {
		copy(sections[i].id[:], d.bytes(16))
	}
	end := int64(0)
	for i := range sections {
		switch s := &sections[i]; s.kind {
		case sectionFrame:
			end = s.parseRuns(d, end)
			if d.err == nil && shapes[i] >= shapeRepeats {
				s.parseRepeats(d, end)
			}
		case sectionLeaf:
			s.first = d.upTo(maxBlocks, "first block")
		}
		if d.err != nil {
			break
		}
	}
	if err := d.end(); err != nil {
		return backup, nil, fmt.Errorf("trailer: %w", err)
	}
	return backup, sections, nil
}

func (s *section) parseRuns(d *decoder, end int64) int64 {
	n, total := d.upTo(int64(s.blocks)-1, "number of runs")+1, int64(0)
	s.runs = make([]run, n)
	for i := range s.runs {
		r := &s.runs[i]
		r.block = end + d.svarint()
		r.count = d.upTo(frameBlocks-1, "run") + 1
		if d.err == nil && (r.block < 0 || r.block > maxBlocks) {
			d.failf("a run at block %d", r.block)
		}
		end = r.block + r.count
		total += r.count
	}
	if d.err == nil && total != int64(s.blocks) {
		d.failf("runs of %d blocks in a frame of %d", total, s.blocks)
	}
	if d.err == nil {
		f := frameRef{blocks: s.blocks, zstd: s.zstd, stored: s.stored}
		if err := f.validate(); err != nil {
			d.fail(err)
		}
	}
	return end
}

// Inventories list the packs that a backup added: docs/format.md 2.8.

const inventoryVersion = 1

type packSize struct {
	where place
	id    objectID
	size  int64
}

func appendInventoryText(b []byte, packs []packSize) []byte {
	b = append(b, inventoryVersion)
	b = binary.AppendUvarint(b, uint64(len(packs)))
	for i := range packs {
		b = append(b, packs[i].id[:]...)
	}
	for i := range packs {
		b = append(b, byte(packs[i].where))
	}
	for i := range packs {
		b = binary.AppendUvarint(b, uint64(packs[i].size))
	}
	return b
}

func parseInventory(b []byte) ([]packSize, error) {
	d := &decoder{rest: b}
	if v := d.u8(); d.err == nil && v != inventoryVersion {
		return nil, fmt.Errorf("inventory version %d, this program knows version %d: %w", v, inventoryVersion, ErrVersion)
	}
	packs := make([]packSize, d.count(22, "number of packs"))
	for i := range packs {
		copy(packs[i].id[:], d.bytes(20))
	}
	for i := range packs {
		packs[i].where = place(d.u8())
		if packs[i].where > inLeaves {
			d.fail(errors.New("unknown place of a pack"))
		}
	}
	for i := range packs {
		packs[i].size = d.upTo(maxOffset, "size of a pack")
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("inventory: %w", err)
	}
	return packs, nil
}
