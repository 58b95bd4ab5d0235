package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// A token that cannot be had says nothing about the API: its upstream stays
// available, and another try would not help.
func TestTokenFailuresAreNotUpstreamFailures(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	endpoint.Answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	start := time.Now()
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, `
		fail_duration   1m
		max_fails       1
		lb_retries      5
		lb_try_duration 5s
		lb_try_interval 1ms
	`))
	const requests = 20
	for range requests {
		resp, body := g.Get("/v1/x")
		egresstest.CheckRefused(t, resp, body, http.StatusServiceUnavailable, "token_unavailable")
	}
	if tries := len(g.LogLines("selected upstream")); tries != requests {
		t.Errorf("%d requests were tried %d times", requests, tries)
	}
	got, most := endpoint.Count(), 3
	most += max(0, int((time.Since(start)-2*time.Second)/(1600*time.Millisecond))) // the third is made after 2 s, then one in 1.6 s
	if got > most {
		t.Errorf("%d token requests for %d requests, want %d at most", got, requests, most)
	}
	if api.Count() > 0 {
		t.Error("a request has gone out without a token")
	}
	endpoint.Set(func(e *egresstest.Tokens) { e.Answer = nil })
	egresstest.Eventually(t, "the first answer of the API", func() bool {
		resp, _ := g.Get("/v1/x")
		return resp.StatusCode == http.StatusOK
	})
}

// A revocation during an outage of the token endpoint ends with the outage, whether
// requests come or not.
func TestRevocationDuringAnOutage(t *testing.T) {
	api, endpoint := egresstest.NewGuarded(t, (*httptest.Server).Start), egresstest.NewTokens(t)
	api.Accept(egresstest.Token(1))
	admin, option := egresstest.NewAdmin(t)
	g := egresstest.StartWatched(t, "egress shop", egresstest.WithGlobal(option+"egress {\ncredential shop "+
		strings.TrimPrefix(egresstest.Egress(api.URL, endpoint.URL, ""), "egress ")+"\n}"))
	egresstest.Eventually(t, "the first token", func() bool { return admin.Status(t, "shop").State == "fresh" })
	endpoint.SetAnswer(egresstest.Say(http.StatusServiceUnavailable, ""))
	api.Accept("another")
	for range 5 {
		if resp, body := g.Get("/v1/x"); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("answered %d %s, want the API's 401", resp.StatusCode, body)
		}
	}
	if got := admin.StatusBetweenRequests(t, "shop"); got.State != "stale" || !got.Rejected || got.NextAttempt.After(time.Now().Add(5*time.Second)) {
		t.Errorf("the status is %+v", got)
	}
	endpoint.SetAnswer(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"`+egresstest.Token(2)+`","token_type":"bearer","expires_in":3600}`)
	})
	api.Accept(egresstest.Token(2))
	egresstest.Eventually(t, "another token, without a request", func() bool { return admin.Status(t, "shop").State == "fresh" })
	if resp, body := g.Get("/v1/x"); resp.StatusCode != http.StatusOK || admin.Status(t, "shop").Rejected {
		t.Errorf("answered %d %s, want 200", resp.StatusCode, body)
	}
}

// waiting returns how many requests are in the gateway. In these tests, they wait
// for a token there.
func waiting() int {
	return strings.Count(egresstest.Stacks(), "caddy-egress.(*Transport).RoundTrip(")
}

func TestClientsThatLeave(t *testing.T) {
	const clients = 20
	for _, warm := range []bool{false, true} {
		t.Run(fmt.Sprintf("warm=%v", warm), func(t *testing.T) {
			api, endpoint := egresstest.NewGuarded(t, (*httptest.Server).Start), egresstest.NewTokens(t)
			gate := make(chan struct{})
			valid := 1
			held := func(w http.ResponseWriter, r *http.Request) {
				select {
				case <-gate:
					fmt.Fprintf(w, `{"access_token":"%s","expires_in":3600}`, egresstest.Token(valid))
				case <-t.Context().Done():
				}
			}
			if !warm {
				endpoint.Answer = held
			}
			api.Accept(egresstest.Token(valid))
			g := egresstest.StartWatched(t, egresstest.Egress(api.URL, endpoint.URL, ""))
			if warm { // each gets a 401 first, and one of those who leave asks for the token
				g.Get("/v1/warm-up")
				valid = 2
				api.Accept(egresstest.Token(valid))
				endpoint.Set(func(e *egresstest.Tokens) { e.Answer = held })
			}

			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			_, want := egresstest.Body(0)
			var left, served atomic.Int32
			var wg sync.WaitGroup
			for n := range clients {
				wg.Go(func() {
					req := g.Request(http.MethodGet, "/v1/x", nil)
					if n < clients/2 {
						req = req.WithContext(ctx)
					}
					resp, err := egresstest.Client.Do(req)
					if err != nil {
						left.Add(1)
						return
					}
					defer resp.Body.Close()
					if got, _ := io.ReadAll(resp.Body); resp.StatusCode == http.StatusOK && string(got) == want {
						served.Add(1)
					}
				})
				if n == clients/2-1 { // one of those who leave is to be the first
					egresstest.Eventually(t, "those who leave to wait for a token", func() bool { return waiting() == clients/2 })
				}
			}
			egresstest.Eventually(t, "all to wait for a token", func() bool { return waiting() == clients })
			leave()
			egresstest.Eventually(t, "those who left to be gone", func() bool { return waiting() == clients/2 })
			close(gate)
			wg.Wait()
			if left.Load() != clients/2 || served.Load() != clients/2 {
				t.Errorf("%d have left and %d were served, want half of %d each", left.Load(), served.Load(), clients)
			}
			if got := endpoint.Count(); got != valid {
				t.Errorf("%d token requests, want %d", got, valid)
			}
			if got := waiting(); got != 0 {
				t.Errorf("%d requests wait still", got)
			}
		})
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

// traffic is requests that are sent in the background, 100 a second.
type traffic struct {
	refused atomic.Int64 // not answered 200 so far
	done    chan struct{}
	wg      sync.WaitGroup
	mu      sync.Mutex
	samples []sample
}

func startTraffic(t *testing.T, g *egresstest.Gateway) *traffic {
	f := &traffic{done: make(chan struct{})}
	f.wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f.wg.Go(func() { f.send(t, g) })
			case <-f.done:
				return
			}
		}
	})
	return f
}

func (f *traffic) send(t *testing.T, g *egresstest.Gateway) {
	start := time.Now()
	resp, body, err := g.Try(g.Request(http.MethodGet, "/v1/x", nil))
	if err != nil {
		t.Error(err)
		return
	}
	if resp.StatusCode != http.StatusOK {
		f.refused.Add(1)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.samples = append(f.samples, sample{start, time.Since(start), resp, body})
}

// stop returns how the requests were answered.
func (f *traffic) stop() []sample {
	close(f.done)
	f.wg.Wait()
	return f.samples
}

// When which token request is made is shown in synthetic time, by the tests of
// package tokensource. Here each kind of outage is lived through once: nobody
// notices while the token lives, then every client does, and it ends.
func TestOutages(t *testing.T) {
	const (
		lifetime = 2 * time.Second
		soon     = 500 * time.Millisecond // after which token requests are given up that hang
	)
	for name, c := range map[string]struct {
		answer  http.HandlerFunc
		timeout time.Duration // of token requests
		status  int
	}{
		"refuses the credential": {egresstest.Say(401, `{"error":"invalid_client","error_description":"`+egresstest.Marker+`"}`), 10 * time.Second, http.StatusBadGateway},
		"resets connections":     {egresstest.Hijack("", true), 10 * time.Second, http.StatusServiceUnavailable},
		"hangs":                  {egresstest.Hang, soon, http.StatusServiceUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
			endpoint.Lifetime = int(lifetime / time.Second)
			loading := time.Now()
			g := egresstest.StartWatched(t, egresstest.Egress(api.URL, endpoint.URL, "token_timeout "+c.timeout.String()))
			egresstest.Eventually(t, "the first token", func() bool {
				resp, _ := g.Get("/v1/warm-up")
				return resp.StatusCode == http.StatusOK
			})
			endpoint.SetAnswer(c.answer)
			before, start := endpoint.Count(), time.Now()

			f := startTraffic(t, g)
			egresstest.Eventually(t, "requests that are refused", func() bool { return f.refused.Load() > 50 })
			attempts, most := endpoint.Count()-before, 6+int(time.Since(start)/time.Second)
			endpoint.SetAnswer(nil)
			if c.status == http.StatusServiceUnavailable { // a refused credential is left alone for longer
				egresstest.Eventually(t, "an answer of the API", func() bool {
					resp, _ := g.Get("/v1/x")
					return resp.StatusCode == http.StatusOK
				})
			}

			var longest time.Duration
			for _, s := range f.stop() {
				if s.resp.StatusCode == http.StatusOK {
					continue
				}
				if s.answered().Before(loading.Add(lifetime)) {
					t.Fatalf("answered %d %s while the token lived", s.resp.StatusCode, s.body)
				}
				if egresstest.CheckNoToken(t, s.resp, s.body, c.status); t.Failed() {
					return
				}
				longest = max(longest, s.took)
			}
			if longest > soon+5*time.Second {
				t.Errorf("somebody waited %v", longest)
			}
			if attempts > most {
				t.Errorf("%d token requests in the outage, want at most %d", attempts, most)
			}
		})
	}
}

// The server has one token for everybody until that expires: refreshes get the
// same one, with less and less time left.
func TestSameTokenAgainAndAgain(t *testing.T) {
	const lifetime = 2 * time.Second
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	start := time.Now()
	endpoint.Answer = func(w http.ResponseWriter, _ *http.Request) {
		age := time.Since(start)
		fmt.Fprintf(w, `{"access_token":"%s","expires_in":%f}`, egresstest.Token(int(age/lifetime)), (lifetime - age%lifetime).Seconds())
	}
	g := egresstest.StartWatched(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	egresstest.Eventually(t, "the second token", func() bool {
		if resp, body := g.Get("/v1/x"); resp.StatusCode != http.StatusOK {
			t.Fatalf("answered %d %s, want 200", resp.StatusCode, body)
		}
		return api.Last(t).Header.Get("Authorization") != "Bearer "+egresstest.Token(0) // if it is slow, the next one
	})
	if got, most := endpoint.Count(), 5+int(time.Since(start).Seconds())+1; got > most {
		t.Errorf("%d token requests in %v, want at most %d", got, time.Since(start), most)
	}
}

func TestTokensThatExpireAtOnce(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	endpoint.Answer = egresstest.Issue(`,"expires_in":0.001`)
	start := time.Now()
	g := egresstest.StartWatched(t, egresstest.Egress(api.URL, endpoint.URL, "token_timeout 300ms"))
	// 5 token requests at once, then one a second: too few for some
	egresstest.Eventually(t, "a request that finds the budget used up", func() bool {
		resp, body := g.Get("/v1/x")
		if resp.StatusCode == http.StatusOK {
			return false
		}
		egresstest.CheckNoToken(t, resp, body, http.StatusServiceUnavailable)
		return strings.Contains(body, "budget")
	})
	if got, most := endpoint.Count(), 5+int(time.Since(start).Seconds())+1; got > most {
		t.Errorf("%d token requests in %v, want at most %d", got, time.Since(start), most)
	}
	egresstest.Eventually(t, "the budget to be filled up", func() bool {
		resp, _ := g.Get("/v1/x")
		return resp.StatusCode == http.StatusOK
	})
}
