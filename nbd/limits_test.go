package nbd_test

import (
	"bytes"
	"testing"
	"time"

	"varve/nbd"
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
// have been dropped.
func TestBadClientsAreDropped(t *testing.T) {
	// A good client that is given no processor for this long is dropped too.
	b := newRigWith(t, &nbd.Server{InFlight: 4 << 20, TotalInFlight: 8 << 20, StallTimeout: 2 * time.Second})
	want := pattern(1, 4<<20)
	b.main.WriteAt(want, 0)
	bad := badClients(t, b, 4)
	large := b.transmission(t, "main")
	for range 20 {
		if !bytes.Equal(large.get(0, 4<<20), want) {
			t.Fatal("other bytes")
		}
	}
	// The readers hold more than there is, so some of them are gone.
	waitFor(t, "a bad client is dropped", func() bool { return b.server.Connections() < len(bad)+1 })
	for _, c := range bad {
		c.Close()
	}
	waitFor(t, "the bad clients are gone", func() bool { return b.server.Connections() == 1 })
	if !bytes.Equal(large.get(0, 4<<20), want) {
		t.Error("other bytes")
	}
}
