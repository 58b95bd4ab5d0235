package egress

import (
	"net/http"
	"net/url"
	"slices"
	"testing"

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
