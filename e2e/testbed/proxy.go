package testbed

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Proxy stands between a client and a server and breaks what passes. A fault
// holds for all connections, open and new, until Heal; it counts for each from
// when it began.
//
// It is not Toxiproxy (2.5.0): that waits for ever when a fault ends while a
// connection does, which wants the lock that the end of the fault holds.
type Proxy struct {
	Address string // host:port

	t        testing.TB
	server   string // host:port
	mu       sync.Mutex
	listener net.Listener // nil: down
	streams  map[*stream]bool
	fault    fault
}

// A fault is what happens to the data of connections. The zero value is none.
type fault struct {
	delay      time.Duration // in each direction
	upload     int64         // bytes from the client that pass; 0: all
	download   int64         // bytes from the server that pass; 0: all
	reset      bool          // when the server sends something
	hang       bool          // what the server sends is lost
	generation int           // counts the faults that there were
}

// A stream is one direction of a connection.
type stream struct {
	from, to   *net.TCPConn
	other      *stream // the other direction
	download   bool    // from the server
	generation int     // of the fault that passed is since
	passed     int64   // bytes
	lost       bool    // something did not arrive
}

// NewProxy starts a proxy to the server at an URL (http://host:port).
func NewProxy(t testing.TB, server string) *Proxy {
	t.Helper()
	ports, err := freePorts(1)
	if err != nil {
		t.Fatalf("testbed: %v", err)
	}
	p := &Proxy{
		Address: fmt.Sprintf("127.0.0.1:%d", ports[0]), t: t, server: strings.TrimPrefix(server, "http://"), streams: map[*stream]bool{},
	}
	p.Up()
	t.Cleanup(p.Down)
	return p
}

// Up ends Down.
func (p *Proxy) Up() {
	p.t.Helper()
	l, err := net.Listen("tcp", p.Address)
	if err != nil {
		p.t.Fatalf("testbed: proxy: %v", err)
	}
	p.mu.Lock()
	p.listener = l
	p.mu.Unlock()
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // it was closed
			}
			go p.connect(l, client.(*net.TCPConn))
		}
	}()
}

// Down cuts all connections and refuses new ones, as a server that has ended.
func (p *Proxy) Down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		p.listener.Close()
	}
	p.listener = nil
	for s := range p.streams {
		s.close()
	}
}

// Delay lets everything arrive later by d, in each direction.
func (p *Proxy) Delay(d time.Duration) { p.set(func(f *fault) { f.delay = d }) }

// CutUpload ends each connection when the client has sent n bytes.
func (p *Proxy) CutUpload(n int64) { p.set(func(f *fault) { f.upload = n }) }

// CutDownload ends each connection when the server has sent n bytes.
func (p *Proxy) CutDownload(n int64) { p.set(func(f *fault) { f.download = n }) }

// Reset resets each connection when the server sends something.
func (p *Proxy) Reset() { p.set(func(f *fault) { f.reset = true }) }

// Hang lets nothing arrive, and says nothing.
func (p *Proxy) Hang() { p.set(func(f *fault) { f.hang = true }) }

// Heal ends all faults but Down, and the connections that Hang took something
// from.
func (p *Proxy) Heal() {
	p.set(func(f *fault) { *f = fault{generation: f.generation} })
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.streams {
		if s.lost {
			s.close()
			delete(p.streams, s)
		}
	}
}

func (p *Proxy) set(change func(*fault)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(&p.fault)
	p.fault.generation++
}

// connect joins a client, which l accepted, to the server.
func (p *Proxy) connect(l net.Listener, client *net.TCPConn) {
	conn, err := net.Dial("tcp", p.server)
	if err != nil {
		client.Close()
		return
	}
	server := conn.(*net.TCPConn)
	up, down := &stream{from: client, to: server}, &stream{from: server, to: client, download: true}
	up.other, down.other = down, up
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != l { // it went down meanwhile
		up.close()
		return
	}
	for _, s := range []*stream{up, down} {
		p.streams[s] = true
		go p.pass(s)
	}
}

// A piece is what one read of a stream gave; nil data is its end.
type piece struct {
	data []byte
	at   time.Time
}

// pass passes on what a stream brings, until it ends or a fault ends it.
func (p *Proxy) pass(s *stream) {
	pieces := make(chan piece, 256) // so many may be under way at a time
	go func() {
		defer close(pieces)
		for {
			b := make([]byte, 32<<10)
			n, err := s.from.Read(b)
			if n > 0 {
				pieces <- piece{b[:n], time.Now()}
			}
			if err != nil {
				if err == io.EOF {
					pieces <- piece{nil, time.Now()}
				}
				return
			}
		}
	}()
	open, whole := true, false
	for piece := range pieces {
		open = open && p.passOn(s, piece)
		whole = piece.data == nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case s.lost: // it is silent until Heal
		return
	case !whole, !p.streams[s.other]:
		s.close()
	}
	delete(p.streams, s)
}

// passOn passes on one piece, as the fault of the moment lets it. It returns
// false if that ended the connection.
func (p *Proxy) passOn(s *stream, piece piece) bool {
	p.mu.Lock()
	f := p.fault
	if s.generation != f.generation {
		s.generation, s.passed = f.generation, 0
	}
	if f.hang && s.download {
		s.lost = true
	}
	lost := s.lost
	p.mu.Unlock()
	if lost {
		return true
	}
	time.Sleep(time.Until(piece.at.Add(f.delay)))
	if piece.data == nil {
		s.to.CloseWrite()
		return true
	}
	if f.reset && s.download {
		s.from.SetLinger(0)
		s.to.SetLinger(0)
		s.close()
		return false
	}
	limit := f.upload
	if s.download {
		limit = f.download
	}
	data := piece.data
	if limit > 0 {
		data = data[:min(int64(len(data)), limit-s.passed)]
	}
	n, err := s.to.Write(data)
	s.passed += int64(n)
	if err != nil || limit > 0 && s.passed == limit {
		s.close()
		return false
	}
	return true
}

// close ends both directions.
func (s *stream) close() {
	s.from.Close()
	s.to.Close()
}
