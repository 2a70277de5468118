package testbed

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"slices"
	"sync"
	"testing"
)

// A WebProxy is a proxy as browsers use one: RFC 9110, 9.3.6 (CONNECT), and
// requests with a whole URL. It knows names that no DNS has.
type WebProxy struct {
	URL string // http://127.0.0.1:port

	resolve func(host string) (address string, ok bool)
	mu      sync.Mutex
	hosts   []string
}

// NewWebProxy starts a proxy that connects to what resolve says, host:port, for
// the host:port that it is asked for.
func NewWebProxy(t testing.TB, resolve func(host string) (address string, ok bool)) *WebProxy {
	t.Helper()
	p := &WebProxy{resolve: resolve}
	plain := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.Host = r.In.Host },
		Transport: &http.Transport{DialContext: func(ctx context.Context, network, host string) (net.Conn, error) {
			return p.dial(ctx, host)
		}},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect {
			p.connect(w, r)
			return
		}
		plain.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	p.URL = s.URL
	return p
}

// Hosts returns the different host:port that the proxy was asked for, sorted.
func (p *WebProxy) Hosts() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	hosts := slices.Clone(p.hosts)
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

func (p *WebProxy) dial(ctx context.Context, host string) (net.Conn, error) {
	p.mu.Lock()
	p.hosts = append(p.hosts, host)
	p.mu.Unlock()
	address, ok := p.resolve(host)
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", address)
}

func (p *WebProxy) connect(w http.ResponseWriter, r *http.Request) {
	server, err := p.dial(r.Context(), r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer server.Close()
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // gone
	}
	defer client.Close()
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	go func() {
		io.Copy(server, buffered) // either end may be gone
		server.Close()
	}()
	io.Copy(client, server)
}
