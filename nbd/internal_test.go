package nbd

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

// TestPace: requests are given away when they take long on average, and tried
// again after a while.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		serve := func(p *pace, count int, each time.Duration) {
			for range count {
				p.tick()
				time.Sleep(each) // in the bubble: no real time
			}
			p.stop()
		}
		var p pace
		serve(&p, 1000, slowRequest/2)
		if p.slow() {
			t.Error("quick requests count as slow")
		}
		serve(&p, 1, slowRequest*paceCount)
		if !p.slow() {
			t.Error("one request that takes very long does not count as slow")
		}
		p = pace{}
		serve(&p, paceCount, slowRequest*2)
		for i := range slowCount {
			if !p.slow() {
				t.Fatalf("only %d requests are given away, want %d", i, slowCount)
			}
		}
		if p.slow() {
			t.Error("there is no second try")
		}
		time.Sleep(time.Hour)
		serve(&p, 3, 0)
		if p.slow() {
			t.Error("the time in which nothing was served counts")
		}
	})
}

// TestScheduleKeepsOrder: tasks that conflict run one after the other in the
// order of their coming; those that do not, run together.
func TestScheduleKeepsOrder(t *testing.T) {
	const tasks = 2000
	r := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	var ended []request
	var s schedule
	s.init(func(k *task) {
		if k.cookie%3 == 0 {
			time.Sleep(time.Duration(k.cookie%5) * time.Microsecond) // shuffles the workers
		}
		mu.Lock()
		ended = append(ended, k.request)
		mu.Unlock()
	})
	for i := range uint64(tasks) {
		q := request{cookie: i, off: uint64(r.IntN(1000)), n: uint64(r.IntN(100)), cmd: []uint16{cmdRead, cmdWrite, cmdTrim, cmdFlush}[r.IntN(4)]}
		s.add(&q, nil, 0)
	}
	s.close()
	if len(ended) != tasks || s.busy() {
		t.Fatalf("%d tasks ended, want %d", len(ended), tasks)
	}
	for i, later := range ended {
		for _, earlier := range ended[i+1:] {
			if earlier.cookie < later.cookie && earlier.conflicts(&later) {
				t.Fatalf("task %+v ended before %+v", later, earlier)
			}
		}
	}
}

// TestScheduleRunsTogether what does not conflict.
func TestScheduleRunsTogether(t *testing.T) {
	var together sync.WaitGroup
	together.Add(maxWorkers)
	var s schedule
	s.init(func(*task) {
		together.Done()
		together.Wait() // returns only if all run at once
	})
	for i := range uint64(maxWorkers) {
		s.add(&request{cmd: cmdWrite, off: i * 10, n: 10}, nil, 0)
	}
	if !s.mustWait(&request{cmd: cmdRead, off: 5, n: 1}) && s.busy() {
		t.Error("a read of bytes that are being written need not wait")
	}
	s.close()
	if s.mustWait(&request{cmd: cmdRead, off: 5, n: 1}) {
		t.Error("a read has to wait for nothing")
	}
}

func TestConflicts(t *testing.T) {
	for _, c := range []struct {
		a, b request
		want bool
	}{
		{request{cmd: cmdWrite, off: 0, n: 10}, request{cmd: cmdRead, off: 9, n: 1}, true},
		{request{cmd: cmdWrite, off: 0, n: 10}, request{cmd: cmdRead, off: 10, n: 1}, false},
		{request{cmd: cmdRead, off: 0, n: 10}, request{cmd: cmdRead, off: 0, n: 10}, false},
		{request{cmd: cmdTrim, off: 0, n: 10}, request{cmd: cmdWriteZeroes, off: 5, n: 1}, true},
		{request{cmd: cmdTrim, off: 0, n: 10}, request{cmd: cmdBlockStatus, off: 5, n: 1}, true},
		{request{cmd: cmdWrite, off: 0, n: 10}, request{cmd: cmdFlush}, false},
	} {
		if got := c.a.conflicts(&c.b); got != c.want || c.b.conflicts(&c.a) != got {
			t.Errorf("%+v and %+v: %v, want %v", c.a, c.b, got, c.want)
		}
	}
}

// TestBatchRewind: what was added since a mark is gone without a trace.
func TestBatchRewind(t *testing.T) {
	b := newBatch()
	defer b.free()
	b.simple(&request{cookie: 1}, 0)
	want := content(b)
	m := b.mark()
	b.simple(&request{cookie: 2}, 5)
	b.data(&request{cookie: 3}, chunkDone, 0, newBuffer(100), 100)
	b.failure(&request{cookie: 4}, 5, "text")
	b.rewind(m)
	if got := content(b); !bytes.Equal(got, want) || b.bytes != len(want) {
		t.Errorf("after rewind: %x, want %x", got, want)
	}
	b.simple(&request{cookie: 5}, 0)
	if got := content(b); len(got) != 32 || len(b.segs) != 1 {
		t.Errorf("a reply after rewind: %x in %d segments", got, len(b.segs))
	}
}

// TestBatchAbsorb: replies move whole and in order.
func TestBatchAbsorb(t *testing.T) {
	a, b := newBatch(), newBatch()
	defer a.free()
	defer b.free()
	a.simple(&request{cookie: 1}, 0)
	b.hole(&request{cookie: 2}, 0, 0, 10)
	b.data(&request{cookie: 3}, chunkDone, 10, newBuffer(5), 5)
	a.charge, b.charge = 1, 2
	want := append(content(a), content(b)...)
	if !a.absorb(b) || !bytes.Equal(content(a), want) || a.charge != 3 || a.bytes != len(want) {
		t.Errorf("absorbed: %x charge %d, want %x charge 3", content(a), a.charge, want)
	}
	if !b.empty() || b.bytes != 0 || b.charge != 0 {
		t.Errorf("the absorbed batch keeps %x", content(b))
	}
	for a.absorb(func() *batch { b.simple(&request{cookie: 4}, 0); return b }()) {
	}
	if !a.full() {
		t.Error("absorb refused while there was room")
	}
}

func content(b *batch) (p []byte) {
	for _, s := range b.segs {
		p = append(p, s.data...)
	}
	return p
}

// TestBatchHoldsTheLargestReply, which full leaves room for.
func TestBatchHoldsTheLargestReply(t *testing.T) {
	b := newBatch()
	defer b.free()
	for i := range maxRuns - 1 {
		b.data(&request{cookie: 1}, 0, int64(i), newBuffer(1), 1)
	}
	b.data(&request{cookie: 1}, 0, 9, newBuffer(1), 1)
	b.failureAt(&request{cookie: 1}, errnoIO, strings.Repeat("x", 10_000), 9)
	if b.used > replyHead || len(b.segs) > replySegs {
		t.Errorf("the largest reply takes %d bytes and %d segments", b.used, len(b.segs))
	}
}

func TestClipCutsNoCharacter(t *testing.T) {
	for n := range 12 {
		if got := clip("aäöü€x", n); len(got) > n || !utf8.ValidString(got) {
			t.Errorf("clip to %d: %q", n, got)
		}
	}
	if got := clip("short", 512); got != "short" {
		t.Errorf("clip: %q", got)
	}
}

// TestBuffersAreAligned, of every class, and fit what was asked for.
func TestBuffersAreAligned(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 65536, 100_000, maxPayload} {
		b := newBuffer(n)
		if address(b.b)%bufferAlign != 0 || len(b.b) < n || len(b.b) > max(2*n, 4096) {
			t.Errorf("buffer for %d: %d bytes at %#x", n, len(b.b), address(b.b))
		}
		b.free()
	}
}

// TestOutboxResumesInsideABuffer: a socket that takes a little at a time gets
// every byte once.
func TestOutboxResumesInsideABuffer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	theirs, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	ours, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	ours.(*net.TCPConn).SetWriteBuffer(5000)
	var o outbox
	o.init(ours, 1<<30)
	var want []byte
	for i := range uint64(200) {
		b := newBatch()
		buf := newBuffer(70_000)
		for k := range 997 {
			buf.b[k] = byte(uint64(k) * (i + 3))
		}
		b.data(&request{cookie: i}, chunkDone, 0, buf, 70_000-int(i))
		b.simple(&request{cookie: i}, 0)
		want = append(want, content(b)...)
		o.sendAcquired(b) // never waits, though nobody reads yet
	}
	got := make([]byte, len(want))
	theirs.SetReadDeadline(time.Now().Add(5 * time.Minute))
	if n, err := io.ReadFull(theirs, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d of %d bytes arrived (%v), or other bytes", n, len(want), err)
	}
	o.close()
	if o.lost() != nil {
		t.Errorf("lost: %v", o.lost())
	}
}
