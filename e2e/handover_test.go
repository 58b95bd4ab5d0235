package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// steady sends a request every 5 ms until stopped, each to a URL of its own.
type steady struct {
	client *http.Client
	url    string
	stop   chan struct{}
	wg     sync.WaitGroup
	sent   atomic.Int64

	mu     sync.Mutex
	cut    map[string]string // paths of requests whose connection ended before an answer began
	failed map[string]string // and of those that failed otherwise
}

func startSteady(g *egresstest.Gateway) *steady {
	s := &steady{client: g.Client, url: g.URL, stop: make(chan struct{}), cut: map[string]string{}, failed: map[string]string{}}
	s.wg.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				path := steadyPath(s.sent.Add(1))
				s.wg.Go(func() { s.send(path) })
			case <-s.stop:
				return
			}
		}
	})
	return s
}

func steadyPath(n int64) string { return fmt.Sprintf("/v1/steady/%d", n) }

func (s *steady) send(path string) {
	var answered atomic.Bool
	trace := &httptrace.ClientTrace{GotFirstResponseByte: func() { answered.Store(true) }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), trace), http.MethodGet, s.url+path, nil)
	if err != nil {
		s.note(s.failed, path, err.Error())
		return
	}
	resp, err := s.client.Do(req)
	if err != nil {
		if !answered.Load() && connectionEnded(err) {
			s.note(s.cut, path, err.Error())
		} else {
			s.note(s.failed, path, err.Error())
		}
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK || err != nil {
		s.note(s.failed, path, fmt.Sprintf("%d %s (%v)", resp.StatusCode, body, err))
	}
}

func (s *steady) note(requests map[string]string, path, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	requests[path] = why
}

// connectionEnded reports whether a request failed because the server closed or
// reset its connection. A refused connection is not that.
func connectionEnded(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		strings.HasSuffix(err.Error(), "server closed idle connection") // before the request was written; net/http does not export it
}

// end stops the traffic, and fails the test if a request has failed or more than
// most connections were cut.
func (s *steady) end(t *testing.T, most int64) {
	t.Helper()
	close(s.stop)
	s.wg.Wait()
	for path, why := range s.failed {
		t.Errorf("%s: %s", path, why)
	}
	if cut := int64(len(s.cut)); cut > most {
		t.Errorf("%d of %d connections ended without an answer, which is more than the hand-over explains: %v", cut, s.sent.Load(), s.cut)
	}
}

// check fails the test unless each request that was answered has come to Caddy's
// handlers once, and the others never: one that is handled and not answered is lost,
// and so is one that is handled twice, as the client sends a GET again by itself.
func (s *steady) check(t *testing.T, g *egresstest.Gateway) {
	t.Helper()
	handled := make(map[string]int)
	for _, line := range g.LogLines("handled request") {
		if request, ok := line["request"].(map[string]any); ok {
			handled[fmt.Sprint(request["uri"])]++
		}
	}
	for n := range s.sent.Load() {
		path, want := steadyPath(n+1), 1
		why, cut := s.cut[path]
		if cut {
			want = 0
		}
		if handled[path] != want {
			t.Errorf("%s was handled %d times, want %d (%s)", path, handled[path], want, why)
		}
	}
}

// Reloads lose no request that has come to a handler. Before that, Caddy's hand-over
// may end a connection, whatever the handler. Over TCP, the connections that the old
// listener has not accepted end. Caddy hands over unix sockets without that gap, but
// TestHandOverEndsConnections shows what is left: where each request has a connection
// of its own, one hand-over in twenty was seen to end one, with `respond` as often as
// with the gateway. Here most connections are kept, and one for each hand-over is
// far more than that explains.
func TestReloadsUnderTraffic(t *testing.T) {
	for name, options := range map[string][]egresstest.GatewayOption{
		"TCP":         nil,
		"unix socket": {egresstest.OverUnixSocket()},
	} {
		t.Run(name, func(t *testing.T) {
			api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
			routes := egresstest.Egress(api.URL, endpoint.URL, "")
			g := egresstest.StartGateway(t, "log\n"+routes, options...)
			g.Get("/v1/warm-up")

			traffic := startSteady(g)
			handOvers := int64(0)
			reload := func(n int) {
				if n%2 == 0 {
					if err := g.Load("log\n" + routes); err != nil {
						t.Errorf("reload %d: %v", n, err)
					}
					handOvers++
					return
				}
				// rejected after the credential was provisioned: the other has no secret
				broken := strings.Replace(routes, "EGRESS_TEST_SECRET", "EGRESS_TEST_NOT_SET", 1)
				if err := g.Load("log\nhandle /a* {\n" + routes + "\n}\nhandle {\n" + broken + "\n}"); err == nil {
					t.Errorf("reload %d: a credential without a secret was accepted", n)
				}
			}
			for n := range 10 {
				sent := traffic.sent.Load()
				reload(n)
				egresstest.Eventually(t, "traffic between the reloads", func() bool { return traffic.sent.Load() > sent+20 })
			}
			most := handOvers
			if options == nil {
				most = traffic.sent.Load() / 10
			}
			traffic.end(t, most)
			if got, want := len(api.Under("/v1/steady/")), int(traffic.sent.Load())-len(traffic.cut); got != want {
				t.Errorf("%d requests have reached the API, and %d were answered", got, want)
			}
			if got := endpoint.Count(); got != 1 {
				t.Errorf("%d token requests, want that of the start only", got)
			}

			g.Client.CloseIdleConnections()
			before := egresstest.SettledGoroutines(t, 0)
			traffic.check(t, g)
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

// net/http does not answer a request that it reads after Shutdown has begun. So a
// hand-over ends a connection that the old server has accepted, and on which it has
// not yet read a request: before any handler, and with plain Caddy as with the
// gateway. If this fails, net/http has got better, and TestReloadsUnderTraffic need
// not tolerate connections over unix sockets that were cut.
func TestHandOverEndsConnections(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	for name, routes := range map[string]string{
		"plain Caddy": "respond ok",
		"gateway":     egresstest.Egress(api.URL, endpoint.URL, ""),
	} {
		t.Run(name, func(t *testing.T) {
			g := egresstest.StartGateway(t, routes, egresstest.OverUnixSocket())
			dial := func() (net.Conn, *bufio.Reader) {
				conn, err := g.Client.Transport.(*http.Transport).DialContext(t.Context(), "", "")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				return conn, bufio.NewReader(conn)
			}
			get := func(conn net.Conn, reader *bufio.Reader, path string) (string, error) {
				if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, g.Addr); err != nil {
					return "", err
				}
				return reader.ReadString('\n')
			}
			const ok = "HTTP/1.1 200 OK\r\n"

			fresh, freshReader := dial()
			idle, idleReader := dial() // accepted after the other
			if line, err := get(idle, idleReader, "/v1/idle"); line != ok || err != nil {
				t.Fatal(line, err)
			}
			if err := g.Load(routes); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, idleReader); err != nil { // ends when Shutdown has begun
				t.Fatal(err)
			}
			if line, err := get(fresh, freshReader, "/v1/fresh"); err == nil || !connectionEnded(err) {
				t.Errorf("the connection that sends its request only now: %q (%v), want its end", line, err)
			}
			next, nextReader := dial()
			if line, err := get(next, nextReader, "/v1/next"); line != ok || err != nil {
				t.Errorf("the new server: %q (%v)", line, err)
			}
		})
	}
	if got := api.Under("/v1/fresh"); len(got) > 0 {
		t.Errorf("%v has reached the API", got)
	}
}
