package e2e_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// silentPath is a TCP proxy whose first connection dies silently: it forwards so
// many bytes in one direction, and swallows all that comes after that. Later
// connections work.
type silentPath struct {
	URL         string
	connections atomic.Int32 // so far
	open        atomic.Int32 // that its client has not closed
}

// newSilentPath starts a proxy to server. The first connection dies after so
// many bytes, of the server if answer is set, else of the client.
func newSilentPath(t *testing.T, server *httptest.Server, answer bool, bytes int64) *silentPath {
	t.Helper()
	address := server.Listener.Addr().String()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &silentPath{URL: strings.Replace(server.URL, address, listener.Addr().String(), 1)}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		listener.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", address)
			if err != nil {
				t.Error(err)
				client.Close()
				return
			}
			dies := p.connections.Add(1) == 1
			p.open.Add(1)
			dead := make(chan struct{})
			forward := func(to, from net.Conn, limited bool) {
				if dies && limited {
					_, _ = io.CopyN(to, from, bytes)
					close(dead)
				} else {
					_, _ = io.Copy(untilDead{to, dead}, from)
				}
				_, _ = io.Copy(io.Discard, from)
			}
			wg.Go(func() {
				forward(upstream, client, !answer)
				p.open.Add(-1) // the client has closed it
				client.Close()
				upstream.Close()
			})
			wg.Go(func() {
				forward(client, upstream, answer)
				if !dies {
					client.Close()
				}
			})
		}
	})
	return p
}

// untilDead is a writer that swallows what it is given once dead is closed.
type untilDead struct {
	io.Writer
	dead chan struct{}
}

func (w untilDead) Write(p []byte) (int, error) {
	select {
	case <-w.dead:
		return len(p), nil
	default:
		return w.Writer.Write(p)
	}
}

// requestsOfConnection is the key of the number of requests that have come over one.
type requestsOfConnection struct{}

// A path to the token endpoint dies silently somewhere in a token request. The
// next one has another connection.
func TestPathToTheTokenEndpointThatDiesSilently(t *testing.T) {
	const timeout = 2 * time.Second
	points := []struct {
		answer bool // else in the request
		bytes  int64
	}{
		{false, 0}, {false, 1}, {false, 20}, {false, 100}, {false, 200},
		// with TLS, the handshake ends after some 1,400 bytes
		{true, 0}, {true, 1}, {true, 40}, {true, 100}, {true, 500}, {true, 1000}, {true, 1300}, {true, 1400}, {true, 1500},
		{true, 1600}, {true, 2000}, {true, 3000}, {true, 10_000}, {true, 30_000}, {true, 60_000},
	}
	for protocol, start := range map[string]egresstest.Start{
		"HTTP/1.1": (*httptest.Server).Start,
		"HTTP/2.0": func(s *httptest.Server) {
			s.EnableHTTP2 = true
			s.StartTLS()
		},
	} {
		t.Run(protocol, func(t *testing.T) {
			api := egresstest.NewRecorder(t)
			endpoint := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Proto != protocol {
					t.Errorf("asked over %s", r.Proto)
				}
				if r.Context().Value(requestsOfConnection{}).(*atomic.Int32).Add(1) > 1 {
					t.Error("two token requests come over one connection")
				}
				fmt.Fprintf(w, `{"access_token":%q,"expires_in":3600}%s`, egresstest.Token(1), strings.Repeat(" ", 64<<10))
			}))
			endpoint.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that end
			endpoint.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
				return context.WithValue(ctx, requestsOfConnection{}, new(atomic.Int32))
			}
			start(endpoint)
			t.Cleanup(endpoint.Close)
			options := "token_timeout " + timeout.String()
			if endpoint.TLS != nil {
				options += "\n token_ca " + egresstest.Trust(t, endpoint)
			}
			admin, global := egresstest.NewAdmin(t)
			global += "egress {\n"
			routes := ""
			paths := make([]*silentPath, len(points))
			for n, point := range points {
				paths[n] = newSilentPath(t, endpoint, point.answer, point.bytes)
				name := fmt.Sprint("c", n)
				global += strings.Replace(egresstest.Egress(api.URL, paths[n].URL, options), "egress", "credential "+name, 1) + "\n"
				routes += egresstest.Site("/"+name+"/", "egress "+name)
			}
			loaded := time.Now()
			g := egresstest.StartWatched(t, routes, egresstest.WithGlobal(global+"}"))

			// all of them at the same time, by clients that try again and again
			served := make([]time.Duration, len(points))
			var wg sync.WaitGroup
			for n := range points {
				wg.Go(func() {
					tick := time.NewTicker(20 * time.Millisecond)
					defer tick.Stop()
					for served[n] == 0 && time.Since(loaded) < time.Minute {
						<-tick.C
						resp, body, err := g.Try(g.Request(http.MethodGet, fmt.Sprintf("/c%d/x", n), nil))
						switch {
						case err != nil:
							t.Error(err)
							return
						case resp.StatusCode == http.StatusOK:
							served[n] = time.Since(loaded)
						default:
							egresstest.CheckNoToken(t, resp, body, http.StatusServiceUnavailable)
						}
					}
				})
			}
			wg.Wait()
			for n, p := range paths {
				if served[n] == 0 {
					t.Errorf("%+v: no answer of the API", points[n])
				}
				status := admin.Status(t, fmt.Sprint("c", n))
				// one that ends before it has a connection has none
				if got := p.connections.Load(); got < 2 || int64(got) > status.TokenRequests {
					t.Errorf("%+v: %d connections for %d token requests, want two and one each", points[n], got, status.TokenRequests)
				}
				egresstest.Eventually(t, "all connections to the token endpoint to be closed", func() bool { return p.open.Load() == 0 })
			}
			longest := slices.Max(served)
			t.Logf("%d rounds, all served after %v, which is token_timeout and %v", len(points), longest.Round(time.Millisecond), (longest - timeout).Round(time.Millisecond))
		})
	}
}
