package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strconv"
	"syscall"

	"varve/layers"
)

const (
	maxMessage     = 4 << 10 // bytes in an error chunk: "Values"
	maxDescriptors = 1 << 20 // that a server may send in one block status
	maxKept        = 4096    // of them that are kept; the rest is asked for again
	maxPieces      = 4096    // of a read that arrive out of order
	gathered       = 32      // requests that leave in one system call
)

// A clientCall is a request with the places for its reply.
type clientCall struct {
	cmd     uint16
	off     int64
	n       int64
	payload []byte // of WRITE; of BLOCK_STATUS for some contexts
	context uint32 // of BLOCK_STATUS, its number

	into    []byte          // of READ, n bytes
	arrived []layers.Extent // parts of into that came, in order, apart
	status  []layers.Run    // of BLOCK_STATUS
	stated  map[uint32]bool // the contexts whose block status came

	refused error // what an error chunk said; the reply's end is yet to come

	cookie uint64
	sent   chan struct{} // closed when the writer is through with it
	done   chan struct{} // closed when err is set
	err    error
}

// send is the writer: it takes what waits, and sends it together.
func (c *Client) send() {
	defer close(c.wrote)
	var (
		calls   []*clientCall
		heads   [gathered][lenExtended]byte
		vectors [2 * gathered][]byte
	)
	for {
		calls = calls[:0]
		select {
		case call := <-c.out:
			calls = append(calls, call)
		case <-c.dead:
			return
		}
		for len(calls) < gathered && len(c.out) > 0 {
			calls = append(calls, <-c.out) // nobody else takes
		}
		pieces := net.Buffers(vectors[:0])
		for i, call := range calls {
			pieces = append(pieces, call.head(heads[i][:0], c.extended))
			if len(call.payload) > 0 {
				pieces = append(pieces, call.payload)
			}
		}
		if err := c.write(&pieces); err != nil {
			c.fail(fmt.Errorf("send a request: %w", err))
			return
		}
		for _, call := range calls {
			close(call.sent)
		}
	}
}

// write sends the pieces, together if the connection can.
func (c *Client) write(pieces *net.Buffers) error {
	if c.cork != nil {
		c.cork.cork()
	}
	_, err := pieces.WriteTo(c.conn)
	if c.cork != nil && err == nil {
		err = c.cork.uncork()
	}
	return err
}

func (call *clientCall) head(p []byte, extended bool) []byte {
	magic, flags, n := magicRequest, uint16(0), uint64(call.n)
	if extended {
		magic = magicExtendedRequest
		if len(call.payload) > 0 {
			flags, n = cmdFlagPayload, uint64(len(call.payload))
		}
	}
	p = binary.BigEndian.AppendUint32(p, magic)
	p = binary.BigEndian.AppendUint16(p, flags)
	p = binary.BigEndian.AppendUint16(p, call.cmd)
	p = binary.BigEndian.AppendUint64(p, call.cookie)
	p = binary.BigEndian.AppendUint64(p, uint64(call.off))
	if extended {
		return binary.BigEndian.AppendUint64(p, n)
	}
	return binary.BigEndian.AppendUint32(p, uint32(n))
}

// receive is the reader: it takes replies until the connection ends, and then
// tells all that still wait. By then the writer has ended too, so that their
// buffers are theirs again.
func (c *Client) receive() {
	defer close(c.ended)
	for {
		if err := c.reply(); err != nil {
			if err == io.EOF {
				err = errors.New("the server closed the connection")
			}
			c.fail(err)
			break
		}
	}
	<-c.wrote
	c.mu.Lock()
	left := c.pending
	c.pending = nil
	err := c.err
	c.mu.Unlock()
	for _, call := range left {
		call.err = err
		close(call.done)
	}
}

// reply takes one simple reply or one chunk. An error ends the connection.
func (c *Client) reply() error {
	if c.extended {
		return c.extendedReply()
	}
	var head [lenChunk]byte
	if _, err := io.ReadFull(c.in, head[:lenSimple]); err != nil {
		return err
	}
	switch magic := binary.BigEndian.Uint32(head[:]); {
	case magic == magicSimple:
		return c.simple(binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint64(head[8:]))
	case magic == magicStructured && c.structured:
	default:
		return fmt.Errorf("%w: reply %x", errBreach, head[:lenSimple])
	}
	if err := c.read(head[lenSimple:]); err != nil {
		return err
	}
	call, err := c.find(binary.BigEndian.Uint64(head[8:]))
	if err != nil {
		return err
	}
	return c.take(call, head[:], uint64(binary.BigEndian.Uint32(head[16:])))
}

// extendedReply takes a chunk of the extended form, which is all that comes in
// it: "Extended reply chunk message".
func (c *Client) extendedReply() error {
	var head [lenExtended]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(head[:]) != magicExtendedReply {
		return fmt.Errorf("%w: reply %x", errBreach, head)
	}
	call, err := c.find(binary.BigEndian.Uint64(head[8:]))
	if err != nil {
		return err
	}
	if off := binary.BigEndian.Uint64(head[16:]); off != uint64(call.off) {
		return fmt.Errorf("%w: a reply with offset %d to a request with %d", errBreach, off, call.off)
	}
	return c.take(call, head[:], binary.BigEndian.Uint64(head[24:]))
}

// take takes the n bytes of a chunk whose head has come.
func (c *Client) take(call *clientCall, head []byte, n uint64) error {
	flags, kind := binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:])
	if err := c.chunk(call, kind, flags, n); err != nil {
		return err
	}
	if flags&chunkDone != 0 {
		return c.finish(call)
	}
	return nil
}

// simple takes a simple reply: "Simple reply message".
func (c *Client) simple(errno uint32, cookie uint64) error {
	call, err := c.find(cookie)
	if err != nil {
		return err
	}
	switch {
	case errno != 0:
		c.leave(call, serverError(errno, ""))
		return nil
	case call.cmd == cmdBlockStatus, call.cmd == cmdRead && c.structured:
		return fmt.Errorf("%w: a simple reply to command %d", errBreach, call.cmd)
	case call.cmd == cmdRead:
		if err := c.read(call.into); err != nil {
			return err
		}
	}
	c.leave(call, nil)
	return nil
}

// chunk takes the content of a reply chunk: "Structured reply chunk message".
func (c *Client) chunk(call *clientCall, kind, flags uint16, n uint64) error {
	var err error
	switch {
	case kind == chunkNone && n == 0 && flags&chunkDone != 0:
	case kind == chunkOffsetData && call.cmd == cmdRead && n > 8 && n <= 8+maxPayload:
		err = c.dataChunk(call, int64(n)-8)
	case kind == chunkOffsetHole && call.cmd == cmdRead && n == 12:
		err = c.holeChunk(call)
	case kind == chunkBlockStatus && !c.extended && call.cmd == cmdBlockStatus && n >= 12 && (n-4)%8 == 0 && (n-4)/8 <= maxDescriptors:
		err = c.statusChunk(call, int64(n-4)/8)
	case kind == chunkStatusExt && c.extended && call.cmd == cmdBlockStatus && n >= 24 && (n-8)%16 == 0 && (n-8)/16 <= maxDescriptors:
		err = c.statusChunk(call, int64(n-8)/16)
	case kind&(1<<15) != 0 && n >= 6 && n <= 6+maxMessage+8:
		err = c.errorChunk(call, uint32(n))
	default:
		err = fmt.Errorf("%w: chunk of type %#x, flags %#x and %d bytes to command %d", errBreach, kind, flags, n, call.cmd)
	}
	return err
}

func (c *Client) dataChunk(call *clientCall, n int64) error {
	var head [8]byte
	if err := c.read(head[:]); err != nil {
		return err
	}
	p, err := call.place(binary.BigEndian.Uint64(head[:]), n)
	if err != nil {
		return err
	}
	return c.read(p)
}

func (c *Client) holeChunk(call *clientCall) error {
	var head [12]byte
	if err := c.read(head[:]); err != nil {
		return err
	}
	p, err := call.place(binary.BigEndian.Uint64(head[:]), int64(binary.BigEndian.Uint32(head[8:])))
	clear(p)
	return err
}

// place is where the bytes [at, at+n) of the export go, which must be asked for
// and not there yet.
func (call *clientCall) place(at uint64, n int64) ([]byte, error) {
	start := int64(at)
	if start < call.off || n <= 0 || n > call.n || start-call.off > call.n-n {
		return nil, fmt.Errorf("%w: %d bytes at %d in the reply to a read of %d at %d", errBreach, n, at, call.n, call.off)
	}
	e := layers.Extent{Off: start, Len: n}
	i, _ := slices.BinarySearchFunc(call.arrived, start, func(e layers.Extent, off int64) int {
		if e.Off < off {
			return -1
		}
		return 1
	})
	if i > 0 && call.arrived[i-1].End() > start || i < len(call.arrived) && call.arrived[i].Off < e.End() {
		return nil, fmt.Errorf("%w: the bytes at %d come twice", errBreach, at)
	}
	before, after := i > 0 && call.arrived[i-1].End() == start, i < len(call.arrived) && call.arrived[i].Off == e.End()
	switch {
	case before && after:
		call.arrived[i-1].Len += n + call.arrived[i].Len
		call.arrived = slices.Delete(call.arrived, i, i+1)
	case before:
		call.arrived[i-1].Len += n
	case after:
		call.arrived[i].Off, call.arrived[i].Len = start, n+call.arrived[i].Len
	case len(call.arrived) == maxPieces:
		return nil, fmt.Errorf("%w: a reply in more than %d scattered pieces", errBreach, maxPieces)
	default:
		call.arrived = slices.Insert(call.arrived, i, e)
	}
	return call.into[start-call.off:][:n], nil
}

// statusChunk takes the descriptors of one context, and keeps them if it is the
// one that was asked for: without a filter a server tells all.
func (c *Client) statusChunk(call *clientCall, count int64) error {
	var d [16]byte
	size := 8 // bytes of a descriptor
	head := d[:4]
	if c.extended {
		size, head = 16, d[:8]
	}
	if err := c.read(head); err != nil {
		return err
	}
	id := binary.BigEndian.Uint32(d[:])
	filtered := len(call.payload) > 0
	if call.stated[id] || !c.isContext(id) || filtered && id != call.context {
		return fmt.Errorf("%w: block status of context %d", errBreach, id)
	}
	if c.extended && int64(binary.BigEndian.Uint32(d[4:])) != count {
		return fmt.Errorf("%w: block status with %d descriptors that says it has %d", errBreach, count, binary.BigEndian.Uint32(d[4:]))
	}
	if call.stated == nil {
		call.stated = map[uint32]bool{}
	}
	call.stated[id] = true
	off, end := call.off, call.off+call.n
	for range count {
		if err := c.read(d[:size]); err != nil {
			return err
		}
		n, value := uint64(binary.BigEndian.Uint32(d[:])), uint64(binary.BigEndian.Uint32(d[4:]))
		if c.extended {
			n, value = binary.BigEndian.Uint64(d[:]), binary.BigEndian.Uint64(d[8:])
		}
		if n == 0 || off >= end || value > math.MaxUint32 {
			return fmt.Errorf("%w: block status with %d bytes of %#x at %d, asked up to %d", errBreach, n, value, off, end)
		}
		r := layers.Run{Off: off, Len: int64(min(n, uint64(end-off))), Value: uint32(value)}
		off = r.End() // the last one may go beyond what was asked
		if id != call.context {
			continue
		}
		last := len(call.status) - 1
		switch {
		case last >= 0 && call.status[last].Value == r.Value && call.status[last].End() == r.Off:
			call.status[last].Len += r.Len
		case len(call.status) < maxKept:
			call.status = append(call.status, r)
		}
	}
	return nil
}

// isContext says whether a metadata context of that number was agreed on.
func (c *Client) isContext(number uint32) bool {
	for _, n := range c.contexts {
		if n == number {
			return true
		}
	}
	return false
}

// errorChunk takes ERROR, ERROR_OFFSET, and errors that are yet to be invented,
// which begin alike.
func (c *Client) errorChunk(call *clientCall, n uint32) error {
	p := make([]byte, n)
	if err := c.read(p); err != nil {
		return err
	}
	errno, length := binary.BigEndian.Uint32(p), int(binary.BigEndian.Uint16(p[4:]))
	if errno == 0 || length > len(p)-6 {
		return fmt.Errorf("%w: error chunk %x", errBreach, p[:6])
	}
	if call.refused == nil {
		call.refused = serverError(errno, string(p[6:6+length]))
	}
	return nil
}

// finish ends a call whose last chunk has come.
func (c *Client) finish(call *clientCall) error {
	if call.refused == nil {
		switch got := call.arrived; {
		case call.cmd == cmdRead && (len(got) != 1 || got[0].Len != call.n):
			return fmt.Errorf("%w: a reply without all of the %d bytes at %d", errBreach, call.n, call.off)
		case call.cmd == cmdBlockStatus && len(call.status) == 0:
			return fmt.Errorf("%w: a block status without extents", errBreach)
		}
	}
	c.leave(call, call.refused)
	return nil
}

// serverError is the error of a reply, with the server's text if it sent one.
// Numbers that the protocol does not have are I/O errors: "Error values".
func serverError(number uint32, text string) error {
	errno := syscall.EIO
	switch number {
	case errnoPerm, errnoIO, errnoNoMem, errnoInval, errnoNoSpace, errnoNotSup, errnoShutdown, uint32(syscall.EOVERFLOW):
		errno = syscall.Errno(number)
	}
	if text == "" {
		return fmt.Errorf("the server says: %w", errno)
	}
	return fmt.Errorf("the server says: %w (%s)", errno, strconv.Quote(text))
}
