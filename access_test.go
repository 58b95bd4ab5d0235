package egress_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	guards "github.com/caddy-egress/caddy-egress"
	"github.com/caddy-egress/caddy-egress/sandbox"
)

// wire is an HTTP/1 connection that sends what it is given, byte for byte.
type wire struct {
	t      *testing.T
	dial   func() (net.Conn, error)
	conn   net.Conn
	reader *bufio.Reader
}

func newWire(t *testing.T, dial func() (net.Conn, error)) *wire {
	t.Helper()
	w := &wire{t: t, dial: dial}
	t.Cleanup(w.hangUp)
	return w
}

func (w *wire) hangUp() {
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

// send sends request and returns the answer with its body read. A connection
// that an earlier request has ended is made anew.
func (w *wire) send(request string) (*http.Response, string) {
	w.t.Helper()
	for {
		fresh := w.conn == nil
		resp, body, err := w.try(request)
		if err == nil {
			if resp.Close {
				w.hangUp()
			}
			return resp, body
		}
		w.hangUp()
		if fresh {
			w.t.Fatalf("%q: %v", request, err)
		}
	}
}

func (w *wire) try(request string) (*http.Response, string, error) {
	if w.conn == nil {
		conn, err := w.dial()
		if err != nil {
			return nil, "", err
		}
		w.conn, w.reader = conn, bufio.NewReader(conn)
	}
	_ = w.conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(w.conn, request); err != nil {
		return nil, "", err
	}
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(w.reader, &http.Request{Method: method})
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// from dials address from the source address local.
func from(local, address string) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
		return dialer.Dial("tcp", address)
	}
}

func (g *gateway) wire() *wire { return newWire(g.t, from("127.0.0.1", g.Addr)) }

// site is a route for the requests whose path begins with prefix.
func site(prefix, route string) string {
	return fmt.Sprintf("handle %s* {\n%s\n}\n", prefix, route)
}

func TestClientsByPeerAddress(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
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
		routes += site(prefix, egress(api.URL, endpoint.URL, options))
	}
	socket := filepath.Join(t.TempDir(), "gateway.sock")
	for _, server := range []string{"", "trusted_proxies static 0.0.0.0/0 ::/0\nclient_ip_headers X-Forwarded-For Forwarded"} {
		t.Run(server, func(t *testing.T) {
			g := startGateway(t, routes+"}\nhttp:// {\nbind unix/"+socket+"\n"+routes, withServer(server))
			dials := map[string]func() (net.Conn, error){
				"127.0.0.1": from("127.0.0.1", g.Addr),
				"127.0.0.2": from("127.0.0.2", g.Addr),
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
						before := api.count()
						resp, body := newWire(t, dial).send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + forged + "\r\n")
						arrived := api.count() > before
						switch slices.Contains(served, peer) {
						case true:
							if resp.StatusCode != http.StatusOK || !arrived {
								t.Errorf("%s from %s, %q: %d %s", path, peer, forged, resp.StatusCode, body)
							}
						case false:
							checkRefused(t, resp, body, http.StatusForbidden, "client_not_allowed")
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

// checkRefused checks an answer of the gateway's own, of the oauth2 provider.
func checkRefused(t *testing.T, resp *http.Response, body string, status int, key string) {
	t.Helper()
	if resp.StatusCode != status || !strings.Contains(body, `"code":"`+key+`"`) || !strings.HasPrefix(resp.Header.Get("Proxy-Status"), "caddy-egress; ") {
		t.Errorf("answered %d %s %q, want %d %s", resp.StatusCode, body, resp.Header.Get("Proxy-Status"), status, key)
	}
}

func TestHostsByHostHeader(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	g := startGateway(t,
		site("/default", egress(api.URL, endpoint.URL, ""))+
			site("/rewritten", egress(api.URL, endpoint.URL, "header_up Host localhost\nheader_up X-Forwarded-Host localhost"))+
			site("/listed", egress(api.URL, endpoint.URL, "hosts api.example.com other.example.com"))+
			site("/any", egress(api.URL, endpoint.URL, "hosts any")))
	w := g.wire()
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
		before := api.count()
		resp, body := w.send("GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
		if !served {
			checkRefused(t, resp, body, http.StatusForbidden, "host_not_allowed")
			if api.count() != before {
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
		if resp, body := g.wire().send(request); resp.StatusCode != status {
			t.Errorf("%q: %d %s", request, resp.StatusCode, body)
		}
	}
}

func TestOriginsOfBrowsers(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	cert, key := keyPair(t)
	encrypted := freeAddr(t)
	routes := site("/default", egress(api.URL, endpoint.URL, "")) +
		site("/rewritten", egress(api.URL, endpoint.URL, "header_up -Origin\nheader_up -Sec-Fetch-*\nheader_up Origin http://localhost")) +
		site("/removed", "request_header -Origin\n"+egress(api.URL, endpoint.URL, "")) +
		site("/listed", egress(api.URL, endpoint.URL, "origins https://App.example.com http://dev.test:3000"))
	g := startGateway(t, routes+"}\nhttps://:"+port(encrypted)+" {\nbind 127.0.0.1\ntls "+cert+" "+key+"\n"+routes)
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
		{"/default", []string{"Origin: http://localhost:" + port(g.Addr)}, false},
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
		before := api.count()
		lines := strings.Join(append(test.headers, "Connection: close", "", ""), "\r\n")
		resp, body := g.wire().send("GET " + test.path + " HTTP/1.1\r\nHost: " + g.Addr + "\r\n" + lines)
		if test.served {
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s with %q: %d %s", test.path, test.headers, resp.StatusCode, body)
			}
			continue
		}
		checkRefused(t, resp, body, http.StatusForbidden, "origin_not_allowed")
		if t.Failed() {
			t.Fatalf("%s with %q", test.path, test.headers)
		}
		if api.count() != before {
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

// disguise writes path so that some API could take it for what it was.
func disguise(random *rand.Rand, path string) string {
	escape := func(c byte, times int) string {
		escaped := fmt.Sprintf("%%%02x", c)
		if random.IntN(2) == 0 {
			escaped = strings.ToUpper(escaped)
		}
		for range times {
			escaped = strings.ReplaceAll(escaped, "%", "%25")
		}
		return escaped
	}
	slashes := []string{
		"/", "//", "///", "/./", "/%2e/", "/x/../", "/x/%2e%2e/", "/x/..;/", "/x/%252e%252e/", "/;a=1/", "/;/", ";a=1/", ";/", "%2f", "%2F", "%252f", "%25252F",
		`\`, "%5c", "%255C", "/x%2f..%2f", "/x/..%2f", "%c0%af", "%e0%80%af", "%25c0%25af", "/%00/", "%00/", "/%20/", "/x/..%00/", ";%2f/", "%3b/", "/.;/", "/..%3ba/x/",
	}
	var b strings.Builder
	for i := range len(path) {
		switch c := path[i]; {
		case c == '/' && i > 0 && random.IntN(6) == 0:
			b.WriteString(slashes[random.IntN(len(slashes))])
		case c != '/' && random.IntN(24) == 0:
			b.WriteString(escape(c, random.IntN(3)))
		case random.IntN(24) == 0:
			b.WriteString(strings.ToUpper(string(c)))
		default:
			b.WriteByte(c)
		}
	}
	ends := []string{"", "", "", "", "", "/", "//", ";a=1", "%3ba", "/.", "/..;/", "%00", "%2500", "%20", "%0a", "?x=1", "?_method=DELETE", "#x", "%23x", "%3fx", "%25zz", "%25", "/%2e", ".json", `\`, "/..%2f"}
	starts := []string{
		"", "", "", "", "", "", "/", "//", "/x/..", "/%2e", "/.", "/;a", "//api.test", "/%2fapi.test", `/\api.test`, "/v1/vouchers/..", "/v1/vouchers/%2e%2e", "/v1/vouchers/..%2f..", "/v1/vouchers/x/..;/../..",
		"/strip", "/strip/", "/strip/..", "/strip%2f", "//strip", "http://127.0.0.1", "http://localhost/", "http://user:password@localhost", "//user:password@127.0.0.1",
	}
	return starts[random.IntN(len(starts))] + b.String() + ends[random.IntN(len(ends))]
}

var overrides = []string{"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X_HTTP_Method_Override", "X.HTTP.Method.Override", "x-http-method-OVERRIDE", "X-Original-URL", "X-Rewrite-URL"}

// attack sends n disguised requests for operations, over two connections, and
// returns how many were answered 200.
func attack(g *gateway, n int, operations []string) int64 {
	var passed atomic.Int64
	var wg sync.WaitGroup
	for half := range uint64(2) {
		w := g.wire()
		wg.Go(func() {
			random := rand.New(rand.NewPCG(8, half))
			for range n / 2 {
				method, path, _ := strings.Cut(operations[random.IntN(len(operations))], " ")
				if random.IntN(20) == 0 {
					method = strings.ToLower(method)
				}
				target := disguise(random, path)
				headers := ""
				if random.IntN(4) == 0 {
					headers = overrides[random.IntN(len(overrides))] + ": DELETE\r\n"
				}
				if random.IntN(16) == 0 {
					headers += "Connection: keep-alive, X-HTTP-Method-Override\r\n"
				}
				resp, _ := w.send(method + " " + target + " HTTP/1.1\r\nHost: localhost\r\nX-App-Id: id\r\nX-App-Token: of-the-client\r\nContent-Length: 0\r\n" + headers + "\r\n")
				if resp.StatusCode == http.StatusOK {
					passed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return passed.Load()
}

func TestNothingButWhatIsAllowedReachesTheAPI(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	api.handler = func(w http.ResponseWriter, r *http.Request) {
		path, _, _ := strings.Cut(r.RequestURI, "?")
		under := !slices.ContainsFunc(guards.Interpretations(path), func(p string) bool { return !guards.IsUnder(p, "/v1/vouchers/") })
		if r.Method != http.MethodGet || !under {
			t.Errorf("the API got %s %s", r.Method, r.RequestURI)
		}
		for name := range r.Header {
			if strings.Contains(strings.ToLower(name), "override") || strings.Contains(strings.ToLower(name), "method") || strings.HasSuffix(strings.ToLower(name), "-url") {
				t.Errorf("the API got %s", name)
			}
		}
	}
	route := egress(api.URL, endpoint.URL, "allow GET /v1/vouchers/*")
	g := startGateway(t, "handle_path /strip/* {\n"+route+"\n}\nhandle {\n"+route+"\n}")
	passed := attack(g, 10_000, []string{
		"GET /v1/vouchers/x", "GET /v1/vouchers/x/y/z", "GET /v1/vouchers", "GET /v1/vouchers/../campaigns",
		"POST /v1/vouchers/x", "PUT /v1/vouchers/x", "DELETE /v1/vouchers/x", "PATCH /v1/vouchers/x", "HEAD /v1/vouchers/x", "OPTIONS /v1/vouchers/x",
		"POST /v1/vouchers/create/", "POST /v1/vouchers/x/balance", "GET /v1/campaigns", "GET /v1/customers/1", "POST /v1/redemptions", "GET /", "GET /client/v1/vouchers/x", "GET /v1/vouchers-export",
	})
	if int(passed) != api.count() || passed < 100 {
		t.Errorf("%d requests were answered 200 and %d have reached the API; want as many, and some", passed, api.count())
	}

	w := g.wire()
	for _, target := range []string{
		"/v1/vouchers/a%2Fb%20c", "/v1/vouchers/a%2fb", "/v1/vouchers/", "/v1/vouchers/SUMMER-2026", "/v1/vouchers/100%25", "/v1/vouchers/10%25BACK", "/v1/vouchers/%2525",
		"/v1/vouchers/%D0%B7%D0%B8%D0%BC%D0%B0", "/v1/vouchers/%F0%9F%8E%81", "/v1/vouchers/caf%C3%A9", "/v1/vouchers/a+b", "/v1/vouchers/~a.b_c-d", "/v1/vouchers/%7Ea", "/v1/vouchers/a;b=c",
		"/v1/vouchers/a!$&'()*,:@=", "/v1/vouchers/%3F%23%5B%5D", "/v1/vouchers/https%3A%2F%2Fexample.com%2F1", "/v1/vouchers/x?a=../../%2e%2e&b=//x;c\\%00&[d]=%",
	} {
		resp, body := w.send("GET " + target + " HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if got := api.last(t).Target; resp.StatusCode != http.StatusOK || got != target {
			t.Errorf("%s: %d %s, the API got %s", target, resp.StatusCode, body, got)
		}
	}
}

func TestCredentialEndpointsAreNotReached(t *testing.T) {
	imitation, err := sandbox.New(sandbox.Options{API: "voucherify", ClientID: "id", ClientSecret: testSecret})
	if err != nil {
		t.Fatal(err)
	}
	var arrived, issued atomic.Int64
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, _, _ := strings.Cut(r.RequestURI, "?")
		switch {
		case r.Header.Get("X-App-Token") == testSecret && r.RequestURI == "/v1/oauth/token": // the gateway's own
			issued.Add(1)
		default:
			arrived.Add(1)
			for _, p := range guards.Interpretations(path) {
				if guards.IsUnder(p, "/v1/oauth/") || guards.IsUnder(p, "/v2/oauth/") || guards.IsUnder(p, "/management/") {
					t.Errorf("the API got %s %s, which could be %s", r.Method, r.RequestURI, p)
					break
				}
			}
			if r.Header.Get("X-App-Id") != "" || r.Header.Get("X-App-Token") != "" {
				t.Errorf("the API got credentials of a client with %s", r.RequestURI)
			}
		}
		imitation.ServeHTTP(w, r)
	}))
	defer api.Close()
	route := `egress voucherify ` + api.URL + ` {
		app_id    id
		app_token {env.EGRESS_TEST_SECRET}
		scopes    api
	}`
	g := startGateway(t, "handle_path /strip/* {\n"+route+"\n}\nhandle {\n"+route+"\n}")
	attack(g, 10_000, []string{
		"POST /v1/oauth/token", "GET /v1/oauth/token", "POST /v1/oauth/introspect", "POST /v1/oauth/token/revoke", "POST /v2/oauth/token", "GET /v1/oauth", "DELETE /v2/oauth/",
		"GET /management/v1/projects", "POST /management/v1/projects", "DELETE /management", "GET /v1/vouchers", "PUT /v1/vouchers/../oauth/token",
	})
	if arrived.Load() < 100 {
		t.Errorf("%d requests have reached the API, want some", arrived.Load())
	}
	if got := issued.Load(); got != 1 {
		t.Errorf("%d token requests, want the gateway's one", got)
	}
	resp, body := g.get("/v1/oauth/token")
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(body, `"key":"operation_not_allowed"`) {
		t.Errorf("answered %d %s", resp.StatusCode, body)
	}
}

func TestUpstreamsThatGetTheToken(t *testing.T) {
	endpoint := newTokens(t)
	api, other := newRecorder(t, (*httptest.Server).Start), newRecorder(t, (*httptest.Server).Start)
	encrypted := newRecorder(t, (*httptest.Server).StartTLS) // its certificate is for 127.0.0.1 and example.com
	local, err := net.Listen("unix", filepath.Join(t.TempDir(), "api.sock"))
	if err != nil {
		t.Fatal(err)
	}
	socket := newRecorder(t, func(s *httptest.Server) {
		s.Listener.Close()
		s.Listener = local
		s.Start()
	})
	forward := newRecorder(t, (*httptest.Server).Start)

	host := func(r *recorder) string { return r.Listener.Addr().String() }
	anywhere := func(r *recorder) string { return "0.0.0.0:" + port(host(r)) } // dialed, it is this machine; its name does not say so
	to := func(upstreams, options string) string {
		return egress(api.URL, endpoint.URL, "to "+upstreams+"\n"+options)
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
		return strings.Replace(proxy(api.URL, "", options), "transport", "dynamic a localhost "+port(host(other))+"\ntransport", 1)
	}
	trusted := "tls\ntls_trust_pool file " + trust(t, encrypted.Server)
	const example = "https://example.com"
	tlsTo := func(options string) string { return proxy(example, host(encrypted), trusted+"\n"+options) }
	name := "example.com:" + port(host(encrypted))

	type test struct {
		route   string
		header  string
		arrives *recorder // nil: refused
	}
	tests := map[string]test{
		"api_url":         {to(api.URL, ""), "", api},
		"another":         {to(other.URL, ""), "", nil},
		"another-listed":  {to(other.URL, "api_hosts "+host(other)), "", other},
		"api_url-no-more": {to(api.URL, "api_hosts "+host(other)), "", nil},

		"dynamic":        {dynamic(""), "", nil},
		"dynamic-listed": {dynamic("api_hosts 127.0.0.1:" + port(host(other)) + " [::1]:" + port(host(other))), "", other},

		"placeholder":         {proxy(api.URL, "{header.X-Upstream}", ""), "X-Upstream: " + host(api), api},
		"placeholder-another": {proxy(api.URL, "{header.X-Upstream}", ""), "X-Upstream: " + host(other), nil},
		"placeholder-name":    {proxy(api.URL, "{header.X-Upstream}", ""), "X-Upstream: localhost:" + port(host(api)), nil},
		"placeholder-port":    {proxy(api.URL, "{header.X-Upstream}", ""), "X-Upstream: 127.0.0.1:" + port(host(other)), nil},
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

		"except-port":       {proxy("https://127.0.0.1", host(other), "tls\ntls_except_ports "+port(host(other))+"\napi_hosts "+host(other)), "", other},
		"except-port-plain": {proxy("https://127.0.0.1", anywhere(other), "tls\ntls_except_ports "+port(host(other))+"\napi_hosts "+anywhere(other)), "", nil},

		"forward-proxy":      {proxy(api.URL, host(api), "forward_proxy_url "+forward.URL), "", nil},
		"forward-proxy-open": {proxy(api.URL, host(api), "allow_http\nforward_proxy_url "+forward.URL), "", forward},
	}
	routes := ""
	for path, test := range tests {
		routes += "handle /" + path + " {\n" + test.route + "\n}\n"
	}
	g := startGateway(t, routes)
	all := []*recorder{api, other, encrypted, socket, forward}
	counts := func() (n []int) {
		for _, r := range all {
			n = append(n, r.count())
		}
		return n
	}
	for path, test := range tests {
		want := counts()
		header := test.header
		if header != "" {
			header += "\r\n"
		}
		resp, body := g.wire().send("GET /" + path + " HTTP/1.1\r\nHost: localhost\r\n" + header + "\r\n")
		if test.arrives == nil {
			checkRefused(t, resp, body, http.StatusMisdirectedRequest, "api_host_not_allowed")
		} else {
			want[slices.Index(all, test.arrives)]++
			if resp.StatusCode != http.StatusOK || !strings.HasPrefix(test.arrives.last(t).Header.Get("Authorization"), "Bearer "+testToken) {
				t.Errorf("%s: %d %s", path, resp.StatusCode, body)
			}
		}
		if got := counts(); !slices.Equal(got, want) {
			t.Errorf("%s: requests at the APIs %v, want %v", path, got, want)
		}
	}
}

func TestTokensWithoutTLSAreRefusedWhenTheConfigLoads(t *testing.T) {
	endpoint := newTokens(t)
	g := startGateway(t, "respond ok")
	const remote = "https://api.example.com"
	unverified := "transport http {\ntls_insecure_skip_verify\n}"
	for _, test := range []struct{ route, want string }{
		{egress("http://api.example.com", endpoint.URL, ""), "allow_http"},
		{egress("http://10.0.0.1:8080", endpoint.URL, ""), "allow_http"},
		{egress(remote, endpoint.URL, "to http://api.example.com"), "allow_http"},
		{egress(remote, "http://auth.example.com/token", ""), "allow_http"},
		{egress(remote, endpoint.URL, unverified), "tls_insecure_skip_verify"},
		{egress("http://api.example.com", endpoint.URL, "allow_http"), ""},
		{egress(remote, endpoint.URL, unverified+"\nallow_http"), ""},
		{egress("https://127.0.0.1:8443", endpoint.URL, unverified), ""},
		{egress("http://localhost:8080", endpoint.URL, ""), ""},
		{egress(remote, endpoint.URL, ""), ""},
	} {
		err := g.load(test.route)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s\ngot %v, want %q", test.route, err, test.want)
		}
	}
}

// overheard is a listener that keeps what its connections receive.
type overheard struct {
	net.Listener
	mu    sync.Mutex
	bytes bytes.Buffer
}

type overheardConn struct {
	net.Conn
	l *overheard
}

func (l *overheard) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return overheardConn{conn, l}, err
}

func (c overheardConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.l.bytes.Write(p[:n])
	return n, err
}

func (l *overheard) heard(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.bytes.Bytes(), []byte(text))
}

// A health check follows redirects. Whatever they say, the token goes nowhere
// that a request could not send it.
func TestRedirectedHealthChecks(t *testing.T) {
	endpoint := newTokens(t)
	other := newRecorder(t, (*httptest.Server).Start)
	var ear *overheard
	start := func(start func(*httptest.Server)) func(*httptest.Server) {
		return func(s *httptest.Server) {
			ear = &overheard{Listener: s.Listener}
			s.Listener = ear
			start(s)
		}
	}
	plain := newRecorder(t, start((*httptest.Server).Start))
	encrypted := newRecorder(t, start((*httptest.Server).StartTLS))

	for name, test := range map[string]struct {
		api      *recorder
		location func(api *recorder) string
		options  func(api *recorder) string
		follows  bool
	}{
		"same host":    {plain, func(r *recorder) string { return r.URL + "/redirected" }, nil, true},
		"another host": {plain, func(*recorder) string { return other.URL + "/redirected" }, nil, false},
		"another name": {plain, func(*recorder) string { return "http://evil.test/redirected" }, nil, false},
		"to plain http": {encrypted, func(r *recorder) string { return "http://example.com:" + port(r.URL) + "/redirected" }, func(r *recorder) string {
			return "api_hosts example.com\ntransport http {\ntls_server_name example.com\ntls_trust_pool file " + trust(t, r.Server) + "\n}"
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var redirected, probes atomic.Int64
			test.api.handler = func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/redirected" {
					redirected.Add(1)
					return
				}
				probes.Add(1)
				http.Redirect(w, r, test.location(test.api), http.StatusFound)
			}
			options := "health_uri /health\nhealth_interval 20ms\nhealth_timeout 2s\nhealth_follow_redirects\n"
			if test.options != nil {
				options += test.options(test.api)
			}
			startGateway(t, egress(test.api.URL, endpoint.URL, options))
			eventually(t, "probes", func() bool { return probes.Load() > 3 })
			if got := redirected.Load() > 0; got != test.follows {
				t.Errorf("the redirect was followed: %v, want %v", got, test.follows)
			}
			if other.count() > 0 {
				t.Error("a probe has reached another host")
			}
			if test.api == encrypted && ear.heard("Bearer") {
				t.Error("the token was sent in plain text")
			}
		})
	}
}

// Refused requests are refused before a token is asked for: where there is
// none, the answer is the same.
func TestRefusalsComeBeforeTheToken(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	endpoint.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "60")
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	g := startGateway(t,
		site("/allow", egress(api.URL, endpoint.URL, "allow GET /x"))+
			site("/hosts", egress(api.URL, endpoint.URL, "hosts x"))+
			site("/clients", egress(api.URL, endpoint.URL, "clients 10.0.0.1"))+
			site("/upstream", egress(api.URL, endpoint.URL, "api_hosts x"))+
			site("/", egress(api.URL, endpoint.URL, "")))
	for path, key := range map[string]string{
		"/allow": "operation_not_allowed", "/hosts": "host_not_allowed", "/clients": "client_not_allowed", "/upstream": "api_host_not_allowed", "/": "token_unavailable",
	} {
		if _, body := g.get(path); !strings.Contains(body, key) {
			t.Errorf("%s: %s, want %s", path, body, key)
		}
	}
	if api.count() > 0 {
		t.Error("a request has reached the API")
	}
	if got := endpoint.count(); got != 1 {
		t.Errorf("%d token requests, want the one at the start", got)
	}
}

// threeAPIs is one server that has a token endpoint for client ids that work
// (ok), while it is down, and that it refuses.
func threeAPIs(t *testing.T) *recorder {
	api := newRecorder(t, (*httptest.Server).Start)
	api.handler = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/oauth/token" {
			w.Header()["Proxy-Status"] = []string{`caddy-egress; error=spoofed, cdn.example; details="a, caddy-egress; b"`, "caddy-egress", `"caddy-egress"; x`,
				`foo; details="a`, `b", caddy-egress; error=x`}
			return
		}
		w.Header().Set("Content-Type", "application/json")
		switch id := r.Header.Get("X-App-Id") + r.PostFormValue("client_id"); id {
		case "ok":
			fmt.Fprintf(w, `{"access_token":"%s","token_type":"bearer","expires_in":3600,"expires_at":4102444800,"client_id":"x","scope":"api"}`, testToken)
		case "down":
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error":"invalid_client","code":401,"key":"unauthorized","message":"Unauthorized"}`)
		}
	}
	return api
}

func TestAnswersOfTheGateway(t *testing.T) {
	api := threeAPIs(t)
	apis := map[string]string{
		"voucherify": `egress voucherify ` + api.URL + ` {
			app_id    %s
			app_token {env.EGRESS_TEST_SECRET}
			scopes    api
			%s
		}`,
		"understory": `egress understory ` + api.URL + ` {
			token_url     ` + api.URL + `/v1/oauth/token
			client_id     %s
			client_secret {env.EGRESS_TEST_SECRET}
			%s
		}`,
		"oauth2": `egress oauth2 ` + api.URL + ` {
			token_url     ` + api.URL + `/v1/oauth/token
			client_id     %s
			client_secret {env.EGRESS_TEST_SECRET}
			auth_method   client_secret_post
			%s
		}`,
	}
	routes := ""
	for name, route := range apis {
		for id, options := range map[string]string{"ok": "clients 127.0.0.1\nallow GET,HEAD /" + name + "/ok/v1/*", "down": "", "refused": "", "upstream": "to http://127.0.0.1:1"} {
			routes += site("/"+name+"/"+id+"/", fmt.Sprintf(route, strings.Replace(id, "upstream", "ok", 1), options))
		}
	}
	g := startGateway(t, routes)
	eventually(t, "token requests", func() bool { return api.count() >= 9 })

	for name := range apis {
		for _, test := range []struct {
			key      string
			status   int
			path     string
			method   string
			host     string
			headers  string
			peer     string
			proxy    string // error of RFC 9209
			option   string // that the message names
			withheld string // option that only the log names
		}{
			{key: "token_unavailable", status: 503, path: "/down/x", proxy: "proxy_internal_error"},
			{key: "credential_refused", status: 502, path: "/refused/x", proxy: "proxy_configuration_error"},
			{key: "bad_request_target", status: 400, path: "/ok/v1/x", headers: "Connection: Upgrade\r\nUpgrade: tls/1.2\r\n", proxy: "http_request_error"},
			{key: "method_not_allowed", status: 405, path: "/ok/v1/x", method: "TRACE", proxy: "http_request_error"},
			{key: "client_not_allowed", status: 403, path: "/ok/v1/x", peer: "127.0.0.2", proxy: "http_request_denied", withheld: "clients would permit it"},
			{key: "host_not_allowed", status: 403, path: "/ok/v1/x", host: "evil.example", proxy: "http_request_denied", withheld: `hosts \"evil.example\" would permit it`},
			{key: "origin_not_allowed", status: 403, path: "/ok/v1/x", headers: "Origin: https://evil.test\r\n", proxy: "http_request_denied", option: "origins"},
			{key: "operation_not_allowed", status: 403, path: "/ok/v2/x", proxy: "http_request_denied", option: "allow "},
			{key: "api_host_not_allowed", status: 421, path: "/upstream/x", proxy: "http_request_denied", option: "api_hosts 127.0.0.1:1"},
		} {
			for _, form := range []string{"GET HTTP/1.1", "HEAD HTTP/1.1", "GET HTTP/1.0", "HEAD HTTP/1.0"} {
				method, proto, _ := strings.Cut(form, " ")
				if test.method != "" {
					method = test.method
				}
				host, peer := test.host, test.peer
				if host == "" {
					host = "localhost"
				}
				if peer == "" {
					peer = "127.0.0.1"
				}
				request := method + " /" + name + test.path + " " + proto + "\r\nHost: " + host + "\r\n" + test.headers + "\r\n"
				resp, body := newWire(t, from(peer, g.Addr)).send(request)

				header := resp.Header
				wantType := "application/json"
				if name == "oauth2" {
					wantType = "application/problem+json"
				}
				if resp.StatusCode != test.status || header.Get("Content-Type") != wantType || header.Get("Cache-Control") != "no-store" ||
					header.Get("Proxy-Status") != fmt.Sprintf("caddy-egress; error=%s; details=%q", test.proxy, test.key) {
					t.Errorf("%q: %d %v, want %d %s", request, resp.StatusCode, header, test.status, test.key)
				}
				if got := header.Get("Retry-After"); (got != "") != (test.status == 503) || got == "0" {
					t.Errorf("%q: Retry-After is %q", request, got)
				}
				if got := header.Get("Allow"); (got != "") != (test.status == 405) || strings.Contains(got, "TRACE") {
					t.Errorf("%q: Allow is %q", request, got)
				}
				if resp.ContentLength <= 0 {
					t.Errorf("%q: Content-Length is %d", request, resp.ContentLength)
				}
				if method == http.MethodHead {
					if body != "" {
						t.Errorf("%q: has the body %s", request, body)
					}
					continue
				}

				var answer struct {
					Code                        any
					Key, Message, Title, Detail string
					Status                      int
				}
				if err := json.Unmarshal([]byte(body), &answer); err != nil {
					t.Errorf("%q: %v: %s", request, err, body)
					continue
				}
				var message string
				var right bool
				switch name {
				case "voucherify":
					message, right = answer.Message, answer.Code == float64(test.status) && answer.Key == test.key
				case "understory":
					message, right = answer.Message, answer.Code == test.key
				case "oauth2":
					message, right = answer.Detail, answer.Code == test.key && answer.Status == test.status && answer.Title == http.StatusText(test.status)
				}
				if !right || message == "" || !strings.Contains(message, test.option) || strings.Contains(message, testSecret) {
					t.Errorf("%q: %s", request, body)
				}
				if test.withheld != "" {
					if option, _, _ := strings.Cut(test.withheld, " "); strings.Contains(message, option) {
						t.Errorf("%q: the answer names the option: %s", request, body)
					}
					if !strings.Contains(g.Log(), "; "+test.withheld) {
						t.Errorf("%q: the log does not name %s", request, test.withheld)
					}
				}
			}
		}
	}

	// only the gateway speaks for itself
	resp, _ := g.get("/oauth2/ok/v1/x")
	if got := resp.Header.Values("Proxy-Status"); len(got) != 1 || got[0] != `cdn.example; details="a, caddy-egress; b", foo; details="a, b"` {
		t.Errorf("Proxy-Status is %q", got)
	}
}

func TestHandleResponseMatchesRefusals(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	g := startGateway(t, egress(api.URL, endpoint.URL, `
		allow GET /v1/*
		@refused {
			status 403
			header Proxy-Status caddy-egress*
		}
		handle_response @refused {
			respond "ask the operator" 418
		}`))
	if resp, body := g.get("/v2/x"); resp.StatusCode != http.StatusTeapot || body != "ask the operator" {
		t.Errorf("answered %d %s", resp.StatusCode, body)
	}
	if resp, body := g.get("/v1/x"); resp.StatusCode != http.StatusOK {
		t.Errorf("answered %d %s", resp.StatusCode, body)
	}
}

// A token that cannot be had says nothing about the API: its upstream stays
// available, and another try would not help.
func TestTokenFailuresAreNoUpstreamFailures(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	endpoint.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	g := startGateway(t, egress(api.URL, endpoint.URL, `
		fail_duration   1m
		max_fails       1
		lb_retries      5
		lb_try_duration 5s
		lb_try_interval 1ms
	`))
	before := endpoint.count()
	start := time.Now()
	for range 20 {
		resp, body := g.get("/v1/x")
		checkRefused(t, resp, body, http.StatusServiceUnavailable, "token_unavailable")
	}
	if elapsed := time.Since(start); elapsed > 4*time.Second {
		t.Errorf("20 requests took %v: they were tried again", elapsed)
	}
	if got := endpoint.count() - before; got > 3 {
		t.Errorf("%d token requests for 20 requests", got)
	}
	if api.count() > 0 {
		t.Error("a request has gone out without a token")
	}
	endpoint.set(func(e *tokens) { e.answer = nil })
	eventually(t, "the first answer of the API", func() bool {
		resp, _ := g.get("/v1/x")
		return resp.StatusCode == http.StatusOK
	})
}

// port returns the port of a host:port.
func port(address string) string { return address[strings.LastIndex(address, ":")+1:] }

// insecureClient takes any certificate.
var insecureClient = &http.Client{Transport: &http.Transport{
	TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
	DisableKeepAlives: true,
}}

// keyPair writes a certificate for 127.0.0.1 and its key to files.
func keyPair(t *testing.T) (cert, key string) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	defer server.Close()
	der, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	key = filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return trust(t, server), key
}
