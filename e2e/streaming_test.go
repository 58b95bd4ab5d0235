package e2e_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestLongBodiesStream(t *testing.T) {
	const size = 48 << 20 // three times what the heap may grow by
	endpoint := egresstest.NewTokens(t)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = io.CopyN(w, zeros{}, size)
			return
		}
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	}))
	defer api.Close()
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	g.Get("/warm-up")

	for name, transfer := range map[string]func() int64{
		"download": func() int64 {
			resp, err := egresstest.Client.Get(g.URL + "/v1/export")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			n, _ := io.Copy(io.Discard, resp.Body)
			return n
		},
		"upload of known length": func() int64 {
			req := g.Request(http.MethodPost, "/v1/import", io.LimitReader(zeros{}, size))
			req.ContentLength = size
			_, body := g.Do(req)
			var n int64
			fmt.Sscan(body, &n)
			return n
		},
		"chunked upload": func() int64 {
			_, body := g.Do(g.Request(http.MethodPost, "/v1/import", io.LimitReader(zeros{}, size)))
			var n int64
			fmt.Sscan(body, &n)
			return n
		},
	} {
		t.Run(name, func(t *testing.T) {
			growth := egresstest.HeapGrowth(func() {
				if n := transfer(); n != size {
					t.Errorf("%d bytes arrived, want %d", n, size)
				}
			})
			if growth > 16<<20 {
				t.Errorf("the heap has grown by %d bytes, want less than 16 MiB", growth)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestServerSentEvents(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	seen := make(chan struct{})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: first\n\n")
		w.(http.Flusher).Flush()
		select {
		case <-seen: // the client has the first event before the second is sent
			_, _ = io.WriteString(w, "data: second\n\n")
		case <-time.After(10 * time.Second):
		}
	}))
	defer api.Close()
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	resp, err := egresstest.Client.Get(g.URL + "/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, len("data: first\n\n"))
	if _, err := io.ReadFull(resp.Body, first); err != nil {
		t.Fatal(err)
	}
	close(seen)
	rest, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Contains(rest, []byte("second")) {
		t.Errorf("got %q and then %q, error %v", first, rest, err)
	}
}

func TestResponseTrailers(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Checksum")
		_, _ = io.WriteString(w, "hello")
		w.Header().Set("X-Checksum", "42")
	}))
	defer api.Close()
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	resp, _ := g.Get("/v1/x")
	if got := resp.Trailer.Get("X-Checksum"); got != "42" {
		t.Errorf("trailer is %q, want 42", got)
	}
}

func TestHTTP2Upstreams(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	h2 := egresstest.NewRecorderOver(t, func(s *httptest.Server) {
		s.EnableHTTP2 = true
		s.StartTLS()
	})
	h2c := egresstest.NewRecorderOver(t, egresstest.StartH2C)
	g := egresstest.StartGateway(t, `
	handle /h2 {
		`+egresstest.Egress(h2.URL, endpoint.URL, "transport http {\n tls_trust_pool file "+egresstest.Trust(t, h2.Server)+"\n}")+`
	}
	handle /h2c {
		`+egresstest.Egress(h2c.URL, endpoint.URL, "transport http {\n versions h2c\n}")+`
	}`)
	for path, api := range map[string]*egresstest.Recorder{"/h2": h2, "/h2c": h2c} {
		resp, body := g.Do(g.Request(http.MethodPost, path, strings.NewReader("hello")))
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
			continue
		}
		got := api.Last(t)
		if got.Proto != "HTTP/2.0" || got.Body != "hello" || !strings.HasPrefix(got.Header.Get("Authorization"), "Bearer "+egresstest.TokenPrefix) {
			t.Errorf("%s: the API got %+v", path, got)
		}
	}
}

func TestWebSocket(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	var authorization string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		authorization = r.Header.Get("Authorization")
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Connection", "Upgrade")
		w.WriteHeader(http.StatusSwitchingProtocols)
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.CopyN(conn, buffered, 5) // an echo, as far as a proxy can tell
	}))
	defer api.Close()
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	req := g.Request(http.MethodGet, "/v1/socket", nil)
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "websocket")
	req.Header.Set("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
	req.Header.Set("Sec-WebSocket-Version", "13")
	resp, err := egresstest.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("answered %d, want 101", resp.StatusCode)
	}
	socket := resp.Body.(io.ReadWriteCloser)
	defer socket.Close()
	if _, err := io.WriteString(socket, "hello"); err != nil {
		t.Fatal(err)
	}
	echo := make([]byte, 5)
	if _, err := io.ReadFull(socket, echo); err != nil || string(echo) != "hello" {
		t.Errorf("got %q back, error %v", echo, err)
	}
	_, _ = io.Copy(io.Discard, socket) // to its end: Caddy has a data race where it stops a socket that is in use
	if !strings.HasPrefix(authorization, "Bearer "+egresstest.TokenPrefix) {
		t.Error("the handshake carried no token")
	}
}
