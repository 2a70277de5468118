package layers

import (
	"sync/atomic"
	"time"
)

// A pace holds tidying back while guests wait. It compares how long their
// flushes take beside a step of tidying with how long they take otherwise:
// where they take more than twice as long, the pauses between steps grow until
// tidying has a sixteenth of the time, and the steps that copy become smaller.
// Where nobody flushes there are no pauses.
type pace struct {
	working       atomic.Bool  // a step runs
	flushes       atomic.Int64 // beside the step
	alone, beside average      // of flushes
	rest          atomic.Int64 // pause after a step, in steps' durations
}

const (
	maxRest  = 15
	maxPause = 2 * time.Second
)

// An average is a moving one, over about eight values.
type average struct{ ns atomic.Int64 }

func (a *average) add(d time.Duration) {
	old := a.ns.Load()
	if old == 0 {
		old = int64(d)
	}
	a.ns.Store(old + (int64(d)-old)/8)
}

// flushed takes note of a guest's flush.
func (p *pace) flushed(d time.Duration) {
	if p.working.Load() {
		p.beside.add(d)
		p.flushes.Add(1)
	} else {
		p.alone.add(d)
	}
}

// pause returns how long to wait after a step.
func (p *pace) pause(step time.Duration) time.Duration {
	rest := p.rest.Load()
	alone, beside := p.alone.ns.Load(), p.beside.ns.Load()
	switch {
	case p.flushes.Swap(0) == 0:
		rest = 0
	case alone > 0 && beside > 2*alone:
		rest = min(2*rest+1, maxRest)
	default:
		rest /= 2
	}
	p.rest.Store(rest)
	return min(step*time.Duration(rest), maxPause)
}

// step returns how much of what may be copied between syncs should be.
func (p *pace) step(most int64) int64 {
	if p.rest.Load() > 0 {
		return max(most/8, 1)
	}
	return most
}
