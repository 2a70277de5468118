package layers

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"time"
)

// pendingSet remembers the blocks written since the last flush, as long as they
// are few enough for a record of the journal.
type pendingSet struct {
	spans []span
	data  int64 // blocks of data, counted as often as they were written
	large bool  // too much: only a checkpoint makes it durable
	limit int64 // of data
}

// span is the blocks [start, end).
type span struct{ start, end int64 }

const maxSpans = 4096

func newPendingSet(limit int) *pendingSet {
	return &pendingSet{spans: make([]span, 0, maxSpans), limit: int64(limit)}
}

func (p *pendingSet) empty() bool { return len(p.spans) == 0 && !p.large }

func (p *pendingSet) reset() { p.spans, p.data, p.large = p.spans[:0], 0, false }

func (p *pendingSet) add(b, end int64, kind Kind) {
	if p.large {
		return
	}
	if kind == Data {
		p.data += end - b
	}
	if n := len(p.spans); n > 0 && p.spans[n-1].end == b {
		p.spans[n-1].end = end
	} else if n < maxSpans {
		p.spans = append(p.spans, span{b, end})
	} else {
		p.large = true
	}
	if p.data > p.limit {
		p.large = true
	}
}

// join sorts the spans and makes one of those that overlap or touch.
func (p *pendingSet) join() []span {
	slices.SortFunc(p.spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	out := p.spans[:0]
	for _, s := range p.spans {
		if n := len(out); n > 0 && s.start <= out[n-1].end {
			out[n-1].end = max(out[n-1].end, s.end)
		} else {
			out = append(out, s)
		}
	}
	p.spans = out
	return out
}

// committer runs one commit at a time. Calls that come while one runs wait for
// the next, which is for all of them.
type committer struct {
	mu      sync.Mutex
	done    sync.Cond
	running bool
	begun   uint64 // commits
	ended   uint64
	err     error // of the last one that ended
}

// share returns when a commit that began after the call has ended, with its
// error.
func (c *committer) share(commit func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	want := c.begun + 1
	for c.ended < want {
		if c.running {
			c.done.Wait()
			continue
		}
		c.lead(commit)
	}
	return c.err
}

// lead runs one commit without holding mu.
func (c *committer) lead(commit func() error) {
	c.running = true
	c.begun++
	n := c.begun
	c.mu.Unlock()
	err := commit()
	c.mu.Lock()
	c.ended, c.err, c.running = n, err, false
	c.done.Broadcast()
}

// alone runs f while no commit runs.
func (c *committer) alone(f func() error) error {
	c.mu.Lock()
	for c.running {
		c.done.Wait()
	}
	c.running = true
	c.mu.Unlock()
	err := f()
	c.mu.Lock()
	c.running = false
	c.done.Broadcast()
	c.mu.Unlock()
	return err
}

// Flush returns when every write that returned before the call is durable.
// Calls that run at once share one sync. If the disk is full the error is
// syscall.ENOSPC and a later Flush may succeed; if a sync fails the volume is
// read-only from then on.
func (v *Volume) Flush() error {
	if err := v.writable(); err != nil {
		return err
	}
	began := time.Now()
	defer func() { v.pace.flushed(time.Since(began)) }()
	return v.commits.share(v.commitPending)
}

// commitPending makes what is pending durable: a small set with a record of the
// journal, a large one with a checkpoint.
func (v *Volume) commitPending() error {
	if err := v.writable(); err != nil {
		return err
	}
	v.meta.Lock()
	p, head := v.pending, v.head
	v.pending, v.spare = v.spare, nil
	v.recent.turn()
	v.meta.Unlock()

	var err error
	if !p.empty() {
		err = v.commit(p, head)
	}
	if err == nil {
		v.recent.flushed()
	}
	p.reset()
	v.meta.Lock()
	v.spare = p
	if err != nil {
		v.pending.large = true // the next flush is for these blocks too
	}
	v.meta.Unlock()
	return err
}

func (v *Volume) commit(p *pendingSet, head *layerFile) error {
	if p.large {
		return v.checkpoint()
	}
	err := v.writeRecord(p.join(), head)
	if errors.Is(err, errRingFull) {
		// A checkpoint that runs already may make room.
		v.checkpoints.Lock()
		v.checkpoints.Unlock()
		err = v.writeRecord(p.spans, head)
	}
	if errors.Is(err, errRingFull) || errors.Is(err, errTooLarge) {
		return v.checkpoint()
	}
	return err
}

// errTooLarge says that the blocks do not fit into a record.
var errTooLarge = errors.New("too many blocks for a record")

// writeRecord writes one record with the blocks of the spans as they are now,
// and syncs it.
func (v *Volume) writeRecord(spans []span, head *layerFile) error {
	j := v.journal
	entries, data, err := v.gather(j, spans, head)
	if err != nil {
		return err
	}
	if err := head.data.writeError(); err != nil {
		return v.fail(err) // blocks that were gathered may be what the disk had before
	}
	v.ring.Lock()
	place, err := j.fit(int64(headSize(len(entries))+len(data)), head.id)
	v.ring.Unlock()
	if err != nil {
		kick(v.wantCheckpoint)
		return err
	}
	if err := v.putRecord(j, place, entries, data); err != nil {
		return err
	}
	v.ring.Lock()
	j.next = place.after
	head.remember(entries)
	much := j.used() > j.ring()/4
	v.ring.Unlock()
	if much {
		kick(v.wantCheckpoint)
	}
	return nil
}

// putRecord makes a record durable at its place.
func (v *Volume) putRecord(j *journal, place recordPlace, entries []entry, data []byte) error {
	v.gap.end()
	defer v.gap.begin()
	if err := j.write(place, entries, data); err != nil {
		return err
	}
	return v.sync(j.f)
}

// gather reads the blocks of the spans from the head. A block of data is read
// with its stripe held alone, so that no write of it is half done. The results
// are good until the next call.
func (v *Volume) gather(j *journal, spans []span, head *layerFile) ([]entry, []byte, error) {
	entries, data := j.entries[:0], j.data[:0]
	for _, s := range spans {
		for b := s.start; b < s.end; {
			kind, stop, err := head.run(b, s.end)
			if err != nil {
				return nil, nil, err
			}
			if kind == Data {
				stop = min(stop, (b/stripeBlocks+1)*stripeBlocks)
				kind, stop, data, err = v.gatherData(b, stop, head, data)
			}
			if err != nil {
				return nil, nil, err
			}
			entries = appendEntry(entries, b, stop, kind)
			b = stop
			if len(data) > v.tuning.recordBlocks*BlockSize || len(entries) > maxSpans {
				return nil, nil, errTooLarge
			}
		}
	}
	j.entries, j.data = entries, data
	return entries, data, nil
}

// gatherData appends the blocks [b, stop) of one stripe to data, or as many as
// are data now.
func (v *Volume) gatherData(b, stop int64, head *layerFile, data []byte) (Kind, int64, []byte, error) {
	set := stripesOf(b*BlockSize, BlockSize)
	v.lockStripes(set, true)
	defer v.unlockStripes(set, true)
	kind, stop, err := head.run(b, stop)
	if err != nil || kind != Data {
		return kind, stop, data, err
	}
	n := len(data)
	data = slices.Grow(data, int(stop-b)*BlockSize)[:n+int(stop-b)*BlockSize]
	return kind, stop, data, readFull(head.data, data[n:], b*BlockSize)
}

// appendEntry adds the blocks [b, stop). Absent in the root is zero to a
// replay.
func appendEntry(entries []entry, b, stop int64, kind Kind) []entry {
	if kind != Data {
		kind = Zero
	}
	if n := len(entries); n > 0 {
		last := &entries[n-1]
		if last.Kind == kind && last.Block+int64(last.Count) == b && int64(last.Count)+stop-b < 1<<31 {
			last.Count += uint32(stop - b)
			return entries
		}
	}
	return append(entries, entry{Block: b, Count: uint32(stop - b), Kind: kind})
}
