package nbd

import (
	"slices"
	"sync"
	"time"
)

// freeCharge is what a connection may hold without asking the budget, in bytes:
// clients with small requests never wait for others.
const freeCharge = 1 << 20

// A budget bounds the bytes that all connections of a server hold beyond what
// each may hold freely. Who asks for more than is left waits, and is served in
// the order of asking.
type budget struct {
	limit int64
	after time.Duration // that who waits calls relieve
	// relieve drops connections whose clients take no replies: they would
	// keep what others wait for.
	relieve func()

	mu      sync.Mutex
	used    int64
	waiting []*claim
}

// A claim waits for n bytes.
type claim struct {
	n     int64
	ready chan struct{} // closed when they are granted
}

// take takes n bytes, and waits for them until done is closed; then it is
// false. More than the limit is granted when nothing else is.
func (b *budget) take(n int64, done <-chan struct{}) bool {
	b.mu.Lock()
	if len(b.waiting) == 0 && b.fits(n) {
		b.used += n
		b.mu.Unlock()
		return true
	}
	c := &claim{n, make(chan struct{})}
	b.waiting = append(b.waiting, c)
	b.mu.Unlock()
	again := time.NewTicker(b.after)
	defer again.Stop()
	for {
		select {
		case <-c.ready:
			return true
		case <-done:
			b.abandon(c)
			return false
		case <-again.C:
			b.relieve()
		}
	}
}

func (b *budget) fits(n int64) bool { return b.used == 0 || b.used+n <= b.limit }

// give returns n bytes.
func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	b.grant()
}

// grant serves those that wait, in order. The caller holds mu.
func (b *budget) grant() {
	for len(b.waiting) > 0 && b.fits(b.waiting[0].n) {
		b.used += b.waiting[0].n
		close(b.waiting[0].ready)
		b.waiting = b.waiting[1:]
	}
}

// abandon takes a claim back, also if it was just granted.
func (b *budget) abandon(c *claim) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.waiting, c); i >= 0 {
		b.waiting = slices.Delete(b.waiting, i, i+1)
	} else {
		b.used -= c.n
	}
	b.grant() // it may have been in the way
}
