package egress_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// marker is in all that a failing token endpoint says beyond its error code.
const marker = "M4rker~of+the%token&endpoint"

// leaks are what no answer, no log and no config may show: beginnings that no
// encoding changes.
var leaks = []string{
	"S3cret", "T0ken", "M4rker",
	strings.TrimPrefix(tokenprovider.BasicAuth("gateway", tokenprovider.NewSecret(testSecret)), "Basic "),
}

func checkLeaks(t *testing.T, what, text string) {
	t.Helper()
	for _, leak := range leaks {
		if i := strings.Index(text, leak); i >= 0 {
			t.Errorf("%s shows %q: …%s…", what, leak, text[max(0, i-200):min(len(text), i+200)])
		}
	}
}

// service is an API with its token endpoint on one host.
type service struct {
	*httptest.Server
	tokens tokens
	api    recorder
}

func newService(t *testing.T) *service {
	t.Helper()
	s := &service{tokens: tokens{lifetime: 3600}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() { s.Server.Close() })
	return s
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/oauth/token") {
		s.tokens.ServeHTTP(w, r)
		return
	}
	s.api.ServeHTTP(w, r)
}

// newRefusingService returns a service that refuses connections until open is
// called: its address is bound, so nobody else can take it, but not listened at.
func newRefusingService(t *testing.T) (s *service, open func()) {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(socket), "socket")
	t.Cleanup(func() { file.Close() })
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	address, err := syscall.Getsockname(socket)
	if err != nil {
		t.Fatal(err)
	}
	s = &service{tokens: tokens{lifetime: 3600}}
	s.Server = &httptest.Server{URL: fmt.Sprintf("http://127.0.0.1:%d", address.(*syscall.SockaddrInet4).Port)}
	return s, func() {
		if err := syscall.Listen(socket, 128); err != nil {
			t.Fatal(err)
		}
		listener, err := net.FileListener(file)
		if err != nil {
			t.Fatal(err)
		}
		s.Server = &httptest.Server{Listener: listener, Config: &http.Server{Handler: s}}
		s.Server.Start()
		t.Cleanup(s.Server.Close)
	}
}

// answer changes what the token endpoint does; nil: it issues tokens.
func (s *service) answer(answer http.HandlerFunc) {
	s.tokens.set(func(e *tokens) { e.answer = answer })
}

// credential returns the definition of a credential of the service.
func (s *service) credential(name, provider, options string) string {
	own := map[string]string{
		"oauth2": "client_id gateway\n client_secret {env.EGRESS_TEST_SECRET}\n token_url " + s.URL + "/oauth/token",
		"understory": "client_id gateway\n client_secret {env.EGRESS_TEST_SECRET}\n scopes openid\n" +
			"token_url " + s.URL + "/oauth/token",
		"voucherify": "app_id gateway\n app_token {env.EGRESS_TEST_SECRET}\n scopes api",
	}
	return fmt.Sprintf("credential %s %s %s {\n%s\n%s\n}\n", name, provider, s.URL, own[provider], options)
}

// startWatched is startGateway with a look for leaks in the log at the end.
func startWatched(t *testing.T, routes string, options ...gatewayOption) *gateway {
	t.Helper()
	g := startGateway(t, "log\n"+routes, options...)
	t.Cleanup(func() { checkLeaks(t, "the log", g.Log()) })
	return g
}

// say answers a token request. The marker is in the header, too.
func say(status int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Server", marker)
		w.Header().Set("WWW-Authenticate", `Basic realm="`+marker+`"`)
		for n := 0; n < len(header); n += 2 {
			w.Header().Set(header[n], header[n+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// all returns all requests that have arrived.
func (r *recorder) all() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// issue answers a token request with a token and members beside it.
func issue(members string) http.HandlerFunc {
	return say(http.StatusOK, fmt.Sprintf(`{"access_token":"%s1"%s}`, testToken, members))
}

// hang never answers. A server sees its client leave only once the body is read.
func hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// hijack sends bytes in place of an answer and drops the connection.
func hijack(sent string, reset bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, sent)
		if reset {
			_ = conn.(*net.TCPConn).SetLinger(0)
		}
		conn.Close()
	}
}

// checkRefusal checks an answer that is the gateway's own.
func checkRefusal(t *testing.T, resp *http.Response, body string, status int) {
	t.Helper()
	key := map[int]string{http.StatusServiceUnavailable: "token_unavailable", http.StatusBadGateway: "credential_refused"}[status]
	if resp.StatusCode != status || !strings.Contains(body, `"`+key+`"`) {
		t.Errorf("answered %d %s, want %d %s", resp.StatusCode, body, status, key)
	}
	if !json.Valid([]byte(body)) || !strings.HasSuffix(resp.Header.Get("Content-Type"), "json") {
		t.Errorf("the answer is no JSON: %s %q", resp.Header.Get("Content-Type"), body)
	}
	if got := resp.Header.Get("Proxy-Status"); !strings.HasPrefix(got, "caddy-egress; error=") || !strings.HasSuffix(got, `; details="`+key+`"`) {
		t.Errorf("Proxy-Status is %q", got)
	}
	if got := resp.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control is %q, want no-store", got)
	}
	wait, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if unavailable := status == http.StatusServiceUnavailable; unavailable != (err == nil) || unavailable && (wait < 1 || wait > 300) {
		t.Errorf("Retry-After is %q", resp.Header.Get("Retry-After"))
	}
	if strings.Contains(body, "127.0.0.1") {
		t.Errorf("the answer shows the token endpoint's address: %s", body)
	}
	checkLeaks(t, "the answer", fmt.Sprint(body, resp.Header))
}

// fault is something a token endpoint does.
type fault struct {
	name     string
	provider string           // oauth2 if empty
	answer   http.HandlerFunc // nil: nothing listens
	status   int              // that clients get; 503 if 0
	wait     int              // seconds that the endpoint asks for
	logged   string           // what the log says of the credential
}

// tokenFaults are what token endpoints do that they should not, and some
// things that they may do. elsewhere is the URL of another host.
func tokenFaults(elsewhere string) []fault {
	const (
		refused = http.StatusBadGateway
		html    = "<html><body>" + marker + "</body></html>"
		oauth   = `{"error":"invalid_client","error_description":"` + marker + `","error_uri":"` + marker + `"}`
		token   = `"access_token":"` + testToken + `1"`
	)
	faults := []fault{
		{name: "refuses connections"},
		{name: "resets connections", answer: hijack("", true)},
		{name: "closes connections", answer: hijack("", false)},
		{name: "speaks no HTTP", answer: hijack(marker+"\r\n\r\n", false)},
		{name: "breaks off the answer", answer: hijack("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"+token, false)},
		{name: "hangs", answer: hang},
		{name: "hangs in the answer", answer: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "{"+token)
			_ = http.NewResponseController(w).Flush()
			hang(w, r)
		}},

		{name: "429 of Understory", provider: "understory", answer: say(429, ""), wait: 60},
		{name: "429 of Voucherify", provider: "voucherify", wait: 3, answer: func(w http.ResponseWriter, r *http.Request) {
			say(429, `{"code":429,"message":"`+marker+`"}`, "X-Rate-Limit-Retry", strconv.FormatInt(time.Now().Unix()+3, 10))(w, r)
		}},
		{name: "429, X-Ratelimit-Reset", answer: say(429, "", "X-Ratelimit-Reset", "3"), wait: 3},
		{name: "503, Retry-After a date", wait: 3, answer: func(w http.ResponseWriter, r *http.Request) {
			say(503, html, "Retry-After", time.Now().Add(3*time.Second).UTC().Format(http.TimeFormat))(w, r)
		}},
		{name: "503, Retry-After a day", answer: say(503, html, "Retry-After", "86400"), wait: 300},
		{name: "503, Retry-After nonsense", answer: say(503, html, "Retry-After", marker)},
		{name: "503, huge", answer: say(503, strings.Repeat(marker, 1<<16), "Retry-After", "3"), wait: 3},

		{name: "400 invalid_request", answer: say(400, `{"error":"invalid_request","error_description":"`+marker+`"}`), status: refused},
		{name: "400, code that is none", answer: say(400, `{"error":"`+testSecret+`","error_description":"`+marker+`"}`), status: refused},
		{name: "401 invalid_client", answer: say(401, oauth), status: refused},
		{name: "403 access_denied", answer: say(403, `{"error":"access_denied","error_description":"`+marker+`"}`), status: refused},
		{name: "400 of Voucherify", provider: "voucherify", answer: say(400, `{"code":400,"key":"invalid_scope","message":"`+marker+`"}`), status: refused},
		{name: "401 of Voucherify", provider: "voucherify", answer: say(401, `{"code":401,"message":"`+marker+`","key":"unauthorized"}`), status: refused},
		{name: "401 of Understory", provider: "understory", answer: say(401, `{"code":"UNAUTHORIZED","message":"`+marker+`"}`), status: refused},
		{name: "401 of Hydra", provider: "understory", answer: say(401, oauth), status: refused},
		{name: "401, empty", answer: say(401, "")},
		{name: "403, HTML", answer: say(403, html, "Content-Type", "text/html")},
		{name: "404, JSON of something else", answer: say(404, `{"detail":"`+marker+`"}`)},

		{name: "307 to another host", answer: say(307, html, "Location", elsewhere+"/oauth/token?"+marker), status: refused},
		{name: "302 to another host", answer: say(302, html, "Location", elsewhere+"/login?"+marker), status: refused},
		{name: "302 to nowhere", answer: say(302, "", "Location", "://"+marker)},

		{name: "200, HTML", answer: say(200, html, "Content-Type", "text/html")},
		{name: "200, empty", answer: say(200, "")},
		{name: "204", answer: say(204, "")},
		{name: "200, 10 MiB", answer: func(w http.ResponseWriter, r *http.Request) {
			say(200, "{"+token+`,"padding":"`)(w, r)
			_, _ = io.Copy(w, io.LimitReader(zeros{}, 10<<20))
		}},
		{name: "200, truncated", answer: say(200, "{"+token+`,"expires_in":36`)},
		{name: "200, an array", answer: say(200, "[{"+token+"}]")},
		{name: "200, two objects", answer: say(200, "{"+token+"}{"+token+"}")},
		{name: "200, no access_token", answer: say(200, `{"token_type":"bearer","expires_in":3600,"token":"`+marker+`"}`)},
		{name: "200, access_token null", answer: say(200, `{"access_token":null}`)},
		{name: "200, access_token empty", answer: say(200, `{"access_token":""}`)},
		{name: "200, access_token a number", answer: say(200, `{"access_token":17}`)},
		{name: "200, access_token of two lines", answer: say(200, `{"access_token":"`+testToken+`\r\nX-Injected: 1"}`)},
		{name: "200, token_type mac", answer: issue(`,"token_type":"mac"`)},
		{name: "200, token_type odd", answer: issue(`,"token_type":["bearer"]`)},
		{name: "200, invalid_client", answer: say(200, oauth), status: refused},
		{name: "200, temporarily_unavailable", answer: say(200, `{"error":"temporarily_unavailable","error_description":"`+marker+`"}`)},
		{name: "200, unknown error", answer: say(200, `{"error":"out_of_luck","error_description":"`+marker+`"}`)},

		{name: "token_type missing", answer: issue(`,"expires_in":3600`), status: 200},
		{name: "token_type null", answer: issue(`,"expires_in":3600,"token_type":null`), status: 200},
		{name: "token_type BEARER", answer: issue(`,"expires_in":3600,"token_type":"BEARER"`), status: 200},
		{name: "expires_in missing", answer: issue(``), status: 200, logged: "tells no lifetime"},
		{name: "expires_in null", answer: issue(`,"expires_in":null`), status: 200, logged: "tells no lifetime"},
		{name: "expires_in a string", answer: issue(`,"expires_in":"3600"`), status: 200},
		{name: "expires_in a fraction", answer: issue(`,"expires_in":3600.5`), status: 200},
		{name: "expires_in a word", answer: issue(`,"expires_in":"` + marker + `"`), status: 200, logged: "tells no lifetime"},
		{name: "expires_in 0", answer: issue(`,"expires_in":0`), status: 200, logged: "tells no lifetime"},
		{name: "expires_in negative", answer: issue(`,"expires_in":-3600`), status: 200, logged: "tells no lifetime"},
		{name: "expires_in huge", answer: issue(`,"expires_in":1e999`), status: 200, logged: `"lifetime":86400`},
		{name: "unknown members", answer: issue(`,"expires_in":3600,"refresh_token":"` + marker + `","x":{"y":[1]}`), status: 200},
	}
	for _, status := range []int{408, 409, 425, 429, 500, 502, 503} {
		wait := 0
		if status == 429 || status == 503 {
			wait = 3 // the others do not decide that
		}
		faults = append(faults,
			fault{name: fmt.Sprint(status), answer: say(status, oauth)},
			fault{name: fmt.Sprint(status, ", HTML"), answer: say(status, html)},
			fault{name: fmt.Sprint(status, ", Retry-After"), answer: say(status, oauth, "Retry-After", "3"), wait: wait},
		)
	}
	for n := range faults {
		faults[n].provider = cmp.Or(faults[n].provider, "oauth2")
		faults[n].status = cmp.Or(faults[n].status, http.StatusServiceUnavailable)
		if faults[n].status == refused {
			faults[n].logged = "refuses the credential"
		}
	}
	return faults
}

// atMost returns how many token requests there may be after so long.
func (f *fault) atMost(after time.Duration) int {
	switch {
	case f.status == http.StatusOK:
		return 1
	case f.status == http.StatusBadGateway: // 4 to 5 s, then longer
		return 1 + int(after/(4*time.Second))
	case f.wait > 0:
		// a date and Unix seconds are told in whole seconds
		return 1 + int(after/(time.Duration(f.wait-1)*time.Second))
	}
	return 3 + int(after/(1600*time.Millisecond)) // 0.4, 0.8, 1.6, 3.2 s
}

func TestTokenEndpointFaults(t *testing.T) {
	elsewhere := newRecorder(t, (*httptest.Server).Start)
	faults := tokenFaults(elsewhere.URL)
	services := make([]*service, len(faults))
	admin := freeAddr(t)
	var open func()
	global, routes := "admin "+admin+"\n egress {\n", ""
	for n, f := range faults {
		if f.answer == nil {
			services[n], open = newRefusingService(t)
		} else {
			services[n] = newService(t)
			services[n].answer(f.answer)
		}
		name := fmt.Sprint("c", n)
		timeout := "10s" // whatever a busy machine needs
		if strings.HasPrefix(f.name, "hangs") {
			timeout = "300ms"
		}
		global += services[n].credential(name, f.provider, "token_timeout "+timeout)
		routes += fmt.Sprintf("handle_path /%s/* {\n egress %s {\n verbose_logs\n }\n}\n", name, name)
	}
	loaded := time.Now()
	g := startWatched(t, routes, withGlobal(global+"}"))

	for n, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			s := services[n]
			path := fmt.Sprintf("/c%d/v1/x", n)
			for range 3 {
				resp, body := g.get(path)
				if f.status == http.StatusOK {
					if resp.StatusCode != http.StatusOK || resp.Header.Get("Proxy-Status") != "" {
						t.Errorf("answered %d %s, want 200 of the API", resp.StatusCode, body)
					} else if got := s.api.last(t).Header["Authorization"]; len(got) != 1 || got[0] != "Bearer "+nth(1) {
						t.Errorf("Authorization is %q", got)
					}
					continue
				}
				checkRefusal(t, resp, body, f.status)
				after := int(time.Since(loaded).Seconds()) + 1
				if got, _ := strconv.Atoi(resp.Header.Get("Retry-After")); got > max(f.wait, 4) || got < f.wait-1-after {
					t.Errorf("Retry-After is %d, the endpoint asked for %d", got, f.wait)
				}
				if s.api.count() != 0 {
					t.Error("a request has gone out without a token")
				}
			}
			if got, most := s.tokens.count(), f.atMost(time.Since(loaded)); got > most {
				t.Errorf("%d token requests, want at most %d", got, most)
			}
			if !slices.ContainsFunc(strings.Split(g.Log(), "\n"), func(line string) bool {
				return strings.Contains(line, fmt.Sprintf(`"credential":"c%d"`, n)) && strings.Contains(line, f.logged)
			}) {
				t.Errorf("the log does not mention the credential with %q", f.logged)
			}
		})
	}
	if elsewhere.count() != 0 {
		t.Error("a redirect was followed")
	}

	t.Run("admin API", func(t *testing.T) {
		for _, path := range []string{"/config/", "/reverse_proxy/upstreams"} {
			resp, err := plainClient.Get("http://" + admin + path)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			config, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %d %s", path, resp.StatusCode, config)
			}
			if path == "/config/" && !strings.Contains(string(config), "{env.EGRESS_TEST_SECRET}") {
				t.Error("the config has no secret, the test shows nothing")
			}
			checkLeaks(t, path+" of the admin API", string(config))
		}
	})

	// the faults end, and whoever was refused gets another chance by a reload
	open()
	for _, s := range services {
		s.answer(nil)
	}
	if err := g.load("log\n" + routes); err != nil {
		t.Fatal(err)
	}
	for n, f := range faults {
		if f.wait > 5 {
			continue // not before that
		}
		t.Run("after "+f.name, func(t *testing.T) {
			s := services[n]
			eventually(t, "an answer of the API", func() bool {
				resp, body := g.get(fmt.Sprintf("/c%d/v1/x", n))
				checkLeaks(t, "the answer", fmt.Sprint(body, resp.Header))
				return resp.StatusCode == http.StatusOK
			})
			for _, got := range s.api.all() {
				if values := got.Header["Authorization"]; len(values) != 1 || !strings.HasPrefix(values[0], "Bearer "+testToken) {
					t.Errorf("Authorization was %q", values)
				}
			}
			if got, most := s.tokens.count(), f.atMost(time.Since(loaded))+1; got > most {
				t.Errorf("%d token requests, want at most %d", got, most)
			}
		})
	}
}

func TestAPIFaults(t *testing.T) {
	api401 := say(401, `{"code":"UNAUTHORIZED","message":"of the API"}`)
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc // of the API; nil: nothing listens
		status []int            // that clients get, one after the other
		tokens int              // token requests at most
	}{
		{"down", nil, []int{502, 502, 502}, 1},
		{"breaks off", hijack("", true), []int{502, 502, 502}, 1},
		{"slow", func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(time.Second): // longer than token_timeout
			case <-r.Context().Done():
			}
		}, []int{200, 200}, 1},
		{"500", say(500, "of the API"), []int{500, 500, 500}, 1},
		{"503", say(503, "of the API", "Retry-After", "77"), []int{503, 503, 503}, 1},
		{"429", say(429, "of the API", "Retry-After", "77"), []int{429, 429, 429}, 1},
		{"403", say(403, "of the API"), []int{403, 403, 403}, 1},
		{"401 always", api401, []int{401, 401, 401, 401, 401, 401, 401, 401}, 3},
		{"401 once", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "Bearer "+nth(1) {
				api401(w, r)
			}
		}, []int{200, 200, 200}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			api, faulty, other := newRecorder(t, (*httptest.Server).Start), newTokens(t), newTokens(t)
			api.handler = func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/faulty") {
					c.answer(w, r)
				}
			}
			if c.answer == nil {
				api.Close()
			}
			g := startGateway(t, "log\n handle /faulty* {\n"+egress(api.URL, faulty.URL, "token_timeout 900ms\n verbose_logs")+
				"\n}\n handle {\n"+egress(api.URL, other.URL, "")+"\n}")
			for n, want := range c.status {
				resp, body := g.get("/faulty")
				if resp.StatusCode != want {
					t.Errorf("answer %d is %d %s, want %d", n+1, resp.StatusCode, body, want)
				}
				if resp.Header.Get("Proxy-Status") != "" || want >= 400 && c.answer != nil && want != 502 && !strings.Contains(body, "of the API") {
					t.Errorf("answer %d is not the API's own: %s %v", n+1, body, resp.Header)
				}
				if got := resp.Header.Get("Retry-After"); got != "" && got != "77" {
					t.Errorf("Retry-After is %q", got)
				}
				// another credential is none the wiser
				if resp, body := g.get("/other"); c.answer != nil && resp.StatusCode != http.StatusOK {
					t.Errorf("with the other credential: %d %s, want 200", resp.StatusCode, body)
				}
			}
			if got := faulty.count(); got > c.tokens {
				t.Errorf("%d token requests, want at most %d", got, c.tokens)
			}
			if got := other.count(); got != 1 {
				t.Errorf("%d token requests of the other credential, want 1", got)
			}
			for _, leak := range leaks[:2] {
				if strings.Contains(g.Log(), leak) {
					t.Errorf("the log shows %q", leak)
				}
			}
		})
	}
}

// waiting returns how many requests wait for a token.
func waiting() int {
	stacks := make([]byte, 1<<20)
	for {
		n := runtime.Stack(stacks, true)
		if n < len(stacks) {
			return strings.Count(string(stacks[:n]), "tokensource.(*Source).join(")
		}
		stacks = make([]byte, 2*len(stacks))
	}
}

func TestClientsThatLeave(t *testing.T) {
	const clients = 20
	for _, warm := range []bool{false, true} {
		t.Run(fmt.Sprintf("warm=%v", warm), func(t *testing.T) {
			api, endpoint := newGuarded(t, (*httptest.Server).Start), newTokens(t)
			gate := make(chan struct{})
			valid := 1
			held := func(w http.ResponseWriter, r *http.Request) {
				select {
				case <-gate:
					fmt.Fprintf(w, `{"access_token":"%s","expires_in":3600}`, nth(valid))
				case <-t.Context().Done():
				}
			}
			if !warm {
				endpoint.answer = held
			}
			api.accept(nth(valid))
			g := startWatched(t, egress(api.URL, endpoint.URL, ""))
			if warm { // each gets a 401 first, and one of those who leave asks for the token
				g.get("/v1/warm-up")
				valid = 2
				api.accept(nth(valid))
				endpoint.set(func(e *tokens) { e.answer = held })
			}

			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			_, want := body(0)
			var left, served atomic.Int32
			var wg sync.WaitGroup
			for n := range clients {
				wg.Go(func() {
					req := g.request(http.MethodGet, "/v1/x", nil)
					if n < clients/2 {
						req = req.WithContext(ctx)
					}
					resp, err := plainClient.Do(req)
					if err != nil {
						left.Add(1)
						return
					}
					defer resp.Body.Close()
					if got, _ := io.ReadAll(resp.Body); resp.StatusCode == http.StatusOK && string(got) == want {
						served.Add(1)
					}
				})
				eventually(t, "the request to wait for a token", func() bool { return waiting() == n+1 })
			}
			leave()
			eventually(t, "those who left to be gone", func() bool { return waiting() == clients/2 })
			close(gate)
			wg.Wait()
			if left.Load() != clients/2 || served.Load() != clients/2 {
				t.Errorf("%d have left and %d were served, want half of %d each", left.Load(), served.Load(), clients)
			}
			if got := endpoint.count(); got != valid {
				t.Errorf("%d token requests, want %d", got, valid)
			}
			if got := waiting(); got != 0 {
				t.Errorf("%d requests wait still", got)
			}
		})
	}
}

// secretFile is a client's secret in a file, and the one that the server knows.
type secretFile struct {
	t     *testing.T
	path  string
	valid atomic.Pointer[string]
}

func newSecretFile(t *testing.T, secret string) *secretFile {
	t.Helper()
	f := &secretFile{t: t, path: filepath.Join(t.TempDir(), "client_secret")}
	f.write(secret)
	f.accept(secret)
	return f
}

// write replaces the file at once, as secret stores do.
func (f *secretFile) write(secret string) {
	f.t.Helper()
	if err := os.WriteFile(f.path+".new", []byte(secret), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.path+".new", f.path); err != nil {
		f.t.Fatal(err)
	}
}

func (f *secretFile) accept(secret string) { f.valid.Store(&secret) }

// endpoint issues tokens of so many seconds to whoever knows the secret.
func (f *secretFile) endpoint(lifetime int) *tokens {
	e := newTokens(f.t)
	e.answer = func(w http.ResponseWriter, r *http.Request) {
		if want := tokenprovider.BasicAuth("gateway", tokenprovider.NewSecret(*f.valid.Load())); r.Header.Get("Authorization") != want {
			say(401, `{"error":"invalid_client","error_description":"`+marker+`"}`)(w, r)
			return
		}
		issue(fmt.Sprintf(`,"expires_in":%d`, lifetime))(w, r)
	}
	return e
}

// egress returns the directive with the secret of the file.
func (f *secretFile) egress(api *recorder, e *tokens) string {
	return strings.ReplaceAll(egress(api.URL, e.URL, ""), "{env.EGRESS_TEST_SECRET}", "{file."+f.path+"}")
}

func TestRotatedSecretIsUsedAtTheNextTokenRequest(t *testing.T) {
	f := newSecretFile(t, testSecret)
	api, endpoint := newRecorder(t, (*httptest.Server).Start), f.endpoint(2)
	g := startWatched(t, f.egress(api, endpoint))
	g.get("/v1/warm-up")
	before := endpoint.count()
	f.write(testSecret + "-rotated\n") // a newline at the end is no part of it
	f.accept(testSecret + "-rotated")
	eventually(t, "two more tokens", func() bool {
		if resp, body := g.get("/v1/x"); resp.StatusCode != http.StatusOK {
			t.Fatalf("answered %d %s, want 200 all the time", resp.StatusCode, body)
		}
		return endpoint.count() >= before+2
	})
}

func TestEmptiedSecretFile(t *testing.T) {
	f := newSecretFile(t, testSecret)
	api, endpoint := newRecorder(t, (*httptest.Server).Start), f.endpoint(1)
	g := startWatched(t, f.egress(api, endpoint))
	g.get("/v1/warm-up")
	f.write("")
	var refused *http.Response
	var body string
	eventually(t, "the token to expire", func() bool {
		refused, body = g.get("/v1/x")
		return refused.StatusCode != http.StatusOK
	})
	checkRefusal(t, refused, body, http.StatusServiceUnavailable)
	if !strings.Contains(body, "cannot be read") {
		t.Errorf("the answer %s does not say why", body)
	}
	before, sent := endpoint.count(), api.count()
	for range 10 {
		resp, body := g.get("/v1/x")
		checkRefusal(t, resp, body, http.StatusServiceUnavailable)
	}
	if endpoint.count() != before || api.count() != sent {
		t.Error("a request has gone out without a secret or without a token")
	}
	f.write(testSecret)
	eventually(t, "an answer of the API", func() bool {
		resp, _ := g.get("/v1/x")
		return resp.StatusCode == http.StatusOK
	})
}

func TestChangedSecretIsTriedAtOnce(t *testing.T) {
	f := newSecretFile(t, testSecret+"-wrong")
	f.accept(testSecret)
	api, endpoint := newRecorder(t, (*httptest.Server).Start), f.endpoint(3600)
	g := startWatched(t, f.egress(api, endpoint))
	resp, body := g.get("/v1/x")
	checkRefusal(t, resp, body, http.StatusBadGateway)
	f.write(testSecret)
	start := time.Now()
	eventually(t, "an answer of the API", func() bool {
		resp, _ := g.get("/v1/x")
		return resp.StatusCode == http.StatusOK
	})
	// by itself the next try comes 4 to 5 s after the refusal
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("the changed secret was used after %v, want after a second", took)
	}
	if got := endpoint.count(); got != 2 {
		t.Errorf("%d token requests, want 2", got)
	}
}

// sample is how one request was answered.
type sample struct {
	sent time.Time
	took time.Duration // until all of the answer was there
	resp *http.Response
	body string
}

func (s sample) answered() time.Time { return s.sent.Add(s.took) }

// sustain sends 100 requests a second in the background, until the function it
// returns is called, which returns how they were answered, in the order sent.
func (g *gateway) sustain() (stop func() []sample) {
	done := make(chan struct{})
	var mu sync.Mutex
	var samples []sample
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-done:
				return
			}
			wg.Go(func() {
				start := time.Now()
				resp, err := plainClient.Get(g.URL + "/v1/x")
				if err != nil {
					g.t.Error(err)
					return
				}
				defer resp.Body.Close()
				body, _ := io.ReadAll(resp.Body)
				mu.Lock()
				defer mu.Unlock()
				samples = append(samples, sample{start, time.Since(start), resp, string(body)})
			})
		}
	})
	return sync.OnceValue(func() []sample {
		close(done)
		wg.Wait()
		slices.SortFunc(samples, func(a, b sample) int { return a.sent.Compare(b.sent) })
		return samples
	})
}

// checkPromptness checks that the gateway has let nobody wait. A busy machine
// may have held up a few.
func checkPromptness(t *testing.T, what string, samples []sample) {
	t.Helper()
	if len(samples) == 0 {
		t.Fatalf("%s: no requests", what)
	}
	took := make([]time.Duration, len(samples))
	for n, s := range samples {
		took[n] = s.took
	}
	slices.Sort(took)
	p99, most := took[len(took)*99/100], took[len(took)-1]
	t.Logf("%s: %d requests, 99%% within %v, all within %v", what, len(took), p99, most)
	if p99 > 50*time.Millisecond || most > 500*time.Millisecond {
		t.Errorf("%s: 99%% answered within %v and all within %v, want 50ms and 500ms", what, p99, most)
	}
}

// pass waits for d to pass.
func pass(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

func TestWrongSecretFor20Seconds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 20 s")
	}
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	endpoint.answer = say(401, `{"error":"invalid_client","error_description":"`+marker+`"}`)
	g := startWatched(t, egress(api.URL, endpoint.URL, ""))
	stop := g.sustain()
	pass(t, 20*time.Second)
	samples := stop()

	for _, s := range samples {
		checkRefusal(t, s.resp, s.body, http.StatusBadGateway)
		if t.Failed() {
			break
		}
	}
	checkPromptness(t, "wrong secret", samples[1:])
	t.Logf("%d token requests", endpoint.count())
	if got := endpoint.count(); got > 4 {
		t.Errorf("%d token requests, want at most 4", got)
	}
	if api.count() != 0 {
		t.Error("a request has gone out without a token")
	}
}

func TestTokenEndpointDownFor20Seconds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 25 s")
	}
	const lifetime = 8 * time.Second
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	endpoint.lifetime = int(lifetime / time.Second)
	loading := time.Now()
	g := startWatched(t, egress(api.URL, endpoint.URL, ""))
	g.get("/v1/warm-up")
	issued := time.Now()
	endpoint.set(func(e *tokens) { e.answer = hijack("", true) })
	before := endpoint.count()

	stop := g.sustain()
	defer stop()
	pass(t, 20*time.Second)
	attempts := endpoint.count() - before
	up := time.Now()
	endpoint.set(func(e *tokens) { e.answer = nil })
	eventually(t, "an answer of the API", func() bool {
		resp, _ := g.get("/v1/x")
		return resp.StatusCode == http.StatusOK
	})
	back := time.Since(up)
	samples := stop()

	var starved []sample
	for _, s := range samples {
		switch {
		case s.answered().Before(loading.Add(lifetime)) && s.resp.StatusCode != http.StatusOK:
			t.Fatalf("answered %d %s while the token lived", s.resp.StatusCode, s.body)
		case s.sent.After(issued.Add(lifetime)) && s.answered().Before(up):
			starved = append(starved, s)
			checkRefusal(t, s.resp, s.body, http.StatusServiceUnavailable)
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	checkPromptness(t, "token endpoint down", starved)
	t.Logf("%d token requests in the outage, back after %v", attempts, back)
	if attempts > 12 {
		t.Errorf("%d token requests in the outage, want at most 12", attempts)
	}
	if back > 5*time.Second {
		t.Errorf("back after %v, want within 5s", back)
	}
}

func TestTokenEndpointHangsFor12Seconds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 15 s")
	}
	const (
		lifetime  = 4 * time.Second
		timeout   = 3 * time.Second
		tolerance = 500 * time.Millisecond // of a busy machine
	)
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	endpoint.lifetime = int(lifetime / time.Second)
	loading := time.Now()
	g := startWatched(t, egress(api.URL, endpoint.URL, "token_timeout "+timeout.String()))
	g.get("/v1/warm-up")
	endpoint.set(func(e *tokens) { e.answer = hang })
	before := endpoint.count()

	stop := g.sustain()
	defer stop()
	pass(t, 12*time.Second)
	attempts := endpoint.count() - before
	endpoint.set(func(e *tokens) { e.answer = nil })
	eventually(t, "an answer of the API", func() bool {
		resp, _ := g.get("/v1/x")
		return resp.StatusCode == http.StatusOK
	})
	samples := stop()

	var failed time.Time // a failure is remembered since
	var first, later time.Duration
	for _, s := range samples {
		if s.resp.StatusCode == http.StatusOK {
			continue
		}
		checkRefusal(t, s.resp, s.body, http.StatusServiceUnavailable)
		if s.answered().Before(loading.Add(lifetime)) || t.Failed() {
			t.Fatalf("answered %d %s, %v after the start", s.resp.StatusCode, s.body, s.answered().Sub(loading))
		}
		if failed.IsZero() || s.answered().Before(failed) {
			failed = s.answered()
		}
	}
	for _, s := range samples {
		if s.sent.After(failed) {
			later = max(later, s.took)
		} else {
			first = max(first, s.took)
		}
	}
	t.Logf("token endpoint hangs: all answered within %v, and within %v once a failure is remembered; %d token requests", first, later, attempts)
	if failed.IsZero() || first > timeout+tolerance || later > time.Second+tolerance {
		t.Errorf("answered within %v and later within %v, want %v and 1s", first, later, timeout)
	}
	if attempts > 12 {
		t.Errorf("%d token requests, want at most 12", attempts)
	}
}

func TestSameTokenAgainAndAgain(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 6 s")
	}
	// the server has one token for everybody until that expires, so that early
	// refreshes bring the same one with less and less time left
	const lifetime = 3 * time.Second
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	start := time.Now()
	endpoint.answer = func(w http.ResponseWriter, r *http.Request) {
		age := time.Since(start)
		fmt.Fprintf(w, `{"access_token":"%s","expires_in":%f}`, nth(int(age/lifetime)), (lifetime - age%lifetime).Seconds())
	}
	g := startWatched(t, egress(api.URL, endpoint.URL, ""))
	stop := g.sustain()
	pass(t, 6*time.Second)
	for _, s := range stop() {
		if s.resp.StatusCode != http.StatusOK {
			t.Fatalf("answered %d %s, want 200", s.resp.StatusCode, s.body)
		}
	}
	got, most := endpoint.count(), 5+int(time.Since(start).Seconds())+1
	t.Logf("%d token requests", got)
	if got > most {
		t.Errorf("%d token requests in %v, want at most %d", got, time.Since(start), most)
	}
}

func TestTokensThatExpireAtOnce(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	endpoint.answer = issue(`,"expires_in":0.001`)
	start := time.Now()
	g := startWatched(t, egress(api.URL, endpoint.URL, "token_timeout 300ms"))
	// 5 token requests at once, then one a second: too few for some
	eventually(t, "a request that finds the budget used up", func() bool {
		resp, body := g.get("/v1/x")
		if resp.StatusCode == http.StatusOK {
			return false
		}
		checkRefusal(t, resp, body, http.StatusServiceUnavailable)
		return strings.Contains(body, "budget")
	})
	if got, most := endpoint.count(), 5+int(time.Since(start).Seconds())+1; got > most {
		t.Errorf("%d token requests in %v, want at most %d", got, time.Since(start), most)
	}
	eventually(t, "the budget to be filled up", func() bool {
		resp, _ := g.get("/v1/x")
		return resp.StatusCode == http.StatusOK
	})
}
