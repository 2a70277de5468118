package nbd

import "time"

// The reader serves small requests itself because a hand-over costs more than
// a read from memory. When the device has to go to a disk, or to a network,
// that would turn many requests in flight into one. So the reader looks at the
// clock, and when requests take longer than slowRequest on average, gives the
// next ones to the workers; then it tries again.
const (
	slowRequest = 100 * time.Microsecond // twenty hand-overs and more
	slowCount   = 1024                   // requests given away before the next try
	paceCount   = 8                      // requests between two looks at the clock
)

// A pace is the reader's knowledge of how fast the device is.
type pace struct {
	since time.Time // when the count began; zero while nothing is served
	count int       // requests served since then
	give  int       // requests still to give away
}

// slow says whether a small request should go to a worker.
func (p *pace) slow() bool {
	if p.give == 0 {
		return false
	}
	p.give--
	return true
}

// counts says whether requests are being counted.
func (p *pace) counts() bool { return p.count > 0 }

// tick is called before the reader serves a request.
func (p *pace) tick() {
	if p.count == 0 {
		p.since = time.Now()
	} else if p.count == paceCount {
		now := time.Now()
		p.judge(now.Sub(p.since), p.count)
		p.since, p.count = now, 0
	}
	p.count++
}

// stop is called when the reader turns to something else.
func (p *pace) stop() {
	if p.count > 0 {
		p.judge(time.Since(p.since), p.count)
		p.count = 0
	}
}

// judge learns how long count requests, of quickBytes at most, have taken.
func (p *pace) judge(took time.Duration, count int) {
	if took > time.Duration(count)*slowRequest {
		p.give = slowCount
	}
}
