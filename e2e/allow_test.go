package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/internal/egresstest/paths"
	"github.com/caddy-egress/caddy-egress/sandbox"
)

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
		"%ef%bc%8f", "/x/%ef%bc%8e%ef%bc%8e/", "/x/..%20/", "/x/.%e2%80%8b./", "/x%3f/", "/x%23/../", "%e2%88%95", "/%25u002e./", "%e2%80%8b/",
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
	ends := []string{"", "", "", "", "", "/", "//", ";a=1", "%3ba", "/.", "/..;/", "%00", "%2500", "%20", "%0a", "?x=1", "?_method=DELETE", "#x", "%23x", "%3fx", "%25zz", "%25", "/%2e", ".json", "/..%3f", "%253fx", "/..%23", "/..%20", "/%ef%bc%8e.", "%c2%ad", ".", "/...", `\`, "/..%2f"}
	starts := []string{
		"", "", "", "", "", "", "/", "//", "/x/..", "/%2e", "/.", "/;a", "//api.test", "/%2fapi.test", `/\api.test`, "/v1/vouchers/..", "/v1/vouchers/%2e%2e", "/v1/vouchers/..%2f..", "/v1/vouchers/x/..;/../..",
		"/strip", "/strip/", "/strip/..", "/strip%2f", "//strip", "http://127.0.0.1", "http://localhost/", "http://user:password@localhost", "//user:password@127.0.0.1",
	}
	return starts[random.IntN(len(starts))] + b.String() + ends[random.IntN(len(ends))]
}

var overrides = []string{"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X_HTTP_Method_Override", "X.HTTP.Method.Override", "x-http-method-OVERRIDE", "X-Original-URL", "X-Rewrite-URL"}

// attack sends n disguised requests for operations, over two connections, and
// returns how many were answered 200.
func attack(g *egresstest.Gateway, n int, operations []string) int64 {
	var passed atomic.Int64
	var wg sync.WaitGroup
	for half := range uint64(2) {
		w := g.Wire()
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
				resp, _ := w.Send(method + " " + target + " HTTP/1.1\r\nHost: localhost\r\nX-App-Id: id\r\nX-App-Token: of-the-client\r\nContent-Length: 0\r\n" + headers + "\r\n")
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
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		path, _, _ := strings.Cut(r.RequestURI, "?")
		under := !slices.ContainsFunc(paths.Interpretations(path), func(p string) bool { return !paths.IsUnder(p, "/v1/vouchers/") })
		if r.Method != http.MethodGet || !under {
			t.Errorf("the API got %s %s", r.Method, r.RequestURI)
		}
		for name := range r.Header {
			if strings.Contains(strings.ToLower(name), "override") || strings.Contains(strings.ToLower(name), "method") || strings.HasSuffix(strings.ToLower(name), "-url") {
				t.Errorf("the API got %s", name)
			}
		}
	}
	route := egresstest.Egress(api.URL, endpoint.URL, "allow GET /v1/vouchers/*")
	g := egresstest.StartGateway(t, "handle_path /strip/* {\n"+route+"\n}\nhandle {\n"+route+"\n}")
	passed := attack(g, 10_000, []string{
		"GET /v1/vouchers/x", "GET /v1/vouchers/x/y/z", "GET /v1/vouchers", "GET /v1/vouchers/../campaigns",
		"POST /v1/vouchers/x", "PUT /v1/vouchers/x", "DELETE /v1/vouchers/x", "PATCH /v1/vouchers/x", "HEAD /v1/vouchers/x", "OPTIONS /v1/vouchers/x",
		"POST /v1/vouchers/create/", "POST /v1/vouchers/x/balance", "GET /v1/campaigns", "GET /v1/customers/1", "POST /v1/redemptions", "GET /", "GET /client/v1/vouchers/x", "GET /v1/vouchers-export",
	})
	if int(passed) != api.Count() || passed < 100 {
		t.Errorf("%d requests were answered 200 and %d have reached the API; want as many, and some", passed, api.Count())
	}

	w := g.Wire()
	for _, target := range []string{
		"/v1/vouchers/a%2Fb%20c", "/v1/vouchers/a%2fb", "/v1/vouchers/", "/v1/vouchers/SUMMER-2026", "/v1/vouchers/100%25", "/v1/vouchers/10%25BACK", "/v1/vouchers/%2525",
		"/v1/vouchers/%D0%B7%D0%B8%D0%BC%D0%B0", "/v1/vouchers/%F0%9F%8E%81", "/v1/vouchers/caf%C3%A9", "/v1/vouchers/a+b", "/v1/vouchers/~a.b_c-d", "/v1/vouchers/%7Ea", "/v1/vouchers/a;b=c",
		"/v1/vouchers/a!$&'()*,:@=", "/v1/vouchers/%3F%23%5B%5D", "/v1/vouchers/https%3A%2F%2Fexample.com%2F1", "/v1/vouchers/x?a=../../%2e%2e&b=//x;c\\%00&[d]=%",
	} {
		resp, body := w.Send("GET " + target + " HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if got := api.Last(t).Target; resp.StatusCode != http.StatusOK || got != target {
			t.Errorf("%s: %d %s, the API got %s", target, resp.StatusCode, body, got)
		}
	}
}

func TestCredentialEndpointsAreNotReached(t *testing.T) {
	imitation, err := sandbox.New(sandbox.Options{API: "voucherify", ClientID: "id", ClientSecret: egresstest.Secret})
	if err != nil {
		t.Fatal(err)
	}
	var arrived, issued atomic.Int64
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path, _, _ := strings.Cut(r.RequestURI, "?")
		switch {
		case r.Header.Get("X-App-Token") == egresstest.Secret && r.RequestURI == "/v1/oauth/token": // the gateway's own
			issued.Add(1)
		default:
			arrived.Add(1)
			for _, p := range paths.Interpretations(path) {
				if paths.IsUnder(p, "/v1/oauth/") || paths.IsUnder(p, "/v2/oauth/") || paths.IsUnder(p, "/management/") {
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
	g := egresstest.StartGateway(t, "handle_path /strip/* {\n"+route+"\n}\nhandle {\n"+route+"\n}")
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
	resp, body := g.Get("/v1/oauth/token")
	checkCredentialEndpoint(t, resp, body)
}

// checkCredentialEndpoint checks the answer at an endpoint that issues tokens,
// which OAuth clients have to understand.
func checkCredentialEndpoint(t *testing.T, resp *http.Response, body string) {
	t.Helper()
	var answer struct {
		Error       string
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || resp.StatusCode != http.StatusForbidden ||
		answer.Error != "unauthorized_client" || !strings.HasPrefix(answer.Description, "the gateway authenticates requests to this API itself") {
		t.Errorf("answered %d %s, %v", resp.StatusCode, body, err)
	}
	if strings.ContainsFunc(answer.Description, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) {
		t.Errorf("error_description %q holds what RFC 6749 §5.2 excludes", answer.Description)
	}
	want := map[string]string{
		"Content-Type": "application/json", "Cache-Control": "no-store",
		"Proxy-Status": `caddy-egress; error=http_request_denied; details="operation_not_allowed"`,
	}
	for name, value := range want {
		if got := resp.Header.Get(name); got != value {
			t.Errorf("%s is %q, want %q", name, got, value)
		}
	}
}

// The endpoints of the other providers are credential endpoints, too, where they
// are on the host of the API.
func TestConfiguredEndpointsAreNotReached(t *testing.T) {
	api, elsewhere := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	var issued atomic.Int64
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/OAuth2/Token" && r.PostFormValue("grant_type") == "client_credentials" {
			issued.Add(1)
			egresstest.Issue(`,"token_type":"bearer","expires_in":900`)(w, r)
		}
	}
	credential := "client_id gateway\nclient_secret {env." + egresstest.SecretVariable + "}\n"
	g := egresstest.StartGateway(t, `
	@understory header X-Way understory
	handle @understory {
		egress understory `+api.URL+` {
			token_url `+api.URL+`/OAuth2/Token
			`+credential+`
		}
	}
	@elsewhere header X-Way elsewhere
	handle @elsewhere {
		egress understory `+api.URL+` {
			token_url `+elsewhere.URL+`/OAuth2/Token
			`+credential+`
		}
	}
	handle {
		egress oauth2 `+api.URL+` {
			token_url `+api.URL+`/OAuth2/Token
			revocation_url `+api.URL+`/oauth2/revoke
			introspection_url `+elsewhere.URL+`/oauth2/introspect
			`+credential+`
		}
	}`)
	egresstest.Eventually(t, "the gateway's tokens", func() bool { return issued.Load() == 2 })
	get := func(way, path string) (*http.Response, string) {
		req := g.Request(http.MethodPost, path, nil)
		req.Header.Set("X-Way", way)
		return g.Do(req)
	}
	for _, way := range []string{"understory", "oauth2"} {
		for _, path := range []string{"/OAuth2/Token", "/oauth2/token", "/oauth2/token/", "/oauth2/token/x", "/oauth2%2Ftoken", "/oauth2/token%3Fx"} {
			resp, body := get(way, path)
			if checkCredentialEndpoint(t, resp, body); t.Failed() {
				t.Fatalf("at %s of %s", path, way)
			}
		}
	}
	resp, body := get("oauth2", "/oauth2/revoke")
	checkCredentialEndpoint(t, resp, body)
	if got := api.Count(); got != 2 || issued.Load() != 2 {
		t.Errorf("the API got %d requests, %d of them for a token; want the gateway's two", got, issued.Load())
	}
	for way, path := range map[string]string{"oauth2": "/oauth2/introspect", "understory": "/oauth2/tokens", "elsewhere": "/OAuth2/Token"} {
		if resp, body := get(way, path); resp.StatusCode != http.StatusOK {
			t.Errorf("%s with %s: %d %s", path, way, resp.StatusCode, body)
		}
	}
}

// In JSON, a list can be empty. It would replace that of the app by nothing.
func TestEmptyAllowIsAnError(t *testing.T) {
	const transport = `"protocol":"egress"`
	config := string(egresstest.NewGateway(t, egresstest.WithGlobal("egress {\nallow GET /v1/*\n}")).Adapt(egresstest.Egress("http://127.0.0.1:1", "http://127.0.0.1:2", "")))
	if strings.Count(config, transport) != 1 {
		t.Fatalf("the config has no transport: %s", config)
	}
	if err := egresstest.Validate(t, []byte(config)); err != nil {
		t.Fatal(err)
	}
	err := egresstest.Validate(t, []byte(strings.Replace(config, transport, transport+`,"allow":[]`, 1)))
	if err == nil || !strings.Contains(err.Error(), "allow: is empty, which would permit everything") {
		t.Errorf("with an empty list in the route: %v", err)
	}
	err = egresstest.Validate(t, []byte(strings.Replace(config, `"allow":[{"methods":["GET"],"paths":["/v1/*"]}]`, `"allow":[]`, 1)))
	if err == nil || !strings.Contains(err.Error(), "allow: is empty") {
		t.Errorf("with an empty list in the app: %v", err)
	}
}

// Over HTTP/2, a target can hold what would end it with HTTP/1.
func TestSpacesInTargetsOverHTTP2(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	route := egresstest.Egress(api.URL, endpoint.URL, "")
	g := egresstest.StartGateway(t, "handle_path /strip/* {\n"+route+"\n}\nhandle {\n"+route+"\n}")
	for target, status := range map[string]string{
		"/v1/a%20b?c=%20d": "200", "/strip/v1/a%20b": "200",
		"/v1/a b": "400", "/v1/a?b c": "400", "/v1/a?x HTTP/1.1": "400", "/v1/a ": "400", "/strip/v1/a b": "400", "/strip/v1/a?b c": "400",
	} {
		before := api.Count()
		if got := getOverHTTP2(t, g.Addr, target); got != status || api.Count()-before != map[string]int{"200": 1}[status] {
			t.Errorf("%q is answered %s, want %s; %d requests have reached the API", target, got, status, api.Count()-before)
		}
	}
}

// getOverHTTP2 sends a GET with target as it is, and returns the status.
func getOverHTTP2(t *testing.T, addr, target string) (status string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "localhost"}, {":path", target}} {
		_ = encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]})
	}
	_ = framer.WriteSettings()
	_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("%q: %v", target, err)
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			return frame.PseudoValue("status")
		case *http2.RSTStreamFrame:
			return frame.ErrCode.String()
		}
	}
}

func TestRequestFormsThatAreRefused(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	route := egresstest.Egress(api.URL, endpoint.URL, "")
	g := egresstest.StartGateway(t, "handle /relative {\n rewrite * relative\n"+route+"\n}\nhandle {\n"+route+"\n}")
	const badTarget, badMethod = "bad_request_target", "method_not_allowed"
	for request, key := range map[string]string{
		"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n": badMethod,
		"TRACK / HTTP/1.1\r\nHost: 127.0.0.1\r\n":                       badMethod,
		"TRACE / HTTP/1.1\r\nHost: 127.0.0.1\r\n":                       badMethod,
		"GET http:v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\n":                 badTarget,
		"GET * HTTP/1.1\r\nHost: 127.0.0.1\r\n":                         badTarget,
		"GET /relative HTTP/1.1\r\nHost: 127.0.0.1\r\n":                 badTarget,
		"OPTIONS /relative HTTP/1.1\r\nHost: 127.0.0.1\r\n":             badTarget,
	} {
		status := map[string]int{badMethod: http.StatusMethodNotAllowed, badTarget: http.StatusBadRequest}[key]
		resp, body := g.Wire().Send(request + "\r\n")
		if egresstest.CheckRefused(t, resp, body, status, key); t.Failed() {
			t.Fatalf("answer to %q", request)
		}
	}
	if got := api.Count(); got != 0 {
		t.Errorf("%d requests have reached the API, want none", got)
	}

	// what looks alike and is fine
	for _, request := range []string{
		"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n",
		"GET http://127.0.0.1/v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\n",
	} {
		if status := g.Raw(request + "Connection: close\r\n\r\n"); !strings.Contains(status, " 200 ") {
			t.Errorf("%q is answered %q, want 200", request, status)
		}
	}
	if got := api.Last(t).Target; strings.Contains(got, "127.0.0.1") {
		t.Errorf("the API got the target %q, want its path only", got)
	}
}
