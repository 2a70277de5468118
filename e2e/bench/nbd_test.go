package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

var errRefused = errors.New("refused by the test")

// A memServer is a plain NBD server on a byte slice: one connection at a time,
// one request at a time, answers in order.
type memServer struct {
	socket string
	data   []byte
	broken bool // answers every request with EIO

	mu      sync.Mutex
	flushes int
}

func serveMemory(t *testing.T, size int) *memServer {
	t.Helper()
	s := &memServer{socket: filepath.Join(t.TempDir(), "s"), data: make([]byte, size)}
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.serve(c) // ends when the client does
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return s
}

func (s *memServer) serve(c net.Conn) error {
	greeting := binary.BigEndian.AppendUint64(nil, magicGreeting)
	greeting = binary.BigEndian.AppendUint64(greeting, magicOption)
	c.Write(binary.BigEndian.AppendUint16(greeting, flagFixedNewstyle|flagNoZeroes))
	if _, err := io.CopyN(io.Discard, c, 4); err != nil {
		return err
	}
	structured := false
	for {
		head := make([]byte, 16)
		if _, err := io.ReadFull(c, head); err != nil {
			return err
		}
		option := binary.BigEndian.Uint32(head[8:])
		data := make([]byte, binary.BigEndian.Uint32(head[12:]))
		if _, err := io.ReadFull(c, data); err != nil {
			return err
		}
		reply := func(kind uint32, data []byte) {
			b := binary.BigEndian.AppendUint64(nil, magicOptReply)
			b = binary.BigEndian.AppendUint32(b, option)
			b = binary.BigEndian.AppendUint32(b, kind)
			c.Write(append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...))
		}
		switch {
		case option == optStructured:
			structured = true
		case !bytes.Equal(data[4:len(data)-2], []byte("disk")):
			reply(repErrBit|6, []byte("no such export"))
			continue
		default:
			info := binary.BigEndian.AppendUint16(nil, infoExport)
			info = binary.BigEndian.AppendUint64(info, uint64(len(s.data)))
			reply(repInfo, binary.BigEndian.AppendUint16(info, 1|flagSendFlush))
		}
		reply(repAck, nil)
		if option == optGo {
			return s.transmission(c, structured)
		}
	}
}

func (s *memServer) transmission(c net.Conn, structured bool) error {
	head := make([]byte, requestSize)
	for {
		if _, err := io.ReadFull(c, head); err != nil {
			return err
		}
		command, cookie := binary.BigEndian.Uint16(head[6:]), head[8:16]
		off, n := binary.BigEndian.Uint64(head[16:]), uint64(binary.BigEndian.Uint32(head[24:]))
		var code uint32
		if s.broken {
			code = 5
		}
		simple := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, magicSimple), code)
		simple = append(simple, cookie...)
		switch command {
		case cmdDisc:
			return nil
		case cmdFlush:
			s.mu.Lock()
			s.flushes++
			s.mu.Unlock()
		case cmdWrite:
			if _, err := io.ReadFull(c, s.data[off:off+n]); err != nil {
				return err
			}
		case cmdRead:
			data := s.data[off : off+n]
			if structured {
				simple = append(chunkOf(0, 1, cookie, append(binary.BigEndian.AppendUint64(nil, off), data[:n/2]...)),
					chunkOf(chunkDone, 1, cookie, append(binary.BigEndian.AppendUint64(nil, off+n/2), data[n/2:]...))...)
			} else if code == 0 {
				simple = append(simple, data...)
			}
		}
		if _, err := c.Write(simple); err != nil {
			return err
		}
	}
}

func TestConnReadsWritesAndFlushes(t *testing.T) {
	s := serveMemory(t, 1<<20)
	c, err := dial(s.socket, "disk", dialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if c.size != 1<<20 {
		t.Errorf("size = %d, want %d", c.size, 1<<20)
	}
	want := bytes.Repeat([]byte("varve"), 1000)
	if _, err := c.WriteAt(want, 4321); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := c.ReadAt(got, 4321); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was written does not read back: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flushes != 1 {
		t.Errorf("the server saw %d flushes, want 1", s.flushes)
	}
}

func TestDialSaysWhatWasRefused(t *testing.T) {
	s := serveMemory(t, 4096)
	if _, err := dial(s.socket, "nothing", dialOptions{}); err == nil || !bytes.Contains([]byte(err.Error()), []byte("no such export")) {
		t.Errorf("unknown export gives %v", err)
	}
	if _, err := dial(s.socket+"x", "disk", dialOptions{}); err == nil {
		t.Error("a socket that is not there is dialed")
	}
}

// ticking is a clock that goes on when it is looked at: however slow the machine
// is, a load of 20 ms looks at it two hundred times.
func ticking() func() time.Time {
	now := time.Now()
	return func() time.Time {
		now = now.Add(100 * time.Microsecond)
		return now
	}
}

func TestLoadKeepsCountAndReadsBothKindsOfReply(t *testing.T) {
	s := serveMemory(t, 1<<20)
	for name, tt := range map[string]struct{ write, structured bool }{
		"reads": {}, "structured reads": {structured: true}, "writes": {write: true},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := dial(s.socket, "disk", dialOptions{structured: tt.structured})
			if err != nil {
				t.Fatal(err)
			}
			r, err := load{write: tt.write, block: 4096, depth: 16, duration: 20 * time.Millisecond, seed: 1, clock: ticking()}.run(c)
			if err := errors.Join(err, c.Close()); err != nil {
				t.Fatal(err)
			}
			if r.ops < 16 || r.ops != r.latency.total || r.elapsed < 20*time.Millisecond || r.latency.quantile(0.5) == 0 {
				t.Errorf("result is %d requests, %d latencies, median %v, in %v", r.ops, r.latency.total, r.latency.quantile(0.5), r.elapsed)
			}
		})
	}
	if slices.Max(s.data) == 0 {
		t.Error("the writes wrote nothing")
	}
}

// TestLoadOverTLS: long and short requests, on connections side by side.
func TestLoadOverTLS(t *testing.T) {
	certificates := t.TempDir()
	if err := makeCertificates(certificates); err != nil {
		t.Fatal(err)
	}
	secure, err := nbd.ServerTLS(certificates, false)
	if err != nil {
		t.Fatal(err)
	}
	device := nbdtest.NewMemory(8 << 20)
	server := &nbd.Server{TLS: secure, RequireTLS: func(net.Conn) bool { return true },
		Open: func(context.Context, string) (*nbd.Export, error) { return &nbd.Export{Device: device}, nil }}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(t.Context(), l) }()
	if _, err := dial(socket, "disk", dialOptions{}); err == nil {
		t.Error("a server that requires TLS is content without")
	}
	for _, block := range []int{4096, 256 << 10} {
		var conns []*conn
		for range 2 {
			c, err := dial(socket, "disk", dialOptions{certificates: certificates})
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		for _, write := range []bool{true, false} {
			r, err := load{write: write, block: block, depth: 8, duration: 20 * time.Millisecond}.runAll(conns)
			if err != nil {
				t.Fatalf("blocks of %d, write %v: %v", block, write, err)
			}
			if r.ops < 16 || r.ops != r.latency.total {
				t.Errorf("blocks of %d, write %v: %d requests, %d latencies", block, write, r.ops, r.latency.total)
			}
		}
		for _, c := range conns {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := server.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestLargeWritesCarryTheirPayload: those that are not copied behind their
// headers arrive whole.
func TestLargeWritesCarryTheirPayload(t *testing.T) {
	s := serveMemory(t, 4<<20)
	c, err := dial(s.socket, "disk", dialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := load{write: true, block: 1 << 20, depth: 3, flushEvery: 4, duration: 20 * time.Millisecond, clock: ticking()}.run(c)
	if err := errors.Join(err, c.Close()); err != nil {
		t.Fatal(err)
	}
	if r.ops < 4 || r.flushes == 0 {
		t.Errorf("%d writes, %d flushes", r.ops, r.flushes)
	}
	if zeros := bytes.Count(s.data[:1<<20], []byte{0}); zeros > 16<<10 {
		t.Errorf("%d of a MiB of random bytes are zero", zeros)
	}
}

// TestLoadFlushIsABarrier: there is a flush for each full set of writes, but
// perhaps for the last, after which the time may be over.
func TestLoadFlushIsABarrier(t *testing.T) {
	s := serveMemory(t, 1<<20)
	c, err := dial(s.socket, "disk", dialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := load{write: true, block: 4096, depth: 5, flushEvery: 12, duration: 20 * time.Millisecond, clock: ticking()}.run(c)
	if err := errors.Join(err, c.Close()); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if missing := r.ops/12 - r.flushes; r.flushes == 0 || missing < 0 || missing > 1 || int64(s.flushes) != r.flushes || r.flush.total != r.flushes {
		t.Errorf("%d writes with a flush after every 12 made %d flushes, the server saw %d", r.ops, r.flushes, s.flushes)
	}
}

func TestLoadReportsAnErrorOfTheServer(t *testing.T) {
	s := serveMemory(t, 1<<20)
	s.broken = true
	c, err := dial(s.socket, "disk", dialOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := (load{block: 4096, depth: 4, duration: time.Minute}).run(c); err == nil {
		t.Error("a load on a server that answers EIO succeeds")
	}
}

func TestFillAndDigestAgreeOnContent(t *testing.T) {
	var sums []string
	for range 2 {
		s := serveMemory(t, 4<<20)
		c, err := dial(s.socket, "disk", dialOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := overwrite(t.Context(), c, append(base(c.size), overlay(c.size, 1)...)); err != nil {
			t.Fatal(err)
		}
		sum, err := digest(t.Context(), c)
		if err := errors.Join(err, c.Close()); err != nil {
			t.Fatal(err)
		}
		sums = append(sums, sum)
	}
	if sums[0] != sums[1] {
		t.Error("two volumes filled alike have different digests")
	}
}

func TestEqualFindsADifference(t *testing.T) {
	a, b := make([]byte, 3<<20), make([]byte, 3<<20)
	if err := equal(context.Background(), bytes.NewReader(a), bytes.NewReader(b), int64(len(a))); err != nil {
		t.Errorf("equal bytes: %v", err)
	}
	b[2<<20+5] = 1
	if err := equal(context.Background(), bytes.NewReader(a), bytes.NewReader(b), int64(len(a))); err == nil {
		t.Error("one changed byte is not found")
	}
}

// replyStream is three replies: a simple one with data, a structured one of two
// chunks, and a structured one of no data.
func replyStream() []byte {
	b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, magicSimple), 0)
	b = append(binary.BigEndian.AppendUint64(b, 7), "12345678"...)
	b = append(b, chunkOf(0, 1, cookieOf(8), make([]byte, 100))...)
	b = append(b, chunkOf(chunkDone, 1, cookieOf(8), make([]byte, 3))...)
	return append(b, chunkOf(chunkDone, 0, cookieOf(9), nil)...)
}

func cookieOf(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// chunkOf is a structured reply chunk.
func chunkOf(flags, kind uint16, cookie, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, magicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = append(b, cookie...)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...)
}

func TestScannerFindsRepliesHoweverTheStreamIsCut(t *testing.T) {
	stream := replyStream()
	for cut := range len(stream) + 1 {
		for step := 1; step <= len(stream); step += 13 {
			s := replyScanner{readSize: 8}
			var got []uint64
			note := func(cookie uint64) error { got = append(got, cookie); return nil }
			err := s.scan(stream[:cut], note)
			for rest := stream[cut:]; len(rest) > 0 && err == nil; rest = rest[min(step, len(rest)):] {
				err = s.scan(rest[:min(step, len(rest))], note)
			}
			if err != nil || !slices.Equal(got, []uint64{7, 8, 9}) {
				t.Fatalf("cut at %d, then steps of %d: cookies %v, %v", cut, step, got, err)
			}
		}
	}
}

func TestScannerRefusesErrorsAndNonsense(t *testing.T) {
	refusal := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, magicSimple), 28)
	huge := chunkOf(chunkDone, 1, cookieOf(1), nil)
	binary.BigEndian.PutUint32(huge[16:], 1<<31)
	for name, stream := range map[string][]byte{
		"simple error": append(refusal, cookieOf(1)...),
		"error chunk":  chunkOf(chunkDone, chunkErrBit|1, cookieOf(1), make([]byte, 6)),
		"huge chunk":   huge,
		"bad magic":    make([]byte, simpleSize),
	} {
		s := replyScanner{}
		if err := s.scan(stream, func(uint64) error { return nil }); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	s := replyScanner{readSize: 8}
	if err := s.scan(replyStream(), func(uint64) error { return errRefused }); !errors.Is(err, errRefused) {
		t.Errorf("error of the callback becomes %v", err)
	}
}

func FuzzScanner(f *testing.F) {
	f.Add(replyStream(), 5)
	f.Fuzz(func(t *testing.T, stream []byte, cut int) {
		cut = min(max(cut, 0), len(stream))
		count := func(parts ...[]byte) (n int, err error) {
			s := replyScanner{readSize: 8}
			for _, part := range parts {
				if err == nil {
					err = s.scan(part, func(uint64) error { n++; return nil })
				}
			}
			return n, err
		}
		whole, errWhole := count(stream)
		parted, errParted := count(stream[:cut], stream[cut:])
		if whole != parted || (errWhole == nil) != (errParted == nil) {
			t.Errorf("whole: %d replies, %v; cut at %d: %d, %v", whole, errWhole, cut, parted, errParted)
		}
	})
}
