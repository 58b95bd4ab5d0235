package e2e_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// status is what the status page says in JSON, as far as tests look at it.
type status struct {
	Version, Summary, Health string
	CaddyVersion             string `json:"caddy_version"`
	Time, Started            time.Time
	Problems                 []struct {
		Health, Subject, Problem, Error, Effect, Advice string
		Commands                                        []string
		Since                                           time.Time
		Attempts                                        int
		Next                                            time.Time `json:"next_attempt"`
	}
	ProblemsLeft int `json:"problems_left_out"`
	Credentials  []struct {
		TenantsOf string `json:"tenants_of"`
		Requests  statusRequests
		Total     int
		LeftOut   int `json:"left_out"`
		Shown     []struct {
			Credential, State, Health string
			Expires                   time.Time
			Next                      time.Time `json:"next_attempt"`
			SecretInUse               int       `json:"secret_in_use"`
			SecretValues              int       `json:"secret_values"`
			Requests                  statusRequests
		}
	}
	Callers []struct {
		Caller   string
		Requests statusRequests
	}
	Store *struct{ Storage, State, Error string }
}

type statusRequests struct {
	Total, Forwarded int64
	Others           map[string]int64
}

// statusAt returns what the status page at path says, as JSON and as HTML. Both are
// searched for leaks.
func statusAt(t *testing.T, g *egresstest.Gateway, path string) (s status, page string) {
	t.Helper()
	resp, page := g.GetAfterReload(path)
	egresstest.CheckLeaks(t, "the status page", page)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/html; charset=utf-8" || !strings.HasSuffix(page, "</html>\n") {
		t.Fatalf("the status page: %d %v\n%s", resp.StatusCode, resp.Header, page)
	}
	resp, body := g.Get(path + "?format=json")
	egresstest.CheckLeaks(t, "the status", body)
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("the status: %d %v\n%s", resp.StatusCode, resp.Header, body)
	}
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(body, "client_id") {
		t.Errorf("the status has a client identifier: %s", body)
	}
	return s, page
}

// text returns what a reader sees of a page, with one space between words.
func text(page string) string {
	page = regexp.MustCompile(`(?s)<(script|style|title|noscript).*?</(script|style|title|noscript)>`).ReplaceAllString(page, " ")
	page = regexp.MustCompile(`<[^>]*>`).ReplaceAllString(page, " ")
	return strings.Join(strings.Fields(page), " ")
}

// checkReads fails the test unless a reader of the page sees all of want.
func checkReads(t *testing.T, page string, want ...string) {
	t.Helper()
	for _, part := range want {
		if !strings.Contains(text(page), part) {
			t.Errorf("the page does not say %q:\n%s", part, text(page))
		}
	}
}

// statusOption is a global option with a credential of each client, named as it is.
func statusOption(api, tokenURL string, names ...string) string {
	option := ""
	for _, name := range names {
		option += fmt.Sprintf("credential %s oauth2 %s {\ntoken_url %s\nclient_id id-of-%[1]s\nclient_secret {env.EGRESS_TEST_SECRET}\n}\n", name, api, tokenURL)
	}
	return "egress {\n" + option + "}\n"
}

func TestStatusPageGuards(t *testing.T) {
	const origin, site, local = "Origin: ", "Sec-Fetch-Site: ", "127.0.0.1"
	global := "egress {\nclients 127.0.0.0/30\norigins http://app.test\n}\n"
	g := egresstest.StartWatched(t, `
		egress_status /default
		egress_status /any {
			clients any
			hosts any
		}
		egress_status /other {
			clients 10.0.0.0/8
			hosts status.example.com
		}
		egress_status /pages {
			origins http://app.test
		}`, egresstest.WithGlobal(global))
	for _, test := range []struct {
		name, from, method, path, host, header string
		status                                 int
		key                                    string
	}{
		{"this machine", local, "GET", "/default", "localhost", "", 200, ""},
		{"as JSON", local, "GET", "/default?format=json", "localhost", "", 200, ""},
		{"another query", local, "GET", "/default?format=html&x=%2", "localhost", "", 200, ""},
		{"HEAD", local, "HEAD", "/default", "localhost", "", 200, ""},
		{"a peer that the global option has not", "127.0.0.9", "GET", "/default", "localhost", "", 403, "client_not_allowed"},
		{"as JSON, too", "127.0.0.9", "GET", "/default?format=json", "localhost", "", 403, "client_not_allowed"},
		{"any peer", "127.0.0.9", "GET", "/any", "rebound.example", "", 200, ""},
		{"a peer that is not listed", local, "GET", "/other", "status.example.com", "", 403, "client_not_allowed"},
		{"a peer that says that it is another", local, "GET", "/other", "status.example.com", "X-Forwarded-For: 10.0.0.1", 403, "client_not_allowed"},
		{"a rebound name", local, "GET", "/default", "rebound.example", "", 403, "host_not_allowed"},
		{"another page", local, "GET", "/default", "localhost", origin + "http://evil.test", 403, "origin_not_allowed"},
		{"an opaque origin", local, "GET", "/default", "localhost", origin + "null", 403, "origin_not_allowed"},
		{"an image in another page", local, "GET", "/default", "localhost", site + "cross-site", 403, "origin_not_allowed"},
		{"a page of a sibling", local, "GET", "/default", "localhost", site + "same-site", 403, "origin_not_allowed"},
		{"the address bar", local, "GET", "/default", "localhost", site + "none", 200, ""},
		{"its own script", local, "GET", "/default", "localhost", site + "same-origin", 200, ""},
		{"a page that the global option has for the API", local, "GET", "/default", "localhost", origin + "http://app.test", 403, "origin_not_allowed"},
		{"a page that is listed", local, "GET", "/pages", "localhost", origin + "http://app.test", 200, ""},
		{"the preflight of one", local, "OPTIONS", "/pages", "localhost", origin + "http://app.test\r\nAccess-Control-Request-Method: GET", 204, "preflight"},
		{"the preflight of another", local, "OPTIONS", "/default", "localhost", origin + "http://app.test\r\nAccess-Control-Request-Method: GET", 403, "origin_not_allowed"},
		{"POST", local, "POST", "/default", "localhost", "Content-Length: 0", 405, "method_not_allowed"},
		{"DELETE", local, "DELETE", "/default", "localhost", "", 405, "method_not_allowed"},
		{"OPTIONS", local, "OPTIONS", "/default", "localhost", "", 405, "method_not_allowed"},
		{"TRACE", local, "TRACE", "/default", "localhost", "", 405, "method_not_allowed"},
		{"POST of another peer", "127.0.0.9", "POST", "/default", "localhost", "Content-Length: 0", 403, "client_not_allowed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			lines := test.method + " " + test.path + " HTTP/1.1\r\nHost: " + test.host + "\r\nConnection: close\r\n"
			if test.header != "" {
				lines += test.header + "\r\n"
			}
			resp, body := egresstest.NewWire(t, egresstest.From(test.from, g.Addr)).Send(lines + "\r\n")
			if resp.StatusCode != test.status || !strings.HasPrefix(resp.Header.Get("Proxy-Status"), "caddy-egress; ") || !strings.Contains(resp.Header.Get("Proxy-Status"), test.key) {
				t.Fatalf("answered %d %v\n%s", resp.StatusCode, resp.Header, body)
			}
			for name, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"} {
				if got := resp.Header.Get(name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			switch {
			case test.status == 200:
				if shown := body != ""; shown == (test.method == "HEAD") {
					t.Errorf("the body is %q", body)
				}
			case test.status > 400:
				if resp.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(body, fmt.Sprintf(`"code":%q`, test.key)) {
					t.Errorf("the body is %v %s", resp.Header, body)
				}
			}
			if allow := resp.Header.Get("Allow"); allow != map[bool]string{true: "GET, HEAD"}[test.status == 405] {
				t.Errorf("Allow is %q", allow)
			}
			want := ""
			if test.path == "/pages" {
				want = "http://app.test"
			}
			if got := resp.Header.Get("Access-Control-Allow-Origin"); got != want {
				t.Errorf("pages of %q may read it, want %q", got, want)
			}
			if methods := resp.Header.Get("Access-Control-Allow-Methods"); methods != map[bool]string{true: "GET, HEAD"}[test.status == 204] {
				t.Errorf("Access-Control-Allow-Methods is %q", methods)
			}
		})
	}
}

// Whoever is refused can send as many requests as they like: the log has one line of
// a kind a second.
func TestStatusPageLogsRefusals(t *testing.T) {
	g := egresstest.StartWatched(t, "egress_status /status")
	lines := func() (lines []map[string]any) {
		return slices.DeleteFunc(g.LogLines("refused a request"), func(line map[string]any) bool { return line["logger"] != "http.handlers.egress_status" })
	}
	send := func() {
		req := g.Request(http.MethodGet, "/status", nil)
		req.Host = "rebound.example"
		g.Do(req)
	}
	start := time.Now()
	for range 20 {
		send()
	}
	if got, most := len(lines()), 1+int(time.Since(start)/time.Second)+1; got < 1 || got > most {
		t.Errorf("%d lines for 20 requests, want 1 to %d", got, most)
	}
	line := lines()[0]
	if line["level"] != "warn" || line["outcome"] != "host_not_allowed" || !strings.Contains(line["reason"].(string), `hosts "rebound.example" would permit it`) || !strings.HasPrefix(line["remote_addr"].(string), "127.0.0.1:") {
		t.Errorf("the line is %v", line)
	}
	egresstest.Eventually(t, "the number of those that were left out", func() bool {
		send()
		return slices.ContainsFunc(lines(), func(line map[string]any) bool { n, _ := line["left_out"].(float64); return n > 0 })
	})
}

// The page runs its own script and style, and nothing else; it loads nothing else.
func TestStatusPagePolicy(t *testing.T) {
	g := egresstest.StartWatched(t, "egress_status")
	resp, page := g.Get("/")
	own := func(element string) string {
		found := regexp.MustCompile("(?s)<"+element+">(.*?)</"+element+">").FindAllStringSubmatch(page, -1)
		if len(found) != 1 {
			t.Fatalf("the page has %d elements %s", len(found), element)
		}
		hash := sha256.Sum256([]byte(found[0][1]))
		return "'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'"
	}
	want := "default-src 'none'; script-src " + own("script") + "; style-src " + own("style") + "; img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	if policy := resp.Header.Get("Content-Security-Policy"); policy != want {
		t.Errorf("the policy is %q, want %q", policy, want)
	}
	for _, unwanted := range []string{`\ssrc=`, `\sstyle=`, `\son\w+=`, `<(base|form|iframe|object|embed|a [^>]*href="[^#])`, `@import`, `url\(`, `https?://[^w]`} {
		if found := regexp.MustCompile(unwanted).FindString(page); found != "" {
			t.Errorf("the page has %q", found)
		}
	}
}

func TestStatusPageOfEachState(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	admin, option := egresstest.NewAdmin(t)
	routes := "egress_status /status\negress_status /without/*\nhandle_path /ops/* {\negress_status\n}\negress kind"
	g := egresstest.StartWatched(t, routes, egresstest.WithGlobal(option+statusOption(api.URL, endpoint.URL, "kind", "unused")))
	in := func(state string) {
		t.Helper()
		egresstest.Eventually(t, "the state "+state, func() bool { return admin.Status(t, "kind").State == state })
	}

	in("fresh")
	if resp, body := g.Get("/v1/x"); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	s, page := statusAt(t, g, "/status")
	one := s.Credentials[0].Shown[0]
	if s.Health != "ok" || len(s.Problems) != 0 || len(s.Credentials) != 1 || s.Credentials[0].Total != 1 || one.Credential != "kind" || one.Health != "ok" ||
		one.Requests.Total != 1 || one.Requests.Forwarded != 1 || time.Until(one.Expires) < 59*time.Minute || one.Next.IsZero() {
		t.Errorf("fresh: %+v", s)
	}
	if s.CaddyVersion == "" || s.Version == "" || time.Since(s.Time) > time.Minute || !s.Started.Before(s.Time) {
		t.Errorf("of itself it says %+v", s)
	}
	checkReads(t, page, "✓ All is well: 1 credential is in use.", "kind oauth2 ✓ fresh in ", "Started ")
	if !strings.Contains(page, `<section aria-labelledby="problems" hidden>`) {
		t.Error("the page shows a heading of problems, and there are none")
	}
	if strings.Contains(page, "unused") {
		t.Error("a credential that no route uses is shown")
	}

	// whatever the path, it leads nowhere else
	for _, path := range []string{"/ops/", "/ops/status", "/without/slash/"} {
		if other, _ := statusAt(t, g, path); other.Summary != s.Summary {
			t.Errorf("at %s it says %q", path, other.Summary)
		}
	}

	endpoint.SetAnswer(egresstest.Say(http.StatusServiceUnavailable, `{"error":"temporarily_unavailable","error_description":"`+egresstest.Marker+`"}`))
	admin.Ask(t, http.MethodPost, "/egress/tokens/kind/refresh")
	egresstest.Eventually(t, "the page between two retries", func() bool {
		s, page = statusAt(t, g, "/status")
		return s.Credentials[0].Shown[0].State == "stale" && strings.Contains(text(page), "▲ stale")
	})
	if len(s.Problems) != 1 || s.Health != "warning" {
		t.Fatalf("stale: %+v", s)
	}
	p := s.Problems[0]
	if p.Health != "warning" || p.Subject != "kind" || p.Attempts < 1 || time.Since(p.Since) > time.Minute || p.Next.IsZero() || !slices.Equal(p.Commands, []string{"caddy egress refresh kind"}) {
		t.Errorf("stale: %+v", p)
	}
	checkReads(t, page, "▲ Requests have tokens, but 1 thing needs attention.", "▲ kind: no fresh token",
		"Requests are sent with the token at hand, which expires in ", "token endpoint answered 503 Service Unavailable (temporarily_unavailable)",
		"Wait; the authorization server is in trouble.", "caddy egress refresh kind", "▲ stale")

	endpoint.SetAnswer(nil)
	egresstest.Eventually(t, "a refresh", func() bool { // the first may join a retry that fails
		resp, _ := admin.Ask(t, http.MethodPost, "/egress/tokens/kind/refresh")
		return resp.StatusCode == http.StatusOK
	})
	if s, _ := statusAt(t, g, "/status"); s.Health != "ok" {
		t.Errorf("after it: %+v", s)
	}
}

// Of credentials without a token, the page says what is answered in place of the API.
func TestStatusPageWithoutToken(t *testing.T) {
	api, down, refusing := egresstest.NewRecorder(t), egresstest.NewTokens(t), egresstest.NewTokens(t)
	down.Answer = egresstest.Say(http.StatusServiceUnavailable, "<script>"+egresstest.Marker+"</script>")
	refusing.Answer = egresstest.Say(http.StatusUnauthorized, `{"error":"invalid_client"}`)
	admin, option := egresstest.NewAdmin(t)
	global := strings.Replace(statusOption(api.URL, down.URL, "down"), "egress {", "egress {\n"+strings.TrimPrefix(strings.TrimSuffix(statusOption(api.URL, refusing.URL, "refusing"), "}\n"), "egress {"), 1)
	g := egresstest.StartWatched(t, "egress_status /status\n"+egresstest.Site("/down", "egress down")+egresstest.Site("/refusing", "egress refusing"), egresstest.WithGlobal(option+global))
	egresstest.Eventually(t, "both failures", func() bool {
		return admin.Status(t, "down").LastError != nil && admin.Status(t, "refusing").LastError != nil
	})
	if resp, _ := g.Get("/down/v1/x"); resp.StatusCode != 503 {
		t.Errorf("answered %d", resp.StatusCode)
	}
	if resp, _ := g.Get("/refusing/v1/x"); resp.StatusCode != 502 {
		t.Errorf("answered %d", resp.StatusCode)
	}
	s, page := statusAt(t, g, "/status")
	if s.Health != "failing" || len(s.Problems) != 2 {
		t.Fatalf("%+v", s)
	}
	checkReads(t, page, "✕ 2 credentials have no token: requests fail.",
		"✕ down: no token Requests are answered with 503 token_unavailable.", "✕ refusing: no token Requests are answered with 502 credential_refused.",
		"Next attempt", "1 token_unavailable", "1 credential_refused", "caddy egress refresh down", "caddy egress check --config Caddyfile")
	for _, c := range s.Credentials[0].Shown {
		want := map[string]string{"down": "token_unavailable", "refusing": "credential_refused"}[c.Credential]
		if c.Health != "failing" || c.Requests.Forwarded != 0 || c.Requests.Others[want] != 1 {
			t.Errorf("%+v", c)
		}
	}
}

func TestStatusPageIdleAndLimited(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	endpoint.Lifetime = 2
	api.Handler = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "30")
		w.Header().Set("X-Rate-Limit-Remaining", "1234")
		w.WriteHeader(http.StatusTooManyRequests)
	}
	admin, option := egresstest.NewAdmin(t)
	g := egresstest.StartWatched(t, "egress_status /status\negress lazy", egresstest.WithGlobal(option+statusOption(api.URL, endpoint.URL, "lazy")))
	g.Get("/v1/x")
	s, page := statusAt(t, g, "/status")
	if len(s.Problems) != 1 || s.Problems[0].Health != "warning" || s.Problems[0].Problem != "rate limited by the API" {
		t.Errorf("limited: %+v", s.Problems)
	}
	checkReads(t, page, "lazy: rate limited by the API Requests may be answered with 429. That is over in", "rate limited, over in", "Calls left", "1 234")

	egresstest.Eventually(t, "the credential to be idle", func() bool { return admin.Status(t, "lazy").State == "idle" })
	_, page = statusAt(t, g, "/status")
	checkReads(t, page, "– idle no request has needed a token lately")
}

// Of many tenants, those that fail are shown, under their credential.
func TestStatusPageWithTenants(t *testing.T) {
	var names []string
	for n := range 112 {
		names = append(names, fmt.Sprintf("tenant-%03d", n))
	}
	s := newTenantStage(t, "oauth2", names...)
	s.Refuse("tenant-111", true)
	s.start("egress_status /status\negress tenants {\n" + tenantByHeader + "}")
	empty, page := statusAt(t, s.g, "/status")
	if len(empty.Credentials) != 1 || empty.Credentials[0].TenantsOf != "tenants" || empty.Credentials[0].Total != 0 {
		t.Errorf("without tenants: %+v", empty)
	}
	checkReads(t, page, "No request has named a tenant yet", "Tenants of tenants Provider oauth2. None is live")

	for _, name := range names {
		req := s.g.Request(http.MethodGet, "/v1/x", nil)
		req.Header.Set(egresstest.TenantHeader, name)
		req.Header.Set(egresstest.ExpectHeader, name)
		s.g.Do(req)
	}
	all, page := statusAt(t, s.g, "/status")
	group := all.Credentials[0]
	if group.Total != 112 || group.LeftOut != 12 || len(group.Shown) != 100 || group.Shown[99].Credential != "tenants/tenant-111" || group.Shown[98].Credential != "tenants/tenant-098" {
		t.Errorf("of 112 tenants, %d are shown, %d are left out; the last is %+v", len(group.Shown), group.LeftOut, group.Shown[len(group.Shown)-1])
	}
	if len(all.Problems) != 1 || all.Problems[0].Subject != "tenants/tenant-111" || group.Requests.Forwarded != 111 || group.Requests.Others["credential_refused"] != 1 {
		t.Errorf("problems %+v, requests %+v", all.Problems, group.Requests)
	}
	checkReads(t, page, "Tenants of tenants", "112 live. Requests of all tenants since the start: 112. Of them 1 credential_refused .", "12 more are left out",
		"caddy egress check --config Caddyfile --tenant tenant-111", "caddy egress refresh tenants/tenant-111", "✕ 1 credential has no token")
	if n := strings.Count(page, `<tr id="credential-`); n != 100 {
		t.Errorf("the page has %d tenants", n)
	}
}

func TestStatusPageWithCallers(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	global := strings.Replace(statusOption(api.URL, endpoint.URL, "lent"), "egress {", "egress {\n"+egresstest.Caller(t, "status-shop")+egresstest.Caller(t, "status-never"), 1)
	g := egresstest.StartGateway(t, "egress_status /status\negress lent {\ngrant * {\nallow GET /v1/*\n}\n}", egresstest.WithCallers(global))
	for _, method := range []string{"GET", "GET", "DELETE"} {
		req := g.Request(method, "/v1/x", nil)
		req.Header.Set("Authorization", "Bearer "+egresstest.Key("status-shop"))
		g.Do(req)
	}
	g.Get("/v1/x") // nobody known
	s, page := statusAt(t, g, "/status")
	if len(s.Callers) != 2 || s.Callers[0].Caller != "status-never" || s.Callers[0].Requests.Total != 0 {
		t.Fatalf("callers are %+v", s.Callers)
	}
	if got := s.Callers[1].Requests; got.Total != 3 || got.Forwarded != 2 || got.Others["operation_not_allowed"] != 1 {
		t.Errorf("the requests of status-shop are %+v", got)
	}
	if got := s.Credentials[0].Shown[0].Requests; got.Total != 4 || got.Others["caller_unknown"] != 1 {
		t.Errorf("the requests with lent are %+v", got)
	}
	checkReads(t, page, "Caller Requests Sent to the API Other outcomes status-never 0 0 – status-shop 3 2 1 operation_not_allowed")
}

// What is refused on a route whose grants have scopes of their own is counted, too.
func TestStatusPageCountsWhatIsRefusedToOthers(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	global := strings.Replace(statusOption(api.URL, endpoint.URL, "lent-out"), "egress {", "egress {\n"+egresstest.Caller(t, "status-granted")+egresstest.Caller(t, "status-stranger"), 1)
	g := egresstest.StartGateway(t, "egress_status /status\negress lent-out {\ngrant status-granted {\nscopes vouchers\n}\n}", egresstest.WithCallers(global))
	for range 3 {
		req := g.Request("GET", "/v1/x", nil)
		req.Header.Set("Authorization", "Bearer "+egresstest.Key("status-stranger"))
		resp, body := g.Do(req)
		egresstest.CheckRefused(t, resp, body, http.StatusForbidden, "caller_not_granted")
		resp, body = g.Get("/v1/x")
		egresstest.CheckRefused(t, resp, body, http.StatusUnauthorized, "caller_unknown")
	}
	s, _ := statusAt(t, g, "/status")
	strangers, unknown := int64(0), int64(0)
	for _, c := range s.Callers {
		strangers += c.Requests.Others["caller_not_granted"]
	}
	for _, c := range s.Credentials[0].Shown {
		unknown += c.Requests.Others["caller_unknown"]
	}
	if strangers != 3 || unknown != 3 {
		t.Errorf("there are %d requests of a stranger and %d of nobody known, want 3 of each", strangers, unknown)
	}
}

// The token that health checks carry is as important as any: without it, no request
// is served.
func TestStatusShowsTheTokenOfHealthChecks(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	endpoint.Set(func(e *egresstest.Tokens) {
		e.Answer = func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.FormValue("scope"), "vouchers") {
				egresstest.Issue(`,"token_type":"bearer","expires_in":3600`)(w, r)
				return
			}
			egresstest.Say(http.StatusUnauthorized, `{"error":"invalid_client"}`)(w, r)
		}
	})
	admin, option := egresstest.NewAdmin(t)
	global := strings.Replace(statusOption(api.URL, endpoint.URL, "probed"), "egress {", "egress {\n"+egresstest.Caller(t, "status-shop"), 1)
	g := egresstest.StartGateway(t, "egress_status /status\negress probed {\ngrant status-shop {\nscopes vouchers\n}\n"+healthChecks+"}", egresstest.WithCallers(option+global))
	egresstest.Eventually(t, "the failure on the page", func() bool {
		s, _ := statusAt(t, g, "/status")
		return s.Health == "failing" && s.Problems[0].Subject == "probed"
	})
	var state string
	egresstest.Eventually(t, "the time between two retries", func() bool {
		state = admin.Status(t, "probed").State
		return state != "refreshing"
	})
	if state != "refused" {
		t.Errorf("the state is %q", state)
	}
}

// What is shown of files and errors is text, whatever it looks like.
func TestStatusPageWithStorageOfAHostileName(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	dir := filepath.Join(egresstest.StorageDir(t), `<script>alert(1)<`, `script>"'><img src=x onerror=alert(2)>`)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	global := strings.Replace(statusOption(api.URL, endpoint.URL, "shared"), "egress {", "egress {\nshare_tokens {\nstorage file_system {\nroot `"+dir+"`\n}\n}\n", 1)
	g := egresstest.StartWatched(t, "egress_status /status\negress shared", egresstest.WithGlobal(global))
	g.Get("/v1/x")
	egresstest.Eventually(t, "the storage to be used", func() bool { s, _ := statusAt(t, g, "/status"); return s.Store != nil && s.Store.State == "ok" })
	_, page := statusAt(t, g, "/status")
	checkReads(t, page, "Shared tokens Storage caddy.storage.file_system: ok since", "Token from", " own ")

	egresstest.Eventually(t, "a file to be in place of the folder", func() bool {
		return os.RemoveAll(dir) == nil && os.WriteFile(dir, nil, 0o600) == nil
	})
	egresstest.Eventually(t, "the storage to fail", func() bool {
		if err := g.Load("egress_status /status\negress shared"); err != nil {
			t.Fatal(err)
		}
		g.GetAfterReload("/v1/x")
		s, _ := statusAt(t, g, "/status")
		return s.Store.State == "failing"
	})
	s, page := statusAt(t, g, "/status")
	if !strings.Contains(s.Store.Error, dir) || s.Health != "warning" {
		t.Errorf("the storage is %+v", s.Store)
	}
	checkReads(t, page, "▲ shared tokens: the storage caddy.storage.file_system is failing Each instance uses tokens of its own meanwhile.")
	if strings.Count(page, "<script") != 1 || strings.Contains(page, "<img") {
		t.Errorf("the page takes the name of the folder for HTML:\n%s", page)
	}
}

// A token endpoint may put what it was sent, and the token, into the token's scope.
func TestScopesThatEchoASecretAreNotShown(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	endpoint.Answer = egresstest.Issue(`,"token_type":"bearer","expires_in":3600,"scope":"shown ` + egresstest.Secret + ` ` + egresstest.Token(1) + `"`)
	admin, option := egresstest.NewAdmin(t)
	g := egresstest.StartGateway(t, "egress_status /status\negress kind", egresstest.WithGlobal(option+statusOption(api.URL, endpoint.URL, "kind")))
	if resp, _ := g.Get("/v1/x"); resp.StatusCode != 200 {
		t.Fatal(resp.StatusCode)
	}
	_, list := admin.Ask(t, "GET", "/egress/tokens")
	if !strings.Contains(list, `"scopes_granted":["shown"]`) {
		t.Errorf("the admin API: %s", list)
	}
	_, page := g.Get("/status?format=json")
	for where, text := range map[string]string{"the admin API": list, "the status page": page} {
		if strings.Contains(text, egresstest.Secret) || strings.Contains(text, egresstest.Token(1)) {
			t.Errorf("%s shows a secret: %s", where, text)
		}
	}
}
