package nbd_test

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"varve/layers"
	"varve/nbd"
)

// vastSize is beyond what 32 bits can say, in bytes.
const vastSize = 3<<40 + 4096

// newVastRig serves "vast", an empty volume, with three contexts of its own:
// "x-a:low" is 1 in the first 5 GiB, "x-a:high" is 2 in the last, "x-b:broken"
// fails.
func newVastRig(t *testing.T) (*rig, *layers.Volume) {
	t.Helper()
	v, err := layers.Create(filepath.Join(t.TempDir(), "v"), layers.NewID(), vastSize, layers.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	runs := func(all ...layers.Run) func(int64, int64) iter.Seq2[layers.Run, error] {
		return func(off, n int64) iter.Seq2[layers.Run, error] {
			return func(yield func(layers.Run, error) bool) {
				for _, r := range all {
					if !yield(r, nil) {
						return
					}
				}
			}
		}
	}
	b := &rig{server: &nbd.Server{}}
	b.shelf = newShelf(nbd.Export{Name: "vast", Device: v, Contexts: []nbd.Context{
		{Name: "x-a:low", Runs: runs(layers.Run{Off: 0, Len: 5 << 30, Value: 1})},
		{Name: "x-a:high", Runs: runs(layers.Run{Off: vastSize - 1<<30, Len: 1 << 30, Value: 2})},
		{Name: "x-b:broken", Runs: func(int64, int64) iter.Seq2[layers.Run, error] {
			return func(yield func(layers.Run, error) bool) { yield(layers.Run{}, errors.New("broken context")) }
		}},
		{Name: "x-b:\xff", Runs: runs()},
	}}, nbd.Export{Name: "other", Device: v})
	b.server.Open, b.server.List = b.shelf.Open, b.shelf.List
	b.path = serve(t, b.server)
	return b, v
}

// selecting dials, agrees on extended headers if extended, else on structured
// replies, selects contexts, and enters the export.
func (b *rig) selecting(t *testing.T, extended bool, contexts ...string) *rawClient {
	t.Helper()
	c := b.dial(t).greet(3)
	if extended {
		c.agreeExtended()
	} else {
		c.agreeStructured()
	}
	if got := c.acked(optSetMeta, metaArgs("vast", contexts...)); len(got) != len(contexts) {
		t.Fatalf("SET_META_CONTEXT %q: %v", contexts, got)
	}
	c.goTo("vast")
	return c
}

// TestExtendedHeaders holds the server to the statements E of the checklist.
func TestExtendedHeaders(t *testing.T) {
	b, volume := newVastRig(t)
	for _, s := range []struct {
		id   string
		test func(t *testing.T)
	}{
		{"E01 EXTENDED_HEADERS with data", func(t *testing.T) {
			c := b.dial(t).greet(3)
			c.refused(errInvalid, optExtended, "data")
			c.agreeStructured() // all is as before
			c.goTo("vast")
			c.alive()
		}},
		{"E02 STRUCTURED_REPLY after EXTENDED_HEADERS, and before", func(t *testing.T) {
			c := b.dial(t).greet(3)
			c.acked(optStructured)
			c.agreeExtended()
			c.refused(errExtended, optStructured)
			c.acked(optSetMeta, metaArgs("vast", "base:allocation"))
			c.goTo("vast")
			c.alive()
		}},
		{"E03 EXPORT_NAME with extended headers", func(t *testing.T) {
			c := b.dial(t).greet(3)
			c.agreeExtended()
			c.option(optExportName, "vast")
			c.closed()
		}},
		{"E04 a payload where none belongs is read over", func(t *testing.T) {
			c := b.selecting(t, true, "base:allocation")
			for _, cmd := range []uint16{cmdRead, cmdFlush, cmdTrim, cmdCache, cmdZeroes, 99} {
				c.send(c.header(cmd, fPayload, 5, 0, 3000), make([]byte, 3000))
				if _, errno := c.simple(); errno != eINVAL {
					t.Errorf("command %d: error %d", cmd, errno)
				}
			}
			c.alive()
			c = b.dial(t).greet(3)
			c.goTo("vast")
			c.expect(eINVAL, cmdTrim, fPayload, 0, 4096) // compact: no payload follows
			c.expect(eINVAL, cmdWrite, fPayload, 0, 4, 1, 2, 3, 4)
			c.alive()
		}},
		{"E05 a payload above the largest disconnects", func(t *testing.T) {
			for _, n := range []uint64{32<<20 + 1, 1 << 32, math.MaxUint64} {
				for _, cmd := range []uint16{cmdWrite, cmdStatus, 99} {
					c := b.selecting(t, true, "base:allocation")
					c.send(c.header(cmd, fPayload, 5, 0, n))
					c.closed()
				}
			}
		}},
		{"E06 WRITE without PAYLOAD_LEN has a payload all the same", func(t *testing.T) {
			c := b.selecting(t, true)
			c.offsets[5] = 0
			c.send(wire(uint32(wireExtRequestMagic), uint16(0), uint16(cmdWrite), uint64(5), uint64(0), uint64(512)), pattern(8, 512))
			if _, errno := c.simple(); errno != 0 {
				t.Errorf("error %d", errno)
			}
			if !bytes.Equal(c.get(0, 512), pattern(8, 512)) {
				t.Error("read back other bytes")
			}
		}},
		{"E07 TRIM, WRITE_ZEROES, CACHE and BLOCK_STATUS beyond 32 bits", func(t *testing.T) {
			c := b.selecting(t, true, "base:allocation")
			c.expect(0, cmdWrite, 0, 2<<40, 4096, pattern(1, 4096)...)
			c.expect(0, cmdWrite, 0, 1<<40, 4096, pattern(1, 4096)...)
			for _, cmd := range []uint16{cmdZeroes, cmdTrim, cmdCache} {
				c.send(c.header(cmd, 0, 5, 1<<40, 1<<40))
				if _, errno := c.simple(); errno != 0 {
					t.Errorf("command %d: error %d", cmd, errno)
				}
			}
			c.send(c.header(cmdStatus, 0, 5, 1<<40, 2<<40))
			got := c.extents(c.chunks(5)[0])
			if want := [][2]uint64{{1 << 40, 3}}; !slices.Equal(got, want) { // a reply describes 1 TiB
				t.Errorf("block status %v, want %v", got, want)
			}
			c.send(c.header(cmdStatus, 0, 5, 2<<40, 1<<40))
			got = c.extents(c.chunks(5)[0])
			if want := [][2]uint64{{4096, 0}, {1<<40 - 4096, 3}}; !slices.Equal(got, want) {
				t.Errorf("block status %v, want %v", got, want)
			}
			p := make([]byte, 4096)
			if _, err := volume.ReadAt(p, 1<<40); err != nil || !bytes.Equal(p, make([]byte, 4096)) {
				t.Errorf("the zeros did not reach the volume: %v", err)
			}
		}},
		{"E08 a header of the other form disconnects", func(t *testing.T) {
			c := b.selecting(t, true)
			c.send(requestBytes(cmdFlush, 0, 1, 0, 0), uint32(0))
			c.closed()
			c = b.selecting(t, false)
			c.send(wire(uint32(wireExtRequestMagic), uint16(0), uint16(cmdFlush), uint64(5), uint64(0), uint64(0)))
			c.closed()
		}},
		{"E09 BLOCK_STATUS_PAYLOAD only with extended headers and contexts", func(t *testing.T) {
			for _, k := range []struct {
				extended bool
				contexts []string
				want     bool
			}{{false, []string{"base:allocation"}, false}, {true, nil, false}, {true, []string{"base:allocation"}, true}} {
				c := b.dial(t).greet(3)
				if k.extended {
					c.agreeExtended()
				} else {
					c.agreeStructured()
				}
				c.acked(optSetMeta, metaArgs("vast", k.contexts...))
				if _, flags := c.goTo("vast"); flags&(1<<12) != 0 != k.want || flags&(1<<7) == 0 {
					t.Errorf("extended %v, contexts %v: flags %#x", k.extended, k.contexts, flags)
				}
			}
		}},
		{"E10 BLOCK_STATUS for some of the contexts", func(t *testing.T) {
			c := b.selecting(t, true, "base:allocation", "x-a:low", "x-a:high")
			ask := func(flags uint16, n uint64, ids ...uint32) []chunk {
				p := wire(n)
				for _, id := range ids {
					p = append(p, wire(id)...)
				}
				c.send(c.header(cmdStatus, fPayload|flags, 5, 0, uint64(len(p))), p)
				return c.chunks(5)
			}
			for _, ids := range [][]uint32{{2}, {1, 2}, {3, 1}, {1, 2, 3}} {
				var got []uint32
				for _, k := range ask(0, 1<<30, ids...) {
					got = append(got, be32(k.data))
				}
				slices.Sort(ids)
				slices.Sort(got)
				if !slices.Equal(got, ids) {
					t.Errorf("asked for contexts %v, got %v", ids, got)
				}
			}
			if got := c.extents(ask(fReqOne, 6<<30, 2)[0]); !slices.Equal(got, [][2]uint64{{5 << 30, 1}}) {
				t.Errorf("REQ_ONE: %v", got)
			}
			for _, ids := range [][]uint32{{}, {0}, {4}, {1, 1}, {math.MaxUint32}, {1, 9}, make([]uint32, 100)} {
				if k := ask(0, 4096, ids...)[0]; k.errno() != eINVAL {
					t.Errorf("contexts %v: %+v", ids, k)
				}
			}
			for _, n := range []int{1, 7, 9, 13, 100_000} {
				c.send(c.header(cmdStatus, fPayload, 5, 0, uint64(n)), make([]byte, n))
				if k := c.chunk(); k.errno() != eINVAL {
					t.Errorf("a payload of %d bytes: %+v", n, k)
				}
			}
			for _, n := range []uint64{0, vastSize + 1, math.MaxUint64} {
				if k := ask(0, n, 1)[0]; k.errno() != eINVAL {
					t.Errorf("%d bytes: %+v", n, k)
				}
			}
			c.alive()
		}},
		{"E11 lengths of 64 bits that wrap around", func(t *testing.T) {
			c := b.selecting(t, true, "base:allocation")
			for _, off := range []uint64{0, 1, 4096, math.MaxInt64, math.MaxUint64} {
				for _, n := range []uint64{vastSize + 1, 1 << 62, 1 << 63, math.MaxUint64} {
					for cmd, want := range map[uint16]uint32{cmdRead: eINVAL, cmdTrim: eINVAL, cmdCache: eINVAL, cmdStatus: eINVAL, cmdZeroes: eNOSPC} {
						c.send(c.header(cmd, 0, 5, off, n))
						if _, errno := c.simple(); errno != want {
							t.Errorf("command %d [%d, +%d): error %d, want %d", cmd, off, n, errno, want)
						}
					}
				}
			}
			c.alive()
		}},
		{"E12 READ above the largest payload", func(t *testing.T) {
			c := b.selecting(t, true)
			c.send(c.header(cmdRead, 0, 5, 0, 1<<40))
			if _, errno := c.simple(); errno != eINVAL {
				t.Errorf("error %d", errno)
			}
			c.alive()
		}},
	} {
		t.Run(s.id, s.test)
	}
}

// TestMetaContexts holds the server to the statements M of the checklist.
func TestMetaContexts(t *testing.T) {
	b, _ := newVastRig(t)
	names := func(replies []optReply) (all []string) {
		for _, r := range replies {
			all = append(all, string(r.data[4:]))
		}
		return all
	}
	t.Run("M01 LIST_META_CONTEXT of all, of namespaces and of prefixes", func(t *testing.T) {
		c := b.dial(t).greet(3)
		c.agreeStructured()
		for _, k := range []struct{ queries, want []string }{
			{nil, []string{"base:allocation", "x-a:low", "x-a:high", "x-b:broken"}}, // not the one that is not UTF-8
			{[]string{"x-a:"}, []string{"x-a:low", "x-a:high"}},
			{[]string{"x-b:", "base:"}, []string{"base:allocation", "x-b:broken"}},
			{[]string{"x-a:hi", "x-", "x-a"}, nil},
			{[]string{"x-a:high", "x-a:high"}, []string{"x-a:high"}},
		} {
			if got := names(c.acked(optListMeta, metaArgs("vast", k.queries...))); !slices.Equal(got, k.want) {
				t.Errorf("%q: %q, want %q", k.queries, got, k.want)
			}
		}
	})
	t.Run("M02 SET_META_CONTEXT takes full names, each with its own number", func(t *testing.T) {
		c := b.dial(t).greet(3)
		c.agreeStructured()
		got := c.acked(optSetMeta, metaArgs("vast", "x-a:", "x-b:broken", "x-a:low", "x-none:"))
		if want := []string{"x-a:low", "x-b:broken"}; !slices.Equal(names(got), want) || be32(got[0].data) == be32(got[1].data) {
			t.Errorf("%v, want %q", got, want)
		}
	})
	for _, extended := range []bool{false, true} {
		t.Run(fmt.Sprintf("M03 one chunk for each context, extended %v", extended), func(t *testing.T) {
			c := b.selecting(t, extended, "base:allocation", "x-a:low", "x-a:high")
			c.request(cmdStatus, 0, 5, 4<<30, 2<<30)
			chunks := c.chunks(5)
			want := [][][2]uint64{{{2 << 30, 3}}, {{1 << 30, 1}, {1 << 30, 0}}, {{2 << 30, 0}}}
			if len(chunks) != len(want) {
				t.Fatalf("%d chunks, want %d", len(chunks), len(want))
			}
			for i, k := range chunks {
				if got := c.extents(k); !slices.Equal(got, want[i]) || be32(k.data) != uint32(i+1) {
					t.Errorf("context %d: %v, want %v", be32(k.data), got, want[i])
				}
			}
		})
		t.Run(fmt.Sprintf("M04 a context that fails is an error, extended %v", extended), func(t *testing.T) {
			c := b.selecting(t, extended, "base:allocation", "x-b:broken")
			c.request(cmdStatus, 0, 5, 0, 4096)
			if k := c.chunks(5); len(k) != 1 || k[0].errno() != eIO || k[0].text() != "broken context" {
				t.Errorf("%+v", k)
			}
			c.alive()
		})
	}
	t.Run("M05 more contexts than a client may select", func(t *testing.T) {
		var many []nbd.Context
		var queries []string
		for i := range 33 {
			name := fmt.Sprintf("x-many:%d", i)
			many = append(many, nbd.Context{Name: name, Runs: func(int64, int64) iter.Seq2[layers.Run, error] {
				return func(func(layers.Run, error) bool) {}
			}})
			queries = append(queries, name)
		}
		v := b.shelf.exports["other"]
		v.Contexts = many
		s := newShelf(v)
		c := dial(t, "unix", serve(t, &nbd.Server{Open: s.Open})).greet(3)
		c.agreeExtended()
		c.refused(errTooBig, optSetMeta, metaArgs("other", queries...))
		if got := c.acked(optSetMeta, metaArgs("other", queries[:32]...)); len(got) != 32 {
			t.Fatalf("%d contexts", len(got))
		}
		c.goTo("other")
		c.request(cmdStatus, 0, 5, 0, 4096)
		if got := c.chunks(5); len(got) != 32 || !got[31].done {
			t.Errorf("%d chunks", len(got))
		}
	})
	t.Run("M06 a context that is gone when the export is entered", func(t *testing.T) {
		v := b.shelf.exports["vast"]
		s := newShelf(v)
		c := dial(t, "unix", serve(t, &nbd.Server{Open: s.Open})).greet(3)
		c.agreeStructured()
		c.acked(optSetMeta, metaArgs("vast", "base:allocation", "x-a:low"))
		s.mu.Lock()
		v.Contexts = nil
		s.exports["vast"] = v
		s.mu.Unlock()
		c.goTo("vast")
		c.expect(eIO, cmdStatus, 0, 0, 4096)
		c.alive()
	})
}
