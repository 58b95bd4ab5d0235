package e2e_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// stalling is an API in front of another: it counts uploads to /stalled of which
// some has arrived, and waits for the rest.
type stalling struct {
	*httptest.Server
	arrived atomic.Int64 // bytes
	ended   atomic.Int64 // uploads
}

func newStalling(t *testing.T, next http.Handler) *stalling {
	t.Helper()
	s := new(stalling)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/stalled" {
			next.ServeHTTP(w, r)
			return
		}
		defer s.ended.Add(1)
		buffer := make([]byte, 32<<10)
		for {
			n, err := r.Body.Read(buffer)
			s.arrived.Add(int64(n))
			if err != nil {
				return
			}
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// stall begins n uploads of size bytes and one more, which is never sent.
func (s *stalling) stall(t *testing.T, g *egresstest.Gateway, from string, n, size int) {
	t.Helper()
	before := s.arrived.Load()
	for range n {
		conn, err := egresstest.From(from, g.Addr)()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		request := fmt.Sprintf("POST /stalled HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s", size+1, strings.Repeat("x", size))
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
	}
	egresstest.Eventually(t, "the uploads to arrive at the API", func() bool {
		return s.arrived.Load() == before+int64(n*size)
	})
}

// One client that keeps uploads open has a quarter of the memory at most, so
// that the bodies of others are replayed all the same.
func TestOneClientCannotTakeTheReplayMemory(t *testing.T) {
	for name, uploads := range map[string]struct{ count, size int }{
		"a byte each":  {200, 1},
		"100 KiB each": {20, 100 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			guarded, endpoint := egresstest.NewGuarded(t, (*httptest.Server).Start), egresstest.NewTokens(t)
			api := newStalling(t, guarded)
			guarded.Accept(egresstest.Token(1))
			g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""),
				egresstest.WithGlobal("egress {\n replay_memory 512KiB\n}"))
			g.Get("/v1/warm-up")
			api.stall(t, g, "127.0.0.2", uploads.count, uploads.size)

			guarded.Accept(egresstest.Token(2))
			b, want := egresstest.Body(60_000)
			if resp, got := g.Do(g.Request(http.MethodPost, "/v1/x", bytes.NewReader(b))); resp.StatusCode != http.StatusOK || got != want {
				t.Errorf("another client is answered %d %s, want 200 and hash %s", resp.StatusCode, got, want)
			}
		})
	}
}

// Caddy's read_body ends uploads that stall, and with them their connections to
// the API, as the README says.
func TestStalledUploadsEnd(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	api := newStalling(t, http.NotFoundHandler())
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""), egresstest.WithServer("timeouts {\n read_body 500ms\n}"))
	g.Get("/v1/warm-up") // else an upload may end while it waits for a token
	api.stall(t, g, "127.0.0.2", 3, 10)
	egresstest.Eventually(t, "the uploads to end", func() bool { return api.ended.Load() == 3 })
}
