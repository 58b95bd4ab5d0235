package e2e_test

import (
	"crypto/tls"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestClientsByPeerAddress(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	routes := ""
	for prefix, options := range map[string]string{
		"/default":  "",
		"/one":      "clients 127.0.0.1",
		"/trusting": "clients 127.0.0.1\ntrusted_proxies 0.0.0.0/0 ::/0",
		"/other":    "clients 10.0.0.0/8 2001:db8::/32",
		"/private":  "clients private_ranges",
		"/any":      "clients any",
		"/unix":     "clients unix",
	} {
		routes += egresstest.Site(prefix, egresstest.Egress(api.URL, endpoint.URL, options))
	}
	socket := filepath.Join(t.TempDir(), "gateway.sock")
	for _, server := range []string{"", "trusted_proxies static 0.0.0.0/0 ::/0\nclient_ip_headers X-Forwarded-For Forwarded"} {
		t.Run(server, func(t *testing.T) {
			g := egresstest.StartGateway(t, routes+"}\nhttp:// {\nbind unix/"+socket+"\n"+routes, egresstest.WithServer(server))
			dials := map[string]func() (net.Conn, error){
				"127.0.0.1": egresstest.From("127.0.0.1", g.Addr),
				"127.0.0.2": egresstest.From("127.0.0.2", g.Addr),
				"unix":      func() (net.Conn, error) { return net.Dial("unix", socket) },
			}
			for path, served := range map[string][]string{
				"/default":  {"127.0.0.1", "127.0.0.2", "unix"},
				"/one":      {"127.0.0.1"},
				"/trusting": {"127.0.0.1"},
				"/other":    nil,
				"/private":  {"127.0.0.1", "127.0.0.2"},
				"/any":      {"127.0.0.1", "127.0.0.2", "unix"},
				"/unix":     {"unix"},
			} {
				for peer, dial := range dials {
					for _, forged := range []string{"", "X-Forwarded-For: 127.0.0.1\r\n", "X-Forwarded-For: 10.0.0.1, 127.0.0.1\r\nForwarded: for=127.0.0.1\r\nX-Real-Ip: 127.0.0.1\r\n", "X-Forwarded-For: 8.8.8.8\r\n"} {
						before := api.Count()
						resp, body := egresstest.NewWire(t, dial).Send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + forged + "\r\n")
						arrived := api.Count() > before
						switch slices.Contains(served, peer) {
						case true:
							if resp.StatusCode != http.StatusOK || !arrived {
								t.Errorf("%s from %s, %q: %d %s", path, peer, forged, resp.StatusCode, body)
							}
						case false:
							egresstest.CheckRefused(t, resp, body, http.StatusForbidden, "client_not_allowed")
							if arrived {
								t.Errorf("%s from %s, %q has reached the API", path, peer, forged)
							}
						}
					}
				}
			}
		})
	}
}

// An address stands for itself, whatever its family. The peers are those that the
// PROXY protocol names: no other address than this machine's can be had in a test.
func TestClientsThatAreSingleAddresses(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, "clients 2001:db8::1 192.0.2.1 198.51.100.0/31 2001:db8:1::/48"),
		egresstest.WithServer("listener_wrappers {\n proxy_protocol {\n allow 127.0.0.0/8\n}\n}"))
	for peer, served := range map[string]bool{
		"2001:db8::1":           true,
		"2001:db8::2":           false,
		"2001:db8::":            false,
		"2001:db8::1:1":         false,
		"2001:db8:2::1":         false,
		"2001:db8:1::":          true,
		"2001:db8:1:ffff::ffff": true,
		"192.0.2.1":             true,
		"192.0.2.0":             false,
		"192.0.2.2":             false,
		"192.0.3.1":             false,
		"198.51.100.0":          true,
		"198.51.100.1":          true,
		"198.51.100.2":          false,
		"127.0.0.1":             false,
		"::1":                   false,
	} {
		family, local := "TCP6", "::1"
		if !strings.Contains(peer, ":") {
			family, local = "TCP4", "127.0.0.1"
		}
		status := g.Raw("PROXY " + family + " " + peer + " " + local + " 1234 80\r\nGET /v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		if got := strings.Contains(status, " 200 "); got != served || !got && !strings.Contains(status, " 403 ") {
			t.Errorf("%s is answered %q, served: want %v", peer, status, served)
		}
	}
}

func TestHostsByHostHeader(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	g := egresstest.StartGateway(t,
		egresstest.Site("/default", egresstest.Egress(api.URL, endpoint.URL, ""))+
			egresstest.Site("/rewritten", egresstest.Egress(api.URL, endpoint.URL, "header_up Host localhost\nheader_up X-Forwarded-Host localhost"))+
			egresstest.Site("/listed", egresstest.Egress(api.URL, endpoint.URL, "hosts api.example.com other.example.com"))+
			egresstest.Site("/any", egresstest.Egress(api.URL, endpoint.URL, "hosts any")))
	w := g.Wire()
	local := []string{
		"localhost", "LOCALHOST", "localhost.", "localhost:8080", "127.0.0.1", "127.0.0.1:1", "10.1.2.3", "[::1]", "[::1]:8080", "[fe80::1]",
		"gateway", "gateway:8080", "a.localhost", "a.internal", "a.b.INTERNAL.:80", "a.local", "a.lan", "a.home.arpa", "a.ns.svc", "a.ns.svc.cluster.local", "a.test",
	}
	foreign := []string{
		"example.com", "evil.example", "evil.example:8080", "localhost.example.com", "127.0.0.1.nip.io", "internal.example", "a.internal.example:80",
		"xn--localhost-.com", "127.0.0.1.example.com.", "api.voucherify.io",
	}
	check := func(path, host string, served bool) {
		t.Helper()
		before := api.Count()
		resp, body := w.Send("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
		if !served {
			egresstest.CheckRefused(t, resp, body, http.StatusForbidden, "host_not_allowed")
			if api.Count() != before {
				t.Errorf("%s with Host %q has reached the API", path, host)
			}
		} else if resp.StatusCode != http.StatusOK {
			t.Errorf("%s with Host %q: %d %s", path, host, resp.StatusCode, body)
		}
	}
	for _, path := range []string{"/default", "/rewritten"} {
		for _, host := range local {
			check(path, host, true)
		}
		for _, host := range foreign {
			check(path, host, false)
		}
	}
	for _, host := range slices.Concat(local, foreign) {
		check("/listed", host, false)
		check("/any", host, true)
	}
	check("/listed", "api.example.com", true)
	check("/listed", "OTHER.example.com.:8080", true)
	check("/listed", "x.api.example.com", false)

	for request, status := range map[string]int{
		"GET /default HTTP/1.0\r\n\r\n":                                                      http.StatusForbidden,
		"GET /default HTTP/1.0\r\nHost: \r\n\r\n":                                            http.StatusForbidden,
		"GET /any HTTP/1.0\r\n\r\n":                                                          http.StatusOK,
		"GET /default HTTP/1.1\r\nHost: \r\n\r\n":                                            http.StatusBadRequest, // Caddy's
		"GET /default HTTP/1.0\r\nHost: localhost\r\n\r\n":                                   http.StatusOK,
		"GET http://evil.example/default HTTP/1.1\r\nHost: localhost\r\n\r\n":                http.StatusForbidden,
		"GET http://localhost/default HTTP/1.1\r\nHost: evil.example\r\n\r\n":                http.StatusOK,
		"GET /default HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n":             http.StatusBadRequest,
		"GET /default HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: localhost\r\n\r\n": http.StatusForbidden,
	} {
		if resp, body := g.Wire().Send(request); resp.StatusCode != status {
			t.Errorf("%q: %d %s", request, resp.StatusCode, body)
		}
	}
}

func TestOriginsOfBrowsers(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	cert, key := egresstest.KeyPair(t)
	encrypted := egresstest.FreeAddr(t)
	routes := egresstest.Site("/default", egresstest.Egress(api.URL, endpoint.URL, "")) +
		egresstest.Site("/rewritten", egresstest.Egress(api.URL, endpoint.URL, "header_up -Origin\nheader_up -Sec-Fetch-*\nheader_up Origin http://localhost")) +
		egresstest.Site("/removed", "request_header -Origin\n"+egresstest.Egress(api.URL, endpoint.URL, "")) +
		egresstest.Site("/listed", egresstest.Egress(api.URL, endpoint.URL, "origins https://App.example.com http://dev.test:3000"))
	g := egresstest.StartGateway(t, routes+"}\nhttps://:"+egresstest.Port(encrypted)+" {\nbind 127.0.0.1\ntls "+cert+" "+key+"\n"+routes)
	own := "http://" + g.Addr
	for _, test := range []struct {
		path    string
		headers []string
		served  bool
	}{
		{"/default", nil, true},
		{"/default", []string{"Sec-Fetch-Site: none"}, true},
		{"/default", []string{"Sec-Fetch-Site: same-origin"}, true},
		{"/default", []string{"Sec-Fetch-Site: same-site"}, false},
		{"/default", []string{"Sec-Fetch-Site: cross-site"}, false},
		{"/default", []string{"Sec-Fetch-Site: garbage"}, false},
		{"/default", []string{"Sec-Fetch-Site: SAME-ORIGIN"}, false},
		{"/default", []string{"Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"}, false},
		{"/default", []string{"sec-fetch-site: cross-site", "Sec-Fetch-Mode: no-cors"}, false},

		{"/default", []string{"Origin: " + own}, true},
		{"/default", []string{"Origin: " + own, "Sec-Fetch-Site: same-origin"}, true},
		{"/default", []string{"Origin: " + strings.ToUpper(own)}, true},
		{"/default", []string{"Origin: " + own, "Sec-Fetch-Site: none"}, true},
		{"/default", []string{"Origin: " + own, "Sec-Fetch-Site: same-site"}, false},
		{"/default", []string{"Origin: " + own, "Sec-Fetch-Site: cross-site"}, false},
		{"/default", []string{"Origin: " + own, "Sec-Fetch-Site: garbage"}, false},

		{"/default", []string{"Origin: null"}, false},
		{"/default", []string{"Origin: null", "Sec-Fetch-Site: same-origin"}, false},
		{"/default", []string{"Origin: http://127.0.0.1"}, false},
		{"/default", []string{"Origin: http://127.0.0.1:1"}, false},
		{"/default", []string{"Origin: https://" + g.Addr}, false},
		{"/default", []string{"Origin: http://localhost:" + egresstest.Port(g.Addr)}, false},
		{"/default", []string{"Origin: https://evil.test"}, false},
		{"/default", []string{"Origin: https://evil.test", "Sec-Fetch-Site: none"}, false},
		{"/default", []string{"Origin: https://evil.test", "Sec-Fetch-Site: same-origin"}, false},
		{"/default", []string{"Origin: https://evil.test", "Sec-Fetch-Site: cross-site"}, false},
		{"/default", []string{"Origin: " + own, "Origin: https://evil.test"}, false},
		{"/default", []string{"Origin: https://evil.test", "Origin: " + own}, false},
		{"/default", []string{"Origin: ", "Origin: https://evil.test"}, false},
		{"/default", []string{"Origin: " + own + "/"}, false},
		{"/default", []string{"Origin: chrome-extension://abcdef"}, false},

		{"/rewritten", []string{"Origin: https://evil.test"}, false},
		{"/rewritten", []string{"Origin: https://evil.test", "Sec-Fetch-Site: cross-site"}, false},
		{"/rewritten", []string{"Sec-Fetch-Site: cross-site"}, false},
		{"/rewritten", nil, true},
		{"/removed", []string{"Origin: https://evil.test", "Sec-Fetch-Site: cross-site"}, false},

		{"/listed", []string{"Origin: https://app.example.com"}, true},
		{"/listed", []string{"Origin: https://APP.example.com"}, true},
		{"/listed", []string{"Origin: https://app.example.com", "Sec-Fetch-Site: cross-site"}, true},
		{"/listed", []string{"Origin: http://dev.test:3000", "Sec-Fetch-Site: cross-site"}, true},
		{"/listed", []string{"Origin: " + own}, true},
		{"/listed", []string{"Sec-Fetch-Site: cross-site"}, false},
		{"/listed", []string{"Origin: http://app.example.com"}, false},
		{"/listed", []string{"Origin: https://app.example.com:8443"}, false},
		{"/listed", []string{"Origin: https://app.example.com.evil.test"}, false},
		{"/listed", []string{"Origin: https://evil.test", "Origin: https://app.example.com"}, false},
		{"/listed", []string{"Origin: http://dev.test"}, false},
		{"/listed", []string{"Origin: null"}, false},
	} {
		before := api.Count()
		lines := strings.Join(append(test.headers, "Connection: close", "", ""), "\r\n")
		resp, body := g.Wire().Send("GET " + test.path + " HTTP/1.1\r\nHost: " + g.Addr + "\r\n" + lines)
		if test.served {
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s with %q: %d %s", test.path, test.headers, resp.StatusCode, body)
			}
			continue
		}
		egresstest.CheckRefused(t, resp, body, http.StatusForbidden, "origin_not_allowed")
		if t.Failed() {
			t.Fatalf("%s with %q", test.path, test.headers)
		}
		if api.Count() != before {
			t.Errorf("%s with %q has reached the API", test.path, test.headers)
		}
	}

	// the scheme is part of an origin
	for origin, status := range map[string]int{"https://" + encrypted: http.StatusOK, "http://" + encrypted: http.StatusForbidden} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+encrypted+"/default", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Origin", origin)
		resp, err := insecureClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("over TLS with Origin %s: %d, want %d", origin, resp.StatusCode, status)
		}
	}
}

// insecureClient takes any certificate.
var insecureClient = &http.Client{Transport: &http.Transport{
	TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
	DisableKeepAlives: true,
}}

// Refused requests are refused before a token is asked for: where there is
// none, the answer is the same.
func TestRefusalsComeBeforeTheToken(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	endpoint.Answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "60")
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	g := egresstest.StartGateway(t,
		egresstest.Site("/allow", egresstest.Egress(api.URL, endpoint.URL, "allow GET /x"))+
			egresstest.Site("/hosts", egresstest.Egress(api.URL, endpoint.URL, "hosts x"))+
			egresstest.Site("/clients", egresstest.Egress(api.URL, endpoint.URL, "clients 10.0.0.1"))+
			egresstest.Site("/upstream", egresstest.Egress(api.URL, endpoint.URL, "api_hosts x"))+
			egresstest.Site("/", egresstest.Egress(api.URL, endpoint.URL, "")))
	for path, key := range map[string]string{
		"/allow": "operation_not_allowed", "/hosts": "host_not_allowed", "/clients": "client_not_allowed", "/upstream": "api_host_not_allowed", "/": "token_unavailable",
	} {
		if _, body := g.Get(path); !strings.Contains(body, key) {
			t.Errorf("%s: %s, want %s", path, body, key)
		}
	}
	if api.Count() > 0 {
		t.Error("a request has reached the API")
	}
	if got := endpoint.Count(); got != 1 {
		t.Errorf("%d token requests, want the one at the start", got)
	}
}
