package nbd_test

import (
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// TestRandomStreams: a hundred thousand clients that send random bytes, from the
// first or after a good handshake, leave the server up, its memory bounded and
// nothing behind.
func TestRandomStreams(t *testing.T) {
	count := 100_000
	if testing.Short() {
		count = 2000
	}
	s := newShelf(
		nbd.Export{Name: "", Device: nbdtest.NewMemory(64 << 10)},
		nbd.Export{Name: "ro", Device: nbdtest.NewMemory(8 << 10), ReadOnly: true},
	)
	before := runtime.NumGoroutine()
	server := &nbd.Server{List: s.List, Open: s.Open, InFlight: 1 << 20, Log: discard}
	l := newMemoryListener()
	served := make(chan error, 1)
	go func() { served <- server.Serve(t.Context(), l) }()
	seed := uint64(1)
	if os.Getenv("SEEDS") != "" { // make soak
		seed = uint64(time.Now().UnixNano())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	})
	var all sync.WaitGroup
	const side = 4
	for worker := range side {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(worker)))
			for range count / side {
				ours, theirs := memoryPipe()
				l.conns <- untimed{theirs}
				stream := randomStream(r)
				go func() {
					ours.Write(stream)
					ours.CloseWrite()
				}()
				if _, err := io.Copy(io.Discard, ours); err != nil && err != io.ErrClosedPipe {
					t.Errorf("read: %v", err)
				}
				ours.Close()
			}
		})
	}
	all.Wait()
	var mem runtime.MemStats
	runtime.GC() // buffers in pools live through one collection
	runtime.GC()
	runtime.ReadMemStats(&mem)
	if mem.HeapAlloc > 64<<20 {
		t.Errorf("%d bytes of heap are in use", mem.HeapAlloc)
	}
	if got := converse(t, conversations()[2]); len(got) < 100 {
		t.Error("no answer to a good client")
	}
	if err := server.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	<-served
	if n := s.leftOpen(); n != 0 {
		t.Errorf("%d exports are left open", n)
	}
	waitFor(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
}

// untimed is a connection without deadlines. The timers of a pipe's would hold
// it for as long as they run, and with it the memory that is measured.
type untimed struct{ *memoryConn }

func (untimed) SetDeadline(time.Time) error      { return nil }
func (untimed) SetReadDeadline(time.Time) error  { return nil }
func (untimed) SetWriteDeadline(time.Time) error { return nil }

// randomStream is what a bad client may send: a good beginning of random length,
// or none, then pieces of good streams and random bytes by turns.
func randomStream(r *rand.Rand) []byte {
	var p []byte
	good := conversations()
	switch r.IntN(4) {
	case 0: // random from the first byte
	case 1:
		p = wire(uint32(3))
	default:
		p = entrance(r.IntN(3))
	}
	for range 1 + r.IntN(6) {
		piece := good[r.IntN(len(good))]
		from := r.IntN(len(piece))
		piece = append([]byte(nil), piece[from:from+r.IntN(len(piece)-from)]...)
		for range r.IntN(4) {
			if len(piece) > 0 {
				piece[r.IntN(len(piece))] = byte(r.Uint32())
			}
		}
		if r.IntN(3) == 0 {
			for i := range piece {
				piece[i] = byte(r.Uint32())
			}
		}
		p = append(p, piece...)
	}
	return p
}
