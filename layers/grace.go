package layers

import (
	"sync"
	"sync/atomic"
)

// grace lets readers run without a lock while space that they may still be
// looking at is given back: whoever takes a block away first makes it
// unreachable for new readers and then waits for those that are under way.
//
// Readers count themselves in one of two counters. The waiter turns newcomers
// to the other one and waits until the first is empty, twice, since a reader
// may have looked up the counter before the turn and entered it after. This is
// the scheme of McKenney's sleepable RCU ("Sleepable RCU", LWN.net, 2006).
type grace struct {
	turn    atomic.Uint32
	readers [2]struct {
		atomic.Int64
		_ [56]byte // a cache line each
	}
	waiting atomic.Bool
	mu      sync.Mutex // one waiter at a time
	empty   chan struct{}
}

func newGrace() *grace { return &grace{empty: make(chan struct{}, 1)} }

// enter begins a read; its result goes to leave.
func (g *grace) enter() uint32 {
	i := g.turn.Load() & 1
	g.readers[i].Add(1)
	return i
}

func (g *grace) leave(i uint32) {
	if g.readers[i].Add(-1) == 0 && g.waiting.Load() {
		select {
		case g.empty <- struct{}{}:
		default: // the waiter has been told
		}
	}
}

// wait returns when every reader that entered before the call has left.
func (g *grace) wait() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.waiting.Store(true)
	defer g.waiting.Store(false)
	for range 2 {
		i := (g.turn.Add(1) - 1) & 1
		for g.readers[i].Load() != 0 {
			<-g.empty
		}
	}
}
