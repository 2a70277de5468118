package nbd

import (
	"io"
	"net"
)

// The sizes of an input's buffer, in bytes: small while a client negotiates,
// large when one read shall bring many requests.
const (
	handshakeInput    = 4 << 10
	transmissionInput = 256 << 10

	// afterLarge is how much is read after a large payload. The next request
	// is likely to be of the same kind, and what of its payload comes with
	// the header has to be copied.
	afterLarge = 4 << 10
)

// An input reads a connection through a buffer. It belongs to the
// connection's reader.
type input struct {
	conn net.Conn
	buf  *buffer
	r, w int // buf.b[r:w] has arrived and waits
	more int // bytes that the next need may read beyond what it must

	// beforeRead, if set, is called before a read that may block, so that
	// no finished reply waits for a client's next request.
	beforeRead func()
}

func newInput(conn net.Conn) *input {
	return &input{conn: conn, buf: newBuffer(handshakeInput), more: handshakeInput}
}

// widen goes over to a large buffer.
func (in *input) widen() {
	wide := newBuffer(transmissionInput)
	n := copy(wide.b, in.waiting())
	in.buf.free()
	in.buf, in.r, in.w, in.more = wide, 0, n, len(wide.b)
}

func (in *input) free() { in.buf.free() }

// waiting is what has arrived and was not taken. It stays valid until the
// next need or read.
func (in *input) waiting() []byte { return in.buf.b[in.r:in.w] }

// take returns the next n bytes, which are waiting, and steps over them.
func (in *input) take(n int) []byte {
	p := in.buf.b[in.r : in.r+n]
	in.r += n
	return p
}

// need reads until n bytes wait; n is at most the buffer's size. Ending
// between messages is io.EOF, inside one io.ErrUnexpectedEOF.
func (in *input) need(n int) error {
	if in.w-in.r >= n {
		return nil
	}
	if in.r == in.w {
		in.r, in.w = 0, 0
	} else if in.r+n > len(in.buf.b) || in.r > len(in.buf.b)/2 {
		in.w = copy(in.buf.b, in.waiting())
		in.r = 0
	}
	if in.beforeRead != nil {
		in.beforeRead()
	}
	end := min(in.r+n+in.more, len(in.buf.b))
	in.more = len(in.buf.b)
	for in.w-in.r < n {
		m, err := in.conn.Read(in.buf.b[in.w:end])
		in.w += m
		if in.w-in.r >= n {
			return nil
		}
		if err != nil {
			if err == io.EOF && in.w > in.r {
				return io.ErrUnexpectedEOF
			}
			return err
		}
	}
	return nil
}

// readFull fills p with what waits and then from the connection.
func (in *input) readFull(p []byte) error {
	if len(p) >= len(in.buf.b) {
		in.more = afterLarge
	}
	n := copy(p, in.waiting())
	in.r += n
	if n == len(p) {
		return nil
	}
	if in.beforeRead != nil {
		in.beforeRead()
	}
	if _, err := io.ReadFull(in.conn, p[n:]); err != nil {
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	return nil
}

// skip throws the next n bytes away, without holding more than the buffer.
func (in *input) skip(n int64) error {
	for n > 0 {
		if in.r == in.w {
			if err := in.need(1); err != nil {
				if err == io.EOF {
					return io.ErrUnexpectedEOF
				}
				return err
			}
		}
		m := min(n, int64(in.w-in.r))
		in.r += int(m)
		n -= m
	}
	return nil
}
