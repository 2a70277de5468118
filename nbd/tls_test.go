package nbd_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/nbd"
	"varve/nbd/nbdtest"
)

// An authority signs certificates.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  crypto.Signer
	next int64 // serial number
}

func newAuthority(t testing.TB) *authority {
	a := &authority{t: t, next: 1}
	template := a.template("test authority")
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	a.cert, a.key = a.sign(template, nil, nil)
	return a
}

func (a *authority) template(name string) *x509.Certificate {
	a.next++
	return &x509.Certificate{
		SerialNumber: big.NewInt(a.next),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// sign makes a certificate and its key; without a parent it signs itself.
func (a *authority) sign(template, parent *x509.Certificate, by crypto.Signer) (*x509.Certificate, crypto.Signer) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if parent == nil {
		parent, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// issue writes NAME-cert.pem and NAME-key.pem for a subject that is reached at
// localhost, and the authority's own certificate, into dir.
func (a *authority) issue(dir, name, subject string) *x509.Certificate {
	a.t.Helper()
	return a.issueChanged(dir, name, subject, nil)
}

// issueChanged is issue with a certificate that change has changed.
func (a *authority) issueChanged(dir, name, subject string, change func(*x509.Certificate)) *x509.Certificate {
	a.t.Helper()
	template := a.template(subject)
	template.DNSNames, template.IPAddresses = []string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}
	if change != nil {
		change(template)
	}
	cert, key := a.sign(template, a.cert, a.key)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, filepath.Join(dir, "ca-cert.pem"), "CERTIFICATE", a.cert.Raw)
	writePEM(a.t, filepath.Join(dir, name+"-cert.pem"), "CERTIFICATE", cert.Raw)
	writePEM(a.t, filepath.Join(dir, name+"-key.pem"), "PRIVATE KEY", pkcs8)
	return cert
}

// revoke writes a list that revokes certs and is good for a while.
func (a *authority) revoke(dir string, good time.Duration, certs ...*x509.Certificate) {
	a.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-2 * time.Hour), NextUpdate: time.Now().Add(good)}
	for _, c := range certs {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: time.Now().Add(-time.Hour)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	writePEM(a.t, filepath.Join(dir, "ca-crl.pem"), "X509 CRL", der)
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A tlsRig is a rig whose server wants TLS and client certificates.
type tlsRig struct {
	*rig
	authority *authority
	dir       string            // with the certificates of both sides
	client    *x509.Certificate // alice's
	tcp       *net.TCPAddr
}

func newTLSRig(t testing.TB) *tlsRig { return newTLSRigWith(t, &nbd.Server{}) }

// newTLSRigWith is newTLSRig with limits that are set already.
func newTLSRigWith(t testing.TB, server *nbd.Server) *tlsRig {
	t.Helper()
	r := &tlsRig{authority: newAuthority(t), dir: t.TempDir()}
	r.authority.issue(r.dir, "server", "the server")
	r.client = r.authority.issue(r.dir, "client", "alice")
	config, err := nbd.ServerTLS(r.dir, true)
	if err != nil {
		t.Fatal(err)
	}
	server.TLS, server.RequireTLS = config, func(net.Conn) bool { return true }
	r.rig = newRigWith(t, server)
	r.tcp = serveOn(t, r.server, "tcp", "127.0.0.1:0").(*net.TCPAddr)
	return r
}

// uri is the address of an export over TCP, with the rig's certificates.
func (r *tlsRig) uri(export string) string {
	return fmt.Sprintf("nbds://localhost:%d/%s?tls-certificates=%s", r.tcp.Port, export, r.dir)
}

// config is a client's side of TLS.
func (r *tlsRig) config(t testing.TB) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(r.dir, "client-cert.pem"), filepath.Join(r.dir, "client-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(r.authority.cert)
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, ServerName: "localhost"}
}

// encrypt begins TLS.
func (c *rawClient) encrypt(config *tls.Config) *rawClient {
	c.Helper()
	c.acked(optStartTLS)
	secure := tls.Client(c.Conn, config)
	if err := secure.Handshake(); err != nil {
		c.Fatal(err)
	}
	c.Conn = secure
	return c
}

// TestTLS holds the server to the statements X of the checklist.
func TestTLS(t *testing.T) {
	r := newTLSRig(t)
	t.Run("X1 every option but STARTTLS and ABORT wants TLS", func(t *testing.T) {
		c := r.dial(t).greet(3)
		for _, option := range []uint32{optList, optInfo, optGo, optStructured, optListMeta, optSetMeta, optExtended, 4, 99} {
			c.refused(errTLS, option)
			c.refused(errTLS, option, exportArgs("main"))
		}
		c.encrypt(r.config(t)).inSync()
		c = r.dial(t).greet(3)
		c.acked(optAbort)
		c.closed()
	})
	t.Run("X2 EXPORT_NAME without TLS drops", func(t *testing.T) {
		c := r.dial(t).greet(3)
		c.option(optExportName, "main")
		c.closed()
	})
	t.Run("X3 a second STARTTLS is refused", func(t *testing.T) {
		c := r.dial(t).greet(3).encrypt(r.config(t))
		c.refused(errInvalid, optStartTLS)
		c.goTo("main")
		c.alive()
	})
	t.Run("X3 what was agreed on before TLS is forgotten", func(t *testing.T) {
		r.server.RequireTLS = nil
		defer func() { r.server.RequireTLS = func(net.Conn) bool { return true } }()
		for _, option := range []uint32{optStructured, optExtended} {
			c := r.dial(t).greet(3)
			c.acked(option)
			c.acked(optSetMeta, metaArgs("main", "base:allocation"))
			c.encrypt(r.config(t))
			c.refused(errInvalid, optListMeta, metaArgs("main"))
			if _, flags := c.goTo("main"); flags&(1<<7|1<<12) != 0 {
				t.Errorf("flags %#x", flags)
			}
			c.alive()
		}
	})
	t.Run("X4 STARTTLS with data, and a TLS handshake that fails", func(t *testing.T) {
		c := r.dial(t).greet(3)
		c.refused(errInvalid, optStartTLS, "data")
		c.encrypt(r.config(t)).inSync()
		c = r.dial(t).greet(3)
		c.acked(optStartTLS)
		c.send(make([]byte, 64))
		io.ReadAll(c.Conn) // an alert
		c.closed()
	})
	t.Run("X5 plain text behind STARTTLS drops", func(t *testing.T) {
		c := r.dial(t).greet(3)
		c.send(optionBytes(optStartTLS, nil), optionBytes(optAbort, nil))
		c.closed()
	})
	t.Run("X6 TLS below 1.2, without a certificate, and with a stranger's", func(t *testing.T) {
		stranger := newAuthority(t)
		dir := t.TempDir()
		stranger.issue(dir, "client", "alice")
		strange, err := tls.LoadX509KeyPair(filepath.Join(dir, "client-cert.pem"), filepath.Join(dir, "client-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		for name, change := range map[string]func(*tls.Config){
			"TLS 1.1":        func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
			"no certificate": func(c *tls.Config) { c.Certificates = nil },
			"a stranger's": func(c *tls.Config) {
				c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &strange, nil }
			},
		} {
			config := r.config(t)
			change(config)
			c := r.dial(t).greet(3)
			c.acked(optStartTLS)
			secure := tls.Client(c.Conn, config)
			secure.SetDeadline(time.Now().Add(patience))
			secure.Write(optionBytes(optList, nil)) // the handshake of TLS 1.3 ends before the server has looked
			if _, err := secure.Read(make([]byte, 1)); err == nil {
				t.Errorf("%s: served", name)
			}
		}
	})
	t.Run("X7 an export that wants TLS, on a server that does not", func(t *testing.T) {
		var names []string
		s := &nbd.Server{TLS: r.server.TLS, Open: func(ctx context.Context, name string) (*nbd.Export, error) {
			if name == "secret" && nbd.TLSState(ctx) == nil {
				return nil, nbd.ErrTLSRequired
			}
			names = nbd.PeerNames(ctx)
			return r.shelf.Open(ctx, "main")
		}}
		path := serve(t, s)
		c := dial(t, "unix", path).greet(3)
		c.refused(errTLS, optInfo, exportArgs("secret"))
		c.refused(errTLS, optGo, exportArgs("secret"))
		c.acked(optInfo, exportArgs("open"))
		c.encrypt(r.config(t)).goTo("secret")
		c.alive()
		if !slices.Equal(names, []string{"alice", "localhost"}) {
			t.Errorf("names of the client %q", names)
		}
		c = dial(t, "unix", path).greet(3)
		c.option(optExportName, "secret")
		c.closed()
	})
}

// TestTLSTransmission: all requests and limits are the same under TLS.
func TestTLSTransmission(t *testing.T) {
	r := newTLSRig(t)
	open := func() *rawClient {
		c := r.dial(t).greet(3).encrypt(r.config(t))
		c.agreeExtended()
		c.acked(optSetMeta, metaArgs("main", "base:allocation"))
		c.goTo("main")
		return c
	}
	for _, s := range transmissionStatements {
		t.Run(s.id, func(t *testing.T) { s.test(t, open(), open) })
	}
}

// TestRevokedCertificates: a list takes effect with the next connection.
func TestRevokedCertificates(t *testing.T) {
	r := newTLSRig(t)
	try := func() error {
		c, err := nbd.Dial(t.Context(), r.uri("main"), nbd.ClientOptions{})
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := try(); err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct {
		name string
		list func()
		good bool
	}{
		{"of nobody", func() { r.authority.revoke(r.dir, time.Hour) }, true},
		{"of the client", func() { r.authority.revoke(r.dir, time.Hour, r.client) }, false},
		{"out of date", func() { r.authority.revoke(r.dir, -time.Hour) }, false},
		{"of another authority", func() { newAuthority(t).revoke(r.dir, time.Hour) }, false},
		{"not a list", func() { writePEM(t, filepath.Join(r.dir, "ca-crl.pem"), "X509 CRL", []byte("x")) }, false},
		{"gone", func() { os.Remove(filepath.Join(r.dir, "ca-crl.pem")) }, true},
	} {
		k.list()
		if err := try(); err == nil != k.good {
			t.Errorf("a revocation list %s: %v", k.name, err)
		}
	}
}

// TestServerTLSRefusesBadFolders says what is missing.
func TestServerTLSRefusesBadFolders(t *testing.T) {
	dir := t.TempDir()
	refused := func(verify bool, want string) {
		t.Helper()
		if _, err := nbd.ServerTLS(dir, verify); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("error %v, want one that names %s in %s", err, want, dir)
		}
	}
	refused(false, "server-cert.pem")
	newAuthority(t).issue(dir, "server", "s")
	os.Remove(filepath.Join(dir, "ca-cert.pem"))
	if _, err := nbd.ServerTLS(dir, false); err != nil {
		t.Error(err)
	}
	refused(true, "ca-cert.pem")
	os.WriteFile(filepath.Join(dir, "ca-cert.pem"), []byte("nothing"), 0o600)
	refused(false, "ca-cert.pem")
}

// TestClientOverTLS: our client is a device under TLS too, and is not talked out
// of it.
func TestClientOverTLS(t *testing.T) {
	r := newTLSRig(t)
	nbdtest.RunSparse(t, func(t *testing.T) nbd.Device {
		s := newShelf(nbd.Export{Name: "d", Device: nbdtest.NewMemory(nbdtest.Size)})
		at := serveOn(t, &nbd.Server{Open: s.Open, TLS: r.server.TLS}, "tcp", "127.0.0.1:0").(*net.TCPAddr)
		return connect(t, fmt.Sprintf("nbds://127.0.0.1:%d/d?tls-certificates=%s", at.Port, url.QueryEscape(r.dir)))
	})
	plain := serve(t, &nbd.Server{Open: r.shelf.Open})
	for _, k := range []struct{ name, uri, want string }{
		{"a server without TLS", "nbds+unix:///main?socket=" + plain + "&tls-certificates=" + r.dir, "TLS"},
		{"another name", r.uri("main") + "&tls-hostname=elsewhere", "elsewhere"},
		{"no authority of ours", strings.Replace(r.uri("main"), r.dir, t.TempDir(), 1), "ca-cert.pem"},
		{"a plain client", fmt.Sprintf("nbd://localhost:%d/main", r.tcp.Port), "nbds://"},
		{"the system's authorities", fmt.Sprintf("nbds://localhost:%d/main", r.tcp.Port), "authority"},
	} {
		if c, err := nbd.Dial(t.Context(), k.uri, nbd.ClientOptions{Timeout: patience}); err == nil || !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s: error %v, want one with %q", k.name, err, k.want)
			if err == nil {
				c.Close()
			}
		}
	}
	connect(t, r.uri("main")+"&tls-hostname=localhost")
	connect(t, "nbds+unix:///main?socket="+r.path+"&tls-certificates="+r.dir)
}

// TestClientRefusesInjectedText: plain bytes that follow the answer to STARTTLS
// are not taken for the server's.
func TestClientRefusesInjectedText(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.Write(wire(uint64(wireServerMagic), uint64(wireOptionMagic), uint16(3)))
		io.ReadFull(conn, make([]byte, 4+16))
		ack := wire(uint64(wireReplyMagic), uint32(optStartTLS), uint32(repAck), uint32(0))
		conn.Write(append(ack, ack...))
		io.Copy(io.Discard, conn)
	}()
	_, err = nbd.Dial(t.Context(), "nbds+unix:///?tls-verify-peer=false&socket="+path, nbd.ClientOptions{})
	if err == nil || !strings.Contains(err.Error(), "plain text") {
		t.Errorf("error %v", err)
	}
}

// TestForeignTLS runs clients and servers that use GnuTLS.
func TestForeignTLS(t *testing.T) {
	need(t, "nbdinfo", "nbdcopy", "qemu-img", "nbdkit")
	r := newTLSRig(t)
	r.main.WriteAt(pattern(1, 20<<20), 3<<20)
	want := make([]byte, mainSize)
	r.main.ReadAt(want, 0)
	out := filepath.Join(t.TempDir(), "out")
	same := func(t *testing.T, what string) {
		t.Helper()
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: other bytes (%v)", what, err)
		}
		os.Remove(out)
	}
	t.Run("nbdinfo", func(t *testing.T) {
		if info := run(t, "nbdinfo", r.uri("main")); !strings.Contains(info, "protocol: newstyle-fixed with TLS") {
			t.Errorf("nbdinfo:\n%s", info)
		}
	})
	t.Run("nbdcopy", func(t *testing.T) {
		run(t, "nbdcopy", r.uri("main"), out)
		same(t, "nbdcopy")
	})
	t.Run("qemu-img", func(t *testing.T) {
		run(t, "qemu-img", "convert", "--object", "tls-creds-x509,id=tls0,endpoint=client,dir="+r.dir, "-O", "raw", "--image-opts",
			fmt.Sprintf("driver=nbd,host=localhost,port=%d,export=main,tls-creds=tls0", r.tcp.Port), out)
		same(t, "qemu-img")
	})
	for name, args := range map[string][]string{
		"nbdkit":   {"nbdkit", "-f", "--tls=require", "--tls-verify-peer", "--tls-certificates=" + r.dir, "-U", "%s", "memory", fmt.Sprint(nbdtest.Size)},
		"qemu-nbd": {"qemu-nbd", "-t", "-f", "raw", "-e", "9", "--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=on,dir=" + r.dir, "--tls-creds", "tls0", "-k", "%s", "%f"},
	} {
		t.Run("our client with "+name, func(t *testing.T) {
			nbdtest.Run(t, func(t *testing.T) nbd.Device {
				socket := startPeer(t, args[0], args[1:])
				return connect(t, "nbds+unix:///?tls-certificates="+r.dir+"&socket="+url.QueryEscape(socket))
			})
		})
	}
	if err := errors.Join(os.Remove(filepath.Join(r.dir, "client-cert.pem")), os.Remove(filepath.Join(r.dir, "client-key.pem"))); err != nil {
		t.Fatal(err)
	}
	if _, err := nbd.Dial(t.Context(), r.uri("main"), nbd.ClientOptions{}); err == nil {
		t.Error("a client without a certificate is served")
	}
}
