package e2e_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/sandbox"
)

func TestRespectRateLimit(t *testing.T) {
	limitedFor := func(seconds int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", fmt.Sprint(seconds))
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}
	t.Run("off", func(t *testing.T) {
		api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
		api.Handler = limitedFor(300)
		g := egresstest.StartWatched(t, egresstest.Egress(api.URL, endpoint.URL, ""))
		for range 5 {
			if resp, _ := g.Get("/v1/x"); resp.StatusCode != 429 || resp.Header.Get("Proxy-Status") != "" {
				t.Errorf("answered %d %v, want the API's own 429", resp.StatusCode, resp.Header)
			}
		}
		if got := api.Count(); got != 5 {
			t.Errorf("%d of 5 requests have reached the API", got)
		}
	})
	t.Run("on", func(t *testing.T) {
		const wait = 6 // seconds, for a reload and what is looked at after it
		api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
		var once sync.Once
		var at time.Time
		api.Handler = func(w http.ResponseWriter, r *http.Request) {
			once.Do(func() {
				at = time.Now()
				limitedFor(wait)(w, r)
			})
		}
		admin, option := egresstest.NewAdmin(t)
		routes := egresstest.Egress(api.URL, endpoint.URL, "respect_rate_limit")
		g := egresstest.StartWatched(t, routes, egresstest.WithGlobal(option))
		if resp, _ := g.Get("/v1/x"); resp.StatusCode != 429 || resp.Header.Get("Proxy-Status") != "" || resp.Header.Get("Retry-After") != fmt.Sprint(wait) {
			t.Errorf("answered %d %v, want the API's own 429", resp.StatusCode, resp.Header)
		}
		if err := g.Load(routes); err != nil { // a reload does not forget
			t.Fatal(err)
		}
		if _, body := admin.Ask(t, http.MethodGet, "/egress/tokens"); !strings.Contains(body, "rate_limited_until") {
			t.Errorf("the admin API does not say so: %s", body)
		}
		held := 0
		egresstest.Eventually(t, "the end of the limit", func() bool {
			resp, body := g.GetAfterReload("/v1/x")
			if resp.StatusCode == http.StatusOK {
				return true
			}
			held++
			if resp.StatusCode != http.StatusTooManyRequests || !strings.Contains(body, `"code":"rate_limited"`) {
				t.Errorf("answered %d %s, want 429", resp.StatusCode, body)
			}
			if after, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || after < 1 || after > wait {
				t.Errorf("Retry-After is %q", resp.Header.Get("Retry-After"))
			}
			if got := resp.Header.Get("Proxy-Status"); !strings.Contains(got, `"rate_limited"`) {
				t.Errorf("Proxy-Status is %s", got)
			}
			return t.Failed()
		})
		if took := time.Since(at); took < wait*time.Second || held == 0 || api.Count() != 2 {
			t.Errorf("%d requests have reached the API, the second after %v, with %d held back between them; want 2, after %d s", api.Count(), took, held, wait)
		}
		if _, body := admin.Ask(t, http.MethodGet, "/egress/tokens"); strings.Contains(body, "rate_limited_until") {
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
			api, server := egresstest.NewSandbox(t, name)
			route := func(path, option string) string {
				return fmt.Sprintf("handle_path %s/* {\n egress %s %s {\n%s\n%s\n}\n}\n", path, name, server.URL,
					strings.ReplaceAll(test.credential, "%[1]s", server.URL), option)
			}
			g := egresstest.StartWatched(t, route("/on", "respect_rate_limit")+route("/off", ""))
			if err := api.SetFaults(sandbox.Faults{API: test.fault}); err != nil {
				t.Fatal(err)
			}
			g.Get("/on" + test.path)
			for range 3 {
				resp, body := g.Get("/on" + test.path)
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
			if resp, body := g.Get("/off" + test.path); resp.StatusCode != http.StatusOK {
				t.Errorf("a route without the option answers %d %s", resp.StatusCode, body)
			}
		})
	}
	t.Run("for all routes", func(t *testing.T) {
		api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
		api.Handler = limitedFor(300)
		g := egresstest.StartWatched(t, egresstest.Egress(api.URL, endpoint.URL, ""), egresstest.WithGlobal("egress {\n respect_rate_limit\n}"))
		g.Get("/v1/x")
		g.Get("/v1/x")
		if got := api.Count(); got != 1 {
			t.Errorf("%d requests have reached the API, want 1", got)
		}
	})
}

// A rate limit is that of a credential: another one that has its name after a
// reload has none of it.
func TestRateLimitDoesNotOutliveItsCredential(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	var limited atomic.Bool
	api.Handler = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-RateLimit-Remaining", "7")
		if limited.Load() {
			w.Header().Set("Retry-After", "300")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}
	admin, option := egresstest.NewAdmin(t)
	config := func(client string) egresstest.GatewayOption {
		return egresstest.WithGlobal(option + fmt.Sprintf(`
	egress {
		credential promo oauth2 %s {
			token_url %s
			client_id %s
			client_secret {env.%s}
		}
	}`, api.URL, endpoint.URL, client, egresstest.SecretVariable))
	}
	const routes = "egress promo {\n respect_rate_limit\n}"
	limited.Store(true)
	g := egresstest.StartGateway(t, routes, config("one"))
	g.Get("/v1/x")
	if resp, body := g.Get("/v1/x"); !strings.Contains(body, `"code":"rate_limited"`) {
		t.Fatalf("answered %d %s, want the gateway's 429", resp.StatusCode, body)
	}
	limited.Store(false)
	config("another")(g)
	if err := g.Load(routes); err != nil {
		t.Fatal(err)
	}
	if _, body := admin.Ask(t, http.MethodGet, "/egress/tokens"); strings.Contains(body, `"rate_limit`) || !strings.Contains(body, `"client_id":"another"`) {
		t.Errorf("the other credential's status has the limit of the first: %s", body)
	}
	if resp, body := g.GetAfterReload("/v1/x"); resp.StatusCode != http.StatusOK {
		t.Errorf("the other credential is answered %d %s, want 200", resp.StatusCode, body)
	}
}

// What one client was told with a 429 blocks the others for a while at most,
// whatever time the API has named.
func TestRateLimitCountsForMost(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/limited") {
			w.Header().Set("Retry-After", "300")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}
	var routes string
	for path, option := range map[string]string{"/short/": "respect_rate_limit 1s", "/minute/": "respect_rate_limit", "/long/": "respect_rate_limit 5m"} {
		routes += egresstest.Site(path, egresstest.Egress(api.URL, endpoint.URL, option))
	}
	g := egresstest.StartGateway(t, routes)
	if resp, _ := g.Get("/long/limited"); resp.Header.Get("Retry-After") != "300" {
		t.Errorf("the API's own answer has %v", resp.Header)
	}
	for path, most := range map[string]int{"/short/": 1, "/minute/": 60, "/long/": 300} {
		resp, body := g.Get(path)
		if path == "/short/" && resp.StatusCode == http.StatusOK { // it took that long
			continue
		}
		after, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		if !strings.Contains(body, `"code":"rate_limited"`) || after > most || after < most-20 {
			t.Errorf("%s: answered %d %s with Retry-After %d, want about %d", path, resp.StatusCode, body, after, most)
		}
	}
	egresstest.Eventually(t, "the end of the limit", func() bool {
		resp, _ := g.Get("/short/")
		return resp.StatusCode == http.StatusOK
	})
}
