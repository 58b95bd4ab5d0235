package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// stage is a gateway that two clients use at a time, from different addresses: an
// honest one, which is to be served whatever happens, and a hostile one.
type stage struct {
	t        *testing.T
	api      *moody
	endpoint *egresstest.Tokens
	g        *egresstest.Gateway
	honest   *http.Client
	hostile  *http.Client
}

// clientAt returns a client with an address of its own.
func clientAt(t *testing.T, addr string) *http.Client {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(addr)}}
	transport := &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 30 * time.Second}
}

func newStage(t *testing.T, options string) *stage {
	s := &stage{t: t, api: newMoody(t), endpoint: egresstest.NewTokens(t)}
	// Caddy reads the length of a body for its access log while net/http may read the body still
	s.g = egresstest.StartWatched(t, "log_skip\n"+egresstest.Egress(s.api.URL, s.endpoint.URL, options),
		egresstest.WithGlobal("egress {\n replay_memory 1MiB\n}"))
	s.honest, s.hostile = clientAt(t, "127.0.0.1"), clientAt(t, "127.0.0.2")
	egresstest.Eventually(t, "the first token", func() bool {
		probe, err := s.hostile.Get(s.g.URL + "/v1/public")
		if err != nil {
			t.Skipf("this system has no second loopback address: %v", err)
		}
		probe.Body.Close()
		return probe.StatusCode == http.StatusNotFound // the API's
	})
	return s
}

// moody is an API that can be brought to any kind of answer.
type moody struct {
	*httptest.Server
	oldest atomic.Int64 // the number of the oldest token that is valid
	newest atomic.Int64 // the number of the newest token that was seen
}

func newMoody(t *testing.T) *moody {
	a := new(moody)
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

// revoke revokes all tokens that were seen. One that is on its way stays valid: who
// was answered 401 may be given that one.
func (a *moody) revoke() { a.oldest.Store(a.newest.Load() + 1) }

// see notes the token of a request and returns its number.
func (a *moody) see(r *http.Request) int64 {
	number, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "+egresstest.TokenPrefix)
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return -1
	}
	for newest := a.newest.Load(); n > newest && !a.newest.CompareAndSwap(newest, n); {
		newest = a.newest.Load()
	}
	return n
}

func (a *moody) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token := a.see(r)
	switch _, what, _ := strings.Cut(r.URL.Path, "/v1/"); {
	case what == "honest":
		body, _ := io.ReadAll(r.Body)
		if token < a.oldest.Load() {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, len(body))
	case what == "forbidden-without-end":
		w.WriteHeader(http.StatusUnauthorized)
		for r.Context().Err() == nil {
			_, _ = w.Write(make([]byte, 32<<10))
		}
	case what == "forbidden-early":
		egresstest.Hijack("HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", true)(w, r)
	case strings.HasPrefix(what, "forbidden"):
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusUnauthorized)
	case what == "public":
		http.NotFound(w, r)
	case what == "limited":
		w.Header().Set("Retry-After", "300")
		w.WriteHeader(http.StatusTooManyRequests)
	case what == "reset":
		egresstest.Hijack("", true)(w, r)
	case what == "garbage":
		egresstest.Hijack("\x00garbage\r\n\r\n", false)(w, r)
	case what == "hints":
		for range 20 {
			w.Header().Set("Link", "</style.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
		}
		fmt.Fprint(w, "at last")
	case what == "stalls":
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	default:
		fmt.Fprint(w, what)
	}
}

// load has workers send requests as the hostile client until the test has seen
// enough, and returns what ends that.
func (s *stage) load(workers int, request func(ctx context.Context, worker, n int) *http.Request) (end func()) {
	ctx, cancel := context.WithCancel(s.t.Context())
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for n := 0; ctx.Err() == nil; n++ {
				if resp, err := s.hostile.Do(request(ctx, worker, n)); err == nil {
					_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
					resp.Body.Close()
				}
				<-tick.C
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

func (s *stage) request(ctx context.Context, method, path string, body io.Reader) *http.Request {
	req, err := http.NewRequestWithContext(ctx, method, s.g.URL+path, body)
	if err != nil {
		s.t.Error(err)
	}
	return req
}

// serve sends n requests as the honest client, one after the other, and returns
// how long they took. Each of them has to succeed.
func (s *stage) serve(n int) (took []time.Duration) {
	s.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for i := range n {
		<-tick.C
		body := make([]byte, i%3*1024)
		start := time.Now()
		resp, err := s.honest.Do(s.request(s.t.Context(), http.MethodPost, "/v1/honest", bytes.NewReader(body)))
		if err != nil {
			s.t.Fatalf("request %d: %v", i, err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || string(got) != fmt.Sprint(len(body)) {
			s.t.Fatalf("request %d of the honest client was answered %d %s", i, resp.StatusCode, got)
		}
		took = append(took, time.Since(start))
	}
	return took
}

func p99(took []time.Duration) time.Duration {
	slices.Sort(took)
	return took[int(math.Ceil(float64(len(took))*0.99))-1].Round(10 * time.Microsecond)
}

// always returns a request that is the same each time.
func always(method, path string) func(*stage) func(context.Context, int, int) *http.Request {
	return func(s *stage) func(context.Context, int, int) *http.Request {
		return func(ctx context.Context, _, _ int) *http.Request { return s.request(ctx, method, path, nil) }
	}
}

// endless is a body of one byte that never ends.
type endless struct {
	ctx  context.Context
	sent bool
}

func (e *endless) Read(p []byte) (int, error) {
	if !e.sent {
		e.sent = true
		p[0] = 'x'
		return 1, nil
	}
	<-e.ctx.Done()
	return 0, io.EOF
}

// Whatever one client does, the other is served: 100 % of its requests succeed,
// also those during which the token is revoked.
func TestHostileClient(t *testing.T) {
	for name, c := range map[string]struct {
		options string
		workers int
		request func(*stage) func(ctx context.Context, worker, n int) *http.Request
		broken  bool // the token endpoint is down meanwhile, so nothing is revoked
	}{
		"401 from one operation":                      {"", 16, always(http.MethodGet, "/v1/forbidden"), false},
		"401 from one operation, token endpoint down": {"", 40, always(http.MethodGet, "/v1/forbidden"), true},
		"401 from many operations": {"", 16, func(s *stage) func(context.Context, int, int) *http.Request {
			return func(ctx context.Context, worker, n int) *http.Request {
				return s.request(ctx, http.MethodPost, fmt.Sprintf("/v1/forbidden/%d/%d", worker, n), strings.NewReader("body"))
			}
		}, false},
		"401 and 404 by turns": {"", 16, func(s *stage) func(context.Context, int, int) *http.Request {
			return func(ctx context.Context, _, n int) *http.Request {
				return s.request(ctx, http.MethodGet, []string{"/v1/forbidden", "/v1/public"}[n%2], nil)
			}
		}, false},
		"401 that do not end": {"", 2, always(http.MethodGet, "/v1/forbidden-without-end"), false},
		"401 before the body": {"", 8, func(s *stage) func(context.Context, int, int) *http.Request {
			return func(ctx context.Context, _, _ int) *http.Request {
				return s.request(ctx, http.MethodPost, "/v1/forbidden-early", bytes.NewReader(make([]byte, 256<<10)))
			}
		}, false},
		"429 of the API":     {"", 8, always(http.MethodGet, "/v1/limited"), false},
		"resets of the API":  {"", 8, always(http.MethodGet, "/v1/reset"), false},
		"garbage of the API": {"", 8, always(http.MethodGet, "/v1/garbage"), false},
		"early hints":        {"", 8, always(http.MethodGet, "/v1/hints"), false},
		"stalled uploads": {"", 500, func(s *stage) func(context.Context, int, int) *http.Request {
			return func(ctx context.Context, _, _ int) *http.Request {
				return s.request(ctx, http.MethodPost, "/v1/stalls", &endless{ctx: ctx})
			}
		}, false},
		"requests that are abandoned": {"", 16, func(s *stage) func(context.Context, int, int) *http.Request {
			return func(ctx context.Context, _, n int) *http.Request {
				ctx, cancel := context.WithCancel(ctx)
				time.AfterFunc(time.Duration(n%5)*time.Millisecond, cancel)
				return s.request(ctx, http.MethodGet, "/v1/stalls", nil)
			}
		}, false},
		"odd requests": {"allow /v1/*", 8, func(s *stage) func(context.Context, int, int) *http.Request {
			odd := []string{"/v1/..%2f..%2fx", "/v1/%00", "/v2/x", "/v1/a;b=c/%3f", "/v1/" + strings.Repeat("%25", 500)}
			methods := []string{http.MethodTrace, "TRACK", http.MethodOptions, "PROPFIND", http.MethodGet}
			return func(ctx context.Context, worker, n int) *http.Request {
				req := s.request(ctx, methods[n%len(methods)], odd[(n+worker)%len(odd)], nil)
				req.Header.Set("Upgrade", "h2c")
				req.Header.Set("Connection", "Upgrade, HTTP2-Settings")
				req.Header.Set("Origin", "https://attacker.example")
				req.Header.Set("X-Long", strings.Repeat("x", 10<<10))
				return req
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			const requests = 60
			s := newStage(t, c.options)
			alone := p99(s.serve(requests))
			end := s.load(min(c.workers, 40), always(http.MethodGet, "/v1/busy")(s)) // 500 that stall are not that busy
			busy := p99(s.serve(requests))
			end()
			if c.broken {
				s.endpoint.SetAnswer(egresstest.Say(http.StatusServiceUnavailable, ""))
			}
			before, start := s.endpoint.Count(), time.Now()
			end = s.load(c.workers, c.request(s))
			latency := p99(s.serve(requests))
			caused, most := s.endpoint.Count()-before, 5
			if c.broken { // retried by timer: the fifth time after 6 s, then every 3.2 s
				most += max(0, int((time.Since(start)-6*time.Second)/(3200*time.Millisecond)))
			}
			if !c.broken { // revoked behind the gateway's back
				s.api.revoke()
				s.serve(requests)
			}
			end()
			t.Logf("p99 of the honest client: %v alone, %v beside one that is just as busy, %v beside the hostile one, which caused %d token requests", alone, busy, latency, caused)
			if caused > most {
				t.Errorf("the hostile client caused %d token requests, want %d at most", caused, most)
			}
		})
	}
}

// While a token lives, a token endpoint can do whatever it likes.
func TestHostileTokenEndpoint(t *testing.T) {
	drip := func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			_, _ = io.WriteString(w, " ")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	const soon = "token_timeout 500ms" // where that is what ends a token request
	for name, c := range map[string]struct {
		options string
		answer  http.HandlerFunc
	}{
		"hangs":             {soon, egresstest.Hang},
		"drips":             {soon, drip},
		"resets":            {"", egresstest.Hijack("", true)},
		"garbage":           {"", egresstest.Hijack("\x00\r\n\r\n", false)},
		"redirects":         {"", egresstest.Say(http.StatusTemporaryRedirect, "", "Location", "http://attacker.example/")},
		"refuses":           {"", egresstest.Say(http.StatusUnauthorized, `{"error":"invalid_client"}`)},
		"limits for a year": {"", egresstest.Say(http.StatusTooManyRequests, "", "Retry-After", "31536000")},
		"floods":            {"", egresstest.Say(http.StatusOK, strings.Repeat("x", 2<<20))},
		"same token":        {"", egresstest.Issue(`,"expires_in":3600`)},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, c.options)
			alone := p99(s.serve(100))
			s.endpoint.SetAnswer(c.answer)
			end := s.load(8, always(http.MethodGet, "/v1/forbidden")(s))
			beside := s.serve(100)
			end()
			t.Logf("p99 of the honest client: %v alone, %v beside", alone, p99(beside))
		})
	}
}

// A client that stalls uploads gets no more of them after a while; others, and
// its own requests without a body, are served.
func TestStalledUploadsOfOneClient(t *testing.T) {
	s := newStage(t, "")
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	stall := func() (*http.Response, error) {
		return s.hostile.Do(s.request(ctx, http.MethodPost, "/v1/stalls", &endless{ctx: ctx}))
	}
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			if resp, err := stall(); err == nil {
				resp.Body.Close()
			}
		})
	}
	egresstest.Eventually(t, "uploads that are refused", func() bool {
		resp, err := s.hostile.Do(s.request(ctx, http.MethodPost, "/v1/busy", strings.NewReader("body")))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode == http.StatusOK {
			return false
		}
		egresstest.CheckRefused(t, resp, string(body), http.StatusTooManyRequests, "too_many_uploads")
		return true
	})
	resp, err := s.hostile.Do(s.request(ctx, http.MethodGet, "/v1/busy", nil))
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("a request without a body: %v, %v; want 200", resp, err)
	}
	s.serve(10)
	leave()
	wg.Wait()
	egresstest.Eventually(t, "uploads that are served again", func() bool {
		resp, err := s.hostile.Do(s.request(t.Context(), http.MethodPost, "/v1/busy", strings.NewReader("body")))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}
