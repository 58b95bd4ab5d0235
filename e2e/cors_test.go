package e2e_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

const app = "https://app.example.com"

// startCORS starts a gateway whose routes serve pages of app, to an API that has
// CORS headers of its own.
func startCORS(t *testing.T) (*egresstest.Recorder, *egresstest.Tokens, *egresstest.Gateway) {
	t.Helper()
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Access-Control-Allow-Origin", "*")
		header.Set("Access-Control-Allow-Credentials", "true")
		header.Set("Access-Control-Expose-Headers", "X-Of-The-API")
		header.Set("Vary", "Accept-Encoding")
		header.Set("X-Rate-Limit-Remaining", "7")
		if strings.HasSuffix(r.URL.Path, "/missing") {
			w.WriteHeader(http.StatusNotFound)
		}
	}
	down := egresstest.NewTokens(t)
	down.SetAnswer(egresstest.Say(http.StatusServiceUnavailable, ""))
	options := "origins " + app + "\n"
	return api, endpoint, egresstest.StartGateway(t,
		egresstest.Site("/open", egresstest.Egress(api.URL, endpoint.URL, options))+
			egresstest.Site("/allow", egresstest.Egress(api.URL, endpoint.URL, options+"allow GET,HEAD /allow/things/*\nallow PATCH /allow/things/*\n"))+
			egresstest.Site("/any", egresstest.Egress(api.URL, endpoint.URL, options+"allow GET /any/a\nallow /any/b\n"))+
			egresstest.Site("/clients", egresstest.Egress(api.URL, endpoint.URL, options+"clients 10.0.0.0/8"))+
			egresstest.Site("/rewritten", egresstest.Egress(api.URL, endpoint.URL, options+"header_up -Origin"))+
			egresstest.Site("/limited", strings.ReplaceAll(egresstest.Egress(api.URL, endpoint.URL, options+"respect_rate_limit"), "client_id gateway", "client_id limited"))+
			egresstest.Site("/down", strings.ReplaceAll(egresstest.Egress(api.URL, down.URL, options), "client_id gateway", "client_id down"))+
			egresstest.Site("/closed", egresstest.Egress(api.URL, endpoint.URL, "")))
}

// ask sends a request with pairs of header names and values.
func ask(g *egresstest.Gateway, method, path string, header ...string) (*http.Response, string) {
	req := g.Request(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
			continue
		}
		req.Header.Add(header[i], header[i+1])
	}
	return g.Do(req)
}

// corsHeaders returns the names of the CORS headers in header.
func corsHeaders(header http.Header) (names []string) {
	for name := range header {
		if strings.HasPrefix(name, "Access-Control-") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func TestPreflights(t *testing.T) {
	api, _, g := startCORS(t)
	const all = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
	for _, test := range []struct {
		path    string
		header  []string
		methods string // empty: refused
	}{
		{path: "/open/v1/x", methods: all},
		{path: "/open/v1/x", header: []string{"Access-Control-Request-Headers", "x-app-id,content-type"}, methods: all},
		{path: "/open/v1/x", header: []string{"Access-Control-Request-Private-Network", "true"}, methods: all},
		{path: "/allow/things/1", methods: "GET, HEAD, PATCH"},
		{path: "/allow/elsewhere", methods: "GET, HEAD, PATCH"}, // the request itself will be refused, and can be read
		{path: "/any/a", methods: all},
		{path: "/rewritten/v1/x", methods: all},
		{path: "/down/v1/x", methods: all}, // no token is needed
		{path: "/clients/v1/x"},
		{path: "/closed/v1/x"},
		{path: "/open/v1/x", header: []string{"Host", "evil.example"}},
	} {
		header := append([]string{"Origin", app, "Access-Control-Request-Method", "PUT", "Sec-Fetch-Site", "cross-site"}, test.header...)
		resp, body := ask(g, http.MethodOptions, test.path, header...)
		name := fmt.Sprint(test.path, test.header)
		if test.methods == "" {
			if resp.StatusCode != http.StatusForbidden {
				t.Errorf("%s: answered %d %v", name, resp.StatusCode, resp.Header)
			}
			continue
		}
		value := func(of string) string {
			if i := slices.Index(test.header, of); i >= 0 {
				return test.header[i+1]
			}
			return ""
		}
		if resp.StatusCode != http.StatusNoContent || body != "" {
			t.Errorf("%s: answered %d %q", name, resp.StatusCode, body)
		}
		for header, want := range map[string]string{
			"Access-Control-Allow-Origin":          app,
			"Access-Control-Allow-Methods":         test.methods,
			"Access-Control-Allow-Headers":         value("Access-Control-Request-Headers"),
			"Access-Control-Allow-Private-Network": value("Access-Control-Request-Private-Network"),
			"Access-Control-Allow-Credentials":     "",
			"Access-Control-Max-Age":               "600",
			"Vary":                                 "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network",
			"Content-Type":                         "",
			"Proxy-Status":                         `caddy-egress; details="preflight"`,
		} {
			if got := strings.Join(resp.Header.Values(header), ", "); got != want {
				t.Errorf("%s: %s is %q, want %q", name, header, got, want)
			}
		}
	}
	if n := api.Count(); n > 0 {
		t.Errorf("%d preflights have reached the API: %+v", n, api.All())
	}

	// neither of these is a preflight
	for _, header := range [][]string{
		{"Origin", app},
		{"Access-Control-Request-Method", "PUT"},
		{"Origin", g.URL, "Access-Control-Request-Method", "PUT"},
	} {
		before := api.Count()
		if resp, _ := ask(g, http.MethodOptions, "/open/v1/x", header...); resp.StatusCode != http.StatusOK || api.Count() != before+1 {
			t.Errorf("OPTIONS with %q: answered %d, %d requests at the API", header, resp.StatusCode, api.Count()-before)
		}
	}
	// and nothing else passes `allow` for looking like one
	for _, method := range []string{http.MethodOptions, http.MethodDelete, "options"} {
		header := []string{"Origin", app}
		if method != http.MethodOptions {
			header = append(header, "Access-Control-Request-Method", "GET")
		}
		before := api.Count()
		if resp, _ := ask(g, method, "/allow/things/1", header...); resp.StatusCode != http.StatusForbidden || api.Count() != before {
			t.Errorf("%s: answered %d", method, resp.StatusCode)
		}
	}
}

func TestAnswersThatPagesCanRead(t *testing.T) {
	_, _, g := startCORS(t)
	ask(g, http.MethodGet, "/limited/v1/warm-up")
	for _, test := range []struct {
		path   string
		status int
		header []string
	}{
		{path: "/open/v1/x", status: 200},
		{path: "/open/v1/missing", status: 404},
		{path: "/rewritten/v1/x", status: 200},
		{path: "/allow/elsewhere", status: 403},
		{path: "/clients/v1/x", status: 403},
		{path: "/open/v1/x", status: 403, header: []string{"Host", "evil.example"}},
		{path: "/down/v1/x", status: 503},
	} {
		resp, body := ask(g, http.MethodGet, test.path, append([]string{"Origin", app}, test.header...)...)
		name := fmt.Sprint(test.path, test.header)
		if resp.StatusCode != test.status {
			t.Errorf("%s: answered %d %s, want %d", name, resp.StatusCode, body, test.status)
		}
		if got := corsHeaders(resp.Header); fmt.Sprint(got) != "[Access-Control-Allow-Origin Access-Control-Expose-Headers]" {
			t.Errorf("%s: has the CORS headers %q", name, got)
		}
		if got := resp.Header.Values("Access-Control-Allow-Origin"); len(got) != 1 || got[0] != app {
			t.Errorf("%s: Access-Control-Allow-Origin is %q", name, got)
		}
		exposed := strings.Split(resp.Header.Get("Access-Control-Expose-Headers"), ", ")
		for _, want := range []string{"Proxy-Status", "Retry-After", "X-Rate-Limit-Limit", "X-Rate-Limit-Remaining", "X-RateLimit-Remaining", "RateLimit-Remaining"} {
			if n := len(slices.DeleteFunc(slices.Clone(exposed), func(name string) bool { return !strings.EqualFold(name, want) })); n != 1 {
				t.Errorf("%s: %s is exposed %d times in %q", name, want, n, exposed)
			}
		}
		vary := strings.Join(resp.Header.Values("Vary"), ", ")
		if !strings.Contains(vary, "Origin") || test.status == 200 && !strings.Contains(vary, "Accept-Encoding") {
			t.Errorf("%s: Vary is %q", name, vary)
		}
	}

	for _, test := range []struct {
		path, origin string
		status       int
		vary         bool
	}{
		{"/open/v1/x", "", 200, true}, // a cache must not give it to a page
		{"/open/v1/x", g.URL, 200, true},
		{"/closed/v1/x", "", 200, false},
		{"/closed/v1/x", g.URL, 200, false},
		{"/closed/v1/x", app, 403, false},
		{"/open/v1/x", "https://evil.test", 403, false},
		{"/open/v1/x", "null", 403, false},
	} {
		var header []string
		if test.origin != "" {
			header = []string{"Origin", test.origin}
		}
		resp, body := ask(g, http.MethodGet, test.path, header...)
		if got := corsHeaders(resp.Header); resp.StatusCode != test.status || len(got) > 0 {
			t.Errorf("%s from %q: answered %d %s with %q", test.path, test.origin, resp.StatusCode, body, got)
		}
		if vary := strings.Contains(strings.Join(resp.Header.Values("Vary"), ", "), "Origin"); vary != test.vary {
			t.Errorf("%s from %q: Vary is %q", test.path, test.origin, resp.Header.Values("Vary"))
		}
	}
}

// An opaque origin cannot be listed, so nothing says that it could.
func TestOpaqueOrigin(t *testing.T) {
	_, _, g := startCORS(t)
	resp, body := ask(g, http.MethodGet, "/open/v1/x", "Origin", "null")
	if resp.StatusCode != http.StatusForbidden || strings.Contains(body, "would permit") || !strings.Contains(body, "opaque") {
		t.Errorf("answered %d %s", resp.StatusCode, body)
	}
}
