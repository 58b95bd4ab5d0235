package egress_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"

	egressmodule "github.com/caddy-egress/caddy-egress"
	"github.com/caddy-egress/caddy-egress/sandbox"
)

// adminAPI is the address of an admin API.
type adminAPI string

// newAdmin returns the address of an admin API, and the global option for it.
// It stands after the one of startGateway, and takes its place.
func newAdmin(t *testing.T) (adminAPI, string) {
	t.Helper()
	addr := freeAddr(t)
	return adminAPI(addr), "admin " + addr + "\n"
}

// ask sends a request to the admin API. What comes back is searched for leaks.
func (a adminAPI) ask(t *testing.T, method, path string) (*http.Response, string) {
	t.Helper()
	resp, body, err := a.try(method, path)
	if err != nil {
		t.Fatal(err)
	}
	checkLeaks(t, method+" "+path, body)
	return resp, body
}

func (a adminAPI) try(method, path string) (*http.Response, string, error) {
	req, err := http.NewRequest(method, "http://"+string(a)+path, nil)
	if err != nil {
		return nil, "", err
	}
	req.Close = true // reloads replace the server
	req.Header.Set("Origin", "http://"+string(a))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// status returns the status of a credential.
func (a adminAPI) status(t *testing.T, name string) (status egressmodule.CredentialStatus) {
	t.Helper()
	resp, body := a.ask(t, http.MethodGet, "/egress/tokens/"+name)
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("status of %s: %d %s", name, resp.StatusCode, body)
	}
	if err := json.Unmarshal([]byte(body), &status); err != nil {
		t.Fatal(err)
	}
	return status
}

// series are metrics of caddy-egress: name{labels} to value.
type series map[string]float64

var (
	metricLine = regexp.MustCompile(`^(caddy_egress_[a-z_]+)\{(.*)\} (\S+)$`)
	labelPair  = regexp.MustCompile(`([a-z_]+)="([^"]*)"`)
)

// metrics returns what Caddy's own endpoint shows of the fleet.
func (f *fleet) metrics(t *testing.T) series {
	t.Helper()
	resp, body := f.admin.ask(t, http.MethodGet, "/metrics")
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("/metrics: %d %s", resp.StatusCode, body)
	}
	all := make(series)
	for line := range strings.Lines(body) {
		if !strings.Contains(line, f.suffix+`"`) {
			continue // of another test in the process
		}
		line = strings.ReplaceAll(line, f.suffix+`"`, `"`)
		match := metricLine.FindStringSubmatch(strings.TrimSpace(line))
		if match == nil || strings.HasSuffix(match[1], "_bucket") {
			continue
		}
		value, err := strconv.ParseFloat(match[3], 64)
		if err != nil {
			t.Fatal(err)
		}
		key := match[1] + "{" + match[2] + "}"
		if _, ok := all[key]; ok {
			t.Errorf("%s is there twice", key)
		}
		all[key] = value
	}
	return all
}

// of returns the value of a metric, by name without prefix, credential and
// further labels as `name="value"`.
func (s series) of(name, credential string, labels ...string) (float64, bool) {
	labels = append(labels, `credential="`+credential+`"`, `provider="oauth2"`)
	slices.Sort(labels)
	value, ok := s["caddy_egress_"+name+"{"+strings.Join(labels, ",")+"}"]
	return value, ok
}

// sum returns the sum of a metric over all labels but the credential.
func (s series) sum(name, credential string) (sum float64) {
	for key, value := range s {
		if strings.HasPrefix(key, "caddy_egress_"+name+"{") && strings.Contains(key, `credential="`+credential+`"`) {
			sum += value
		}
	}
	return sum
}

func label(name, value string) string { return fmt.Sprintf("%s=%q", name, value) }

// fleet is an API and a token endpoint for many credentials, told apart by
// client id: what either does depends on it. The credentials are named after it,
// with a suffix, since metrics last as long as the process.
type fleet struct {
	suffix string
	api    *recorder
	tokens *tokens
	admin  adminAPI
	global string // the global options
	routes string
	issued atomic.Int64
}

// fleetRoutes are the credentials of a fleet, with the options of their routes.
var fleetRoutes = map[string]string{
	"forwarded":             "",
	"replayed":              "",
	"not_replayable":        "replay_buffer 0",
	"always_401":            "",
	"token_unavailable":     "",
	"credential_refused":    "",
	"malformed":             "",
	"rate_limited":          "respect_rate_limit",
	"client_not_allowed":    "clients 10.0.0.0/8",
	"host_not_allowed":      "",
	"origin_not_allowed":    "",
	"operation_not_allowed": "allow GET /v1/only",
	"api_host_not_allowed":  "api_hosts elsewhere.test",
	"bad_request":           "",
	"short":                 "",
}

var fleets atomic.Int64

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{suffix: fmt.Sprint(".fleet", fleets.Add(1)), api: newRecorder(t, (*httptest.Server).Start), tokens: newTokens(t)}
	f.api.handler = func(w http.ResponseWriter, r *http.Request) {
		credential, token := r.Header.Get("X-Credential"), r.Header.Get("Authorization")
		first := strings.HasSuffix(token, "-first")
		switch {
		case credential == "always_401", first && (credential == "replayed" || credential == "not_replayable"):
			w.WriteHeader(http.StatusUnauthorized)
		case credential == "rate_limited":
			w.Header().Set("X-RateLimit-Remaining", "0")
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(http.StatusTooManyRequests)
		case credential == "forwarded":
			w.Header().Set("X-Rate-Limit-Remaining", "1234")
		}
	}
	var seen sync.Map
	f.tokens.set(func(e *tokens) {
		e.answer = func(w http.ResponseWriter, r *http.Request) {
			id, _, _ := r.BasicAuth()
			lifetime, suffix := 3600, fmt.Sprint("-", f.issued.Add(1))
			if _, known := seen.LoadOrStore(id, nil); !known {
				suffix = "-first"
			}
			switch id {
			case "token_unavailable":
				say(http.StatusServiceUnavailable, "")(w, r)
				return
			case "credential_refused":
				say(http.StatusUnauthorized, `{"error":"invalid_client"}`)(w, r)
				return
			case "malformed":
				say(http.StatusOK, marker)(w, r)
				return
			case "short":
				lifetime = 1
			}
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"access_token":"%s%s","token_type":"bearer","expires_in":%d}`, testToken, suffix, lifetime)
		}
	})
	var admin string
	f.admin, admin = newAdmin(t)
	f.global = admin + "egress {\n"
	for _, name := range slices.Sorted(maps.Keys(fleetRoutes)) {
		f.global += fmt.Sprintf("credential %s oauth2 %s {\n token_url %s\n client_id %s\n client_secret {env.EGRESS_TEST_SECRET}\n}\n",
			name+f.suffix, f.api.URL, f.tokens.URL, name)
		f.routes += fmt.Sprintf("handle_path /%s/* {\n egress %s {\n header_up X-Credential %s\n %s\n }\n}\n", name, name+f.suffix, name, fleetRoutes[name])
	}
	f.global += "}\n"
	return f
}

// warm waits until the first token request of each credential has ended.
func (f *fleet) warm(t *testing.T) {
	t.Helper()
	eventually(t, "the first token requests", func() bool {
		metrics := f.metrics(t)
		for name := range fleetRoutes {
			if metrics.sum("token_requests_total", name) == 0 {
				return false
			}
		}
		return true
	})
}

func TestMetrics(t *testing.T) {
	f := newFleet(t)
	g := startWatched(t, f.routes, withGlobal(f.global))
	f.warm(t)

	outcomes := []string{
		"forwarded", "replayed", "token_unavailable", "credential_refused", "rate_limited", "client_not_allowed",
		"host_not_allowed", "origin_not_allowed", "operation_not_allowed", "api_host_not_allowed", "bad_request",
	}
	all := append(slices.Clone(outcomes), "client_gone") // which has a test of its own
	start := f.metrics(t)
	for name := range fleetRoutes { // they appear with the first request
		for _, outcome := range all {
			if n, ok := start.of("requests_total", name, label("outcome", outcome)); ok {
				t.Errorf("requests_total of %s with outcome %s is %v before the first request", name, outcome, n)
			}
		}
		// but a first failure has to show as an increase
		for _, outcome := range []string{"transient", "refused"} {
			if _, ok := start.of("token_requests_total", name, label("trigger", "refresh"), label("outcome", outcome)); !ok {
				t.Errorf("token_requests_total of %s for %s refreshes is absent", name, outcome)
			}
		}
	}

	// one request for each outcome, with an id in path, query and header
	for _, outcome := range outcomes {
		req := g.request(http.MethodGet, "/"+outcome+"/v1/customers/c4711?q=c4711", nil)
		req.Header.Set("X-Request-Id", "c4711")
		switch outcome {
		case "host_not_allowed":
			req.Host = "c4711.example.com"
		case "origin_not_allowed":
			req.Header.Set("Origin", "https://c4711.example.com")
		case "bad_request":
			req.Method = http.MethodTrace
		case "rate_limited":
			g.do(req.Clone(t.Context())) // this one goes to the API
		}
		before := f.metrics(t)
		resp, body := g.do(req)
		after := f.metrics(t)
		for _, other := range all {
			was, _ := before.of("requests_total", outcome, label("outcome", other))
			is, _ := after.of("requests_total", outcome, label("outcome", other))
			if want := map[bool]float64{true: 1}[other == outcome]; is-was != want {
				t.Errorf("a request answered %d %s counts %v times as %s, want %v", resp.StatusCode, body, is-was, other, want)
			}
		}
	}
	g.get("/always_401/v1/x") // replayed, and answered 401 again
	g.get("/always_401/v1/x") // held back
	g.do(g.request(http.MethodPost, "/not_replayable/v1/x", strings.NewReader("body")))

	// a token that nobody uses lapses: the next request has to wait for one
	eventually(t, "a request that waits for a token", func() bool {
		if f.admin.status(t, "short"+f.suffix).State != "idle" {
			return false
		}
		g.get("/short/v1/x") // unless a refresh was about to happen
		n, _ := f.metrics(t).of("token_requests_total", "short", label("trigger", "demand"), label("outcome", "ok"))
		return n > 0
	})
	metrics := f.metrics(t)

	type expected struct {
		name, credential string
		labels           []string
		least, most      float64
	}
	now := float64(time.Now().Unix())
	for _, want := range []expected{
		{"token_requests_total", "forwarded", []string{label("trigger", "warmup"), label("outcome", "ok")}, 1, 1},
		{"token_requests_total", "short", []string{label("trigger", "demand"), label("outcome", "ok")}, 1, 9},
		{"token_requests_total", "short", []string{label("trigger", "refresh"), label("outcome", "ok")}, 1, 99},
		{"token_requests_total", "replayed", []string{label("trigger", "rejected"), label("outcome", "ok")}, 1, 1},
		{"token_requests_total", "token_unavailable", []string{label("trigger", "warmup"), label("outcome", "transient")}, 1, 99},
		{"token_requests_total", "credential_refused", []string{label("trigger", "warmup"), label("outcome", "refused")}, 1, 9},
		{"token_requests_total", "malformed", []string{label("trigger", "warmup"), label("outcome", "malformed")}, 1, 99},
		{"token_wait_seconds_count", "forwarded", nil, 0, 0},
		{"token_wait_seconds_count", "short", nil, 1, 9},
		{"token_wait_seconds_sum", "short", nil, 1e-6, 10},
		{"token_expiry_timestamp_seconds", "forwarded", nil, now + 3500, now + 3600},
		{"token_last_success_timestamp_seconds", "forwarded", nil, now - 100, now + 1},
		{"upstream_unauthorized_total", "replayed", []string{label("result", "replayed_ok")}, 1, 1},
		{"upstream_unauthorized_total", "always_401", []string{label("result", "replayed_401")}, 1, 1},
		{"upstream_unauthorized_total", "always_401", []string{label("result", "held_back")}, 1, 1},
		{"upstream_unauthorized_total", "not_replayable", []string{label("result", "not_replayable")}, 1, 1},
		{"upstream_unauthorized_total", "forwarded", []string{label("result", "held_back")}, 0, 0},
		{"rate_limited_total", "rate_limited", nil, 1, 1},
		{"rate_limited_total", "forwarded", nil, 0, 0},
		{"rate_limit_remaining", "forwarded", nil, 1234, 1234},
		{"rate_limit_remaining", "rate_limited", nil, 0, 0},
	} {
		got, ok := metrics.of(want.name, want.credential, want.labels...)
		if !ok || got < want.least || got > want.most {
			t.Errorf("%s%v of %s is %v (%v), want %v to %v", want.name, want.labels, want.credential, got, ok, want.least, want.most)
		}
	}
	for _, absent := range [][2]string{
		{"rate_limit_remaining", "replayed"}, // the API has not said
		{"token_expiry_timestamp_seconds", "token_unavailable"},
		{"token_last_success_timestamp_seconds", "credential_refused"},
	} {
		if got, ok := metrics.of(absent[0], absent[1]); ok {
			t.Errorf("%s of %s is %v, want none", absent[0], absent[1], got)
		}
	}
	f.checkLabels(t, metrics, all)

	// from the first request on, alerts have what they compare with
	for _, want := range []expected{
		{"requests_total", "forwarded", []string{label("outcome", "token_unavailable")}, 0, 0},
		{"requests_total", "forwarded", []string{label("outcome", "credential_refused")}, 0, 0},
		{"upstream_unauthorized_total", "forwarded", []string{label("result", "replayed_401")}, 0, 0},
	} {
		if got, ok := metrics.of(want.name, want.credential, want.labels...); !ok || got != 0 {
			t.Errorf("%s%v of %s is %v (%v), want 0", want.name, want.labels, want.credential, got, ok)
		}
	}

	// how long token requests took belongs to the endpoint
	_, body := f.admin.ask(t, http.MethodGet, "/metrics")
	duration := regexp.MustCompile(`caddy_egress_token_request_duration_seconds_(count|sum)\{provider="oauth2",token_endpoint="` + regexp.QuoteMeta(f.tokens.URL) + `"\} (\S+)`)
	var requests float64
	for key, value := range metrics {
		if strings.HasPrefix(key, "caddy_egress_token_requests_total") {
			requests += value
		}
	}
	found := duration.FindAllStringSubmatch(body, -1)
	if len(found) != 2 {
		t.Fatalf("the durations of token requests are %v", found)
	}
	sum, _ := strconv.ParseFloat(found[0][2], 64)
	count, _ := strconv.ParseFloat(found[1][2], 64)
	if count < requests || sum <= 0 || sum > 10*count {
		t.Errorf("%v token requests took %v s, want %v at least", count, sum, requests)
	}
}

// checkLabels checks that all labels have values out of a short list.
func (f *fleet) checkLabels(t *testing.T, metrics series, outcomes []string) {
	t.Helper()
	known := map[string][]string{
		"credential": slices.Collect(maps.Keys(fleetRoutes)),
		"provider":   {"oauth2"},
		"outcome":    append([]string{"ok", "transient", "refused", "malformed"}, outcomes...),
		"trigger":    {"warmup", "demand", "refresh", "rejected"},
		"result":     {"replayed_ok", "replayed_401", "not_replayable", "held_back"},
	}
	for key := range metrics {
		for _, pair := range labelPair.FindAllStringSubmatch(key, -1) {
			if !slices.Contains(known[pair[1]], pair[2]) {
				t.Errorf("%s: label %s is none of %v", key, pair[0], known[pair[1]])
			}
		}
	}
	_, all := f.admin.ask(t, http.MethodGet, "/metrics")
	lines := slices.DeleteFunc(strings.Split(all, "\n"), func(line string) bool { return !strings.Contains(line, "caddy_egress_") })
	for _, ofRequest := range []string{"c4711", "customers", "example.com", f.api.Listener.Addr().String()} {
		if strings.Contains(strings.Join(lines, "\n"), ofRequest) {
			t.Errorf("the metrics show %q of a request", ofRequest)
		}
	}
}

// getAfterReload is get where a reload has just returned: the old server shuts
// down in the background, and closes connections that it took last.
func (g *gateway) getAfterReload(path string) (resp *http.Response, body string) {
	g.t.Helper()
	eventually(g.t, "a connection", func() bool {
		var err error
		if resp, err = plainClient.Do(g.request(http.MethodGet, path, nil)); err != nil {
			return false
		}
		defer resp.Body.Close()
		read, err := io.ReadAll(resp.Body)
		body = string(read)
		return err == nil
	})
	return resp, body
}

func TestMetricsSurviveReloads(t *testing.T) {
	f := newFleet(t)
	g := startWatched(t, f.routes, withGlobal(f.global))
	f.warm(t)
	g.get("/forwarded/v1/x")
	g.get("/operation_not_allowed/v1/x")

	isGauge := func(key string) bool {
		return strings.Contains(key, "timestamp_seconds") || strings.Contains(key, "rate_limit_remaining")
	}
	before := f.metrics(t)
	for n := range 20 {
		if err := g.load("log\n" + f.routes); err != nil {
			t.Fatalf("reload %d: %v", n, err)
		}
		g.getAfterReload("/forwarded/v1/x")
		after := f.metrics(t)
		for key, was := range before {
			if is, ok := after[key]; !ok || is < was && !isGauge(key) {
				t.Errorf("reload %d: %s was %v and is %v (%v)", n, key, was, is, ok)
			}
		}
		before = after
	}
	if got, _ := before.of("requests_total", "forwarded", label("outcome", "forwarded")); got < 21 {
		t.Errorf("%v requests forwarded, want 21 at least", got)
	}

	// a config that is rejected changes nothing
	if err := g.load(f.routes + "handle /bad {\n egress oauth2 http://elsewhere.example {\n token_url http://elsewhere.example\n client_id x\n client_secret x\n }\n}"); err == nil {
		t.Error("a config that should be rejected was loaded")
	}
	if _, ok := f.metrics(t).of("token_expiry_timestamp_seconds", "forwarded"); !ok {
		t.Error("a rejected config has taken the gauge away")
	}

	// a credential that is gone keeps its counters
	g.opts = strings.SplitAfter(f.global, "\n")[0]
	if err := g.load("log\n" + egress(f.api.URL, f.tokens.URL, "")); err != nil {
		t.Fatal(err)
	}
	after := f.metrics(t)
	for key, was := range before {
		if !strings.Contains(key, `credential="forwarded"`) {
			continue
		}
		switch is, ok := after[key]; {
		case isGauge(key) && ok:
			t.Errorf("%s is still there", key)
		case !isGauge(key) && (!ok || is < was):
			t.Errorf("%s was %v and is %v (%v)", key, was, is, ok)
		}
	}
	if resp, body := f.admin.ask(t, http.MethodGet, "/egress/tokens"); strings.Contains(body, f.suffix) {
		t.Errorf("the admin API still lists it: %d %s", resp.StatusCode, body)
	}
}

func TestClientsThatLeaveAreCounted(t *testing.T) {
	f := newFleet(t)
	answer := make(chan struct{})
	f.tokens.set(func(e *tokens) { e.answer = func(http.ResponseWriter, *http.Request) { <-answer } })
	defer close(answer)
	g := startWatched(t, f.routes, withGlobal(f.global))
	eventually(t, "a client that leaves while it waits for a token", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if resp, err := plainClient.Do(g.request(http.MethodGet, "/forwarded/v1/x", nil).WithContext(ctx)); err == nil {
			resp.Body.Close()
			t.Errorf("answered %d without a token", resp.StatusCode)
		}
		metrics := f.metrics(t)
		gone, _ := metrics.of("requests_total", "forwarded", label("outcome", "client_gone"))
		waited, _ := metrics.of("token_wait_seconds_count", "forwarded")
		return gone > 0 && waited > 0 || t.Failed()
	})
}

// A token that comes when its credential is gone is nobody's.
func TestCredentialThatLeavesDuringATokenRequest(t *testing.T) {
	f := newFleet(t)
	g := startWatched(t, f.routes, withGlobal(f.global))
	f.warm(t)
	answer := make(chan struct{})
	before := f.tokens.count()
	f.tokens.set(func(e *tokens) {
		e.answer = func(w http.ResponseWriter, r *http.Request) {
			<-answer
			issue(`,"expires_in":3600`)(w, r)
		}
	})
	refreshed := make(chan struct{})
	go func() {
		defer close(refreshed)
		_, _, _ = f.admin.try(http.MethodPost, "/egress/tokens/forwarded"+f.suffix+"/refresh")
	}()
	// others are retried meanwhile
	eventually(t, "the token request", func() bool {
		return f.tokens.count() > before && f.admin.status(t, "forwarded"+f.suffix).State == "refreshing"
	})
	g.opts = strings.SplitAfter(f.global, "\n")[0]
	if err := g.load("log\n" + egress(f.api.URL, f.api.URL, "")); err != nil {
		t.Fatal(err)
	}
	close(answer)
	<-refreshed
	eventually(t, "the token", func() bool {
		n, _ := f.metrics(t).of("token_requests_total", "forwarded", label("trigger", "refresh"), label("outcome", "ok"))
		return n == 1
	})
	for key := range f.metrics(t) {
		if strings.Contains(key, "timestamp_seconds") {
			t.Errorf("%s is there", key)
		}
	}
}

func TestAdminAPI(t *testing.T) {
	voucherify, voucherifyServer := newSandbox(t, sandbox.Options{API: "voucherify", ClientID: "id", ClientSecret: testSecret})
	_, understoryServer := newSandbox(t, sandbox.Options{API: "understory", ClientID: "id", ClientSecret: testSecret})
	endpoint := newTokens(t)
	endpoint.answer = say(http.StatusUnauthorized, `{"error":"invalid_client","error_description":"`+marker+`"}`)
	admin, option := newAdmin(t)
	g := startWatched(t, "handle /a {\n egress vouchers\n}\nhandle /b {\n egress tours\n}\nhandle /c {\n egress none\n}", withGlobal(option+fmt.Sprintf(`egress {
		credential vouchers voucherify %[1]s {
			app_id id
			app_token {env.EGRESS_TEST_SECRET}
			scopes vouchers campaigns
		}
		credential tours understory %[2]s {
			token_url %[2]s/oauth2/token
			client_id id
			client_secret {env.EGRESS_TEST_SECRET}
			scopes booking.read
		}
		credential none oauth2 %[1]s {
			token_url %[3]s
			client_id id
			client_secret {env.EGRESS_TEST_SECRET}
			revocation_url %[3]s/revoke
			introspection_url %[3]s/introspect
		}
	}`, voucherifyServer.URL, understoryServer.URL, endpoint.URL)))
	state := func(name string) string { return admin.status(t, name).State }
	eventually(t, "the first tokens", func() bool {
		return state("vouchers") == "fresh" && state("tours") == "fresh" && state("none") == "refused"
	})

	t.Run("list", func(t *testing.T) {
		resp, body := admin.ask(t, http.MethodGet, "/egress/tokens")
		var all []egressmodule.CredentialStatus
		if err := json.Unmarshal([]byte(body), &all); err != nil || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Fatalf("%v: %v %s", err, resp.Header, body)
		}
		var names []string
		for _, c := range all {
			names = append(names, c.Credential)
		}
		if fmt.Sprint(names) != "[none tours vouchers]" {
			t.Errorf("lists %v", names)
		}
	})
	t.Run("one", func(t *testing.T) {
		got := admin.status(t, "vouchers")
		if got.Provider != "voucherify" || got.TokenEndpoint != voucherifyServer.URL+"/v1/oauth/token" || got.ClientID != "id" ||
			fmt.Sprint(got.ScopesRequested) != "[vouchers campaigns]" || fmt.Sprint(got.ScopesGranted) != "[vouchers campaigns]" ||
			got.LastError != nil || got.TokenRequests != 1 || got.TokenFailures != 0 || got.Remaining != nil || !got.LimitedUntil.IsZero() {
			t.Errorf("got %+v", got)
		}
		if left := time.Until(got.Expires); left > 15*time.Minute || left < 14*time.Minute || !got.NextAttempt.Before(got.Expires) {
			t.Errorf("expires at %v, next attempt at %v", got.Expires, got.NextAttempt)
		}
		g.get("/a") // the API tells how many calls are left
		if got := admin.status(t, "vouchers").Remaining; got == nil || *got != 1999 {
			t.Errorf("%v calls remain, want 1999", got)
		}
	})
	t.Run("one that fails", func(t *testing.T) {
		got := admin.status(t, "none")
		if e := got.LastError; e == nil || e.Class != "refused" || e.Status != 401 || e.Code != "invalid_client" || e.Advice == "" || e.Attempts < 1 || e.Since.IsZero() {
			t.Errorf("got %+v", e)
		}
		if got.NextAttempt.IsZero() || !got.Expires.IsZero() || got.ScopesGranted != nil || got.TokenFailures < 1 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("introspect", func(t *testing.T) {
		resp, body := admin.ask(t, http.MethodPost, "/egress/tokens/vouchers/introspect")
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"active":true`) || !strings.Contains(body, `"vouchers campaigns"`) {
			t.Errorf("answered %d %s", resp.StatusCode, body)
		}
	})
	t.Run("refresh", func(t *testing.T) {
		before := admin.status(t, "vouchers")
		resp, body := admin.ask(t, http.MethodPost, "/egress/tokens/vouchers/refresh")
		after := admin.status(t, "vouchers")
		if resp.StatusCode != http.StatusOK || !after.Issued.After(before.Issued) || after.TokenRequests != before.TokenRequests+1 {
			t.Errorf("answered %d %s; issued %v, before %v", resp.StatusCode, body, after.Issued, before.Issued)
		}
	})
	t.Run("revoke", func(t *testing.T) {
		requests := voucherify.Stats().TokenRequests
		if resp, body := admin.ask(t, http.MethodPost, "/egress/tokens/vouchers/revoke"); resp.StatusCode != http.StatusOK {
			t.Errorf("answered %d %s", resp.StatusCode, body)
		}
		if resp, body := g.get("/a"); resp.StatusCode != http.StatusNotFound || resp.Header.Get("Proxy-Status") != "" {
			t.Errorf("the next request is answered %d %s, want the API's 404", resp.StatusCode, body)
		}
		// three were issued: one was replaced, one revoked, one is in use
		if got := voucherify.Stats(); got.LiveTokens != 2 || got.TokenRequests != requests+1 {
			t.Errorf("got %+v, want 2 live tokens after %d token requests", got, requests+1)
		}
	})
	for _, test := range []struct {
		name, method, path string
		status             int
		says               string
	}{
		{"unknown name", http.MethodGet, "/egress/tokens/nobody", 404, `no credential in use is named \"nobody\"`},
		{"no name", http.MethodGet, "/egress/tokens/", 404, "no credential"},
		{"unknown name and an action", http.MethodPost, "/egress/tokens/nobody/refresh", 404, "nobody"},
		{"unknown action", http.MethodPost, "/egress/tokens/vouchers/delete", 404, "no such action: delete; there are refresh, revoke, introspect"},
		{"deeper", http.MethodPost, "/egress/tokens/vouchers/refresh/now", 404, "no such action"},
		{"method of the list", http.MethodPost, "/egress/tokens", 405, "use GET"},
		{"method of one", http.MethodDelete, "/egress/tokens/vouchers", 405, "use GET"},
		{"method of an action", http.MethodGet, "/egress/tokens/vouchers/refresh", 405, "use POST"},
		{"no token to revoke", http.MethodPost, "/egress/tokens/none/revoke", 409, "no live token"},
		{"no token to introspect", http.MethodPost, "/egress/tokens/none/introspect", 409, "no live token"},
		{"cannot revoke", http.MethodPost, "/egress/tokens/tours/revoke", 501, "does not support"},
		{"refused", http.MethodPost, "/egress/tokens/none/refresh", 502, "invalid_client"},
	} {
		t.Run(test.name, func(t *testing.T) {
			resp, body := admin.ask(t, test.method, test.path)
			var e struct {
				Error string `json:"error"`
			}
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error == "" {
				t.Errorf("not an error of Caddy's admin API: %s", body)
			}
			if resp.StatusCode != test.status || !strings.Contains(body, test.says) {
				t.Errorf("answered %d %s, want %d with %q", resp.StatusCode, body, test.status, test.says)
			}
			want := ""
			if test.status == http.StatusMethodNotAllowed {
				want = test.says[len("use "):]
			}
			if got := resp.Header.Get("Allow"); got != want {
				t.Errorf("Allow is %q, want %q", got, want)
			}
		})
	}
	t.Run("the authorization server is down", func(t *testing.T) {
		voucherifyServer.Close()
		for _, action := range []string{"introspect", "refresh", "revoke"} {
			if resp, body := admin.ask(t, http.MethodPost, "/egress/tokens/vouchers/"+action); resp.StatusCode != http.StatusBadGateway {
				t.Errorf("%s: answered %d %s, want 502", action, resp.StatusCode, body)
			}
		}
	})
	t.Run("config without egress", func(t *testing.T) {
		g.opts = option
		if err := g.load("respond 204"); err != nil {
			t.Fatal(err)
		}
		if resp, body := admin.ask(t, http.MethodGet, "/egress/tokens"); resp.StatusCode != http.StatusOK || body != "[]\n" {
			t.Errorf("answered %d %s, want an empty list", resp.StatusCode, body)
		}
		if resp, body := admin.ask(t, http.MethodGet, "/egress/tokens/vouchers"); resp.StatusCode != http.StatusNotFound {
			t.Errorf("answered %d %s, want 404", resp.StatusCode, body)
		}
	})
}

func TestAdminAPIBesideReloads(t *testing.T) {
	f := newFleet(t)
	g := startGateway(t, f.routes, withGlobal(f.global))
	f.warm(t)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var answered atomic.Int64
	for _, path := range []string{"/egress/tokens", "/egress/tokens/forwarded" + f.suffix, "/metrics", "/egress/tokens"} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, body, err := f.admin.try(http.MethodGet, path)
				if err != nil {
					continue // the server is being replaced
				}
				answered.Add(1)
				if resp.StatusCode != http.StatusOK {
					t.Errorf("%s: %d %s", path, resp.StatusCode, body)
					return
				}
				if path == "/egress/tokens" && strings.Count(body, `"credential":`) != len(fleetRoutes) {
					t.Errorf("lists %s", body)
					return
				}
			}
		})
	}
	for n := range 20 {
		before := answered.Load()
		if err := g.load(f.routes); err != nil {
			t.Errorf("reload %d: %v", n, err)
		}
		eventually(t, "answers between the reloads", func() bool { return t.Failed() || answered.Load() > before })
	}
	close(stop)
	wg.Wait()
}

// eventRecorder is a handler of events.
type eventRecorder struct{}

// recordedEvents are the events of all eventRecorders.
var recordedEvents struct {
	sync.Mutex
	all []caddy.Event
}

func init() { caddy.RegisterModule(eventRecorder{}) }

func (eventRecorder) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.egress_test", New: func() caddy.Module { return new(eventRecorder) }}
}

func (*eventRecorder) UnmarshalCaddyfile(*caddyfile.Dispenser) error { return nil }

func (*eventRecorder) Handle(_ context.Context, e caddy.Event) error {
	recordedEvents.Lock()
	defer recordedEvents.Unlock()
	recordedEvents.all = append(recordedEvents.all, e)
	return nil
}

var _ caddyevents.Handler = (*eventRecorder)(nil)

// eventsOf returns the data of the events of a name about a credential.
func eventsOf(name, credential string) (all []map[string]any) {
	recordedEvents.Lock()
	defer recordedEvents.Unlock()
	for _, e := range recordedEvents.all {
		if e.Name() == name && e.Data["credential"] == credential {
			all = append(all, e.Data)
		}
	}
	return all
}

func TestEvents(t *testing.T) {
	recordedEvents.Lock()
	recordedEvents.all = nil
	recordedEvents.Unlock()
	f := newFleet(t)
	_, sandboxServer := newSandbox(t, sandbox.Options{API: "voucherify", ClientID: "id", ClientSecret: testSecret})
	names := []string{"egress.token_obtained", "egress.token_refresh_failed", "egress.credential_refused", "egress.token_rejected", "egress.token_revoked"}
	global := f.global + "events {\n"
	for _, name := range names {
		global += "on " + name + " egress_test\n"
	}
	global = strings.Replace(global+"}\n", "egress {\n", fmt.Sprintf(
		"egress {\n credential vouchers voucherify %s {\n app_id id\n app_token {env.EGRESS_TEST_SECRET}\n scopes api\n}\n", sandboxServer.URL), 1)
	g := startWatched(t, f.routes+"handle_path /vouchers/* {\n egress vouchers\n}\n", withGlobal(global))
	f.warm(t)
	g.get("/replayed/v1/x")
	g.get("/forwarded/v1/x")
	g.get("/vouchers/v1/x")
	if resp, body := f.admin.ask(t, http.MethodPost, "/egress/tokens/vouchers/revoke"); resp.StatusCode != http.StatusOK {
		t.Fatalf("revoking: %d %s", resp.StatusCode, body)
	}

	for _, want := range []struct {
		event, credential, provider string
		data                        map[string]string
	}{
		{"egress.token_obtained", "forwarded" + f.suffix, "oauth2", map[string]string{"trigger": "warmup"}},
		{"egress.token_refresh_failed", "token_unavailable" + f.suffix, "oauth2", map[string]string{"trigger": "warmup", "live": "false", "error": "token endpoint answered 503 Service Unavailable"}},
		{"egress.credential_refused", "credential_refused" + f.suffix, "oauth2", map[string]string{"trigger": "warmup", "live": "false", "error_code": "invalid_client"}},
		{"egress.token_rejected", "replayed" + f.suffix, "oauth2", nil},
		{"egress.token_revoked", "vouchers", "voucherify", nil},
	} {
		eventually(t, want.event+" about "+want.credential, func() bool { return len(eventsOf(want.event, want.credential)) > 0 })
		got := eventsOf(want.event, want.credential)[0]
		if got["provider"] != want.provider {
			t.Errorf("%s: %v, want provider %s", want.event, got, want.provider)
		}
		for name, value := range want.data {
			if fmt.Sprint(got[name]) != value {
				t.Errorf("%s: %s is %v, want %s", want.event, name, got[name], value)
			}
		}
	}
	if expires, ok := eventsOf("egress.token_obtained", "forwarded"+f.suffix)[0]["expires"].(time.Time); !ok || time.Until(expires) < 58*time.Minute {
		t.Errorf("token_obtained says it expires at %v", expires)
	}
	for _, name := range names {
		if name != "egress.token_obtained" && len(eventsOf(name, "forwarded"+f.suffix)) > 0 {
			t.Errorf("%s about a credential that is well", name)
		}
	}
	recordedEvents.Lock()
	checkLeaks(t, "an event", fmt.Sprintf("%+v", recordedEvents.all))
	recordedEvents.Unlock()
}

// logLines returns the lines of the log with a message, as JSON objects.
func (g *gateway) logLines(message string) (lines []map[string]any) {
	for line := range strings.Lines(g.Log()) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) == nil && fields["msg"] == message {
			lines = append(lines, fields)
		}
	}
	return lines
}

func TestRefusalsDoNotFloodTheLog(t *testing.T) {
	f := newFleet(t)
	g := startWatched(t, f.routes, withGlobal(f.global))
	start := time.Now()
	const sent = 300
	for range sent {
		if resp, body := g.get("/operation_not_allowed/v1/x"); resp.StatusCode != http.StatusForbidden {
			t.Fatalf("answered %d %s", resp.StatusCode, body)
		}
	}
	g.get("/client_not_allowed/v1/x") // another kind is not hidden by that
	refused := func(outcome string) (lines []map[string]any) {
		for _, line := range g.logLines("refused a request") {
			if line["outcome"] == outcome {
				lines = append(lines, line)
			}
		}
		return lines
	}
	if got, most := len(refused("operation_not_allowed")), 2+int(time.Since(start).Seconds()); got > most {
		t.Errorf("%d requests made %d lines, want at most %d", sent, got, most)
	}
	if got := refused("client_not_allowed"); len(got) != 1 || got[0]["credential"] != "client_not_allowed"+f.suffix || got[0]["left_out"] != nil {
		t.Errorf("logged %v, want one line", got)
	}

	// the next line that is let through tells of the others
	total := sent
	eventually(t, "another line", func() bool {
		g.get("/operation_not_allowed/v1/x")
		total++
		lines := refused("operation_not_allowed")
		shown := float64(len(lines))
		for _, line := range lines {
			n, _ := line["left_out"].(float64)
			shown += n
		}
		return len(lines) > 1 && shown == float64(total)
	})
	line := refused("operation_not_allowed")[0]
	if line["level"] != "warn" || line["logger"] != "http.reverse_proxy.transport.egress" || !strings.Contains(fmt.Sprint(line["reason"]), "allow") {
		t.Errorf("logged %v", line)
	}
}

func TestLogOfAnOutage(t *testing.T) {
	f := newFleet(t)
	g := startWatched(t, f.routes, withGlobal(f.global))
	f.warm(t)
	of := func(message string) []map[string]any {
		return slices.DeleteFunc(g.logLines(message), func(line map[string]any) bool {
			return line["credential"] != "token_unavailable"+f.suffix
		})
	}
	const failed, again = "could not get a token; requests fail until one comes", "token endpoint issues tokens again"
	eventually(t, "the failure to be logged", func() bool {
		g.get("/token_unavailable/v1/x")
		return len(of(failed)) > 0
	})
	for range 50 {
		g.get("/token_unavailable/v1/x")
	}
	lines := of(failed)
	if len(lines) != 1 {
		t.Errorf("the outage is logged %d times, want once", len(lines))
	}
	for name, want := range map[string]any{"level": "error", "logger": "egress", "credential": "token_unavailable" + f.suffix, "provider": "oauth2", "status": 503.0, "error_code": ""} {
		if got := lines[0][name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"advice", "attempt", "next_attempt", "trigger", "error"} {
		if lines[0][name] == nil || lines[0][name] == "" {
			t.Errorf("the line has no %s: %v", name, lines[0])
		}
	}

	f.tokens.set(func(e *tokens) { e.answer = nil })
	eventually(t, "the end of the outage to be logged", func() bool { return len(of(again)) > 0 })
	line := of(again)[0]
	if line["level"] != "info" || line["logger"] != "egress" || line["outage"] == nil || line["attempts"] == nil {
		t.Errorf("logged %v", line)
	}
}

func TestPlaceholdersAndAccessLog(t *testing.T) {
	f := newFleet(t)
	const placeholders = "{http.reverse_proxy.egress.credential} {http.reverse_proxy.egress.outcome} {http.reverse_proxy.egress.replayed} {http.reverse_proxy.egress.token_wait}"
	routes := strings.ReplaceAll(f.routes, "header_up", `header_down X-Egress "`+placeholders+`"
		@unavailable status 503
		handle_response @unavailable {
			respond "sorry: {http.reverse_proxy.egress.outcome} of {http.reverse_proxy.egress.credential}" 503
		}
		header_up`)
	g := startWatched(t, "log_append waited {http.reverse_proxy.egress.token_wait}\n"+routes, withGlobal(f.global))
	f.warm(t)

	for path, want := range map[string]string{
		"/forwarded/v1/x":             "forwarded false 0s",
		"/replayed/v1/x":              "replayed true ", // it waited for the second token
		"/operation_not_allowed/v1/x": "operation_not_allowed false 0s",
		"/credential_refused/v1/x":    "credential_refused false ",
	} {
		name := strings.Split(path, "/")[1] + f.suffix
		resp, _ := g.get(path)
		if got := resp.Header.Get("X-Egress"); !strings.HasPrefix(got, name+" "+want) {
			t.Errorf("%s: header_down sets %q, want %q", path, got, name+" "+want)
		}
		eventually(t, "the access log of "+path, func() bool {
			for _, line := range g.logLines("handled request") {
				if line["egress_credential"] == name {
					if line["egress_outcome"] != strings.Fields(want)[0] || line["waited"] == nil {
						t.Errorf("%s: the access log says %v", path, line)
					}
					return true
				}
			}
			return false
		})
	}
	if resp, body := g.get("/token_unavailable/v1/x"); resp.StatusCode != 503 || body != "sorry: token_unavailable of token_unavailable"+f.suffix {
		t.Errorf("handle_response answers %d %q", resp.StatusCode, body)
	}
}

func TestReady(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	endpoint.answer = say(http.StatusServiceUnavailable, "")
	admin, option := newAdmin(t)
	credentials := option + fmt.Sprintf(`egress {
		credential late oauth2 %[1]s {
			token_url %[2]s
			client_id late
			client_secret {env.EGRESS_TEST_SECRET}
		}
		credential unused oauth2 %[1]s {
			token_url %[2]s
			client_id unused
			client_secret {env.EGRESS_TEST_SECRET}
		}
	}`, api.URL, endpoint.URL)
	routes := "egress_ready /ready\negress late"
	g := startWatched(t, routes, withGlobal(credentials))
	check := func(when string, status int, want string) {
		t.Helper()
		resp, body := g.getAfterReload("/ready")
		if resp.StatusCode != status || body != want+"\n" || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: answered %d %s %v, want %d %s", when, resp.StatusCode, body, resp.Header, status, want)
		}
	}
	check("before the first token", 503, `{"ready":false,"waiting":["late"]}`)

	endpoint.set(func(e *tokens) { e.answer = nil })
	eventually(t, "the first token", func() bool { return admin.status(t, "late").State == "fresh" })
	check("with a token", 200, `{"ready":true}`)

	endpoint.set(func(e *tokens) { e.answer = say(http.StatusServiceUnavailable, "") })
	if resp, body := admin.ask(t, http.MethodPost, "/egress/tokens/late/refresh"); resp.StatusCode != http.StatusBadGateway {
		t.Fatalf("refreshing: %d %s", resp.StatusCode, body)
	}
	check("in an outage", 200, `{"ready":true}`)
	if err := g.load("log\n" + routes); err != nil {
		t.Fatal(err)
	}
	check("in an outage, after a reload", 200, `{"ready":true}`)
	if resp, body := g.getAfterReload("/v1/x"); resp.StatusCode != http.StatusOK {
		t.Errorf("the route beside it answers %d %s", resp.StatusCode, body)
	}

	g.opts = option
	if err := g.load("egress_ready"); err != nil {
		t.Fatal(err)
	}
	check("without a credential", 200, `{"ready":true}`)
}

func TestRespectRateLimit(t *testing.T) {
	limited := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "2")
		w.WriteHeader(http.StatusTooManyRequests)
	}
	t.Run("off", func(t *testing.T) {
		api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
		api.handler = limited
		g := startWatched(t, egress(api.URL, endpoint.URL, ""))
		for range 5 {
			if resp, _ := g.get("/v1/x"); resp.StatusCode != 429 || resp.Header.Get("Proxy-Status") != "" {
				t.Errorf("answered %d %v, want the API's own 429", resp.StatusCode, resp.Header)
			}
		}
		if got := api.count(); got != 5 {
			t.Errorf("%d of 5 requests have reached the API", got)
		}
	})
	t.Run("on", func(t *testing.T) {
		api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
		var once sync.Once
		var at time.Time
		api.handler = func(w http.ResponseWriter, r *http.Request) {
			once.Do(func() {
				at = time.Now()
				limited(w, r)
			})
		}
		admin, option := newAdmin(t)
		routes := egress(api.URL, endpoint.URL, "respect_rate_limit")
		g := startWatched(t, routes, withGlobal(option))
		if resp, _ := g.get("/v1/x"); resp.StatusCode != 429 || resp.Header.Get("Proxy-Status") != "" || resp.Header.Get("Retry-After") != "2" {
			t.Errorf("answered %d %v, want the API's own 429", resp.StatusCode, resp.Header)
		}
		if err := g.load(routes); err != nil { // a reload does not forget
			t.Fatal(err)
		}
		if _, body := admin.ask(t, http.MethodGet, "/egress/tokens"); !strings.Contains(body, "rate_limited_until") {
			t.Errorf("the admin API does not say so: %s", body)
		}
		held := 0
		eventually(t, "the end of the limit", func() bool {
			resp, body := g.getAfterReload("/v1/x")
			if resp.StatusCode == http.StatusOK {
				return true
			}
			held++
			if resp.StatusCode != http.StatusTooManyRequests || !strings.Contains(body, `"code":"rate_limited"`) {
				t.Errorf("answered %d %s, want 429", resp.StatusCode, body)
			}
			if after := resp.Header.Get("Retry-After"); after != "1" && after != "2" {
				t.Errorf("Retry-After is %s", after)
			}
			if got := resp.Header.Get("Proxy-Status"); !strings.Contains(got, `"rate_limited"`) {
				t.Errorf("Proxy-Status is %s", got)
			}
			return t.Failed()
		})
		if took := time.Since(at); took < 2*time.Second || held == 0 || api.count() != 2 {
			t.Errorf("%d requests have reached the API, the second after %v, with %d held back between them; want 2, after 2 s", api.count(), took, held)
		}
		if _, body := admin.ask(t, http.MethodGet, "/egress/tokens"); strings.Contains(body, "rate_limited_until") {
			t.Errorf("the admin API still says that it is limited: %s", body)
		}
	})
	for name, test := range map[string]struct {
		credential, path string
		fault            sandbox.Fault
		after            int // seconds
		says             string
	}{
		"understory": {"token_url %[1]s/oauth2/token\n client_id id\n client_secret {env.EGRESS_TEST_SECRET}\n scopes booking.read", "/v1/bookings",
			sandbox.Fault{Status: 429}, 60, `"code":"rate_limited"`},
		"voucherify": {"app_id id\n app_token {env.EGRESS_TEST_SECRET}\n scopes api", "/v1/vouchers",
			sandbox.Fault{Status: 429, RetryAfter: "30"}, 30, `"key":"rate_limited"`},
	} {
		t.Run(name, func(t *testing.T) {
			api, server := newSandbox(t, sandbox.Options{API: name, ClientID: "id", ClientSecret: testSecret})
			route := func(path, option string) string {
				return fmt.Sprintf("handle_path %s/* {\n egress %s %s {\n%s\n%s\n}\n}\n", path, name, server.URL,
					strings.ReplaceAll(test.credential, "%[1]s", server.URL), option)
			}
			g := startWatched(t, route("/on", "respect_rate_limit")+route("/off", ""))
			if err := api.SetFaults(sandbox.Faults{API: test.fault}); err != nil {
				t.Fatal(err)
			}
			g.get("/on" + test.path)
			for range 3 {
				resp, body := g.get("/on" + test.path)
				if resp.StatusCode != 429 || !strings.Contains(body, test.says) {
					t.Errorf("answered %d %s", resp.StatusCode, body)
				}
				if after, _ := strconv.Atoi(resp.Header.Get("Retry-After")); after > test.after || after < test.after-10 {
					t.Errorf("Retry-After is %d, want about %d", after, test.after)
				}
			}
			if got := api.Stats().APIRequests; got != 1 {
				t.Errorf("%d requests have reached the API, want 1", got)
			}
			if err := api.SetFaults(sandbox.Faults{}); err != nil {
				t.Fatal(err)
			}
			if resp, body := g.get("/off" + test.path); resp.StatusCode != http.StatusOK {
				t.Errorf("a route without the option answers %d %s", resp.StatusCode, body)
			}
		})
	}
	t.Run("for all routes", func(t *testing.T) {
		api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
		api.handler = limited
		g := startWatched(t, egress(api.URL, endpoint.URL, ""), withGlobal("egress {\n respect_rate_limit\n}"))
		g.get("/v1/x")
		g.get("/v1/x")
		if got := api.count(); got != 1 {
			t.Errorf("%d requests have reached the API, want 1", got)
		}
	})
}
