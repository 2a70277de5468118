package object

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

// stall is how long a connection may stand still, in both directions, while a
// request is under way, before it is given up. It is a limit on silence, not on
// the whole: a slow line is no error.
const stall = 60 * time.Second

// NewTransport returns an HTTP transport for one store: HTTP/1.1 (one TCP
// connection for all requests would make them wait for each other's losses),
// as many idle connections as a busy backup uses, and the stall limit. caFile,
// if not empty, is a PEM file of the authorities to trust in place of the
// system's. Proxies are those that HTTP_PROXY, HTTPS_PROXY and NO_PROXY in env
// say, or, if none of them is there, in the process's environment; loopback
// addresses are always reached directly.
func NewTransport(caFile string, env map[string]string) (*Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("certificate authorities: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificate authorities: no certificate in PEM form in %s", caFile)
		}
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 15 * time.Second}
	return &Transport{&http.Transport{
		Proxy: proxies(env),
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &stallConn{Conn: c}, nil
		},
		TLSClientConfig:       config,
		TLSHandshakeTimeout:   15 * time.Second,
		ExpectContinueTimeout: 5 * time.Second,
		MaxIdleConns:          64,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       stall,
		WriteBufferSize:       64 << 10,
		ReadBufferSize:        64 << 10,
		DisableCompression:    true, // objects are stored and read as they are
		Protocols:             &protocols,
	}}, nil
}

// A Transport sends requests no faster than the [Gate] that they came through
// wants, and ends answers that no server gives.
type Transport struct {
	plain *http.Transport
}

// RoundTrip is http.RoundTripper's.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := roundTrip(t.plain, r)
	if err == nil {
		answer.Body = bounded(r, answer)
	}
	return answer, err
}

// CloseIdleConnections is what http.Client looks for.
func (t *Transport) CloseIdleConnections() { t.plain.CloseIdleConnections() }

// stallConn is a connection on which each Read and each Write moves the
// deadline of both on: while an upload makes progress, the Read that waits for
// its answer must not give up.
type stallConn struct {
	net.Conn
}

func (c *stallConn) Read(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(stall)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *stallConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(stall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
