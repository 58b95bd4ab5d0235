package e2e_test

import (
	"bytes"
	"compress/gzip"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// 256 idle connections are kept, where the http transport keeps 32.
func TestIdleConnections(t *testing.T) {
	const kept, surplus = 256, 8
	for name, c := range map[string]struct {
		options string
		kept    int64
	}{
		"default":    {"", kept},
		"configured": {"transport http {\n keepalive_idle_conns_per_host 10\n}", 10},
	} {
		t.Run(name, func(t *testing.T) {
			var opened, closed, arrived atomic.Int64
			var all atomic.Pointer[chan struct{}] // closed once all requests have arrived
			wave := make(chan struct{})
			all.Store(&wave)
			api := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				wave := *all.Load()
				if arrived.Add(1) == kept+surplus {
					close(wave)
				}
				<-wave
			}))
			api.Config.ConnState = func(_ net.Conn, state http.ConnState) {
				switch state {
				case http.StateNew:
					opened.Add(1)
				case http.StateClosed:
					closed.Add(1)
				}
			}
			api.Start()
			defer api.Close()
			endpoint := egresstest.NewTokens(t)
			g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, c.options))
			send := func() {
				var wg sync.WaitGroup
				for range kept + surplus {
					wg.Go(func() {
						if resp, body, err := g.Try(g.Request(http.MethodGet, "/v1/x", nil)); err != nil || resp.StatusCode != http.StatusOK {
							t.Errorf("answered %v %s, error %v", resp, body, err)
						}
					})
				}
				wg.Wait()
			}
			send()
			// a connection is closed when as many as may be are idle already
			egresstest.Eventually(t, "the surplus connections to be closed", func() bool { return opened.Load()-closed.Load() == c.kept })

			next := make(chan struct{})
			all.Store(&next)
			arrived.Store(0)
			send()
			if got := opened.Load(); got != 2*(kept+surplus)-c.kept {
				t.Errorf("%d connections for twice %d requests at a time, want %d of the first to be used again", got, kept+surplus, c.kept)
			}
		})
	}
}

// Compression is between client and API: the gateway neither asks for it nor
// undoes it.
func TestCompressionIsLeftToClientAndAPI(t *testing.T) {
	var compressed bytes.Buffer
	w := gzip.NewWriter(&compressed)
	_, _ = w.Write([]byte("data of the API"))
	w.Close()
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept-Encoding") == "" {
			_, _ = w.Write([]byte("data of the API"))
			return
		}
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(compressed.Bytes())
	}
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))

	resp, body := g.Get("/v1/x")
	if got := api.Last(t).Header.Values("Accept-Encoding"); len(got) > 0 {
		t.Errorf("Accept-Encoding is %q at the API for a client that sent none", got)
	}
	if body != "data of the API" || resp.Header.Get("Content-Encoding") != "" {
		t.Errorf("answered %q with Content-Encoding %q", body, resp.Header.Get("Content-Encoding"))
	}

	req := g.Request(http.MethodGet, "/v1/x", nil)
	req.Header.Set("Accept-Encoding", "gzip")
	resp, body = g.Do(req)
	if body != compressed.String() || resp.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("answered %q with Content-Encoding %q, want what the API compressed", body, resp.Header.Get("Content-Encoding"))
	}
}
