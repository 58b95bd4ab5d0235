package egress

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
	"github.com/caddy-egress/caddy-egress/tokenstore"
)

// Credential is how tokens are obtained: a provider, with the options of the
// token requests.
type Credential struct {
	// The API and its credential.
	ProviderRaw json.RawMessage `json:"provider,omitempty" caddy:"namespace=egress.providers inline_key=name"`

	// How long before its expiry a token is replaced, in the background; at
	// most half of its lifetime, and up to a tenth later at random.
	// Default: a third of the lifetime.
	RefreshBefore caddy.Duration `json:"refresh_before,omitempty"`

	// How long one token request may take, all of it. Default: `10s`.
	TokenTimeout caddy.Duration `json:"token_timeout,omitempty"`

	// PEM files of the certificate authorities that the token endpoint is
	// verified against, instead of the system's.
	TokenCA []string `json:"token_ca,omitempty"`

	// Revokes the token once it is no longer used here: when Caddy stops, or a
	// config without the credential is loaded, and no request carries the token
	// any more, which is waited for 10 seconds, or 2 when Caddy stops; then it is
	// revoked all the same. A shared token is revoked if no other instance that has
	// this option uses it. With Voucherify's OAuth v1, and oauth2 with a
	// revocation_url.
	// Default: the token is left to expire.
	RevokeOnStop bool `json:"revoke_on_stop,omitempty"`
}

// load loads and checks the provider, and the options beside it.
func (c *Credential) load(ctx caddy.Context) (tokenprovider.Provider, error) {
	if len(c.ProviderRaw) == 0 {
		return nil, errors.New("has no provider")
	}
	if c.RefreshBefore < 0 || c.TokenTimeout < 0 {
		return nil, errors.New("refresh_before and token_timeout must be above zero")
	}
	module, err := ctx.LoadModule(c, "ProviderRaw")
	if err != nil {
		return nil, err
	}
	provider, ok := module.(tokenprovider.Provider)
	if !ok {
		return nil, fmt.Errorf("%T is not a token provider", module)
	}
	if revoker, ok := provider.(tokenprovider.Revoker); c.RevokeOnStop && (!ok || !revoker.CanRevoke()) {
		return nil, errors.New("revoke_on_stop: the provider, as it is configured, cannot revoke tokens")
	}
	return provider, nil
}

// maxCredentialName is the length of the longest name of a credential.
const maxCredentialName = 63

// credentialName is what a credential may be called: its name appears in URLs,
// in metrics and on command lines.
var credentialName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// checkCredentialName returns an error if name cannot name a credential.
func checkCredentialName(name string) error {
	if !credentialName.MatchString(name) {
		return fmt.Errorf("credential %q: a name has up to %d letters, digits, dots, underscores and hyphens", name, maxCredentialName)
	}
	if isProvider(name) {
		return fmt.Errorf("credential %s: is the name of a provider; choose another", name)
	}
	return nil
}

// inlineName names the credential that a route holds inline.
func inlineName(provider tokenprovider.Provider) string {
	grant := provider.Grant()
	return grant.Provider + "-" + grant.Identity()[:8]
}

// plainScope is a scope that can be part of a name.
var plainScope = regexp.MustCompile(`^[A-Za-z0-9._:-]+$`)

// scopedName names the token of a route that asks for scopes of its own:
// <credential>+<scope>+<scope>, or <credential>-<hash> where that is too long
// or a scope has characters that a name cannot have.
func scopedName(credential string, provider tokenprovider.Provider) string {
	grant := provider.Grant()
	name := credential + "+" + strings.Join(grant.Scopes, "+")
	for _, scope := range grant.Scopes {
		if !plainScope.MatchString(scope) {
			name = ""
		}
	}
	if name == "" || len(grant.Scopes) == 0 || len(name) > maxCredentialName {
		return credential + "-" + grant.Identity()[:8]
	}
	return name
}

// activeCredential is a credential in use: where its tokens come from, and what
// is measured of it. All routes that use it share it.
type activeCredential struct {
	source      *tokensource.Source
	metrics     *credentialMetrics
	rateLimit   *rateLimit
	quota       *quota
	lastSent    atomic.Pointer[tokensource.Token]
	sends       bool // routes send its tokens, which are fetched before they are needed
	identity    string
	fingerprint [32]byte          // of the secrets
	options     Credential        // the provider aside
	store       *tokenstore.Store // nil: the token is not shared
}

// name returns the credential's name.
func (c *activeCredential) name() string { return c.source.Name() }

// Credentials in use outlive a config: what is pooled here survives reloads.
var (
	// states are the tokens in use, by identity of the credential. Its secrets are
	// not part of that: a token stays in use while another secret has not brought
	// one.
	states = caddy.NewUsagePool()

	// metricsPool has what is measured, by name of the credential and provider.
	metricsPool = caddy.NewUsagePool()

	// rateLimits are what APIs have said of their rate limits, by identity of the
	// credential.
	rateLimits = caddy.NewUsagePool()

	// quotas are what is left of APIs' quotas, by identity of the credential without
	// its scopes.
	quotas = caddy.NewUsagePool()

	// endpoints bound the token requests of all credentials to one token
	// endpoint, by its URL.
	endpoints = caddy.NewUsagePool()
)

// acquireState returns the state of a credential, and what gives it up.
func acquireState(name, identity string) (*tokensource.State, func() error) {
	pooled, _ := states.LoadOrStore(identity, pooledState{tokensource.NewState(), name})
	return pooled.(pooledState).State, func() error {
		_, err := states.Delete(identity)
		return err
	}
}

// acquireMetrics returns what is measured of a credential, and what gives it up.
func acquireMetrics(name, provider string) (*credentialMetrics, func() error) {
	key := name + " " + provider
	pooled, _ := metricsPool.LoadOrStore(key, newCredentialMetrics(name, provider))
	return pooled.(*credentialMetrics), func() error {
		_, err := metricsPool.Delete(key)
		return err
	}
}

// acquireRateLimit returns what is known of the rate limit of a credential, and
// what gives it up.
func acquireRateLimit(identity string) (*rateLimit, func() error) {
	pooled, _ := rateLimits.LoadOrStore(identity, newRateLimit())
	return pooled.(*rateLimit), func() error {
		_, err := rateLimits.Delete(identity)
		return err
	}
}

// acquireQuota returns what is left of the quota of a client of an API, whatever
// the scopes of its tokens, and what gives it up.
func acquireQuota(grant tokenprovider.Grant) (*quota, func() error) {
	grant.Scopes = nil
	identity := grant.Identity()
	pooled, _ := quotas.LoadOrStore(identity, new(quota))
	return pooled.(*quota), func() error {
		_, err := quotas.Delete(identity)
		return err
	}
}

// acquireEndpoint returns what bounds the token requests to tokenURL, and what
// gives it up.
func acquireEndpoint(tokenURL string) (*tokensource.Endpoint, func() error) {
	pooled, _ := endpoints.LoadOrStore(tokenURL, tokensource.NewEndpoint())
	return pooled.(*tokensource.Endpoint), func() error {
		_, err := endpoints.Delete(tokenURL)
		return err
	}
}

// pooledState is a state that is retired with the last config that uses it.
type pooledState struct {
	*tokensource.State
	name string // of the credential that it was made for
}

// How long the end of a credential waits for requests that carry its token, and
// then for the token to be revoked.
const (
	retireTimeout     = 10 * time.Second
	retireTimeoutExit = 2 * time.Second
)

// Destruct implements caddy.Destructor. A reload does not wait for the token to
// be revoked; the end of the process does, for a while.
func (s pooledState) Destruct() error {
	if caddy.Exiting() {
		s.retire(retireTimeoutExit)
	} else {
		go s.retire(retireTimeout)
	}
	return nil
}

func (s pooledState) retire(timeout time.Duration) {
	if err := s.Retire(timeout, timeout); err != nil {
		// the config's logger is closed by now
		caddy.Log().Named("egress").Warn("could not revoke the token; it is left to expire",
			zap.String("credential", s.name), zap.Error(err))
	}
}

// tokenClient returns the client of a token endpoint. It trusts the
// authorities in the PEM files, or those of the system if there are none.
func tokenClient(files []string) (*http.Client, error) {
	if len(files) == 0 {
		return tokenprovider.NewClient(nil), nil
	}
	roots := x509.NewCertPool()
	for _, file := range files {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("token_ca: %w", err)
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("token_ca: %s holds no PEM certificate", file)
		}
	}
	return tokenprovider.NewClient(roots), nil
}
