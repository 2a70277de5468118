package layers

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"sync"
)

// Geometry of the files of recent blocks. docs/format.md, "recent".
const (
	recentMagic  = "varvercn"
	recentHeader = 64
	recentEntry  = 24

	// recentFlush is the size at which a list asks for a flush, in bytes: that
	// empties it. recentMax is where it gives up until then.
	recentFlush = 16 << 20
	recentMax   = 64 << 20
)

var recentNames = [2]string{"recent.0", "recent.1"}

// A rememberer is a disk that still has what was written to it and not synced
// when the process was killed. Clients that outlive a killed process (a mounted
// file system) count on every write that was answered, flushed or not.
type rememberer interface {
	// memory names what remembers. After a power failure, or when the file
	// system was mounted anew, it has another name. Empty: nothing does.
	memory() string
}

// recent lists which blocks of the head were written since the last flush. The
// blocks themselves are in the head's file; without the list nobody would know
// after a kill that they count. It is written and never synced: it is good for
// the next process on the same memory, and for nobody else.
//
// Entries belong to a generation. A flush begins the next generation, in the
// other file, and when it is durable says in the header that the one before it
// is over. A generation whose flush failed goes on.
//
// A nil *recent does nothing.
type recent struct {
	log    *slog.Logger
	volume ID
	memory [16]byte
	full   chan struct{} // kicked when a flush is wanted

	mu     sync.Mutex
	files  [2]file
	gen    uint32 // of new entries, which go to files[gen%2]
	floor  uint32 // entries up to this generation are flushed
	pos    int64  // where the next entry goes
	last   entry  // the one before it; Count 0: none
	broken bool   // this generation lacks entries: a kill loses what they say
	void   bool   // nothing of it counts

	scratch [recentEntry]byte
}

// openRecent opens or makes the list of a volume and returns what it says: the
// blocks that were written and not flushed, oldest first. It is nil on a disk
// that remembers nothing.
func openRecent(d disk, volume ID, blocks int64, log *slog.Logger) (*recent, []entry, error) {
	r, ok := d.(rememberer)
	if !ok || r.memory() == "" {
		return nil, nil, nil
	}
	sum := sha256.Sum256([]byte(r.memory()))
	l := &recent{log: log, volume: volume, memory: [16]byte(sum[:16]), full: make(chan struct{}, 1)}
	names, err := d.list()
	if err != nil {
		return nil, nil, err
	}
	for i, name := range recentNames {
		open := d.create
		if slices.Contains(names, name) {
			open = d.open
		}
		if l.files[i], err = open(name); err != nil {
			l.close()
			return nil, nil, err
		}
	}
	entries, err := l.load(blocks)
	if err != nil {
		l.close()
		return nil, nil, err
	}
	return l, entries, nil
}

// load reads the entries that are not flushed. A list of another memory, or one
// that is not whole, says nothing.
func (l *recent) load(blocks int64) ([]entry, error) {
	head := make([]byte, recentHeader)
	if err := readFull(l.files[0], head, 0); err != nil {
		return nil, err
	}
	path := recentNames[0]
	if string(head[:8]) == recentMagic && le.Uint32(head[8:]) > formatVersion {
		return nil, fmt.Errorf("%s: format version %d: %w", path, le.Uint32(head[8:]), ErrUnsupported)
	}
	if checkHeader(path, head, recentMagic, recentHeader) != nil ||
		ID(head[16:32]) != l.volume || [16]byte(head[32:48]) != l.memory {
		return nil, nil
	}
	floor := le.Uint32(head[48:])
	var all []entry
	for _, gen := range []uint32{floor + 1, floor + 2} {
		entries, err := readRecent(l.files[gen%2], gen, blocks)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	return all, nil
}

// readRecent reads the entries of one generation, up to the first that is not.
func readRecent(f file, gen uint32, blocks int64) ([]entry, error) {
	size, err := f.size()
	if err != nil {
		return nil, err
	}
	if size <= recentHeader {
		return nil, nil
	}
	p := make([]byte, min(size-recentHeader, recentMax))
	if err := readFull(f, p, recentHeader); err != nil {
		return nil, err
	}
	var entries []entry
	for ; len(p) >= recentEntry; p = p[recentEntry:] {
		e, ok := decodeRecent(p[:recentEntry], gen, blocks)
		if !ok {
			break
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// encodeRecent and decodeRecent: an entry.
//
//	block 64 | count 32 | generation 32 | kind 8 | 0 24 | crc 32
func encodeRecent(p *[recentEntry]byte, e entry, gen uint32) {
	le.PutUint64(p[0:], uint64(e.Block))
	le.PutUint32(p[8:], e.Count)
	le.PutUint32(p[12:], gen)
	le.PutUint32(p[16:], uint32(e.Kind))
	le.PutUint32(p[20:], crc(p[:20]))
}

func decodeRecent(p []byte, gen uint32, blocks int64) (entry, bool) {
	e := entry{Block: int64(le.Uint64(p)), Count: le.Uint32(p[8:]), Kind: Kind(le.Uint32(p[16:]))}
	ok := le.Uint32(p[20:]) == crc(p[:20]) && le.Uint32(p[12:]) == gen && le.Uint32(p[16:]) <= uint32(Zero) &&
		e.Block >= 0 && e.Block <= blocks && e.Count > 0 && int64(e.Count) <= blocks-e.Block
	return e, ok
}

// start makes the list empty. What it said is durable by now.
func (l *recent) start() error {
	if l == nil {
		return nil
	}
	for _, f := range l.files {
		if err := f.truncate(0); err != nil {
			return err
		}
	}
	l.gen, l.floor, l.pos = 1, 0, recentHeader
	return l.writeHeader()
}

func (l *recent) writeHeader() error {
	p := make([]byte, recentHeader)
	putHeader(p, recentMagic)
	copy(p[16:], l.volume[:])
	copy(p[32:], l.memory[:])
	le.PutUint32(p[48:], l.floor)
	le.PutUint32(p[60:], crc(p[:60]))
	return l.files[0].writeAt(p, 0)
}

// add notes that [b, end) is of a kind now. If that cannot be written, writes go
// on: what a kill would lose then, it loses.
func (l *recent) add(b, end int64, kind Kind) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for b < end && !l.broken && !l.void {
		n := min(end-b, 1<<31)
		l.append(entry{Block: b, Count: uint32(n), Kind: kind})
		b += n
	}
}

// append writes one entry, or makes the one before it longer.
func (l *recent) append(e entry) {
	at := l.pos
	if l.last.Count > 0 && l.last.Kind == e.Kind && l.last.Block+int64(l.last.Count) == e.Block && int64(l.last.Count)+int64(e.Count) < 1<<31 {
		e.Block, e.Count, at = l.last.Block, l.last.Count+e.Count, at-recentEntry
	}
	encodeRecent(&l.scratch, e, l.gen)
	if err := l.files[l.gen%2].writeAt(l.scratch[:], at); err != nil || at > recentMax {
		l.broken = true
		kick(l.full)
		l.log.Warn("until the next flush, a killed daemon would lose writes that were answered", "volume", l.volume, "error", err)
		return
	}
	l.last, l.pos = e, at+recentEntry
	if l.pos > recentFlush {
		kick(l.full)
	}
}

// turn is called when a flush takes what is pending: what is added from now on
// is not its business.
func (l *recent) turn() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.floor+1 == l.gen {
		l.gen++
		l.pos, l.last, l.broken = recentHeader, entry{}, false
	}
}

// flushed is called when what was pending at the last turn is durable.
func (l *recent) flushed() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.void {
		return
	}
	l.floor = l.gen - 1
	if err := l.writeHeader(); err != nil {
		// The old header names a generation too many, which does no harm
		// until its file is used again.
		l.discard()
	}
}

// distrust makes the list say nothing from now on: a sync failed, and what the
// head's file holds is not known.
func (l *recent) distrust() {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.discard()
}

func (l *recent) discard() {
	l.void = true
	if err := l.files[0].writeAt(make([]byte, recentHeader), 0); err != nil {
		l.log.Warn("a list of recent writes cannot be discarded", "volume", l.volume, "error", err)
	}
}

// wanted is kicked when a flush would be good for the list. It is nil, and never
// ready, where there is none.
func (l *recent) wanted() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.full
}

func (l *recent) close() error {
	if l == nil {
		return nil
	}
	var first error
	for _, f := range l.files {
		if f != nil {
			first = cmp.Or(first, f.close())
		}
	}
	return first
}

// spansOf returns the blocks of entries as spans, in order and apart.
func spansOf(entries []entry) []span {
	p := pendingSet{}
	for _, e := range entries {
		p.spans = append(p.spans, span{e.Block, e.Block + int64(e.Count)})
	}
	return p.join()
}

// outside yields the parts of [b, end) that are in none of the spans.
func outside(spans []span, b, end int64) func(func(b, end int64) bool) {
	return func(yield func(b, end int64) bool) {
		i, _ := slices.BinarySearchFunc(spans, b, func(s span, b int64) int { return cmp.Compare(s.end, b+1) })
		for ; i < len(spans) && spans[i].start < end; i++ {
			if b < spans[i].start && !yield(b, spans[i].start) {
				return
			}
			b = max(b, spans[i].end)
		}
		if b < end {
			yield(b, end)
		}
	}
}
