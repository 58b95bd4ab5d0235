package e2e_test

import (
	"bytes"
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

// unsized hides the length of a body, so that it is sent chunked.
type unsized struct{ io.Reader }

// kinds of requests that are replayed.
var kinds = map[string]func(g *egresstest.Gateway) (*http.Request, string){
	"GET": func(g *egresstest.Gateway) (*http.Request, string) {
		_, want := egresstest.Body(0)
		return g.Request(http.MethodGet, "/v1/x", nil), want
	},
	"DELETE": func(g *egresstest.Gateway) (*http.Request, string) {
		_, want := egresstest.Body(0)
		return g.Request(http.MethodDelete, "/v1/x", nil), want
	},
	"POST of 1 KiB": func(g *egresstest.Gateway) (*http.Request, string) {
		b, want := egresstest.Body(1 << 10)
		return g.Request(http.MethodPost, "/v1/x", bytes.NewReader(b)), want
	},
	"POST of 1 MiB": func(g *egresstest.Gateway) (*http.Request, string) {
		b, want := egresstest.Body(1 << 20)
		return g.Request(http.MethodPost, "/v1/x", bytes.NewReader(b)), want
	},
	"chunked POST": func(g *egresstest.Gateway) (*http.Request, string) {
		b, want := egresstest.Body(300_000)
		return g.Request(http.MethodPost, "/v1/x", unsized{bytes.NewReader(b)}), want
	},
}

// upstreams are the protocols that APIs speak; they differ in when they close
// the body of a request that is answered early.
var upstreams = map[string]struct {
	start   egresstest.Start
	options string
}{
	"HTTP/1": {(*httptest.Server).Start, ""},
	"HTTP/2": {egresstest.StartH2C, "transport http {\n versions h2c\n}"},
}

func TestReplayAfterRevocation(t *testing.T) {
	for protocol, upstream := range upstreams {
		for _, early := range []bool{false, true} {
			for kind, request := range kinds {
				t.Run(fmt.Sprintf("%s/early=%v/%s", protocol, early, kind), func(t *testing.T) {
					api, endpoint := egresstest.NewGuarded(t, upstream.start), egresstest.NewTokens(t)
					api.Early = early
					api.Accept(egresstest.Token(1))
					g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, upstream.options))
					g.Get("/v1/warm-up")

					for n := 2; n < 6; n++ {
						api.Accept(egresstest.Token(n)) // the token in use is revoked
						req, want := request(g)
						if resp, got := g.Do(req); resp.StatusCode != http.StatusOK || got != want {
							t.Fatalf("token %d: %d %s, want 200 and hash %s", n, resp.StatusCode, got, want)
						}
						if got := endpoint.Count(); got != n {
							t.Fatalf("%d token requests, want %d", got, n)
						}
					}
				})
			}
		}
	}
}

func TestNobodySeesA401WhenTokensAreRevoked(t *testing.T) {
	api, endpoint := egresstest.NewGuarded(t, (*httptest.Server).Start), egresstest.NewTokens(t)
	api.Accept(egresstest.Token(1))
	// room for all bodies at once, as a slow machine may have them
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""), egresstest.WithGlobal("egress {\n replay_memory 512MiB\n}"))
	g.Get("/v1/warm-up")

	// 200 requests a second of every kind, for a second; the token is revoked midway
	const requests = 200
	var wg sync.WaitGroup
	var sent atomic.Int64
	revoke := time.AfterFunc(500*time.Millisecond, func() { api.Accept(egresstest.Token(2)) })
	defer revoke.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	names := []string{"GET", "POST of 1 KiB", "POST of 1 MiB", "chunked POST"}
	for n := range requests {
		<-tick.C
		wg.Go(func() {
			req, want := kinds[names[n%len(names)]](g)
			resp, err := egresstest.Client.Do(req)
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
	if api.Unauthorized.Load() == 0 || sent.Load() != requests {
		t.Errorf("%d requests, %d times 401 at the API: the test shows nothing", sent.Load(), api.Unauthorized.Load())
	}
	if got := endpoint.Count(); got != 2 {
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
		"replay_memory is exhausted": {"", 500_000, "egress {\n replay_memory 1MiB\n}"}, // 256 KiB for one client
	} {
		for _, sized := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/sized=%v", name, sized), func(t *testing.T) {
				api, endpoint := egresstest.NewGuarded(t, (*httptest.Server).Start), egresstest.NewTokens(t)
				api.Accept(egresstest.Token(1))
				g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, c.options), egresstest.WithGlobal(c.global))
				g.Get("/v1/warm-up")
				api.Accept(egresstest.Token(2))

				b, want := egresstest.Body(c.size)
				send := func() (*http.Response, string) {
					var reader io.Reader = bytes.NewReader(b)
					if !sized {
						reader = unsized{reader}
					}
					return g.Do(g.Request(http.MethodPost, "/v1/x", reader))
				}
				resp, got := send()
				if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(got, "of the API") {
					t.Errorf("answered %d %s, want the API's own 401", resp.StatusCode, got)
				}
				if api.Unauthorized.Load() != 1 || api.Bodies.Load() != 0 {
					t.Error("something was sent twice")
				}
				// once the fresh token is there, the next request arrives whole
				g.Get("/v1/joins-the-token-request")
				if resp, got := send(); resp.StatusCode != http.StatusOK || got != want {
					t.Errorf("next request: %d %s", resp.StatusCode, got)
				}
			})
		}
	}
}

// replay says which requests are sent a second time. Those that are not get the
// API's 401, and the next request a fresh token.
func TestReplayOption(t *testing.T) {
	routes := func(api, endpoint string) (routes string) {
		for _, replay := range []string{"all", "idempotent", "off"} {
			// a credential of each
			directive := strings.Replace(egresstest.Egress(api, endpoint+"/"+replay, "replay "+replay), "client_id gateway", "client_id "+replay, 1)
			routes += egresstest.Site("/"+replay+"/", directive)
		}
		return routes
	}
	for method, replayed := range map[string]string{
		http.MethodGet: "all idempotent", http.MethodHead: "all idempotent", http.MethodPut: "all idempotent",
		http.MethodDelete: "all idempotent", http.MethodOptions: "all idempotent", http.MethodPost: "all", http.MethodPatch: "all",
	} {
		t.Run(method, func(t *testing.T) {
			api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
			var valid sync.Map // of each route
			api.Handler = func(w http.ResponseWriter, r *http.Request) {
				route := strings.Split(r.URL.Path, "/")[1]
				first, _ := valid.LoadOrStore(route, r.Header.Get("Authorization"))
				if strings.HasSuffix(r.URL.Path, "/revoked") && r.Header.Get("Authorization") == first {
					w.WriteHeader(http.StatusUnauthorized)
				}
			}
			g := egresstest.StartGateway(t, routes(api.URL, endpoint.URL))
			send := func(path string) int {
				var body io.Reader
				if method != http.MethodGet && method != http.MethodHead {
					body = strings.NewReader("body")
				}
				resp, _ := g.Do(g.Request(method, path, body))
				return resp.StatusCode
			}
			for _, replay := range []string{"all", "idempotent", "off"} {
				if got := send("/" + replay + "/first"); got != http.StatusOK {
					t.Fatalf("replay %s: answered %d at first", replay, got)
				}
				tokens := endpoint.Count()
				want, sent := http.StatusUnauthorized, 1
				if strings.Contains(replayed, replay) {
					want, sent = http.StatusOK, 2
				}
				if got := send("/" + replay + "/revoked"); got != want {
					t.Errorf("replay %s: answered %d, want %d", replay, got, want)
				}
				received := api.Under("/" + replay + "/revoked")
				if len(received) != sent {
					t.Errorf("replay %s: sent %d times, want %d", replay, len(received), sent)
				}
				for _, r := range received {
					if want := api.Under("/" + replay + "/first")[0].Body; r.Body != want {
						t.Errorf("replay %s: the body is %q, want %q", replay, r.Body, want)
					}
				}
				egresstest.Eventually(t, "a fresh token", func() bool { return endpoint.Count() > tokens })
				egresstest.Eventually(t, "its use", func() bool { return send("/"+replay+"/revoked") == http.StatusOK })
			}
		})
	}
}

// A body may outgrow what is kept of it while the token for the second request is
// awaited: with HTTP/1, that is, since HTTP/2 stops a body once a 401 is there.
// Neither what is left of the body nor nothing is sent in its place.
func TestBodyThatOutgrowsItsBufferWhileTheTokenIsAwaited(t *testing.T) {
	const begin, middle, end = 32 << 10, 400_000, 10_000
	for name, c := range map[string]struct {
		options, global string
		sized           bool
	}{
		"replay_buffer": {"replay_buffer 64KiB", "", false},
		"replay_memory": {"", "egress {\n replay_memory 256KiB\n}", true}, // 64 KiB for one client
	} {
		for _, all := range []bool{true, false} { // is sent before the token comes
			t.Run(fmt.Sprintf("%s/all=%v", name, all), func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				wait := func(condition func() bool) {
					for !condition() && ctx.Err() == nil {
						time.Sleep(time.Millisecond)
					}
				}
				api, endpoint := egresstest.NewGuarded(t, (*httptest.Server).Start), egresstest.NewTokens(t)
				api.Early = true
				api.Accept(egresstest.Token(1))
				// without full duplex, the server itself takes what is left of the body
				g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, c.options),
					egresstest.WithGlobal(c.global), egresstest.WithServer("enable_full_duplex"))
				g.Get("/v1/warm-up")
				api.Accept(egresstest.Token(2))
				gate := make(chan struct{})
				endpoint.SetAnswer(func(w http.ResponseWriter, _ *http.Request) {
					select {
					case <-gate:
						fmt.Fprintf(w, `{"access_token":"%s","expires_in":3600}`, egresstest.Token(2))
					case <-ctx.Done():
					}
				})

				size := begin + middle
				if !all {
					size += end
				}
				reader, writer := io.Pipe()
				var wg sync.WaitGroup
				wg.Go(func() {
					defer writer.Close()
					_, _ = writer.Write(make([]byte, begin))
					wait(func() bool { return endpoint.Count() == 2 }) // the token is awaited
					_, _ = writer.Write(make([]byte, middle))
					if all {
						writer.Close()
					}
					wait(func() bool { return api.Unread.Load() == begin+middle }) // more than is kept
					close(gate)
					if !all {
						_, _ = writer.Write(make([]byte, end))
					}
				})
				req := g.Request(http.MethodPost, "/v1/x", reader).WithContext(ctx)
				if c.sized {
					req.ContentLength = int64(size)
				}
				resp, body := g.Do(req)
				reader.Close()
				wg.Wait()
				if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(body, egresstest.APIUnauthorized) {
					t.Errorf("answered %d %s, want the API's own 401", resp.StatusCode, body)
				}
				if api.Unauthorized.Load() != 1 || api.Accepted.Load() != 1 { // that of the warm-up
					t.Error("something was sent a second time")
				}
			})
		}
	}
}

func TestSlowUploadIsReplayedWhenTheAPIAnswersEarly(t *testing.T) {
	for protocol, upstream := range upstreams {
		t.Run(protocol, func(t *testing.T) {
			api, endpoint := egresstest.NewGuarded(t, upstream.start), egresstest.NewTokens(t)
			api.Early = true
			api.Accept(egresstest.Token(1))
			g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, upstream.options))
			g.Get("/v1/warm-up")
			api.Accept(egresstest.Token(2))

			// the second half is sent only after the API has said 401
			b, want := egresstest.Body(200_000)
			reader, writer := io.Pipe()
			go func() {
				_, _ = writer.Write(b[:100_000])
				for api.Unauthorized.Load() == 0 {
					time.Sleep(time.Millisecond)
				}
				_, _ = writer.Write(b[100_000:])
				writer.Close()
			}()
			if resp, got := g.Do(g.Request(http.MethodPost, "/v1/x", reader)); resp.StatusCode != http.StatusOK || got != want {
				t.Errorf("answered %d %s, want 200 and hash %s", resp.StatusCode, got, want)
			}
		})
	}
}

func TestClientThatWaitsForTheAnswerIsNotLeftHanging(t *testing.T) {
	// Caddy's access log reads the length of a body that is still being read: a
	// race of Caddy's own, which the race detector would report
	routes := "log_skip\n"
	apis := make(map[string]*egresstest.Guarded)
	for protocol, upstream := range upstreams {
		api, endpoint := egresstest.NewGuarded(t, upstream.start), egresstest.NewTokens(t)
		api.Early = true
		api.Accept(egresstest.Token(1))
		apis["/"+protocol] = api
		routes += egresstest.Site("/"+protocol, egresstest.Egress(api.URL, endpoint.URL, upstream.options))
	}
	// without full duplex, the server itself waits for the body
	g := egresstest.StartGateway(t, routes, egresstest.WithServer("enable_full_duplex"))
	status := make(map[string]func() string)
	for path, api := range apis {
		g.Get(path)
		api.Accept("none")
		// a client that sends no more before it has an answer
		status[path] = g.SendRaw("POST " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
	}
	for path := range apis {
		if got := status[path](); !strings.Contains(got, "401") {
			t.Errorf("%s: answered %q, want the API's 401", path, got)
		}
	}
}

func TestInsufficientScopePassesThrough(t *testing.T) {
	api, endpoint := egresstest.NewGuarded(t, (*httptest.Server).Start), egresstest.NewTokens(t)
	api.Challenge = `Bearer realm="x", error="insufficient_scope", scope="admin"`
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	for range 3 {
		if resp, got := g.Get("/v1/x"); resp.StatusCode != http.StatusUnauthorized || !strings.Contains(got, "of the API") {
			t.Errorf("answered %d %s, want the API's own 401", resp.StatusCode, got)
		}
	}
	if got := endpoint.Count(); got != 1 {
		t.Errorf("%d token requests, want 1", got)
	}
	if got := api.Unauthorized.Load(); got != 3 {
		t.Errorf("the API was asked %d times, want 3", got)
	}
}

func TestFailedRefreshAfter401GivesTheAPIsAnswer(t *testing.T) {
	api, endpoint := egresstest.NewGuarded(t, (*httptest.Server).Start), egresstest.NewTokens(t)
	api.Accept(egresstest.Token(1))
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	g.Get("/v1/warm-up")
	api.Accept("none")
	endpoint.Set(func(e *egresstest.Tokens) {
		e.Answer = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	})
	resp, got := g.Get("/v1/x")
	if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(got, "of the API") {
		t.Errorf("answered %d %s, want the API's own 401", resp.StatusCode, got)
	}
}

// For how long tokens are not replaced again is shown by the tests of package
// tokensource.
func TestAPIThatAlwaysSays401(t *testing.T) {
	api, endpoint := egresstest.NewGuarded(t, (*httptest.Server).Start), egresstest.NewTokens(t)
	api.Accept("none")
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))

	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			resp, err := egresstest.Client.Get(g.URL + "/v1/x")
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
	if got := endpoint.Count(); got > 3 {
		t.Errorf("%d token requests, want at most 3", got)
	}
}
