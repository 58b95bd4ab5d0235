package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/internal/apipath"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// guard refuses requests of clients before a token is touched: those of the
// wrong form, from the wrong peer, for the wrong host, for a web page, or for an
// operation that is not permitted.
//
// It judges what the client sent, which the replacer of the request knows, not
// what header_up made of it; and the path as it will be sent.
type guard struct {
	clients     clients
	hosts       []string // nil: the default; lower case
	origins     []string // lower case
	allow       []Operation
	denied      []string // path prefixes of the API's credential endpoints, lower case
	ignoresCase bool     // the API reads paths without regard to case

	// servedHost is the last Host that was let pass; most routes are called by
	// one name.
	servedHost atomic.Pointer[string]
}

// newGuard returns the guard of a route to api.
func newGuard(ctx caddy.Context, options RouteOptions, api tokenprovider.API) (*guard, error) {
	g := &guard{denied: api.CredentialPaths, ignoresCase: api.IgnoresCase}
	var err error
	if g.clients, err = parseClients(options.Clients); err != nil {
		return nil, err
	}
	if options.Hosts != nil {
		g.hosts = make([]string, 0, len(options.Hosts))
	}
	for _, host := range options.Hosts {
		g.hosts = append(g.hosts, hostOnly(host))
	}
	for _, origin := range options.Origins {
		g.origins = append(g.origins, strings.ToLower(origin))
	}
	for _, operation := range options.Allow {
		operation.Paths = slices.Clone(operation.Paths) // Provision changes it
		if err := operation.Paths.Provision(ctx); err != nil {
			return nil, err
		}
		g.allow = append(g.allow, operation)
	}
	return g, nil
}

// check returns the refusal of a client's request, or nil if it may go out.
func (g *guard) check(req *http.Request) *refusal {
	if r := g.checkForm(req); r != nil {
		return r
	}
	if r := g.checkClient(req); r != nil {
		return r
	}
	repl, _ := req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if repl == nil {
		return forbidden(outcomeHostNotAllowed, "the request does not come through an HTTP server of Caddy", "")
	}
	if r := g.checkHost(repl); r != nil {
		return r
	}
	if r := g.checkOrigin(repl); r != nil {
		return r
	}
	return g.checkOperation(req, repl)
}

// checkForm refuses what a gateway cannot pass on without changing its meaning.
func (g *guard) checkForm(req *http.Request) *refusal {
	if req.Method == http.MethodConnect || req.Method == http.MethodTrace {
		return &refusal{
			status: http.StatusMethodNotAllowed, outcome: outcomeBadRequest, key: keyMethodNotAllowed, proxyError: "http_request_error",
			message: req.Method + " does not pass the gateway",
			allow:   "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
		}
	}
	bad := func(message string) *refusal {
		return &refusal{status: http.StatusBadRequest, outcome: outcomeBadRequest, key: keyBadRequestTarget, proxyError: "http_request_error", message: message}
	}
	asterisk := req.Method == http.MethodOptions && req.URL.Path == "*"
	if req.URL.Opaque != "" || !asterisk && req.URL.Path != "" && !strings.HasPrefix(req.URL.EscapedPath(), "/") {
		return bad("the request target is not a path that begins with a slash")
	}
	if upgrade := req.Header["Upgrade"]; len(upgrade) > 1 || len(upgrade) == 1 && !strings.EqualFold(upgrade[0], "websocket") {
		return bad("an upgrade to anything but websocket does not pass the gateway")
	}
	return nil
}

// checkClient judges the peer address.
func (g *guard) checkClient(req *http.Request) *refusal {
	if g.clients.any {
		return nil
	}
	early := req.TLS != nil && !req.TLS.HandshakeComplete // the address may be forged
	if local, ok := req.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && caddy.IsUnixNetwork(local.Network()) {
		if g.clients.unix {
			return nil
		}
	} else if peer, err := netip.ParseAddrPort(req.RemoteAddr); err == nil && !early {
		addr := peer.Addr().Unmap().WithZone("")
		for _, prefix := range g.clients.ranges {
			if prefix.Contains(addr) {
				return nil
			}
		}
	}
	return forbidden(outcomeClientNotAllowed, "this client is not served", "; clients would permit it")
}

// localSuffixes are name spaces that nobody can register a name in.
var localSuffixes = []string{".localhost", ".internal", ".local", ".lan", ".home.arpa", ".svc", ".cluster.local", ".test"}

// checkHost judges the Host that the client sent: a web page that was rebound
// to this address still sends the name it was loaded from.
func (g *guard) checkHost(repl *caddy.Replacer) *refusal {
	value, _ := repl.GetString("http.request.host")
	if last := g.servedHost.Load(); last != nil && *last == value {
		return nil
	}
	host := hostOnly(value)
	if g.servesHost(host) {
		served := value // a copy, so that value does not escape where nothing is stored
		g.servedHost.Store(&served)
		return nil
	}
	return forbidden(outcomeHostNotAllowed, "this host name is not served", fmt.Sprintf("; hosts %q would permit it", host))
}

// servesHost reports whether host, without port and in lower case, is served.
func (g *guard) servesHost(host string) bool {
	if g.hosts != nil {
		return slices.Contains(g.hosts, anyValue) || slices.Contains(g.hosts, host)
	}
	return host != "" && !strings.Contains(host, ".") || net.ParseIP(zoneless(host)) != nil ||
		slices.ContainsFunc(localSuffixes, func(suffix string) bool { return strings.HasSuffix(host, suffix) })
}

// zoneless returns an IP address without its zone.
func zoneless(ip string) string {
	ip, _, _ = strings.Cut(ip, "%")
	return ip
}

// checkOrigin judges whether a browser sent the request for a page of another origin.
func (g *guard) checkOrigin(repl *caddy.Replacer) *refusal {
	origin, _ := repl.GetString("http.request.header.Origin")
	site, _ := repl.GetString("http.request.header.Sec-Fetch-Site")
	if origin == "" && site == "" {
		return nil
	}
	if origin != "" && slices.Contains(g.origins, strings.ToLower(origin)) {
		return nil
	}
	own := origin == ""
	if !own {
		scheme, _ := repl.GetString("http.request.scheme")
		host, _ := repl.GetString("http.request.hostport")
		own = sameOrigin(origin, scheme, host)
	}
	if own && (site == "" || site == "same-origin" || site == "none") {
		return nil
	}
	if origin == "" {
		return forbidden(outcomeOriginNotAllowed, "a browser sent this request for a page of another site", "")
	}
	return forbidden(outcomeOriginNotAllowed, fmt.Sprintf("pages of this origin are not served; origins %s would permit it", printable(origin)), "")
}

// sameOrigin reports whether origin is that of a request to host over scheme.
func sameOrigin(origin, scheme, host string) bool {
	u, err := url.Parse(origin)
	if err != nil || u.Host == "" || !strings.EqualFold(origin, scheme+"://"+u.Host) || hostOnly(u.Host) != hostOnly(host) {
		return false
	}
	port := func(hostport string) string {
		if _, port, err := net.SplitHostPort(hostport); err == nil {
			return port
		}
		return defaultPort(scheme)
	}
	return port(u.Host) == port(host)
}

// printable returns value for an error message, bounded and quoted.
func printable(value string) string {
	if len(value) > 100 {
		value = value[:100] + "…"
	}
	return fmt.Sprintf("%q", value)
}

// checkOperation judges method and path. Where either is restricted, a path
// that an API could read in more than one way has to pass in each of them.
func (g *guard) checkOperation(req *http.Request, repl *caddy.Replacer) *refusal {
	if len(g.allow) == 0 && len(g.denied) == 0 {
		return nil
	}
	method, _ := repl.GetString("http.request.method")
	if method == http.MethodConnect {
		method = req.Method // a websocket over HTTP/2 or 3
	}
	path := req.URL.EscapedPath()
	readings, err := apipath.Readings(path)
	if err == nil && len(g.allow) > 0 && strings.Contains(path, "//") {
		err = errors.New("holds doubled slashes")
	}
	if err != nil {
		return forbidden(outcomeOperationNotAllowed, "the path "+err.Error()+", so an API could read it otherwise than it looks", "")
	}
	if slices.ContainsFunc(readings, g.isDenied) {
		return forbidden(outcomeOperationNotAllowed, "the API's own credential endpoints are not served", "")
	}
	if len(g.allow) == 0 {
		return nil
	}
	for _, reading := range readings {
		if !g.isAllowed(req.Context(), method, reading) {
			return forbidden(outcomeOperationNotAllowed,
				fmt.Sprintf("this operation is not permitted; allow %s %s would permit it", printable(method), printable(readings[0])), "")
		}
	}
	return nil
}

// isDenied reports whether path is, or is below, a credential endpoint.
func (g *guard) isDenied(path string) bool {
	if g.ignoresCase {
		path = strings.ToLower(path)
	}
	for _, prefix := range g.denied {
		if strings.HasPrefix(path+"/", prefix) {
			return true
		}
	}
	return false
}

func (g *guard) isAllowed(ctx context.Context, method, path string) bool {
	judged := (&http.Request{Method: method, URL: &url.URL{Path: path}}).WithContext(ctx)
	for _, operation := range g.allow {
		if len(operation.Methods) > 0 && !slices.Contains(operation.Methods, method) {
			continue
		}
		if matched, err := operation.Paths.MatchWithError(judged); err == nil && matched {
			return true
		}
	}
	return false
}
