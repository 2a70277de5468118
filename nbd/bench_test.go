package nbd_test

import (
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"iter"
	"net"
	"testing"
	"time"

	"varve/layers"
	"varve/nbd"
)

// null is a device that does nothing: what is measured is the server.
type null struct{ size int64 }

func (d null) Size() int64                              { return d.size }
func (d null) ReadAt(p []byte, off int64) (int, error)  { return len(p), nil }
func (d null) WriteAt(p []byte, off int64) (int, error) { return len(p), nil }
func (d null) WriteZeroes(off, n int64) error           { return nil }
func (d null) Flush() error                             { return nil }
func (d null) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(func(layers.Extent, error) bool) {}
}

var benchSocket = flag.String("nbd.socket", "", "unix socket of another server to measure instead, with an export \"\" of 1 GiB or more")

// benchServer returns the socket to measure.
func benchServer(b *testing.B) string {
	if *benchSocket != "" {
		return *benchSocket
	}
	s := newShelf(nbd.Export{Name: "", Device: null{1 << 30}})
	return serve(b, &nbd.Server{Open: s.Open})
}

// BenchmarkServer keeps depth requests in flight from one goroutine that sends
// and receives in batches, so that it is not itself the limit. Simple replies.
func BenchmarkServer(b *testing.B) {
	for _, job := range []struct {
		name string
		cmd  uint16
		n    uint32
	}{{"read", cmdRead, 4096}, {"write", cmdWrite, 4096}, {"read", cmdRead, 1 << 20}, {"write", cmdWrite, 1 << 20}, {"flush", cmdFlush, 0}} {
		for _, depth := range []int{1, 4, 16, 64} {
			if job.n == 1<<20 && depth > 4 || job.n < 1<<20 && depth == 4 {
				continue
			}
			b.Run(fmt.Sprintf("%s/%d/qd%d", job.name, job.n, depth), func(b *testing.B) {
				path := benchServer(b)
				c := dial(b, "unix", path).greet(3)
				c.goTo("")
				b.SetBytes(int64(job.n))
				b.ReportAllocs()
				b.ResetTimer()
				load(b, c.Conn, job.cmd, job.n, depth, b.N)
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1000, "kIOPS")
			})
		}
	}
}

// load sends total requests, depth at a time, and counts the replies.
func load(b *testing.B, conn net.Conn, cmd uint16, n uint32, depth, total int) {
	size := 28
	reply := 16
	switch cmd {
	case cmdWrite:
		size += int(n)
	case cmdRead:
		reply += int(n)
	}
	out := make([]byte, size*depth)
	in := make([]byte, max(reply*depth, 64<<10))
	conn.SetDeadline(time.Time{})
	sent, answered, got, off := 0, 0, 0, uint64(0)
	for answered < total {
		p := out[:0]
		for sent-answered < depth && sent < total {
			r := out[len(p) : len(p)+size]
			binary.BigEndian.PutUint32(r, wireRequestMagic)
			binary.BigEndian.PutUint16(r[6:], cmd)
			binary.BigEndian.PutUint64(r[8:], uint64(sent))
			binary.BigEndian.PutUint64(r[16:], off)
			binary.BigEndian.PutUint32(r[24:], n)
			off = (off + 7919*4096) % (1<<30 - 1<<20)
			p = out[:len(p)+size]
			sent++
		}
		if len(p) > 0 {
			if _, err := conn.Write(p); err != nil {
				b.Fatal(err)
			}
		}
		m, err := io.ReadAtLeast(conn, in[got:], max(reply-got, 1))
		if err != nil {
			b.Fatal(err)
		}
		got += m
		whole := got / reply
		for i := range whole {
			if head := in[i*reply:]; be32(head) != wireSimpleMagic || be32(head[4:]) != 0 {
				b.Fatalf("reply %x", head[:16])
			}
		}
		answered += whole
		got = copy(in, in[whole*reply:got])
	}
}
