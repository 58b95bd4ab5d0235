package egress

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

func init() {
	caddy.RegisterModule(TokenEndpoint{})
	httpcaddyfile.RegisterDirective("egress_token", parseTokenEndpoint)
	httpcaddyfile.RegisterDirectiveOrder("egress_token", httpcaddyfile.Before, "handle")
}

// TokenEndpoint serves clients that insist on an OAuth exchange of their own: it
// answers where they look for tokens, by the client credentials grant (RFC 6749
// §4.4), with a local token. Where callers are configured, the client has to send
// the name and the key of one, and the token proves what the key does; it lives
// for an hour, or until the caller no longer has that key. Where none are,
// any name and key will do, and the token proves nothing. It is never a token of
// the API.
//
// The last part of the path says what is asked for. A `revoke` is a revocation
// (RFC 7009), which is answered with 200 and ends nothing: a local token is kept
// nowhere. Below /.well-known/oauth-authorization-server is the metadata of the
// endpoint (RFC 8414). All else is a token request.
//
// The guards are those of routes, and so are their defaults: the global option's,
// and where that says nothing, `any` for Clients and Hosts if callers are
// configured.
type TokenEndpoint struct {
	// Path of the token endpoint, for the metadata. Default: what the metadata was
	// asked of and `/token`, or else `/oauth2/token`.
	Path string `json:"path,omitempty"`

	// Peers that are served, as of a route.
	Clients []string `json:"clients,omitempty"`

	// Hosts that may stand in a request's Host, as of a route.
	Hosts []string `json:"hosts,omitempty"`

	// Origins of web pages that are served, as of a route.
	Origins []string `json:"origins,omitempty"`

	callers  *callers
	guard    *guard
	refusals map[string]*logLimiter // by the caller that is named; "" is for all others
	logger   *zap.Logger
}

// CaddyModule returns the Caddy module information.
func (TokenEndpoint) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.egress_token",
		New: func() caddy.Module { return new(TokenEndpoint) },
	}
}

const (
	metadataPath     = "/.well-known/oauth-authorization-server"
	defaultTokenPath = "/oauth2/token"
)

var (
	tokenMethods    = []string{http.MethodPost}
	metadataMethods = []string{http.MethodGet, http.MethodHead}
)

// localTokensTotal belongs to the process, like the collectors in metrics.go.
var localTokensTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
	Namespace: "caddy", Subsystem: "egress", Name: "local_tokens_total",
	Help: "Token requests to egress_token by the caller that they name, if it is known, and how they ended.",
}, []string{"caller", "outcome"})

// Provision finds the callers and sets up the guard.
func (h *TokenEndpoint) Provision(ctx caddy.Context) error {
	h.logger = ctx.Logger()
	loaded, err := ctx.App("egress")
	if err != nil {
		return err
	}
	app := loaded.(*App)
	h.callers = app.callers
	h.refusals = map[string]*logLimiter{"": new(logLimiter)}
	for name := range app.Callers {
		h.refusals[name] = new(logLimiter)
	}
	if h.Path != "" && !strings.HasPrefix(h.Path, "/") {
		return option.Errorf("path", "%q does not begin with a slash", h.Path)
	}

	options := h.guards().withDefaults(RouteOptions{Clients: app.Clients, Hosts: app.Hosts, Origins: app.Origins})
	if h.callers != nil {
		options = options.withDefaults(RouteOptions{Clients: []string{anyValue}, Hosts: []string{anyValue}})
	}
	if err := options.validate(); err != nil {
		return err
	}
	// who calls is for the exchange to find out
	if h.guard, err = newGuard(ctx, options, tokenprovider.API{}, nil); err != nil {
		return err
	}
	h.guard.cors.methods = strings.Join(slices.Concat(metadataMethods, tokenMethods), ", ")
	return nil
}

// guards returns the options as those of a route.
func (h *TokenEndpoint) guards() RouteOptions {
	return RouteOptions{Clients: h.Clients, Hosts: h.Hosts, Origins: h.Origins}
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *TokenEndpoint) ServeHTTP(w http.ResponseWriter, req *http.Request, _ caddyhttp.Handler) error {
	e := exchange{TokenEndpoint: h, w: w, req: req}
	e.repl, _ = req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	methods, serve := tokenMethods, e.token
	suffix, isMetadata := cutMetadataPath(req.URL.EscapedPath())
	switch {
	case isMetadata:
		methods, serve = metadataMethods, func() error { return e.metadata(suffix) }
	case strings.EqualFold(path.Base(req.URL.Path), "revoke"):
		serve = e.revoke
	}

	_, r := h.guard.check(req, e.repl)
	if r == nil && !slices.Contains(methods, req.Method) || r != nil && r.status == http.StatusMethodNotAllowed {
		allow := strings.Join(methods, ", ")
		r = oauthRefusal(http.StatusMethodNotAllowed, oauthInvalidRequest, "this endpoint takes "+allow)
		r.key, r.allow = keyMethodNotAllowed, allow
	}
	if r != nil {
		return e.refuse(r, "")
	}
	return serve()
}

// cutMetadataPath returns what follows the well-known path of metadata, which is
// the path of the issuer that is asked for (RFC 8414 §3.1), and whether path is it.
func cutMetadataPath(path string) (suffix string, ok bool) {
	if len(path) < len(metadataPath) || !strings.EqualFold(path[:len(metadataPath)], metadataPath) {
		return "", false
	}
	suffix = path[len(metadataPath):]
	return strings.TrimRight(suffix, "/"), suffix == "" || suffix[0] == '/'
}

// exchange is one request to a token endpoint.
type exchange struct {
	*TokenEndpoint
	w    http.ResponseWriter
	req  *http.Request
	repl *caddy.Replacer
}

// token answers a token request.
func (e *exchange) token() error {
	r, refused := readTokenRequest(e.req)
	name := e.knownName(r.clients)
	if refused != nil {
		return e.refuse(refused, name)
	}
	token, lifetime, ok := e.issue(r.clients)
	if !ok {
		return e.refuse(invalidClient("this is not the name and key of a caller"), name)
	}
	localTokensTotal.WithLabelValues(name, "issued").Inc()
	if name == "" { // without callers
		name = r.clients[0].name
	} else if fields, ok := e.req.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		fields.Add(zap.String("egress_caller", name))
	}
	scope := r.scope
	if r.voucherify && scope == "" {
		scope = "api" // its clients want every member
	}
	return e.answer("local_token", struct {
		AccessToken string `json:"access_token"`
		ClientID    string `json:"client_id"`
		ExpiresAt   int64  `json:"expires_at"`
		ExpiresIn   int64  `json:"expires_in"`
		Scope       string `json:"scope,omitempty"`
		TokenType   string `json:"token_type"`
	}{token, name, time.Now().Add(lifetime).Unix(), int64(lifetime / time.Second), scope, "Bearer"})
}

// issue returns a local token for a client.
func (e *exchange) issue(clients []clientCredentials) (token string, lifetime time.Duration, ok bool) {
	if e.callers == nil {
		return randomLocalToken(), localTokenLifetime, true
	}
	for _, client := range clients {
		if token, lifetime, ok := e.callers.issueToken(client.name, client.key); ok {
			return token, lifetime, true
		}
		// it proves who it is by other means, with the token as without
		if c := e.callers.byName[client.name]; c != nil && !c.keyed && c.holds(e.req, e.repl) {
			return randomLocalToken(), localTokenLifetime, true
		}
	}
	return "", 0, false
}

// knownName returns the name that a client has given, if it is that of a caller.
func (e *exchange) knownName(clients []clientCredentials) string {
	for _, client := range clients {
		if _, ok := e.refusals[client.name]; ok {
			return client.name
		}
	}
	return ""
}

// revoke answers a revocation. There is nothing to end. Clients need no body, but
// simple-oauth2 fails without one in JSON.
func (e *exchange) revoke() error { return e.answer("revocation", struct{}{}) }

// metadata answers with the metadata of the issuer whose path is suffix.
func (e *exchange) metadata(suffix string) error {
	scheme, _ := e.repl.GetString("http.request.scheme")
	host, _ := e.repl.GetString("http.request.hostport")
	server := scheme + "://" + host
	endpoint := (&url.URL{Path: e.Path}).EscapedPath()
	switch {
	case endpoint != "":
	case suffix != "":
		endpoint = suffix + "/token"
	default:
		endpoint = defaultTokenPath
	}
	methods := []string{"client_secret_basic", "client_secret_post"}
	return e.answer("metadata", struct {
		Issuer            string   `json:"issuer"`
		TokenEndpoint     string   `json:"token_endpoint"`
		AuthMethods       []string `json:"token_endpoint_auth_methods_supported"`
		Revocation        string   `json:"revocation_endpoint"`
		RevocationMethods []string `json:"revocation_endpoint_auth_methods_supported"`
		GrantTypes        []string `json:"grant_types_supported"`
		ResponseTypes     []string `json:"response_types_supported"` // required; those of an authorization endpoint, of which there is none

		// The SDK of MCP takes no metadata without one, which RFC 8414 §2 does not
		// require here. No client has a reason to go there; it gets an OAuth error.
		AuthorizationEndpoint string `json:"authorization_endpoint"`
	}{
		server + suffix, server + endpoint, methods, server + endpoint + "/revoke", methods, []string{grantTypeCredentials}, []string{},
		server + endpoint,
	})
}

// answer answers with what is marshaled as JSON.
func (e *exchange) answer(details string, body any) error {
	content, err := json.Marshal(body)
	if err != nil {
		return err
	}
	header := e.w.Header()
	header.Set("Proxy-Status", fmt.Sprintf("%s; details=%q", proxyName, details))
	header.Set("Content-Type", "application/json")
	header.Set("Content-Length", strconv.Itoa(len(content)))
	completeToken(header)
	e.guard.cors.expose(header, e.repl, false)
	_, err = e.w.Write(content)
	return err
}

// refuse answers with an OAuth error. The request names a caller, or name is empty.
func (e *exchange) refuse(r *refusal, name string) error {
	code := r.oauthError
	switch {
	case code != "":
	case r.status == http.StatusForbidden:
		code = oauthUnauthorizedClient
	default:
		code = oauthInvalidRequest
	}
	if r.outcome != outcomePreflight {
		e.logRefusal(r, code, name)
	}
	header := e.w.Header()
	completeToken(header)
	e.guard.cors.refused(header, e.repl, r)
	return r.write(e.w, e.req, func(_ int, _, message string) (string, []byte) { return oauthErrorBody(code, message) })
}

// completeToken completes the header of an answer: it is for this client, now
// (RFC 6749 §5.1).
func completeToken(header http.Header) {
	header.Set("Cache-Control", "no-store")
	header.Set("Pragma", "no-cache")
	header.Set("X-Content-Type-Options", "nosniff")
}

// logRefusal logs one refusal a second for each caller that is named, with the
// number of those that were left out before it.
func (e *exchange) logRefusal(r *refusal, code, name string) {
	localTokensTotal.WithLabelValues(name, "refused").Inc()
	leftOut, ok := e.refusals[name].next(time.Now())
	if !ok {
		return
	}
	fields := r.fields(e.req, leftOut, zap.String("error", code))
	if name != "" {
		fields = append(fields, zap.String("caller", name))
	}
	e.logger.Warn("refused a token request", fields...)
}

// parseTokenEndpoint sets up the handler from Caddyfile tokens. Syntax:
//
//	egress_token [<matcher>] {
//	    clients <ranges...>|any
//	    hosts   <names...>|any
//	    origins <origins...>
//	}
//
// The block is optional. A matcher that is a path without wildcards is that of the
// token endpoint: what belongs to it is matched as well, which are its revocation,
// at <path>/revoke and beside it, and its metadata.
func parseTokenEndpoint(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	endpoint := new(TokenEndpoint)
	h.Next() // the directive's name
	if h.NextArg() && strings.HasPrefix(h.Val(), "/") && !strings.ContainsAny(h.Val(), "*{}%") {
		endpoint.Path = h.Val()
	}
	h.Reset()
	h.Next()
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	if endpoint.Path != "" {
		matcher = caddy.ModuleMap{"path": h.JSON(caddyhttp.MatchPath{
			endpoint.Path, endpoint.Path + "/revoke", path.Join(path.Dir(endpoint.Path), "revoke"), metadataPath, metadataPath + "/*",
		})}
	}
	if err := endpoint.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	return h.NewRoute(matcher, endpoint), nil
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens; for the syntax see
// the directive.
func (h *TokenEndpoint) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return unmarshalGuards(d, "egress_token", &h.Clients, &h.Hosts, &h.Origins)
}

// Interface guards
var (
	_ caddy.Provisioner           = (*TokenEndpoint)(nil)
	_ caddyhttp.MiddlewareHandler = (*TokenEndpoint)(nil)
	_ caddyfile.Unmarshaler       = (*TokenEndpoint)(nil)
)
