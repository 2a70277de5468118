package nbd_test

import (
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"varve/layers"
	"varve/nbd"
)

// TestClientRefusesExtendedBreaches is TestClientRefusesBreaches for what is
// different with extended headers.
func TestClientRefusesExtendedBreaches(t *testing.T) {
	chunk := func(cookie []byte, off uint64, kind uint16, parts ...any) []byte {
		data := wire(parts...)
		return wire(uint32(wireExtReplyMagic), uint16(1), kind, cookie, off, uint64(len(data)), data)
	}
	for _, c := range []struct {
		name  string
		reply func(cookie []byte) []byte // to a block status of 4096 bytes at 4096
	}{
		{"another offset", func(k []byte) []byte {
			return chunk(k, 0, chunkStatusExt, uint32(1), uint32(1), uint64(4096), uint64(0))
		}},
		{"the compact form", func(k []byte) []byte {
			return wire(uint32(wireStructuredMagic), uint16(1), uint16(chunkNone), k, uint32(0), make([]byte, 12))
		}},
		{"a simple reply", func(k []byte) []byte { return wire(uint32(wireSimpleMagic), uint32(0), k, make([]byte, 16)) }},
		{"the compact block status", func(k []byte) []byte { return chunk(k, 4096, chunkStatus, uint32(1), uint32(4096), uint32(0)) }},
		{"another count", func(k []byte) []byte {
			return chunk(k, 4096, chunkStatusExt, uint32(1), uint32(2), uint64(4096), uint64(0))
		}},
		{"another context", func(k []byte) []byte {
			return chunk(k, 4096, chunkStatusExt, uint32(7), uint32(1), uint64(4096), uint64(0))
		}},
		{"no length", func(k []byte) []byte {
			return chunk(k, 4096, chunkStatusExt, uint32(1), uint32(1), uint64(0), uint64(0))
		}},
		{"a value of 64 bits", func(k []byte) []byte {
			return chunk(k, 4096, chunkStatusExt, uint32(1), uint32(1), uint64(4096), uint64(1)<<40)
		}},
		{"a huge chunk", func(k []byte) []byte {
			return wire(uint32(wireExtReplyMagic), uint16(1), uint16(chunkStatusExt), k, uint64(4096), uint64(1)<<63, uint32(1))
		}},
		{"no extents", func(k []byte) []byte { return chunk(k, 4096, chunkNone) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := againstForm(t, true, func(server net.Conn) {
				r := make([]byte, 32)
				io.ReadFull(server, r)
				server.Write(c.reply(r[8:16]))
			})
			for _, err := range client.Extents(4096, 4096) {
				if err == nil || !strings.Contains(err.Error(), "breaks the NBD protocol") {
					t.Errorf("error %v, want one that says that the server breaks the protocol", err)
				}
			}
		})
	}
}

// TestClientAsksOtherContexts, of servers that filter and of one that tells all.
func TestClientAsksOtherContexts(t *testing.T) {
	b, v := newVastRig(t)
	if _, err := v.WriteAt(make([]byte, 4096), 2<<40); err != nil {
		t.Fatal(err)
	}
	c, err := nbd.Dial(t.Context(), unixURI(b.path, "vast"), nbd.ClientOptions{Contexts: []string{"x-a:low", "x-a:high", "x-none:x"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, k := range []struct {
		context string
		want    []layers.Run
	}{
		{"x-a:low", []layers.Run{{Off: 0, Len: 5 << 30, Value: 1}, {Off: 5 << 30, Len: 1<<40 - 5<<30}, {Off: 1 << 40, Len: 1 << 40}}},
		{"base:allocation", []layers.Run{{Off: 0, Len: 1 << 40, Value: 3}, {Off: 1 << 40, Len: 1 << 40, Value: 3}}},
	} {
		var got []layers.Run
		for r, err := range c.Runs(k.context, 0, 2<<40) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, r)
		}
		if !slices.Equal(got, k.want) {
			t.Errorf("%s: %v, want %v", k.context, got, k.want)
		}
	}
	for _, err := range c.Runs("x-none:x", 0, 4096) {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("a context that the server does not have: %v", err)
		}
	}
	if err := c.WriteZeroes(2<<40, 1<<40); err != nil {
		t.Error(err)
	}
}
