package layers

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"
)

// A checkpoint syncs the data file, and all that is dirty in it goes to the disk
// in one burst. A flush that comes meanwhile stands in the disk's queue behind
// it. So before a checkpoint in the background the blocks that records of the
// journal were written for go out in portions, begun where no flush is under way,
// until those that are left are few. It is done for speed alone: it promises
// nothing, and what it does not know of is left to the sync.
const (
	portionLeast = 128                  // blocks in the disk's queue at a time, about, while the journal has room
	portionMost  = 256                  // and when it has not
	burstSpans   = 256                  // few enough to be left to the sync
	maxBacklog   = 1 << 16              // spans that are remembered: 1 MiB
	gapLimit     = 5 * time.Millisecond // for a flush to end
)

// gap tells when no flush is at the disk.
type gap struct {
	flushing atomic.Bool
	begins   chan struct{} // kicked when a flush has ended
}

func newGap() *gap { return &gap{begins: make(chan struct{}, 1)} }

// end says that a flush goes to the disk, begin that it is done.
func (g *gap) end() { g.flushing.Store(true) }

func (g *gap) begin() {
	g.flushing.Store(false)
	kick(g.begins)
}

// await returns when no flush is at the disk, or one has just ended: flushes
// that follow each other at once leave no gap.
func (g *gap) await() {
	select {
	case <-g.begins: // of an earlier one
	default:
	}
	if !g.flushing.Load() {
		return
	}
	select {
	case <-g.begins:
	case <-time.After(gapLimit):
	}
}

// remember notes the blocks of data of a record. The caller holds Volume.ring.
func (l *layerFile) remember(entries []entry) {
	if len(l.backlog)+len(entries) > maxBacklog {
		l.backlog = nil // the sync will do
		return
	}
	for _, e := range entries {
		if e.Kind == Data {
			l.backlog = append(l.backlog, span{e.Block, e.Block + int64(e.Count)})
		}
	}
}

// takeBacklog returns what was remembered since the last call, in ascending
// order; spans may overlap.
func (v *Volume) takeBacklog(l *layerFile) []span {
	v.ring.Lock()
	spans := l.backlog
	l.backlog = nil
	v.ring.Unlock()
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	return spans
}

// writeBack sends blocks that are in the journal to the data files, in portions,
// until few are left or the journal needs its room. The volume is read-only after
// an error, as after a failed sync.
func (v *Volume) writeBack() error {
	for {
		sent, err := v.writeBackOnce()
		if err != nil || sent <= burstSpans || v.portion() == 0 {
			return err
		}
	}
}

// writeBackOnce sends what there is now and returns how many spans it was.
func (v *Volume) writeBackOnce() (sent int, err error) {
	v.meta.Lock()
	layers := append(slices.Clone(v.unsettled), v.head)
	for _, l := range layers {
		l.refs.Add(1) // a merge may take it away when somebody else has settled it
	}
	v.meta.Unlock()
	for _, l := range layers {
		spans := v.takeBacklog(l)
		sent += len(spans)
		if err == nil {
			err = v.writeBackSpans(l.data, spans)
		}
		l.release() // a layer that is gone by now has nothing to lose
	}
	return sent, err
}

// writeBackSpans sends spans of a data file, which are in order, to the disk.
func (v *Volume) writeBackSpans(f file, spans []span) error {
	for len(spans) > 0 {
		most := v.portion()
		if most == 0 {
			return nil
		}
		start, end, blocks := spans[0].start, int64(0), int64(0)
		for len(spans) > 0 && blocks < most {
			blocks += spans[0].end - spans[0].start
			end = max(end, spans[0].end)
			spans = spans[1:]
		}
		v.gap.await()
		if err := f.writeBack(start*BlockSize, (end-start)*BlockSize); err != nil {
			return v.fail(err)
		}
	}
	return nil
}

// portion is how many blocks the disk gets at a time: the more, the fuller the
// journal is. At 0 there is no time left for portions.
func (v *Volume) portion() int64 {
	v.ring.Lock()
	used, ring := v.journal.used(), v.journal.ring()
	v.ring.Unlock()
	switch {
	case used >= ring/8*7:
		return 0
	case used <= ring/4:
		return portionLeast
	}
	return portionLeast + (portionMost-portionLeast)*(used-ring/4)/(ring/2)
}
