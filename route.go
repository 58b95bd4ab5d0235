package egress

import (
	"cmp"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-egress/caddy-egress/internal/option"
)

// RouteOptions say who may use a route, and for what. In the egress app they
// are the defaults of those that a route does not set.
type RouteOptions struct {
	// How much of a request body is kept to send it a second time after a 401,
	// in bytes. A longer body is sent all the same and not replayed. `0` keeps
	// none. Default: `1048576` (1 MiB).
	ReplayBuffer *int64 `json:"replay_buffer,omitempty"`

	// Which requests are sent a second time after a 401: `all`; `idempotent`,
	// those whose method is (RFC 9110 §9.2.2), which are GET, HEAD, PUT, DELETE,
	// OPTIONS and TRACE; or `off`, none. The answer to the others is the 401; the
	// next request gets a fresh token all the same. Default: `all`.
	Replay string `json:"replay,omitempty"`

	// Addresses and ranges of the peers that are served, or `any`; `unix`
	// stands for clients of a unix socket. It is the peer's own address that
	// counts, never X-Forwarded-For. In a Caddyfile, `private_ranges` stands for
	// the private ranges of IPv4 and IPv6.
	// Default: `127.0.0.0/8`, `::1` and `unix`.
	Clients []string `json:"clients,omitempty"`

	// Hosts that may stand in a request's Host, without port, or `any`. It
	// keeps web pages from reaching the gateway under a name of their own (DNS
	// rebinding). Default: IP addresses, names without a dot, `localhost`, and
	// names under `.localhost`, `.internal`, `.local`, `.lan`, `.home.arpa`,
	// `.svc`, `.cluster.local` and `.test`.
	Hosts []string `json:"hosts,omitempty"`

	// Origins of web pages that are served, as scheme://host[:port]. Default:
	// none; requests that browsers send for pages of another origin are refused.
	Origins []string `json:"origins,omitempty"`

	// Operations that are permitted. With one or more, every other is refused.
	// Default: all, except the API's own credential endpoints, which are
	// always refused.
	Allow []Operation `json:"allow,omitempty"`

	// Hosts that a token may be sent to, as host[:port]; a host without a port
	// stands for the port of `api_url`. Over TLS the name that is verified
	// counts, else the host that is dialed. A unix socket is given as
	// unix//path. Default: that of `api_url`.
	APIHosts []string `json:"api_hosts,omitempty"`

	// Permits plain HTTP, and TLS without verification, to hosts other than
	// this one, for tokens and secrets alike. Default: refused.
	AllowHTTP bool `json:"allow_http,omitempty"`

	// Once the API has said 429 to a request with this credential, answers 429
	// itself until the time that the API named is over, with what is left of it
	// in Retry-After: an API may block a key that goes on. Where the API names
	// none, that is 60 seconds for Understory, and none for others. The value is
	// how long one 429 counts at most, since it may be meant for one operation or
	// client; `true` stands for 60 seconds. More than 5 minutes are never waited.
	// Default: every request goes to the API.
	RespectRateLimit RateLimitMax `json:"respect_rate_limit,omitempty"`
}

// Operation is a set of requests by method and path.
type Operation struct {
	// Methods. Default: any.
	Methods []string `json:"methods,omitempty"`

	// Paths as of the `path` request matcher, of which one has to match,
	// case-insensitive. What is matched is the path as it is sent to the
	// API, decoded.
	Paths caddyhttp.MatchPath `json:"paths,omitempty"`
}

const (
	anyValue  = "any"
	unixValue = "unix"

	defaultReplayBuffer = 1 << 20
	defaultRateLimitMax = RateLimitMax(time.Minute)

	replayAll        = "all"
	replayIdempotent = "idempotent"
	replayOff        = "off"
)

// defaultClients are the peers served where nothing is said: this machine.
var defaultClients = []string{"127.0.0.0/8", "::1", unixValue}

// withDefaults returns the options with those of the app where the route sets none.
func (o RouteOptions) withDefaults(app RouteOptions) RouteOptions {
	if o.ReplayBuffer == nil {
		o.ReplayBuffer = app.ReplayBuffer
	}
	if o.Replay == "" {
		o.Replay = app.Replay
	}
	if o.Clients == nil {
		o.Clients = app.Clients
	}
	if o.Hosts == nil {
		o.Hosts = app.Hosts
	}
	if o.Origins == nil {
		o.Origins = app.Origins
	}
	if o.Allow == nil {
		o.Allow = slices.Clone(app.Allow)
	}
	if o.APIHosts == nil {
		o.APIHosts = app.APIHosts
	}
	o.AllowHTTP = o.AllowHTTP || app.AllowHTTP
	o.RespectRateLimit = cmp.Or(o.RespectRateLimit, app.RespectRateLimit)
	return o
}

func (o RouteOptions) replayBuffer() int64 {
	if o.ReplayBuffer == nil {
		return defaultReplayBuffer
	}
	return *o.ReplayBuffer
}

// replays reports whether a request with that method is sent a second time.
func (o RouteOptions) replays(method string) bool {
	switch o.Replay {
	case replayOff:
		return false
	case replayIdempotent:
		switch method {
		case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodTrace:
			return true
		}
		return false
	}
	return true
}

// Options returns the route options in a Caddyfile. What they hold is checked
// by validate, when all are read.
func (o *RouteOptions) Options() option.Table {
	return option.Table{
		"replay_buffer":      func(d *caddyfile.Dispenser) error { return option.Size(d, &o.ReplayBuffer) },
		"replay":             func(d *caddyfile.Dispenser) error { return option.String(d, &o.Replay) },
		"clients":            ranges(&o.Clients),
		"hosts":              stringsOf(&o.Hosts),
		"origins":            stringsOf(&o.Origins),
		"allow":              operations(&o.Allow),
		"api_hosts":          stringsOf(&o.APIHosts),
		"allow_http":         func(d *caddyfile.Dispenser) error { return option.Flag(d, &o.AllowHTTP) },
		"respect_rate_limit": o.unmarshalRespectRateLimit,
	}
}

// stringsOf returns a reader of values, at least one, into v.
func stringsOf(v *[]string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error { return option.Strings(d, v) }
}

// privateRanges stands for what Caddy means by it, in a Caddyfile.
const privateRanges = "private_ranges"

// ranges returns a reader of `clients <ranges...>` into v.
func ranges(v *[]string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if err := option.Strings(d, v); err != nil {
			return err
		}
		if i := slices.Index(*v, privateRanges); i >= 0 {
			*v = slices.Concat((*v)[:i], caddyhttp.PrivateRangesCIDR(), (*v)[i+1:])
		}
		for _, value := range *v {
			if strings.HasPrefix(value, "private") {
				return d.Errf("clients: %q is not an address or range; did you mean %s?", value, privateRanges)
			}
		}
		return nil
	}
}

// operations returns a reader of `allow [<methods>] <paths...>`, which adds to v.
func operations(v *[]Operation) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		var operation Operation
		if len(args) > 0 && !strings.ContainsAny(args[0], "/*") {
			operation.Methods = strings.Split(args[0], ",")
			args = args[1:]
		}
		operation.Paths = args
		if err := operation.validate(); err != nil {
			return d.WrapErr(err)
		}
		*v = append(*v, operation)
		return option.End(d, "allow")
	}
}

// unmarshalRespectRateLimit reads `respect_rate_limit [<max>]`.
func (o *RouteOptions) unmarshalRespectRateLimit(d *caddyfile.Dispenser) error {
	name := d.Val()
	if d.CountRemainingArgs() > 0 {
		return option.Duration(d, (*caddy.Duration)(&o.RespectRateLimit))
	}
	if o.RespectRateLimit != 0 {
		return d.Errf("%s is already given", name)
	}
	o.RespectRateLimit = defaultRateLimitMax
	return option.End(d, name)
}

// validate returns an error that names the first option that is wrong.
func (o RouteOptions) validate() error {
	if o.replayBuffer() < 0 {
		return option.Errorf("replay_buffer", "is below zero")
	}
	if err := option.OneOf("replay", cmp.Or(o.Replay, replayAll), replayAll, replayIdempotent, replayOff); err != nil {
		return err
	}
	if o.RespectRateLimit < 0 {
		return option.Errorf("respect_rate_limit", "must be above zero")
	}
	if _, err := parseClients(o.Clients); err != nil {
		return err
	}
	for _, host := range o.Hosts {
		if host == "" || strings.ContainsAny(host, "/*{}") || strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return option.Errorf("hosts", "%q is not a host name; give names without port, or any", host)
		}
	}
	for _, origin := range o.Origins {
		u, err := url.Parse(origin)
		if err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil || strings.Contains(u.Host, "*") {
			return option.Errorf("origins", "%q is not an origin such as https://app.example.com", origin)
		}
	}
	if err := validateOperations(o.Allow); err != nil {
		return err
	}
	for _, host := range o.APIHosts {
		if caddy.IsUnixNetwork(networkOf(host)) {
			continue
		}
		if host == "" || strings.Contains(host, "://") || strings.ContainsAny(host, "/*{}") {
			return option.Errorf("api_hosts", "%q is not a host[:port]", host)
		}
	}
	return nil
}

// validateOperations returns an error about what is wrong with an allow. One that
// is empty would undo that of the app.
func validateOperations(allow []Operation) error {
	if allow != nil && len(allow) == 0 {
		return option.Errorf("allow", "is empty, which would permit everything; list operations, or leave it out to have the default")
	}
	for _, operation := range allow {
		if err := operation.validate(); err != nil {
			return err
		}
	}
	return nil
}

// String returns the operation as `allow` has it in a Caddyfile.
func (o Operation) String() string {
	paths := strings.Join(o.Paths, " ")
	if len(o.Methods) == 0 {
		return paths
	}
	return strings.Join(o.Methods, ",") + " " + paths
}

func (o Operation) validate() error {
	for _, method := range o.Methods {
		if method == "" || strings.ToUpper(method) != method || strings.ContainsAny(method, " ,/") {
			return option.Errorf("allow", "%q is not a method; several are given as GET,HEAD", method)
		}
	}
	if len(o.Paths) == 0 {
		return option.Errorf("allow", "needs at least one path")
	}
	for _, path := range o.Paths {
		if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "*") {
			hint := ""
			if len(o.Methods) > 0 && path != "" && strings.Trim(path, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == "" {
				hint = "; several methods are given as " + strings.Join(o.Methods, ",") + "," + path
			}
			return option.Errorf("allow", "path %q does not begin with a slash%s", path, hint)
		}
		if strings.Contains(path, "%") { // what is matched is decoded
			return option.Errorf("allow", "path %q holds an escape; give it as it is decoded", path)
		}
	}
	return nil
}

// unmarshalGuards reads a directive named name whose options are those guards of a
// route that its handler has.
func unmarshalGuards(d *caddyfile.Dispenser, name string, clients, hosts, origins *[]string) error {
	d.Next() // the directive's name
	if d.NextArg() {
		return d.Errf("%s: unexpected argument %q", name, d.Val())
	}
	table := option.Table{"clients": ranges(clients), "hosts": stringsOf(hosts), "origins": stringsOf(origins)}
	lines, err := option.Block(d, table, option.Unknown(name, table))
	if err != nil {
		return err
	}
	return lines.Wrap(RouteOptions{Clients: *clients, Hosts: *hosts, Origins: *origins}.validate())
}
