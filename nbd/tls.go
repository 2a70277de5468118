package nbd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// The files of a folder with certificates, in PEM. The names are those that
// qemu-nbd, nbdkit and libnbd use.
const (
	caFile         = "ca-cert.pem"
	crlFile        = "ca-crl.pem" // may be missing
	serverCertFile = "server-cert.pem"
	serverKeyFile  = "server-key.pem"
	clientCertFile = "client-cert.pem"
	clientKeyFile  = "client-key.pem"
)

// ServerTLS reads a server's side of TLS from a folder: server-cert.pem and
// server-key.pem; with verifyPeer clients must show a certificate that
// ca-cert.pem has signed and ca-crl.pem, if it is there, does not revoke. The
// files are read again for each connection, so that they can be renewed; they
// must be good now.
func ServerTLS(dir string, verifyPeer bool) (*tls.Config, error) {
	read := func() (*tls.Config, error) {
		c, err := readTLS(dir, serverCertFile, serverKeyFile)
		if err == nil && verifyPeer {
			c.ClientCAs = c.RootCAs
			c.ClientAuth = tls.RequireAndVerifyClientCert
			if c.ClientCAs == nil {
				err = fmt.Errorf("TLS certificates in %s: clients cannot be verified without %s", dir, caFile)
			}
		}
		return c, err
	}
	c, err := read()
	if err != nil {
		return nil, err
	}
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return read() }
	return c, nil
}

// clientTLS reads a client's side of TLS from a folder: ca-cert.pem, which must
// have signed the server's certificate; ca-crl.pem and a certificate of the
// client's own if they are there. Without a folder the system's authorities
// count.
func clientTLS(a Address) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if a.Certificates != "" {
		_, err := os.Stat(filepath.Join(a.Certificates, clientCertFile))
		own := clientCertFile
		if errors.Is(err, fs.ErrNotExist) {
			own = ""
		}
		if c, err = readTLS(a.Certificates, own, clientKeyFile); err != nil {
			return nil, err
		}
		if c.RootCAs == nil && !a.Unverified {
			return nil, fmt.Errorf("TLS certificates in %s: the server cannot be verified without %s", a.Certificates, caFile)
		}
	}
	c.ServerName, c.InsecureSkipVerify = a.ServerName, a.Unverified
	return c, nil
}

// readTLS reads what a folder has. cert may be empty: no certificate of one's
// own then. RootCAs is nil if there is no authority.
func readTLS(dir, cert, key string) (*tls.Config, error) {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12, // "TLS versions"
		// Records of full size from the first on: what is read is sent in
		// large pieces, and nobody waits for the first byte of one.
		DynamicRecordSizingDisabled: true,
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, cert), filepath.Join(dir, key))
		if err != nil {
			return nil, fmt.Errorf("TLS certificate %s with key %s in %s: %w", cert, key, dir, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	path := filepath.Join(dir, caFile)
	p, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, fmt.Errorf("TLS authority: %w", err)
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(p) {
		return nil, fmt.Errorf("TLS authority %s: no certificate in PEM is in it", path)
	}
	revoked, err := readCRL(filepath.Join(dir, crlFile))
	if err != nil {
		return nil, err
	}
	if revoked != nil {
		c.VerifyConnection = revoked.check
	}
	return c, nil
}

// A revocation is a certificate revocation list: RFC 5280, section 5.
type revocation struct {
	path string
	list *x509.RevocationList
}

// readCRL returns nil if there is no such file.
func readCRL(path string) (*revocation, error) {
	p, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("TLS revocation list: %w", err)
	}
	if block, _ := pem.Decode(p); block != nil {
		p = block.Bytes
	}
	list, err := x509.ParseRevocationList(p)
	if err != nil {
		return nil, fmt.Errorf("TLS revocation list %s: %w", path, err)
	}
	return &revocation{path, list}, nil
}

// check refuses a peer whose chain the list revokes, and any if the list is not
// the authority's or is out of date: then nobody knows who is revoked.
func (r *revocation) check(s tls.ConnectionState) error {
	for _, chain := range s.VerifiedChains {
		if err := r.checkChain(chain); err != nil {
			return err
		}
	}
	return nil
}

func (r *revocation) checkChain(chain []*x509.Certificate) error {
	root := chain[len(chain)-1]
	if err := r.list.CheckSignatureFrom(root); err != nil {
		return fmt.Errorf("TLS revocation list %s is not signed by %s: %w", r.path, root.Subject, err)
	}
	if !r.list.NextUpdate.IsZero() && time.Now().After(r.list.NextUpdate) {
		return fmt.Errorf("TLS revocation list %s was good until %v: get a new one from the authority", r.path, r.list.NextUpdate)
	}
	for _, c := range chain {
		for _, gone := range r.list.RevokedCertificateEntries {
			if c.SerialNumber.Cmp(gone.SerialNumber) == 0 {
				return fmt.Errorf("certificate %s is revoked", c.Subject)
			}
		}
	}
	return nil
}

type sessionKey struct{}

// TLSState is the state of TLS on the connection that List or Open got ctx for;
// nil if it is not encrypted.
func TLSState(ctx context.Context) *tls.ConnectionState {
	s, _ := ctx.Value(sessionKey{}).(*session)
	if s == nil || s.secure == nil {
		return nil
	}
	state := s.secure.ConnectionState()
	return &state
}

// PeerNames are the names in a verified certificate of the client for which
// List or Open got ctx: the common name of its subject, then its DNS names,
// e-mail addresses and URIs. Without such a certificate there are none.
func PeerNames(ctx context.Context) []string {
	state := TLSState(ctx)
	if state == nil || len(state.VerifiedChains) == 0 {
		return nil
	}
	peer := state.PeerCertificates[0]
	var names []string
	if cn := peer.Subject.CommonName; cn != "" {
		names = append(names, cn)
	}
	names = append(append(names, peer.DNSNames...), peer.EmailAddresses...)
	for _, u := range peer.URIs {
		names = append(names, u.String())
	}
	return names
}
