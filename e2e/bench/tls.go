package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// tlsBuffer is how much of what is encrypted goes through one system call.
const tlsBuffer = 256 << 10

// secured is TLS over a conn. It gathers records in both directions: without
// that each of 16 KiB would cost the client system calls of its own.
type secured struct {
	*tls.Conn
	out *bufio.Writer
}

// startTLS asks for TLS and goes over to it. The server's certificate must be
// signed by ca-cert.pem in the folder.
func (c *conn) startTLS(certificates string) error {
	if err := c.option(optStartTLS, nil, func(uint32, []byte) error { return nil }); err != nil {
		return err
	}
	authority, err := os.ReadFile(filepath.Join(certificates, "ca-cert.pem"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return fmt.Errorf("no certificate in %s/ca-cert.pem", certificates)
	}
	plain := &plainConn{conn: c, in: bufio.NewReaderSize(receiver{c}, tlsBuffer), out: bufio.NewWriterSize(sender{c}, tlsBuffer)}
	s := &secured{tls.Client(plain, &tls.Config{RootCAs: roots, ServerName: "localhost", DynamicRecordSizingDisabled: true}), plain.out}
	if err := errors.Join(s.Handshake(), s.out.Flush()); err != nil {
		return err
	}
	c.secure = s
	return nil
}

func (s *secured) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	return n, errors.Join(err, s.out.Flush())
}

func (s *secured) writeAll(pieces [][]byte) error {
	for _, p := range pieces {
		if _, err := s.Conn.Write(p); err != nil {
			return err
		}
	}
	return s.out.Flush()
}

type (
	receiver struct{ *conn }
	sender   struct{ *conn }
)

func (r receiver) Read(p []byte) (int, error) { return r.receive(p) }
func (s sender) Write(p []byte) (int, error)  { return s.send(p) }

// A plainConn is what lies below TLS. A read sends first what waits to be sent,
// so that a handshake goes on. Deadlines are the socket's own.
type plainConn struct {
	net.Conn // nil: only for the methods that nobody calls
	conn     *conn
	in       *bufio.Reader
	out      *bufio.Writer
}

func (p *plainConn) Read(b []byte) (int, error) {
	if p.in.Buffered() == 0 && p.out.Buffered() > 0 {
		if err := p.out.Flush(); err != nil {
			return 0, err
		}
	}
	return p.in.Read(b)
}

func (p *plainConn) Write(b []byte) (int, error) { return p.out.Write(b) }

// makeCertificates writes what servers and clients want to a new folder: an
// authority, and a certificate of it for localhost.
func makeCertificates(dir string) error {
	template := func(serial int64, name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		}
	}
	authority := template(1, "varve bench")
	authority.IsCA, authority.BasicConstraintsValid, authority.KeyUsage = true, true, x509.KeyUsageCertSign
	server := template(2, "localhost")
	server.DNSNames, server.KeyUsage = []string{"localhost"}, x509.KeyUsageDigitalSignature
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serverKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(serverKey)
	if err != nil {
		return err
	}
	signed, err := x509.CreateCertificate(rand.Reader, authority, authority, authorityKey.Public(), authorityKey)
	if err != nil {
		return err
	}
	cert, err := x509.CreateCertificate(rand.Reader, server, authority, serverKey.Public(), authorityKey)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	write := func(name, kind string, der []byte) error {
		return os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
	}
	return errors.Join(write("ca-cert.pem", "CERTIFICATE", signed), write("server-cert.pem", "CERTIFICATE", cert),
		write("server-key.pem", "PRIVATE KEY", key))
}
