package egress

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/option"
)

// TokenCert is a client certificate for the endpoints of an authorization server.
type TokenCert struct {
	// PEM file of the certificate, with those that lead to its authority. Required.
	Certificate string `json:"certificate,omitempty"`

	// PEM file of its private key. Required.
	Key string `json:"key,omitempty"`
}

// unmarshalTokenCert reads `token_cert <cert> <key>`.
func (c *Credential) unmarshalTokenCert(d *caddyfile.Dispenser) error {
	if c.TokenCert != nil {
		return d.Err("token_cert is already given")
	}
	var cert TokenCert
	if !d.Args(&cert.Certificate, &cert.Key) || cert.Certificate == "" || cert.Key == "" {
		return d.Err("token_cert: needs the files of a certificate and of its key")
	}
	c.TokenCert = &cert
	return option.End(d, "token_cert")
}

// provision returns the certificate, which is read again at each handshake. At
// first the files have to be good; warn is called for what may be wrong with them.
func (c *TokenCert) provision(logger *zap.Logger, warn warner) (*clientCertificate, error) {
	cert := &clientCertificate{files: *c, logger: logger}
	if c.Certificate == "" || c.Key == "" {
		return nil, option.Errorf("token_cert", "needs the files of a certificate and of its key")
	}
	var err error
	if cert.good, err = cert.read(); err != nil {
		return nil, option.Errorf("token_cert", "%w", err)
	}
	if leaf := cert.good.Leaf; leaf != nil && time.Now().After(leaf.NotAfter) {
		warn("the certificate of token_cert has expired", zap.String("file", c.Certificate), zap.Time("expired", leaf.NotAfter))
	}
	warnOfFile(warn, "token_cert", c.Key)
	return cert, nil
}

// clientCertificate is a certificate in files that somebody may replace.
type clientCertificate struct {
	files  TokenCert
	logger *zap.Logger

	mu     sync.Mutex
	good   *tls.Certificate // the last that could be read
	failed bool             // the files are not good now, and that is logged
}

// certificatePatience is how long files are waited for: less than a TLS handshake may
// take.
const certificatePatience = 2 * time.Second

// get returns the certificate as the files have it, or the last good one while they
// are not: one may be replaced before the other, be half-written, or hang.
func (c *clientCertificate) get(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	read, err := c.read()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.good, c.failed = read, false
	case !c.failed:
		c.failed = true
		c.logger.Error("the certificate of token_cert cannot be read; the one before is still used",
			zap.String("file", c.files.Certificate), zap.String("key", c.files.Key), zap.Error(err))
	}
	return c.good, nil
}

// read reads the files, which a handshake does not wait for if they hang.
func (c *clientCertificate) read() (*tls.Certificate, error) {
	read, err := c.files.load()
	if err != nil {
		return nil, fmt.Errorf("reading %s and %s: %w", c.files.Certificate, c.files.Key, err)
	}
	return read, nil
}

func (c *TokenCert) load() (*tls.Certificate, error) {
	deadline := time.Now().Add(certificatePatience)
	certificate, err := option.ReadFile(c.Certificate, certificatePatience)
	if err != nil {
		return nil, err
	}
	key, err := option.ReadFile(c.Key, max(time.Until(deadline), 1))
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err == nil && pair.Leaf == nil {
		pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0])
	}
	return &pair, err
}
