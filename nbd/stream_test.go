package nbd_test

import (
	"bytes"
	"syscall"
	"testing"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// TestLargeWriteArrivesInPieces: the payload of a large WRITE is written while
// it arrives, in whole blocks, and a client that stops in the middle holds
// nobody: others read what has come, write the same bytes and flush.
func TestLargeWriteArrivesInPieces(t *testing.T) {
	m := nbdtest.NewMemory(8 << 20)
	ends := make(chan int64, 1024)
	m.Faults.Write = func(off, n int64) error {
		ends <- off + n
		return nil
	}
	s := newShelf(nbd.Export{Name: "x", Device: m})
	path := serve(t, &nbd.Server{Open: s.Open})
	open := func() *rawClient {
		c := dial(t, "unix", path).greet(3)
		c.goTo("x")
		return c
	}
	const off, n, half = 1000, 4 << 20, 2 << 20
	p := pattern(1, n)
	slow := open()
	slow.send(requestBytes(cmdWrite, 0, 7, off, n), p[:half])
	written := int64(off)
	for written < off+half-64<<10 {
		if written = <-ends; written%4096 != 0 {
			t.Fatalf("a piece ends at %d, inside a block", written)
		}
	}
	other := open()
	if got := other.get(off, 4096); !bytes.Equal(got, p[:4096]) {
		t.Error("what has arrived is not written")
	}
	other.expect(0, cmdWrite, 0, off, 5, 1, 2, 3, 4, 5)
	<-ends
	other.expect(0, cmdFlush, 0, 0, 0)

	slow.send(p[half:])
	if cookie, errno := slow.simple(); cookie != 7 || errno != 0 {
		t.Errorf("reply to %d: error %d", cookie, errno)
	}
	copy(p, []byte{1, 2, 3, 4, 5})
	if !bytes.Equal(slow.get(off, n), p) {
		t.Error("the device reads other bytes than were written")
	}
}

// TestLargeWriteFailsInTheMiddle: the rest of the payload is read over, and the
// next request is understood.
func TestLargeWriteFailsInTheMiddle(t *testing.T) {
	m := nbdtest.NewMemory(8 << 20)
	m.Faults.Write = func(off, n int64) error {
		if off+n > 1<<20 {
			return syscall.ENOSPC
		}
		return nil
	}
	s := newShelf(nbd.Export{Name: "x", Device: m})
	c := dial(t, "unix", serve(t, &nbd.Server{Open: s.Open})).greet(3)
	c.goTo("x")
	p := pattern(1, 4<<20)
	c.expect(eNOSPC, cmdWrite, 0, 0, 4<<20, p...)
	if got := c.get(0, 64<<10); !bytes.Equal(got, p[:64<<10]) {
		t.Error("what was written before the error is lost")
	}
	c.alive()
}

// TestManyLargeReadsBeforeTheFirstReply: workers wait for a client that is
// behind with reading, but not when the reader waits for them.
func TestManyLargeReadsBeforeTheFirstReply(t *testing.T) {
	b := newRigWith(t, &nbd.Server{InFlight: 256 << 20})
	const n, count = 100 << 10, 600 // more than workers are given at a time
	want := pattern(1, n)
	b.main.WriteAt(want, 0)
	c := b.transmission(t, "main")
	for i := range uint64(count) {
		c.send(requestBytes(cmdRead, 0, i, 0, n))
	}
	for i := range uint64(2000) { // more than a socket holds
		c.send(requestBytes(cmdWrite, 0, count+i, 1<<20, 4096), want[:4096])
	}
	for range count + 2000 {
		cookie, errno := c.simple()
		if errno != 0 || cookie < count && !bytes.Equal(c.read(n), want) {
			t.Fatalf("cookie %d: error %d, or other bytes", cookie, errno)
		}
	}
}

func isZero(p []byte) bool { return bytes.Count(p, []byte{0}) == len(p) }
