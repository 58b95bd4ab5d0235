package egress

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// Transport is the one way out: the HTTP transport of reverse_proxy, with every
// option of it, that sends each request with the access token of a credential.
//
// It refuses what it was not configured to permit, sends nothing without a
// token, and answers for itself in the shape of the API's own errors. A request
// that the API answers with 401 is sent a second time with a fresh token.
//
// It differs from the `http` transport in two defaults: 256 idle connections
// are kept for each host, and compression is left to client and API.
type Transport struct {
	// Name of the credential in the egress app.
	CredentialName string `json:"credential,omitempty"`

	// The credential itself, where no name refers to one.
	Credential

	// Scopes to ask for instead of the named credential's own. The route gets a
	// token of its own, of these rights.
	Scopes []string `json:"scopes,omitempty"`

	// The tenant of a request, where the credential has `{tenant}` in it: a
	// placeholder such as `{http.request.header.X-Tenant}`. What it stands for has
	// to be a name of up to 63 letters, digits, dots, underscores and hyphens that
	// begins with a letter or digit. Whoever may use the route may name any tenant,
	// unless a grant names those of its callers.
	Tenant string `json:"tenant,omitempty"`

	// Names of headers that do not reach the API otherwise, and that header_up
	// sets: credentials such as Cookie, addresses such as X-Real-Ip, and Host. The
	// client's own values of them are removed all the same. Authorization and
	// families such as X-Forwarded-* are always removed. The egress directive
	// finds the names that its header_up sets by itself.
	KeepHeaders []string `json:"keep_headers,omitempty"`

	// Who may use the route, and for what. Default: whoever its guards let pass.
	Grants []Grant `json:"grant,omitempty"`

	RouteOptions

	reverseproxy.HTTPTransport

	app         *App
	credential  *activeCredential
	api         tokenprovider.API
	apiHost     string // Host sent to the API: its authority without the default port
	guard       *guard
	destination *destination
	headers     headerFilter
	upstream    http.RoundTripper // the embedded transport
	logger      *zap.Logger
}

// CaddyModule returns the Caddy module information.
func (Transport) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.transport.egress",
		New: func() caddy.Module { return new(Transport) },
	}
}

// Provision finds the token source and sets up the connections.
func (t *Transport) Provision(ctx caddy.Context) error {
	t.logger = ctx.Logger()
	app, err := ctx.App("egress")
	if err != nil {
		return err
	}
	t.app = app.(*App)

	name, provider, options, err := t.configured(ctx)
	if err != nil {
		return err
	}
	if err := t.checkTenant(options); err != nil {
		return fmt.Errorf("credential %s: %w", name, err)
	}
	t.api = provider.API()
	if t.apiHost, err = authority(t.api.URL); err != nil {
		return err
	}

	t.RouteOptions = t.RouteOptions.withDefaults(t.app.RouteOptions)
	if err := t.RouteOptions.validate(); err != nil {
		return fmt.Errorf("credential %s: %w", name, err)
	}
	if err := t.checkEncryption(provider); err != nil {
		return fmt.Errorf("credential %s: %w", name, err)
	}
	if t.guard, err = newGuard(ctx, t.RouteOptions, t.api, t.app.callers); err != nil {
		return fmt.Errorf("credential %s: %w", name, err)
	}
	if t.headers, err = newHeaderFilter(t.api, t.KeepHeaders); err != nil {
		return fmt.Errorf("credential %s: %w", name, err)
	}
	sent.lookIn(t.api)
	t.headers.dropsKeys(t.app.callers.keyHeaders(t.api))
	own, ownProvider, err := t.ownToken(name, provider)
	if err != nil {
		return err
	}
	t.warnOfOwnScopes(own, ownProvider)
	if t.credential, err = t.app.use(own, ownProvider, options); err != nil {
		return err
	}
	if err := t.provisionGrants(ctx, provider, options); err != nil {
		return err
	}

	if t.KeepAlive == nil {
		t.KeepAlive = new(reverseproxy.KeepAlive)
	}
	if t.KeepAlive.MaxIdleConnsPerHost == 0 {
		t.KeepAlive.MaxIdleConnsPerHost = 256
	}
	if t.Compression == nil {
		t.Compression = new(bool)
	}
	hosts, err := apiHosts(t.api.URL, t.APIHosts)
	if err != nil {
		return fmt.Errorf("credential %s: %w", name, err)
	}
	t.destination = &destination{
		hosts:         hosts,
		tls:           t.TLS,
		allowHTTP:     t.AllowHTTP,
		proxied:       t.ForwardProxyURL != "" || len(t.NetworkProxyRaw) > 0, // Provision drops the latter
		proxyProtocol: t.ProxyProtocolEnabled(),
	}
	t.upstream = &t.HTTPTransport
	if err := t.HTTPTransport.Provision(ctx); err != nil {
		return err
	}
	keepAnswers(t.Transport)
	return nil
}

// configured returns the credential that the route is configured to use: its
// name, its provider and its options.
func (t *Transport) configured(ctx caddy.Context) (string, tokenprovider.Provider, Credential, error) {
	inline := len(t.ProviderRaw) > 0
	switch {
	case inline && t.CredentialName != "":
		return "", nil, Credential{}, errors.New("credential and provider exclude each other")
	case inline && t.Scopes != nil:
		return "", nil, Credential{}, errors.New("scopes: belong to the provider where the credential is inline")
	case inline:
		provider, err := t.Credential.load(ctx)
		if err != nil {
			return "", nil, Credential{}, err
		}
		name := inlineName(t.Credential, provider)
		t.app.warnOfProvider(t.logger, name, provider)
		return name, provider, t.Credential, nil
	case t.CredentialName == "":
		return "", nil, Credential{}, errors.New("credential or provider is required")
	case !reflect.DeepEqual(t.Credential, Credential{}):
		return "", nil, Credential{}, fmt.Errorf("credential %s: refresh_before, token_timeout, token_ca, token_cert and revoke_on_stop belong where it is defined", t.CredentialName)
	}

	provider, ok := t.app.named[t.CredentialName]
	if !ok {
		return "", nil, Credential{}, unknownCredential(t.CredentialName, t.app.Credentials)
	}
	name, provider, err := withScopes(t.CredentialName, provider, t.Scopes)
	return name, provider, *t.app.Credentials[t.CredentialName], err
}

// withScopes returns a credential that differs in its scopes only, and its name.
// Without scopes, or with the same, it is the credential itself.
func withScopes(name string, provider tokenprovider.Provider, scopes []string) (string, tokenprovider.Provider, error) {
	if scopes == nil || sameSet(scopes, provider.Grant().Scopes) {
		return name, provider, nil
	}
	scoped, err := provider.WithScopes(scopes)
	if err != nil {
		return "", nil, fmt.Errorf("credential %s: %w", name, err)
	}
	return scopedName(name, scoped), scoped, nil
}

// sameSet reports whether a and b hold the same values.
func sameSet(a, b []string) bool {
	sorted := func(values []string) []string { return slices.Compact(slices.Sorted(slices.Values(values))) }
	return slices.Equal(sorted(a), sorted(b))
}

// provisionGrants finds the callers of the route's grants, and a token source for
// each set of scopes. Without grants the route sends the tokens of its own
// credential, provider.
func (t *Transport) provisionGrants(ctx caddy.Context, provider tokenprovider.Provider, options Credential) error {
	switch {
	case t.Grants == nil:
		t.app.send(t.credential)
		t.warnOfRoute(t.credential.name(), checkRoute(t.Allow, t.app.Allow, t.api, provider.Grant().Scopes))
		return nil
	case len(t.Grants) == 0:
		return errNoGrants
	}
	// scopes are those of the credential with others, not those of the route with others
	base, baseProvider := inlineName(t.Credential, provider), provider
	if t.CredentialName != "" {
		base, baseProvider = t.CredentialName, t.app.named[t.CredentialName]
	}
	all, err := newGranted(t.Grants, t.app.callers, func(grant *Grant) (*granted, error) {
		g := &granted{credential: t.credential}
		if grant.Scopes != nil {
			name, scoped, err := withScopes(base, baseProvider, grant.Scopes)
			if err != nil {
				return nil, err
			}
			t.app.warnOfScopes(name, scoped)
			if g.credential, err = t.app.use(name, scoped, options); err != nil {
				return nil, err
			}
		}
		t.app.send(g.credential)
		if grant.Reserve != "" {
			g.credential.reserve()
		}
		var err error
		g.allow, err = provisionOperations(ctx, grant.Allow)
		return g, err
	})
	if err != nil {
		return fmt.Errorf("egress %s: %w", base, err)
	}
	t.warnOfRoute(base, checkGrants(t.Grants, t.Allow, t.api, provider.Grant().Scopes))
	t.guard.grant(all, t.RouteOptions)
	if hasHealthChecks(ctx) && !t.credential.isFamily() { // those are for no tenant
		t.app.send(t.credential)
	}
	return nil
}

// hasHealthChecks reports whether the reverse_proxy of a transport that is being set
// up has active health checks: they carry the token of the route's own credential.
func hasHealthChecks(ctx caddy.Context) bool {
	for _, module := range slices.Backward(ctx.Modules()) {
		if proxy, ok := module.(*reverseproxy.Handler); ok {
			return proxy.HealthChecks != nil && proxy.HealthChecks.Active != nil && proxy.HealthChecks.Active.IsEnabled()
		}
	}
	return false
}

// checkEncryption refuses what would send a secret or a token in plain text
// beyond this machine.
func (t *Transport) checkEncryption(provider tokenprovider.Provider) error {
	if t.AllowHTTP {
		return nil
	}
	if err := checkEndpoints(provider); err != nil {
		return err
	}
	u, err := url.Parse(t.api.URL)
	switch {
	case err != nil:
		return err
	case option.IsLoopback(u.Hostname()):
		return nil
	case !t.TLSEnabled():
		return fmt.Errorf("api_url: tokens for %s would be sent unencrypted; use an https upstream, or permit it with allow_http", t.api.URL)
	case t.TLS.InsecureSkipVerify:
		return errors.New("tls_insecure_skip_verify: would send tokens to whoever answers; use tls_trust_pool, or permit it with allow_http")
	}
	return nil
}

// checkEndpoints refuses endpoints beyond this machine that would receive the
// secret in plain text.
func checkEndpoints(provider tokenprovider.Provider) error {
	for _, endpoint := range provider.API().Endpoints {
		if option.IsPlainHTTP(endpoint.URL) {
			return fmt.Errorf("%s: %s would send the secret unencrypted; use https, or permit it with allow_http", endpoint.Option, endpoint.URL)
		}
	}
	return nil
}

// RequestHeaderOps returns what is done to request headers before header_up.
// What is not the client's to send is removed when the request is sent, which
// costs a fraction of having Caddy do it here.
func (t *Transport) RequestHeaderOps() *headers.HeaderOps {
	return t.headers.ops(t.apiHost)
}

// RoundTrip sends req with a token, and a second time with a fresh one if the
// API answers 401. It does not change req, its trailers and headers with keys aside.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	c := call{Transport: t, req: req, probe: isProbe(req), credential: t.credential}
	return c.do()
}

// Interface guards
var (
	_ caddy.Provisioner                                = (*Transport)(nil)
	_ http.RoundTripper                                = (*Transport)(nil)
	_ caddy.CleanerUpper                               = (*Transport)(nil)
	_ reverseproxy.TLSTransport                        = (*Transport)(nil)
	_ reverseproxy.H2CTransport                        = (*Transport)(nil)
	_ reverseproxy.RequestHeaderOpsTransport           = (*Transport)(nil)
	_ reverseproxy.ProxyProtocolTransport              = (*Transport)(nil)
	_ reverseproxy.HealthCheckSchemeOverriderTransport = (*Transport)(nil)
)
