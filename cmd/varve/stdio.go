package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// stdioListener is a listener whose one connection is the program's standard
// input and output.
func (p *program) stdioListener() (net.Listener, error) {
	out, is := p.stdout.(*os.File)
	if !is {
		return nil, errors.New("standard output is no file")
	}
	l := &oneListener{conns: make(chan net.Conn, 1), done: make(chan struct{})}
	if conn, err := net.FileConn(p.stdin); err == nil { // a socket, for both
		l.conns <- &oneConn{Conn: conn, ended: l.Close}
		return l, nil
	}
	in, err := pollable(p.stdin)
	if err == nil {
		out, err = pollable(out)
	}
	if err != nil {
		return nil, err
	}
	l.conns <- &oneConn{Conn: &pipeConn{in: in, out: out}, ended: l.Close}
	return l, nil
}

// pollable is f with deadlines, which a terminal or a file does not have.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, err
	}
	p := os.NewFile(uintptr(fd), f.Name())
	if err := p.SetDeadline(time.Time{}); err != nil {
		p.Close()
		return nil, fmt.Errorf("%s is no socket or pipe: %w", f.Name(), err)
	}
	return p, nil
}

// A oneListener gives out one connection, and ends when that ends.
type oneListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *oneListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *oneListener) Addr() net.Addr { return stdioAddr{} }

// A oneConn tells when it is closed.
type oneConn struct {
	net.Conn
	ended func() error
}

func (c *oneConn) Close() error {
	defer c.ended()
	return c.Conn.Close()
}

// A pipeConn is two pipes.
type pipeConn struct{ in, out *os.File }

func (c *pipeConn) Read(p []byte) (int, error)         { return c.in.Read(p) }
func (c *pipeConn) Write(p []byte) (int, error)        { return c.out.Write(p) }
func (c *pipeConn) Close() error                       { return errors.Join(c.in.Close(), c.out.Close()) }
func (c *pipeConn) LocalAddr() net.Addr                { return stdioAddr{} }
func (c *pipeConn) RemoteAddr() net.Addr               { return stdioAddr{} }
func (c *pipeConn) SetReadDeadline(at time.Time) error { return c.in.SetReadDeadline(at) }
func (c *pipeConn) SetWriteDeadline(at time.Time) error {
	return c.out.SetWriteDeadline(at)
}
func (c *pipeConn) SetDeadline(at time.Time) error {
	return errors.Join(c.in.SetReadDeadline(at), c.out.SetWriteDeadline(at))
}

// stdioAddr is local: whoever started the program has the other end.
type stdioAddr struct{}

func (stdioAddr) Network() string { return "unix" }
func (stdioAddr) String() string  { return "stdio" }
