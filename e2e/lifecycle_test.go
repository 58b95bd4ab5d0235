package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// steady sends a request every 5 ms until stopped, and counts the answers
// that are not 200.
type steady struct {
	client *http.Client
	url    string
	tcp    bool // over TCP, where Caddy's hand-over is not without gaps
	stop   chan struct{}
	wg     sync.WaitGroup
	sent   atomic.Int64
	failed atomic.Int64
	cut    atomic.Int64 // connections that ended before an answer began
	errors sync.Map
}

func startSteady(g *egresstest.Gateway, tcp bool) *steady {
	s := &steady{client: g.Client, url: g.URL + "/v1/x", tcp: tcp, stop: make(chan struct{})}
	s.wg.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				s.wg.Go(func() { s.send() })
			case <-s.stop:
				return
			}
		}
	})
	return s
}

func (s *steady) send() {
	s.sent.Add(1)
	var answered atomic.Bool
	trace := &httptrace.ClientTrace{GotFirstResponseByte: func() { answered.Store(true) }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), trace), http.MethodGet, s.url, nil)
	if err != nil {
		s.fail(err.Error())
		return
	}
	resp, err := s.client.Do(req)
	if err != nil {
		if s.tcp && !answered.Load() && connectionEnded(err) {
			s.cut.Add(1)
			return
		}
		s.fail(err.Error())
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK || err != nil {
		s.fail(fmt.Sprintf("%d %s (%v)", resp.StatusCode, body, err))
	}
}

func (s *steady) fail(why string) {
	s.failed.Add(1)
	s.errors.Store(why, nil)
}

// connectionEnded reports whether a request failed because the server closed or
// reset its connection. A refused connection is not that.
func connectionEnded(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		strings.HasSuffix(err.Error(), "server closed idle connection") // before the request was written; net/http does not export it
}

// end stops the traffic and fails the test if a request has failed.
func (s *steady) end(t *testing.T) {
	t.Helper()
	close(s.stop)
	s.wg.Wait()
	if cut, sent := s.cut.Load(), s.sent.Load(); cut > sent/10 {
		t.Errorf("%d of %d connections ended without an answer: more than a hand-over explains", cut, sent)
	}
	if s.failed.Load() == 0 {
		return
	}
	t.Errorf("%d of %d requests failed", s.failed.Load(), s.sent.Load())
	s.errors.Range(func(err, _ any) bool {
		t.Log(err)
		return true
	})
}

// Reloads lose no request. Over TCP, a connection that the old listener has not
// accepted yet may end without an answer, whatever the handler: Caddy hands over
// unix sockets only without a gap. Nothing else is tolerated.
func TestReloadsUnderTraffic(t *testing.T) {
	for name, options := range map[string][]egresstest.GatewayOption{
		"TCP":         nil,
		"unix socket": {egresstest.OverUnixSocket()},
	} {
		t.Run(name, func(t *testing.T) {
			api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
			routes := egresstest.Egress(api.URL, endpoint.URL, "")
			g := egresstest.StartGateway(t, routes, options...)
			g.Get("/v1/warm-up")

			traffic := startSteady(g, options == nil)
			reload := func(n int) {
				if n%2 == 0 {
					if err := g.Load(routes); err != nil {
						t.Errorf("reload %d: %v", n, err)
					}
					return
				}
				// rejected after the credential was provisioned: the other has no secret
				broken := strings.Replace(routes, "EGRESS_TEST_SECRET", "EGRESS_TEST_NOT_SET", 1)
				if err := g.Load("handle /a* {\n" + routes + "\n}\nhandle {\n" + broken + "\n}"); err == nil {
					t.Errorf("reload %d: a credential without a secret was accepted", n)
				}
			}
			for n := range 10 {
				sent := traffic.sent.Load()
				reload(n)
				egresstest.Eventually(t, "traffic between the reloads", func() bool { return traffic.sent.Load() > sent+20 })
			}
			traffic.end(t)
			if got := endpoint.Count(); got != 1 {
				t.Errorf("%d token requests, want that of the start only", got)
			}

			g.Client.CloseIdleConnections()
			before := egresstest.SettledGoroutines(t, 0)
			for n := range 50 {
				reload(n)
			}
			if after := egresstest.SettledGoroutines(t, before+5); after > before+5 {
				t.Errorf("%d goroutines before 50 reloads, %d after\n%s", before, after, egresstest.Stacks())
			}
			if got := endpoint.Count(); got != 1 {
				t.Errorf("%d token requests after 50 more reloads, want 1", got)
			}
		})
	}
}

func TestCredentialsComeAndGoByReload(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	route := func(path, secret string) string {
		return "handle " + path + " {\n" + strings.Replace(egresstest.Egress(api.URL, endpoint.URL, ""), "{env.EGRESS_TEST_SECRET}", secret, 1) + "\n}\n"
	}
	scoped := func(path string) string {
		return "handle " + path + " {\n" + egresstest.Egress(api.URL, endpoint.URL, "scopes read") + "\n}\n"
	}
	authorization := func(g *egresstest.Gateway, path string) string {
		if resp, body := g.GetAfterReload(path); resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s", path, resp.StatusCode, body)
		}
		return api.Last(t).Header.Get("Authorization")
	}
	mustLoad := func(g *egresstest.Gateway, routes string) {
		if err := g.Load(routes); err != nil {
			t.Fatal(err)
		}
	}
	secret := "{env.EGRESS_TEST_SECRET}"

	g := egresstest.StartGateway(t, route("/a", secret))
	first := authorization(g, "/a")

	mustLoad(g, route("/a", secret)+scoped("/b")) // added: the first keeps its token
	second := authorization(g, "/b")
	if got := authorization(g, "/a"); got != first || second == first {
		t.Errorf("after adding: tokens %q and %q, want %q and another", got, second, first)
	}

	t.Setenv("EGRESS_TEST_OTHER_SECRET", egresstest.Secret+"-changed")
	mustLoad(g, route("/a", "{env.EGRESS_TEST_OTHER_SECRET}")+scoped("/b")) // changed: never the token of the other secret
	if got := authorization(g, "/a"); got == first {
		t.Error("a changed secret got the token of the one before")
	}
	if got := authorization(g, "/b"); got != second {
		t.Errorf("the credential that did not change has token %q, want %q", got, second)
	}

	mustLoad(g, scoped("/b")) // removed, and back: its state was freed
	mustLoad(g, route("/a", secret)+scoped("/b"))
	if got := authorization(g, "/a"); got == first {
		t.Error("the token has outlived its credential")
	}
}

func TestRequestsThatDrainAcrossAReload(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	arrived, answer := make(chan string, 1), make(chan struct{})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/slow" {
			arrived <- r.Header.Get("Authorization")
			select {
			case <-answer:
			case <-r.Context().Done():
				return
			}
		}
		// the token was revoked meanwhile: the old config has to get another
		if r.Header.Get("Authorization") == "Bearer "+egresstest.Token(1) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, r.Header.Get("Authorization"))
	}))
	defer api.Close()
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""), egresstest.WithGlobal("grace_period 50ms"))

	result := make(chan string, 1)
	go func() {
		resp, err := egresstest.Client.Get(g.URL + "/v1/slow")
		if err != nil {
			result <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		result <- fmt.Sprintf("%d %s", resp.StatusCode, body)
	}()
	<-arrived
	// once this returns, the grace period is over and the old config cleaned up;
	// its request is answered 401 after that, and sent again
	if err := g.Load(`respond "no egress any more" 404`); err != nil {
		t.Fatal(err)
	}
	close(answer)
	go func() { <-arrived }()
	if got := <-result; got != "200 Bearer "+egresstest.Token(2) {
		t.Errorf("the request was answered %q, want 200 with the second token", got)
	}
}

func TestRevocation(t *testing.T) {
	for name, removal := range map[string]func(g *egresstest.Gateway) error{
		"by a reload without the credential": func(g *egresstest.Gateway) error { return g.Load(`respond 404`) },
		"by a stop":                          func(*egresstest.Gateway) error { return caddy.Stop() },
	} {
		for _, revoke := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/revoke_on_stop=%v", name, revoke), func(t *testing.T) {
				api, server := egresstest.NewSandbox(t, "voucherify")
				option := ""
				if revoke {
					option = "revoke_on_stop"
				}
				routes := fmt.Sprintf("egress voucherify %s {\n app_id id\n app_token {env.EGRESS_TEST_SECRET}\n scopes api\n %s\n}", server.URL, option)
				g := egresstest.StartGateway(t, routes)
				g.Get("/v1/vouchers")
				if err := g.Load(routes); err != nil { // with the same credential: nothing is revoked
					t.Fatal(err)
				}
				if got := api.Stats().LiveTokens; got != 1 {
					t.Fatalf("%d live tokens after a reload, want 1", got)
				}
				if err := removal(g); err != nil {
					t.Fatal(err)
				}
				if revoke {
					egresstest.Eventually(t, "the revocation", func() bool { return api.Stats().LiveTokens == 0 })
				} else if got := api.Stats().LiveTokens; got != 1 {
					t.Errorf("%d live tokens, want the one that is left to expire", got)
				}
			})
		}
	}
}
