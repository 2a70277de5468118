package object

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"
)

// Hedge returns s with a read that somebody waits for ([Demand]) asked for a
// second time if it takes longer than nineteen of twenty lately took: whoever
// looks into a backup does not hang behind one connection that stands still. The
// first answer counts, and the other request is ended. Second requests are one
// in twenty at most, and a few to begin with, so that a store that is slow
// altogether is not asked twice as much. Writes and other reads pass as they are.
//
// s must end a Get soon after its context does.
func Hedge(s Store) Store { return &hedged{Store: s, saved: hedgeBurst} }

const (
	hedgeShare = 0.05                  // second requests for each request
	hedgeBurst = 4                     // and how many at once where none were needed for long
	hedgeLeast = 50 * time.Millisecond // sooner is no hanging
	hedgeFirst = 2 * time.Second       // as long as too few answers have come
	hedgeMost  = 10 * time.Second
	hedgeKnown = 64 // answers that are remembered
	hedgeFew   = 20
)

type hedged struct {
	Store

	mu    sync.Mutex
	times []time.Duration // that the last reads took, at most hedgeKnown
	next  int             // in times, to be overwritten
	saved float64         // second requests that may be made
}

var errOvertaken = errors.New("a second request was answered sooner")

func (h *hedged) Get(ctx context.Context, name string, p []byte, off int64) (int, error) {
	if classOf(ctx) != Demand {
		return h.Store.Get(ctx, name, p, off)
	}
	begun := time.Now()
	firstCtx, overtake := context.WithCancelCause(ctx)
	defer overtake(nil)
	secondCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	second := &secondRead{done: make(chan struct{})}
	timer := time.AfterFunc(h.patience(), func() {
		defer close(second.done)
		if second.err = errOvertaken; !h.spend() {
			return
		}
		second.p = make([]byte, len(p))
		if second.n, second.err = h.Store.Get(secondCtx, name, second.p, off); answered(second.err) {
			overtake(errOvertaken)
		}
	})
	n, err := h.Store.Get(firstCtx, name, p, off)
	if !timer.Stop() && !answered(err) {
		if <-second.done; answered(second.err) {
			n, err = copy(p, second.p[:second.n]), second.err
		}
	}
	if answered(err) {
		h.took(time.Since(begun))
	}
	return n, err
}

// A secondRead is what became of a second request.
type secondRead struct {
	done chan struct{} // closed when all below is said
	p    []byte
	n    int
	err  error
}

// answered reports whether a read has brought what there is.
func answered(err error) bool { return err == nil || err == io.EOF }

// patience is how long a read may take before it is asked for again.
func (h *hedged) patience() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.saved = min(h.saved+hedgeShare, hedgeBurst)
	if len(h.times) < hedgeFew {
		return hedgeFirst
	}
	sorted := slices.Sorted(slices.Values(h.times))
	return min(max(sorted[len(sorted)*19/20], hedgeLeast), hedgeMost)
}

// spend reports whether another second request may be made.
func (h *hedged) spend() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.saved < 1 {
		return false
	}
	h.saved--
	return true
}

// took remembers how long a read took.
func (h *hedged) took(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.times) < hedgeKnown {
		h.times = append(h.times, d)
		return
	}
	h.times[h.next] = d
	h.next = (h.next + 1) % hedgeKnown
}
