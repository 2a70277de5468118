package nbd_test

import (
	"bytes"
	"testing"
	"time"

	"varve/nbd"
)

// TestBadClientsAreNotNoticed: clients that read nothing, and clients that send
// half a payload, hold all the memory that there is for everybody. Others go on:
// small requests at once, large ones when the bad clients have been dropped.
func TestBadClientsAreNotNoticed(t *testing.T) {
	b := newRigWith(t, &nbd.Server{InFlight: 4 << 20, TotalInFlight: 8 << 20, StallTimeout: 200 * time.Millisecond})
	want := pattern(1, 4<<20)
	b.main.WriteAt(want, 0)
	b.main.Faults.Write = func(off, n int64) error { time.Sleep(time.Millisecond); return nil } // slow: whole payloads are taken in
	var bad []*rawClient
	for i := range 24 {
		c := b.transmission(t, "main")
		bad = append(bad, c)
		if i%2 == 0 {
			for range 64 {
				c.send(requestBytes(cmdRead, 0, 1, 0, 256<<10))
			}
		} else {
			c.send(requestBytes(cmdWrite, fFUA, 1, 0, 2<<20), make([]byte, 1000))
		}
	}
	small := b.transmission(t, "main")
	slowest := time.Duration(0)
	for i := range uint64(2000) {
		began := time.Now()
		if !bytes.Equal(small.get(i%512*4096, 4096), want[i%512*4096:][:4096]) {
			t.Fatal("other bytes")
		}
		slowest = max(slowest, time.Since(began))
	}
	if slowest > 5*time.Second {
		t.Errorf("a small read took %v beside bad clients", slowest)
	}
	large := b.transmission(t, "main")
	for range 20 {
		if !bytes.Equal(large.get(0, 4<<20), want) {
			t.Fatal("other bytes")
		}
	}
	// The readers hold more than there is, so some of them are gone.
	waitFor(t, "a bad client is dropped", func() bool { return b.server.Connections() < len(bad)+2 })
	for _, c := range bad {
		c.Close()
	}
	waitFor(t, "the bad clients are gone", func() bool { return b.server.Connections() == 2 })
	if !bytes.Equal(large.get(0, 4<<20), want) {
		t.Error("other bytes")
	}
	small.alive()
}
