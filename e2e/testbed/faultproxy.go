package testbed

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// A FaultProxy stands between an HTTP client and its server and spoils what is
// said. Hosts are passed on as the client named them, so that signatures and
// addresses in answers stay right.
type FaultProxy struct {
	URL string // http://127.0.0.1:port

	mu       sync.Mutex
	rule     func(*http.Request) Fault
	count    int
	listings map[string]recorded // the first answers to listings since StaleListings
}

// A Fault is what becomes of a request. The zero value is nothing: it goes to
// the server and back.
type Fault struct {
	Status     int    // answer this and do not ask the server
	Body       string // of that answer
	RetryAfter int    // seconds, in its header; 0: none
	After      bool   // ask the server first: it did what it was asked, and nobody is told

	Stall        bool  // say nothing until the client has gone
	Truncate     int64 // end the body of the answer after so many bytes less one, in the middle of the connection; 0: do not
	IgnoreRange  bool  // answer as if no range had been asked for
	ShiftRange   int64 // send the range that begins so many bytes later, and say so
	FalseRange   int64 // send that range, and claim that it is the one asked for
	StaleListing bool  // answer a listing as it was answered first
}

type recorded struct {
	status int
	header http.Header
	body   []byte
}

// NewFaultProxy starts a proxy to the server at an URL, http://host:port.
func NewFaultProxy(t testing.TB, server string) *FaultProxy {
	t.Helper()
	to, err := url.Parse(server)
	if err != nil {
		t.Fatalf("testbed: %v", err)
	}
	p := &FaultProxy{}
	plain := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = to.Scheme, to.Host, r.In.Host
		},
		Transport:    &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { panic(http.ErrAbortHandler) },
		ErrorLog:     log.New(io.Discard, "", 0),
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, plain) }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	p.URL = s.URL
	return p
}

// Set makes every request from now on meet the fault that rule says; nil is
// none. rule is called by one request at a time.
func (p *FaultProxy) Set(rule func(*http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rule, p.count, p.listings = rule, 0, map[string]recorded{}
}

// Faults returns how many requests met a fault since Set.
func (p *FaultProxy) Faults() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.count
}

func (p *FaultProxy) fault(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rule == nil {
		return Fault{}
	}
	f := p.rule(r)
	if f != (Fault{}) {
		p.count++
	}
	return f
}

func (p *FaultProxy) serve(w http.ResponseWriter, r *http.Request, server http.Handler) {
	f := p.fault(r)
	switch {
	case f.Stall:
		<-r.Context().Done()
	case f.After:
		server.ServeHTTP(httptest.NewRecorder(), r)
		f.answer(w)
	case f.Status != 0:
		io.Copy(io.Discard, r.Body) // a client that cannot send all of it sees a closed connection
		f.answer(w)
	case f.StaleListing:
		p.stale(w, r, server)
	case f.Truncate > 0:
		server.ServeHTTP(&shortened{ResponseWriter: w, left: f.Truncate - 1}, r)
	case f.IgnoreRange, f.ShiftRange+f.FalseRange > 0:
		shifted(w, r, server, f)
	default:
		server.ServeHTTP(w, r)
	}
}

func (f Fault) answer(w http.ResponseWriter) {
	if f.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(f.RetryAfter))
	}
	w.WriteHeader(f.Status)
	io.WriteString(w, f.Body) // the client may be gone
}

// stale answers as the same question was answered first.
func (p *FaultProxy) stale(w http.ResponseWriter, r *http.Request, server http.Handler) {
	p.mu.Lock()
	old, found := p.listings[r.URL.String()]
	p.mu.Unlock()
	if !found {
		answer := httptest.NewRecorder()
		server.ServeHTTP(answer, r)
		old = recorded{answer.Code, answer.Header(), answer.Body.Bytes()}
		p.mu.Lock()
		p.listings[r.URL.String()] = old
		p.mu.Unlock()
	}
	for name, values := range old.header {
		w.Header()[name] = values
	}
	w.WriteHeader(old.status)
	w.Write(old.body) // the client may be gone
}

// shifted answers with another range than was asked for. The server is asked
// for the right one: a signature may cover it.
func shifted(w http.ResponseWriter, r *http.Request, server http.Handler, f Fault) {
	var from, to int64
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &from, &to); err != nil {
		server.ServeHTTP(w, r)
		return
	}
	answer := httptest.NewRecorder()
	server.ServeHTTP(answer, r)
	body := answer.Body.Bytes()
	by := min(f.ShiftRange+f.FalseRange, int64(len(body)))
	total := strings.TrimPrefix(answer.Header().Get("Content-Range"), fmt.Sprintf("bytes %d-%d/", from, from+int64(len(body))-1))
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	switch {
	case f.IgnoreRange:
		answer.Code = http.StatusOK
		w.Header().Del("Content-Range")
	case f.ShiftRange > 0:
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%s", from+by, from+int64(len(body))-1, total))
		body = body[by:]
	default:
		body = append(bytes.Clone(body[by:]), body[:by]...)
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(answer.Code)
	w.Write(body) // the client may be gone
}

// A shortened answer breaks off after left bytes of its body.
type shortened struct {
	http.ResponseWriter
	left int64
}

func (s *shortened) Write(b []byte) (int, error) {
	if int64(len(b)) <= s.left {
		s.left -= int64(len(b))
		return s.ResponseWriter.Write(b)
	}
	s.ResponseWriter.Write(b[:s.left])
	if f, ok := s.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
	panic(http.ErrAbortHandler) // which closes the connection
}
