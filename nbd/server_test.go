package nbd_test

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"varve/nbd"
)

// shelf is a set of exports by name, with the count of those that are open.
type shelf struct {
	mu      sync.Mutex
	exports map[string]nbd.Export
	open    map[string]int
}

func newShelf(exports ...nbd.Export) *shelf {
	s := &shelf{exports: map[string]nbd.Export{}, open: map[string]int{}}
	for _, e := range exports {
		s.exports[e.Name] = e
	}
	return s
}

func (s *shelf) List(context.Context) ([]nbd.Listing, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []nbd.Listing
	for _, e := range s.exports {
		all = append(all, nbd.Listing{Name: e.Name, Description: e.Description})
	}
	return all, nil
}

func (s *shelf) Open(_ context.Context, name string) (*nbd.Export, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.exports[name]
	if !ok {
		return nil, fmt.Errorf("export %q: %w", name, fs.ErrNotExist)
	}
	s.open[name]++
	e.Close = func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.open[name]--
		return nil
	}
	return &e, nil
}

// put adds an export, or replaces one.
func (s *shelf) put(e nbd.Export) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exports[e.Name] = e
}

// leftOpen is the number of exports that were opened and not closed.
func (s *shelf) leftOpen() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, count := range s.open {
		n += count
	}
	return n
}

// serve runs server on a new unix socket until the test ends, and returns the
// socket's path.
func serve(t testing.TB, server *nbd.Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nbd.sock")
	serveOn(t, server, "unix", path)
	return path
}

// serveOn is serve for any network; it returns the address listened on.
func serveOn(t testing.TB, server *nbd.Server, network, address string) net.Addr {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	if server.Log == nil {
		server.Log = discard
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(patience):
			t.Error("Serve did not return after its context ended")
		}
	})
	return l.Addr()
}

var discard = slog.New(slog.DiscardHandler)
