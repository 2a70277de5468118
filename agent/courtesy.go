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
	leastRest    = 20 * time.Millisecond  // enough to see whether guests do more alone
	lookRest     = 100 * time.Millisecond // to see how much they do where it is not known
	probeEvery   = 500 * time.Millisecond // how often they are looked at where they need no rest
	mostRest     = 15                     // times the work
	allowedLoss  = 0.08                   // the share of their requests that guests may lose
	busyRate     = 200                    // requests a second, from which on guests count fully
	aloneWeight  = 0.25                   // of a rest in the average
	trustAfter   = 100 * time.Millisecond // of rest, a guest that is slower than it was is so by itself
	besideWeight = 0.5                    // of a window: guests are hurt at once
	forgetAfter  = 5 * time.Second        // what guests did this long ago tells nothing
	goneAfter    = 200 * time.Millisecond // of a rest without any request
)

// A courtesy holds operations back while the users of volumes want the machine.
// It lets work go on for a window, then rests, and compares how many requests
// guests get served beside the work with how many while it rests: the rests
// are as long as keeps their loss within bounds. Where nobody is disturbed there
// are hardly any, and where nobody is there are none.
//
// What work leaves behind, on its way to the disk above all, hurts guests when it
// has ended. So the first half of a rest tells nothing of what guests do alone,
// and a rest goes on until what they have lost since the work began is within
// bounds.
type courtesy struct {
	requests func() int64 // that guests have made so far

	mu       sync.Mutex
	working  int           // pieces of work that are under way
	gate     chan struct{} // closed when work may go on; nil while it may
	draining bool          // the window is over, work is not

	mark   time.Time // when the window, or the rest, began
	count  int64     // requests until then
	past   effort    // that the rest is for
	calm   time.Time // the middle of the rest; zero: not yet
	calmed int64     // requests until then
	last   time.Time // when a piece of work ended last
	rested time.Time // when the last rest ended

	alone, beside rate
}

// An effort is work, and the requests that guests got served beside it.
type effort struct {
	took time.Duration
	made int64
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
	c.alone, c.beside, c.last = rate{}, rate{}, now
	idle := c.requests() == c.count
	c.begin(now)
	if idle {
		return
	}
	c.gate = make(chan struct{})
	c.past = effort{}
	c.pause(lookRest)
}

// pause lets a rest begin, or go on, for d.
func (c *courtesy) pause(d time.Duration) {
	c.calm = time.Time{}
	time.AfterFunc(d/2, c.settle)
	time.AfterFunc(d, c.wake)
}

// settle begins to count what guests do alone.
func (c *courtesy) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calm, c.calmed = time.Now(), c.requests()
}

func (c *courtesy) begin(now time.Time) { c.mark, c.count = now, c.requests() }

// next returns how long to rest after the work since the mark. If that is not at
// all, the next window has begun.
func (c *courtesy) next(now time.Time) time.Duration {
	before, worked := c.beside, now.Sub(c.mark)
	c.beside.add(c.requests()-c.count, worked, besideWeight)
	pause := c.due(worked, now)
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
	c.past = effort{now.Sub(c.mark), c.requests() - c.count}
	pause := c.next(now)
	if pause == 0 {
		c.open()
		return
	}
	c.begin(now)
	c.pause(pause)
}

// wake ends a rest, or lets it go on.
func (c *courtesy) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.learn(now)
	if more := c.owed(now); more >= leastRest {
		c.pause(more)
		return
	}
	c.rested, c.last = now, now
	c.begin(now)
	c.open()
}

// learn takes from the calm part of a rest what guests do alone. Where that is
// less than before, what the work has left behind may be why, so little of a
// short rest is believed.
func (c *courtesy) learn(now time.Time) {
	if c.calm.IsZero() || !now.After(c.calm) {
		return // the timers were late
	}
	made, calm := c.requests()-c.calmed, now.Sub(c.calm)
	weight := aloneWeight
	if float64(made)/calm.Seconds() < c.alone.value {
		weight *= 2 * min(1, calm.Seconds()/trustAfter.Seconds())
	}
	c.alone.add(made, calm, weight)
	if now.Sub(c.mark) >= goneAfter && c.requests() == c.count {
		c.alone.value = 0
	}
}

// owed is how much longer a rest has to go on until guests have lost no more than
// they may, since the work before it began.
func (c *courtesy) owed(now time.Time) time.Duration {
	rested := now.Sub(c.mark)
	span := c.past.took + rested
	return min(stretch(span, c.loss(c.past.made+c.requests()-c.count, span)), mostRest*c.past.took-rested)
}

// loss is the share of what guests do alone that they did not get done in a time.
// Who hardly does anything counts for little.
func (c *courtesy) loss(made int64, in time.Duration) float64 {
	if c.alone.value == 0 || in == 0 {
		return 0
	}
	return max(0, 1-float64(made)/in.Seconds()/c.alone.value) * min(1, c.alone.value/busyRate)
}

// stretch is by how much a time has to grow for a loss in it to be what is allowed.
func stretch(d time.Duration, loss float64) time.Duration {
	return max(0, time.Duration(float64(d)*(loss/allowedLoss-1)))
}

func (c *courtesy) open() {
	close(c.gate)
	c.gate = nil
}

// due is how long to rest after a window of work.
func (c *courtesy) due(worked time.Duration, now time.Time) time.Duration {
	if !c.guests() {
		return 0
	}
	pause := min(stretch(worked, c.loss(int64(c.beside.value*worked.Seconds()), worked)), mostRest*worked)
	switch {
	case pause >= leastRest:
		return pause
	case now.Sub(c.rested) > probeEvery:
		return leastRest
	}
	return 0
}

// guests reports whether anybody uses a volume.
func (c *courtesy) guests() bool { return c.alone.value >= 1 || c.beside.value >= 1 }

// disturbs reports whether there is anybody whom work may disturb.
func (c *courtesy) disturbs() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.guests()
}
