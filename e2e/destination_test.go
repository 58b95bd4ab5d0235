package e2e_test

import (
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestUpstreamsThatGetTheToken(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	api, other := egresstest.NewRecorder(t), egresstest.NewRecorder(t)
	encrypted := egresstest.NewRecorderOver(t, (*httptest.Server).StartTLS) // its certificate is for 127.0.0.1 and example.com
	local, err := net.Listen("unix", filepath.Join(t.TempDir(), "api.sock"))
	if err != nil {
		t.Fatal(err)
	}
	socket := egresstest.NewRecorderOver(t, func(s *httptest.Server) {
		s.Listener.Close()
		s.Listener = local
		s.Start()
	})
	forward := egresstest.NewRecorder(t)

	host := func(r *egresstest.Recorder) string { return r.Listener.Addr().String() }
	anywhere := func(r *egresstest.Recorder) string { return "0.0.0.0:" + egresstest.Port(host(r)) } // dialed, it is this machine; its name does not say so
	to := func(upstreams, options string) string {
		return egresstest.Egress(api.URL, endpoint.URL, "to "+upstreams+"\n"+options)
	}
	// as users may write it themselves
	proxy := func(apiURL, upstream, options string) string {
		return `reverse_proxy ` + upstream + ` {
			transport egress {
				provider oauth2 ` + apiURL + ` {
					token_url ` + endpoint.URL + `
					client_id gateway
					client_secret {env.EGRESS_TEST_SECRET}
				}
				` + options + `
			}
		}`
	}
	dynamic := func(options string) string {
		return strings.Replace(proxy(api.URL, "", options), "transport", "dynamic a localhost "+egresstest.Port(host(other))+"\ntransport", 1)
	}
	trusted := "tls\ntls_trust_pool file " + egresstest.Trust(t, encrypted.Server)
	const example = "https://example.com"
	tlsTo := func(options string) string { return proxy(example, host(encrypted), trusted+"\n"+options) }
	name := "example.com:" + egresstest.Port(host(encrypted))

	type test struct {
		route   string
		header  string
		arrives *egresstest.Recorder // nil: refused
	}
	tests := map[string]test{
		"api_url":         {to(api.URL, ""), "", api},
		"another":         {to(other.URL, ""), "", nil},
		"another-listed":  {to(other.URL, "api_hosts "+host(other)), "", other},
		"api_url-no-more": {to(api.URL, "api_hosts "+host(other)), "", nil},

		"dynamic":        {dynamic(""), "", nil},
		"dynamic-listed": {dynamic("api_hosts 127.0.0.1:" + egresstest.Port(host(other)) + " [::1]:" + egresstest.Port(host(other))), "", other},

		"placeholder":         {proxy(api.URL, "{header.X-Upstream}", ""), "X-Upstream: " + host(api), api},
		"placeholder-another": {proxy(api.URL, "{header.X-Upstream}", ""), "X-Upstream: " + host(other), nil},
		"placeholder-name":    {proxy(api.URL, "{header.X-Upstream}", ""), "X-Upstream: localhost:" + egresstest.Port(host(api)), nil},
		"placeholder-port":    {proxy(api.URL, "{header.X-Upstream}", ""), "X-Upstream: 127.0.0.1:" + egresstest.Port(host(other)), nil},
		"placeholder-unix":    {proxy(api.URL, "{header.X-Upstream}", ""), "X-Upstream: unix/" + local.Addr().String(), nil},

		"unix":        {to("unix/"+local.Addr().String(), ""), "", nil},
		"unix-other":  {to("unix/"+local.Addr().String(), "api_hosts unix//run/other.sock"), "", nil},
		"unix-listed": {to("unix/"+local.Addr().String(), "api_hosts unix/"+local.Addr().String()), "", socket},

		"plain":      {to(anywhere(other), "api_hosts "+anywhere(other)), "", nil},
		"plain-open": {to(anywhere(other), "allow_http\napi_hosts "+anywhere(other)), "", other},
		"plain-host": {to(anywhere(other), "allow_http"), "", nil},

		"tls-by-address":        {tlsTo(""), "", nil},
		"tls-by-address-listed": {tlsTo("api_hosts " + host(encrypted)), "", encrypted},
		"tls-by-name":           {tlsTo("tls_server_name example.com\napi_hosts " + name), "", encrypted},
		"tls-by-another-name":   {tlsTo("tls_server_name www.example.com\napi_hosts " + name), "", nil},
		"tls-by-name-port":      {tlsTo("tls_server_name example.com"), "", nil},
		"tls-dialed-no-matter":  {tlsTo("tls_server_name 127.0.0.1\napi_hosts " + name), "", nil},
		"tls-name-of-request":   {tlsTo("tls_server_name {header.X-Name}\napi_hosts " + name), "X-Name: example.com", encrypted},
		"tls-name-of-another":   {tlsTo("tls_server_name {header.X-Name}\napi_hosts " + name), "X-Name: 127.0.0.1", nil},
		"tls-unverified":        {proxy("https://localhost", anywhere(encrypted), "tls_insecure_skip_verify\napi_hosts "+anywhere(encrypted)), "", nil},
		"tls-unverified-open":   {proxy("https://localhost", anywhere(encrypted), "tls_insecure_skip_verify\nallow_http\napi_hosts "+anywhere(encrypted)), "", encrypted},
		"tls-unverified-name":   {proxy("https://localhost", host(encrypted), "tls_insecure_skip_verify\ntls_server_name example.com\napi_hosts "+name), "", nil},

		"except-port":       {proxy("https://127.0.0.1", host(other), "tls\ntls_except_ports "+egresstest.Port(host(other))+"\napi_hosts "+host(other)), "", other},
		"except-port-plain": {proxy("https://127.0.0.1", anywhere(other), "tls\ntls_except_ports "+egresstest.Port(host(other))+"\napi_hosts "+anywhere(other)), "", nil},

		"forward-proxy":      {proxy(api.URL, host(api), "forward_proxy_url "+forward.URL), "", nil},
		"forward-proxy-open": {proxy(api.URL, host(api), "allow_http\nforward_proxy_url "+forward.URL), "", forward},
	}
	routes := ""
	for path, test := range tests {
		routes += "handle /" + path + " {\n" + test.route + "\n}\n"
	}
	g := egresstest.StartGateway(t, routes)
	all := []*egresstest.Recorder{api, other, encrypted, socket, forward}
	counts := func() (n []int) {
		for _, r := range all {
			n = append(n, r.Count())
		}
		return n
	}
	for path, test := range tests {
		want := counts()
		header := test.header
		if header != "" {
			header += "\r\n"
		}
		resp, body := g.Wire().Send("GET /" + path + " HTTP/1.1\r\nHost: localhost\r\n" + header + "\r\n")
		if test.arrives == nil {
			egresstest.CheckRefused(t, resp, body, http.StatusMisdirectedRequest, "api_host_not_allowed")
		} else {
			want[slices.Index(all, test.arrives)]++
			if resp.StatusCode != http.StatusOK || !strings.HasPrefix(test.arrives.Last(t).Header.Get("Authorization"), "Bearer "+egresstest.TokenPrefix) {
				t.Errorf("%s: %d %s", path, resp.StatusCode, body)
			}
		}
		if got := counts(); !slices.Equal(got, want) {
			t.Errorf("%s: requests at the APIs %v, want %v", path, got, want)
		}
	}
}

func TestTokensWithoutTLSAreRefusedWhenTheConfigLoads(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	g := egresstest.StartGateway(t, "respond ok")
	const remote = "https://api.example.com"
	unverified := "transport http {\ntls_insecure_skip_verify\n}"
	for _, test := range []struct{ route, want string }{
		{egresstest.Egress("http://api.example.com", endpoint.URL, ""), "allow_http"},
		{egresstest.Egress("http://10.0.0.1:8080", endpoint.URL, ""), "allow_http"},
		{egresstest.Egress(remote, endpoint.URL, "to http://api.example.com"), "allow_http"},
		{egresstest.Egress(remote, "http://auth.example.com/token", ""), "allow_http"},
		{egresstest.Egress(remote, endpoint.URL, unverified), "tls_insecure_skip_verify"},
		{egresstest.Egress("http://api.example.com", endpoint.URL, "allow_http"), ""},
		{egresstest.Egress(remote, endpoint.URL, unverified+"\nallow_http"), ""},
		{egresstest.Egress("https://127.0.0.1:8443", endpoint.URL, unverified), ""},
		{egresstest.Egress("http://localhost:8080", endpoint.URL, ""), ""},
		{egresstest.Egress(remote, endpoint.URL, ""), ""},
	} {
		err := g.Load(test.route)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s\ngot %v, want %q", test.route, err, test.want)
		}
	}
}
