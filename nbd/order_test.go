package nbd_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// slowly is a device whose calls give way to others in the middle.
type slowly struct{ *nbdtest.Memory }

func (d slowly) giveWay(n int) {
	for range n % 7 {
		runtime.Gosched()
	}
}

func (d slowly) ReadAt(p []byte, off int64) (int, error) {
	half := len(p) / 2
	n, err := d.Memory.ReadAt(p[:half], off)
	if err != nil {
		return n, err
	}
	d.giveWay(len(p))
	m, err := d.Memory.ReadAt(p[half:], off+int64(half))
	return n + m, err
}

func (d slowly) WriteAt(p []byte, off int64) (int, error) {
	half := len(p) / 2
	n, err := d.Memory.WriteAt(p[:half], off)
	if err != nil {
		return n, err
	}
	d.giveWay(len(p))
	m, err := d.Memory.WriteAt(p[half:], off+int64(half))
	return n + m, err
}

func (d slowly) WriteZeroes(off, n int64) error {
	d.giveWay(int(n))
	return d.Memory.WriteZeroes(off, n)
}

// TestOverlappingRequestsKeepTheirOrder: a client that does not wait for replies
// sees what it would see if it did.
func TestOverlappingRequestsKeepTheirOrder(t *testing.T) {
	const size, count = 1 << 20, 400
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			s := newShelf(nbd.Export{Name: "x", Device: slowly{nbdtest.NewMemory(size)}})
			c := dial(t, "unix", serve(t, &nbd.Server{Open: s.Open})).greet(3)
			if seed%2 == 0 {
				c.agreeStructured()
			}
			c.goTo("x")
			r := rand.New(rand.NewPCG(seed, 1))
			model := make([]byte, size)
			var stream []byte
			want := map[uint64][]byte{}   // of the reads, by cookie
			ranges := map[uint64]uint64{} // their offsets
			for cookie := range uint64(count) {
				off := uint64(r.IntN(size / 2))
				n := uint32(1 + r.IntN(200_000))
				if r.IntN(2) == 0 {
					n = uint32(1 + r.IntN(9000))
				}
				switch r.IntN(6) {
				case 0, 1:
					p := pattern(int64(cookie), int64(n))
					copy(model[off:], p)
					stream = append(append(stream, requestBytes(cmdWrite, 0, cookie, off, n)...), p...)
				case 2:
					p := pattern(int64(cookie), int64(n))
					copy(model[off:], p)
					stream = append(append(stream, requestBytes(cmdWrite, fFUA, cookie, off, n)...), p...)
				case 3:
					clear(model[off : off+uint64(n)])
					stream = append(stream, requestBytes(cmdZeroes, 0, cookie, off, n)...)
				default:
					want[cookie] = bytes.Clone(model[off : off+uint64(n)])
					ranges[cookie] = off
					stream = append(stream, requestBytes(cmdRead, 0, cookie, off, n)...)
				}
			}
			go c.Write(stream)
			got := map[uint64][]chunk{}
			for range count {
				if !c.structured {
					cookie, errno := c.simple()
					if errno != 0 {
						t.Fatalf("cookie %d: error %d", cookie, errno)
					}
					if w, ok := want[cookie]; ok && !bytes.Equal(c.read(len(w)), w) {
						t.Errorf("READ %d: bytes of another moment", cookie)
					}
					continue
				}
				cookie := c.structuredOrSimple(got)
				if w, ok := want[cookie]; ok && !bytes.Equal(c.assemble(got[cookie], ranges[cookie], uint32(len(w))), w) {
					t.Errorf("READ %d: bytes of another moment", cookie)
				}
			}
			if !bytes.Equal(c.get(0, size), model) {
				t.Error("the device ends up different from the model")
			}
		})
	}
}

// structuredOrSimple reads replies until one is whole, gathers its chunks, and
// returns its cookie.
func (c *rawClient) structuredOrSimple(got map[uint64][]chunk) uint64 {
	c.Helper()
	for {
		head := c.read(16)
		if be32(head) == wireSimpleMagic {
			if errno := be32(head[4:]); errno != 0 {
				c.Fatalf("cookie %d: error %d", be64(head[8:]), errno)
			}
			return be64(head[8:])
		}
		rest := c.read(4)
		k := chunk{be16(head[6:]), be16(head[4:]) == 1, be64(head[8:]), c.read(int(be32(rest)))}
		got[k.cookie] = append(got[k.cookie], k)
		if k.done {
			return k.cookie
		}
	}
}

// TestFlushFollowsTheWrite: FUA flushes after its own write, FLUSH after all
// writes that were answered, on any connection.
func TestFlushFollowsTheWrite(t *testing.T) {
	var written, flushed atomic.Int64
	m := nbdtest.NewMemory(1 << 20)
	m.Faults.Write = func(off, n int64) error { written.Add(1); return nil }
	m.Faults.Zero = func(off, n int64) error { written.Add(1); return nil }
	m.Faults.Flush = func() error { flushed.Store(written.Load()); return nil }
	s := newShelf(nbd.Export{Name: "x", Device: m})
	path := serve(t, &nbd.Server{Open: s.Open})
	a, b := dial(t, "unix", path).greet(3), dial(t, "unix", path).greet(3)
	a.goTo("x")
	b.goTo("x")
	for i, act := range []func(){
		func() { a.expect(0, cmdWrite, fFUA, 0, 4, 1, 2, 3, 4) },
		func() { a.expect(0, cmdWrite, fFUA, 0, 100_000, make([]byte, 100_000)...) },
		func() { a.expect(0, cmdZeroes, fFUA, 0, 4096) },
		func() { a.expect(0, cmdZeroes, fFUA|fNoHole, 0, 4096) },
		func() { a.expect(0, cmdTrim, fFUA, 0, 4096) },
		func() { a.expect(0, cmdWrite, 0, 0, 4, 1, 2, 3, 4); a.expect(0, cmdFlush, 0, 0, 0) },
		func() { a.expect(0, cmdWrite, 0, 0, 4, 1, 2, 3, 4); b.expect(0, cmdFlush, 0, 0, 0) }, // T38
	} {
		act()
		if w := written.Load(); w == 0 || flushed.Load() != w {
			t.Errorf("case %d: %d writes, %d of them flushed", i, w, flushed.Load())
		}
	}
}

// TestSlowDeviceIsAskedInParallel: when reads turn out to take long, the reader
// stops to serve them one by one.
func TestSlowDeviceIsAskedInParallel(t *testing.T) {
	var now, most atomic.Int32
	m := nbdtest.NewMemory(64 << 20)
	m.Faults.Read = func(off, n int64) error {
		for n := now.Add(1); ; {
			if seen := most.Load(); n <= seen || most.CompareAndSwap(seen, n) {
				break
			}
		}
		<-time.After(300 * time.Microsecond) // a slow disk
		now.Add(-1)
		return nil
	}
	s := newShelf(nbd.Export{Name: "x", Device: m})
	c := dial(t, "unix", serve(t, &nbd.Server{Open: s.Open})).greet(3)
	c.goTo("x")
	waitFor(t, "many reads are under way at a time", func() bool {
		var all []byte
		for i := range uint64(64) {
			all = append(all, requestBytes(cmdRead, 0, i, i*4096, 4096)...)
		}
		c.send(all)
		for range 64 {
			if _, errno := c.simple(); errno != 0 {
				t.Fatalf("error %d", errno)
			}
			c.read(4096)
		}
		return most.Load() >= 4
	})
}

// TestBlockedRequestsDoNotHoldUpOthers: what waits for a network, a flush, or
// a large request that hangs, leaves the rest of the connection running.
func TestBlockedRequestsDoNotHoldUpOthers(t *testing.T) {
	for _, c := range []struct {
		name   string
		remote bool
		block  []byte // the request that hangs
		first  []byte // sent before it, in the same write
	}{
		{"flush", false, requestBytes(cmdFlush, 0, 1, 0, 0), nil},
		{"a read of a remote export", true, requestBytes(cmdRead, 0, 1, 0, 512), nil},
		{"trim", false, requestBytes(cmdTrim, 0, 1, 0, 4096), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			gate := make(chan struct{})
			var open sync.Once
			release := func() { open.Do(func() { close(gate) }) }
			m := nbdtest.NewMemory(1 << 20)
			hang := func(int64, int64) error { <-gate; return nil }
			m.Faults.Flush = func() error { <-gate; return nil }
			m.Faults.Zero = hang
			if c.remote {
				m.Faults.Read = hang
			}
			s := newShelf(nbd.Export{Name: "x", Device: m, Remote: c.remote})
			k := dial(t, "unix", serve(t, &nbd.Server{Open: s.Open})).greet(3)
			t.Cleanup(release)
			k.goTo("x")
			k.send(c.block)
			for range 100 {
				k.expectOther(cmdWrite, 8192, 4, 1, 2, 3, 4)
			}
			release()
			if cookie, errno := k.simple(); cookie != 1 || errno != 0 {
				t.Errorf("the request that hung: cookie %d, error %d", cookie, errno)
			}
		})
	}
}

// expectOther sends a request and checks that its reply is the next one.
func (c *rawClient) expectOther(cmd uint16, off uint64, n uint32, p ...byte) {
	c.Helper()
	c.request(cmd, 0, 1000, off, n, p...)
	if cookie, errno := c.simple(); cookie != 1000 || errno != 0 {
		c.Fatalf("cookie %d, error %d", cookie, errno)
	}
}
