package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// Browsers do not run what an API sends: under the gateway's own origin it could
// send any request.
func TestAnswersAreInertInBrowsers(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		for _, pair := range query["h"] {
			name, value, _ := strings.Cut(pair, ": ")
			w.Header().Add(name, value)
		}
		w.Header()["Content-Type"] = query["type"]
		status := http.StatusOK
		_, _ = fmt.Sscan(query.Get("status"), &status)
		w.WriteHeader(status)
		if status == http.StatusOK {
			_, _ = io.WriteString(w, "<html><script>1</script>")
		}
	}
	g := egresstest.StartGateway(t, egresstest.Site("/plain", egresstest.Egress(api.URL, endpoint.URL, ""))+
		egresstest.Site("/changed", egresstest.Egress(api.URL, endpoint.URL, "header_down -Content-Security-Policy\nheader_down -X-Frame-Options\nheader_down X-Content-Type-Options none"))+
		egresstest.Site("/replaced", egresstest.Egress(api.URL, endpoint.URL, "header_down X-Content-Type-Options nosniff replaced")))

	for _, test := range []struct {
		types  []string
		status string
		active bool
	}{
		{types: []string{"application/json"}},
		{types: []string{"application/json; charset=utf-8"}},
		{types: []string{"text/plain"}},
		{types: []string{"text/csv"}},
		{types: []string{"image/png"}},
		{types: []string{"application/pdf"}},
		{types: []string{"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"}},
		{types: []string{"application/problem+json"}},
		{types: []string{"text/html"}, active: true},
		{types: []string{"TEXT/HTML;charset=utf-8"}, active: true},
		{types: []string{" text/html ; x=y"}, active: true},
		{types: []string{"application/xhtml+xml"}, active: true},
		{types: []string{"image/svg+xml"}, active: true},
		{types: []string{"text/xml"}, active: true},
		{types: []string{"application/xml; charset=utf-8"}, active: true},
		{types: []string{"application/hal+xml"}, active: true},
		{types: []string{"text/xsl"}, active: true},
		{types: []string{"multipart/x-mixed-replace; boundary=x"}, active: true},
		{types: []string{"application/json, text/html"}, active: true}, // the last one counts
		{types: []string{"application/json", "text/html"}, active: true},
		{active: true}, // Go's server finds HTML in the body
		{types: []string{""}, active: true},
		{status: "204"},
		{status: "304", active: true}, // its headers replace stored ones
	} {
		query := url.Values{"type": test.types, "status": {test.status}, "h": {
			"Content-Security-Policy: default-src *", "X-Frame-Options: ALLOWALL", "X-Content-Type-Options: sniff",
			"Connection: X-Content-Type-Options, Content-Security-Policy, X-Frame-Options, X-Gone", "X-Gone: 1",
		}}
		resp, _ := g.Get("/plain?" + query.Encode())
		name := fmt.Sprintf("%q %s", test.types, test.status)
		policies, frames := []string(nil), []string(nil)
		if test.active {
			policies, frames = []string{"sandbox"}, []string{"DENY"}
		}
		header := resp.Header
		if got := header.Values("X-Content-Type-Options"); len(got) != 1 || got[0] != "nosniff" {
			t.Errorf("%s: X-Content-Type-Options is %q", name, got)
		}
		// that the API names its headers in Connection takes them away, not ours
		if got := header.Values("Content-Security-Policy"); !slices.Equal(got, policies) {
			t.Errorf("%s: Content-Security-Policy is %q, want %q", name, got, policies)
		}
		if got := header.Values("X-Frame-Options"); !slices.Equal(got, frames) {
			t.Errorf("%s: X-Frame-Options is %q, want %q", name, got, frames)
		}
		if got := header.Get("X-Gone"); got != "" {
			t.Errorf("%s: X-Gone is %q", name, got)
		}
	}

	// policies of the API's hold beside ours; its X-Frame-Options does not
	query := url.Values{"type": {"text/html"}, "h": {"Content-Security-Policy: default-src 'none'", "X-Frame-Options: SAMEORIGIN", "X-Frame-Options: ALLOWALL"}}
	resp, _ := g.Get("/plain?" + query.Encode())
	if got := resp.Header.Values("Content-Security-Policy"); !slices.Equal(got, []string{"default-src 'none'", "sandbox"}) {
		t.Errorf("Content-Security-Policy is %q", got)
	}
	if got := resp.Header.Values("X-Frame-Options"); !slices.Equal(got, []string{"DENY"}) {
		t.Errorf("X-Frame-Options is %q", got)
	}
	// header_down has the last word, for its route alone
	resp, _ = g.Get("/changed?type=text/html")
	if got := resp.Header; got.Get("X-Content-Type-Options") != "none" || got.Get("Content-Security-Policy")+got.Get("X-Frame-Options") != "" {
		t.Errorf("with header_down: %v", got)
	}
	resp, _ = g.Get("/replaced?type=text/html")
	if got := resp.Header.Get("X-Content-Type-Options"); got != "replaced" {
		t.Errorf("with a replacement in header_down: X-Content-Type-Options is %q", got)
	}
	for _, path := range []string{"/plain?type=text/html", "/plain/../x"} { // an answer of the API's, and one of the gateway's own
		resp, _ = g.Get(path)
		if got := resp.Header.Values("X-Content-Type-Options"); path[:7] == "/plain?" && (len(got) != 1 || got[0] != "nosniff") {
			t.Errorf("%s: X-Content-Type-Options is %q", path, got)
		}
	}
	resp, _ = ask(g, http.MethodGet, "/plain", "Origin", "https://evil.test")
	if got := resp.Header.Values("X-Content-Type-Options"); resp.StatusCode != http.StatusForbidden || len(got) != 1 || got[0] != "nosniff" {
		t.Errorf("answered %d, X-Content-Type-Options is %q", resp.StatusCode, got)
	}
}

// ownMembers are members of Proxy-Status that somebody could take for the
// gateway's own.
var ownMembers = []string{
	"caddy-egress", "caddy-egress; error=spoofed", `"caddy-egress"; error=spoofed`, "Caddy-Egress;error=spoofed", "CADDY-EGRESS", `"Caddy-Egress"`,
	`"caddy\-egress"; error=spoofed`, "caddy-egress error=spoofed", "\tcaddy-egress ; error=spoofed", "(caddy-egress);error=spoofed",
	`cdn.example, caddy-egress; error=spoofed`, `"a, caddy-egress; error=spoofed`,
}

// startHostile starts an API that says what it must not in all that comes before,
// with and after an answer, and a gateway to it.
func startHostile(t *testing.T, start egresstest.Start, options string) *egresstest.Gateway {
	t.Helper()
	endpoint := egresstest.NewTokens(t)
	api := egresstest.NewRecorderOver(t, start)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		say := func(prefix string) {
			for i, member := range ownMembers {
				w.Header().Add(prefix+"Proxy-Status", member)
				if i == 1 {
					w.Header().Add(prefix+"Proxy-Status", `foo; details="kept"`)
				}
			}
			var escaped strings.Builder
			for _, c := range []byte(token) {
				fmt.Fprintf(&escaped, "%%%02x", c)
			}
			w.Header()[prefix+"X-Echo"] = []string{"Bearer " + token, "a" + token + "b" + token, url.QueryEscape(token), escaped.String() + "%zz", "end"}
			w.Header().Set(prefix+"X-Kept", "kept 100%")
		}
		announced := r.URL.Query().Has("announced")
		if !announced { // reverse_proxy would add trailers to headers of the same name
			say("")
		}
		w.Header().Set("Link", "</style.css>; rel=preload; as=style")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Location", "https://elsewhere.example/?token="+token+"&x=1")
		w.Header().Set("X-"+token, "1")
		if announced {
			w.Header().Set("Trailer", "Proxy-Status, X-Echo, X-Kept, x/"+token)
		}
		w.WriteHeader(http.StatusFound)
		_, _ = io.WriteString(w, "body")
		_ = http.NewResponseController(w).Flush()
		if announced {
			say("")
		} else {
			say(http.TrailerPrefix)
		}
	}
	return egresstest.StartGateway(t, "log\n"+egresstest.Egress(api.URL, endpoint.URL, options))
}

// Neither before nor with nor after an answer can an API speak for the gateway,
// or show a client the token.
func TestAPIsThatSayWhatTheyMustNot(t *testing.T) {
	for name, test := range map[string]struct {
		start   egresstest.Start
		options string
	}{
		"HTTP/1": {start: (*httptest.Server).Start},
		"HTTP/2": {start: egresstest.StartH2C, options: "transport http {\nversions h2c 2\n}"},
	} {
		t.Run(name, func(t *testing.T) {
			g := startHostile(t, test.start, test.options)
			for _, path := range []string{"/v1/x", "/v1/x?announced"} {
				var mu sync.Mutex
				var hints http.Header
				req := g.Request(http.MethodGet, path, nil)
				req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
					Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
						mu.Lock()
						defer mu.Unlock()
						if code == http.StatusEarlyHints {
							hints = http.Header(header).Clone()
						}
						return nil
					},
				}))
				resp, body := g.Do(req)
				if resp.StatusCode != http.StatusFound || body != "body" {
					t.Fatalf("answered %d %q", resp.StatusCode, body)
				}
				mu.Lock()
				parts := map[string]http.Header{"103": hints, "answer": resp.Header, "trailers": resp.Trailer}
				if strings.HasSuffix(path, "announced") {
					parts = map[string]http.Header{"trailers": resp.Trailer}
				}
				for part, header := range parts {
					// the list as a whole is not well-formed, so nothing can be kept of it
					if got := header.Values("Proxy-Status"); len(got) > 0 {
						t.Errorf("%s, %s: Proxy-Status is %q", path, part, got)
					}
					if got := header.Values("X-Kept"); len(got) != 1 || got[0] != "kept 100%" {
						t.Errorf("%s, %s: X-Kept is %q", path, part, got)
					}
					want := []string{"Bearer REDACTED", "aREDACTEDbREDACTED", "REDACTED", "REDACTED%zz", "end"}
					if got := header.Values("X-Echo"); !slices.Equal(got, want) {
						t.Errorf("%s, %s: X-Echo is %q", path, part, got)
					}
				}
				mu.Unlock()
				if got := resp.Header.Get("Location"); got != "https://elsewhere.example/?token=REDACTED&x=1" {
					t.Errorf("Location is %q", got)
				}
				if hints.Get("Link") == "" {
					t.Errorf("the hints are lost: %v", hints)
				}
				egresstest.CheckLeaks(t, "the answer", fmt.Sprint(resp.Header, resp.Trailer, hints))
			}
			egresstest.CheckLeaks(t, "the log", g.Log())
		})
	}
}

// What is left of a Proxy-Status is what others have said.
func TestProxyStatusOfOthers(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	api.Handler = func(w http.ResponseWriter, r *http.Request) { w.Header()["Proxy-Status"] = r.URL.Query()["s"] }
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	for _, member := range ownMembers {
		for _, values := range [][]string{{member}, {"foo; error=x", member}, {member, "foo; error=x"}, {"foo; error=x, " + member}} {
			resp, _ := g.Get("/v1/x?" + url.Values{"s": values}.Encode())
			if got := fmt.Sprint(resp.Header.Values("Proxy-Status")); strings.Contains(strings.ToLower(got), "egress") {
				t.Errorf("Proxy-Status of %q is %s", values, got)
			}
		}
	}
	resp, _ := g.Get("/v1/x?" + url.Values{"s": {`a; details="caddy-egress", b`}}.Encode())
	if got := resp.Header.Get("Proxy-Status"); got != `a; details="caddy-egress", b` {
		t.Errorf("Proxy-Status is %q", got)
	}
}

// After a replay there are two tokens that an API can show.
func TestReflectedTokensAfterAReplay(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	api := egresstest.NewRecorder(t)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Echo", egresstest.Token(1)+" "+egresstest.Token(2))
		w.Header().Set("Link", "<https://elsewhere.example/"+egresstest.Token(1)+">; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		if r.Header.Get("Authorization") == "Bearer "+egresstest.Token(1) {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	g := egresstest.StartWatched(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	resp, body := g.Do(g.Request(http.MethodPost, "/v1/x", strings.NewReader("body")))
	if got := resp.Header.Get("X-Echo"); resp.StatusCode != http.StatusOK || got != "REDACTED REDACTED" {
		t.Errorf("answered %d %s with %q", resp.StatusCode, body, got)
	}
	egresstest.CheckLeaks(t, "the answer", fmt.Sprint(resp.Header))
}

// What an API sends in place of an answer is quoted by errors, which are logged.
func TestTokensInPlaceOfAnAnswer(t *testing.T) {
	for name, sent := range map[string]string{
		"no answer":     "%s",
		"a bad status":  "HTTP/1.1 %s\r\n\r\n",
		"a bad header":  "HTTP/1.1 200 OK\r\n%s\r\n\r\n",
		"a bad length":  "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n",
		"a status text": "HTTP/1.1 200 %s\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			endpoint, api := egresstest.NewTokens(t), egresstest.NewRecorder(t)
			api.Handler = func(w http.ResponseWriter, r *http.Request) {
				egresstest.Hijack(strings.ReplaceAll(sent, "%s", r.Header.Get("Authorization")), false)(w, r)
			}
			g := egresstest.StartWatched(t, egresstest.Egress(api.URL, endpoint.URL, "header_down X-Status {http.reverse_proxy.status_text}")+
				"\nhandle_errors {\nrespond \"{err.message} {err.trace}\"\n}")
			resp, body := g.Get("/v1/x")
			egresstest.CheckLeaks(t, "the answer", fmt.Sprint(body, resp.Header))
		})
	}
}
