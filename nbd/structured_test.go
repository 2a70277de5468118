package nbd_test

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

func yield() { runtime.Gosched() }

// TestStructuredReplies holds the server to the statements S of the checklist.
func TestStructuredReplies(t *testing.T) {
	b := newRig(t)
	for _, s := range []struct {
		id   string
		test func(t *testing.T, c *rawClient)
	}{
		{"S01 chunks cover the range, the last is done", func(t *testing.T, c *rawClient) {
			want := pattern(1, 1<<20)
			c.expect(0, cmdWrite, 0, 0, 1<<20, want...)
			for _, n := range []uint32{1, 512, 4096, 64 << 10, 64<<10 + 1, 1 << 20} {
				if !bytes.Equal(c.get(0, n), want[:n]) {
					t.Errorf("READ of %d bytes: other bytes", n)
				}
			}
		}},
		{"S02 S03 an error is a chunk with a message", func(t *testing.T, c *rawClient) {
			c.request(cmdRead, 0, 5, mainSize, 512)
			k := c.chunk()
			if k.kind != chunkError || !k.done || k.errno() != eINVAL || k.text() == "" {
				t.Errorf("READ past the end: %+v", k)
			}
			c.alive()
		}},
		{"S04 DF gives one content chunk", func(t *testing.T, c *rawClient) {
			c.expect(0, cmdTrim, 0, 0, mainSize)
			c.expect(0, cmdWrite, 0, 1<<20, 4096, pattern(2, 4096)...)
			for _, n := range []uint32{512, 4 << 20} {
				c.request(cmdRead, fDF, 5, 1<<20-256, n)
				content := 0
				chunks := c.chunks(5)
				for _, k := range chunks {
					if k.kind == chunkData || k.kind == chunkHole {
						content++
					}
				}
				if got := c.assemble(chunks, 1<<20-256, n); content != 1 || !bytes.Equal(got[256:512], pattern(2, 256)) {
					t.Errorf("%d content chunks, want 1", content)
				}
			}
		}},
		{"S05 zeros are holes, in large and in small reads", func(t *testing.T, c *rawClient) {
			c.expect(0, cmdTrim, 0, 0, mainSize)
			c.expect(0, cmdWrite, 0, 1<<20, 64<<10, pattern(3, 64<<10)...)
			c.expect(0, cmdZeroes, 0, 1<<20+32<<10, 16<<10)
			c.request(cmdRead, 0, 5, 0, 2<<20)
			chunks := c.chunks(5)
			var kinds []uint16
			sent := 0
			for _, k := range chunks {
				kinds = append(kinds, k.kind)
				sent += len(k.data)
			}
			want := make([]byte, 2<<20)
			copy(want[1<<20:], pattern(3, 64<<10))
			clear(want[1<<20+32<<10 : 1<<20+48<<10])
			if !bytes.Equal(c.assemble(chunks, 0, 2<<20), want) {
				t.Error("other bytes")
			}
			if len(kinds) != 5 || sent > 50<<10 {
				t.Errorf("chunks %v with %d bytes, want hole, data, hole, data, hole", kinds, sent)
			}
			c.request(cmdRead, 0, 6, 4096, 4096)
			if k := c.chunk(); k.kind != chunkHole || !k.done {
				t.Errorf("a small read of zeros: chunk %d", k.kind)
			}
		}},
		{"S06 an unknown flag on READ", func(t *testing.T, c *rawClient) {
			c.request(cmdRead, 1<<9, 5, 0, 512)
			if k := c.chunk(); k.errno() != eINVAL || !k.done {
				t.Errorf("%+v", k)
			}
			c.alive()
		}},
	} {
		t.Run(s.id, func(t *testing.T) { s.test(t, b.structuredTransmission(t, "main")) })
		t.Run("extended/"+s.id, func(t *testing.T) { s.test(t, b.extendedTransmission(t, "main")) })
	}
}

// TestFragmentedRead: however many holes there are, the reply is bounded and
// right.
func TestFragmentedRead(t *testing.T) {
	b := newRig(t)
	c := b.structuredTransmission(t, "main")
	want := make([]byte, 8<<20)
	for off := 0; off < len(want); off += 32 << 10 {
		copy(want[off:], pattern(int64(off), 4096))
		c.expect(0, cmdWrite, 0, uint64(off), 4096, want[off:off+4096]...)
	}
	for _, r := range []struct {
		off uint64
		n   uint32
	}{{0, 8 << 20}, {1, 8<<20 - 1}, {5000, 300_000}, {28 << 10, 100 << 10}} {
		if !bytes.Equal(c.get(r.off, r.n), want[r.off:r.off+uint64(r.n)]) {
			t.Errorf("READ [%d, +%d): other bytes", r.off, r.n)
		}
	}
}

// TestReadThatFailsHalfWay: what is good comes first, then where it ends.
func TestReadThatFailsHalfWay(t *testing.T) {
	d := &brokenAt{Memory: nbdtest.NewMemory(1 << 20), off: 300_000}
	d.WriteAt(pattern(1, 1<<20), 0)
	s := newShelf(nbd.Export{Name: "x", Device: d})
	path := serve(t, &nbd.Server{Open: s.Open})
	for _, n := range []uint32{60_000, 500_000} {
		c := dial(t, "unix", path).greet(3)
		c.agreeStructured()
		c.goTo("x")
		c.request(cmdRead, 0, 5, 270_000, n)
		chunks := c.chunks(5)
		if len(chunks) != 2 || chunks[0].kind != chunkData || chunks[1].kind != chunkErrorAt {
			t.Fatalf("READ of %d bytes: chunks %v, want data and an error at its offset", n, chunks)
		}
		if !bytes.Equal(chunks[0].data[8:], pattern(1, 1<<20)[270_000:300_000]) {
			t.Error("the good part has other bytes")
		}
		k := chunks[1]
		if at := be64(k.data[len(k.data)-8:]); at != 300_000 || k.errno() != eIO || k.text() != "bad sector" {
			t.Errorf("error %d %q at %d, want EIO, bad sector, 300000", k.errno(), k.text(), at)
		}
		c.expectRead(0, 100)
	}
	c := dial(t, "unix", path).greet(3)
	c.goTo("x")
	c.expect(eIO, cmdRead, 0, 270_000, 60_000)
	c.expectRead(0, 100)
}

func (c *rawClient) expectRead(off uint64, n uint32) {
	c.Helper()
	if !bytes.Equal(c.get(off, n), pattern(1, 1<<20)[off:off+uint64(n)]) {
		c.Errorf("READ [%d, +%d): other bytes", off, n)
	}
}

// brokenAt cannot be read from off on.
type brokenAt struct {
	*nbdtest.Memory
	off int64
}

func (d *brokenAt) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) <= d.off {
		return d.Memory.ReadAt(p, off)
	}
	n, _ := d.Memory.ReadAt(p[:max(d.off-off, 0)], off)
	return n, errors.New("bad sector")
}

// status asks for BLOCK_STATUS and returns length and state of each extent.
func (c *rawClient) status(flags uint16, off uint64, n uint32) [][2]uint32 {
	c.Helper()
	c.request(cmdStatus, flags, 6, off, n)
	chunks := c.chunks(6)
	if len(chunks) != 1 { // B01: one chunk a context
		c.Fatalf("BLOCK_STATUS: %v", chunks)
	}
	var all [][2]uint32
	for _, e := range c.extents(chunks[0]) {
		all = append(all, [2]uint32{uint32(e[0]), uint32(e[1])})
	}
	return all
}

// extents are the descriptors of a chunk of block status in the form that was
// agreed on.
func (c *rawClient) extents(k chunk) (all [][2]uint64) {
	c.Helper()
	switch {
	case !c.extended && k.kind == chunkStatus && len(k.data)%8 == 4:
		for p := k.data[4:]; len(p) > 0; p = p[8:] {
			all = append(all, [2]uint64{uint64(be32(p)), uint64(be32(p[4:]))})
		}
	case c.extended && k.kind == chunkStatusExt && len(k.data)%16 == 8 && int(be32(k.data[4:])) == len(k.data)/16:
		for p := k.data[8:]; len(p) > 0; p = p[16:] {
			all = append(all, [2]uint64{be64(p), be64(p[8:])})
		}
	default:
		c.Fatalf("BLOCK_STATUS: %+v", k)
	}
	return all
}

// TestBlockStatus holds the server to the statements B of the checklist.
func TestBlockStatus(t *testing.T) {
	b := newRig(t)
	b.main.WriteAt(pattern(1, 128<<10), 64<<10)
	b.main.WriteZeroes(96<<10, 32<<10)
	for _, s := range []struct {
		id   string
		test func(t *testing.T, transmission func(testing.TB, string) *rawClient)
	}{
		{"B01 B05 extents cover the range and tell data from zeros", func(t *testing.T, transmission func(testing.TB, string) *rawClient) {
			c := transmission(t, "main")
			want := [][2]uint32{{64 << 10, 3}, {32 << 10, 0}, {32 << 10, 3}, {64 << 10, 0}, {mainSize - 192<<10, 3}}
			if got := c.status(0, 0, mainSize); !equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
			want = [][2]uint32{{1, 0}, {32 << 10, 3}, {99, 0}}
			if got := c.status(0, 96<<10-1, 32<<10+100); !equal(got, want) {
				t.Errorf("unaligned: got %v, want %v", got, want)
			}
		}},
		{"B02 REQ_ONE gives one extent", func(t *testing.T, transmission func(testing.TB, string) *rawClient) {
			c := transmission(t, "main")
			for off, want := range map[uint64][2]uint32{0: {64 << 10, 3}, 64 << 10: {32 << 10, 0}, 70_000: {98304 - 70_000, 0}} {
				if got := c.status(fReqOne, off, 1<<20); len(got) != 1 || got[0] != want {
					t.Errorf("at %d: %v, want %v", off, got, want)
				}
			}
			if got := c.status(fReqOne, 10, 10); len(got) != 1 || got[0] != [2]uint32{10, 3} {
				t.Errorf("short request: %v", got)
			}
		}},
		{"B03 past the end", func(t *testing.T, transmission func(testing.TB, string) *rawClient) {
			c := transmission(t, "main")
			c.expect(eINVAL, cmdStatus, 0, mainSize-512, 1024)
			c.expect(eINVAL, cmdStatus, 0, 0, 0)
			c.alive()
		}},
		{"B04 without a context", func(t *testing.T, _ func(testing.TB, string) *rawClient) {
			c := b.transmission(t, "main")
			c.expect(eINVAL, cmdStatus, 0, 0, 4096)
			c = b.dial(t).greet(3)
			c.agreeStructured()
			c.goTo("main")
			c.expect(eINVAL, cmdStatus, 0, 0, 4096)
			c.alive()
		}},
		{"B06 a context of another export", func(t *testing.T, _ func(testing.TB, string) *rawClient) {
			c := b.dial(t).greet(3)
			c.agreeStructured()
			c.acked(optSetMeta, metaArgs("ro", "base:allocation"))
			c.goTo("main")
			c.expect(eINVAL, cmdStatus, 0, 0, 4096)
			c.alive()
		}},
		{"B07 a failed or empty SET_META_CONTEXT clears", func(t *testing.T, _ func(testing.TB, string) *rawClient) {
			for _, args := range [][]byte{metaArgs("main"), metaArgs("main", "base:none"), metaArgs("nope", "base:allocation"), {1}} {
				c := b.dial(t).greet(3)
				c.agreeStructured()
				c.acked(optSetMeta, metaArgs("main", "base:allocation"))
				c.ask(optSetMeta, args)
				c.goTo("main")
				c.expect(eINVAL, cmdStatus, 0, 0, 4096)
			}
		}},
	} {
		t.Run(s.id, func(t *testing.T) { s.test(t, b.structuredTransmission) })
		t.Run("extended/"+s.id, func(t *testing.T) { s.test(t, b.extendedTransmission) })
	}
}

// TestBlockStatusIsBounded: a device of many small extents gives a short reply
// that ends early.
func TestBlockStatusIsBounded(t *testing.T) {
	b := newRig(t)
	for off := int64(0); off < 64<<20; off += 8192 {
		b.main.WriteAt([]byte{1}, off)
	}
	c := b.structuredTransmission(t, "main")
	got := c.status(0, 0, 64<<20)
	if len(got) != 4095 {
		t.Fatalf("%d extents, want 4095", len(got))
	}
	for i, e := range got {
		if e != [2]uint32{4096, uint32(i%2) * 3} {
			t.Fatalf("extent %d: %v", i, e)
		}
	}
	if got := c.status(0, 4095*4096, 8192); !equal(got, [][2]uint32{{4096, 3}, {4096, 0}}) {
		t.Errorf("where the first reply ended: %v", got)
	}
}

func equal(a, b [][2]uint32) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
