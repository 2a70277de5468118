package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"

	"varve/layers"
)

// The largest ranges of requests without a payload, in bytes. Lengths of the
// compact form have 32 bits; a server that has to write the zeros should not be
// silent for long, and one that speaks the extended form knows how not to.
const (
	maxZeroes         = 256 << 20
	maxZeroesExtended = 64 << 30
	maxStatus         = 1 << 30
	maxStatusExtended = 1 << 40
)

// ReadAt reads as io.ReaderAt says. A long read is several requests, one after
// the other.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("read %s at %d: %w", c.uri, off, fs.ErrInvalid)
	case len(p) == 0:
		return 0, nil
	case off >= c.size:
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > c.size-off {
		p, end = p[:c.size-off], io.EOF
	}
	for done := 0; done < len(p); {
		n, err := c.readSome(p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return len(p), end
}

// readSome reads as much of p as one request may bring. Where the request must
// be larger than what is wanted, it reads beside it.
func (c *Client) readSome(p []byte, off int64) (int, error) {
	head := off % c.least
	n := min(int64(len(p)), c.most-head)
	if whole := n - n%c.least; head == 0 && whole > 0 {
		return c.readBlocks(p[:whole], off)
	}
	n = min(n, c.least-head) // the edge only
	block := make([]byte, c.least)
	if _, err := c.readBlocks(block, off-head); err != nil {
		return 0, err
	}
	return copy(p[:n], block[head:]), nil
}

func (c *Client) readBlocks(p []byte, off int64) (int, error) {
	err := c.do(&clientCall{cmd: cmdRead, off: off, n: int64(len(p)), into: p})
	if err != nil {
		return 0, c.opError("read", off, int64(len(p)), err)
	}
	return len(p), nil
}

// WriteAt writes p at off. It never grows the export. A long write is several
// requests, one after the other.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	if err := c.writable("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		n, err := c.writeSome(p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// writeSome writes as much of p as one request may carry. The edge of a block
// is read, changed and written while no other write of this client runs.
func (c *Client) writeSome(p []byte, off int64) (int, error) {
	head := off % c.least
	n := min(int64(len(p)), c.most-head)
	if whole := n - n%c.least; head == 0 && whole > 0 {
		defer c.shared()()
		return c.writeBlocks(p[:whole], off)
	}
	n = min(n, c.least-head)
	c.partial.Lock()
	defer c.partial.Unlock()
	block := make([]byte, c.least)
	if _, err := c.readBlocks(block, off-head); err != nil {
		return 0, err
	}
	copy(block[head:], p[:n])
	if _, err := c.writeBlocks(block, off-head); err != nil {
		return 0, err
	}
	return int(n), nil
}

// shared keeps whole writes apart from changes of parts of blocks, where there
// are any, until the function that it returns is called.
func (c *Client) shared() func() {
	if c.least == 1 {
		return func() {}
	}
	c.partial.RLock()
	return c.partial.RUnlock
}

func (c *Client) writeBlocks(p []byte, off int64) (int, error) {
	err := c.do(&clientCall{cmd: cmdWrite, off: off, n: int64(len(p)), payload: p})
	if err != nil {
		return 0, c.opError("write", off, int64(len(p)), err)
	}
	return len(p), nil
}

// WriteZeroes makes [off, off+n) read as zeros. The server may give back the
// space. Where it has no such command, zeros are written.
func (c *Client) WriteZeroes(off, n int64) error {
	if err := c.writable("write zeroes", off, n); err != nil {
		return err
	}
	for n > 0 {
		m, err := c.zeroSome(off, n)
		if err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

func (c *Client) zeroSome(off, n int64) (int64, error) {
	head := off % c.least
	whole := min(n, maxZeroes)
	if c.extended {
		whole = min(n, maxZeroesExtended)
	}
	whole -= whole % c.least
	if c.flags&flagSendWriteZeroes != 0 && head == 0 && whole > 0 {
		defer c.shared()()
		err := c.do(&clientCall{cmd: cmdWriteZeroes, off: off, n: whole})
		if err != nil {
			return 0, c.opError("write zeroes", off, whole, err)
		}
		return whole, nil
	}
	if c.flags&flagSendWriteZeroes != 0 {
		n = min(n, c.least-head) // the edge only
	}
	m, err := c.writeSome(zeroPage[:min(n, int64(len(zeroPage)))], off)
	return int64(m), err
}

// zeroPage is what is written where zeros must be; nobody changes it.
var zeroPage = make([]byte, 256<<10)

// Flush returns when the server says that all writes that were answered are
// durable. A server without that command promises nothing, and then neither
// does Flush.
func (c *Client) Flush() error {
	if c.ReadOnly() || c.flags&flagSendFlush == 0 {
		select {
		case <-c.dead:
			return c.reason()
		default:
			return nil
		}
	}
	if err := c.do(&clientCall{cmd: cmdFlush}); err != nil {
		return fmt.Errorf("flush %s: %w", c.uri, err)
	}
	return nil
}

// Extents yields what the server tells: Data where it must be read, Zero where
// it reads as zeros. Without block status all is Data.
func (c *Client) Extents(off, n int64) iter.Seq2[layers.Extent, error] {
	return func(yield func(layers.Extent, error) bool) {
		off, end := max(off, 0), min(off+n, c.size)
		if !c.Sparse() {
			if off < end {
				yield(layers.Extent{Off: off, Len: end - off, Kind: layers.Data}, nil)
			}
			return
		}
		for r, err := range c.Runs(allocation, off, end-off) {
			e := layers.Extent{Off: r.Off, Len: r.Len, Kind: layers.Data}
			if r.Value&stateZero != 0 {
				e.Kind = layers.Zero // all else must be read
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Runs yields what the server says of [off, off+n) in a metadata context, without
// gaps; neighbours may have the same value. One that was not agreed on is
// errors.ErrUnsupported.
func (c *Client) Runs(context string, off, n int64) iter.Seq2[layers.Run, error] {
	return func(yield func(layers.Run, error) bool) {
		if !c.Tells(context) {
			yield(layers.Run{}, fmt.Errorf("block status of %s: the server does not tell %s: %w", c.uri, context, errors.ErrUnsupported))
			return
		}
		off, end := max(off, 0), min(off+n, c.size)
		for off < end {
			found, err := c.blockStatus(c.contexts[context], off, end)
			if err != nil {
				yield(layers.Run{}, err)
				return
			}
			for _, r := range found {
				start, stop := max(r.Off, off), min(r.End(), end)
				if start < stop && !yield(layers.Run{Off: start, Len: stop - start, Value: r.Value}, nil) {
					return
				}
			}
			off = found[len(found)-1].End()
		}
	}
}

// blockStatus asks about [off, end) or a part of it that begins with off. There
// is at least one run.
func (c *Client) blockStatus(context uint32, off, end int64) ([]layers.Run, error) {
	start := off - off%c.least
	n := min(end-start, maxStatus)
	if c.extended {
		n = min(end-start, maxStatusExtended)
	}
	n = (n + c.least - 1) / c.least * c.least
	call := &clientCall{cmd: cmdBlockStatus, off: start, n: n, context: context}
	if len(c.contexts) > 1 && c.flags&flagStatusPayload != 0 { // the server need not find out the others
		call.payload = binary.BigEndian.AppendUint64(nil, uint64(n))
		call.payload = binary.BigEndian.AppendUint32(call.payload, context)
	}
	if err := c.do(call); err != nil {
		return nil, c.opError("block status", start, n, err)
	}
	last := call.status[len(call.status)-1]
	if last.End() <= off {
		return nil, c.opError("block status", start, n, fmt.Errorf("%w: it ends at %d, within a block", errBreach, last.End()))
	}
	return call.status, nil
}

func (c *Client) writable(act string, off, n int64) error {
	if c.ReadOnly() {
		return fmt.Errorf("%s %s: the export is read-only: %w", act, c.uri, fs.ErrPermission)
	}
	if off < 0 || n < 0 || n > c.size-off {
		return fmt.Errorf("%s %s: [%d, +%d) goes beyond the size %d: %w", act, c.uri, off, n, c.size, fs.ErrInvalid)
	}
	return nil
}

// opError adds to an error what was tried, unless it is that of the connection,
// which says enough.
func (c *Client) opError(act string, off, n int64, err error) error {
	if err == c.reason() {
		return err
	}
	return fmt.Errorf("%s %s [%d, +%d): %w", act, c.uri, off, n, err)
}
