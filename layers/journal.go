package layers

import (
	"fmt"
	"syscall"
)

// Sizes of the journal, in bytes.
const (
	journalSmall = 8 << 20  // when a volume is made
	journalLarge = 64 << 20 // under load
	journalName  = "journal"
	journalTemp  = "journal.tmp"
)

// journal is the ring of records. A record makes one flush durable with one
// sequential write and one sync of a file whose blocks are all written already,
// so that the file system has nothing to allocate and nothing to commit.
//
// One goroutine at a time appends. Another may move the barrier meanwhile: the
// caller's lock covers the fields, not the I/O.
type journal struct {
	f    file
	path string
	vol  ID

	gen     uint64 // of the barrier that counts
	place   int    // where it is: 0 or 1
	end     int64  // size of the file
	next    mark   // where the next record goes
	start   mark   // the first record that is alive, as the barrier says
	scratch []byte // the head of a record
	entries []entry
	data    []byte
}

// mark is a place in the sequence of records.
type mark struct {
	seq   uint64
	pos   int64 // offset in the file
	spent int64 // bytes of ring used up to here since it was opened, gaps included
}

// ring is how many bytes of records there is room for.
func (j *journal) ring() int64 { return j.end - ringStart }

// used is how many bytes of the ring hold records that are alive, and gaps.
func (j *journal) used() int64 { return j.next.spent - j.start.spent }

// createJournal makes a journal of size bytes under a name: zeros, written once
// so that syncing it never allocates. It has no barrier yet.
func createJournal(d disk, name string, vol ID, size int64) (*journal, error) {
	f, err := d.create(name)
	if err != nil {
		return nil, err
	}
	j := &journal{f: f, path: d.path(journalName), vol: vol, end: size}
	zeros := make([]byte, min(size, 1<<20))
	for off := int64(0); off < size; off += int64(len(zeros)) {
		n := min(int64(len(zeros)), size-off)
		err := f.writeAt(zeros[:n], off)
		if err == nil {
			err = f.writeBack(off, n) // or the sync would hold up others for long
		}
		if err != nil {
			f.close() // the first error is the one that counts
			return nil, err
		}
	}
	return j, nil
}

// begin writes the first barrier of a new journal, which goes on after the
// barrier gen with the record seq, and syncs.
func (j *journal) begin(gen, seq uint64) error {
	m := mark{seq: seq, pos: ringStart}
	j.gen, j.next = gen, m
	if err := j.writeBarrier(m, false); err != nil {
		return err
	}
	j.moveBarrier(m)
	return nil
}

// errRingFull says that a record needs a checkpoint first.
var errRingFull = fmt.Errorf("journal is full of records that are alive: %w", syscall.ENOSPC)

// recordPlace is a place in the ring for one record.
type recordPlace struct {
	at    int64
	head  recordHead
	after mark // next, once the record is durable
}

// fit returns the place for a record of n bytes.
func (j *journal) fit(n int64, layer ID) (recordPlace, error) {
	at, gap := j.next.pos, int64(0)
	if at+n > j.end {
		gap, at = j.end-at, ringStart
	}
	if n > j.ring() || j.used()+gap+n > j.ring() {
		return recordPlace{}, errRingFull
	}
	return recordPlace{
		at:    at,
		head:  recordHead{Sequence: j.next.seq, Barrier: j.gen, Layer: layer},
		after: mark{seq: j.next.seq + 1, pos: at + n, spent: j.next.spent + gap + n},
	}, nil
}

// write writes a record to its place. The caller syncs, then makes the mark
// after it the next.
func (j *journal) write(p recordPlace, entries []entry, data []byte) error {
	j.scratch = appendRecordHead(j.scratch[:0], p.head, entries, data)
	if err := j.f.writeAt(j.scratch, p.at); err != nil {
		return err
	}
	if len(data) == 0 {
		return nil
	}
	return j.f.writeAt(data, p.at+int64(len(j.scratch)))
}

// writeBarrier writes a barrier that kills the records before m, and syncs.
// After it, moveBarrier must be called.
func (j *journal) writeBarrier(m mark, clean bool) error {
	b := barrier{Volume: j.vol, Generation: j.gen + 1, Sequence: m.seq, Position: m.pos, End: j.end, Clean: clean}
	if err := j.f.writeAt(b.encode(), int64(1-j.place)*slotSize); err != nil {
		return err
	}
	return j.f.sync()
}

// moveBarrier makes the barrier that writeBarrier wrote the one that counts.
func (j *journal) moveBarrier(m mark) {
	j.gen, j.place, j.start = j.gen+1, 1-j.place, m
}

// openJournal opens the journal and finds the barrier that counts. It reports
// whether the volume was closed cleanly.
func openJournal(d disk, vol ID) (*journal, bool, error) {
	f, err := d.open(journalName)
	if err != nil {
		return nil, false, err
	}
	j := &journal{f: f, path: d.path(journalName), vol: vol}
	clean, err := j.readBarriers()
	if err != nil {
		f.close() // the first error is the one that counts
		return nil, false, err
	}
	return j, clean, nil
}

func (j *journal) readBarriers() (clean bool, err error) {
	var both [2 * slotSize]byte
	if n, err := j.f.readAt(both[:], 0); err != nil && !isEOF(err) {
		return false, err
	} else if n < len(both) {
		return false, &CorruptError{j.path, int64(n), "two barriers", "the end of the file"}
	}
	var best barrier
	var first error
	for i := range 2 {
		b, err := decodeBarrier(j.path, both[i*slotSize:(i+1)*slotSize])
		switch {
		case err != nil:
			if first == nil || !isZero(both[i*slotSize:(i+1)*slotSize]) {
				first = err
			}
		case b.Generation > best.Generation:
			best, j.place = b, i
		}
	}
	if best.Generation == 0 {
		return false, first
	}
	size, err := j.f.size()
	if err != nil {
		return false, err
	}
	switch {
	case best.Volume != j.vol:
		return false, &CorruptError{j.path, int64(j.place*slotSize + 16), "volume " + j.vol.String(), best.Volume.String()}
	case size != best.End:
		return false, &CorruptError{j.path, min(size, best.End), fmt.Sprintf("%d bytes", best.End), fmt.Sprintf("%d bytes", size)}
	}
	j.gen, j.end = best.Generation, best.End
	j.start = mark{seq: best.Sequence, pos: best.Position}
	j.next = j.start
	return best.Clean, nil
}

// replay calls apply with each record that is alive, in order, and leaves next
// after the last one. It reads one record at a time.
func (j *journal) replay(apply func(record) error) error {
	for {
		r, at, err := j.find(j.next)
		if err != nil {
			return err
		}
		if at < 0 {
			return j.checkEnd()
		}
		if r.Barrier > j.gen {
			return &CorruptError{j.path, at + 24, fmt.Sprintf("a record of barrier %d or before", j.gen), fmt.Sprintf("barrier %d, which is lost", r.Barrier)}
		}
		if err := apply(r); err != nil {
			return err
		}
		gap := int64(0)
		if at != j.next.pos {
			gap = j.end - j.next.pos
		}
		j.next = mark{seq: r.Sequence + 1, pos: at + r.Length, spent: j.next.spent + gap + r.Length}
		if j.used() > j.ring() {
			return &CorruptError{j.path, at, "the end of the records", "more than the ring can hold"}
		}
	}
}

// alive calls apply with each record that is alive, in order, and the offset of
// its data. The journal does not change meanwhile.
func (j *journal) alive(apply func(r record, data int64) error) error {
	for m := j.start; m.seq < j.next.seq; {
		r, at, err := j.find(m)
		if err == nil && at < 0 {
			err = &CorruptError{j.path, m.pos, fmt.Sprintf("record %d", m.seq), "nothing valid"}
		}
		if err == nil {
			err = apply(r, at+int64(headSize(len(r.Entries))))
		}
		if err != nil {
			return err
		}
		m = mark{seq: m.seq + 1, pos: at + r.Length}
	}
	return nil
}

// find returns the valid record with the sequence of m, at m's place or at the
// start of the ring; at is -1 if there is none.
func (j *journal) find(m mark) (r record, at int64, err error) {
	for _, at := range []int64{m.pos, ringStart} {
		r, ok, err := j.read(at)
		if err != nil {
			return r, -1, err
		}
		if ok && r.Sequence == m.seq {
			return r, at, nil
		}
	}
	return r, -1, nil
}

// read reads the record at an offset; ok is false if there is no valid one.
func (j *journal) read(at int64) (r record, ok bool, err error) {
	if at+slotSize > j.end {
		return r, false, nil
	}
	var head [recordHeader]byte
	if err := readFull(j.f, head[:], at); err != nil {
		return r, false, err
	}
	n := recordLength(head[:], j.end-at)
	if n == 0 {
		return r, false, nil
	}
	b := make([]byte, n)
	if err := readFull(j.f, b, at); err != nil {
		return r, false, err
	}
	r, err = decodeJournalRecord(j.path, at, b)
	return r, err == nil, nil
}

// checkEnd looks for a record past the end of the replay. A record is written
// only when the one before it is durable, so a later one proves that the one
// before was damaged, not torn by a crash.
func (j *journal) checkEnd() error {
	for at := int64(ringStart); at+slotSize <= j.end; {
		var head [recordHeader]byte
		if err := readFull(j.f, head[:], at); err != nil {
			return err
		}
		if recordLength(head[:], j.end-at) == 0 || le.Uint64(head[16:]) <= j.next.seq {
			at += slotSize
			continue
		}
		r, ok, err := j.read(at)
		if err != nil {
			return err
		}
		if ok {
			return &CorruptError{j.path, j.next.pos, fmt.Sprintf("record %d", j.next.seq), fmt.Sprintf("nothing valid, but record %d at offset %d", r.Sequence, at)}
		}
		at += slotSize
	}
	return nil
}
