package egress

import (
	"context"
	"net"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

func TestAPIHosts(t *testing.T) {
	for _, test := range []struct {
		apiURL     string
		configured []string
		want       []string
	}{
		{"https://API.example.com", nil, []string{"api.example.com:443"}},
		{"http://api.example.com", nil, []string{"api.example.com:80"}},
		{"https://api.example.com:8443", nil, []string{"api.example.com:8443"}},
		{"https://[::1]:8443", nil, []string{"[::1]:8443"}},
		{"https://[::1]", nil, []string{"[::1]:443"}},
		{"https://api.example.com:8443", []string{"other.example.com"}, []string{"other.example.com:8443"}},
		{"https://api.example.com", []string{"Other.example.com.:8443", "[::1]:1", "::1", "unix//run/API.sock"},
			[]string{"other.example.com:8443", "[::1]:1", "[::1]:443", "unix//run/API.sock"}},
	} {
		got, err := apiHosts(test.apiURL, test.configured)
		if err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s, %v: got %v, %v", test.apiURL, test.configured, got, err)
		}
	}
}

// A request to an API over TLS that has become one without, such as a health
// check that follows a redirect, is one without.
func TestSchemeOfTheRequestCounts(t *testing.T) {
	d := destination{hosts: []string{"api.voucherify.io:443"}, tls: new(reverseproxy.TLSConfig)}
	for target, passes := range map[string]bool{
		"//api.voucherify.io/x":           true,
		"https://api.voucherify.io/x":     true,
		"https://api.voucherify.io:443/x": true,
		"https://API.voucherify.io./x":    true,
		"http://api.voucherify.io/x":      false,
		"http://api.voucherify.io:443/x":  false,
		"https://api.voucherify.io:444/x": false,
		"https://evil.test/x":             false,
		"https://api.voucherify.io.evil/": false,
		"https:///x":                      false,
	} {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		if r := d.check(&http.Request{URL: u}); (r == nil) != passes {
			t.Errorf("%s: %+v", target, r)
		}
	}
}

// going returns a request to target that is dialed at a network address; empty
// for one that reverse_proxy has not chosen an upstream for.
func going(t *testing.T, target, network, address string) *http.Request {
	t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		t.Fatal(err)
	}
	repl := caddy.NewReplacer()
	repl.Set("name", "api.example.com")
	ctx := context.WithValue(t.Context(), caddy.ReplacerCtxKey, repl)
	if network != "" {
		dial := reverseproxy.DialInfo{Network: network, Address: address}
		dial.Host, dial.Port, _ = net.SplitHostPort(address)
		ctx = context.WithValue(ctx, caddy.CtxKey("reverse_proxy.dial_info"), dial) // as reverse_proxy keeps it
	}
	return (&http.Request{URL: u}).WithContext(ctx)
}

func TestDestinations(t *testing.T) {
	verified := new(reverseproxy.TLSConfig)
	remote := []string{"api.example.com:443", "api.example.com:80", "10.0.0.1:443", "unix//run/api.sock"}
	local := []string{"127.0.0.1:80", "localhost:80", "[::1]:8080"}
	for name, test := range map[string]struct {
		to                       *destination
		target, network, address string
		passes                   bool
	}{
		"verified":                              {&destination{hosts: remote, tls: verified}, "https://api.example.com", "tcp", "api.example.com:443", true},
		"verified, dialed elsewhere":            {&destination{hosts: remote, tls: verified}, "https://api.example.com", "tcp", "192.0.2.1:443", true}, // TLS verifies the name
		"verified, at another host":             {&destination{hosts: remote, tls: verified}, "https://evil.example", "tcp", "api.example.com:443", false},
		"verified, at another port":             {&destination{hosts: remote, tls: verified}, "https://api.example.com:8443", "tcp", "api.example.com:8443", false},
		"verified by another name":              {&destination{hosts: remote, tls: &reverseproxy.TLSConfig{ServerName: "api.example.com"}}, "https://192.0.2.1", "tcp", "192.0.2.1:443", true},
		"verified by a name of another host":    {&destination{hosts: remote, tls: &reverseproxy.TLSConfig{ServerName: "evil.example"}}, "https://api.example.com", "tcp", "api.example.com:443", false},
		"verified by a placeholder's name":      {&destination{hosts: remote, tls: &reverseproxy.TLSConfig{ServerName: "{name}"}}, "https://192.0.2.1", "tcp", "192.0.2.1:443", true},
		"verified by an unknown placeholder":    {&destination{hosts: remote, tls: &reverseproxy.TLSConfig{ServerName: "{other}"}}, "https://api.example.com", "tcp", "api.example.com:443", false},
		"unverified":                            {&destination{hosts: remote, tls: &reverseproxy.TLSConfig{InsecureSkipVerify: true}}, "https://api.example.com", "tcp", "api.example.com:443", false},
		"unverified, by its server name":        {&destination{hosts: remote, allowHTTP: true, tls: &reverseproxy.TLSConfig{InsecureSkipVerify: true, ServerName: "api.example.com"}}, "https://evil.example", "tcp", "evil.example:443", false},
		"unverified, and permitted":             {&destination{hosts: remote, allowHTTP: true, tls: &reverseproxy.TLSConfig{InsecureSkipVerify: true}}, "https://api.example.com", "tcp", "api.example.com:443", true},
		"plain":                                 {&destination{hosts: remote}, "http://api.example.com", "tcp", "api.example.com:80", false},
		"plain, and permitted":                  {&destination{hosts: remote, allowHTTP: true}, "http://api.example.com", "tcp", "api.example.com:80", true},
		"permitted plain, dialed elsewhere":     {&destination{hosts: remote, allowHTTP: true}, "http://api.example.com", "tcp", "192.0.2.1:80", false},
		"permitted plain, at another port":      {&destination{hosts: remote, allowHTTP: true}, "http://api.example.com", "tcp", "api.example.com:8080", false},
		"plain on this machine":                 {&destination{hosts: local}, "http://127.0.0.1", "tcp", "127.0.0.1:80", true},
		"plain on this machine, not dialed":     {&destination{hosts: local}, "http://127.0.0.1", "", "", true},
		"plain, by IPv6":                        {&destination{hosts: local}, "http://[::1]:8080", "tcp", "[::1]:8080", true},
		"plain on this machine, by a proxy":     {&destination{hosts: local, proxied: true}, "http://127.0.0.1", "tcp", "127.0.0.1:80", false},
		"local name, dialed elsewhere":          {&destination{hosts: append(slices.Clone(local), "10.0.0.1:80")}, "http://localhost", "tcp", "10.0.0.1:80", false},
		"other name, dialed on this machine":    {&destination{hosts: append(slices.Clone(local), "api.example.com:80")}, "http://api.example.com", "tcp", "127.0.0.1:80", false},
		"a unix socket":                         {&destination{hosts: remote}, "http://localhost", "unix", "/run/api.sock", true},
		"another unix socket":                   {&destination{hosts: remote}, "http://api.example.com", "unix", "/run/other.sock", false},
		"a scheme of the transport":             {&destination{hosts: remote, tls: verified}, "//api.example.com", "tcp", "api.example.com:443", true},
		"a port without TLS":                    {&destination{hosts: append(slices.Clone(remote), "api.example.com:8080"), tls: &reverseproxy.TLSConfig{ExceptPorts: []string{"8080"}}}, "//api.example.com:8080", "tcp", "api.example.com:8080", false},
		"a scheme of the transport, without":    {&destination{hosts: []string{"localhost:80"}}, "//localhost", "tcp", "localhost:80", true},
		"PROXY protocol, the client in the URL": {&destination{hosts: local, proxyProtocol: true}, "http://192.0.2.7", "tcp", "127.0.0.1:80", true},
		"PROXY protocol, dialed elsewhere":      {&destination{hosts: local, proxyProtocol: true}, "http://127.0.0.1", "tcp", "192.0.2.1:80", false},
	} {
		req := going(t, test.target, test.network, test.address)
		for try := range 2 { // what was permitted is remembered
			if r := test.to.check(req); (r == nil) != test.passes {
				t.Errorf("%s, try %d: %+v", name, try, r)
			} else if r != nil && (r.status != http.StatusMisdirectedRequest || r.outcome != outcomeAPIHostNotAllowed) {
				t.Errorf("%s: refused as %+v", name, r)
			}
		}
	}
}

// What was permitted once permits nothing else.
func TestDestinationsAreJudgedAnew(t *testing.T) {
	d := destination{hosts: []string{"127.0.0.1:80"}}
	if r := d.check(going(t, "http://127.0.0.1", "tcp", "127.0.0.1:80")); r != nil {
		t.Fatalf("%+v", r)
	}
	for _, req := range []*http.Request{
		going(t, "https://127.0.0.1", "tcp", "127.0.0.1:80"),
		going(t, "http://127.0.0.1:81", "tcp", "127.0.0.1:80"),
		going(t, "http://127.0.0.1", "tcp", "127.0.0.1:81"),
		going(t, "http://127.0.0.1", "unix", "127.0.0.1:80"),
	} {
		if d.check(req) == nil {
			t.Errorf("%s is let pass", req.URL)
		}
	}

	named := destination{hosts: []string{"api.example.com:443"}, tls: &reverseproxy.TLSConfig{ServerName: "{name}"}}
	req := going(t, "https://192.0.2.1", "tcp", "192.0.2.1:443")
	if r := named.check(req); r != nil {
		t.Fatalf("%+v", r)
	}
	req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer).Set("name", "evil.example")
	if named.check(req) == nil {
		t.Error("another request's server name counts")
	}

	proxied := destination{hosts: []string{"127.0.0.1:80"}, proxyProtocol: true}
	for _, client := range []string{"http://192.0.2.7", "http://192.0.2.8"} {
		if r := proxied.check(going(t, client, "tcp", "127.0.0.1:80")); r != nil {
			t.Errorf("%s: %+v", client, r)
		}
	}
}
