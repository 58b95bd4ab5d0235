package egresstest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"
)

// Authority issues certificates.
type Authority struct {
	// File is its own certificate, in PEM.
	File string

	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority returns an authority that nobody trusts yet.
func NewAuthority(t *testing.T) *Authority {
	t.Helper()
	a := &Authority{t: t}
	template := newTemplate(t)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage |= x509.KeyUsageCertSign
	template.Subject.CommonName = "an authority of the tests"
	issued := sign(t, template, nil, nil)
	a.cert, a.key = issued.Leaf, issued.PrivateKey.(*ecdsa.PrivateKey)
	a.File = writePEM(t, "ca.pem", &pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
	return a
}

// Issue returns a certificate for clients and servers with subject alternative
// names: IP addresses, URIs, e-mail addresses and DNS names. change may change it
// before it is signed.
func (a *Authority) Issue(names []string, change ...func(*x509.Certificate)) tls.Certificate {
	a.t.Helper()
	return sign(a.t, leaf(a.t, names, change), a.cert, a.key)
}

// ServerFiles issues a certificate for names, and writes it and its key to files.
func (a *Authority) ServerFiles(t *testing.T, names ...string) (cert, key string) {
	t.Helper()
	issued := a.Issue(names)
	der, err := x509.MarshalPKCS8PrivateKey(issued.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return writePEM(t, "cert.pem", &pem.Block{Type: "CERTIFICATE", Bytes: issued.Leaf.Raw}),
		writePEM(t, "key.pem", &pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// SelfSigned returns a certificate as [Authority.Issue] does, that nobody but
// itself has signed.
func SelfSigned(t testing.TB, names []string, change ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	return sign(t, leaf(t, names, change), nil, nil)
}

// Expires has a certificate expire at a time; certificates know seconds only.
func Expires(at time.Time) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotAfter = at }
}

// CommonName gives a certificate a name of its subject, which is none of its
// alternative names.
func CommonName(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject.CommonName = name }
}

func newTemplate(t testing.TB) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		Subject:  pkix.Name{Organization: []string{"tests"}},
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
}

func leaf(t testing.TB, names []string, change []func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	c := newTemplate(t)
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	for _, name := range names {
		switch ip := net.ParseIP(name); {
		case ip != nil:
			c.IPAddresses = append(c.IPAddresses, ip)
		case strings.Contains(name, ":"):
			uri, err := url.Parse(name)
			if err != nil {
				t.Fatal(err)
			}
			c.URIs = append(c.URIs, uri)
		case strings.Contains(name, "@"):
			c.EmailAddresses = append(c.EmailAddresses, name)
		default:
			c.DNSNames = append(c.DNSNames, name)
		}
	}
	for _, f := range change {
		f(c)
	}
	return c
}

// sign returns template signed by parent, or by itself.
func sign(t testing.TB, template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}
}
