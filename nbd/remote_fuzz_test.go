package nbd_test

import (
	"bytes"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"varve/nbd"
)

// FuzzClientReplies sends anything to a client that waits for reads, a flush and
// a block status.
func FuzzClientReplies(f *testing.F) {
	f.Add(wire(uint32(wireSimpleMagic), uint32(5), uint64(1)))
	f.Add(wire(uint32(wireStructuredMagic), uint16(1), uint16(chunkHole), uint64(1), uint32(12), uint64(0), uint32(4096)))
	f.Add(wire(uint32(wireStructuredMagic), uint16(1), uint16(chunkStatus), uint64(1), uint32(12), uint32(1), uint32(4096), uint32(3)))
	f.Add(wire(uint32(wireStructuredMagic), uint16(1), uint16(chunkError), uint64(1), uint32(9), uint32(22), uint16(3), "why"))
	f.Add(wire(uint32(wireExtReplyMagic), uint16(1), uint16(chunkHole), uint64(1), uint64(0), uint64(12), uint64(0), uint32(4096)))
	f.Add(wire(uint32(wireExtReplyMagic), uint16(1), uint16(chunkStatusExt), uint64(1), uint64(0), uint64(24), uint32(1), uint32(1), uint64(4096), uint64(3)))
	f.Fuzz(func(t *testing.T, data []byte) {
		extended := len(data) > 3 && be32(data) == wireExtReplyMagic
		client := againstForm(t, extended, func(server net.Conn) {
			server.Write(data)
			server.Close()
		})
		var wg sync.WaitGroup
		wg.Go(func() { client.ReadAt(make([]byte, 4096), 0) })
		wg.Go(func() { client.ReadAt(make([]byte, 100), 8192) })
		wg.Go(func() { client.Flush() })
		wg.Go(func() {
			next := int64(0)
			for e, err := range client.Extents(0, 1<<20) {
				if err == nil && (e.Off < next || e.Len <= 0 || e.End() > 1<<20) {
					t.Errorf("extent %+v after %d", e, next)
				}
				next = e.End()
			}
		})
		wg.Wait()
	})
}

// FuzzClientHandshake sends anything in the place of a handshake.
func FuzzClientHandshake(f *testing.F) {
	greeting := wire(uint64(wireServerMagic), uint64(wireOptionMagic), uint16(3))
	reply := func(option, kind uint32, data ...any) []byte {
		p := wire(data...)
		return wire(uint64(wireReplyMagic), option, kind, uint32(len(p)), p)
	}
	whole := bytes.Join([][]byte{greeting, reply(optExtended, errUnsup), reply(optStructured, repAck), reply(optSetMeta, repMeta, uint32(1), "base:allocation"),
		reply(optSetMeta, repAck), reply(optGo, repInfo, uint16(0), uint64(1<<20), uint16(1)),
		reply(optGo, repInfo, uint16(3), uint32(512), uint32(4096), uint32(1<<20)), reply(optGo, repAck)}, nil)
	for n := range whole {
		f.Add(whole[:n])
	}
	f.Add(whole)
	f.Add(append(bytes.Clone(greeting), reply(optExtended, errTLS)...))
	f.Add(bytes.Join([][]byte{greeting, reply(optExtended, repAck), reply(optSetMeta, repMeta, uint32(1), "base:allocation"),
		reply(optSetMeta, repAck), reply(optGo, repInfo, uint16(0), uint64(1<<20), uint16(1)), reply(optGo, repAck)}, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if conn, err := l.Accept(); err == nil {
				conn.Write(data)
				conn.(*net.UnixConn).CloseWrite()
				io.Copy(io.Discard, conn)
				conn.Close()
			}
		}()
		c, err := nbd.Dial(t.Context(), unixURI(path, "x"), nbd.ClientOptions{Timeout: patience})
		if err != nil {
			return
		}
		if c.Size() < 0 {
			t.Errorf("size %d", c.Size())
		}
		c.Close()
	})
}
