package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"
)

// A load is a stream of equal requests at random block offsets that keeps depth
// of them in flight on one connection.
//
// Unlike fio it batches: all replies that one receive brings are answered with
// all their successors in one send. Two system calls move up to depth requests,
// so that the server, and not the generator, is what limits at high depth.
//
// A flush is a barrier here, as it is in a journaling file system: it goes out
// when all writes before it are answered, and writes go on when it is.
type load struct {
	write      bool
	block      int // bytes of each request
	depth      int
	flushEvery int // writes between flushes; 0 is no flush
	duration   time.Duration
	seed       uint64
	clock      func() time.Time // nil: time.Now
}

// loadResult is what a load saw. Latencies run from the send that carried a
// request to the receive that ended its reply.
type loadResult struct {
	ops     int64 // reads or writes
	flushes int64
	elapsed time.Duration
	latency histogram // of reads or writes
	flush   histogram
}

// receiveBuffer holds the replies of one receive: a deep queue of 4 KiB reads
// comes in few pieces.
const receiveBuffer = 1 << 20

// runAll drives the load over each connection at once, and adds up.
func (l load) runAll(conns []*conn) (*loadResult, error) {
	results, failed := make([]*loadResult, len(conns)), make([]error, len(conns))
	var all sync.WaitGroup
	for i, c := range conns {
		one := l
		one.seed += uint64(i) << 32
		all.Go(func() { results[i], failed[i] = one.run(c) })
	}
	all.Wait()
	if err := errors.Join(failed...); err != nil {
		return nil, err
	}
	sum := &loadResult{}
	for _, r := range results {
		sum.ops += r.ops
		sum.flushes += r.flushes
		sum.elapsed = max(sum.elapsed, r.elapsed)
		sum.latency.merge(&r.latency)
		sum.flush.merge(&r.flush)
	}
	return sum, nil
}

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
		sent:    make([]time.Time, l.depth+1),
		out:     make([]byte, (l.depth+1)*(requestSize+min(l.block, shortPayload))),
	}
	for slot := range l.depth {
		g.free = append(g.free, uint64(slot))
	}
	fillRandom(g.payload, l.seed)
	fillRandom(g.out, l.seed+1)
	g.out = g.out[:0] // it never grows: pieces point into it
	if !l.write {
		g.scanner.readSize = l.block
	}
	return &g.result, g.drive(c)
}

// A generator is the state of a running load. A request's cookie is its slot:
// below depth for reads and writes, depth for the flush.
type generator struct {
	load
	blocks  int64
	random  *rand.Rand
	payload []byte // random bytes that writes take theirs from
	scanner replyScanner
	sent    []time.Time // by slot; zero if the slot is free
	free    []uint64    // slots below depth
	since   int         // writes sent since the last flush
	out     []byte      // requests to send; of large writes the headers only
	pieces  [][]byte    // what is to be sent, if not out: parts of it with payloads between
	result  loadResult
}

// shortPayload is the longest payload, in bytes, that lies behind its header;
// longer ones are gathered by the system call. The short ones lie there from the
// start, since a copy would cost as much as the request.
const shortPayload = 16 << 10

func (g *generator) drive(c *conn) error {
	clock := g.clock
	if clock == nil {
		clock = time.Now
	}
	began := clock()
	in := make([]byte, receiveBuffer)
	for now := began; ; now = clock() {
		if now.Sub(began) < g.duration {
			g.refill(now)
		}
		if g.idle() {
			g.result.elapsed = now.Sub(began)
			return nil
		}
		if err := g.send(c); err != nil {
			return err
		}
		n, err := c.Read(in)
		if err != nil {
			return err
		}
		if err := g.replies(in[:n], clock()); err != nil {
			return err
		}
	}
}

// send sends what is lined up.
func (g *generator) send(c *conn) (err error) {
	if len(g.pieces) > 0 {
		err = c.WriteAll(g.pieces)
	} else if len(g.out) > 0 {
		_, err = c.Write(g.out)
	}
	g.out, g.pieces = g.out[:0], g.pieces[:0]
	return err
}

// idle reports whether nothing is in flight.
func (g *generator) idle() bool { return len(g.free) == g.depth && g.sent[g.depth].IsZero() }

// refill lines up the requests that may go out now.
func (g *generator) refill(now time.Time) {
	for len(g.free) > 0 && (g.flushEvery == 0 || g.since < g.flushEvery) {
		last := len(g.free) - 1
		g.request(g.free[last], now)
		g.free = g.free[:last]
		g.since++
	}
	if g.flushEvery > 0 && g.since == g.flushEvery && g.idle() {
		g.sent[g.depth] = now
		g.out = appendRequest(g.out, cmdFlush, uint64(g.depth), 0, 0)
		if len(g.pieces) > 0 {
			g.pieces = append(g.pieces, g.out[len(g.out)-requestSize:])
		}
	}
}

// replies takes what one receive brought.
func (g *generator) replies(b []byte, now time.Time) error {
	return g.scanner.scan(b, func(cookie uint64) error {
		if cookie >= uint64(len(g.sent)) || g.sent[cookie].IsZero() {
			return fmt.Errorf("a reply for cookie %d, which is not in flight", cookie)
		}
		took := now.Sub(g.sent[cookie])
		g.sent[cookie] = time.Time{}
		if cookie == uint64(g.depth) {
			g.since = 0
			g.result.flushes++
			g.result.flush.add(took)
			return nil
		}
		g.result.ops++
		g.result.latency.add(took)
		g.free = append(g.free, cookie)
		return nil
	})
}

// request appends a read or write to what is to be sent.
func (g *generator) request(slot uint64, now time.Time) {
	off := g.random.Int64N(g.blocks) * int64(g.block)
	g.sent[slot] = now
	if !g.write {
		g.out = appendRequest(g.out, cmdRead, slot, off, g.block)
		return
	}
	g.out = appendRequest(g.out, cmdWrite, slot, off, g.block)
	if g.block <= shortPayload {
		g.out = g.out[:len(g.out)+g.block]
		return
	}
	from := int(g.random.Uint32N(uint32(len(g.payload) - g.block)))
	g.pieces = append(g.pieces, g.out[len(g.out)-requestSize:], g.payload[from:from+g.block])
}
