package agent

import (
	"context"
	"sync"
	"time"
)

// Bounds on how a courtesy divides time.
const (
	workWindow  = 100 * time.Millisecond // work goes on so long before it is judged
	drainLimit  = time.Second            // and what is under way is waited for so long
	leastRest   = 20 * time.Millisecond  // enough to see what guests do alone
	probeEvery  = 500 * time.Millisecond // how often they are looked at where they need no rest
	mostRest    = 15                     // times the work
	allowedLoss = 0.08                   // the share of their requests that guests may lose
	busyRate    = 200                    // requests a second, from which on guests count fully
)

// A courtesy holds backups back while the users of volumes want the machine. It
// lets work go on for a window, then rests, and compares how many requests
// guests get served beside the work with how many while it rests: the rests
// are as long as keeps their loss within bounds. Where nobody is disturbed there
// are hardly any.
type courtesy struct {
	requests func() int64 // that guests have made so far

	mu       sync.Mutex
	working  int           // pieces of work that are under way
	gate     chan struct{} // closed when work may go on; nil while it may
	draining bool          // the window is over, work is not

	mark   time.Time // when the window, or the rest, began
	count  int64     // requests until then
	last   time.Time // when a piece of work ended last
	rested time.Time // when the last rest ended

	alone, beside rate
}

// A rate is a moving average of requests a second.
type rate struct {
	value float64
	known bool
}

func (r *rate) add(n int64, d time.Duration) {
	now := float64(n) / d.Seconds()
	if !r.known {
		r.value, r.known = now, true
	}
	r.value += (now - r.value) / 4
}

// turn returns when a piece of work, of milliseconds, may begin. end is called
// when it has ended.
func (c *courtesy) turn(ctx context.Context) (end func(), err error) {
	for {
		c.mu.Lock()
		c.judge()
		gate := c.gate
		if gate == nil {
			c.working++
			c.mu.Unlock()
			return c.end, nil
		}
		c.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (c *courtesy) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.working--
	c.last = time.Now()
	if c.draining && c.working == 0 {
		c.rest()
	}
}

// judge ends a window that is over and begins one where there is none. The
// caller holds the lock, as of all that follow.
func (c *courtesy) judge() {
	now := time.Now()
	switch {
	case c.gate != nil:
	case c.working == 0 && now.Sub(c.last) > workWindow: // Nothing was done for a while.
		c.begin(now)
	case now.Sub(c.mark) >= workWindow:
		gate := make(chan struct{})
		c.gate, c.draining = gate, true
		if c.working == 0 {
			c.rest()
			return
		}
		time.AfterFunc(drainLimit, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.gate == gate && c.draining {
				c.rest()
			}
		})
	}
}

func (c *courtesy) begin(now time.Time) { c.mark, c.count = now, c.requests() }

// rest begins a rest, or another window if none is needed.
func (c *courtesy) rest() {
	now := time.Now()
	worked, served := now.Sub(c.mark), c.requests()-c.count
	c.draining = false
	c.beside.add(served, worked)
	pause := c.pause(worked, served, now)
	c.begin(now)
	if pause == 0 {
		c.open()
		return
	}
	time.AfterFunc(pause, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		now := time.Now()
		c.alone.add(c.requests()-c.count, now.Sub(c.mark))
		c.rested = now
		c.begin(now)
		c.open()
	})
}

func (c *courtesy) open() {
	close(c.gate)
	c.gate = nil
}

// pause is how long to rest after a window of work.
func (c *courtesy) pause(worked time.Duration, served int64, now time.Time) time.Duration {
	if !c.alone.known {
		return worked
	}
	loss := 0.0
	if c.alone.value > 0 {
		loss = max(0, 1-c.beside.value/c.alone.value) * min(1, c.alone.value/busyRate)
	}
	pause := time.Duration(0)
	if loss > allowedLoss {
		pause = min(time.Duration(float64(worked)*(loss/allowedLoss-1)), mostRest*worked)
	}
	if pause < leastRest {
		pause = 0
		if now.Sub(c.rested) > probeEvery {
			pause = leastRest
		}
	}
	return pause
}
