package egress

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"strings"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// client returns the client of token endpoints with the authorities and the
// certificate of a credential, the same for all that have them.
func (a *App) client(c *activeCredential, name string) (*http.Client, error) {
	key := strings.Join(c.options.TokenCA, "\x00")
	if cert := c.options.TokenCert; cert != nil {
		key = strings.Join([]string{cert.Certificate, cert.Key, key}, "\x00\x00")
	}
	if c.tenant != "" && c.tenants.credential.hasTenantFiles() {
		// gone with the tenant, and others do not wait for its files
		return a.newClient(c, name)
	}
	a.clientsMu.Lock()
	defer a.clientsMu.Unlock()
	if client, ok := a.clients[key]; ok {
		return client, nil
	}
	client, err := a.newClient(c, name)
	if err == nil {
		a.clients[key] = client
	}
	return client, err
}

func (a *App) newClient(c *activeCredential, name string) (*http.Client, error) {
	logger := a.logger.With(zap.String("credential", name))
	warn := warner(logger.Warn)
	if c.tenant != "" {
		warn = func(message string, fields ...zap.Field) { c.tenants.warnOfTenant(name, message, fields...) }
	}
	client, err := c.options.tokenClient(logger, warn)
	if err != nil {
		return nil, fmt.Errorf("credential %s: %w", name, err)
	}
	return client, nil
}

// tokenClient returns the client of the credential's token endpoint. It trusts the
// authorities of token_ca, or those of the system if there are none, and has the
// certificate of token_cert.
func (c *Credential) tokenClient(logger *zap.Logger, warn warner) (*http.Client, error) {
	var roots *x509.CertPool
	if len(c.TokenCA) > 0 {
		roots = x509.NewCertPool()
	}
	for _, file := range c.TokenCA {
		pem, err := option.ReadFile(file, 0)
		if err != nil {
			return nil, option.Errorf("token_ca", "%w", err)
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("token_ca: %s holds no PEM certificate", file)
		}
	}
	client := tokenprovider.NewClient(roots)
	if c.TokenCert != nil {
		cert, err := c.TokenCert.provision(logger, warn)
		if err != nil {
			return nil, err
		}
		tokenprovider.PresentCertificate(client, cert.get)
	}
	return client, nil
}
