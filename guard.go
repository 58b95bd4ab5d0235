package egress

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

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
	cors        cors
	allow       []Operation
	denied      []string // path prefixes of the API's credential endpoints, lower case
	ignoresCase bool     // the API reads paths without regard to case

	callers *callers             // nil: nobody is known
	keys    []string             // placeholders of the headers in which a key is looked for
	granted map[*caller]*granted // nil: the route has no grants

	// servedHost is the last Host that was let pass; most routes are called by
	// one name.
	servedHost atomic.Pointer[string]
}

// newGuard returns the guard of a route to api.
func newGuard(ctx caddy.Context, options RouteOptions, api tokenprovider.API, known *callers) (*guard, error) {
	g := &guard{
		denied: api.CredentialPaths, ignoresCase: api.IgnoresCase, cors: newCORS(options, api),
		callers: known,
	}
	for _, name := range known.keyHeaders(api) {
		g.keys = append(g.keys, "http.request.header."+name)
	}
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
	if g.allow, err = provisionOperations(ctx, options.Allow); err != nil {
		return nil, err
	}
	return g, nil
}

// provisionOperations returns operations that can be matched.
func provisionOperations(ctx caddy.Context, operations []Operation) (provisioned []Operation, err error) {
	for _, operation := range operations {
		operation.Paths = slices.Clone(operation.Paths) // Provision changes it
		if err := operation.Paths.Provision(ctx); err != nil {
			return nil, err
		}
		provisioned = append(provisioned, operation)
	}
	return provisioned, nil
}

// visit is a client's request, as the guard has judged it.
type visit struct {
	caller  *caller  // nil: nobody known calls
	granted *granted // nil: the route has no grants
}

// check judges a client's request. It returns who calls, and the refusal of the
// request, or the answer to a preflight, or nil if it may go out.
func (g *guard) check(req *http.Request, repl *caddy.Replacer) (v visit, _ *refusal) {
	if r := g.checkForm(req); r != nil {
		return v, r
	}
	if repl == nil {
		return v, forbidden(outcomeHostNotAllowed, "the request does not come through an HTTP server of Caddy", "")
	}
	v.caller = g.callers.identify(req, repl, g.keys)
	if r := g.checkClient(req); r != nil {
		return v, r
	}
	if r := g.checkHost(repl, v.caller); r != nil {
		return v, r
	}
	if r := g.checkOrigin(repl); r != nil {
		return v, r
	}
	if g.cors.isPreflight(repl) { // it performs no operation, and browsers send no key with it
		return v, preflight
	}
	if g.granted != nil {
		if req.TLS != nil && !req.TLS.HandshakeComplete {
			return v, tooEarly
		}
		if v.caller == nil {
			return v, g.callers.unknown(req, repl, g.keys)
		}
		if v.granted = g.granted[v.caller]; v.granted == nil {
			return v, notGranted(v.caller.name)
		}
	}
	return v, g.checkOperation(req, repl, v)
}

// grant has the route serve nobody but those callers. Unless the route says from
// where, it serves them from anywhere: their proof takes the place of an address.
func (g *guard) grant(to map[*caller]*granted, options RouteOptions) {
	g.granted = to
	if options.Clients == nil {
		g.clients = clients{any: true}
	}
}

// checkForm refuses what a gateway cannot pass on without changing its meaning.
func (g *guard) checkForm(req *http.Request) *refusal {
	if req.Method == http.MethodConnect || req.Method == http.MethodTrace || req.Method == "TRACK" { // IIS has the latter for TRACE
		return &refusal{
			status: http.StatusMethodNotAllowed, outcome: outcomeBadRequest, key: keyMethodNotAllowed, proxyError: "http_request_error",
			message: req.Method + " does not pass the gateway",
			allow:   usualMethods,
		}
	}
	asterisk := req.Method == http.MethodOptions && req.URL.Path == "*"
	if req.URL.Opaque != "" || !asterisk && req.URL.Path != "" && !strings.HasPrefix(req.URL.EscapedPath(), "/") {
		return badRequest(keyBadRequestTarget, "the request target is not a path that begins with a slash")
	}
	original, ok := req.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request)
	if hasSpace(req.URL.RawQuery) || ok && hasSpace(original.RequestURI) {
		return badRequest(keyBadRequestTarget, "the request target holds a space or control character")
	}
	return nil
}

// hasSpace reports whether a request target, or a part of it, holds a space or
// control character. With HTTP/2 and 3 they can arrive; with HTTP/1 they would
// end the target.
func hasSpace(target string) bool {
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c == 0x7f {
			return true
		}
	}
	return false
}

// checkClient judges the peer address.
func (g *guard) checkClient(req *http.Request) *refusal {
	if g.clients.any || g.clients.has(peerOf(req)) {
		return nil
	}
	return forbidden(outcomeClientNotAllowed, "this client is not served", "; clients would permit it")
}

// localSuffixes are name spaces that nobody can register a name in.
var localSuffixes = []string{".localhost", ".internal", ".local", ".lan", ".home.arpa", ".svc", ".cluster.local", ".test"}

// checkHost judges the Host that the client sent: a web page that was rebound
// to this address still sends the name it was loaded from.
//
// Where it is a grant that counts, a caller that proves more than its address
// takes the place of the default.
func (g *guard) checkHost(repl *caddy.Replacer, c *caller) *refusal {
	if g.hosts == nil && g.granted != nil && (c == nil || c.strong) {
		return nil
	}
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
	return forbidden(outcomeHostNotAllowed, "this host name is not served", fmt.Sprintf("; hosts %s would permit it", printable(host)))
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
	if g.cors.origin(repl) != "" {
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
	if origin == "null" { // of a sandboxed frame, a file, or a redirect: nothing can list it
		return forbidden(outcomeOriginNotAllowed, "pages of an opaque origin are not served", "")
	}
	return forbidden(outcomeOriginNotAllowed, "pages of this origin are not served", fmt.Sprintf("; origins %s would permit it", printable(origin)))
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
func printable(value string) string { return strconv.Quote(startOf(value)) }

// startOf returns the start of value, which may be a client's, for an error message.
func startOf(value string) string {
	if len(value) > 100 {
		value = value[:100] + "…"
	}
	return value
}

// checkOperation judges method and path. Where either is restricted, a path
// that an API could read in more than one way has to pass in each of them.
func (g *guard) checkOperation(req *http.Request, repl *caddy.Replacer, v visit) *refusal {
	var granted []Operation
	if v.granted != nil {
		granted = v.granted.allow
	}
	restricted := len(g.allow)+len(granted) > 0
	if !restricted && len(g.denied) == 0 {
		return nil
	}
	method, _ := repl.GetString("http.request.method")
	if method == http.MethodConnect {
		method = req.Method // a websocket over HTTP/2 or 3
	}
	path := req.URL.EscapedPath()
	readings, err := apipath.Readings(path)
	if err == nil && restricted && strings.Contains(path, "//") {
		err = errors.New("holds doubled slashes")
	}
	if err != nil {
		return badRequest(keyBadRequestPath, "the path "+err.Error()+", so an API could read it differently")
	}
	if slices.ContainsFunc(readings, g.isDenied) {
		return credentialEndpoint
	}
	if !restricted {
		return nil
	}
	for i, reading := range readings {
		permitted := isAllowed(req, g.allow, method, reading)
		switch {
		case permitted && isAllowed(req, granted, method, reading):
		case i == 0 && permitted:
			return forbidden(outcomeOperationNotAllowed, "this operation is not granted to "+v.caller.name,
				fmt.Sprintf("; allow %s %s in its grant would permit it", printable(method), printable(reading)))
		case i == 0:
			return forbidden(outcomeOperationNotAllowed, "this operation is not permitted",
				fmt.Sprintf("; allow %s %s would permit it", printable(method), printable(reading)))
		default:
			return badRequest(keyBadRequestPath, fmt.Sprintf("the path could be read as %s, which is not permitted", printable(reading)))
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
		if prefix == "/" && strings.Trim(path, "/") == "" || prefix != "/" && strings.HasPrefix(path+"/", prefix) {
			return true
		}
	}
	return false
}

// notASCII replaces two characters beyond ASCII, the Kelvin sign and the capital
// I with a dot, that are in ASCII in lower case, which Caddy's matcher compares.
var notASCII = strings.NewReplacer("\u212a", "\ufffd", "\u0130", "\ufffd")

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// judgedRequest is a request with another path, for Caddy's matcher. It is pooled,
// since it is needed for every request on a route that restricts operations.
type judgedRequest struct {
	request http.Request
	url     url.URL
}

var judgedRequests = sync.Pool{New: func() any { return new(judgedRequest) }}

// isAllowed reports whether an operation permits path, taken as it is. Without
// operations, all are permitted.
func isAllowed(req *http.Request, operations []Operation, method, path string) bool {
	if len(operations) == 0 {
		return true
	}
	if !isASCII(path) {
		path = notASCII.Replace(path)
	}
	for strings.Contains(path, "//") { // which the matcher would merge
		path = strings.ReplaceAll(path, "//", "/\ufffd/")
	}
	judged := judgedRequests.Get().(*judgedRequest)
	defer func() {
		*judged = judgedRequest{} // what it holds must not outlive the request
		judgedRequests.Put(judged)
	}()
	judged.request = *req // for its context
	judged.request.URL, judged.url = &judged.url, url.URL{Path: path}
	for _, operation := range operations {
		if len(operation.Methods) > 0 && !slices.Contains(operation.Methods, method) {
			continue
		}
		if matched, err := operation.Paths.MatchWithError(&judged.request); err == nil && matched {
			return true
		}
	}
	return false
}
