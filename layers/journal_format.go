package layers

import "fmt"

// Geometry of the journal. docs/format.md, "journal".
const (
	journalMagic  = "varvejnl"
	recordMagic   = "vjrn"
	barrierLength = 128
	ringStart     = 8192 // after the two places for barriers
	recordHeader  = 64
	entrySize     = 16
	flagClean     = 1 << 0
)

// barrier says which records of the ring are alive.
type barrier struct {
	Volume     ID
	Generation uint64
	Sequence   uint64 // of the first record that is alive
	Position   int64  // offset of that record in the file
	End        int64  // size of the file
	Clean      bool   // closed cleanly
}

// encode returns slotSize bytes.
func (b barrier) encode() []byte {
	p := make([]byte, slotSize)
	putHeader(p[:barrierLength], journalMagic)
	copy(p[16:], b.Volume[:])
	le.PutUint64(p[32:], b.Generation)
	le.PutUint64(p[40:], b.Sequence)
	le.PutUint64(p[48:], uint64(b.Position))
	le.PutUint64(p[56:], uint64(b.End))
	if b.Clean {
		le.PutUint32(p[64:], flagClean)
	}
	le.PutUint32(p[124:], crc(p[:124]))
	return p
}

func decodeBarrier(path string, p []byte) (barrier, error) {
	var b barrier
	if len(p) != slotSize {
		return b, &CorruptError{path, 0, "a barrier of 4096 bytes", fmt.Sprintf("%d bytes", len(p))}
	}
	if err := checkHeader(path, p[:barrierLength], journalMagic, barrierLength); err != nil {
		return b, err
	}
	if err := checkReserved(path, p, 68, 124); err != nil {
		return b, err
	}
	if !isZero(p[barrierLength:]) {
		return b, &CorruptError{path, barrierLength, "zeros", "something else"}
	}
	flags := le.Uint32(p[64:])
	if flags&^flagClean != 0 {
		return b, fmt.Errorf("%s: flags %#x: %w", path, flags, ErrUnsupported)
	}
	b = barrier{
		Volume:     ID(p[16:32]),
		Generation: le.Uint64(p[32:]),
		Sequence:   le.Uint64(p[40:]),
		Position:   int64(le.Uint64(p[48:])),
		End:        int64(le.Uint64(p[56:])),
		Clean:      flags == flagClean,
	}
	if b.Generation == 0 || b.End < ringStart+slotSize || b.End%slotSize != 0 ||
		b.Position < ringStart || b.Position > b.End || b.Position%slotSize != 0 {
		return b, &CorruptError{path, 48, "a position inside the ring", fmt.Sprintf("%d of %d", b.Position, b.End)}
	}
	return b, nil
}

// entry is a run of blocks in a record.
type entry struct {
	Block int64
	Count uint32
	Kind  Kind // Data or Zero
}

// recordHead is the fixed part of a record.
type recordHead struct {
	Sequence uint64
	Barrier  uint64 // generation of the barrier that counted
	Layer    ID
}

// headSize is the space that the header and the entries take, padding included.
func headSize(entries int) int {
	return (recordHeader + entrySize*entries + slotSize - 1) / slotSize * slotSize
}

// appendRecordHead appends the header, entries and padding of a record whose
// data follows to b.
func appendRecordHead(b []byte, h recordHead, entries []entry, data []byte) []byte {
	n := headSize(len(entries))
	start := len(b)
	b = append(b, make([]byte, n)...)
	p := b[start:]
	copy(p, recordMagic)
	le.PutUint32(p[8:], uint32(n+len(data)))
	le.PutUint32(p[12:], uint32(len(entries)))
	le.PutUint64(p[16:], h.Sequence)
	le.PutUint64(p[24:], h.Barrier)
	copy(p[32:], h.Layer[:])
	for i, e := range entries {
		at := p[recordHeader+entrySize*i:]
		le.PutUint64(at, uint64(e.Block))
		le.PutUint32(at[8:], e.Count)
		le.PutUint32(at[12:], uint32(e.Kind))
	}
	c := crcWithout(p, 4)
	le.PutUint32(p[4:], crcUpdate(c, data))
	return b
}

// record is a decoded record. Data is a part of what it was decoded from.
type record struct {
	recordHead
	Entries []entry
	Data    []byte // the blocks of the data entries, in order
	Length  int64  // bytes in the ring
}

// recordLength returns the length that the header at the start of b states, or
// 0 if that is no header of a record or if it says more than limit.
func recordLength(b []byte, limit int64) int64 {
	if len(b) < recordHeader || string(b[:4]) != recordMagic {
		return 0
	}
	n := int64(le.Uint32(b[8:]))
	if n < slotSize || n%slotSize != 0 || n > limit {
		return 0
	}
	return n
}

// decodeJournalRecord decodes the record that fills b. path and off are for the
// error.
func decodeJournalRecord(path string, off int64, b []byte) (record, error) {
	var r record
	if n := recordLength(b, int64(len(b))); n == 0 || n != int64(len(b)) {
		return r, &CorruptError{path, off, fmt.Sprintf("a record of %d bytes", len(b)), "something else"}
	}
	if got, want := crcWithout(b, 4), le.Uint32(b[4:]); got != want {
		return r, &CorruptError{path, off + 4, fmt.Sprintf("checksum %08x", want), fmt.Sprintf("%08x", got)}
	}
	count := int64(le.Uint32(b[12:]))
	if count == 0 || count > (int64(len(b))-recordHeader)/entrySize {
		return r, &CorruptError{path, off + 12, "a count that the record can hold", fmt.Sprint(count)}
	}
	if err := checkReserved(path, b, 48, recordHeader); err != nil {
		return r, err
	}
	r.Sequence, r.Barrier, r.Layer = le.Uint64(b[16:]), le.Uint64(b[24:]), ID(b[32:48])
	r.Length = int64(len(b))
	head := headSize(int(count))
	blocks := int64(0)
	for i := range int(count) {
		at := b[recordHeader+entrySize*i:]
		e := entry{Block: int64(le.Uint64(at)), Count: le.Uint32(at[8:]), Kind: Kind(min(le.Uint32(at[12:]), 255))}
		if e.Kind != Data && e.Kind != Zero || e.Count == 0 || e.Block < 0 || e.Block > MaxSize/BlockSize-int64(e.Count) {
			return r, &CorruptError{path, off + recordHeader + int64(entrySize*i), "blocks of data or zeros", fmt.Sprintf("%+v", e)}
		}
		if e.Kind == Data {
			blocks += int64(e.Count)
		}
		r.Entries = append(r.Entries, e)
	}
	if int64(head)+blocks*BlockSize != int64(len(b)) || !isZero(b[recordHeader+entrySize*int(count):head]) {
		return r, &CorruptError{path, off + 8, fmt.Sprintf("%d blocks of data after %d bytes", blocks, head), fmt.Sprintf("%d bytes", len(b))}
	}
	r.Data = b[head:]
	return r, nil
}
