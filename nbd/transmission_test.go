package nbd_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// TestFlags holds the server to the statements F of the checklist.
func TestFlags(t *testing.T) {
	b := newRig(t)
	c := b.dial(t).greet(3)
	_, simple := c.goTo("main")
	c = b.dial(t).greet(3)
	c.agreeStructured()
	_, structured := c.goTo("main")
	for _, f := range []struct {
		id    string
		flags uint16
		bit   int
		want  bool
	}{
		{"F01 HAS_FLAGS", simple, 0, true},
		{"R01 READ_ONLY is clear on a writable export", simple, 1, false},
		{"F02 SEND_DF without structured replies", simple, 7, false},
		{"F02 SEND_DF with structured replies", structured, 7, true},
		{"F03 F05 FAST_ZERO", simple, 11, true},
		{"F04 SEND_FLUSH", simple, 2, true},
		{"F04 SEND_FUA", simple, 3, true},
		{"F05 SEND_TRIM", simple, 5, true},
		{"F03 F05 SEND_WRITE_ZEROES", simple, 6, true},
		{"F06 CAN_MULTI_CONN", simple, 8, true},
		{"F07 SEND_CACHE", simple, 10, true},
	} {
		if got := f.flags&(1<<f.bit) != 0; got != f.want {
			t.Errorf("%s: %v, want %v", f.id, got, f.want)
		}
	}
}

// TestTransmission holds the server to the statements T of the checklist, with
// simple and with structured replies and with extended headers.
func TestTransmission(t *testing.T) {
	b := newRig(t)
	for _, mode := range []struct {
		name string
		dial func(testing.TB, string) *rawClient
	}{{"simple", b.transmission}, {"structured", b.structuredTransmission}, {"extended", b.extendedTransmission}} {
		for _, c := range transmissionStatements {
			t.Run(mode.name+"/"+c.id, func(t *testing.T) {
				open := func() *rawClient { return mode.dial(t, "main") }
				c.test(t, open(), open)
			})
		}
	}
	if n := b.main.Size(); n != mainSize {
		t.Errorf("T06: the export has %d bytes now, had %d", n, mainSize)
	}
}

var transmissionStatements = []struct {
	id   string
	test func(t *testing.T, c *rawClient, open func() *rawClient)
}{
	{"T01 write then read back", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		want := pattern(1, 10_000)
		c.expect(0, cmdWrite, 0, 12_345, 10_000, want...)
		if !bytes.Equal(c.get(12_345, 10_000), want) {
			t.Error("read back other bytes")
		}
	}},
	{"T02 64 pipelined reads are answered once each", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		want := pattern(2, 64*4096)
		c.expect(0, cmdWrite, 0, 0, 64*4096, want...)
		var all []byte
		for i := range uint64(64) {
			all = append(all, c.header(cmdRead, 0, i, i*4096, 4096)...)
		}
		c.send(all)
		c.readMany(t, 64, func(cookie uint64) (uint64, uint32) { return cookie * 4096, 4096 }, want)
	}},
	{"T03 one cookie twice in flight", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.send(c.header(cmdRead, 0, 9, 0, 512), c.header(cmdRead, 0, 9, 0, 512))
		for range 2 {
			c.readOne(9, 0, 512)
		}
		c.alive()
	}},
	{"T04 T05 reads past and across the end", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.expect(eINVAL, cmdRead, 0, mainSize, 1)
		c.expect(eINVAL, cmdRead, 0, mainSize+4096, 4096)
		c.expect(eINVAL, cmdRead, 0, mainSize-512, 1024)
		c.alive()
	}},
	{"T06 write past the end", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		before := c.get(mainSize-512, 512)
		c.expect(eNOSPC, cmdWrite, 0, mainSize, 4096, make([]byte, 4096)...)
		c.expect(eNOSPC, cmdWrite, 0, mainSize-512, 1024, pattern(1, 1024)...)
		c.expect(eNOSPC, cmdWrite, 0, mainSize-512, 1<<20, pattern(1, 1<<20)...)
		if !bytes.Equal(c.get(mainSize-512, 512), before) {
			t.Error("a refused write changed bytes")
		}
		c.alive()
	}},
	{"T07 offsets that wrap around", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		for _, off := range []uint64{math.MaxUint64, math.MaxUint64 - 511, 1 << 63, math.MaxInt64, math.MaxInt64 - 511} {
			c.expect(eINVAL, cmdRead, 0, off, 1024)
			c.expect(eINVAL, cmdTrim, 0, off, 1024)
			c.expect(eNOSPC, cmdWrite, 0, off, 4, 1, 2, 3, 4)
			c.expect(eNOSPC, cmdZeroes, 0, off, math.MaxUint32)
		}
		c.alive()
	}},
	{"T08 T09 unknown commands, with a length and without", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		for _, cmd := range []uint16{8, 9, 100, 0xffff} {
			c.expect(eINVAL, cmd, 0, 0, 0)
			c.expect(eINVAL, cmd, 0, 0, 4096)
		}
		c.alive()
	}},
	{"T10 T11 unknown command flags", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		for bit := 5; bit < 16; bit++ {
			if c.extended && 1<<bit == fPayload {
				continue // E04
			}
			c.expect(eINVAL, cmdRead, 1<<bit, 0, 512)
			c.expect(eINVAL, cmdWrite, 1<<bit, 0, 4, 1, 2, 3, 4)
		}
		c.alive()
	}},
	{"T12 flags of other commands", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		for cmd, flags := range map[uint16][]uint16{
			cmdRead:   {fNoHole, fReqOne, fFast},
			cmdWrite:  {fNoHole, fDF, fReqOne, fFast},
			cmdFlush:  {fNoHole, fDF, fReqOne, fFast},
			cmdTrim:   {fNoHole, fDF, fReqOne, fFast},
			cmdCache:  {fNoHole, fDF, fReqOne, fFast},
			cmdZeroes: {fDF, fReqOne},
			cmdStatus: {fNoHole, fDF, fFast},
		} {
			for _, f := range flags {
				c.expect(eINVAL, cmd, f, 0, 4, map[bool][]byte{true: {1, 2, 3, 4}}[cmd == cmdWrite]...)
			}
		}
		c.alive()
	}},
	{"T13 DF without structured replies", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		if !c.structured {
			c.expect(eINVAL, cmdRead, fDF, 0, 512)
		}
		c.alive()
	}},
	{"T14 T15 FLUSH, with any offset and length", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.expect(0, cmdFlush, 0, 0, 0)
		c.expect(0, cmdFlush, 0, 4096, 4096)
		c.expect(0, cmdFlush, 0, math.MaxUint64, math.MaxUint32)
		c.alive()
	}},
	{"T16 T17 FUA on every command", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.expect(0, cmdWrite, fFUA, 0, 512, pattern(3, 512)...)
		c.send(c.header(cmdRead, fFUA, 3, 0, 512))
		if !bytes.Equal(c.readOne(3, 0, 512), pattern(3, 512)) {
			t.Error("read back other bytes")
		}
		c.expect(0, cmdFlush, fFUA, 0, 0)
		c.expect(0, cmdTrim, fFUA, 0, 4096)
		c.expect(0, cmdZeroes, fFUA, 0, 4096)
		c.expect(0, cmdCache, fFUA, 0, 4096)
		c.alive()
	}},
	{"T18 T19 TRIM of all, and past the end", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.expect(0, cmdTrim, 0, 0, mainSize)
		c.expect(eINVAL, cmdTrim, 0, mainSize-4096, 8192)
		c.alive()
	}},
	{"T20 T21 WRITE_ZEROES of 3000 bytes keeps the neighbours", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		want := pattern(4, 16<<10)
		c.expect(0, cmdWrite, 0, 0, 16<<10, want...)
		c.expect(0, cmdZeroes, 0, 5000, 3000)
		clear(want[5000:8000])
		if !bytes.Equal(c.get(0, 16<<10), want) {
			t.Error("WRITE_ZEROES left other bytes")
		}
	}},
	{"T22 WRITE_ZEROES with NO_HOLE", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.expect(0, cmdWrite, 0, 0, 4096, pattern(5, 4096)...)
		c.expect(0, cmdZeroes, fNoHole, 0, 1<<20+1)
		if !bytes.Equal(c.get(0, 4096), make([]byte, 4096)) {
			t.Error("bytes are left")
		}
	}},
	{"T23 FAST_ZERO", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.expect(0, cmdZeroes, fFast, 0, 1<<20)
		c.expect(eNOTSUP, cmdZeroes, fFast|fNoHole, 0, 1<<20)
		c.alive()
	}},
	{"T24 WRITE_ZEROES past the end", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.expect(eNOSPC, cmdZeroes, 0, mainSize-4096, 8192)
		c.alive()
	}},
	{"T25 WRITE_ZEROES of 64 MiB", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.expect(0, cmdWrite, 0, 64<<20-5, 10, pattern(6, 10)...)
		c.expect(0, cmdZeroes, 0, 0, 64<<20)
		if want := append(make([]byte, 5), pattern(6, 10)[5:]...); !bytes.Equal(c.get(64<<20-5, 10), want) {
			t.Error("the end of the range is wrong")
		}
	}},
	{"T26 CACHE", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.expect(0, cmdCache, 0, 0, mainSize)
		c.expect(0, cmdCache, 0, 12_345, 6789)
		c.expect(eINVAL, cmdCache, 1<<9, 0, 4096)
		c.expect(eINVAL, cmdCache, 0, mainSize, 1)
		c.alive()
	}},
	{"T27 T28 requests of length zero", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.send(c.header(cmdRead, 0, 4, 0, 0))
		c.readOne(4, 0, 0)
		c.expect(0, cmdWrite, 0, 0, 0)
		c.expect(0, cmdTrim, 0, 0, 0)
		c.expect(0, cmdZeroes, 0, mainSize, 0)
		c.expect(0, cmdCache, 0, 0, 0)
		c.alive()
	}},
	{"T29 a wrong request magic is a hard disconnect", func(t *testing.T, c *rawClient, open func() *rawClient) {
		p := c.header(cmdRead, 0, 1, 0, 512)
		p[0]++
		c.send(p)
		c.closed()
		open().alive()
	}},
	{"T30 DISC has no reply", func(t *testing.T, c *rawClient, open func() *rawClient) {
		c.send(c.header(cmdDisc, 0, 1, 0, 0))
		c.closed()
		open().alive()
	}},
	{"T31 requests in flight are answered before DISC closes", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		want := pattern(7, 16<<20)
		c.expect(0, cmdWrite, 0, 0, 16<<20, want...)
		var all []byte
		for i := range uint64(16) {
			all = append(all, c.header(cmdRead, 0, i, i<<20, 1<<20)...)
		}
		c.send(all, c.header(cmdDisc, 0, 99, 0, 0))
		c.readMany(t, 16, func(cookie uint64) (uint64, uint32) { return cookie << 20, 1 << 20 }, want)
		c.closed()
	}},
	{"T32 32 MiB in one request", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		want := pattern(8, 32<<20)
		c.expect(0, cmdWrite, 0, 1, 32<<20, want...)
		if !bytes.Equal(c.get(1, 32<<20), want) {
			t.Error("read back other bytes")
		}
	}},
	{"T33 T34 more than 32 MiB in one request", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.expect(eINVAL, cmdRead, 0, 0, 64<<20)
		c.expect(eINVAL, cmdRead, 0, 0, 32<<20+1)
		if c.extended {
			return // E05
		}
		c.expect(eINVAL, cmdWrite, 0, 0, 64<<20, make([]byte, 64<<20)...)
		c.alive()
	}},
	{"T35 single bytes at odd offsets", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.expect(0, cmdWrite, 0, 4095, 3, 1, 2, 3)
		c.expect(0, cmdWrite, 0, 4096, 1, 9)
		if got := c.get(4095, 3); !bytes.Equal(got, []byte{1, 9, 3}) {
			t.Errorf("got %v", got)
		}
	}},
	{"T36 abrupt close in a write", func(t *testing.T, c *rawClient, open func() *rawClient) {
		old := pattern(9, 1<<20)
		c.expect(0, cmdWrite, 0, 0, 1<<20, old...)
		for _, n := range []uint32{4096, 1 << 20} {
			d := open()
			d.send(d.header(cmdWrite, 0, 1, 0, uint64(n)), make([]byte, n/2))
			d.Close()
		}
		got := c.get(0, 1<<20)
		if !bytes.Equal(got[:4096], old[:4096]) && !isZero(got[:4096]) || !bytes.Equal(got[1<<19:], old[1<<19:]) {
			t.Error("half a block was written, or more than was sent")
		}
		for at := 4096; at < 1<<19; at += 4096 {
			if block := got[at : at+4096]; !bytes.Equal(block, old[at:at+4096]) && !isZero(block) {
				t.Errorf("the block at %d is neither old nor new", at)
			}
		}
		open().alive()
	}},
	{"T37 16 connections at once", func(t *testing.T, _ *rawClient, open func() *rawClient) {
		var all sync.WaitGroup
		for i := range uint64(16) {
			c := open()
			all.Go(func() {
				want := pattern(int64(i), 1<<20)
				for off := uint64(0); off < 1<<20; off += 64 << 10 {
					c.request(cmdWrite, 0, off, i<<20+off, 64<<10, want[off:off+64<<10]...)
				}
				for range 16 {
					if _, errno := c.simple(); errno != 0 {
						t.Errorf("connection %d: error %d", i, errno)
					}
				}
				if !bytes.Equal(c.get(i<<20, 1<<20), want) {
					t.Errorf("connection %d reads other bytes", i)
				}
			})
		}
		all.Wait()
	}},
	{"T38 write and flush on A are seen on B at once", func(t *testing.T, a *rawClient, open func() *rawClient) {
		b := open()
		for i := range int64(20) {
			a.expect(0, cmdWrite, 0, 0, 4096, pattern(i, 4096)...)
			a.expect(0, cmdFlush, 0, 0, 0)
			if !bytes.Equal(b.get(0, 4096), pattern(i, 4096)) {
				t.Fatal("B reads other bytes")
			}
		}
	}},
	{"T39 a request byte by byte", func(t *testing.T, c *rawClient, _ func() *rawClient) {
		c.expect(0, cmdWrite, 0, 0, 512, pattern(10, 512)...)
		for _, one := range append(c.header(cmdWrite, 0, 7, 8, 3), 1, 2, 3) {
			c.send([]byte{one})
		}
		if _, errno := c.simple(); errno != 0 {
			t.Errorf("error %d", errno)
		}
		for _, one := range c.header(cmdRead, 0, 8, 0, 512) {
			c.send([]byte{one})
		}
		want := pattern(10, 512)
		copy(want[8:], []byte{1, 2, 3})
		if !bytes.Equal(c.readOne(8, 0, 512), want) {
			t.Error("read back other bytes")
		}
	}},
	{"T40 64 replies of 256 KiB that nobody reads for a while", func(t *testing.T, c *rawClient, open func() *rawClient) {
		want := pattern(11, 16<<20)
		c.expect(0, cmdWrite, 0, 0, 16<<20, want...)
		for i := range uint64(64) {
			c.send(c.header(cmdRead, 0, i, i*256<<10, 256<<10))
		}
		open().alive()
		c.readMany(t, 64, func(cookie uint64) (uint64, uint32) { return cookie * 256 << 10, 256 << 10 }, want)
		c.alive()
	}},
}

// readOne reads the reply to one READ in either shape.
func (c *rawClient) readOne(cookie, off uint64, n uint32) []byte {
	c.Helper()
	if c.structured {
		return c.assemble(c.chunks(cookie), off, n)
	}
	got, errno := c.simple()
	if got != cookie || errno != 0 {
		c.Fatalf("reply for cookie %d, error %d, want cookie %d", got, errno, cookie)
	}
	return c.read(int(n))
}

// readMany reads the replies to count READs in any order and compares them with
// the bytes of want at the range that belongs to a cookie.
func (c *rawClient) readMany(t *testing.T, count int, ranges func(cookie uint64) (uint64, uint32), want []byte) {
	t.Helper()
	got := map[uint64][]chunk{}
	answered := map[uint64]bool{}
	check := func(cookie uint64, p []byte) {
		off, n := ranges(cookie)
		if answered[cookie] {
			t.Errorf("cookie %d is answered twice", cookie)
		}
		answered[cookie] = true
		if !bytes.Equal(p, want[off:off+uint64(n)]) {
			t.Errorf("cookie %d: other bytes", cookie)
		}
	}
	for len(answered) < count {
		if !c.structured {
			cookie, errno := c.simple()
			if errno != 0 {
				t.Fatalf("cookie %d: error %d", cookie, errno)
			}
			_, n := ranges(cookie)
			check(cookie, c.read(int(n)))
			continue
		}
		k := c.chunk()
		got[k.cookie] = append(got[k.cookie], k)
		if k.done {
			off, n := ranges(k.cookie)
			check(k.cookie, c.assemble(got[k.cookie], off, n))
		}
	}
}

// pattern makes n random bytes that depend on s alone; a longer pattern begins
// with a shorter one.
func pattern(s, n int64) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte(fmt.Appendf(nil, "%032x", s)[:32])).Read(p)
	return p
}

// TestReadOnly holds the server to the statements R of the checklist.
func TestReadOnly(t *testing.T) {
	b := newRig(t)
	c := b.dial(t).greet(3)
	if _, flags := c.goTo("ro"); flags&2 == 0 || flags&(1<<5|1<<6|1<<11) != 0 {
		t.Errorf("R01: flags %#x, want READ_ONLY without TRIM and WRITE_ZEROES", flags)
	}
	c.expect(ePERM, cmdWrite, 0, 0, 4096, make([]byte, 4096)...)     // R02
	c.expect(ePERM, cmdWrite, 0, 0, 1<<20, make([]byte, 1<<20)...)   // R02
	c.expect(ePERM, cmdTrim, 0, 0, 4096)                             // R03
	c.expect(ePERM, cmdZeroes, 0, 0, 4096)                           // R03
	c.expect(eINVAL, cmdWrite, 1<<9, 0, 4096, make([]byte, 4096)...) // R02
	c.alive()
	if got := c.get(0, 4096); !bytes.Equal(got, bytes.Repeat([]byte{7}, 4096)) {
		t.Error("R02, R03: the export has changed")
	}
}

// TestReadOnlyExportNeverReachesTheDevice: the export's own flag is enough.
func TestReadOnlyExportNeverReachesTheDevice(t *testing.T) {
	m := nbdtest.NewMemory(1 << 20)
	m.Faults.Write = func(off, n int64) error { t.Error("WriteAt was called"); return nil }
	m.Faults.Zero = func(off, n int64) error { t.Error("WriteZeroes was called"); return nil }
	m.Faults.Flush = func() error { t.Error("Flush was called"); return nil }
	s := newShelf(nbd.Export{Name: "x", Device: m, ReadOnly: true})
	c := dial(t, "unix", serve(t, &nbd.Server{Open: s.Open})).greet(3)
	c.goTo("x")
	c.expect(ePERM, cmdWrite, fFUA, 0, 4, 1, 2, 3, 4)
	c.expect(ePERM, cmdTrim, fFUA, 0, 4096)
	c.expect(ePERM, cmdZeroes, fNoHole, 0, 4096)
	c.expect(0, cmdFlush, 0, 0, 0)
}

// waitFor waits until ok holds.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not so after %v", what, patience)
		}
		yield()
	}
}
