package e2e_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// The first grant that names the caller counts, and * is any that is known.
func TestFirstGrantCounts(t *testing.T) {
	s := newGrantStage(t,
		egresstest.Site("/order", "egress plain {\n grant shop {\n allow GET /order/a\n}\n grant shop agent {\n allow GET /order/b\n}\n grant * {\n allow GET /order/c\n}\n}")+
			egresstest.Site("/any", "egress plain {\n grant * {\n allow GET /any/a\n}\n grant shop {\n allow GET /any/b\n}\n}")+
			egresstest.Site("/some", "egress plain {\n grant shop nightly\n}")+
			egresstest.Site("/route", "egress plain {\n allow GET /route/a /route/b\n grant shop {\n allow GET,POST /route/b /route/c\n}\n grant agent\n}")+
			egresstest.Site("/bare", "egress plain"))
	for path, want := range map[string]map[string]int{
		"/order/a": {"shop": 200, "agent": 403, "nightly": 403},
		"/order/b": {"shop": 403, "agent": 200, "nightly": 403},
		"/order/c": {"shop": 403, "agent": 403, "nightly": 200},
		"/any/a":   {"shop": 200, "agent": 200, "nightly": 200},
		"/any/b":   {"shop": 403, "agent": 403, "nightly": 403},
		"/some/a":  {"shop": 200, "agent": 0, "nightly": 200},
		// what the route and the grant both permit
		"/route/a": {"shop": 403, "agent": 200, "nightly": 0},
		"/route/b": {"shop": 200, "agent": 200, "nightly": 0},
		"/route/c": {"shop": 403, "agent": 403, "nightly": 0},
		"/bare/a":  {"shop": 200, "agent": 200, "nightly": 200},
	} {
		for caller, status := range want {
			before := s.api.Count()
			resp, body := s.as(caller, path)
			switch status {
			case 0:
				egresstest.CheckRefused(t, resp, body, http.StatusForbidden, "caller_not_granted")
			case 403:
				egresstest.CheckRefused(t, resp, body, http.StatusForbidden, "operation_not_allowed")
			default:
				if resp.StatusCode != status {
					t.Errorf("%s for %s: %d %s", path, caller, resp.StatusCode, body)
				}
			}
			if (s.api.Count() > before) != (status == 200) {
				t.Errorf("%s for %s has reached the API: %v", path, caller, s.api.Count() > before)
			}
		}
		before := s.api.Count()
		resp, body := s.as("nobody", path)
		if path == "/bare/a" {
			continue
		}
		egresstest.CheckRefused(t, resp, body, http.StatusUnauthorized, "caller_unknown")
		challenges := strings.Join(resp.Header.Values("WWW-Authenticate"), ", ")
		if !strings.Contains(challenges, `Bearer realm="caddy-egress"`) || !strings.Contains(challenges, `Basic realm="caddy-egress", charset="UTF-8"`) {
			t.Errorf("WWW-Authenticate is %q", challenges)
		}
		if s.api.Count() != before {
			t.Errorf("%s for nobody has reached the API", path)
		}
	}
}

// Callers have a token of the scopes of their grant, one for each set of scopes,
// and the route's own only where some grant has none of its own.
func TestTokensOfGrants(t *testing.T) {
	admin, option := egresstest.NewAdmin(t)
	grants := func(more string) string {
		return "egress plain {\n scopes of-the-route\n" + more + "\ngrant shop {\n scopes vouchers validations\n}\n grant nightly {\n scopes validations vouchers\n}\n grant agent {\n scopes vouchers\n}\n}"
	}
	s := &grantStage{t: t, api: egresstest.NewRecorder(t), endpoint: scopedTokens(t)}
	var asked sync.Map
	answer := s.endpoint.Answer
	s.endpoint.SetAnswer(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.FormValue("scope"), nil)
		answer(w, r)
	})
	callers := egresstest.Caller(t, "shop") + egresstest.Caller(t, "nightly") + egresstest.Caller(t, "agent") + egresstest.Caller(t, "other")
	s.g = egresstest.StartGateway(t, egresstest.Site("/a", grants(""))+egresstest.Site("/b", grants("allow GET /*")),
		egresstest.WithCallers(option+"egress {\n"+plainCredential(s.api.URL, s.endpoint.URL)+callers+"}"))
	for range 3 {
		for caller, token := range map[string]string{"shop": scopedToken("vouchers", "validations"), "nightly": scopedToken("vouchers", "validations"), "agent": scopedToken("vouchers")} {
			for _, path := range []string{"/a/x", "/b/x"} {
				resp, body := s.as(caller, path)
				if got := s.api.Last(t).Header.Get("Authorization"); resp.StatusCode != http.StatusOK || got != "Bearer "+token {
					t.Errorf("%s for %s: %d %s with %q, want %q", path, caller, resp.StatusCode, body, got, token)
				}
			}
		}
	}
	if got := s.endpoint.Count(); got != 2 {
		t.Errorf("%d token requests, want one for each set of scopes", got)
	}
	asked.Range(func(scope, _ any) bool {
		if scope == "" || scope == "of-the-route" {
			t.Errorf("a token of scopes %q was asked for, which nobody uses", scope)
		}
		return true
	})
	_, tokens := admin.Ask(t, http.MethodGet, "/egress/tokens")
	if !strings.Contains(tokens, `"plain+validations+vouchers"`) && !strings.Contains(tokens, `"plain+vouchers+validations"`) || !strings.Contains(tokens, `"plain+vouchers"`) {
		t.Errorf("the tokens are %s", tokens)
	}

	// one grant without scopes has the route's
	if err := s.g.Load(egresstest.Site("/a", grants("grant other")) + egresstest.Site("/b", grants(""))); err != nil {
		t.Fatal(err)
	}
	s.g.GetAfterReload("/a/x")
	s.as("other", "/a/x")
	if got := s.api.Last(t).Header.Get("Authorization"); got != "Bearer "+scopedToken("of-the-route") {
		t.Errorf("a grant without scopes has %q", got)
	}
	if resp, _ := s.as("agent", "/a/x"); resp.StatusCode != http.StatusOK || s.api.Last(t).Header.Get("Authorization") != "Bearer "+scopedToken("vouchers") {
		t.Errorf("after the reload the agent has %q", s.api.Last(t).Header.Get("Authorization"))
	}
	if got := s.endpoint.Count(); got != 3 {
		t.Errorf("%d token requests after the reload, want one more", got)
	}
}

// What callers do is told from one another in metrics, logs, placeholders and events.
func TestWhoCalledIsShown(t *testing.T) {
	suffix := fmt.Sprint(".shown", suffixes.Add(1))
	admin, option := egresstest.NewAdmin(t)
	api, endpoint := egresstest.NewRecorder(t), scopedTokens(t)
	names := map[string]string{"shop": "shop" + suffix, "agent": "agent" + suffix, "other": "other" + suffix}
	callers := ""
	for _, name := range names {
		callers += egresstest.Caller(t, name)
	}
	credential := "plain" + suffix
	routes := "log\n" +
		egresstest.Site("/v1", fmt.Sprintf("egress %s {\n%s\n grant %s {\n scopes vouchers\n limit 2/h\n}\n grant %s {\n allow GET /v1/only\n}\n}", credential, showCaller, names["shop"], names["agent"])) +
		egresstest.Site("/open", "egress "+credential+" {\n"+showCaller+"}")
	g := egresstest.StartGateway(t, routes, egresstest.WithCallers(option+"egress {\n"+strings.Replace(plainCredential(api.URL, endpoint.URL), "plain", credential, 1)+callers+"}\nevents {\n on egress.caller_refused egress_test\n}\n"))
	s := &grantStage{t: t, api: api, endpoint: endpoint, g: g}
	scoped := credential + "+vouchers"
	type key struct{ caller, credential, outcome string }
	want := make(map[key]float64)
	for _, step := range []struct {
		caller, path, header, outcome, credential string
		status                                    int
	}{
		{"shop", "/v1/x", names["shop"], "forwarded", scoped, 200},
		{"shop", "/v1/x", names["shop"], "forwarded", scoped, 200},
		{"shop", "/v1/x", names["shop"], "caller_limited", scoped, 429},
		{"agent", "/v1/only", names["agent"], "forwarded", credential, 200},
		{"agent", "/v1/x", names["agent"], "operation_not_allowed", credential, 403},
		{"other", "/v1/x", names["other"], "caller_not_granted", credential, 403},
		{"nobody", "/v1/x", "", "caller_unknown", credential, 401},
		{"other", "/open/x", names["other"], "forwarded", credential, 200},
		{"nobody", "/open/x", "", "forwarded", credential, 200},
	} {
		resp, body := s.as(cmp.Or(names[step.caller], step.caller), step.path)
		if resp.StatusCode != step.status || resp.Header.Get("X-Caller") != step.header {
			t.Errorf("%+v: %d %s for %q", step, resp.StatusCode, body, resp.Header.Get("X-Caller"))
		}
		if step.header != "" {
			want[key{step.header, step.credential, step.outcome}]++
		}
		outcome := step.outcome
		egresstest.Eventually(t, "the access log", func() bool {
			return slices.ContainsFunc(g.LogLines("handled request"), func(line map[string]any) bool {
				caller, _ := line["egress_caller"].(string)
				return caller == step.header && line["egress_outcome"] == outcome
			})
		})
	}
	_, metrics := admin.Ask(t, http.MethodGet, "/metrics")
	for k, n := range want {
		line := fmt.Sprintf("caddy_egress_caller_requests_total{caller=%q,credential=%q,outcome=%q", k.caller, k.credential, k.outcome)
		if k.outcome == "caller_not_granted" { // of no grant: the route's
			line = fmt.Sprintf("caddy_egress_caller_requests_total{caller=%q,", k.caller)
		}
		found := false
		for got := range strings.Lines(metrics) {
			found = found || strings.HasPrefix(got, line) && strings.Contains(got, fmt.Sprintf("outcome=%q", k.outcome)) && strings.HasSuffix(strings.TrimSpace(got), fmt.Sprint(" ", n))
		}
		if !found {
			t.Errorf("no metric %s…} %v", line, n)
		}
	}

	for _, outcome := range []string{"caller_limited", "caller_not_granted", "caller_unknown"} {
		egresstest.Eventually(t, "the event of "+outcome, func() bool {
			recordedEvents.Lock()
			defer recordedEvents.Unlock()
			return slices.ContainsFunc(recordedEvents.all, func(e caddy.Event) bool {
				name, _ := e.Data["credential"].(string)
				return e.Name() == "egress.caller_refused" && strings.HasPrefix(name, credential) && fmt.Sprint(e.Data["outcome"]) == outcome
			})
		})
		lines := slices.DeleteFunc(g.LogLines("refused a request"), func(line map[string]any) bool { return line["outcome"] != outcome })
		if len(lines) != 1 || lines[0]["level"] != "warn" {
			t.Errorf("%s is logged as %v", outcome, lines)
		} else if caller, _ := lines[0]["caller"].(string); (caller == "") != (outcome == "caller_unknown") {
			t.Errorf("%s: the log line has caller %q", outcome, caller)
		}
	}
	recordedEvents.Lock()
	egresstest.CheckKeys(t, "an event", fmt.Sprintf("%+v", recordedEvents.all))
	recordedEvents.Unlock()
}

// Grants go on over reloads, and change with them.
func TestGrantsOverReloads(t *testing.T) {
	route := func(granted string) string {
		return "log\negress plain {\n grant " + granted + " {\n scopes vouchers\n}\n}"
	}
	s := newGrantStage(t, route("shop agent"))
	for n := range 5 {
		granted, other := "shop", "agent"
		if n%2 == 1 {
			granted, other = other, granted
		}
		if err := s.g.Load(route(granted)); err != nil {
			t.Fatal(err)
		}
		s.g.GetAfterReload("/v1/x")
		if resp, body := s.as(granted, "/v1/x"); resp.StatusCode != http.StatusOK {
			t.Errorf("reload %d: %s is answered %d %s", n, granted, resp.StatusCode, body)
		}
		resp, body := s.as(other, "/v1/x")
		egresstest.CheckRefused(t, resp, body, http.StatusForbidden, "caller_not_granted")
	}
	if got := s.endpoint.Count(); got != 1 {
		t.Errorf("%d token requests, want the one of the start", got)
	}
}

// isolationStage is a stage whose clients are told apart by their keys: the honest
// and the hostile one come from one address, or each from many.
func newIsolationStage(t *testing.T, options string) *stage {
	s := &stage{t: t, api: newMoody(t), endpoint: egresstest.NewTokens(t)}
	callers := egresstest.Caller(t, "honest") + egresstest.Caller(t, "hostile")
	s.g = egresstest.StartGateway(t, "egress plain {\n grant *\n"+options+"\n}",
		egresstest.WithCallers("egress {\n replay_memory 1MiB\n"+plainCredential(s.api.URL, s.endpoint.URL)+callers+"}"))
	s.honest, s.hostile = keyedClient(t, "honest", "127.0.0.1"), keyedClient(t, "hostile", "127.0.0.1")
	return s
}

// keyed adds the key of a caller to requests.
type keyed struct {
	key  string
	next http.RoundTripper
}

func (k keyed) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+k.key)
	return k.next.RoundTrip(req)
}

// keyedClient returns a client with the key of a caller, from an address.
func keyedClient(t *testing.T, caller, addr string) *http.Client {
	client := clientAt(t, addr)
	client.Transport = keyed{egresstest.Key(caller), client.Transport}
	return client
}

// What one caller does is held against it, not against another with its address.
func TestCallersBehindOneAddress(t *testing.T) {
	t.Run("401s", func(t *testing.T) {
		s := newIsolationStage(t, "")
		s.serve(20)
		end := s.load(16, always(http.MethodGet, "/v1/forbidden")(s))
		before := s.endpoint.Count()
		s.serve(60)
		s.api.revoke()
		s.serve(60)
		end()
		if caused := s.endpoint.Count() - before; caused > 6 {
			t.Errorf("%d token requests", caused)
		}
	})
	t.Run("stalled uploads", func(t *testing.T) {
		s := newIsolationStage(t, "")
		stallUploads(t, s, s.hostile)
		s.serve(10) // with bodies
	})
	t.Run("replay memory", func(t *testing.T) {
		s := newIsolationStage(t, "")
		ctx, leave := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() {
				body := io.MultiReader(strings.NewReader(strings.Repeat("x", 256<<10)), &endless{ctx: ctx})
				if resp, err := s.hostile.Do(s.request(ctx, http.MethodPost, "/v1/forbidden-early", body)); err == nil {
					resp.Body.Close()
				}
			})
		}
		defer wg.Wait()
		defer leave()
		s.serve(1) // with a token that can be revoked
		// the body is kept, and sent again with the next token
		for range 3 {
			s.api.revoke()
			s.serve(6)
		}
	})
}

// A caller is one, however many addresses it has.
func TestCallerWithManyAddresses(t *testing.T) {
	s := newIsolationStage(t, "")
	var hostile []*http.Client
	for n := range 8 {
		hostile = append(hostile, keyedClient(t, "hostile", fmt.Sprint("127.0.1.", n+1)))
	}
	probe, err := hostile[0].Get(s.g.URL + "/v1/public")
	if err != nil {
		t.Skipf("this system has no second loopback address: %v", err)
	}
	probe.Body.Close()
	stallUploads(t, s, hostile...)
	s.serve(10)
}

// stallUploads stalls uploads of the clients by turns until each is refused more.
func stallUploads(t *testing.T, s *stage, clients ...*http.Client) {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { leave(); wg.Wait() })
	for n := range 64 {
		wg.Go(func() {
			if resp, err := clients[n%len(clients)].Do(s.request(ctx, http.MethodPost, "/v1/stalls", &endless{ctx: ctx})); err == nil {
				resp.Body.Close()
			}
		})
	}
	for _, client := range clients {
		egresstest.Eventually(t, "uploads that are refused", func() bool {
			resp, err := client.Do(s.request(ctx, http.MethodPost, "/v1/busy", strings.NewReader("body")))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			return resp.StatusCode == http.StatusTooManyRequests && strings.Contains(string(body), "too_many_uploads")
		})
	}
}
