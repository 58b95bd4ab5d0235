package egress

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-egress/caddy-egress/internal/egresstest/paths"
	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

var deniedPrefixes = []string{"/v1/oauth/", "/v2/oauth/", "/management/"}

func voucherifyGuard(t testing.TB, allow ...Operation) *guard {
	t.Helper()
	api := tokenprovider.API{URL: "https://api.voucherify.io", CredentialPaths: deniedPrefixes, IgnoresCase: true}
	g, err := newGuard(caddy.Context{}, RouteOptions{Allow: allow}, api, nil)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// judge asks g about a request as the replacer and the transport see it.
func judge(g *guard, method, target string) *refusal {
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return &refusal{key: "not a request", message: err.Error()}
	}
	repl := caddy.NewReplacer()
	repl.Set("http.request.method", method)
	ctx := context.WithValue(context.Background(), caddy.ReplacerCtxKey, repl)
	return g.checkOperation((&http.Request{Method: method, URL: u}).WithContext(ctx), repl, visit{})
}

func TestCredentialPathsInDisguise(t *testing.T) {
	g := voucherifyGuard(t)
	for _, target := range []string{
		"/v1/oauth", "/v1/oauth/", "/v1/oauth/token", "/V1/OAuth/Token", "/management", "/management/v1/projects",
		"//v1/oauth/token", "/v1//oauth/token", "/v1/oauth//token",
		"/%761/oauth/token", "/v1%2Foauth%2Ftoken", "/v1/%6f%61uth/token", "/v1/%256fauth/token", "/v1%252foauth/token", "/%25%32%35%36%64anagement/",
		"/v1;a=1/oauth;b=2/token", "/v1/oauth%3Ba/token", "/;/v1/oauth/token", "/v1;%2F/oauth/token",
		"/v1/oauth%3Fx", "/v1/oauth%23", "/v1/oauth%3B/token", "/v1/oauth%20/token", "/v1/oauth./token", "/v1/%20oauth/token", "/v1%3F/../oauth",
		"/v1/%EF%BD%8Fauth/token", "/v1%EF%BC%8Foauth/token", "/v1%E2%81%84oauth", "/v1/oa%E2%80%8Buth", "/%C2%ADmanagement", "/v1/%25u006fauth", "/v1/x/..%20/oauth",
		"/v1/x/../oauth/token", "/v1/./oauth/token", "/v1/x/..;/oauth/token", "/v1/x/%2e%2e/oauth", "/v1/x/%252e%252e%253b/oauth", "/v1/x%2f..%2foauth",
		`/v1\oauth\token`, "/v1%5coauth/token", "/v1%255Coauth/token", "/v1/oauth%00", "/v1/oauth%2500", "/v1/oauth%0a", "/v1%c0%afoauth/token", "/v1%25c0%25afoauth/token", "/%ff",

		// what ends one decoder does not end the next
		"/v1/%256fauth/token%25zz", "/%2525zz/../v1/oauth", "/v1/%256fauth/%25",
		// parameters cut before decoding, or between two decodings
		"/v1;%2Fx/%256fauth/token", "/v1;%252Fx/oauth/token",
		// a path that is read as //authority/path
		"//x/v1/oauth/token", "//x//y/v1/oauth/token", "/%2Fx/v1/oauth/token", "//user:1@x/management/",
	} {
		if r := judge(g, http.MethodPost, target); r == nil {
			t.Errorf("%s is let pass", target)
		}
	}
	for _, target := range []string{
		"/", "/v1", "/v1/vouchers", "/v1/oauths", "/v1/vouchers/oauth", "/x/v1/oauth/token", "/client/v1/vouchers", "/managements",
		"//v1/vouchers", "/v1//vouchers", "/v1/vouchers/a%2Fb%20c", "/v1/vouchers/100%25", "/v1/vouchers/10%25BACK", "/v1/vouchers/%2525", "/v1/vouchers/%25zz", "/v1/vouchers/%7E~",
		"/v1/vouchers/%D0%B7%D0%B8%D0%BC%D0%B0", "/v1/vouchers/a;b=c", "/v1/vouchers/a..b", "/v1/vouchers/...", "/v1/customers/https%3A%2F%2Fexample.com%2Fid%2F1?x=/../oauth",
	} {
		if r := judge(g, http.MethodGet, target); r != nil {
			t.Errorf("%s is refused: %s", target, r.message)
		}
	}
}

func TestAllow(t *testing.T) {
	g := voucherifyGuard(t,
		Operation{Methods: []string{"GET", "HEAD"}, Paths: caddyhttp.MatchPath{"/v1/vouchers/*", "/v1/campaigns"}},
		Operation{Methods: []string{"POST"}, Paths: caddyhttp.MatchPath{"/v1/vouchers/*/balance"}},
		Operation{Paths: caddyhttp.MatchPath{"/v1/größe x/*"}},
	)
	for _, test := range []struct {
		method, target string
		passes         bool
	}{
		{"GET", "/v1/vouchers/X", true},
		{"GET", "/v1/vouchers/", true},
		{"HEAD", "/v1/vouchers/X", true},
		{"GET", "/V1/Vouchers/X", true}, // as Caddy's path matcher
		{"GET", "/v1/vouchers/a%2Fb%20c", true},
		{"GET", "/v1/vouchers/a%252Fb", true},
		{"GET", "/v1/vouchers/100%25", true},
		{"GET", "/v1/vouchers/10%25BACK", true},
		{"GET", "/v1/vouchers/%F0%9F%8E%81", true},
		{"GET", "/v1/vouchers/https%3A%2F%2Fexample.com", true},
		{"GET", "/v1/vouchers/X;a=1", true},
		{"GET", "/v1/vouchers/%7E%61", true},
		{"GET", "/v1/campaigns", true},
		{"POST", "/v1/vouchers/X/balance", true},
		{"DELETE", "/v1/gr%C3%B6%C3%9Fe%20x/1", true},

		{"POST", "/v1/vouchers/X", false},
		{"get", "/v1/vouchers/X", false},
		{"DELETE", "/v1/vouchers/X", false},
		{"GET", "/v1/vouchers", false},
		{"GET", "/v1/vouchersX", false},
		{"GET", "/v1/campaigns/1", false},
		{"GET", "/v1/vouchers;a=1/X", false},
		{"GET", "/v1;/vouchers/X", false},
		{"GET", "/v1/vouchers%2FX", false},
		{"GET", "/v1%2Fvouchers/X", false},
		{"GET", "//v1/vouchers/X", false},
		{"GET", "/v1//vouchers/X", false},
		{"GET", "/v1/vouchers//X", false},
		{"GET", "/%761/vouchers/X", false},
		{"GET", "/v1/voucher%73/X", false},
		{"GET", "/v1/vouchers/..%2Fcampaigns", false},
		{"GET", "/v1/vouchers/../campaigns/1", false},
		{"GET", "/v1/vouchers/%252e%252e/campaigns", false},
		{"GET", `/v1/vouchers/..\campaigns`, false},
		{"GET", "/v1/vouchers/%2500", false},
		{"GET", "/v1/vouchers/%" + strings.Repeat("25", 100) + "41", false},
		{"POST", "/v1/vouchers/X%2Fy/balance", false}, // a reading has more segments
		{"POST", "/v1/vouchers/X/redemption;/balance", false},
		{"POST", "/v1/vouchers/X/redemption%2F..%2Fbalance", false},
		{"OPTIONS", "*", false},
	} {
		if r := judge(g, test.method, test.target); (r == nil) != test.passes {
			t.Errorf("%s %s: %+v", test.method, test.target, r)
		}
	}
}

// A client that asks for what is not permitted is told 403; one whose path could
// be taken for another operation 400, since it has to send another path.
func TestKeysOfRefusedPaths(t *testing.T) {
	g := voucherifyGuard(t,
		Operation{Methods: []string{"GET"}, Paths: caddyhttp.MatchPath{"/v1/vouchers/*"}},
		Operation{Methods: []string{"POST"}, Paths: caddyhttp.MatchPath{"/v1/vouchers/*/validate"}},
	)
	for _, test := range []struct {
		method, target string
		status         int // 0: it passes
		message        string
	}{
		{"GET", "/v1/vouchers/..%5Cx", 400, "holds a control character or backslash"},
		{"GET", "/v1/vouchers/%2e%2e", 400, "holds a dot segment"},
		{"GET", "/v1/vouchers/a%00b", 400, "holds a control character or backslash"},
		{"GET", "/v1/vouchers/%ff", 400, "is not UTF-8"},
		{"GET", "/v1/vouchers//x", 400, "holds doubled slashes"},
		{"GET", "/v1/vouchers/..%3F", 400, "holds a dot segment"},
		{"GET", "/v1/vouchers/..%20", 400, "holds a dot segment"},
		{"POST", "/v1/vouchers/X%3F/validate", 400, `could be read as "/v1/vouchers/X"`},
		{"POST", "/v1/vouchers/X%23/validate", 400, `could be read as "/v1/vouchers/X"`},
		{"POST", "/v1/vouchers/X%2Fy/validate", 400, `could be read as "/v1/vouchers/X/y/validate"`},
		{"POST", "/v1/vouchers/X%EF%BC%8Fy/validate", 400, `could be read as "/v1/vouchers/X/y/validate"`},
		{"POST", "/v1/vouchers/X%2F/validate", 400, `could be read as "/v1/vouchers/X//validate"`},
		{"GET", "/v1/vouchers", 403, "is not permitted"},
		{"POST", "/v1/vouchers/X%3F", 403, "is not permitted"},
		{"POST", "/v1/vouchers/X", 403, "is not permitted"},
		{"GET", "/v1%2Fvouchers/X", 403, "is not permitted"},
		{"GET", "/v1/oauth/token", 403, "credential endpoints"},
		{"GET", "/v1/%256fauth/token", 403, "credential endpoints"},
		{"GET", "/v1/%EF%BD%8Fauth/token", 403, "credential endpoints"},
		{"GET", "/v1/o%E2%80%8Bauth/token", 403, "credential endpoints"},
		{"GET", "/v1/oauth%3F", 403, "credential endpoints"},
		{"GET", "/v1/oauth%20/token", 403, "credential endpoints"},
		{"GET", "/v1/oauth./token", 403, "credential endpoints"},
		{"GET", "/v1/vouchers/a%2Fb%20c", 0, ""},
		{"GET", "/v1/vouchers/what%3F", 0, ""},
		{"GET", "/v1/vouchers/https%3A%2F%2Fexample.com%2F", 0, ""},
		{"GET", "/v1/vouchers/%F0%9F%91%A9%E2%80%8D%F0%9F%9A%80", 0, ""},
		{"GET", "/v1/vouchers/a.b+c%40example.com", 0, ""},
		{"POST", "/v1/vouchers/Z%C3%BCrich%20%C4%B0zmir.%20/validate", 0, ""},
		{"POST", "/v1/vouchers/a.b+c%40example.com/validate", 0, ""},
	} {
		r := judge(g, test.method, test.target)
		switch key := map[int]string{400: keyBadRequestPath}[test.status]; {
		case r == nil && test.status == 0:
		case r == nil || r.status != test.status || r.key != key || !strings.Contains(r.message, test.message):
			t.Errorf("%s %s: got %+v, want %d %s", test.method, test.target, r, test.status, test.message)
		case test.status == 400 && r.outcome != outcomeBadRequest:
			t.Errorf("%s %s: counts as %s", test.method, test.target, r.outcome)
		}
	}
}

// Two characters beyond ASCII are ASCII in lower case, which Caddy's matcher
// compares; the API still sees others.
func TestAllowIsCaseInsensitiveInASCIIOnly(t *testing.T) {
	g := voucherifyGuard(t, Operation{Paths: caddyhttp.MatchPath{"/v1/tickets/*"}})
	if r := judge(g, "GET", "/V1/TICKETS/K%C4%B0"); r != nil {
		t.Errorf("refused: %s", r.message)
	}
	for _, target := range []string{"/v1/t%C4%B0ckets/1", "/v1/tic%E2%84%AAets/1"} {
		if judge(g, "GET", target) == nil {
			t.Errorf("%s is let pass", target)
		}
	}
}

func TestRequestTargetsWithSpaces(t *testing.T) {
	for target, ok := range map[string]bool{"/a%20b?c=%20": true, "/ä?ö": true, "/a b": false, "/a?b c": false, "/a?b\x7f": false, "/a\t": false, "/a?b HTTP/1.1": false} {
		path, query, _ := strings.Cut(target, "?")
		sent := &http.Request{Method: http.MethodGet, RequestURI: "/rewritten", URL: &url.URL{Path: "/rewritten", RawQuery: query}}
		original := http.Request{RequestURI: target, URL: &url.URL{Path: path, RawQuery: query}}
		sent = sent.WithContext(context.WithValue(context.Background(), caddyhttp.OriginalRequestCtxKey, original))
		r := new(guard).checkForm(sent)
		if (r == nil) != ok || r != nil && (r.status != http.StatusBadRequest || r.key != keyBadRequestTarget) {
			t.Errorf("%q: got %+v", target, r)
		}
	}
}

// A credential endpoint at the root of the API's host denies nothing below it.
func TestCredentialEndpointAtTheRoot(t *testing.T) {
	g := &guard{denied: []string{"/"}, ignoresCase: true}
	for target, passes := range map[string]bool{"/": false, "//": false, "/%2F": false, "/%3Fx": false, "/v1": true, "/v1/": true} {
		if r := judge(g, "POST", target); (r == nil) != passes {
			t.Errorf("%s: %+v", target, r)
		}
	}
}

func TestRefusalNamesTheOperation(t *testing.T) {
	g := voucherifyGuard(t, Operation{Paths: caddyhttp.MatchPath{"/v1/vouchers/*"}})
	r := judge(g, "GET", "/v1/x?token=secret")
	if r == nil || !strings.Contains(r.detail, `allow "GET" "/v1/x" would permit it`) || strings.Contains(r.message+r.advice, "/v1") {
		t.Errorf("got %+v", r)
	}
	r = judge(g, "GET", "/v1/gr%C3%B6%C3%9Fe%20x") // decoded, as the option has it
	if r == nil || !strings.Contains(r.detail, `allow "GET" "/v1/größe x" would permit it`) {
		t.Errorf("got %+v", r)
	}
	r = judge(g, "GET", "/v1/"+strings.Repeat("x", 10000))
	if r == nil || len(r.message+r.detail) > 500 {
		t.Errorf("got %+v", r)
	}
}

func TestClientAddresses(t *testing.T) {
	tcp, unix := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80}, &net.UnixAddr{Net: "unix", Name: "/run/x.sock"}
	for _, test := range []struct {
		clients []string
		local   net.Addr
		peer    string
		served  bool
	}{
		{nil, tcp, "127.0.0.1:1", true},
		{nil, tcp, "127.8.9.10:1", true},
		{nil, tcp, "[::1]:1", true},
		{nil, tcp, "[::ffff:127.0.0.1]:1", true},
		{nil, tcp, "10.0.0.1:1", false},
		{nil, tcp, "[::ffff:10.0.0.1]:1", false},
		{nil, unix, "@", true},
		{nil, unix, "", true},
		{nil, tcp, "@", false},
		{nil, tcp, "", false},
		{nil, tcp, "127.0.0.1", false},
		{nil, tcp, "localhost:1", false},
		{nil, tcp, "127.0.0.1:1:1", false},
		{nil, nil, "127.0.0.1:1", true},
		{[]string{"127.0.0.1"}, tcp, "127.0.0.1:1", true},
		{[]string{"127.0.0.1"}, tcp, "127.0.0.2:1", false},
		{[]string{"127.0.0.1"}, unix, "@", false},
		{[]string{"127.0.0.1"}, unix, "127.0.0.1:1", false},
		{[]string{"unix"}, unix, "@", true},
		{[]string{"unix"}, tcp, "127.0.0.1:1", false},
		{[]string{"any"}, tcp, "203.0.113.9:1", true},
		{[]string{"any"}, unix, "@", true},
		{[]string{"any"}, tcp, "nonsense", true},
		{[]string{"10.20.4.7/24"}, tcp, "10.20.4.200:1", true},
		{[]string{"10.20.4.7/24"}, tcp, "10.20.5.1:1", false},
		{[]string{"10.0.0.0/8"}, tcp, "[::ffff:10.1.2.3]:1", true},
		{[]string{"::ffff:10.0.0.0/104"}, tcp, "10.1.2.3:1", true},
		{[]string{"::ffff:10.0.0.0/104"}, tcp, "11.1.2.3:1", false},
		{[]string{"::ffff:10.1.2.3"}, tcp, "10.1.2.3:1", true},
		{[]string{"::/0"}, tcp, "10.1.2.3:1", false},
		{[]string{"0.0.0.0/0"}, tcp, "[2001:db8::1]:1", false},
		{[]string{"fe80::/10"}, tcp, "[fe80::1%eth0]:1", true},
		{[]string{"fe80::/10"}, tcp, "[fec0::1%eth0]:1", false},
		{[]string{"10.0.0.1", "2001:db8::/32"}, tcp, "[2001:db8:1::1]:1", true},
	} {
		g, err := newGuard(caddy.Context{}, RouteOptions{Clients: test.clients}, tokenprovider.API{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		req := &http.Request{RemoteAddr: test.peer}
		if test.local != nil {
			req = req.WithContext(context.WithValue(context.Background(), http.LocalAddrContextKey, test.local))
		}
		if r := g.checkClient(req); (r == nil) != test.served {
			t.Errorf("clients %v, peer %q at %v: %+v", test.clients, test.peer, test.local, r)
		}
	}
}

// Until the handshake is complete, the address in early data may be forged.
func TestClientInEarlyData(t *testing.T) {
	for _, test := range []struct {
		clients  []string
		complete bool
		served   bool
	}{
		{nil, true, true},
		{nil, false, false},
		{[]string{"any"}, false, true},
	} {
		g, err := newGuard(caddy.Context{}, RouteOptions{Clients: test.clients}, tokenprovider.API{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		req := &http.Request{RemoteAddr: "127.0.0.1:1", TLS: &tls.ConnectionState{HandshakeComplete: test.complete}}
		if r := g.checkClient(req); (r == nil) != test.served {
			t.Errorf("%+v: %+v", test, r)
		}
	}
}

// A key in early data may be somebody else's, who has seen it pass.
func TestKeyInEarlyData(t *testing.T) {
	known, err := newCallers(map[string]*Caller{"shop": {Key: []string{firstKey}}}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	g, err := newGuard(caddy.Context{}, RouteOptions{}, tokenprovider.API{}, known)
	if err != nil {
		t.Fatal(err)
	}
	g.grant(map[*caller]*granted{known.byName["shop"]: {}}, RouteOptions{})
	repl := caddy.NewEmptyReplacer()
	repl.Set("http.request.header.Authorization", "Bearer "+firstKey)
	for _, complete := range []bool{true, false} {
		req := &http.Request{Method: http.MethodPost, URL: &url.URL{Path: "/v1/x"}, RemoteAddr: "127.0.0.1:1", TLS: &tls.ConnectionState{HandshakeComplete: complete}}
		if _, r := g.check(req, repl); (r == nil) != complete || !complete && r != tooEarly {
			t.Errorf("handshake complete: %v, refused: %+v", complete, r)
		}
	}
}

func TestHosts(t *testing.T) {
	for _, test := range []struct {
		hosts  []string
		host   string // as the replacer knows it: without port
		served bool
	}{
		{nil, "127.0.0.1", true},
		{nil, "10.1.2.3", true},
		{nil, "::1", true},
		{nil, "[::1]", true},
		{nil, "[::1%25eth0]", true},
		{nil, "localhost", true},
		{nil, "LOCALHOST.", true},
		{nil, "gateway", true},
		{nil, "a.localhost", true},
		{nil, "a.internal", true},
		{nil, "A.B.Internal.", true},
		{nil, "a.local", true},
		{nil, "a.lan", true},
		{nil, "a.home.arpa", true},
		{nil, "a.default.svc", true},
		{nil, "a.default.svc.cluster.local", true},
		{nil, "a.test", true},
		{nil, "", false},
		{nil, ".", false},
		{nil, "example.com", false},
		{nil, "evil.example", false},
		{nil, "localhost.example.com", false},
		{nil, "internal.example", false},
		{nil, "127.0.0.1.nip.io", false},
		{nil, "127.0.0.1.example.com", false},
		{nil, "evilinternal.com", false},
		{nil, "a.internal..", false},
		{nil, "a.notlocal", false},
		{nil, "a.arpa", false},
		{[]string{"api.example.com", "10.0.0.1", "::1"}, "API.example.com.", true},
		{[]string{"api.example.com", "10.0.0.1", "::1"}, "10.0.0.1", true},
		{[]string{"api.example.com", "10.0.0.1", "::1"}, "[::1]", true},
		{[]string{"api.example.com", "10.0.0.1", "::1"}, "localhost", false},
		{[]string{"api.example.com", "10.0.0.1", "::1"}, "127.0.0.1", false},
		{[]string{"api.example.com", "10.0.0.1", "::1"}, "x.api.example.com", false},
		{[]string{"api.example.com", "10.0.0.1", "::1"}, "", false},
		{[]string{"API.Example.com."}, "api.example.com", true},
		{[]string{"any"}, "example.com", true},
		{[]string{"any"}, "", true},
	} {
		options := RouteOptions{Hosts: test.hosts}
		if err := options.validate(); err != nil {
			t.Fatal(err)
		}
		g, err := newGuard(caddy.Context{}, options, tokenprovider.API{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		repl := caddy.NewReplacer()
		repl.Set("http.request.host", test.host)
		for range 2 { // a host that was served is remembered
			if r := g.checkHost(repl, nil); (r == nil) != test.served {
				t.Errorf("hosts %v, host %q: %+v", test.hosts, test.host, r)
			}
		}
		if g.checkHost(repl, nil); test.host != "" { // and no other host profits from it
			repl.Set("http.request.host", "evil.example")
			if r := g.checkHost(repl, nil); (r == nil) != slices.Contains(test.hosts, "any") {
				t.Errorf("hosts %v: evil.example after %q: %+v", test.hosts, test.host, r)
			}
		}
	}
}

// Clients choose what they are refused for, and it is logged.
func TestRefusalsQuoteLittleOfWhatClientsSend(t *testing.T) {
	long := strings.Repeat("x", 1<<16) + ".example"
	for what, r := range map[string]*refusal{
		"the host": func() *refusal {
			repl := caddy.NewReplacer()
			repl.Set("http.request.host", long)
			return voucherifyGuard(t).checkHost(repl, nil)
		}(),
		"the origin": func() *refusal {
			repl := caddy.NewReplacer()
			repl.Set("http.request.header.Origin", "https://"+long)
			return voucherifyGuard(t).checkOrigin(repl)
		}(),
		"the operation": judge(voucherifyGuard(t, Operation{Methods: []string{"GET"}, Paths: caddyhttp.MatchPath{"/v1/y"}}), long, "/v1/"+long),
		"the upstream":  misdirected(long + ":443"), // of an upstream or tls_server_name with a placeholder
	} {
		if r == nil {
			t.Errorf("%s is not refused", what)
		} else if text := r.message + r.detail; len(text) > 500 || !strings.Contains(text, "…") {
			t.Errorf("%s: %d bytes: %.200s", what, len(text), text)
		}
	}
}

func TestSameOrigin(t *testing.T) {
	for _, test := range []struct {
		origin, scheme, host string
		same                 bool
	}{
		{"http://localhost:8080", "http", "localhost:8080", true},
		{"HTTP://LocalHost:8080", "http", "localhost:8080", true},
		{"http://localhost", "http", "localhost", true},
		{"http://localhost:80", "http", "localhost", true},
		{"http://localhost", "http", "localhost:80", true},
		{"https://localhost", "https", "localhost:443", true},
		{"http://[::1]:8080", "http", "[::1]:8080", true},
		{"http://[::1]", "http", "[::1]", true},
		{"http://localhost:8080", "http", "localhost:8081", false},
		{"http://localhost:8080", "http", "localhost", false},
		{"http://localhost", "https", "localhost", false},
		{"https://localhost", "http", "localhost", false},
		{"http://127.0.0.1:8080", "http", "localhost:8080", false},
		{"null", "http", "localhost", false},
		{"", "http", "localhost", false},
		{"http://", "http", "", false},
		{"localhost", "http", "localhost", false},
		{"//localhost", "http", "localhost", false},
		{"http:localhost", "http", "localhost", false},
		{"http://localhost/", "http", "localhost", false},
		{"http://localhost/x", "http", "localhost", false},
		{"http://localhost?x", "http", "localhost", false},
		{"http://localhost#x", "http", "localhost", false},
		{"http://evil@localhost", "http", "localhost", false},
		{"http://localhost,http://evil.test", "http", "localhost", false},
		{"http://localhost http://evil.test", "http", "localhost", false},
		{"http://localhost.evil.test", "http", "localhost", false},
		{"chrome-extension://abc", "http", "localhost", false},
	} {
		if got := sameOrigin(test.origin, test.scheme, test.host); got != test.same {
			t.Errorf("%q and %s://%s: got %v", test.origin, test.scheme, test.host, got)
		}
	}
}

func TestRouteOptionsThatAreWrong(t *testing.T) {
	for _, test := range []struct {
		options RouteOptions
		want    string
	}{
		{RouteOptions{Clients: []string{"example.com"}}, "clients:"},
		{RouteOptions{Clients: []string{"10.0.0.0/33"}}, "clients:"},
		{RouteOptions{Clients: []string{"fe80::1%eth0"}}, "clients:"},
		{RouteOptions{Clients: []string{""}}, "clients:"},
		{RouteOptions{Hosts: []string{"example.com:80"}}, "hosts:"},
		{RouteOptions{Hosts: []string{"*.example.com"}}, "hosts:"},
		{RouteOptions{Hosts: []string{"http://example.com"}}, "hosts:"},
		{RouteOptions{Hosts: []string{""}}, "hosts:"},
		{RouteOptions{Origins: []string{"*"}}, "origins:"},
		{RouteOptions{Origins: []string{"null"}}, "origins:"},
		{RouteOptions{Origins: []string{"https://*.example.com"}}, "origins:"},
		{RouteOptions{Origins: []string{"https://example.com/"}}, "origins:"},
		{RouteOptions{Allow: []Operation{}}, "allow: is empty"},
		{RouteOptions{Allow: []Operation{{}}}, "allow:"},
		{RouteOptions{Allow: []Operation{{Methods: []string{"get"}, Paths: caddyhttp.MatchPath{"/"}}}}, "allow:"},
		{RouteOptions{Allow: []Operation{{Paths: caddyhttp.MatchPath{"v1"}}}}, "allow:"},
		{RouteOptions{Allow: []Operation{{Paths: caddyhttp.MatchPath{"/v1/a%2Fb"}}}}, "allow:"},
		{RouteOptions{APIHosts: []string{"https://example.com"}}, "api_hosts:"},
		{RouteOptions{APIHosts: []string{"*.example.com"}}, "api_hosts:"},
		{RouteOptions{APIHosts: []string{"{header.X}"}}, "api_hosts:"},
		{RouteOptions{APIHosts: []string{""}}, "api_hosts:"},
	} {
		if err := test.options.validate(); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%+v: got %v", test.options, err)
		}
	}
}

func TestLoopbackNames(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "127.1.2.3": true, "::1": true, "::ffff:127.0.0.1": true, "localhost": true,
		"10.0.0.1": false, "LocalHost": false, "localhost.": false, "localhost.example.com": false, "127.0.0.1.example.com": false, "": false, "0.0.0.0": false,
	} {
		if got := option.IsLoopback(host); got != want {
			t.Errorf("%q: got %v", host, got)
		}
	}
}

// FuzzPathReadings checks that no path that is let pass can be taken for one
// of the API's credential endpoints, nor for one that is not allowed.
func FuzzPathReadings(f *testing.F) {
	for _, seed := range []string{
		"/v1/vouchers/a%2Fb%20c", "/v1/oauth/token", "//x/v1/oauth", "/v1/%256fauth/%25zz", "/v1;%2Fx/%256fauth/token", "/v1/x/..%3b/oauth",
		"/v1/vouchers/X%3F", "/v1/vouchers/..%23", "/v1/vouchers/%EF%BC%8E%EF%BC%8E/x", "/v1/%EF%BD%8Fauth", "/v1/vouchers/..%20/x", "/v1/vouchers/.%E2%80%8B./x", "/v1/oauth./x",
		`/v1\oauth`, "/v1%c0%afoauth", "/management%00", "/%2525252e/", "/v1/vouchers/..;/x", "*", "http://x/v1/oauth",
	} {
		f.Add(seed)
	}
	open := voucherifyGuard(f)
	restricted := voucherifyGuard(f, Operation{Paths: caddyhttp.MatchPath{"/v1/vouchers/*"}})
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil || len(target) > 300 {
			return
		}
		sent := u.EscapedPath()
		if judge(open, "GET", target) == nil {
			for _, p := range paths.Interpretations(sent) {
				for _, prefix := range deniedPrefixes {
					if paths.IsUnder(p, prefix) {
						t.Errorf("%s is let pass and could be read as %s", sent, p)
					}
				}
			}
		}
		if judge(restricted, "GET", target) == nil {
			for _, p := range paths.Interpretations(sent) {
				if !paths.IsUnder(p, "/v1/vouchers/") {
					t.Errorf("%s is allowed and could be read as %s", sent, p)
				}
			}
		}
	})
}
