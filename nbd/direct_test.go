package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// socketPair is what a kernel is given one end of.
func socketPair(t *testing.T) (server *net.UnixConn, client *rawClient) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range pair {
		f := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { ends[i].Close() })
	}
	ends[1].SetDeadline(time.Now().Add(patience))
	return ends[0].(*net.UnixConn), &rawClient{TB: t, Conn: ends[1]}
}

// direct serves an export to a client that does not negotiate.
func direct(t *testing.T, e *nbd.Export) (*net.UnixConn, *rawClient, <-chan error) {
	conn, c := socketPair(t)
	ended := make(chan error, 1)
	go func() { ended <- (&nbd.Server{Log: discard}).ServeExport(context.Background(), conn, e) }()
	return conn, c, ended
}

// TestServeExport: V4. Requests come without a handshake, the client's leave is
// told from a broken connection, and a device that has grown is served whole.
func TestServeExport(t *testing.T) {
	m := &growing{Memory: nbdtest.NewMemory(2 << 20)}
	m.size.Store(1 << 20)
	closed := 0
	_, c, ended := direct(t, &nbd.Export{Name: "x", Device: m, Close: func() error { closed++; return nil }})
	c.expect(0, cmdWrite, 0, 4096, 4, 1, 2, 3, 4)
	if got := c.get(4096, 4); !bytes.Equal(got, []byte{1, 2, 3, 4}) {
		t.Errorf("read % x", got)
	}
	c.expect(eNOSPC, cmdWrite, 0, 1<<20, 4, 1, 2, 3, 4)
	m.size.Store(2 << 20)
	c.expect(0, cmdWrite, 0, 1<<20, 4, 1, 2, 3, 4)
	c.expect(eNOSPC, cmdWrite, 0, 2<<20, 4, 1, 2, 3, 4)
	c.request(cmdDisc, 0, 9, 0, 0)
	if err := <-ended; err != nil || closed != 1 {
		t.Errorf("after DISC: %v, closed %d times", err, closed)
	}

	_, c, ended = direct(t, &nbd.Export{Name: "x", Device: m})
	c.expect(0, cmdFlush, 0, 0, 0)
	c.Conn.Close()
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("after a cut: %v", err)
	}
}

// growing is a device whose size changes.
type growing struct {
	*nbdtest.Memory
	size atomic.Int64
}

func (g *growing) Size() int64 { return g.size.Load() }

// TestServeExportDrains: when the server's end is closed for reading, what was
// sent before is answered, without an error, and the call returns after the last
// request.
func TestServeExportDrains(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{}, 1)
	m := nbdtest.NewMemory(1 << 20)
	m.Faults.Zero = func(int64, int64) error { entered <- struct{}{}; <-gate; return nil }
	conn, c, ended := direct(t, &nbd.Export{Name: "x", Device: m})
	c.request(cmdTrim, 0, 1, 0, 4096)
	<-entered
	c.request(cmdRead, 0, 2, 8192, 4)
	conn.CloseRead()
	if _, err := c.Conn.Write([]byte{0}); err == nil {
		t.Error("the client can still send")
	}
	select {
	case err := <-ended:
		t.Fatalf("ended with %v while a request is at work", err)
	default:
	}
	close(gate)
	for range 2 {
		cookie, errno := c.simple()
		if errno != 0 {
			t.Errorf("request %d: error %d", cookie, errno)
		}
		if cookie == 2 {
			c.read(4)
		}
	}
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("ended with %v", err)
	}
}

func TestKernelFlags(t *testing.T) {
	const readOnly, flush, fua, trim, zeroes = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 6
	m := nbdtest.NewMemory(1 << 20)
	if got := nbd.KernelFlags(&nbd.Export{Device: m}); got&(readOnly|flush|fua|trim|zeroes) != flush|fua|trim|zeroes {
		t.Errorf("flags of a writable export: %#x", got)
	}
	if got := nbd.KernelFlags(&nbd.Export{Device: m, ReadOnly: true}); got&(readOnly|trim|zeroes) != readOnly {
		t.Errorf("flags of a read-only export: %#x", got)
	}
}
