package nbd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A Server serves exports to NBD clients. Its fields are set before the first
// Serve and not changed after it. List and Open are called concurrently.
type Server struct {
	// List names the exports that a client may see. Nil lists none.
	List func(ctx context.Context) ([]Listing, error)

	// Open opens the export called name for one connection. The empty name is
	// the default export. An error that wraps fs.ErrNotExist says that there
	// is none; the text of any other error goes to the client. It is called
	// for every question about an export too, with Close right after.
	Open func(ctx context.Context, name string) (*Export, error)

	// ConnContext may add to the context of a new connection, which List and
	// Open get. Nil adds nothing.
	ConnContext func(ctx context.Context, conn net.Conn) context.Context

	// TLS, if it is not nil, is offered to clients: ServerTLS makes one.
	TLS *tls.Config

	// RequireTLS says whether a connection must begin with TLS. Nil, or without
	// TLS, none must.
	RequireTLS func(conn net.Conn) bool

	// Log gets what cannot be answered to a client. Nil is slog.Default().
	Log *slog.Logger

	// MaxConnections is the number of connections served at once over all
	// listeners. For one more the one that has been in its handshake longest is
	// closed; if none is in one, the new one is, unanswered. Zero means 128.
	MaxConnections int

	// InFlight bounds the bytes of requests and replies held for one
	// connection; beyond it the connection is not read. Zero means 32 MiB.
	InFlight int64

	// TotalInFlight bounds those bytes over all connections, beyond 1 MiB that
	// each may hold anyway. When it is reached, larger requests wait for each
	// other, and connections whose clients have taken no reply for
	// StallTimeout are closed. Zero means 512 MiB.
	TotalInFlight int64

	// StallTimeout is that time. Zero means 10 seconds.
	StallTimeout time.Duration

	// HandshakeTimeout bounds the time from accept to the first request.
	// Zero means 30 seconds.
	HandshakeTimeout time.Duration

	requests atomic.Int64 // see Requests

	mu        sync.Mutex
	closing   bool
	listeners map[net.Listener]struct{}
	sessions  map[*session]context.CancelFunc
	leaving   int       // of sessions: were closed to make room, and have not ended
	ended     sync.Cond // sessions has shrunk, or was abandoned
	budget    budget
	flood     flood // of lines in the log about strangers
}

// Serve accepts connections from l, which it closes, until ctx ends or
// Shutdown is called. It returns after the last of its connections is gone:
// nil after Shutdown, otherwise why it ended.
//
// When ctx ends, connections are closed as they are: requests that the device
// is serving end, but their replies may be lost.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if !s.enter(l) { // Shutdown came first
		l.Close()
		return nil
	}
	defer s.leave(l)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var sessions sync.WaitGroup
	err := s.accept(ctx, l, &sessions)
	sessions.Wait()
	return err
}

// accept starts a session for each connection of l.
func (s *Server) accept(ctx context.Context, l net.Listener, sessions *sync.WaitGroup) error {
	pause := time.Duration(0)
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.start(ctx, conn, sessions)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case s.isClosing():
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default: // out of descriptors, or the peer is gone already
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log().Error("nbd: accept", "error", err, "pause", pause)
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
		}
	}
}

// start runs a session on conn, if there is room for one more.
func (s *Server) start(ctx context.Context, conn net.Conn, sessions *sync.WaitGroup) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetNoDelay(true) // replies are gathered already
	}
	if s.ConnContext != nil {
		ctx = s.ConnContext(ctx, conn)
	}
	ctx, cancel := context.WithCancel(ctx)
	t := newSession(ctx, s, conn)
	t.out.budget, t.out.done = &s.budget, ctx.Done()
	if !s.admit(t, cancel) {
		t.warn("nbd: connection refused: too many, or the server is shutting down", "limit", s.maxConnections())
		t.in.free()
		conn.Close()
		cancel()
		return
	}
	sessions.Go(func() {
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		t.run()
		stop()
		cancel()
		s.forget(t)
	})
}

// Shutdown stops accepting, answers what is in flight, refuses what comes
// later with ESHUTDOWN, flushes the devices and closes the connections. When
// ctx ends first, they are closed as they are, and it returns why ctx ended;
// requests that a device still works on keep their exports open, and Serve
// waits for them. The server cannot be used again.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	s.closing = true
	for l := range s.listeners {
		l.Close()
	}
	for t := range s.sessions {
		t.late.Store(true)
		t.hurry()
	}
	stop := context.AfterFunc(ctx, s.abandon)
	for len(s.sessions) > 0 && ctx.Err() == nil {
		s.ended.Wait()
	}
	if !stop() {
		return context.Cause(ctx)
	}
	return nil
}

// abandon closes all connections as they are.
func (s *Server) abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, cancel := range s.sessions {
		cancel()
	}
	s.ended.Broadcast()
}

// dropStalled closes the connections whose clients take no replies.
func (s *Server) dropStalled() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t, cancel := range s.sessions {
		if t.out.stalled(s.budget.after) {
			t.log.Warn("nbd: the client takes no replies while others wait for memory: its connection is closed", "for", s.budget.after)
			cancel()
		}
	}
}

// Connections is the number of connections that are served now.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

func (s *Server) init() {
	if s.sessions == nil {
		s.listeners = make(map[net.Listener]struct{})
		s.sessions = make(map[*session]context.CancelFunc)
		s.ended.L = &s.mu
		s.budget.limit = cmp.Or(s.TotalInFlight, 512<<20)
		s.budget.after = cmp.Or(s.StallTimeout, 10*time.Second)
		s.budget.relieve = s.dropStalled
	}
}

func (s *Server) enter(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	if s.closing {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) leave(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
	l.Close()
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

func (s *Server) log() *slog.Logger               { return cmp.Or(s.Log, slog.Default()) }
func (s *Server) maxConnections() int             { return cmp.Or(s.MaxConnections, 128) }
func (s *Server) inFlight() int64                 { return cmp.Or(s.InFlight, 32<<20) }
func (s *Server) handshakeTimeout() time.Duration { return cmp.Or(s.HandshakeTimeout, 30*time.Second) }

// Requests returns how many requests of all its connections the server has
// taken, about: each connection adds its own when it has no more at hand.
func (s *Server) Requests() int64 { return s.requests.Load() }
