package egress

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/internal/option"
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

	// Client certificate for the token endpoint, and for those that revoke and
	// introspect. It is read again at each TLS handshake; while the files do not
	// make a pair, the one before is used. Default: none.
	TokenCert *TokenCert `json:"token_cert,omitempty"`

	// Revokes the token once it is no longer used here: when Caddy stops, or a
	// config without the credential is loaded, and no request carries the token
	// any more, which is waited for 10 seconds, or 2 when Caddy stops; then it is
	// revoked all the same. A shared token is revoked if no other instance that has
	// this option uses it. With Voucherify's OAuth v1, and oauth2 with a
	// revocation_url.
	// Default: the token is left to expire.
	RevokeOnStop bool `json:"revoke_on_stop,omitempty"`

	// How many tenants are live at a time, where the credential has `{tenant}` in
	// it: those used last have their tokens kept fresh. The token of another is
	// kept until it expires. Each set of scopes counts by itself.
	// Default: `1000`.
	MaxTenants int `json:"max_tenants,omitempty"`
}

// load loads and checks the provider, and the options beside it.
func (c *Credential) load(ctx caddy.Context) (tokenprovider.Provider, error) {
	if len(c.ProviderRaw) == 0 {
		return nil, errors.New("has no provider")
	}
	if c.RefreshBefore < 0 || c.TokenTimeout < 0 {
		return nil, errors.New("refresh_before and token_timeout must be above zero")
	}
	provider, err := c.loadProvider(ctx)
	if err != nil {
		return nil, err
	}
	if revoker, ok := provider.(tokenprovider.Revoker); c.RevokeOnStop && (!ok || !revoker.CanRevoke()) {
		return nil, errors.New("revoke_on_stop: the provider, as it is configured, cannot revoke tokens")
	}
	if provider.API().NeedsCertificate && c.TokenCert == nil {
		return nil, errors.New("token_cert is required: the client authenticates by its certificate")
	}
	return provider, nil
}

// loadProvider loads the provider. That of a credential with tenants is checked,
// and not provisioned: each tenant has one of its own.
func (c *Credential) loadProvider(ctx caddy.Context) (tokenprovider.Provider, error) {
	if c.hasTenants() {
		return c.loadTemplate()
	}
	if c.MaxTenants != 0 {
		return nil, option.Errorf("max_tenants", "needs %s in the credential", option.Tenant)
	}
	module, err := ctx.LoadModule(c, "ProviderRaw")
	if err != nil {
		return nil, err
	}
	provider, ok := module.(tokenprovider.Provider)
	if !ok {
		return nil, fmt.Errorf("%T is not a token provider", module)
	}
	return provider, nil
}

// unprovisioned returns the provider in raw, which has read no placeholder. What
// depends on their values, such as its identity, is not to be used.
func unprovisioned(raw json.RawMessage) (tokenprovider.Provider, error) {
	if len(raw) == 0 {
		return nil, errors.New("has no provider")
	}
	var options map[string]json.RawMessage
	if err := json.Unmarshal(raw, &options); err != nil {
		return nil, err
	}
	name := textIn(options["name"])
	delete(options, "name")
	info, err := caddy.GetModule(providerNamespace + "." + name)
	if err != nil {
		return nil, err
	}
	value := info.New()
	if kind := reflect.TypeOf(value); kind.Kind() != reflect.Pointer {
		value = reflect.New(kind).Interface().(caddy.Module)
	}
	provider, ok := value.(tokenprovider.Provider)
	if !ok {
		return nil, fmt.Errorf("%s is not a token provider", name)
	}
	if raw, err = json.Marshal(options); err != nil {
		return nil, err
	}
	return provider, caddy.StrictUnmarshalJSON(raw, provider)
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
func inlineName(credential Credential, provider tokenprovider.Provider) string {
	grant := provider.Grant()
	identity := grant.Identity()
	if credential.hasTenants() { // its identity says little
		digest := sha256.Sum256(credential.ProviderRaw)
		identity = hex.EncodeToString(digest[:])
	}
	return grant.Provider + "-" + identity[:8]
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
//
// Where each tenant has a credential of its own, that of a route stands for all of
// them and has no source.
type activeCredential struct {
	called       string
	source       *tokensource.Source
	state        *tokensource.State
	metrics      *credentialMetrics
	rateLimit    *rateLimit
	quota        *quota
	apiHealth    apiHealth
	lastSent     atomic.Pointer[tokensource.Token]
	sends        bool // routes send its tokens, which are fetched before they are needed
	identity     string
	fingerprints [][32]byte        // of the values of the secret
	options      Credential        // the provider aside
	store        *tokenstore.Store // nil: the token is not shared
	tokenURL     string            // with {tenant} in it, if that is configured
	tenants      *tenants          // nil: it has none
	tenant       string            // whose credential it is; empty: it is not that of a tenant
}

// name returns the credential's name.
func (c *activeCredential) name() string { return c.called }

// isFamily reports whether each tenant has a credential of its own in place of c.
func (c *activeCredential) isFamily() bool { return c.tenants != nil && c.tenant == "" }

// identityOf returns the identity of a grant of the credential.
func (c *activeCredential) identityOf(grant tokenprovider.Grant) string {
	if c.tenant != "" {
		return tenantIdentity(grant, c.tenants.base+"/"+c.tenant)
	}
	return grant.Identity()
}

// start has the token kept fresh, if a route sends it.
func (c *activeCredential) start() {
	switch {
	case !c.sends:
	case c.isFamily():
		c.tenants.start()
	default:
		c.source.Start()
		c.metrics.noteSecretInUse(c.source) // a token may be there from an earlier config
	}
}

// stop ends that.
func (c *activeCredential) stop() {
	if c.isFamily() {
		c.tenants.stop()
		return
	}
	c.source.Stop()
}

// reserve has what is left of the API's quota counted.
func (c *activeCredential) reserve() {
	if c.isFamily() {
		c.tenants.reserves.Store(true)
		return
	}
	c.quota.counts.Store(true)
}
