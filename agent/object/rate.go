package object

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Rates are limits on what passes in a second. 0 is none.
type Rates struct {
	Upload   int64 // bytes sent, bodies of requests
	Download int64 // bytes received, bodies of answers
	Requests int64
}

// minBytesRate is the least that uploads and downloads may be limited to, in
// bytes a second: with 16 requests at once each still gets some bytes before a
// server takes it for dead.
const minBytesRate = 16 << 10

// Check says what is wrong with the rates.
func (r Rates) Check() error {
	for name, rate := range map[string]int64{"upload": r.Upload, "download": r.Download} {
		if rate < 0 || rate > 0 && rate < minBytesRate {
			return fmt.Errorf("a limit on the %s of %d bytes a second is too low: the least is %d, and 0 is no limit", name, rate, minBytesRate)
		}
	}
	if r.Requests < 0 {
		return fmt.Errorf("%d requests a second cannot be: the least is 1, and 0 is no limit", r.Requests)
	}
	return nil
}

// A bucket gives out rate tokens a second. Whoever comes may take more than
// there is, and who comes next waits until the debt is paid: so a large piece
// passes whole.
type bucket struct {
	mu    sync.Mutex
	rate  float64 // tokens a second; 0: no limit
	level float64 // tokens; below 0: debt
	at    time.Time
	line  line
	timer *time.Timer // runs while somebody waits
}

// set changes the rate, for those who wait too.
func (b *bucket) set(rate int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill()
	if b.rate == 0 || rate == 0 {
		b.level = 0
	}
	b.rate = float64(rate)
	b.serve()
}

func (b *bucket) current() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return int64(b.rate)
}

// take returns when n tokens have been taken, or ctx has ended.
func (b *bucket) take(ctx context.Context, n int64) error {
	b.mu.Lock()
	if b.rate == 0 {
		b.mu.Unlock()
		return nil
	}
	w := b.line.join(classOf(ctx), n)
	b.fill()
	b.serve()
	b.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
		b.mu.Lock()
		defer b.mu.Unlock()
		b.line.leave(w)
		return ctx.Err()
	}
}

// piece is how many of n bytes are to be taken at once: an eighth of a second's,
// so that they flow and who is more urgent waits for no more than that.
func (b *bucket) piece(n int) int {
	const least, most = 2 << 10, 64 << 10
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rate == 0 {
		return n
	}
	return min(n, max(int(b.rate/8), least), most)
}

// fill adds what has come since the last time. mu is held.
func (b *bucket) fill() {
	now := time.Now()
	// What nobody takes is kept for a tenth of a second, and no longer: a pause
	// does not make a burst.
	b.level = min(b.level+b.rate*now.Sub(b.at).Seconds(), max(1, b.rate/10))
	b.at = now
}

// serve lets go whose turn it is, and comes back for the others. mu is held.
func (b *bucket) serve() {
	anybody := func(Class) bool { return true }
	for b.rate == 0 || b.level >= 0 {
		w := b.line.next(anybody)
		if w == nil {
			break
		}
		b.level -= float64(w.n)
		b.line.call(w)
	}
	if b.timer != nil {
		b.timer.Stop()
		b.timer = nil
	}
	if b.rate == 0 {
		b.level = 0
	} else if !b.line.empty() {
		wait := time.Duration(-b.level/b.rate*float64(time.Second)) + time.Microsecond
		b.timer = time.AfterFunc(wait, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.fill()
			b.serve()
		})
	}
}
