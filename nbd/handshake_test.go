package nbd_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// TestHandshake holds the server to the statements H and N of the checklist in
// docs/nbd.md, each on a connection of its own.
func TestHandshake(t *testing.T) {
	b := newRig(t)
	for _, c := range []struct {
		id   string
		test func(t *testing.T, b *rig)
	}{
		{"H01 H02 H03 greeting with FIXED_NEWSTYLE and NO_ZEROES alone", func(t *testing.T, b *rig) {
			c := b.dial(t)
			want := wire(uint64(wireServerMagic), uint64(wireOptionMagic), uint16(3))
			if got := c.read(18); !bytes.Equal(got, want) {
				t.Errorf("greeting %x, want %x", got, want)
			}
		}},
		{"H04 unknown client flag drops the connection", func(t *testing.T, b *rig) {
			b.dial(t).greet(3 | 1<<5).closed()
		}},
		{"H05 unknown option with payload", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.refused(errUnsup, 999, "some payload")
			c.inSync()
		}},
		{"H06 unknown option with 64 KiB payload", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.refused(errUnsup, 999, make([]byte, 64<<10))
			c.refused(errTooBig, 999, make([]byte, 64<<10+1))
			c.inSync()
		}},
		{"H07 wrong option magic is a hard disconnect", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.send(uint64(wireOptionMagic+1), uint32(optList), uint32(0))
			c.closed()
		}},
		{"H08 LIST gives one reply an export", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			var got []string
			for _, r := range c.acked(optList) {
				n := be32(r.data)
				if r.kind != repServer {
					t.Errorf("reply of type %#x", r.kind)
				}
				got = append(got, string(r.data[4:4+n])+"|"+string(r.data[4+n:]))
			}
			slices.Sort(got)
			if want := []string{"main|a disk", "ro|", "|the default"}; !slices.Equal(got, want) {
				t.Errorf("LIST: %q, want %q", got, want)
			}
			c.inSync()
		}},
		{"H09 LIST with data", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.refused(errInvalid, optList, "data")
			c.inSync()
		}},
		{"H10 H11 ABORT is acknowledged and ends", func(t *testing.T, b *rig) {
			for _, data := range []string{"", "data"} {
				c := b.dial(t).greet(3)
				c.acked(optAbort, data)
				c.closed()
			}
		}},
		{"H12 INFO describes and negotiation goes on", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			infos := c.acked(optInfo, exportArgs("main"))
			if len(infos) != 1 || infos[0].kind != repInfo || len(infos[0].data) != 12 || be64(infos[0].data[2:]) != mainSize {
				t.Errorf("INFO: %x", infos)
			}
			c.inSync()
		}},
		{"H13 INFO of an unknown export", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.refused(errUnknown, optInfo, exportArgs("nope", 0, 1, 2, 3))
			c.inSync()
		}},
		{"H14 H15 INFO and GO with bad lengths", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			for _, option := range []uint32{optInfo, optGo} {
				for _, data := range [][]byte{
					nil, {0}, {0, 0, 0},
					wire(uint32(5), "main", uint16(0)),
					wire(uint32(0xffffffff), "main", uint16(0)),
					wire(uint32(4), "main"),
					wire(uint32(4), "main", []byte{0}),
					wire(uint32(4), "main", uint16(1)),
					wire(uint32(4), "main", uint16(1), []byte{0}),
					wire(uint32(4), "main", uint16(0), []byte{0}),
					wire(uint32(4), "main", uint16(0), uint16(3)),
					wire(uint32(4), "m\xffin", uint16(0)),
					wire(uint32(4), "m\x00in", uint16(0)),
				} {
					c.refused(errInvalid, option, data)
				}
			}
			c.inSync()
		}},
		{"H16 huge export name", func(t *testing.T, b *rig) {
			name := strings.Repeat("n", 5000)
			c := b.dial(t).greet(3)
			c.refused(errTooBig, optInfo, exportArgs(name))
			c.refused(errTooBig, optGo, exportArgs(name))
			c.refused(errUnknown, optGo, exportArgs(name[:4096]))
			c.inSync()
			c.option(optExportName, name)
			c.closed()
		}},
		{"H17 block sizes", func(t *testing.T, b *rig) {
			for _, r := range b.dial(t).greet(3).acked(optInfo, exportArgs("main", 3)) {
				if be16(r.data) != 3 {
					continue
				}
				least, preferred, most := be32(r.data[2:]), be32(r.data[6:]), be32(r.data[10:])
				if least != 1 || preferred != 4096 || most != 32<<20 || len(r.data) != 14 {
					t.Errorf("block sizes %d %d %d", least, preferred, most)
				}
				return
			}
			t.Error("no NBD_INFO_BLOCK_SIZE")
		}},
		{"H18 unknown information requests are ignored", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			infos := c.acked(optInfo, exportArgs("main", 999, 1, 999, 2, 1, 4))
			if len(infos) != 3 || string(infos[1].data) != "\x00\x01main" || string(infos[2].data) != "\x00\x02a disk" {
				t.Errorf("INFO: %v, want EXPORT, NAME and DESCRIPTION once", infos)
			}
		}},
		{"H19 INFO and GO agree", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			info := c.acked(optInfo, exportArgs("main"))[0].data
			size, flags := c.goTo("main")
			if be64(info[2:]) != size || be16(info[10:]) != flags {
				t.Errorf("INFO %x, GO %d %#x", info, size, flags)
			}
		}},
		{"H20 GO of an unknown export after INFO of a known one", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.acked(optInfo, exportArgs("main"))
			c.refused(errUnknown, optGo, exportArgs("nope"))
			c.inSync()
			c.goTo("main")
			c.alive()
		}},
		{"H21 transmission follows GO at once", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.send(uint64(wireOptionMagic), uint32(optGo), uint32(10), exportArgs("main"),
				requestBytes(cmdRead, 0, 5, 0, 16))
			for c.optReply(optGo).kind != repAck {
			}
			if cookie, errno := c.simple(); cookie != 5 || errno != 0 {
				t.Errorf("reply to the request that came with GO: cookie %d, error %d", cookie, errno)
			}
			c.read(16)
			c.alive()
		}},
		{"H22 H23 EXPORT_NAME with and without zeroes", func(t *testing.T, b *rig) {
			for flags, pad := range map[uint32]int{1: 124, 3: 0, 0: 124, 2: 0} {
				c := b.dial(t).greet(flags)
				c.option(optExportName, "main")
				p := c.read(10 + pad)
				if be64(p) != mainSize || be16(p[8:])&1 == 0 || len(bytes.Trim(p[10:], "\x00")) > 0 {
					t.Errorf("client flags %d: %x", flags, p)
				}
				c.alive()
			}
		}},
		{"H24 EXPORT_NAME of an unknown export", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.option(optExportName, "nope")
			c.closed()
		}},
		{"H25 STARTTLS on a plain server", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.refused(errUnsup, optStartTLS)
			c.refused(errUnsup, optStartTLS, "data")
			c.inSync()
		}},
		{"H26 options byte by byte", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			args := exportArgs("main")
			for _, one := range wire(uint64(wireOptionMagic), uint32(optGo), uint32(len(args)), args) {
				c.send([]byte{one})
			}
			for c.optReply(optGo).kind != repAck {
			}
			c.alive()
		}},
		{"N01 N02 STRUCTURED_REPLY", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.refused(errInvalid, optStructured, "data")
			c.acked(optStructured)
			c.acked(optStructured)
			c.inSync()
		}},
		{"N03 meta contexts before STRUCTURED_REPLY", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.refused(errInvalid, optSetMeta, metaArgs("main", "base:allocation"))
			c.refused(errInvalid, optListMeta, metaArgs("main"))
			c.inSync()
		}},
		{"N04 N05 LIST_META_CONTEXT without queries, and of a namespace", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.agreeStructured()
			for _, queries := range [][]string{nil, {"base:"}, {"base:allocation"}, {"x-a:b", "base:"}} {
				got := c.acked(optListMeta, metaArgs("main", queries...))
				if len(got) != 1 || got[0].kind != repMeta || string(got[0].data[4:]) != "base:allocation" {
					t.Errorf("LIST_META_CONTEXT %q: %v", queries, got)
				}
			}
			if got := c.acked(optListMeta, metaArgs("main", "base:other", "qemu:")); len(got) != 0 {
				t.Errorf("LIST_META_CONTEXT of unknown contexts: %v", got)
			}
		}},
		{"N06 N07 N08 N11 SET_META_CONTEXT", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.agreeStructured()
			for _, k := range []struct {
				queries []string
				want    int
			}{
				{[]string{"base:allocation"}, 1},                                    // N06
				{[]string{"base:"}, 0},                                              // N07
				{[]string{"x-none:thing", "base:leaf", "nonsense"}, 0},              // N08
				{[]string{"base:allocation", "x-none:thing", "base:allocation"}, 1}, // N11
				{nil, 0},
			} {
				got := c.acked(optSetMeta, metaArgs("main", k.queries...))
				if len(got) != k.want || k.want == 1 && (got[0].kind != repMeta || string(got[0].data[4:]) != "base:allocation") {
					t.Errorf("SET_META_CONTEXT %q: %v, want %d contexts", k.queries, got, k.want)
				}
			}
		}},
		{"N09 malformed queries", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.agreeStructured()
			for _, data := range [][]byte{
				nil,
				wire(uint32(4), "main"),
				wire(uint32(4), "main", uint32(1)),
				wire(uint32(4), "main", uint32(1), uint32(100), "base:"),
				wire(uint32(4), "main", uint32(0xffffffff), uint32(4), "base"),
				wire(uint32(4), "main", uint32(0), "rest"),
				wire(uint32(4), "main", uint32(1), uint32(2), "\xff\xff"),
			} {
				c.refused(errInvalid, optSetMeta, data)
				c.refused(errInvalid, optListMeta, data)
			}
			c.inSync()
		}},
		{"N10 meta contexts of an unknown export", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.agreeStructured()
			c.refused(errUnknown, optSetMeta, metaArgs("nope", "base:allocation"))
			c.refused(errUnknown, optListMeta, metaArgs("nope"))
			c.inSync()
		}},
		{"N12 EXTENDED_HEADERS", func(t *testing.T, b *rig) {
			c := b.dial(t).greet(3)
			c.acked(optExtended)
			c.inSync()
		}},
	} {
		t.Run(c.id, func(t *testing.T) { c.test(t, b) })
	}
}
