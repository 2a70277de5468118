package nbd

import (
	"context"
	"errors"
	"log/slog"
	"net"
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

	// Log gets what cannot be answered to a client. Nil is slog.Default().
	Log *slog.Logger

	// MaxConnections is the number of connections served at once over all
	// listeners; one more is closed unanswered. Zero means 128.
	MaxConnections int

	// InFlight bounds the bytes of requests and replies held for one
	// connection; beyond it the connection is not read. Zero means 32 MiB.
	InFlight int64

	// HandshakeTimeout bounds the time from accept to the first request.
	// Zero means 30 seconds.
	HandshakeTimeout time.Duration
}

// Serve accepts connections from l, which it closes, until ctx ends or
// Shutdown is called. It returns after the last of its connections is gone.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	return errors.ErrUnsupported
}

// Shutdown stops accepting, answers what is in flight, flushes the devices
// and closes the connections. When ctx ends first, they are closed as they are.
func (s *Server) Shutdown(ctx context.Context) error { return nil }
