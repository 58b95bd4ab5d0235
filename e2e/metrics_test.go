package e2e_test

import (
	"context"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestMetrics(t *testing.T) {
	f := newManyCredentials(t)
	g := egresstest.StartWatched(t, f.routes, egresstest.WithGlobal(f.global))
	f.warm(t)

	outcomes := []string{
		"forwarded", "replayed", "token_unavailable", "credential_refused", "rate_limited", "client_not_allowed",
		"host_not_allowed", "origin_not_allowed", "operation_not_allowed", "api_host_not_allowed", "bad_request",
		"preflight",
	}
	all := append(slices.Clone(outcomes), "client_gone", "loop_detected", "too_many_uploads") // which have tests of their own
	start := f.admin.Metrics(t, f.suffix)
	for name := range manyRoutes { // they appear with the first request
		if n := start.Sum("requests_total", name); n != 0 {
			t.Errorf("%v requests of %s before the first", n, name)
		}
		// but a first failure has to show as an increase
		for _, outcome := range []string{"transient", "refused"} {
			if _, ok := start.Of("token_requests_total", name, egresstest.Label("trigger", "refresh"), egresstest.Label("outcome", outcome)); !ok {
				t.Errorf("token_requests_total of %s for %s refreshes is absent", name, outcome)
			}
		}
	}

	// one request for each outcome, with an id in path, query and header
	for _, outcome := range outcomes {
		req := g.Request(http.MethodGet, "/"+outcome+"/v1/customers/c4711?q=c4711", nil)
		req.Header.Set("X-Request-Id", "c4711")
		switch outcome {
		case "host_not_allowed":
			req.Host = "c4711.example.com"
		case "origin_not_allowed":
			req.Header.Set("Origin", "https://c4711.example.com")
		case "bad_request":
			req.Method = http.MethodTrace
		case "preflight":
			req.Method = http.MethodOptions
			req.Header.Set("Origin", "https://app.example.com")
			req.Header.Set("Access-Control-Request-Method", "c4711")
		case "rate_limited":
			g.Do(req.Clone(t.Context())) // this one goes to the API
		}
		before := f.admin.Metrics(t, f.suffix)
		resp, body := g.Do(req)
		after := f.admin.Metrics(t, f.suffix)
		for _, other := range all {
			was, _ := before.Of("requests_total", outcome, egresstest.Label("outcome", other))
			is, _ := after.Of("requests_total", outcome, egresstest.Label("outcome", other))
			if want := map[bool]float64{true: 1}[other == outcome]; is-was != want {
				t.Errorf("a request answered %d %s counts %v times as %s, want %v", resp.StatusCode, body, is-was, other, want)
			}
		}
	}
	// replayed, and answered 401 again; then held back, unless the next one comes too late for that
	always401 := 0.0
	egresstest.Eventually(t, "a 401 that is held back", func() bool {
		g.Get("/always_401/v1/x")
		always401++
		n, _ := f.admin.Metrics(t, f.suffix).Of("upstream_unauthorized_total", "always_401", egresstest.Label("result", "held_back"))
		return n > 0
	})
	g.Do(g.Request(http.MethodPost, "/not_replayable/v1/x", strings.NewReader("body")))

	// a token is only refreshed if it was wanted shortly before, which warming up may be too long ago for
	egresstest.Eventually(t, "a refresh", func() bool {
		n, _ := f.admin.Metrics(t, f.suffix).Of("token_requests_total", "short", egresstest.Label("trigger", "refresh"), egresstest.Label("outcome", "ok"))
		if n == 0 {
			g.Get("/short/v1/x")
		}
		return n > 0
	})
	// a token that nobody uses lapses: the next request has to wait for one
	egresstest.Eventually(t, "a request that waits for a token", func() bool {
		if f.admin.Status(t, "short"+f.suffix).State != "idle" {
			return false
		}
		g.Get("/short/v1/x") // unless a refresh was about to happen
		n, _ := f.admin.Metrics(t, f.suffix).Of("token_requests_total", "short", egresstest.Label("trigger", "demand"), egresstest.Label("outcome", "ok"))
		return n > 0
	})
	metrics := f.admin.Metrics(t, f.suffix)

	type expected struct {
		name, credential string
		labels           []string
		least, most      float64
	}
	now := float64(time.Now().Unix())
	for _, want := range []expected{
		{"token_requests_total", "forwarded", []string{egresstest.Label("trigger", "warmup"), egresstest.Label("outcome", "ok")}, 1, 1},
		{"token_requests_total", "short", []string{egresstest.Label("trigger", "demand"), egresstest.Label("outcome", "ok")}, 1, 9},
		{"token_requests_total", "short", []string{egresstest.Label("trigger", "refresh"), egresstest.Label("outcome", "ok")}, 1, 99},
		{"token_requests_total", "replayed", []string{egresstest.Label("trigger", "rejected"), egresstest.Label("outcome", "ok")}, 1, 1},
		{"token_requests_total", "token_unavailable", []string{egresstest.Label("trigger", "warmup"), egresstest.Label("outcome", "transient")}, 1, 99},
		{"token_requests_total", "credential_refused", []string{egresstest.Label("trigger", "warmup"), egresstest.Label("outcome", "refused")}, 1, 9},
		{"token_requests_total", "malformed", []string{egresstest.Label("trigger", "warmup"), egresstest.Label("outcome", "malformed")}, 1, 99},
		// from the first request on, alerts have what they compare with
		{"requests_total", "forwarded", []string{egresstest.Label("outcome", "token_unavailable")}, 0, 0},
		{"requests_total", "forwarded", []string{egresstest.Label("outcome", "credential_refused")}, 0, 0},
		{"upstream_unauthorized_total", "forwarded", []string{egresstest.Label("result", "replayed_401")}, 0, 0},
		{"token_wait_seconds_count", "forwarded", nil, 0, 0},
		{"token_wait_seconds_count", "short", nil, 1, 9},
		{"token_wait_seconds_sum", "short", nil, 1e-6, 10},
		{"token_expiry_timestamp_seconds", "forwarded", nil, now + 3500, now + 3600},
		{"token_last_success_timestamp_seconds", "forwarded", nil, now - 100, now + 1},
		{"upstream_unauthorized_total", "replayed", []string{egresstest.Label("result", "replayed_ok")}, 1, 1},
		{"upstream_unauthorized_total", "always_401", []string{egresstest.Label("result", "replayed_401")}, always401 - 1, always401 - 1},
		{"upstream_unauthorized_total", "always_401", []string{egresstest.Label("result", "held_back")}, 1, 1},
		{"upstream_unauthorized_total", "not_replayable", []string{egresstest.Label("result", "not_replayable")}, 1, 1},
		{"upstream_unauthorized_total", "forwarded", []string{egresstest.Label("result", "held_back")}, 0, 0},
		{"rate_limited_total", "rate_limited", nil, 1, 1},
		{"rate_limited_total", "forwarded", nil, 0, 0},
		{"rate_limit_remaining", "forwarded", nil, 1234, 1234},
		{"rate_limit_remaining", "rate_limited", nil, 0, 0},
	} {
		got, ok := metrics.Of(want.name, want.credential, want.labels...)
		if !ok || got < want.least || got > want.most {
			t.Errorf("%s%v of %s is %v (%v), want %v to %v", want.name, want.labels, want.credential, got, ok, want.least, want.most)
		}
	}
	for _, absent := range [][2]string{
		{"rate_limit_remaining", "replayed"}, // the API has not said
		{"token_expiry_timestamp_seconds", "token_unavailable"},
		{"token_last_success_timestamp_seconds", "credential_refused"},
	} {
		if got, ok := metrics.Of(absent[0], absent[1]); ok {
			t.Errorf("%s of %s is %v, want none", absent[0], absent[1], got)
		}
	}
	f.checkLabels(t, metrics, all)
	f.checkDurations(t, metrics)
}

// checkDurations checks how long token requests took, which belongs to the
// token endpoint.
func (f *manyCredentials) checkDurations(t *testing.T, metrics egresstest.Series) {
	t.Helper()
	var requests float64
	for name := range manyRoutes {
		requests += metrics.Sum("token_requests_total", name)
	}
	_, body := f.admin.Ask(t, http.MethodGet, "/metrics")
	labels := regexp.QuoteMeta(`{provider="oauth2",token_endpoint="` + f.tokens.URL + `"} `)
	of := func(name string) float64 {
		match := regexp.MustCompile(`caddy_egress_token_request_duration_seconds_` + name + labels + `(\S+)`).FindStringSubmatch(body)
		if match == nil {
			t.Fatalf("there is no %s of durations", name)
		}
		value, err := strconv.ParseFloat(match[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
	if count, sum := of("count"), of("sum"); count < requests || sum <= 0 || sum > 10*count {
		t.Errorf("%v token requests took %v s, want %v requests at least", count, sum, requests)
	}
}

// checkLabels checks that all labels have values out of a short list.
func (f *manyCredentials) checkLabels(t *testing.T, metrics egresstest.Series, outcomes []string) {
	t.Helper()
	known := map[string][]string{
		"credential": slices.Collect(maps.Keys(manyRoutes)),
		"provider":   {"oauth2"},
		"outcome":    append([]string{"ok", "transient", "refused", "malformed"}, outcomes...),
		"trigger":    {"warmup", "demand", "refresh", "rejected"},
		"result":     {"replayed_ok", "replayed_401", "not_replayable", "held_back"},
	}
	for key := range metrics {
		for _, pair := range egresstest.LabelPair.FindAllStringSubmatch(key, -1) {
			if !slices.Contains(known[pair[1]], pair[2]) {
				t.Errorf("%s: label %s is none of %v", key, pair[0], known[pair[1]])
			}
		}
	}
	_, all := f.admin.Ask(t, http.MethodGet, "/metrics")
	lines := slices.DeleteFunc(strings.Split(all, "\n"), func(line string) bool { return !strings.Contains(line, "caddy_egress_") })
	for _, ofRequest := range []string{"c4711", "customers", "example.com", f.api.Listener.Addr().String()} {
		if strings.Contains(strings.Join(lines, "\n"), ofRequest) {
			t.Errorf("the metrics show %q of a request", ofRequest)
		}
	}
}

func TestMetricsSurviveReloads(t *testing.T) {
	f := newManyCredentials(t)
	g := egresstest.StartWatched(t, f.routes, egresstest.WithGlobal(f.global))
	f.warm(t)
	g.Get("/forwarded/v1/x")
	g.Get("/operation_not_allowed/v1/x")

	isGauge := func(key string) bool {
		return strings.Contains(key, "timestamp_seconds") || strings.Contains(key, "rate_limit_remaining")
	}
	before := f.admin.Metrics(t, f.suffix)
	for n := range 20 {
		if err := g.Load("log\n" + f.routes); err != nil {
			t.Fatalf("reload %d: %v", n, err)
		}
		g.GetAfterReload("/forwarded/v1/x")
		after := f.admin.Metrics(t, f.suffix)
		for key, was := range before {
			if is, ok := after[key]; !ok || is < was && !isGauge(key) {
				t.Errorf("reload %d: %s was %v and is %v (%v)", n, key, was, is, ok)
			}
		}
		before = after
	}
	if got, _ := before.Of("requests_total", "forwarded", egresstest.Label("outcome", "forwarded")); got < 21 {
		t.Errorf("%v requests forwarded, want 21 at least", got)
	}

	// a config that is rejected changes nothing
	if err := g.Load(f.routes + "handle /bad {\n egress oauth2 http://elsewhere.example {\n token_url http://elsewhere.example\n client_id x\n client_secret x\n }\n}"); err == nil {
		t.Error("a config that should be rejected was loaded")
	}
	if _, ok := f.admin.Metrics(t, f.suffix).Of("token_expiry_timestamp_seconds", "forwarded"); !ok {
		t.Error("a rejected config has taken the gauge away")
	}

	// a credential that is gone keeps its counters
	g.Global = strings.SplitAfter(f.global, "\n")[0]
	if err := g.Load("log\n" + egresstest.Egress(f.api.URL, f.tokens.URL, "")); err != nil {
		t.Fatal(err)
	}
	after := f.admin.Metrics(t, f.suffix)
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
	if resp, body := f.admin.Ask(t, http.MethodGet, "/egress/tokens"); strings.Contains(body, f.suffix) {
		t.Errorf("the admin API still lists it: %d %s", resp.StatusCode, body)
	}
}

func TestClientsThatLeaveAreCounted(t *testing.T) {
	f := newManyCredentials(t)
	answer := make(chan struct{})
	f.tokens.Set(func(e *egresstest.Tokens) { e.Answer = func(http.ResponseWriter, *http.Request) { <-answer } })
	defer close(answer)
	g := egresstest.StartWatched(t, f.routes, egresstest.WithGlobal(f.global))
	egresstest.Eventually(t, "a client that leaves while it waits for a token", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if resp, err := egresstest.Client.Do(g.Request(http.MethodGet, "/forwarded/v1/x", nil).WithContext(ctx)); err == nil {
			resp.Body.Close()
			t.Errorf("answered %d without a token", resp.StatusCode)
		}
		metrics := f.admin.Metrics(t, f.suffix)
		gone, _ := metrics.Of("requests_total", "forwarded", egresstest.Label("outcome", "client_gone"))
		waited, _ := metrics.Of("token_wait_seconds_count", "forwarded")
		return gone > 0 && waited > 0 || t.Failed()
	})
}

// A token that comes once its credential is gone leaves no gauge behind.
// What the API has not answered is counted once for each try, unless it is the
// client that has not waited.
func TestUnansweredRequestsAreCounted(t *testing.T) {
	f := newManyCredentials(t)
	g := egresstest.StartWatched(t, "log\n"+f.routes, egresstest.WithGlobal(f.global))
	f.warm(t)

	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := egresstest.Client.Do(g.Request(http.MethodGet, "/hanging/v1/left", nil).WithContext(ctx))
		left <- err
	}()
	egresstest.Eventually(t, "the request that its client leaves", func() bool { return len(f.api.Under("/v1/left")) > 0 })
	leave()
	if err := <-left; err == nil {
		t.Error("the client has left, and was answered")
	}
	egresstest.Eventually(t, "the end of that request", func() bool {
		return strings.Contains(g.Log(), `"uri":"/hanging/v1/left"`)
	})
	g.Get("/forwarded/v1/x")
	g.Get("/silent/v1/x") // and once more, by lb_retries

	metrics := f.admin.Metrics(t, f.suffix)
	for credential, want := range map[string]float64{"forwarded": 0, "hanging": 0, "silent": 2} {
		if got, ok := metrics.Of("upstream_failures_total", credential); !ok || got != want {
			t.Errorf("upstream_failures_total of %s is %v (%v), want %v", credential, got, ok, want)
		}
	}
}

func TestCredentialThatLeavesDuringATokenRequest(t *testing.T) {
	f := newManyCredentials(t)
	g := egresstest.StartWatched(t, f.routes, egresstest.WithGlobal(f.global))
	f.warm(t)
	answer := make(chan struct{})
	before := f.tokens.Count()
	f.tokens.Set(func(e *egresstest.Tokens) {
		e.Answer = func(w http.ResponseWriter, r *http.Request) {
			<-answer
			egresstest.Issue(`,"expires_in":3600`)(w, r)
		}
	})
	refreshed := make(chan struct{})
	go func() {
		defer close(refreshed)
		_, _, _ = f.admin.Try(http.MethodPost, "/egress/tokens/forwarded"+f.suffix+"/refresh")
	}()
	// others are retried meanwhile
	egresstest.Eventually(t, "the token request", func() bool {
		return f.tokens.Count() > before && f.admin.Status(t, "forwarded"+f.suffix).State == "refreshing"
	})
	g.Global = strings.SplitAfter(f.global, "\n")[0]
	if err := g.Load("log\n" + egresstest.Egress(f.api.URL, f.api.URL, "")); err != nil {
		t.Fatal(err)
	}
	close(answer)
	<-refreshed
	egresstest.Eventually(t, "the token", func() bool {
		n, _ := f.admin.Metrics(t, f.suffix).Of("token_requests_total", "forwarded", egresstest.Label("trigger", "refresh"), egresstest.Label("outcome", "ok"))
		return n == 1
	})
	for key := range f.admin.Metrics(t, f.suffix) {
		if strings.Contains(key, "timestamp_seconds") {
			t.Errorf("%s is there", key)
		}
	}
}
