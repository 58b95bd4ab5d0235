package egress

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
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
	if cert.good, err = cert.readInTime(); err != nil {
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

	reads atomic.Int32 // under way

	mu     sync.Mutex
	good   *tls.Certificate // the last that could be read
	failed bool             // the files are not good now, and that is logged
}

const (
	// certificatePatience is how long files are waited for: less than a TLS handshake
	// may take.
	certificatePatience = 2 * time.Second

	// maxCertificateReads bounds how many reads are under way: each that hangs has a
	// goroutine. It is more than the token requests that an endpoint gets at a time.
	maxCertificateReads = 32
)

var errCertificateHangs = errors.New("reading takes too long: a file is on a file system that does not answer, or is not a plain file")

// get returns the certificate as the files have it, or the last good one while they
// are not: one may be replaced before the other, be half-written, or hang.
func (c *clientCertificate) get(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	read, err := c.readInTime()
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

// readInTime is read, but for files that hang: a handshake cannot wait for them.
func (c *clientCertificate) readInTime() (*tls.Certificate, error) {
	if c.reads.Add(1) > maxCertificateReads {
		c.reads.Add(-1)
		return nil, errCertificateHangs
	}
	var read *tls.Certificate
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer c.reads.Add(-1)
		read, err = c.read()
	}()
	patience := time.NewTimer(certificatePatience)
	defer patience.Stop()
	select {
	case <-done:
		return read, err
	case <-patience.C:
		return nil, errCertificateHangs
	}
}

// read reads the files.
func (c *clientCertificate) read() (*tls.Certificate, error) {
	read, err := tls.LoadX509KeyPair(c.files.Certificate, c.files.Key)
	if err != nil {
		return nil, fmt.Errorf("reading %s and %s: %w", c.files.Certificate, c.files.Key, err)
	}
	if read.Leaf == nil {
		read.Leaf, err = x509.ParseCertificate(read.Certificate[0])
	}
	return &read, err
}
