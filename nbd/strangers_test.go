package nbd_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/nbd"
)

// TestStrangersDoNotLockOut: hundreds of connections that never come to the
// point, before, inside and after the handshake of TLS, are there. A client that
// knows what it wants is served at once, and those that are served stay.
func TestStrangersDoNotLockOut(t *testing.T) {
	log := &lockedBuffer{}
	r := newTLSRigWith(t, &nbd.Server{MaxConnections: 16, HandshakeTimeout: time.Hour, Log: slog.New(slog.NewTextHandler(log, nil))})
	served := r.dial(t).greet(3).encrypt(r.config(t))
	served.goTo("main")
	hello := clientHello(t)
	var strangers []net.Conn
	for i := range 300 {
		conn, err := net.Dial("tcp", r.tcp.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		strangers = append(strangers, conn)
		if _, err := io.ReadFull(conn, make([]byte, 18)); err != nil { // it has been let in
			t.Fatalf("stranger %d: %v", i, err)
		}
		start := append([]byte{0, 0, 0, 3}, optionBytes(optStartTLS, nil)...)
		switch i % 4 {
		case 1: // flags and no more
			conn.Write(start[:4])
		case 2: // half of a ClientHello
			conn.Write(start)
			conn.Write(hello[:len(hello)/2])
		case 3: // nonsense
			conn.Write(start)
			conn.Write(bytes.Repeat([]byte{0x16, 3, 1, 0x40}, 1000))
		}
		if i%50 != 49 {
			continue
		}
		c := r.dial(t).greet(3).encrypt(r.config(t))
		c.goTo("main")
		c.alive()
		c.Close()
	}
	served.alive()
	if n := r.server.Connections(); n > 16+1 {
		t.Errorf("%d connections are served, at most 16 may be", n)
	}
	for _, conn := range strangers {
		conn.Close()
	}
	waitFor(t, "the strangers are gone", func() bool { return r.server.Connections() == 1 })
	served.alive()
	if lines := strings.Count(log.String(), "\n"); lines > 60 {
		t.Errorf("300 strangers left %d lines in the log", lines)
	}
}

// TestServedConnectionsAreNotGivenUp: where all that are there are served, one
// more is refused, as ever.
func TestServedConnectionsAreNotGivenUp(t *testing.T) {
	r := newRigWith(t, &nbd.Server{MaxConnections: 3, Log: discard})
	var all []*rawClient
	for range 3 {
		all = append(all, r.transmission(t, "main"))
	}
	for range 20 {
		r.dial(t).closed()
	}
	for _, c := range all {
		c.alive()
	}
}

// TestCertificates that are out of date, too early, for another use, of another
// authority or for another name are refused, by the server and by our client.
func TestCertificates(t *testing.T) {
	for name, c := range map[string]struct {
		change         func(*x509.Certificate)
		stranger       bool
		client, server bool // whether it will do for that side
	}{
		"good":                {client: true, server: true},
		"expired":             {change: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }},
		"not valid yet":       {change: func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour / 2) }},
		"a server's only":     {change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, server: true},
		"a client's only":     {change: func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }, client: true},
		"another name":        {change: func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{"elsewhere"}, nil }, client: true},
		"another authority's": {stranger: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, side := range []string{"client", "server"} {
				r := newTLSRig(t)
				by := r.authority
				if c.stranger {
					by = newAuthority(t)
				}
				authority, err := os.ReadFile(filepath.Join(r.dir, "ca-cert.pem"))
				if err != nil {
					t.Fatal(err)
				}
				by.issueChanged(r.dir, side, "alice", c.change)
				if err := os.WriteFile(filepath.Join(r.dir, "ca-cert.pem"), authority, 0o600); err != nil {
					t.Fatal(err)
				}
				client, err := nbd.Dial(t.Context(), r.uri("main"), nbd.ClientOptions{})
				if err == nil {
					client.Close()
				}
				if want := map[string]bool{"client": c.client, "server": c.server}[side]; (err == nil) != want {
					t.Errorf("as a %s's certificate: %v, want it to do: %v", side, err, want)
				}
			}
		})
	}
}

// clientHello is how TLS begins.
func clientHello(t *testing.T) []byte {
	t.Helper()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		tls.Client(theirs, &tls.Config{ServerName: "localhost"}).Handshake() // it fails when ours is closed
	}()
	p := make([]byte, 4096)
	n, err := ours.Read(p)
	if err != nil || n < 100 {
		t.Fatalf("a hello of %d bytes: %v", n, err)
	}
	return p[:n]
}

// A lockedBuffer is a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
