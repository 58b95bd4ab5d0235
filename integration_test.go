package egress_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/caddy-egress/caddy-egress/sandbox"
)

func TestMain(m *testing.M) {
	os.Setenv("EGRESS_TEST_SECRET", testSecret)
	// what Caddy leaves behind: the file writers of its logs, its admin endpoint
	// and what cleans up dynamic upstreams, both of which end with the process,
	// and the locks of its storage, for a while
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("github.com/DeRuina/timberjack.(*Logger).millRun"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/caddy/v2.replaceLocalAdminServer.func2"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy.(*Upstream).fillDynamicHost.func1.1"))
}

func TestCallsBothAPIsWithNoCredentialInTheRequest(t *testing.T) {
	understory, understoryServer := newSandbox(t, sandbox.Options{API: "understory", ClientID: "id", ClientSecret: testSecret})
	voucherify, voucherifyServer := newSandbox(t, sandbox.Options{API: "voucherify", ClientID: "id", ClientSecret: testSecret})
	g := startGateway(t, fmt.Sprintf(`
	handle_path /understory/* {
		egress understory %[1]s {
			token_url     %[1]s/oauth2/token
			client_id     id
			client_secret {env.EGRESS_TEST_SECRET}
			scopes        openid booking.read
		}
	}
	handle_path /v1/* {
		rewrite * /v1{uri}
		egress voucherify %[2]s {
			app_id    id
			app_token {env.EGRESS_TEST_SECRET}
			scopes    api
		}
	}
	handle_path /v2/* {
		egress voucherify %[2]s {
			app_id     id
			app_token  {env.EGRESS_TEST_SECRET}
			scopes     vouchers.read
			oauth      v2
			project_id project
		}
	}`, understoryServer.URL, voucherifyServer.URL))

	for path, want := range map[string]string{
		"/understory/v1/me":       `"company_id"`,
		"/understory/v1/bookings": `"items"`,
		"/v1/vouchers":            `"object":"list"`,
		"/v2/v1/vouchers":         `"object":"list"`,
	} {
		resp, body := g.get(path)
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("GET %s: %d %s", path, resp.StatusCode, body)
		}
	}
	if got := understory.Stats().TokenRequests; got != 1 {
		t.Errorf("%d token requests to Understory, want 1", got)
	}
	if got := voucherify.Stats().TokenRequests; got != 2 {
		t.Errorf("%d token requests to Voucherify, want one for each version", got)
	}
}

func TestFirstRequestsShareOneTokenRequest(t *testing.T) {
	const clients = 1000
	for _, failing := range []bool{false, true} {
		t.Run(fmt.Sprintf("failing=%v", failing), func(t *testing.T) {
			api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
			endpoint.latency = 300 * time.Millisecond
			if failing {
				endpoint.answer = func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Retry-After", "60")
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			}
			g := startGateway(t, egress(api.URL, endpoint.URL, ""))

			var mu sync.Mutex
			answers := make(map[string]int)
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					resp, err := plainClient.Get(g.URL + "/v1/x")
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					body, _ := io.ReadAll(resp.Body)
					mu.Lock()
					answers[fmt.Sprintf("%d %s", resp.StatusCode, body)]++
					mu.Unlock()
				})
			}
			wg.Wait()
			if got := endpoint.count(); got != 1 {
				t.Errorf("%d token requests, want 1", got)
			}
			want := http.StatusOK
			if failing {
				want = http.StatusServiceUnavailable
			}
			for answer, n := range answers {
				if !strings.HasPrefix(answer, fmt.Sprint(want)) || n != clients {
					t.Errorf("%d answers %s, want %d of %d", n, answer, clients, want)
				}
			}
			if failing && api.count() != 0 {
				t.Error("a request has gone out without a token")
			}
		})
	}
}

func TestExactlyOneAuthorization(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	g := startGateway(t, egress(api.URL, endpoint.URL, `
		header_up Authorization "Bearer from-the-config"
		header_up +Authorization "Basic bW9yZQ=="
		header_up X-App-Id from-the-config
	`))
	req := g.request(http.MethodGet, "/v1/x", nil)
	req.Header = http.Header{
		"Authorization":  {"Bearer from-the-client", "Basic Y2xpZW50"},
		"Connection":     {"Authorization, X-Gone"},
		"X-Gone":         {"hop by hop"},
		"X-Kept":         {"end to end"},
		"Accept-Charset": {"utf-8"},
	}
	g.do(req)
	got := api.last(t)
	if want := []string{"Bearer " + testToken + "1"}; fmt.Sprint(got.Header["Authorization"]) != fmt.Sprint(want) {
		t.Errorf("Authorization is %q, want %q", got.Header["Authorization"], want)
	}
	if got.Header.Get("X-Gone") != "" || got.Header.Get("X-Kept") == "" {
		t.Errorf("hop-by-hop headers were mistaken: %v", got.Header)
	}
}

func TestHeadersThatDoNotReachTheAPI(t *testing.T) {
	_, tokenServer := newSandbox(t, sandbox.Options{API: "voucherify", ClientID: "id", ClientSecret: testSecret})
	api := newRecorder(t, (*httptest.Server).Start)
	api.handler = func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/oauth/") { // the token endpoint is on the API's host
			proxied, _ := http.NewRequest(r.Method, tokenServer.URL+r.URL.Path, r.Body)
			proxied.Header = r.Header
			resp, err := http.DefaultClient.Do(proxied)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			w.WriteHeader(resp.StatusCode)
			_, _ = io.Copy(w, resp.Body)
		}
	}
	options := `
		app_id    id
		app_token {env.EGRESS_TEST_SECRET}
		scopes    api
	`
	g := startGateway(t, `
	handle_path /back/* {
		egress voucherify `+api.URL+` {
			`+options+`
			header_up Cookie "session=of-the-gateway"
		}
	}
	egress voucherify `+api.URL+` {
		`+options+`
	}`)

	stripped := []string{
		"Authorization", "Proxy-Authorization", "Cookie", "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto",
		"X-Forwarded-Access-Token", "X-Real-IP", "Via", "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override",
		"X-Original-URL", "X-Rewrite-URL", "Baggage", "X-Auth-Request-Email", "X-Amzn-Oidc-Data", "Cf-Access-Jwt-Assertion",
		"X-Goog-Iap-Jwt-Assertion", "X-App-Id", "X-App-Token", "X-Client-Application-Id", "X-Client-Token", "X-Management-Id", "X-Management-Token",
	}
	kept := []string{"Accept-Language", "Accept-Encoding", "X-Voucherify-Channel", "X-Voucherify-API-Version", "Idempotency-Key", "Traceparent", "User-Agent", "If-None-Match"}

	req := g.request(http.MethodGet, "/v1/vouchers", nil)
	for _, name := range append(stripped, kept...) {
		req.Header.Set(name, "of-the-client")
	}
	g.do(req)
	got := api.last(t)
	for _, name := range stripped[1:] {
		if values := got.Header.Values(name); len(values) > 0 {
			t.Errorf("%s has reached the API: %q", name, values)
		}
	}
	for _, name := range kept {
		if value := got.Header.Get(name); value != "of-the-client" {
			t.Errorf("%s is %q at the API, want the client's", name, value)
		}
	}

	// header_up can bring one back
	g.get("/back/v1/vouchers")
	if cookie := api.last(t).Header.Get("Cookie"); cookie != "session=of-the-gateway" {
		t.Errorf("Cookie is %q at the API, want that of header_up", cookie)
	}
}

func TestTrailersAreStripped(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	g := startGateway(t, egress(api.URL, endpoint.URL, ""))
	for name, announced := range map[string]string{
		"announced":     "Trailer: Authorization, Cookie, X-Checksum\r\n",
		"not announced": "",
	} {
		t.Run(name, func(t *testing.T) {
			before := api.count()
			status := g.raw("POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\n" + announced +
				"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" +
				"5\r\nhello\r\n0\r\nAuthorization: Bearer from-the-trailer\r\nCookie: a=b\r\nX-Checksum: 42\r\n\r\n")
			if !strings.Contains(status, "200") || api.count() != before+1 {
				t.Fatalf("answered %q", status)
			}
			got := api.last(t)
			if got.Body != "hello" {
				t.Errorf("body is %q", got.Body)
			}
			if got.Trailer.Get("Authorization") != "" || got.Trailer.Get("Cookie") != "" {
				t.Errorf("a stripped header has reached the API as a trailer: %v", got.Trailer)
			}
			if announced != "" && got.Trailer.Get("X-Checksum") != "42" {
				t.Errorf("an honest trailer was lost: %v", got.Trailer)
			}
			if values := got.Header["Authorization"]; len(values) != 1 || !strings.HasPrefix(values[0], "Bearer "+testToken) {
				t.Errorf("Authorization is %q", values)
			}
		})
	}
}

func TestRequestFormsThatAreRefused(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	g := startGateway(t, egress(api.URL, endpoint.URL, ""))
	for request, want := range map[string]string{
		"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n":                                                    "405",
		"TRACE / HTTP/1.1\r\nHost: 127.0.0.1\r\n":                                                                          "405",
		"GET http:v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\n":                                                                    "400",
		"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nConnection: Upgrade\r\n": "400",
		"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: TLS/1.2\r\nConnection: Upgrade\r\n":                                 "400",
	} {
		if status := g.raw(request + "\r\n"); !strings.Contains(status, " "+want+" ") {
			t.Errorf("%q is answered %q, want %s", request, status, want)
		}
	}
	if got := api.count(); got != 0 {
		t.Errorf("%d requests have reached the API, want none", got)
	}

	// what looks alike and is fine
	for _, request := range []string{
		"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n",
		"GET http://127.0.0.1/v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\n",
	} {
		if status := g.raw(request + "Connection: close\r\n\r\n"); !strings.Contains(status, " 200 ") {
			t.Errorf("%q is answered %q, want 200", request, status)
		}
	}
	if got := api.last(t).Target; strings.Contains(got, "127.0.0.1") {
		t.Errorf("the API got the target %q, want its path only", got)
	}
}

func TestHostAtTheAPI(t *testing.T) {
	endpoint := newTokens(t)
	plain := newRecorder(t, (*httptest.Server).Start)
	encrypted := newRecorder(t, (*httptest.Server).StartTLS)
	g := startGateway(t, `
	handle /plain {
		`+egress(plain.URL, endpoint.URL, "")+`
	}
	handle /tls {
		`+egress(encrypted.URL, endpoint.URL, "transport http {\n tls_trust_pool file "+trust(t, encrypted.Server)+"\n}")+`
	}
	handle /port {
		`+egress("https://api.localhost", endpoint.URL, `
			to `+encrypted.URL+`
			api_hosts api.localhost 127.0.0.1:`+encrypted.URL[strings.LastIndex(encrypted.URL, ":")+1:]+`
			transport http {
				tls_trust_pool file `+trust(t, encrypted.Server)+`
			}`)+`
	}`)
	for path, want := range map[string]struct {
		api  *recorder
		host string
	}{
		"/plain": {plain, strings.TrimPrefix(plain.URL, "http://")},
		"/tls":   {encrypted, strings.TrimPrefix(encrypted.URL, "https://")},
		"/port":  {encrypted, "api.localhost"},
	} {
		req := g.request(http.MethodGet, path, nil)
		req.Host = "gateway.internal"
		if resp, body := g.do(req); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
			continue
		}
		if got := want.api.last(t).Host; got != want.host {
			t.Errorf("%s: Host is %q at the API, want %q", path, got, want.host)
		}
	}
}

func TestPathAndQueryArriveByteForByte(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	g := startGateway(t, egress(api.URL, endpoint.URL, ""))
	for _, target := range []string{
		"/v1/vouchers?sort=%2Bcreated_at&filters[x][$is]=a%2Fb",
		"/v1/vouchers/a%2Fb%20c",
		"/v1/vouchers/?empty=&flag&a=1;b=2&%",
		"/v1/x?q=%7E~+%20'()",
	} {
		status := g.raw("GET " + target + " HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
		if got := api.last(t).Target; got != target || !strings.Contains(status, " 200 ") {
			t.Errorf("the API got %q for %q (%s)", got, target, status)
		}
	}
}

func TestUserAgent(t *testing.T) {
	api := newRecorder(t, (*httptest.Server).Start)
	_, tokenServer := newSandbox(t, sandbox.Options{API: "understory", ClientID: "id", ClientSecret: testSecret})
	g := startGateway(t, `egress understory `+api.URL+` {
		token_url     `+tokenServer.URL+`/oauth2/token
		client_id     id
		client_secret {env.EGRESS_TEST_SECRET}
		user_agent    My-Company/App
	}`)
	for sent, want := range map[string]string{"curl/8": "curl/8", "": "My-Company/App"} {
		req := g.request(http.MethodGet, "/v1/me", nil)
		req.Header["User-Agent"] = []string{sent}
		if sent == "" {
			req.Header["User-Agent"] = nil
		}
		g.do(req)
		if got := api.last(t).Header.Get("User-Agent"); got != want {
			t.Errorf("User-Agent is %q for a client that sent %q, want %q", got, sent, want)
		}
	}
}

func TestRoutesOfOneCredentialShareATokenAndScopesHaveTheirOwn(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	g := startGateway(t, `
	handle /a* {
		egress shop
	}
	handle /b* {
		egress shop
	}
	handle /c* {
		egress shop {
			scopes read
		}
	}
	handle /d* {
		reverse_proxy `+api.URL+` {
			transport egress {
				credential shop
				scopes     read
			}
		}
	}`, withGlobal(`egress {
		credential shop oauth2 `+api.URL+` {
			token_url `+endpoint.URL+`
			client_id gateway
			client_secret {env.EGRESS_TEST_SECRET}
			scopes read write
		}
	}`))
	tokenOf := make(map[string]string)
	for _, path := range []string{"/a", "/b", "/c", "/d"} {
		if resp, body := g.get(path); resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s", path, resp.StatusCode, body)
		}
		tokenOf[path] = api.last(t).Header.Get("Authorization")
	}
	if tokenOf["/a"] != tokenOf["/b"] || tokenOf["/c"] != tokenOf["/d"] || tokenOf["/a"] == tokenOf["/c"] {
		t.Errorf("tokens of the routes: %v", tokenOf)
	}
	if got := endpoint.count(); got != 2 {
		t.Errorf("%d token requests, want 2", got)
	}
}

func TestNoSecretAndNoTokenIsShown(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	routes := egress(api.URL, endpoint.URL, "verbose_logs")
	g := startGateway(t, routes)
	req := g.request(http.MethodPost, "/v1/x", strings.NewReader("body"))
	req.Header.Set("Authorization", "Bearer of-the-client")
	g.do(req)
	if !strings.Contains(g.Log(), "upstream roundtrip") {
		t.Error("the log is not at debug, the test shows nothing")
	}

	endpoint.set(func(e *tokens) {
		e.answer = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":"invalid_client","error_description":"`+testSecret+` is not `+testToken+`"}`)
		}
	})
	t.Setenv("EGRESS_TEST_SECRET", testSecret+"-rotated") // another secret: no token is left
	if err := g.load(routes); err != nil {
		t.Fatal(err)
	}
	resp, body := g.get("/v1/x")
	if resp.StatusCode != http.StatusBadGateway {
		t.Errorf("answered %d, want 502", resp.StatusCode)
	}

	for what, text := range map[string]string{"log": g.Log(), "adapted config": string(g.adapt(routes)), "answer": body + fmt.Sprint(resp.Header)} {
		for _, secret := range []string{testSecret, testToken} {
			if strings.Contains(text, secret) {
				t.Errorf("the %s shows %q:\n%s", what, secret, text)
			}
		}
	}
}

func TestLongBodiesStream(t *testing.T) {
	const size = 100 << 20
	endpoint := newTokens(t)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = io.CopyN(w, zeros{}, size)
			return
		}
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	}))
	defer api.Close()
	g := startGateway(t, egress(api.URL, endpoint.URL, ""))
	g.get("/warm-up")

	for name, transfer := range map[string]func() int64{
		"download": func() int64 {
			resp, err := plainClient.Get(g.URL + "/v1/export")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			n, _ := io.Copy(io.Discard, resp.Body)
			return n
		},
		"upload of known length": func() int64 {
			req := g.request(http.MethodPost, "/v1/import", io.LimitReader(zeros{}, size))
			req.ContentLength = size
			_, body := g.do(req)
			var n int64
			fmt.Sscan(body, &n)
			return n
		},
		"chunked upload": func() int64 {
			_, body := g.do(g.request(http.MethodPost, "/v1/import", io.LimitReader(zeros{}, size)))
			var n int64
			fmt.Sscan(body, &n)
			return n
		},
	} {
		t.Run(name, func(t *testing.T) {
			growth := heapGrowth(func() {
				if n := transfer(); n != size {
					t.Errorf("%d bytes arrived, want %d", n, size)
				}
			})
			if growth > 16<<20 {
				t.Errorf("the heap has grown by %d bytes, want less than 16 MiB", growth)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestServerSentEvents(t *testing.T) {
	endpoint := newTokens(t)
	seen := make(chan struct{})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: first\n\n")
		w.(http.Flusher).Flush()
		select {
		case <-seen: // the client has the first event before the second is sent
			_, _ = io.WriteString(w, "data: second\n\n")
		case <-time.After(10 * time.Second):
		}
	}))
	defer api.Close()
	g := startGateway(t, egress(api.URL, endpoint.URL, ""))
	resp, err := plainClient.Get(g.URL + "/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, len("data: first\n\n"))
	if _, err := io.ReadFull(resp.Body, first); err != nil {
		t.Fatal(err)
	}
	close(seen)
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Contains(rest, []byte("second")) {
		t.Errorf("got %q and then %q, error %v", first, rest, err)
	}
}

func TestResponseTrailers(t *testing.T) {
	endpoint := newTokens(t)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Checksum")
		_, _ = io.WriteString(w, "hello")
		w.Header().Set("X-Checksum", "42")
	}))
	defer api.Close()
	g := startGateway(t, egress(api.URL, endpoint.URL, ""))
	resp, _ := g.get("/v1/x")
	if got := resp.Trailer.Get("X-Checksum"); got != "42" {
		t.Errorf("trailer is %q, want 42", got)
	}
}

func TestHTTP2Upstreams(t *testing.T) {
	endpoint := newTokens(t)
	h2 := newRecorder(t, func(s *httptest.Server) {
		s.EnableHTTP2 = true
		s.StartTLS()
	})
	h2c := newRecorder(t, func(s *httptest.Server) {
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
	})
	g := startGateway(t, `
	handle /h2 {
		`+egress(h2.URL, endpoint.URL, "transport http {\n tls_trust_pool file "+trust(t, h2.Server)+"\n}")+`
	}
	handle /h2c {
		`+egress(h2c.URL, endpoint.URL, "transport http {\n versions h2c\n}")+`
	}`)
	for path, api := range map[string]*recorder{"/h2": h2, "/h2c": h2c} {
		resp, body := g.do(g.request(http.MethodPost, path, strings.NewReader("hello")))
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
			continue
		}
		got := api.last(t)
		if got.Proto != "HTTP/2.0" || got.Body != "hello" || !strings.HasPrefix(got.Header.Get("Authorization"), "Bearer "+testToken) {
			t.Errorf("%s: the API got %+v", path, got)
		}
	}
}

func TestWebSocket(t *testing.T) {
	endpoint := newTokens(t)
	var authorization string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		authorization = r.Header.Get("Authorization")
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Connection", "Upgrade")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.CopyN(conn, buffered, 5) // an echo, as far as a proxy can tell
	}))
	defer api.Close()
	g := startGateway(t, egress(api.URL, endpoint.URL, ""))
	req := g.request(http.MethodGet, "/v1/socket", nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "websocket")
	req.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
	req.Header.Set("Sec-WebSocket-Version", "13")
	resp, err := plainClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("answered %d, want 101", resp.StatusCode)
	}
	socket := resp.Body.(io.ReadWriteCloser)
	defer socket.Close()
	if _, err := io.WriteString(socket, "hello"); err != nil {
		t.Fatal(err)
	}
	echo := make([]byte, 5)
	if _, err := io.ReadFull(socket, echo); err != nil || string(echo) != "hello" {
		t.Errorf("got %q back, error %v", echo, err)
	}
	if !strings.HasPrefix(authorization, "Bearer "+testToken) {
		t.Error("the handshake carried no token")
	}
}

func TestScopesThatTheServerSentAreNotLogged(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	endpoint.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"`+testToken+`1","token_type":"bearer","expires_in":60,"scope":"`+testSecret+`"}`)
	}
	g := startGateway(t, egress(api.URL, endpoint.URL, "scopes read"))
	if resp, body := g.get("/v1/x"); resp.StatusCode != http.StatusOK {
		t.Fatalf("answered %d %s", resp.StatusCode, body)
	}
	log := g.Log()
	if !strings.Contains(log, "granted less than was asked for") || strings.Contains(log, testSecret) {
		t.Errorf("the log has no warning, or what the server sent:\n%s", log)
	}
}
