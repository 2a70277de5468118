package nbd_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// The wire numbers that the tests use are written out here again, from the
// protocol document, so that a wrong constant in the server is seen.
const (
	wireServerMagic     = 0x4e42444d41474943
	wireOptionMagic     = 0x49484156454F5054
	wireReplyMagic      = 0x3e889045565a9
	wireRequestMagic    = 0x25609513
	wireSimpleMagic     = 0x67446698
	wireStructuredMagic = 0x668e33ef
	wireExtRequestMagic = 0x21e41c71
	wireExtReplyMagic   = 0x6e8a278c

	optExportName, optAbort, optList, optStartTLS, optInfo, optGo = 1, 2, 3, 5, 6, 7
	optStructured, optListMeta, optSetMeta, optExtended           = 8, 9, 10, 11

	repAck, repServer, repInfo, repMeta                            = 1, 2, 3, 4
	errUnsup, errPolicy, errInvalid, errTLS, errUnknown, errTooBig = 1<<31 + 1, 1<<31 + 2, 1<<31 + 3, 1<<31 + 5, 1<<31 + 6, 1<<31 + 9
	errShutdown, errExtended                                       = 1<<31 + 7, 1<<31 + 10

	cmdRead, cmdWrite, cmdDisc, cmdFlush, cmdTrim, cmdCache, cmdZeroes, cmdStatus = 0, 1, 2, 3, 4, 5, 6, 7
	fFUA, fNoHole, fDF, fReqOne, fFast, fPayload                                  = 1, 2, 4, 8, 16, 32

	chunkNone, chunkData, chunkHole, chunkStatus, chunkStatusExt, chunkError, chunkErrorAt = 0, 1, 2, 5, 6, 0x8001, 0x8002

	ePERM, eIO, eINVAL, eNOSPC, eNOTSUP, eSHUTDOWN = 1, 5, 22, 28, 95, 108
)

// A rawClient speaks the protocol in raw bytes. A method that meets something
// unexpected ends the test.
type rawClient struct {
	testing.TB
	net.Conn
	structured bool
	extended   bool              // then structured as well
	offsets    map[uint64]uint64 // of the extended requests, by cookie
}

// patience bounds every wait of a test for the server.
const patience = 5 * time.Minute

func dial(t testing.TB, network, address string) *rawClient {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	return &rawClient{TB: t, Conn: conn}
}

// greet reads the greeting and sends client flags.
func (c *rawClient) greet(flags uint32) *rawClient {
	c.Helper()
	p := c.read(18)
	if magic, option := be64(p), be64(p[8:]); magic != wireServerMagic || option != wireOptionMagic {
		c.Fatalf("greeting %x", p)
	}
	c.send(flags)
	return c
}

// send writes integers big endian, strings and byte slices as they are.
func (c *rawClient) send(parts ...any) {
	c.Helper()
	if _, err := c.Write(wire(parts...)); err != nil {
		c.Fatalf("send: %v", err)
	}
}

func wire(parts ...any) []byte {
	var p []byte
	for _, part := range parts {
		switch v := part.(type) {
		case string:
			p = append(p, v...)
		case []byte:
			p = append(p, v...)
		case uint16:
			p = binary.BigEndian.AppendUint16(p, v)
		case uint32:
			p = binary.BigEndian.AppendUint32(p, v)
		case uint64:
			p = binary.BigEndian.AppendUint64(p, v)
		default:
			panic(fmt.Sprintf("wire: %T", part))
		}
	}
	return p
}

func (c *rawClient) read(n int) []byte {
	c.Helper()
	p := make([]byte, n)
	if m, err := io.ReadFull(c, p); err != nil {
		c.Fatalf("read %d of %d bytes: %v", m, n, err)
	}
	return p
}

// closed checks that the server sends nothing more and closes.
func (c *rawClient) closed() {
	c.Helper()
	p := make([]byte, 1)
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.Fatalf("the server sent %x, want the end of the connection", p)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.Fatal("the server keeps the connection open")
	}
	if err != io.EOF && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		c.Fatalf("read: %v", err)
	}
}

// An optReply is one reply to an option.
type optReply struct {
	kind uint32
	data []byte
}

func (c *rawClient) option(option uint32, parts ...any) {
	c.Helper()
	data := wire(parts...)
	c.send(uint64(wireOptionMagic), option, uint32(len(data)), data)
}

func (c *rawClient) optReply(option uint32) optReply {
	c.Helper()
	p := c.read(20)
	if be64(p) != wireReplyMagic || be32(p[8:]) != option {
		c.Fatalf("option reply %x, want one to option %d", p, option)
	}
	return optReply{be32(p[12:]), c.read(int(be32(p[16:])))}
}

// ask sends an option and returns all its replies; the last is ACK or an error.
func (c *rawClient) ask(option uint32, parts ...any) []optReply {
	c.Helper()
	c.option(option, parts...)
	var all []optReply
	for {
		r := c.optReply(option)
		all = append(all, r)
		if r.kind == repAck || r.kind >= 1<<31 {
			return all
		}
	}
}

// refused asks and checks that the one answer is an error of this type.
func (c *rawClient) refused(want uint32, option uint32, parts ...any) {
	c.Helper()
	all := c.ask(option, parts...)
	if len(all) != 1 || all[0].kind != want {
		c.Fatalf("option %d: answered %x, want the error %#x alone", option, all, want)
	}
}

// acked asks and checks that the last answer is ACK.
func (c *rawClient) acked(option uint32, parts ...any) []optReply {
	c.Helper()
	all := c.ask(option, parts...)
	if last := all[len(all)-1]; last.kind != repAck {
		c.Fatalf("option %d: answered %#x %q, want ACK", option, last.kind, last.data)
	}
	return all[:len(all)-1]
}

// inSync checks that the next option is answered properly.
func (c *rawClient) inSync() {
	c.Helper()
	c.refused(errUnsup, 0x7777)
}

func exportArgs(name string, infos ...uint16) []byte {
	p := wire(uint32(len(name)), name, uint16(len(infos)))
	for _, i := range infos {
		p = append(p, wire(i)...)
	}
	return p
}

func metaArgs(name string, queries ...string) []byte {
	p := wire(uint32(len(name)), name, uint32(len(queries)))
	for _, q := range queries {
		p = append(p, wire(uint32(len(q)), q)...)
	}
	return p
}

// goTo begins transmission on an export and returns its size and flags.
func (c *rawClient) goTo(name string) (uint64, uint16) {
	c.Helper()
	for _, r := range c.acked(optGo, exportArgs(name)) {
		if r.kind == repInfo && len(r.data) == 12 && be16(r.data) == 0 {
			return be64(r.data[2:]), be16(r.data[10:])
		}
	}
	c.Fatal("GO: no NBD_INFO_EXPORT")
	return 0, 0
}

// transmission dials, and agrees on an export with simple replies.
func (b *rig) transmission(t testing.TB, name string) *rawClient {
	t.Helper()
	c := b.dial(t).greet(3)
	c.goTo(name)
	return c
}

// structuredTransmission is transmission with structured replies and
// base:allocation.
func (b *rig) structuredTransmission(t testing.TB, name string) *rawClient {
	t.Helper()
	c := b.dial(t).greet(3)
	c.agreeStructured()
	c.acked(optSetMeta, metaArgs(name, "base:allocation"))
	c.goTo(name)
	return c
}

// extendedTransmission is structuredTransmission with extended headers.
func (b *rig) extendedTransmission(t testing.TB, name string) *rawClient {
	t.Helper()
	c := b.dial(t).greet(3)
	c.agreeExtended()
	c.acked(optSetMeta, metaArgs(name, "base:allocation"))
	c.goTo(name)
	return c
}

func (c *rawClient) agreeExtended() {
	c.Helper()
	c.acked(optExtended)
	c.structured, c.extended, c.offsets = true, true, map[uint64]uint64{}
}

func (c *rawClient) agreeStructured() {
	c.Helper()
	c.acked(optStructured)
	c.structured = true
}

// request sends a request; p is the payload of a WRITE.
func (c *rawClient) request(cmd, flags uint16, cookie, off uint64, n uint32, p ...byte) {
	c.Helper()
	c.send(c.header(cmd, flags, cookie, off, uint64(n)), p)
}

// header is the header of a request in the form that was agreed on.
func (c *rawClient) header(cmd, flags uint16, cookie, off, n uint64) []byte {
	if !c.extended {
		return requestBytes(cmd, flags, cookie, off, uint32(n))
	}
	if cmd == cmdWrite {
		flags |= fPayload
	}
	c.offsets[cookie] = off
	return wire(uint32(wireExtRequestMagic), flags, cmd, cookie, off, n)
}

func requestBytes(cmd, flags uint16, cookie, off uint64, n uint32) []byte {
	return wire(uint32(wireRequestMagic), flags, cmd, cookie, off, n)
}

// simple reads the head of a simple reply, or the chunk that stands for one.
func (c *rawClient) simple() (cookie uint64, errno uint32) {
	c.Helper()
	if c.extended {
		k := c.chunk()
		if !k.done || k.kind != chunkNone && k.kind < 0x8000 {
			c.Fatalf("chunk %+v, want the only one", k)
		}
		return k.cookie, k.errno()
	}
	p := c.read(16)
	if be32(p) != wireSimpleMagic {
		c.Fatalf("reply %x, want a simple reply", p)
	}
	return be64(p[8:]), be32(p[4:])
}

// A chunk is one reply chunk.
type chunk struct {
	kind   uint16
	done   bool
	cookie uint64
	data   []byte
}

func (c *rawClient) chunk() chunk {
	c.Helper()
	size, magic := 20, uint32(wireStructuredMagic)
	if c.extended {
		size, magic = 32, wireExtReplyMagic
	}
	p := c.read(size)
	if be32(p) != magic {
		c.Fatalf("reply %x, want a chunk", p)
	}
	if flags := be16(p[4:]); flags > 1 {
		c.Fatalf("chunk flags %#x", flags)
	}
	k := chunk{kind: be16(p[6:]), done: be16(p[4:]) == 1, cookie: be64(p[8:])}
	if !c.extended {
		k.data = c.read(int(be32(p[16:])))
		return k
	}
	if off, ok := c.offsets[k.cookie]; !ok || be64(p[16:]) != off {
		c.Fatalf("chunk %x: offset %d, want that of the request, %d", p, be64(p[16:]), off)
	}
	k.data = c.read(int(be64(p[24:])))
	return k
}

// chunks reads chunks up to the one that is done.
func (c *rawClient) chunks(cookie uint64) []chunk {
	c.Helper()
	var all []chunk
	for {
		k := c.chunk()
		if k.cookie != cookie {
			c.Fatalf("chunk for cookie %d, want %d", k.cookie, cookie)
		}
		all = append(all, k)
		if k.done {
			return all
		}
	}
}

// errno is the error that an error chunk carries.
func (k chunk) errno() uint32 {
	if k.kind < 0x8000 {
		return 0
	}
	return be32(k.data)
}

// text is the message of an error chunk.
func (k chunk) text() string { return string(k.data[6 : 6+be16(k.data[4:])]) }

// do sends a request and returns the error of its reply, which has no content.
func (c *rawClient) do(cmd, flags uint16, off uint64, n uint32, p ...byte) uint32 {
	c.Helper()
	const cookie = 0x0123456789abcdef
	c.request(cmd, flags, cookie, off, n, p...)
	if c.extended {
		got, errno := c.simple()
		if got != cookie {
			c.Fatalf("cookie %d", got)
		}
		return errno
	}
	head := c.read(16)
	if be32(head) == wireStructuredMagic {
		rest := c.read(4)
		k := chunk{kind: be16(head[6:]), data: c.read(int(be32(rest)))}
		if be64(head[8:]) != cookie || be16(head[4:]) != 1 || k.kind < 0x8000 {
			c.Fatalf("reply %x%x %x, want an error chunk", head, rest, k.data)
		}
		return k.errno()
	}
	if be32(head) != wireSimpleMagic || be64(head[8:]) != cookie {
		c.Fatalf("reply %x, want a simple reply with the cookie", head)
	}
	return be32(head[4:])
}

// expect is do with a check of the error.
func (c *rawClient) expect(errno uint32, cmd, flags uint16, off uint64, n uint32, p ...byte) {
	c.Helper()
	if got := c.do(cmd, flags, off, n, p...); got != errno {
		c.Fatalf("command %d flags %#x [%d, +%d): error %d, want %d", cmd, flags, off, n, got, errno)
	}
}

// get reads a range, by simple or structured replies.
func (c *rawClient) get(off uint64, n uint32) []byte {
	c.Helper()
	c.request(cmdRead, 0, 77, off, n)
	if !c.structured {
		if cookie, errno := c.simple(); cookie != 77 || errno != 0 {
			c.Fatalf("READ [%d, +%d): cookie %d, error %d", off, n, cookie, errno)
		}
		return c.read(int(n))
	}
	return c.assemble(c.chunks(77), off, n)
}

// assemble puts the content of chunks together and checks that it covers the
// range exactly.
func (c *rawClient) assemble(chunks []chunk, off uint64, n uint32) []byte {
	c.Helper()
	p := make([]byte, n)
	covered := uint64(0)
	for _, k := range chunks {
		var at, length uint64
		switch k.kind {
		case chunkNone:
			continue
		case chunkData:
			at, length = be64(k.data)-off, uint64(len(k.data)-8)
			copy(p[at:], k.data[8:])
		case chunkHole:
			at, length = be64(k.data)-off, uint64(be32(k.data[8:]))
		default:
			c.Fatalf("READ [%d, +%d): chunk of type %#x, %q", off, n, k.kind, k.data)
		}
		if length == 0 || at != covered {
			c.Fatalf("READ [%d, +%d): chunk [%d, +%d) after %d", off, n, at, length, covered)
		}
		covered += length
	}
	if covered != uint64(n) {
		c.Fatalf("READ [%d, +%d): %d bytes covered", off, n, covered)
	}
	return p
}

// alive checks that the next request is answered properly.
func (c *rawClient) alive() {
	c.Helper()
	c.expect(0, cmdFlush, 0, 0, 0)
	c.get(0, 512)
}

func be16(p []byte) uint16 { return binary.BigEndian.Uint16(p) }
func be32(p []byte) uint32 { return binary.BigEndian.Uint32(p) }
func be64(p []byte) uint64 { return binary.BigEndian.Uint64(p) }

// A rig is a server with the exports that the checklist needs.
type rig struct {
	path   string
	server *nbd.Server
	shelf  *shelf
	main   *nbdtest.Memory
}

// mainSize is more than two of the largest payloads, in bytes.
const mainSize = 96 << 20

// newRig serves "main" and the default export, which are one device, and
// "ro", which is read-only and filled with 7s.
func newRig(t testing.TB) *rig { return newRigWith(t, &nbd.Server{}) }

// newRigWith is newRig with limits that are set already.
func newRigWith(t testing.TB, server *nbd.Server) *rig {
	b := &rig{main: nbdtest.NewMemory(mainSize)}
	ro := nbdtest.NewMemory(1 << 20)
	sevens := make([]byte, 1<<20)
	for i := range sevens {
		sevens[i] = 7
	}
	ro.WriteAt(sevens, 0)
	b.shelf = newShelf(
		nbd.Export{Name: "", Description: "the default", Device: b.main},
		nbd.Export{Name: "main", Description: "a disk", Device: b.main},
		nbd.Export{Name: "ro", Device: nbd.ReadOnly(ro), ReadOnly: true},
	)
	b.server = server
	b.server.List, b.server.Open = b.shelf.List, b.shelf.Open
	b.path = serve(t, b.server)
	return b
}

func (b *rig) dial(t testing.TB) *rawClient {
	t.Helper()
	return dial(t, "unix", b.path)
}
