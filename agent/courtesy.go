package agent

import (
	"context"
	"sync"
	"time"
)

// Bounds on how a courtesy divides time.
const (
	workWindow   = 100 * time.Millisecond // work goes on so long before it is judged
	drainLimit   = time.Second            // and what is under way is waited for so long
	leastRest    = 20 * time.Millisecond  // enough to see what guests do alone
	probeEvery   = 500 * time.Millisecond // how often they are looked at where they need no rest
	mostRest     = 15                     // times the work
	allowedLoss  = 0.08                   // the share of their requests that guests may lose
	busyRate     = 200                    // requests a second, from which on guests count fully
	aloneWeight  = 0.25                   // of a rest in the average
	besideWeight = 0.5                    // of a window: guests are hurt at once
	forgetAfter  = 5 * time.Second        // what guests did this long ago tells nothing
	goneAfter    = 200 * time.Millisecond // of a rest without any request
)

// A courtesy holds operations back while the users of volumes want the machine.
// It lets work go on for a window, then rests, and compares how many requests
// guests get served beside the work with how many while it rests: the rests
// are as long as keeps their loss within bounds. Where nobody is disturbed there
// are hardly any, and where nobody is there are none.
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

// add counts n requests in d, which weigh that much of the average.
func (r *rate) add(n int64, d time.Duration, weight float64) {
	now := float64(n) / d.Seconds()
	if !r.known {
		r.value, r.known = now, true
	}
	r.value += weight * (now - r.value)
}

// turn returns when a piece of work, of milliseconds, may begin. end is called
// when it has ended.
func (c *courtesy) turn(ctx context.Context) (end func(), err error) {
	if end = c.wait(ctx.Done()); end == nil {
		return nil, context.Cause(ctx)
	}
	return end, nil
}

// wait is turn that ends early with a channel: end is nil then.
func (c *courtesy) wait(stop <-chan struct{}) (end func()) {
	for {
		c.mu.Lock()
		c.judge()
		gate := c.gate
		if gate == nil {
			c.working++
			c.mu.Unlock()
			return c.end
		}
		c.mu.Unlock()
		select {
		case <-gate:
		case <-stop:
			return nil
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
	case c.working == 0 && now.Sub(c.last) > forgetAfter:
		c.look(now)
	case c.working == 0 && now.Sub(c.last) > workWindow: // Nothing was done for a while.
		c.begin(now)
	case now.Sub(c.mark) >= workWindow:
		c.draining = true
		if c.next(now) == 0 {
			c.draining = false
			return
		}
		gate := make(chan struct{})
		c.gate = gate
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

// look begins anew after a long time without work: it looks what guests do alone,
// if there were any since.
func (c *courtesy) look(now time.Time) {
	c.alone, c.beside = rate{}, rate{}
	idle := c.requests() == c.count
	c.begin(now)
	if idle {
		return
	}
	c.gate = make(chan struct{})
	time.AfterFunc(leastRest, c.wake)
}

func (c *courtesy) begin(now time.Time) { c.mark, c.count = now, c.requests() }

// next returns how long to rest after the work since the mark. If that is not at
// all, the next window has begun.
func (c *courtesy) next(now time.Time) time.Duration {
	before, worked := c.beside, now.Sub(c.mark)
	c.beside.add(c.requests()-c.count, worked, besideWeight)
	pause := c.pause(worked, now)
	if pause == 0 {
		c.begin(now)
	} else if c.draining {
		c.beside = before // It counts when the work has ended.
	}
	return pause
}

// rest begins a rest, or another window if none is needed after all.
func (c *courtesy) rest() {
	now := time.Now()
	c.draining = false
	pause := c.next(now)
	if pause == 0 {
		c.open()
		return
	}
	c.begin(now)
	time.AfterFunc(pause, c.wake)
}

// wake ends a rest.
func (c *courtesy) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	made, rested := c.requests()-c.count, now.Sub(c.mark)
	c.alone.add(made, rested, aloneWeight)
	if made == 0 && rested >= goneAfter {
		c.alone.value = 0
	}
	c.rested = now
	c.begin(now)
	c.open()
}

func (c *courtesy) open() {
	close(c.gate)
	c.gate = nil
}

// pause is how long to rest after a window of work.
func (c *courtesy) pause(worked time.Duration, now time.Time) time.Duration {
	if !c.guests() {
		return 0
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

// guests reports whether anybody uses a volume.
func (c *courtesy) guests() bool { return c.alone.value >= 1 || c.beside.value >= 1 }

// disturbs reports whether there is anybody whom work may disturb.
func (c *courtesy) disturbs() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.guests()
}
