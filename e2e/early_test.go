package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// hasty is an API that says 401 and closes the connection as soon as it has read
// the header of a request without the valid token, and a part of its body.
type hasty struct {
	URL string

	header string // lines of the 401
	empty  bool   // the 401 has no body
	silent bool   // it has no header either
	reset  bool   // the connection, instead of an orderly end
	reads  int64  // of a body before the 401

	tls          *tls.Config // nil: plain
	valid        atomic.Pointer[string]
	unauthorized atomic.Int64
}

// newHasty starts a copy of h.
func newHasty(t *testing.T, like *hasty, secure bool) *hasty {
	t.Helper()
	h := &hasty{header: like.header, empty: like.empty, silent: like.silent, reset: like.reset, reads: like.reads}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.URL = "http://" + l.Addr().String()
	if secure {
		unused := httptest.NewTLSServer(nil)
		unused.Close()
		h.tls = unused.TLS
		h.URL = "https://" + l.Addr().String()
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { h.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return h
}

func (h *hasty) accept(token string) { h.valid.Store(&token) }

func (h *hasty) serve(raw net.Conn) {
	conn := raw
	if h.tls != nil {
		conn = tls.Server(raw, h.tls)
	}
	defer conn.Close()
	reader := bufio.NewReader(conn)
	for {
		req, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		if req.Header.Get("Authorization") != "Bearer "+*h.valid.Load() {
			h.unauthorized.Add(1)
			_, _ = io.CopyN(io.Discard, req.Body, h.reads)
			body := egresstest.APIUnauthorized
			if h.empty {
				body = ""
			}
			if !h.silent {
				fmt.Fprintf(conn, "HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\n%s\r\n%s", len(body), h.header, body)
			}
			if h.reset {
				_ = raw.(*net.TCPConn).SetLinger(0)
				_ = raw.Close()
			}
			return
		}
		hash := sha256.New()
		_, _ = io.Copy(hash, req.Body)
		fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n%x", hash.Sum(nil))
	}
}

// A 401 that has arrived counts, although the API closes the connection while the
// body is still being sent.
func TestReplayAfterA401ThatClosesTheConnection(t *testing.T) {
	for name, h := range map[string]*hasty{
		"close":                     {},
		"close, announced":          {header: "Connection: close\r\n"},
		"close amid the body":       {reads: 500_000},
		"close, without a body":     {header: "Connection: close\r\n", empty: true},
		"reset":                     {reset: true},
		"reset, announced":          {header: "Connection: close\r\n", reset: true},
		"reset amid the body":       {reads: 500_000, reset: true},
		"reset, without a body":     {header: "Connection: close\r\n", empty: true, reset: true},
		"reset, with a long header": {header: "X: " + strings.Repeat("x", 10_000) + "\r\n", reset: true},
	} {
		for _, secure := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/tls=%v", name, secure), func(t *testing.T) {
				api, endpoint := newHasty(t, h, secure), egresstest.NewTokens(t)
				api.accept(egresstest.Token(1))
				options := "replay_buffer 2MiB\n"
				if secure {
					options += "allow_http\ntransport http {\n tls_insecure_skip_verify\n}\n"
				}
				g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, options), egresstest.WithGlobal("egress {\n replay_memory 256MiB\n}"))
				g.Get("/v1/warm-up")
				api.accept(egresstest.Token(2))

				uploadAtOnce(t, g, 12)
				if api.unauthorized.Load() == 0 {
					t.Error("the API has not said 401")
				}
			})
		}
	}
}

// The end of a connection without an answer is an error all the same, and it
// does not take a time-out to find out.
func TestConnectionThatEndsWithoutAnAnswer(t *testing.T) {
	for _, reset := range []bool{false, true} {
		for _, reads := range []int64{0, 500_000} {
			t.Run(fmt.Sprintf("reset=%v/after=%d", reset, reads), func(t *testing.T) {
				api, endpoint := newHasty(t, &hasty{silent: true, reset: reset, reads: reads}, false), egresstest.NewTokens(t)
				api.accept("none")
				g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
				// Go's own client would stumble over its write as well
				conn, err := egresstest.From("127.0.0.1", g.Addr)()
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				go func() {
					_, _ = io.WriteString(conn, "POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2000000\r\n\r\n"+strings.Repeat("x", 2_000_000))
				}()
				if got, _ := bufio.NewReader(conn).ReadString('\n'); !strings.Contains(got, "502") {
					t.Errorf("answered %q, want 502", got)
				}
			})
		}
	}
}

// With HTTP/2, a server that has answered early stops the rest of the body, or
// breaks off the stream.
func TestReplayAfterA401ThatEndsTheStream(t *testing.T) {
	for _, abort := range []bool{false, true} {
		t.Run(fmt.Sprintf("abort=%v", abort), func(t *testing.T) {
			var valid atomic.Pointer[string]
			accept := func(token string) { valid.Store(&token) }
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Bearer "+*valid.Load() {
					w.WriteHeader(http.StatusUnauthorized)
					_ = http.NewResponseController(w).Flush()
					if abort {
						panic(http.ErrAbortHandler)
					}
					return
				}
				hash := sha256.New()
				_, _ = io.Copy(hash, r.Body)
				fmt.Fprintf(w, "%x", hash.Sum(nil))
			}))
			egresstest.StartH2C(server)
			t.Cleanup(server.Close)
			endpoint := egresstest.NewTokens(t)
			accept(egresstest.Token(1))
			g := egresstest.StartGateway(t, egresstest.Egress(server.URL, endpoint.URL, "replay_buffer 2MiB\ntransport http {\n versions h2c\n}"))
			g.Get("/v1/warm-up")
			accept(egresstest.Token(2))
			uploadAtOnce(t, g, 6)
		})
	}
}

// uploadAtOnce sends n uploads of 2 MiB at a time, each of which has to arrive
// whole.
func uploadAtOnce(t *testing.T, g *egresstest.Gateway, n int) {
	body, want := egresstest.Body(2 << 20)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			resp, got, err := g.Try(g.Request(http.MethodPost, "/v1/x", bytes.NewReader(body)))
			if err != nil {
				t.Error(err)
			} else if resp.StatusCode != http.StatusOK || got != want {
				t.Errorf("answered %d %s, want 200 and hash %s", resp.StatusCode, got, want)
			}
		})
	}
	wg.Wait()
}
