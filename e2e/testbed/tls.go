package testbed

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"time"
)

// writeCertificates makes an authority and a server certificate for names and
// 127.0.0.1: ca.pem, cert.pem and key.pem in folder.
func writeCertificates(folder string, names ...string) error {
	ca, caKey, err := certificate(nil, nil)
	if err != nil {
		return err
	}
	leaf, key, err := certificate(ca, caKey, names...)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return writeFiles(folder, map[string]string{
		"ca.pem": block("CERTIFICATE", ca.Raw), "cert.pem": block("CERTIFICATE", leaf.Raw), "key.pem": block("PRIVATE KEY", private),
	})
}

// certificate makes one for names, or an authority if there is no issuer.
func certificate(issuer *x509.Certificate, issuerKey *ecdsa.PrivateKey, names ...string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "varve test bed"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: names, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
	}
	if issuer == nil {
		issuer, issuerKey = c, key
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, &key.PublicKey, issuerKey)
	if err != nil {
		return nil, nil, err
	}
	made, err := x509.ParseCertificate(der)
	return made, key, err
}

// S3Domain is the name that buckets of S3 servers have in front of theirs, in
// virtual-host style. No DNS knows it; a WebProxy may.
const S3Domain = "s3.test"
