package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// TestShutdown: what was accepted is answered, what comes later is refused, the
// device is flushed, the export left, and Serve returns.
func TestShutdown(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{}, 1)
	var flushes atomic.Int32
	m := nbdtest.NewMemory(1 << 20)
	m.Faults.Zero = func(int64, int64) error { entered <- struct{}{}; <-gate; return nil }
	m.Faults.Flush = func() error { flushes.Add(1); return nil }
	s := newShelf(nbd.Export{Name: "x", Device: m})
	server := &nbd.Server{Open: s.Open}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(t.Context(), l) }()
	c := dial(t, "unix", l.Addr().String()).greet(3)
	c.goTo("x")
	undecided := dial(t, "unix", l.Addr().String()).greet(3)
	undecided.inSync()

	c.request(cmdTrim, 0, 1, 0, 4096)
	<-entered
	down := make(chan error, 1)
	go func() { down <- server.Shutdown(t.Context()) }()
	undecided.closed()
	for { // the first refusal shows that Shutdown has come
		c.request(cmdRead, 0, 2, 0, 512)
		if cookie, errno := c.simple(); cookie != 2 || errno != 0 && errno != eSHUTDOWN {
			t.Fatalf("cookie %d, error %d", cookie, errno)
		} else if errno == eSHUTDOWN {
			break
		}
		c.read(512)
	}
	c.expectNext(eSHUTDOWN, cmdWrite, 4, 1, 2, 3, 4)
	close(gate)
	if cookie, errno := c.simple(); cookie != 1 || errno != 0 {
		t.Errorf("the accepted request: cookie %d, error %d", cookie, errno)
	}
	c.closed()
	if err := <-down; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
	if flushes.Load() == 0 || s.leftOpen() != 0 || server.Connections() != 0 {
		t.Errorf("%d flushes, %d exports open, %d connections", flushes.Load(), s.leftOpen(), server.Connections())
	}
	if err := server.Shutdown(t.Context()); err != nil {
		t.Errorf("a second Shutdown: %v", err)
	}
	again, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	// As when Shutdown came while Serve was on its way: it is no failure.
	if err := server.Serve(t.Context(), again); err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
	if _, err := again.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve after Shutdown left its listener open: %v", err)
	}
}

// expectNext sends a request and checks the next reply.
func (c *rawClient) expectNext(errno uint32, cmd uint16, n uint32, p ...byte) {
	c.Helper()
	c.request(cmd, 0, 3, 0, n, p...)
	if cookie, got := c.simple(); cookie != 3 || got != errno {
		c.Fatalf("cookie %d, error %d, want error %d", cookie, got, errno)
	}
}

// TestShutdownDoesNotWaitForEver: a client that reads nothing cannot hold it.
func TestShutdownDoesNotWaitForEver(t *testing.T) {
	b := newRig(t)
	b.main.WriteAt(pattern(1, 16<<20), 0)
	c := b.transmission(t, "main")
	for i := range uint64(64) {
		c.send(requestBytes(cmdRead, 0, i, i<<18, 1<<18))
	}
	c.read(1) // of a reply that is longer than the socket's buffer
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v, want deadline exceeded", err)
	}
	waitFor(t, "the connection is gone", func() bool { return b.server.Connections() == 0 })
}

// TestShutdownLeavesAHangingDevice: it comes back when its context ends, and
// Serve when the device does.
func TestShutdownLeavesAHangingDevice(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{}, 1)
	m := nbdtest.NewMemory(1 << 20)
	m.Faults.Zero = func(int64, int64) error { entered <- struct{}{}; <-gate; return nil }
	s := newShelf(nbd.Export{Name: "x", Device: m})
	server := &nbd.Server{Open: s.Open}
	c := dial(t, "unix", serve(t, server)).greet(3)
	c.goTo("x")
	c.request(cmdTrim, 0, 1, 0, 4096)
	<-entered
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no more patience")
	cancel(why)
	if err := server.Shutdown(ctx); !errors.Is(err, why) {
		t.Errorf("Shutdown: %v, want %v", err, why)
	}
	c.closed()
	if s.leftOpen() != 1 {
		t.Error("the export was closed under a request")
	}
	close(gate)
	waitFor(t, "the connection is gone", func() bool { return server.Connections() == 0 && s.leftOpen() == 0 })
}

// TestContextEndsServe: connections are closed as they are.
func TestContextEndsServe(t *testing.T) {
	b := newRig(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- b.server.Serve(ctx, l) }()
	c := dial(t, "tcp", l.Addr().String()).greet(3)
	c.goTo("main")
	c.alive()
	other := b.transmission(t, "main")
	cancel()
	c.closed()
	if err := <-served; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v, want canceled", err)
	}
	other.alive() // the other listener's connections go on
}

// TestMaxConnections: one more is closed unanswered, and there is room again
// when one has left.
func TestMaxConnections(t *testing.T) {
	s := newShelf(nbd.Export{Name: "x", Device: nbdtest.NewMemory(4096)})
	server := &nbd.Server{Open: s.Open, MaxConnections: 2}
	path := serve(t, server)
	a, b := dial(t, "unix", path).greet(3), dial(t, "unix", path).greet(3)
	a.goTo("x")
	b.goTo("x")
	dial(t, "unix", path).closed()
	a.Close()
	waitFor(t, "one connection left", func() bool { return server.Connections() == 1 })
	c := dial(t, "unix", path).greet(3)
	c.goTo("x")
	c.alive()
	b.alive()
}

// TestHandshakeTimeout: who does not come to the point is closed; who has is
// not.
func TestHandshakeTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShelf(nbd.Export{Name: "x", Device: nbdtest.NewMemory(4096)})
		server := &nbd.Server{Open: s.Open, Log: discard}
		l := newMemoryListener()
		served := make(chan error, 1)
		go func() { served <- server.Serve(t.Context(), l) }()
		connect := func() *rawClient {
			ours, theirs := memoryPipe()
			l.conns <- theirs
			return &rawClient{TB: t, Conn: ours}
		}
		begun := time.Now()
		quick := connect().greet(3)
		quick.goTo("x")
		silent := connect()
		silent.read(18)
		half := connect().greet(3)
		half.send(uint64(wireOptionMagic), uint32(optGo))
		silent.closed()
		half.closed()
		if took := time.Since(begun); took != 30*time.Second {
			t.Errorf("closed after %v, want 30s", took)
		}
		quick.alive()
		quick.Close()
		if err := server.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		<-served
		silent.Close()
		half.Close()
	})
}

// TestFloods: a client that floods the handshake is dropped.
func TestFloods(t *testing.T) {
	b := newRig(t)
	t.Run("options without end", func(t *testing.T) {
		c := b.dial(t).greet(3)
		go func() {
			p := wire(uint64(wireOptionMagic), uint32(optList), uint32(0))
			for range 5000 {
				if _, err := c.Write(p); err != nil {
					return
				}
			}
		}()
		n := drain(c)
		if n == 0 || n > 4096*200 {
			t.Errorf("%d bytes of answers, want those to 4096 options", n)
		}
	})
	t.Run("a huge option", func(t *testing.T) {
		for _, option := range []uint32{optList, optGo, optExportName, 999} {
			c := b.dial(t).greet(3)
			c.send(uint64(wireOptionMagic), option, uint32(0xffffffff), "x")
			c.closed()
		}
	})
	t.Run("a million queries", func(t *testing.T) {
		c := b.dial(t).greet(3)
		c.agreeStructured()
		c.refused(errTooBig, optSetMeta, wire(uint32(4), "main", uint32(200_000)), make([]byte, 800_000))
		c.inSync()
	})
}

// drain reads until the connection ends and returns the number of bytes.
func drain(c *rawClient) (n int) {
	p := make([]byte, 64<<10)
	for {
		m, err := c.Conn.Read(p)
		n += m
		if err != nil {
			return n
		}
	}
}

// TestClientThatReadsNothing: its requests, answered or refused, are not taken
// in without bound, and others are served meanwhile.
func TestClientThatReadsNothing(t *testing.T) {
	for name, request := range map[string][]byte{
		"reads":    requestBytes(cmdRead, 0, 1, 0, 1<<20),
		"refused":  requestBytes(cmdRead, 0xff00, 1, 0, 1<<20),
		"flushes":  requestBytes(cmdFlush, 0, 1, 0, 0),
		"statuses": requestBytes(cmdStatus, 0, 1, 0, mainSize),
	} {
		t.Run(name, func(t *testing.T) {
			b := newRigWith(t, &nbd.Server{InFlight: 4 << 20})
			b.main.WriteAt(pattern(1, 1<<20), 0)
			c := b.structuredTransmission(t, "main")
			many := bytes.Repeat(request, 10_000)
			c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
			sent := 0
			for sent < 200<<20 {
				n, err := c.Write(many)
				sent += n
				if err != nil {
					break
				}
			}
			if sent >= 200<<20 {
				t.Errorf("the server took %d bytes of requests, and the client read nothing", sent)
			}
			var mem runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&mem)
			if held := mem.HeapAlloc; held > mainSize+200<<20 {
				t.Errorf("%d bytes of heap in use", held)
			}
			b.transmission(t, "ro").alive()
			c.Close()
			waitFor(t, "the connection is gone", func() bool { return b.shelf.leftOpen() <= 1 })
		})
	}
}

// TestAllRequestsBeforeTheFirstReply: a client may send all it has before it
// reads a reply, when that fits the bound in flight.
func TestAllRequestsBeforeTheFirstReply(t *testing.T) {
	b := newRig(t)
	want := pattern(1, 16<<20)
	b.main.WriteAt(want, 0)
	c := b.transmission(t, "main")
	for i := range uint64(40) {
		c.send(requestBytes(cmdRead, 0, i, i<<18, 1<<18))
	}
	for i := range uint64(2000) { // more than a socket holds
		c.send(requestBytes(cmdWrite, 0, 1000+i, 32<<20+i*4096, 4096), pattern(int64(i), 4096))
	}
	for range 2040 {
		cookie, errno := c.simple()
		if errno != 0 {
			t.Fatalf("cookie %d: error %d", cookie, errno)
		}
		if cookie < 1000 && !bytes.Equal(c.read(1<<18), pattern(1, 16<<20)[cookie<<18:(cookie+1)<<18]) {
			t.Errorf("cookie %d: other bytes", cookie)
		}
	}
	if !bytes.Equal(c.get(32<<20, 4096), pattern(0, 4096)) {
		t.Error("the first write was lost")
	}
}

// TestHalfClose: a client that ends its side without DISC gets its replies.
func TestHalfClose(t *testing.T) {
	b := newRig(t)
	c := b.transmission(t, "main")
	c.send(requestBytes(cmdTrim, 0, 1, 0, 1<<20), requestBytes(cmdFlush, 0, 2, 0, 0))
	if err := c.Conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, errno := c.simple(); errno != 0 {
			t.Errorf("error %d", errno)
		}
	}
	c.closed()
}

// TestNoGoroutineIsLeft after connections of every fate.
func TestNoGoroutineIsLeft(t *testing.T) {
	b := newRig(t)
	b.transmission(t, "main").alive()
	before := runtime.NumGoroutine()
	for i := range 30 {
		c := b.structuredTransmission(t, "main")
		for k := range uint64(8) {
			c.send(requestBytes(cmdRead, 0, k, 0, 1<<20), requestBytes(cmdTrim, 0, k, 0, 4096))
		}
		switch i % 3 {
		case 0:
			c.send(requestBytes(cmdDisc, 0, 0, 0, 0))
			drain(c)
		case 1:
			c.send([]byte("nonsense that is longer than a request"))
		}
		c.Close()
	}
	waitFor(t, "the sessions' goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}
