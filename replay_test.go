package egress_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// guarded is an API that accepts one token at a time and answers a request
// that carries it with the hash of its body.
type guarded struct {
	*httptest.Server
	valid        atomic.Pointer[string]
	early        bool // say 401 before the body is read
	unauthorized atomic.Int64
	accepted     atomic.Int64
	bodies       atomic.Int64 // bytes of bodies that were accepted
	challenge    string
}

func newGuarded(t *testing.T, start func(*httptest.Server)) *guarded {
	t.Helper()
	a := new(guarded)
	a.accept("")
	a.Server = httptest.NewUnstartedServer(a)
	start(a.Server)
	t.Cleanup(a.Close)
	return a
}

// accept makes the n-th token of a token endpoint the valid one.
func (a *guarded) accept(token string) { a.valid.Store(&token) }

func nth(n int) string { return fmt.Sprintf("%s%d", testToken, n) }

func (a *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	hash := sha256.New()
	if a.early {
		// without it, Go's server reads a body before it answers with HTTP/1
		_ = http.NewResponseController(w).EnableFullDuplex()
	} else {
		_, _ = io.Copy(hash, r.Body)
	}
	if r.Header.Get("Authorization") != "Bearer "+*a.valid.Load() {
		a.unauthorized.Add(1)
		if a.challenge != "" {
			w.Header().Set("WWW-Authenticate", a.challenge)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"code":"UNAUTHORIZED","message":"of the API"}`)
		if a.early { // and read on for a while, as servers do (lingering close)
			_ = http.NewResponseController(w).Flush()
			_, _ = io.Copy(io.Discard, r.Body)
		}
		return
	}
	a.accepted.Add(1)
	n, _ := io.Copy(hash, r.Body)
	a.bodies.Add(n)
	_, _ = io.WriteString(w, hex.EncodeToString(hash.Sum(nil)))
}

// body is n random bytes, with their hash as the API answers it.
func body(n int) ([]byte, string) {
	b := make([]byte, n)
	rng := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = rng.Read(b)
	sum := sha256.Sum256(b)
	return b, hex.EncodeToString(sum[:])
}

// unsized hides the length of a body, so that it is sent chunked.
type unsized struct{ io.Reader }

// kinds of requests that are replayed.
var kinds = map[string]func(g *gateway) (*http.Request, string){
	"GET": func(g *gateway) (*http.Request, string) {
		_, want := body(0)
		return g.request(http.MethodGet, "/v1/x", nil), want
	},
	"DELETE": func(g *gateway) (*http.Request, string) {
		_, want := body(0)
		return g.request(http.MethodDelete, "/v1/x", nil), want
	},
	"POST of 1 KiB": func(g *gateway) (*http.Request, string) {
		b, want := body(1 << 10)
		return g.request(http.MethodPost, "/v1/x", bytes.NewReader(b)), want
	},
	"POST of 1 MiB": func(g *gateway) (*http.Request, string) {
		b, want := body(1 << 20)
		return g.request(http.MethodPost, "/v1/x", bytes.NewReader(b)), want
	},
	"chunked POST": func(g *gateway) (*http.Request, string) {
		b, want := body(300_000)
		return g.request(http.MethodPost, "/v1/x", unsized{bytes.NewReader(b)}), want
	},
}

// upstreams are the protocols that APIs speak; they differ in when they close
// the body of a request that is answered early.
var upstreams = map[string]struct {
	start   func(*httptest.Server)
	options string
}{
	"HTTP/1": {(*httptest.Server).Start, ""},
	"HTTP/2": {func(s *httptest.Server) {
		s.Config.Protocols = new(http.Protocols)
		s.Config.Protocols.SetUnencryptedHTTP2(true)
		s.Start()
	}, "transport http {\n versions h2c\n}"},
}

func TestReplayAfterRevocation(t *testing.T) {
	for protocol, upstream := range upstreams {
		for _, early := range []bool{false, true} {
			for kind, request := range kinds {
				t.Run(fmt.Sprintf("%s/early=%v/%s", protocol, early, kind), func(t *testing.T) {
					api, endpoint := newGuarded(t, upstream.start), newTokens(t)
					api.early = early
					api.accept(nth(1))
					g := startGateway(t, egress(api.URL, endpoint.URL, upstream.options))
					g.get("/v1/warm-up")

					for n := 2; n < 6; n++ {
						api.accept(nth(n)) // the token in use is revoked
						req, want := request(g)
						if resp, got := g.do(req); resp.StatusCode != http.StatusOK || got != want {
							t.Fatalf("token %d: %d %s, want 200 and hash %s", n, resp.StatusCode, got, want)
						}
						if got := endpoint.count(); got != n {
							t.Fatalf("%d token requests, want %d", got, n)
						}
					}
				})
			}
		}
	}
}

func TestNobodySeesA401WhenTokensAreRevoked(t *testing.T) {
	api, endpoint := newGuarded(t, (*httptest.Server).Start), newTokens(t)
	api.accept(nth(1))
	g := startGateway(t, egress(api.URL, endpoint.URL, ""))
	g.get("/v1/warm-up")

	// 200 requests a second of every kind, for 2 s; the tokens are revoked midway
	var wg sync.WaitGroup
	var sent atomic.Int64
	revoke := time.AfterFunc(time.Second, func() { api.accept(nth(2)) })
	defer revoke.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	names := []string{"GET", "POST of 1 KiB", "POST of 1 MiB", "chunked POST"}
	for n := range 400 {
		<-tick.C
		wg.Go(func() {
			req, want := kinds[names[n%len(names)]](g)
			resp, err := plainClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, _ := io.ReadAll(resp.Body)
			sent.Add(1)
			if resp.StatusCode != http.StatusOK || string(got) != want {
				t.Errorf("%s: %d %s, want 200 and hash %s", names[n%len(names)], resp.StatusCode, got, want)
			}
		})
	}
	wg.Wait()
	if api.unauthorized.Load() == 0 || sent.Load() != 400 {
		t.Errorf("%d requests, %d times 401 at the API: the test shows nothing", sent.Load(), api.unauthorized.Load())
	}
	if got := endpoint.count(); got != 2 {
		t.Errorf("%d token requests, want one before and one after the revocation", got)
	}
}

func TestBodiesThatAreNotReplayed(t *testing.T) {
	for name, c := range map[string]struct {
		options string
		size    int
		global  string
	}{
		"longer than replay_buffer":  {"", 5 << 20, ""},
		"replay_buffer 0":            {"replay_buffer 0", 1 << 10, ""},
		"replay_memory is exhausted": {"", 500_000, "egress {\n replay_memory 256KiB\n}"},
	} {
		for _, sized := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/sized=%v", name, sized), func(t *testing.T) {
				api, endpoint := newGuarded(t, (*httptest.Server).Start), newTokens(t)
				api.accept(nth(1))
				g := startGateway(t, egress(api.URL, endpoint.URL, c.options), withGlobal(c.global))
				g.get("/v1/warm-up")
				api.accept(nth(2))

				b, want := body(c.size)
				send := func() (*http.Response, string) {
					var reader io.Reader = bytes.NewReader(b)
					if !sized {
						reader = unsized{reader}
					}
					return g.do(g.request(http.MethodPost, "/v1/x", reader))
				}
				resp, got := send()
				if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(got, "of the API") {
					t.Errorf("answered %d %s, want the API's own 401", resp.StatusCode, got)
				}
				if api.unauthorized.Load() != 1 || api.bodies.Load() != 0 {
					t.Error("something was sent twice")
				}
				// the next request has a fresh token, and arrives whole
				eventually(t, "a fresh token", func() bool { return endpoint.count() == 2 })
				if resp, got := send(); resp.StatusCode != http.StatusOK || got != want {
					t.Errorf("next request: %d %s", resp.StatusCode, got)
				}
			})
		}
	}
}

func TestSlowUploadIsReplayedWhenTheAPIAnswersEarly(t *testing.T) {
	for protocol, upstream := range upstreams {
		t.Run(protocol, func(t *testing.T) {
			api, endpoint := newGuarded(t, upstream.start), newTokens(t)
			api.early = true
			api.accept(nth(1))
			g := startGateway(t, egress(api.URL, endpoint.URL, upstream.options))
			g.get("/v1/warm-up")
			api.accept(nth(2))

			// the second half is sent only after the API has said 401
			b, want := body(200_000)
			reader, writer := io.Pipe()
			go func() {
				_, _ = writer.Write(b[:100_000])
				for api.unauthorized.Load() == 0 {
					time.Sleep(time.Millisecond)
				}
				_, _ = writer.Write(b[100_000:])
				writer.Close()
			}()
			if resp, got := g.do(g.request(http.MethodPost, "/v1/x", reader)); resp.StatusCode != http.StatusOK || got != want {
				t.Errorf("answered %d %s, want 200 and hash %s", resp.StatusCode, got, want)
			}
		})
	}
}

func TestClientThatWaitsForTheAnswerIsNotLeftHanging(t *testing.T) {
	for protocol, upstream := range upstreams {
		t.Run(protocol, func(t *testing.T) {
			api, endpoint := newGuarded(t, upstream.start), newTokens(t)
			api.early = true
			api.accept(nth(1))
			// without full duplex, the server itself waits for the body
			g := startGateway(t, egress(api.URL, endpoint.URL, upstream.options), withServer("enable_full_duplex"))
			g.get("/v1/warm-up")
			api.accept("none")

			// a client that sends no more before it has an answer
			status := g.raw("POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
			if !strings.Contains(status, "401") {
				t.Errorf("answered %q, want the API's 401", status)
			}
		})
	}
}

func TestInsufficientScopePassesThrough(t *testing.T) {
	api, endpoint := newGuarded(t, (*httptest.Server).Start), newTokens(t)
	api.challenge = `Bearer realm="x", error="insufficient_scope", scope="admin"`
	g := startGateway(t, egress(api.URL, endpoint.URL, ""))
	for range 3 {
		if resp, got := g.get("/v1/x"); resp.StatusCode != http.StatusUnauthorized || !strings.Contains(got, "of the API") {
			t.Errorf("answered %d %s, want the API's own 401", resp.StatusCode, got)
		}
	}
	if got := endpoint.count(); got != 1 {
		t.Errorf("%d token requests, want 1", got)
	}
	if got := api.unauthorized.Load(); got != 3 {
		t.Errorf("the API was asked %d times, want 3", got)
	}
}

func TestFailedRefreshAfter401GivesTheAPIsAnswer(t *testing.T) {
	api, endpoint := newGuarded(t, (*httptest.Server).Start), newTokens(t)
	api.accept(nth(1))
	g := startGateway(t, egress(api.URL, endpoint.URL, ""))
	g.get("/v1/warm-up")
	api.accept("none")
	endpoint.set(func(e *tokens) {
		e.answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	})
	resp, got := g.get("/v1/x")
	if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(got, "of the API") {
		t.Errorf("answered %d %s, want the API's own 401", resp.StatusCode, got)
	}
}

func TestAPIThatAlwaysSays401(t *testing.T) {
	api, endpoint := newGuarded(t, (*httptest.Server).Start), newTokens(t)
	api.accept("none")
	g := startGateway(t, egress(api.URL, endpoint.URL, ""))

	// 200 requests a second for 10 s
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var wg sync.WaitGroup
	for range 2000 {
		<-tick.C
		wg.Go(func() {
			resp, err := plainClient.Get(g.URL + "/v1/x")
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusUnauthorized {
				t.Errorf("answered %d, want 401", resp.StatusCode)
			}
		})
	}
	wg.Wait()
	if got := endpoint.count(); got > 3 {
		t.Errorf("%d token requests, want at most 3", got)
	}
}
