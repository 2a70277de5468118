package main

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"
)

// A load is a stream of equal requests at random block offsets that keeps depth
// of them in flight on one connection.
//
// Unlike fio it batches: all replies that one receive brings are answered with
// all their successors in one send. Two system calls move up to depth requests,
// so that the server, and not the generator, is what limits at high depth.
type load struct {
	write    bool
	block    int // bytes of each request
	depth    int
	duration time.Duration
	seed     uint64
}

// loadResult is what a load saw.
type loadResult struct {
	ops     int64
	elapsed time.Duration
	latency histogram // from the send that carried a request to the receive that ended its reply
}

// receiveBuffer holds the replies of one receive: a deep queue of 4 KiB reads
// comes in few pieces.
const receiveBuffer = 1 << 20

// run drives the load over c until its duration has passed and every request
// sent has been answered.
func (l load) run(c *conn) (*loadResult, error) {
	blocks := c.size / int64(l.block)
	if blocks == 0 {
		return nil, fmt.Errorf("an export of %d bytes has no room for blocks of %d", c.size, l.block)
	}
	// Otherwise the scheduler moves us to another thread now and then, and a
	// blocked receive costs a hand-over.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	g := &generator{
		load:    l,
		blocks:  blocks,
		random:  rand.New(rand.NewPCG(l.seed, 0)),
		payload: make([]byte, 2*max(l.block, 1<<20)),
		sent:    make([]time.Time, l.depth),
		result:  new(loadResult),
	}
	fillRandom(g.payload, l.seed)
	if !l.write {
		g.scanner.readSize = l.block
	}
	return g.result, g.drive(c)
}

// A generator is the state of a running load. A request's cookie is its slot,
// below depth.
type generator struct {
	load
	blocks  int64
	random  *rand.Rand
	payload []byte // random bytes that writes take theirs from
	scanner replyScanner
	sent    []time.Time // by slot; zero if the slot is free
	flying  int
	out     []byte // requests to send
	result  *loadResult
}

func (g *generator) drive(c *conn) error {
	began := time.Now()
	for slot := range g.sent {
		g.request(uint64(slot), began)
	}
	in := make([]byte, receiveBuffer)
	for g.flying > 0 {
		if _, err := c.Write(g.out); err != nil {
			return err
		}
		g.out = g.out[:0]
		n, err := c.Read(in)
		if err != nil {
			return err
		}
		now := time.Now()
		if err := g.replies(in[:n], now, now.Sub(began) < g.duration); err != nil {
			return err
		}
	}
	g.result.elapsed = time.Since(began)
	return nil
}

// replies takes what one receive brought and, if more is wanted, lines up the
// successors of the requests that it ended.
func (g *generator) replies(b []byte, now time.Time, more bool) error {
	return g.scanner.scan(b, func(cookie uint64) error {
		if cookie >= uint64(len(g.sent)) || g.sent[cookie].IsZero() {
			return fmt.Errorf("a reply for cookie %d, which is not in flight", cookie)
		}
		g.result.latency.add(now.Sub(g.sent[cookie]))
		g.result.ops++
		g.flying--
		g.sent[cookie] = time.Time{}
		if more {
			g.request(cookie, now)
		}
		return nil
	})
}

// request appends the next request to what is to be sent.
func (g *generator) request(slot uint64, now time.Time) {
	off := g.random.Int64N(g.blocks) * int64(g.block)
	g.sent[slot] = now
	g.flying++
	if !g.write {
		g.out = appendRequest(g.out, cmdRead, slot, off, g.block)
		return
	}
	g.out = appendRequest(g.out, cmdWrite, slot, off, g.block)
	from := int(g.random.Uint32N(uint32(len(g.payload) - g.block)))
	g.out = append(g.out, g.payload[from:from+g.block]...)
}
