package layers

import (
	"testing"
	"time"
)

// S3, S6: tidying makes way for guests whose flushes it slows down, and for
// those only.
func TestPace(t *testing.T) {
	const step = 10 * time.Millisecond
	p := &pace{}
	if got := p.pause(step); got != 0 {
		t.Errorf("nobody flushes: a pause of %v", got)
	}
	for range 20 {
		p.flushed(time.Millisecond)
	}
	steps := func(n int, flush time.Duration) (pause time.Duration) {
		for range n {
			p.working.Store(true)
			for range 20 {
				p.flushed(flush)
			}
			p.working.Store(false)
			pause = p.pause(step)
		}
		return pause
	}
	if got := steps(3, time.Millisecond); got != 0 || p.step(64) != 64 {
		t.Errorf("flushes take no longer: a pause of %v, steps of %d of 64", got, p.step(64))
	}
	if got := steps(1, 5*time.Millisecond); got != step || p.step(64) != 8 {
		t.Errorf("flushes take five times as long: a pause of %v, steps of %d of 64, want %v and 8", got, p.step(64), step)
	}
	if got := steps(9, 5*time.Millisecond); got != maxRest*step {
		t.Errorf("and still do: a pause of %v, want %v", got, maxRest*step)
	}
	if got := p.pause(time.Minute); got != 0 {
		t.Errorf("the guests have gone: a pause of %v", got)
	}
	steps(9, 5*time.Millisecond)
	if got := steps(9, time.Millisecond); got != 0 {
		t.Errorf("flushes are fast again: a pause of %v", got)
	}
	if alone := time.Duration(p.alone.ns.Load()); alone != time.Millisecond {
		t.Errorf("flushes beside tidying count as %v without", alone)
	}
}
