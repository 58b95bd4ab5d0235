package egress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
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

	RouteOptions

	reverseproxy.HTTPTransport

	app      *App
	source   *tokensource.Source
	meter    *meter
	api      tokenprovider.API
	apiHost  string // Host sent to the API: its authority without the default port
	guard    guard
	upstream http.RoundTripper // the embedded transport
	logger   *zap.Logger
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

	name, provider, credential, err := t.credential(ctx)
	if err != nil {
		return err
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
	if t.guard, err = newGuard(ctx, t); err != nil {
		return fmt.Errorf("credential %s: %w", name, err)
	}
	if t.source, t.meter, err = t.app.source(name, provider, credential); err != nil {
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
	t.upstream = &t.HTTPTransport
	return t.HTTPTransport.Provision(ctx)
}

// credential returns the credential that the route uses, and its name.
func (t *Transport) credential(ctx caddy.Context) (string, tokenprovider.Provider, Credential, error) {
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
		name := inlineName(provider)
		warnOfSecretsInConfig(t.logger.With(zap.String("credential", name)), provider)
		return name, provider, t.Credential, nil
	case t.CredentialName == "":
		return "", nil, Credential{}, errors.New("credential or provider is required")
	case !reflect.DeepEqual(t.Credential, Credential{}):
		return "", nil, Credential{}, fmt.Errorf("credential %s: refresh_before, token_timeout, token_ca and revoke_on_stop belong where it is defined", t.CredentialName)
	}

	name := t.CredentialName
	provider, ok := t.app.named[name]
	if !ok {
		return "", nil, Credential{}, unknownCredential(name, t.app.Credentials)
	}
	if t.Scopes != nil && !slices.Equal(t.Scopes, provider.Grant().Scopes) {
		scoped, err := provider.WithScopes(t.Scopes)
		if err != nil {
			return "", nil, Credential{}, fmt.Errorf("credential %s: %w", name, err)
		}
		provider = scoped
		name += "-" + provider.Grant().Identity()[:8]
	}
	return name, provider, *t.app.Credentials[t.CredentialName], nil
}

// checkEncryption refuses what would send a secret or a token readable beyond
// this machine.
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

// checkEndpoints refuses endpoints that would get the secret readable beyond
// this machine.
func checkEndpoints(provider tokenprovider.Provider) error {
	for _, endpoint := range provider.API().Endpoints {
		if option.IsPlainHTTP(endpoint[1]) {
			return fmt.Errorf("%s: %s would send the secret unencrypted; use https, or permit it with allow_http", endpoint[0], endpoint[1])
		}
	}
	return nil
}

// authority returns the host and port of rawURL as a Host header has them.
func authority(rawURL string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", err
	}
	if u.Port() == defaultPort(u.Scheme) {
		return strings.TrimSuffix(u.Host, ":"+u.Port()), nil
	}
	return u.Host, nil
}

func defaultPort(scheme string) string {
	if scheme == "https" {
		return "443"
	}
	return "80"
}

// RequestHeaderOps returns what is done to request headers before header_up:
// what is not the client's to send is removed, and Host is the API's.
func (t *Transport) RequestHeaderOps() *headers.HeaderOps {
	return &headers.HeaderOps{
		Set:    http.Header{"Host": {t.apiHost}},
		Delete: slices.Concat(strippedHeaders, t.api.CredentialHeaders),
	}
}

// RoundTrip sends req with a token, and a second time with a fresh one if the
// API answers 401. It does not change req, its trailers aside.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if r := t.guard.check(req); r != nil {
		return t.refuse(req, r)
	}
	if isProbe(req) {
		// probes begin while the config is still being loaded
		if err := t.app.wait(req.Context()); err != nil {
			closeBody(req)
			return nil, err
		}
	}
	return t.send(req)
}

// send sends req, which the guards let pass, with a token.
func (t *Transport) send(req *http.Request) (*http.Response, error) {
	if t.RespectRateLimit {
		if left := t.meter.limitedFor(); left > 0 {
			return t.refuse(req, rateLimitRefusal(left))
		}
	}
	token, wait, err := t.token(req.Context())
	if err != nil {
		return t.withoutToken(req, err, wait)
	}

	body := t.keep(req)
	done := t.source.Carry(token)
	resp, err := t.upstream.RoundTrip(t.outgoing(req, token, body.first()))
	done()
	outcome := outcomeForwarded
	switch {
	case err != nil:
		body.release()
	case resp.StatusCode == http.StatusUnauthorized && !insufficientScope(resp):
		resp, outcome, err = t.replay(req, resp, token, body, &wait)
	default:
		t.source.Accepted(token, false)
		body.release()
	}
	t.report(req, outcome, wait)
	if err != nil {
		return nil, err
	}
	t.meter.answered(resp, t.api)
	return cleanAnswer(resp), nil
}

// token returns a token, and how long that took if it was not at hand.
func (t *Transport) token(ctx context.Context) (*tokensource.Token, time.Duration, error) {
	if token := t.source.Live(); token != nil {
		return token, 0, nil
	}
	start := time.Now()
	token, err := t.source.Token(ctx)
	return token, time.Since(start), err
}

// outgoing returns the request as it is sent: a copy of req with headers and a
// URL of its own. Authorization is set last, after all that others did.
func (t *Transport) outgoing(req *http.Request, token *tokensource.Token, body *attempt) *http.Request {
	out := new(struct {
		request http.Request
		url     url.URL
	})
	out.request = *req
	out.url = *req.URL
	r := &out.request
	r.URL = &out.url

	// the values are shared: nothing below changes them in place
	r.Header = maps.Clone(req.Header)
	if r.Header == nil {
		r.Header = make(http.Header)
	}
	for name := range r.Header {
		if len(name) == len("Authorization") && strings.EqualFold(name, "Authorization") {
			delete(r.Header, name)
		}
	}
	r.Header["Authorization"] = token.Authorization()
	if t.api.UserAgent != "" && cmp.Or(r.Header["User-Agent"]...) == "" {
		r.Header["User-Agent"] = []string{t.api.UserAgent}
	}

	if body != nil {
		r.Body = body
	}
	if len(r.Trailer) > 0 {
		stripTrailers(r.Trailer, t.api.CredentialHeaders)
	}
	if (req.Host == "" || req.Host == req.URL.Host) && isProbe(req) {
		r.Host = t.apiHost // RequestHeaderOps do not apply to probes
	}
	return r
}

// withoutToken answers a request that no token can be had for.
func (t *Transport) withoutToken(req *http.Request, err error, wait time.Duration) (*http.Response, error) {
	var unavailable *tokensource.Error
	if !errors.As(err, &unavailable) || isProbe(req) {
		// the client is gone, or a probe has failed
		closeBody(req)
		t.report(req, outcomeClientGone, wait)
		return nil, err
	}
	r := tokenRefusal(unavailable)
	r.wait = wait
	return t.refuse(req, r)
}

// isProbe reports whether req is an active health check, not a client's request.
func isProbe(req *http.Request) bool {
	return req.Context().Value(caddyhttp.VarsCtxKey) == nil
}

// wait waits until the app has started or ctx ends.
func (a *App) wait(ctx context.Context) error {
	select {
	case <-a.started:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the egress app to start: %w", context.Cause(ctx))
	}
}

// insufficientScope reports whether a 401 says that the token lacks a scope
// (RFC 6750 §3.1): no other token of this credential would do better.
func insufficientScope(resp *http.Response) bool {
	for _, challenge := range resp.Header["Www-Authenticate"] {
		if strings.Contains(challenge, "insufficient_scope") {
			return true
		}
	}
	return false
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}

// hostOnly returns host without a port, in lower case.
func hostOnly(hostport string) string {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
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
