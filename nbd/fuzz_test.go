package nbd_test

import (
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// memoryListener hands out the server's ends of in-memory connections.
type memoryListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func newMemoryListener() *memoryListener {
	return &memoryListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *memoryListener) Addr() net.Addr { return &net.UnixAddr{Name: "memory", Net: "unix"} }

// A memoryConn is one end of an in-memory connection whose directions end on
// their own, as a socket's do.
type memoryConn struct {
	net.Conn // read from
	out      net.Conn
}

func memoryPipe() (*memoryConn, *memoryConn) {
	a, b := net.Pipe()
	c, d := net.Pipe()
	return &memoryConn{a, d}, &memoryConn{c, b}
}

func (c *memoryConn) Write(p []byte) (int, error)         { return c.out.Write(p) }
func (c *memoryConn) CloseWrite() error                   { return c.out.Close() }
func (c *memoryConn) SetWriteDeadline(at time.Time) error { return c.out.SetWriteDeadline(at) }
func (c *memoryConn) SetDeadline(at time.Time) error {
	return errors.Join(c.SetReadDeadline(at), c.SetWriteDeadline(at))
}
func (c *memoryConn) Close() error { return errors.Join(c.Conn.Close(), c.out.Close()) }

// converse sends stream to a new server over an in-memory connection, reads all
// that comes back, and waits until the server has let go of everything.
func converse(t testing.TB, stream []byte) []byte {
	t.Helper()
	before := runtime.NumGoroutine()
	s := newShelf(
		nbd.Export{Name: "", Device: nbdtest.NewMemory(64 << 10)},
		nbd.Export{Name: "ro", Device: nbdtest.NewMemory(8 << 10), ReadOnly: true},
	)
	server := &nbd.Server{List: s.List, Open: s.Open, InFlight: 1 << 20, Log: discard}
	l := newMemoryListener()
	served := make(chan error, 1)
	go func() { served <- server.Serve(t.Context(), l) }()
	ours, theirs := memoryPipe()
	l.conns <- theirs
	ours.SetDeadline(time.Now().Add(patience))
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		ours.Write(stream)
		ours.CloseWrite()
	}()
	got, err := io.ReadAll(ours)
	if err != nil && err != io.ErrClosedPipe {
		t.Errorf("read: %v", err)
	}
	ours.Close()
	<-wrote
	if err := server.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	<-served
	if n := s.leftOpen(); n != 0 {
		t.Errorf("%d exports are left open", n)
	}
	waitFor(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
	return got
}

// The forms of headers and replies that a client may agree on.
const (
	formSimple = iota
	formStructured
	formExtended
)

// conversations are whole, valid streams of a client.
func conversations() [][]byte {
	return [][]byte{
		wire(uint32(3), optionBytes(optList, nil), optionBytes(optInfo, exportArgs("ro", 1, 2, 3)), optionBytes(optStartTLS, nil),
			optionBytes(99, []byte("unknown")), optionBytes(optAbort, nil)),
		wire(uint32(1), optionBytes(optExportName, []byte("ro")), requests(formSimple)),
		wire(entrance(formSimple), requests(formSimple)),
		wire(entrance(formStructured), requests(formStructured)),
		wire(entrance(formExtended), requests(formExtended)),
	}
}

func optionBytes(option uint32, data []byte) []byte {
	return wire(uint64(wireOptionMagic), option, uint32(len(data)), data)
}

// entrance is a handshake that agrees on a form and enters the default export.
func entrance(form int) []byte {
	hello := wire(uint32(3))
	switch form {
	case formStructured:
		return wire(hello, optionBytes(optStructured, nil), optionBytes(optListMeta, metaArgs("")),
			optionBytes(optSetMeta, metaArgs("", "base:allocation")), optionBytes(optGo, exportArgs("", 3)))
	case formExtended:
		return wire(hello, optionBytes(optExtended, nil), optionBytes(optSetMeta, metaArgs("", "base:allocation")),
			optionBytes(optGo, exportArgs("", 3)))
	}
	return wire(hello, optionBytes(optExportName, nil))
}

// requests is one of each command.
func requests(form int) []byte {
	c := rawClient{extended: form == formExtended, offsets: map[uint64]uint64{}}
	filter := []byte(nil)
	if c.extended {
		filter = wire(c.header(cmdStatus, fPayload, 15, 0, 12), uint64(4096), uint32(1))
	}
	return wire(
		c.header(cmdWrite, 0, 1, 100, 5), "bytes",
		c.header(cmdWrite, fFUA, 2, 60<<10, 3), "FUA",
		c.header(cmdRead, 0, 3, 0, 200),
		c.header(cmdRead, fDF, 4, 0, 64<<10),
		c.header(cmdFlush, 0, 5, 0, 0),
		c.header(cmdTrim, 0, 6, 0, 4096),
		c.header(cmdZeroes, fNoHole, 7, 1, 5000),
		c.header(cmdZeroes, fFast, 8, 0, 64<<10),
		c.header(cmdCache, 0, 9, 0, 64<<10),
		c.header(cmdStatus, 0, 10, 0, 64<<10),
		c.header(cmdStatus, fReqOne, 11, 5, 10),
		filter,
		c.header(cmdRead, 0, 12, 1<<40, 10),
		c.header(42, 0, 13, 0, 10),
		c.header(cmdDisc, 0, 14, 0, 0),
	)
}

// FuzzConversation: whatever a client sends, the server does not panic, hang,
// hold more memory than its bound or leave anything behind.
func FuzzConversation(f *testing.F) {
	for _, c := range conversations() {
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		if len(stream) > 1<<20 {
			return
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		converse(t, stream)
		runtime.ReadMemStats(&after)
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 256<<20 {
			t.Errorf("%d bytes were allocated for %d bytes of client", grown, len(stream))
		}
	})
}

// FuzzTransmission is FuzzConversation with a handshake that always succeeds, so
// that the requests are what varies.
func FuzzTransmission(f *testing.F) {
	for _, form := range []int{formSimple, formStructured, formExtended} {
		f.Add(form, requests(form))
	}
	f.Fuzz(func(t *testing.T, form int, stream []byte) {
		if len(stream) > 1<<20 {
			return
		}
		converse(t, wire(entrance(form), stream))
	})
}

// TestCutConversations: a client may vanish after any byte.
func TestCutConversations(t *testing.T) {
	b := newRigWith(t, &nbd.Server{MaxConnections: 10_000})
	for _, c := range conversations() {
		for n := range len(c) {
			conn := b.dial(t)
			conn.Write(c[:n])
			conn.Close()
		}
	}
	waitFor(t, "all sessions have ended", func() bool { return b.server.Connections() == 0 && b.shelf.leftOpen() == 0 })
	b.transmission(t, "main").alive()
}

// TestFlippedConversations: any byte may be wrong.
func TestFlippedConversations(t *testing.T) {
	b := newRig(t)
	for _, c := range conversations() {
		for i := range c {
			for _, flip := range []byte{0xff, 0x01, 0x80} {
				bad := append([]byte(nil), c...)
				bad[i] ^= flip
				conn := b.dial(t)
				conn.Write(bad)
				conn.Conn.(*net.UnixConn).CloseWrite()
				drain(conn)
				conn.Close()
			}
		}
	}
	waitFor(t, "all sessions have ended", func() bool { return b.server.Connections() == 0 && b.shelf.leftOpen() == 0 })
	b.transmission(t, "main").alive()
}

// TestConversationInMemory: the server needs no socket, and says the same
// without one.
func TestConversationInMemory(t *testing.T) {
	for i, c := range conversations() {
		if got := converse(t, c); len(got) < 100 {
			t.Errorf("conversation %d: answered with %d bytes", i, len(got))
		}
	}
}
