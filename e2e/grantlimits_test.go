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
)

// checkWait checks a 429 of the gateway, which says when to come again.
func checkWait(t *testing.T, resp *http.Response, body, key string, most int) {
	t.Helper()
	egresstest.CheckRefused(t, resp, body, http.StatusTooManyRequests, key)
	if wait, err := strconv.Atoi(resp.Header.Get("Retry-After")); err != nil || wait < 1 || wait > most {
		t.Errorf("%s: Retry-After is %q, want 1 to %d", key, resp.Header.Get("Retry-After"), most)
	}
}

// A caller may make so many requests at once, and no more until time has passed;
// others have a limit of their own, or none.
func TestLimitOfACaller(t *testing.T) {
	s := newGrantStage(t, egresstest.Site("/v1", "egress plain {\n grant shop agent {\n limit 5/h\n allow GET /v1/*\n}\n grant nightly\n}")+
		egresstest.Site("/v2", "egress plain {\n grant * {\n limit 3/m\n}\n}"))
	for range 20 { // they are refused before they are counted
		resp, body := ask(s.g, http.MethodPost, "/v1/x", "Authorization", "Bearer "+egresstest.Key("shop"))
		egresstest.CheckRefused(t, resp, body, http.StatusForbidden, "operation_not_allowed")
	}
	use := func(caller, path string, n, wait int) {
		t.Helper()
		for i := range n {
			if resp, body := s.as(caller, path); resp.StatusCode != http.StatusOK {
				t.Errorf("request %d of %s to %s: %d %s", i, caller, path, resp.StatusCode, body)
			}
		}
		before := s.api.Count()
		for range 20 {
			resp, body := s.as(caller, path)
			checkWait(t, resp, body, "caller_limited", wait)
		}
		if s.api.Count() != before {
			t.Errorf("%s has reached the API beyond its limit", caller)
		}
	}
	use("shop", "/v1/x", 5, 720)
	for range 30 {
		if resp, body := s.as("nightly", "/v1/x"); resp.StatusCode != http.StatusOK {
			t.Errorf("another caller: %d %s", resp.StatusCode, body)
		}
	}
	use("agent", "/v1/x", 5, 720)
	use("shop", "/v2/x", 3, 20) // a limit is of one grant
	resp, body := s.as("shop", "/v1/x")
	checkWait(t, resp, body, "caller_limited", 720)
}

// A request that reverse_proxy tries again is one request, however often.
func TestLimitWithRetries(t *testing.T) {
	s := newGrantStage(t, "egress plain {\n lb_retries 5\n lb_try_duration 5s\n lb_try_interval 10ms\n grant shop {\n limit 3/h\n}\n}")
	if resp, body := s.as("shop", "/v1/x"); resp.StatusCode != http.StatusOK {
		t.Fatalf("answered %d %s", resp.StatusCode, body)
	}
	s.api.Close()
	for range 2 {
		if resp, body := s.as("shop", "/v1/x"); resp.StatusCode != http.StatusBadGateway {
			t.Errorf("answered %d %s, want that the API cannot be reached", resp.StatusCode, body)
		}
	}
	resp, body := s.as("shop", "/v1/x")
	checkWait(t, resp, body, "caller_limited", 1200)
}

// A limit is kept within 5 % under load.
func TestLimitUnderLoad(t *testing.T) {
	const limit, duration = 100, 4 * time.Second
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	callers := egresstest.Caller(t, "limited") + egresstest.Caller(t, "free")
	g := egresstest.StartGateway(t, fmt.Sprintf("egress plain {\n grant limited {\n limit %d/s\n}\n grant free\n}", limit), egresstest.WithoutLog(),
		egresstest.WithCallers("egress {\n"+plainCredential(api.URL, endpoint.URL)+callers+"}"))
	limited, free := keyedClient(t, "limited", "127.0.0.1"), keyedClient(t, "free", "127.0.0.1")
	get := func(client *http.Client) int {
		resp, err := client.Get(g.URL + "/v1/x")
		if err != nil {
			t.Error(err)
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	use := usage{limit: limit, start: time.Now()}
	running := func() bool { // for longer if others keep the machine from sending that many
		took := time.Since(use.start)
		return !t.Failed() && (took < duration || took < 5*duration && !use.reached())
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond) // 800 a second
			defer tick.Stop()
			for running() {
				sent := time.Now()
				switch status := get(limited); status {
				case http.StatusOK, http.StatusTooManyRequests:
					use.note(sent, status == http.StatusOK)
				default:
					t.Errorf("answered %d", status)
				}
				<-tick.C
			}
		})
	}
	served := 0
	tick := time.NewTicker(5 * time.Millisecond) // the machine is left to the others, who have to reach their limit
	defer tick.Stop()
	for running() {
		if status := get(free); status != http.StatusOK {
			t.Errorf("a caller without a limit is answered %d", status)
		}
		served++
		<-tick.C
	}
	wg.Wait()
	least, most := use.bounds()
	t.Logf("%d passed and %d were refused, want %.0f to %.0f; %d of another caller", use.passed, use.refused, least, most, served)
	if got := float64(use.passed); got < 0.95*least || got > 1.05*most || use.refused == 0 {
		t.Errorf("%.0f requests passed, want %.0f to %.0f", got, least, most)
	}
	if got := api.Count(); got != use.passed+served {
		t.Errorf("%d requests have arrived, want %d", got, use.passed+served)
	}
}

// usage is what a caller with a limit was given. What it does not ask for in time is
// lost to it, since no more than a second's is kept.
type usage struct {
	limit float64 // a second
	start time.Time

	mu              sync.Mutex
	passed, refused int
	kept, lost      float64   // at last
	last            time.Time // answer
	lastRefused     time.Time // request was sent, when no more was left
}

// note notes that a request was answered just now.
func (u *usage) note(sent time.Time, passed bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	if u.last.IsZero() {
		u.kept, u.last = u.limit, u.start
	}
	u.kept += u.limit * now.Sub(u.last).Seconds()
	u.lost += max(u.kept-u.limit, 0)
	u.kept, u.last = min(u.kept, u.limit), now
	if passed {
		u.passed++
		u.kept--
	} else {
		u.refused++
		u.lastRefused = sent
	}
}

// reached reports whether a request was refused.
func (u *usage) reached() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.refused > 0
}

// bounds returns how many requests have to pass at least, as long as more were sent
// than could pass, and how many may.
func (u *usage) bounds() (least, most float64) {
	return u.limit*(1+u.lastRefused.Sub(u.start).Seconds()) - u.lost, u.limit * (1 + u.last.Sub(u.start).Seconds())
}

// quota is an API that lets so many calls be made, and says how many are left.
type quota struct {
	limit int64
	used  atomic.Int64
	retry atomic.Int64 // when it begins anew, in Unix seconds
}

func (q *quota) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	left := q.limit - q.used.Add(1)
	w.Header().Set("X-Rate-Limit-Limit", fmt.Sprint(q.limit))
	w.Header().Set("X-Rate-Limit-Remaining", fmt.Sprint(max(left, 0)))
	if retry := q.retry.Load(); retry > 0 {
		w.Header().Set("X-Rate-Limit-Retry", fmt.Sprint(retry))
	}
	w.Header().Set("Content-Type", "application/json")
	if left < 0 {
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	_, _ = w.Write([]byte("{}"))
}

// What is reserved of the API's quota is left to those without a reserve, within
// 5 % under load.
func TestReserveUnderLoad(t *testing.T) {
	service := egresstest.NewService(t)
	api := &quota{limit: 1000}
	api.retry.Store(time.Now().Add(time.Hour).Unix())
	service.API.Handler = api.ServeHTTP
	callers := egresstest.Caller(t, "agent") + egresstest.Caller(t, "shop") + egresstest.Caller(t, "nightly")
	g := egresstest.StartGateway(t, "egress promo {\n grant agent {\n reserve 20%\n}\n grant nightly {\n reserve 10%\n}\n grant shop\n}", egresstest.WithoutLog(),
		egresstest.WithCallers("egress {\n"+service.Credential("promo", "voucherify", "")+callers+"}"))
	// use has workers use the API until they are refused, and returns how often
	// they were not
	use := func(caller string, workers int, status int) int {
		client := keyedClient(t, caller, "127.0.0.1")
		var passed atomic.Int64
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for !t.Failed() {
					resp, err := client.Get(g.URL + "/v1/vouchers")
					if err != nil {
						t.Error(err)
						return
					}
					resp.Body.Close()
					if resp.StatusCode == status {
						return
					} else if resp.StatusCode != http.StatusOK {
						t.Errorf("%s is answered %d", caller, resp.StatusCode)
					}
					passed.Add(1)
				}
			})
		}
		wg.Wait()
		return int(passed.Load())
	}
	const workers = 8
	agent := use("agent", workers, http.StatusTooManyRequests)
	left := api.used.Load()
	nightly := use("nightly", workers, http.StatusTooManyRequests)
	t.Logf("the agent was served %d times, of 800; the nightly job %d, of 100", agent, nightly)
	if agent < 800-workers || agent > 800+workers || agent+nightly < 900-workers || agent+nightly > 900+workers {
		t.Errorf("served %d and %d times, want 800 and 100, or as many more or less as are under way", agent, nightly)
	}
	if got := int(left); got != agent {
		t.Errorf("%d requests of the agent have arrived, want %d", got, agent)
	}
	req := g.Request(http.MethodGet, "/v1/vouchers", nil)
	req.Header.Set("X-App-Token", egresstest.Key("agent"))
	resp, body := g.Do(req)
	if wait, err := strconv.Atoi(resp.Header.Get("Retry-After")); resp.StatusCode != 429 || !strings.Contains(body, "quota_reserved") || err != nil || wait < 1 {
		t.Errorf("the agent is answered %d %s, Retry-After %q", resp.StatusCode, body, resp.Header.Get("Retry-After"))
	}
	before := api.used.Load()
	if shop := use("shop", 1, http.StatusTooManyRequests); int64(shop) != api.limit-before { // until the API itself refuses
		t.Errorf("the shop was served %d times, want the rest, %d", shop, api.limit-before)
	}
}

// A caller that is refused for the sake of others is served again when the quota
// begins anew, whoever finds out, and where the API does not say how much is left.
func TestReserveEnds(t *testing.T) {
	start := func(t *testing.T, left int) (*quota, *egresstest.Gateway, func(caller string) int) {
		service := egresstest.NewService(t)
		api := &quota{limit: 100}
		api.used.Store(int64(100 - left))
		service.API.Handler = api.ServeHTTP
		callers := egresstest.Caller(t, "agent") + egresstest.Caller(t, "shop")
		g := egresstest.StartGateway(t, "egress promo {\n grant agent {\n reserve 20%\n}\n grant shop\n}",
			egresstest.WithCallers("egress {\n"+service.Credential("promo", "voucherify", "")+callers+"}"))
		return api, g, func(caller string) int {
			t.Helper()
			resp, _ := ask(g, http.MethodGet, "/v1/vouchers", "X-App-Token", egresstest.Key(caller))
			return resp.StatusCode
		}
	}
	t.Run("by another caller", func(t *testing.T) {
		api, _, as := start(t, 15)
		api.retry.Store(time.Now().Add(time.Hour).Unix())
		if first, second := as("agent"), as("agent"); first != 200 || second != 429 {
			t.Errorf("answered %d and %d, want 200 and 429", first, second)
		}
		api.used.Store(0)
		if shop, agent := as("shop"), as("agent"); shop != 200 || agent != 200 {
			t.Errorf("the shop is answered %d, and the agent %d", shop, agent)
		}
	})
	t.Run("by time", func(t *testing.T) {
		api, _, as := start(t, 15)
		api.retry.Store(time.Now().Add(2 * time.Second).Unix())
		if first := as("agent"); first != 200 {
			t.Errorf("answered %d", first)
		}
		refused := 0
		egresstest.Eventually(t, "the agent to be served", func() bool {
			if as("agent") != 200 {
				refused++
				return false
			}
			return true
		})
		t.Logf("refused %d times", refused)
	})
	t.Run("by a reload", func(t *testing.T) {
		api, g, as := start(t, 15)
		api.retry.Store(time.Now().Add(time.Hour).Unix())
		as("agent")
		if err := g.Load("egress promo {\n grant agent {\n reserve 5%\n}\n}"); err != nil {
			t.Fatal(err)
		}
		egresstest.Eventually(t, "the agent to be served", func() bool {
			req := g.Request(http.MethodGet, "/v1/vouchers", nil)
			req.Header.Set("X-App-Token", egresstest.Key("agent"))
			resp, _, err := g.Try(req)
			return err == nil && resp.StatusCode == 200
		})
	})
	t.Run("without a word of the API", func(t *testing.T) {
		s := newGrantStage(t, "egress plain {\n grant agent {\n reserve 99%\n}\n}")
		for range 5 {
			if resp, body := s.as("agent", "/v1/x"); resp.StatusCode != http.StatusOK {
				t.Errorf("answered %d %s", resp.StatusCode, body)
			}
		}
	})
}
