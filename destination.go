package egress

import (
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-egress/caddy-egress/internal/option"
)

// destination is where the requests of a route may go: a token is sent to the
// hosts that it is for, over verified TLS.
//
// It is asked for every request, since upstreams, proxies and redirects of
// health checks can choose another host than the configuration seems to say.
type destination struct {
	hosts         []string                // host:port in lower case, or network/path of a unix socket
	tls           *reverseproxy.TLSConfig // nil: plain HTTP
	allowHTTP     bool                    // plain HTTP and unverified TLS are permitted
	proxied       bool                    // requests go through a proxy, which can read those without TLS
	proxyProtocol bool                    // the URL's host has the client's address in it

	// permitted is the last hop that was permitted; most routes have only one
	permitted atomic.Pointer[hop]
}

// hop is all of a request that says where it goes.
type hop struct{ scheme, host, network, address string }

// apiHosts returns the hosts that may get the token as host:port: those that
// are configured, or else that of the API. The API's port is their default.
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
		if caddy.IsUnixNetwork(networkOf(host)) {
			hosts = append(hosts, host)
			continue
		}
		name, hostPort, err := net.SplitHostPort(host)
		if err != nil {
			name, hostPort = host, port
		}
		hosts = append(hosts, net.JoinHostPort(hostOnly(name), hostPort))
	}
	return hosts, nil
}

// check returns the refusal of a request that must not get a token where it is
// going: the name that TLS verifies counts, or else the host that is dialed.
func (d *destination) check(req *http.Request) *refusal {
	dial, dialed := reverseproxy.GetDialInfo(req.Context())
	to := hop{req.URL.Scheme, req.URL.Host, dial.Network, dial.Address}
	if dialed && d.proxyProtocol {
		to.host = "" // it does not count, and differs from client to client
	}
	if last := d.permitted.Load(); last != nil && *last == to {
		return nil
	}
	if r := d.judge(req, dial, dialed); r != nil {
		return r
	}
	if d.tls == nil || !strings.Contains(d.tls.ServerName, "{") { // else the name may differ from request to request
		permitted := to // a copy, so that to does not escape where nothing is stored
		d.permitted.Store(&permitted)
	}
	return nil
}

// judge is check without its memory.
func (d *destination) judge(req *http.Request, dial reverseproxy.DialInfo, dialed bool) *refusal {
	if dialed && caddy.IsUnixNetwork(dial.Network) {
		if slices.Contains(d.hosts, dial.Network+"/"+dial.Address) {
			return nil
		}
		return misdirected(dial.Network + "/" + dial.Address)
	}

	target := req.URL.Host
	if dialed && d.proxyProtocol {
		target = dial.Address
	}
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		host = strings.Trim(target, "[]")
	}
	encrypted := req.URL.Scheme == "https"
	if req.URL.Scheme == "" { // as the HTTP transport decides; a health check has one
		encrypted = d.tls != nil && !slices.Contains(d.tls.ExceptPorts, req.URL.Port())
	}
	verified := encrypted && d.tls != nil && !d.tls.InsecureSkipVerify
	if port == "" {
		port = "80"
		if encrypted {
			port = "443"
		}
	}
	if verified && d.tls.ServerName != "" {
		host = serverName(req, d.tls.ServerName)
	}
	if !d.isAPIHost(host, port) {
		return misdirected(net.JoinHostPort(host, port))
	}
	if verified {
		return nil
	}

	// a redirect can change the URL of a health check, but not where it is dialed
	local := option.IsLoopback(host)
	if dialed {
		if !d.isAPIHost(dial.Host, dial.Port) {
			return misdirected(net.JoinHostPort(dial.Host, dial.Port))
		}
		local = local && option.IsLoopback(dial.Host)
	}
	if !d.allowHTTP && (!local || d.proxied) {
		return &refusal{
			status: http.StatusMisdirectedRequest, outcome: outcomeAPIHostNotAllowed, proxyError: "http_request_denied",
			message: "the API would be called without verified TLS", advice: askOperator, detail: "; allow_http would permit it",
		}
	}
	return nil
}

func (d *destination) isAPIHost(host, port string) bool {
	return slices.Contains(d.hosts, net.JoinHostPort(strings.ToLower(strings.TrimSuffix(host, ".")), port))
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

func misdirected(host string) *refusal {
	return &refusal{
		status: http.StatusMisdirectedRequest, outcome: outcomeAPIHostNotAllowed, proxyError: "http_request_denied",
		message: "the upstream is not the API that the token is for", advice: askOperator,
		detail: "; api_hosts " + startOf(host) + " would permit it", // which an upstream may have from the client
	}
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

// hostOnly returns host without a port, in lower case.
func hostOnly(hostport string) string {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	return strings.ToLower(strings.TrimSuffix(host, "."))
}

// networkOf returns the network of a Caddy network address; empty for TCP hosts.
func networkOf(address string) string {
	network, _, found := strings.Cut(address, "/")
	if !found {
		return ""
	}
	return network
}
