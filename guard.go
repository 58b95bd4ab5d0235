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

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-egress/caddy-egress/internal/apipath"
	"github.com/caddy-egress/caddy-egress/internal/option"
)

// guard refuses requests before a token is touched: those of the wrong form,
// from the wrong peer, for the wrong host, for a web page, for an operation
// that is not permitted, and those to a host that must not get the token.
//
// It judges what the client sent, which the replacer of the request knows, not
// what header_up made of it; and the path as it will be sent.
type guard struct {
	transport *Transport
	clients   clients
	hosts     []string // nil: the default; lower case
	origins   []string // lower case
	allow     []Operation
	denied    []string // path prefixes of the API's credential endpoints, lower case
	apiHosts  []string // host:port, lower case
	proxied   bool     // requests go through a proxy, which sees those without TLS
}

func newGuard(ctx caddy.Context, t *Transport) (guard, error) {
	g := guard{
		transport: t,
		denied:    t.api.CredentialPaths,
		proxied:   t.ForwardProxyURL != "" || len(t.NetworkProxyRaw) > 0,
	}
	var err error
	if g.clients, err = parseClients(t.Clients); err != nil {
		return g, err
	}
	if t.Hosts != nil {
		g.hosts = make([]string, 0, len(t.Hosts))
	}
	for _, host := range t.Hosts {
		g.hosts = append(g.hosts, hostOnly(host))
	}
	for _, origin := range t.Origins {
		g.origins = append(g.origins, strings.ToLower(origin))
	}
	for _, operation := range t.Allow {
		operation.Paths = slices.Clone(operation.Paths) // Provision changes it
		if err := operation.Paths.Provision(ctx); err != nil {
			return g, err
		}
		g.allow = append(g.allow, operation)
	}
	g.apiHosts, err = apiHosts(t.api.URL, t.APIHosts)
	return g, err
}

// apiHosts returns the hosts that may get the token as host:port.
func apiHosts(apiURL string, configured []string) ([]string, error) {
	u, err := url.Parse(apiURL)
	if err != nil {
		return nil, err
	}
	port := u.Port()
	if port == "" {
		port = defaultPort(u.Scheme)
	}
	if configured == nil {
		configured = []string{u.Host}
	}
	var hosts []string
	for _, host := range configured {
		switch {
		case caddy.IsUnixNetwork(networkOf(host)):
			hosts = append(hosts, host)
		default:
			if h, p, err := net.SplitHostPort(host); err == nil {
				hosts = append(hosts, net.JoinHostPort(hostOnly(h), p))
			} else {
				hosts = append(hosts, net.JoinHostPort(hostOnly(host), port))
			}
		}
	}
	return hosts, nil
}

// check returns the refusal of req, or nil if it may go out. Health probes are
// the operator's own requests: only the host they go to is judged.
func (g *guard) check(req *http.Request) *refusal {
	if !isProbe(req) {
		if r := g.checkForm(req); r != nil {
			return r
		}
		if r := g.checkClient(req); r != nil {
			return r
		}
		repl, _ := req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		if repl == nil {
			return forbidden(keyHostNotAllowed, "the request does not come through an HTTP server of Caddy", "")
		}
		if r := g.checkHost(repl); r != nil {
			return r
		}
		if r := g.checkOrigin(repl); r != nil {
			return r
		}
		if r := g.checkOperation(req, repl); r != nil {
			return r
		}
	}
	return g.checkAPIHost(req)
}

func forbidden(key, message, detail string) *refusal {
	return &refusal{status: http.StatusForbidden, key: key, message: message, detail: detail, proxyError: "http_request_denied"}
}

// checkForm refuses what a gateway cannot pass on without changing its meaning.
func (g *guard) checkForm(req *http.Request) *refusal {
	if req.Method == http.MethodConnect || req.Method == http.MethodTrace {
		return &refusal{
			status: http.StatusMethodNotAllowed, key: keyMethodNotAllowed, proxyError: "http_request_error",
			message: req.Method + " does not pass the gateway",
			allow:   "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
		}
	}
	bad := func(message string) *refusal {
		return &refusal{status: http.StatusBadRequest, key: keyBadRequestTarget, proxyError: "http_request_error", message: message}
	}
	asterisk := req.Method == http.MethodOptions && req.URL.Path == "*"
	if req.URL.Opaque != "" || !asterisk && !strings.HasPrefix(req.URL.RequestURI(), "/") {
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
	return forbidden(keyClientNotAllowed, "this client is not served", "; clients would permit it")
}

// localSuffixes are name spaces that nobody can register a name in.
var localSuffixes = []string{".localhost", ".internal", ".local", ".lan", ".home.arpa", ".svc", ".cluster.local", ".test"}

// checkHost judges the Host that the client sent: a web page that was rebound
// to this address still sends the name it was loaded from.
func (g *guard) checkHost(repl *caddy.Replacer) *refusal {
	value, _ := repl.GetString("http.request.host")
	host := hostOnly(value)
	if g.hosts == nil {
		if host != "" && !strings.Contains(host, ".") || host == "localhost" || net.ParseIP(zoneless(host)) != nil {
			return nil
		}
		for _, suffix := range localSuffixes {
			if strings.HasSuffix(host, suffix) {
				return nil
			}
		}
	} else if slices.Contains(g.hosts, anyValue) || slices.Contains(g.hosts, host) {
		return nil
	}
	return forbidden(keyHostNotAllowed, "this host name is not served", fmt.Sprintf("; hosts %q would permit it", host))
}

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
		return forbidden(keyOriginNotAllowed, "a browser sent this request for a page of another site", "")
	}
	return forbidden(keyOriginNotAllowed, fmt.Sprintf("pages of this origin are not served; origins %s would permit it", printable(origin)), "")
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
		return forbidden(keyOperationNotAllowed, "the path "+err.Error()+", so an API could read it otherwise than it looks", "")
	}
	if slices.ContainsFunc(readings, g.isDenied) {
		return forbidden(keyOperationNotAllowed, "the API's own credential endpoints are not served", "")
	}
	if len(g.allow) == 0 {
		return nil
	}
	for _, reading := range readings {
		if !g.isAllowed(req.Context(), method, reading) {
			return forbidden(keyOperationNotAllowed,
				fmt.Sprintf("this operation is not permitted; allow %s %s would permit it", printable(method), printable(readings[0])), "")
		}
	}
	return nil
}

// isDenied reports whether path is, or is below, a credential endpoint.
func (g *guard) isDenied(path string) bool {
	if g.transport.api.IgnoresCase {
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

// checkAPIHost judges where the request would go: the name that TLS verifies,
// or else the host that is dialed.
func (g *guard) checkAPIHost(req *http.Request) *refusal {
	t := g.transport
	dial, dialed := reverseproxy.GetDialInfo(req.Context())
	if dialed && caddy.IsUnixNetwork(dial.Network) {
		if slices.Contains(g.apiHosts, dial.Network+"/"+dial.Address) {
			return nil
		}
		return misdirected(dial.Network + "/" + dial.Address)
	}

	target := req.URL.Host
	if dialed && t.ProxyProtocolEnabled() {
		target = dial.Address // the URL holds the client's address as well
	}
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		host = strings.Trim(target, "[]")
	}
	encrypted := req.URL.Scheme == "https"
	if req.URL.Scheme == "" { // as the HTTP transport decides; a health check has one
		encrypted = t.TLSEnabled() && !slices.Contains(t.TLS.ExceptPorts, req.URL.Port())
	}
	verified := encrypted && t.TLSEnabled() && !t.TLS.InsecureSkipVerify
	if port == "" {
		port = "80"
		if encrypted {
			port = "443"
		}
	}
	if verified && t.TLS.ServerName != "" {
		host = serverName(req, t.TLS.ServerName)
	}
	if !g.isAPIHost(host, port) {
		return misdirected(net.JoinHostPort(host, port))
	}
	if verified {
		return nil
	}
	// a redirect can change the URL of a health check, not where it is dialed
	local := option.IsLoopback(host)
	if dialed {
		if !g.isAPIHost(dial.Host, dial.Port) {
			return misdirected(net.JoinHostPort(dial.Host, dial.Port))
		}
		local = local && option.IsLoopback(dial.Host)
	}
	if !t.AllowHTTP && (!local || g.proxied) {
		return &refusal{
			status: http.StatusMisdirectedRequest, key: keyAPIHostNotAllowed, proxyError: "http_request_denied",
			message: "the API would be called without verified TLS; allow_http would permit it",
		}
	}
	return nil
}

// serverName returns the name that TLS verifies, as the HTTP transport does.
func serverName(req *http.Request, configured string) string {
	if !strings.Contains(configured, "{") {
		return configured
	}
	repl, _ := req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if repl == nil {
		return ""
	}
	return repl.ReplaceAll(configured, "")
}

func (g *guard) isAPIHost(host, port string) bool {
	return slices.Contains(g.apiHosts, net.JoinHostPort(strings.ToLower(strings.TrimSuffix(host, ".")), port))
}

func misdirected(host string) *refusal {
	return &refusal{
		status: http.StatusMisdirectedRequest, key: keyAPIHostNotAllowed, proxyError: "http_request_denied",
		message: fmt.Sprintf("the upstream is not the API that the token is for; api_hosts %s would permit it", host),
	}
}
