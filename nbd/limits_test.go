package nbd_test

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// badClients connects n clients that read nothing, and n that send half a
// payload, and returns when they hold all the memory that there is for
// everybody.
func badClients(t *testing.T, b *rig, n int) (bad []*rawClient) {
	t.Helper()
	for range n {
		reads, writes := b.transmission(t, "main"), b.transmission(t, "main")
		for range 64 {
			reads.send(requestBytes(cmdRead, 0, 1, 0, 256<<10))
		}
		writes.send(requestBytes(cmdWrite, fFUA, 1, 0, 2<<20), make([]byte, 1000))
		bad = append(bad, reads, writes)
	}
	waitFor(t, "there is no memory left", func() bool { return b.server.Waiting() > 0 })
	return bad
}

// TestBadClientsAreNotNoticed: small requests of others go on beside bad
// clients, though nobody is dropped.
func TestBadClientsAreNotNoticed(t *testing.T) {
	b := newRigWith(t, &nbd.Server{InFlight: 4 << 20, TotalInFlight: 8 << 20, StallTimeout: time.Hour})
	want := pattern(1, 4<<20)
	b.main.WriteAt(want, 0)
	bad := badClients(t, b, 12)
	small := b.transmission(t, "main")
	for i := range uint64(500) {
		n := []uint64{4096, 512 << 10}[i%2] // served by the reader, and by a worker
		if off := i % 512 * 4096; !bytes.Equal(small.get(off, uint32(n)), want[off:off+n]) {
			t.Fatal("other bytes")
		}
	}
	if n := b.server.Connections(); n != len(bad)+1 {
		t.Errorf("%d connections are left of %d", n, len(bad)+1)
	}
}

// TestBadClientsAreDropped: large requests of others go on when the bad clients
// have been dropped. A good client that is given no processor for the time would
// be dropped too, so the time is that of a bubble: it passes when nobody has
// anything to do.
func TestBadClientsAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		device := nbdtest.NewMemory(4 << 20)
		want := pattern(1, 4<<20)
		device.WriteAt(want, 0)
		s := newShelf(nbd.Export{Name: "main", Device: device})
		server := &nbd.Server{Open: s.Open, InFlight: 4 << 20, TotalInFlight: 8 << 20, Log: discard}
		l := newMemoryListener()
		served := make(chan error, 1)
		go func() { served <- server.Serve(t.Context(), l) }()
		connect := func() *rawClient {
			ours, theirs := memoryPipe()
			l.conns <- theirs
			c := (&rawClient{TB: t, Conn: ours}).greet(3)
			c.goTo("main")
			return c
		}
		var bad []*rawClient
		for range 4 {
			reads, writes := connect(), connect()
			// Ended by Close, as they are never answered.
			go reads.Write(bytes.Repeat(requestBytes(cmdRead, 0, 1, 0, 256<<10), 64))
			go writes.Write(append(requestBytes(cmdWrite, fFUA, 1, 0, 2<<20), make([]byte, 1000)...))
			bad = append(bad, reads, writes)
		}
		large := connect()
		synctest.Wait()
		if server.Waiting() == 0 || server.Connections() != len(bad)+1 {
			t.Fatalf("%d wait for memory, %d connections", server.Waiting(), server.Connections())
		}
		for range 20 {
			if !bytes.Equal(large.get(0, 4<<20), want) {
				t.Fatal("other bytes")
			}
		}
		// The readers hold more than there is, so some of them are gone.
		if n := server.Connections(); n >= len(bad)+1 {
			t.Errorf("none of %d connections was dropped", n)
		}
		for _, c := range bad {
			c.Close()
		}
		synctest.Wait()
		if n := server.Connections(); n != 1 || !bytes.Equal(large.get(0, 4<<20), want) {
			t.Errorf("%d connections are left, want the good client's alone, or it has other bytes", n)
		}
		large.Close()
		if err := server.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		<-served
	})
}
