package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// Numbers of the NBD protocol document (proto.md of the NetworkBlockDevice
// project), all big endian.
const (
	magicGreeting   = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x3e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	flagSendFlush = 1 << 2

	optStartTLS   = 5
	optGo         = 7
	optStructured = 8

	repAck    = 1
	repInfo   = 3
	repErrBit = 1 << 31

	infoExport = 0

	cmdRead  = 0
	cmdWrite = 1
	cmdDisc  = 2
	cmdFlush = 3

	chunkDone    = 1 << 0
	chunkErrBit  = 1 << 15
	chunkMaxData = 64 << 20 // longest chunk we believe

	requestSize    = 28
	simpleSize     = 16
	structuredSize = 20
	maxOptionReply = 64 << 10
)

// socketLimit is how long, in seconds, one system call may wait for a server.
const socketLimit = 60

// A conn is one connection to an NBD server over a unix socket, past the
// handshake. It is for one goroutine at a time.
//
// The socket is a blocking one and bypasses Go's poller: a load generator waits
// in the system call, so that what is measured is the server's wake-up only.
type conn struct {
	fd     int
	secure *secured // nil without TLS
	size   int64    // bytes, of the export
	flags  uint16   // transmission flags
	buf    []byte   // one request or reply header
}

// dialOptions are what is asked of a server beyond an export. It is an error if
// it has it not.
type dialOptions struct {
	structured   bool   // structured replies; ReadAt then must not be used
	certificates string // folder with ca-cert.pem, for TLS; "" is none
}

// dial connects to a server and opens an export.
func dial(socket, export string, o dialOptions) (_ *conn, err error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	c := &conn{fd: fd, buf: make([]byte, 64)}
	defer func() {
		if err != nil {
			err = fmt.Errorf("open export %q on %s: %w", export, socket, err)
			syscall.Close(fd)
		}
	}()
	limit := syscall.Timeval{Sec: socketLimit}
	for _, option := range []int{syscall.SO_RCVTIMEO, syscall.SO_SNDTIMEO} {
		if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, option, &limit); err != nil {
			return nil, fmt.Errorf("set time limit: %w", err)
		}
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		return nil, err
	}
	return c, c.handshake(export, o)
}

func (c *conn) handshake(export string, o dialOptions) error {
	greeting := c.buf[:18]
	if _, err := io.ReadFull(c, greeting); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(greeting) != magicGreeting || binary.BigEndian.Uint64(greeting[8:]) != magicOption {
		return fmt.Errorf("not an NBD newstyle greeting: %x", greeting)
	}
	flags := uint32(binary.BigEndian.Uint16(greeting[16:])) & (flagFixedNewstyle | flagNoZeroes)
	if _, err := c.Write(binary.BigEndian.AppendUint32(nil, flags)); err != nil {
		return err
	}
	if o.certificates != "" {
		if err := c.startTLS(o.certificates); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
	}
	if o.structured {
		if err := c.option(optStructured, nil, func(uint32, []byte) error { return nil }); err != nil {
			return fmt.Errorf("structured replies: %w", err)
		}
	}
	data := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	data = append(data, export...)
	data = binary.BigEndian.AppendUint16(data, 0) // no information requests
	return c.option(optGo, data, func(reply uint32, data []byte) error {
		if reply == repInfo && len(data) == 12 && binary.BigEndian.Uint16(data) == infoExport {
			c.size, c.flags = int64(binary.BigEndian.Uint64(data[2:])), binary.BigEndian.Uint16(data[10:])
		}
		return nil
	})
}

// option sends one option and calls got with each reply up to the ACK.
func (c *conn) option(option uint32, data []byte, got func(reply uint32, data []byte) error) error {
	msg := binary.BigEndian.AppendUint64(nil, magicOption)
	msg = binary.BigEndian.AppendUint32(msg, option)
	msg = binary.BigEndian.AppendUint32(msg, uint32(len(data)))
	if _, err := c.Write(append(msg, data...)); err != nil {
		return err
	}
	for {
		head := c.buf[:20]
		if _, err := io.ReadFull(c, head); err != nil {
			return err
		}
		reply, n := binary.BigEndian.Uint32(head[12:]), binary.BigEndian.Uint32(head[16:])
		if binary.BigEndian.Uint64(head) != magicOptReply || binary.BigEndian.Uint32(head[8:]) != option || n > maxOptionReply {
			return fmt.Errorf("bad reply to option %d: %x", option, head)
		}
		data := make([]byte, n)
		if _, err := io.ReadFull(c, data); err != nil {
			return err
		}
		switch {
		case reply&repErrBit != 0:
			return fmt.Errorf("option %d refused with error %d: %s", option, reply&^repErrBit, data)
		case reply == repAck:
			return nil
		}
		if err := got(reply, data); err != nil {
			return err
		}
	}
}

// Read implements io.Reader on the socket, or what TLS makes of it.
func (c *conn) Read(p []byte) (int, error) {
	if c.secure != nil {
		return c.secure.Read(p)
	}
	return c.receive(p)
}

// receive reads from the socket.
func (c *conn) receive(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, err := syscall.Read(c.fd, p)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return 0, fmt.Errorf("receive: %w", waited(err))
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Write implements io.Writer on the socket, or what TLS makes of it.
func (c *conn) Write(p []byte) (int, error) {
	if c.secure != nil {
		return c.secure.Write(p)
	}
	return c.send(p)
}

// send writes to the socket.
func (c *conn) send(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n, err := syscall.Write(c.fd, p[done:])
		if err != nil && err != syscall.EINTR {
			return done, fmt.Errorf("send: %w", waited(err))
		}
		done += max(n, 0)
	}
	return len(p), nil
}

// maxVector is how many pieces one writev takes: IOV_MAX, sysconf(3).
const maxVector = 1024

// WriteAll writes the pieces in order, in as few system calls as the socket
// takes them. It changes pieces.
func (c *conn) WriteAll(pieces [][]byte) error {
	if c.secure != nil {
		return c.secure.writeAll(pieces)
	}
	for len(pieces) > 0 {
		n, err := unix.Writev(c.fd, pieces[:min(len(pieces), maxVector)])
		if err != nil && err != syscall.EINTR {
			return fmt.Errorf("send: %w", waited(err))
		}
		for n = max(n, 0); len(pieces) > 0 && n >= len(pieces[0]); pieces = pieces[1:] {
			n -= len(pieces[0])
		}
		if len(pieces) > 0 {
			pieces[0] = pieces[0][n:]
		}
	}
	return nil
}

// waited gives the error of a socket's time limit its meaning.
func waited(err error) error {
	if errors.Is(err, syscall.EAGAIN) {
		return fmt.Errorf("no progress for %d s", socketLimit)
	}
	return err
}

// appendRequest appends the header of a request, without flags.
func appendRequest(b []byte, command uint16, cookie uint64, off int64, n int) []byte {
	b = binary.BigEndian.AppendUint32(b, magicRequest)
	b = binary.BigEndian.AppendUint32(b, uint32(command)) // 16 bits of flags, all clear, then 16 of type
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

// ReadAt reads len(p) bytes at off, one request and one reply.
func (c *conn) ReadAt(p []byte, off int64) (int, error) {
	if err := c.call(cmdRead, off, len(p), nil); err != nil {
		return 0, fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
	}
	return io.ReadFull(c, p)
}

// WriteAt writes p at off, one request and one reply.
func (c *conn) WriteAt(p []byte, off int64) (int, error) {
	if err := c.call(cmdWrite, off, len(p), p); err != nil {
		return 0, fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
	}
	return len(p), nil
}

// Flush asks the server to make all that was written durable. One that does not
// offer that is not asked.
func (c *conn) Flush() error {
	if c.flags&flagSendFlush == 0 {
		return nil
	}
	if err := c.call(cmdFlush, 0, 0, nil); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// call sends one request with its payload and reads the simple reply's header.
func (c *conn) call(command uint16, off int64, n int, payload []byte) error {
	if _, err := c.Write(appendRequest(c.buf[:0], command, 0, off, n)); err != nil {
		return err
	}
	if _, err := c.Write(payload); err != nil {
		return err
	}
	head := c.buf[:simpleSize]
	if _, err := io.ReadFull(c, head); err != nil {
		return err
	}
	if magic := binary.BigEndian.Uint32(head); magic != magicSimple {
		return fmt.Errorf("bad magic %#x in a simple reply", magic)
	}
	if code := binary.BigEndian.Uint32(head[4:]); code != 0 {
		return fmt.Errorf("the server answers %w", syscall.Errno(code))
	}
	return nil
}

// Close says goodbye and closes the socket.
func (c *conn) Close() error {
	_, err := c.Write(appendRequest(c.buf[:0], cmdDisc, 0, 0, 0))
	return errors.Join(err, syscall.Close(c.fd))
}
