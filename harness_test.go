package egress_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-egress/caddy-egress"
	"github.com/caddy-egress/caddy-egress/sandbox"
)

// Secrets and tokens of the tests, for the search for leaks.
const (
	testSecret = "S3cret~of+the%tests&="
	testToken  = "T0ken-of-the-tests-"
)

// gateway is a whole Caddy, from Caddyfile to sockets. There is one in a
// process at a time, so tests that use it do not run in parallel.
type gateway struct {
	t    *testing.T
	Addr string // host:port it listens on
	URL  string
	log  string // file
	opts string // further global options
	srv  string // further options of the server
	bind string // address it listens on
}

// gatewayOption changes a gateway before it starts.
type gatewayOption func(*gateway)

// withGlobal adds global options.
func withGlobal(options string) gatewayOption {
	return func(g *gateway) { g.opts = options }
}

// withServer adds options of the server.
func withServer(options string) gatewayOption {
	return func(g *gateway) { g.srv = options }
}

// overUnixSocket has the gateway listen on a unix socket, and the test's client
// use it. Caddy hands one over at a reload without a gap; with TCP, connections
// that the old listener has not accepted yet are reset, whatever the handler.
func overUnixSocket() gatewayOption {
	return func(g *gateway) {
		dir, err := os.MkdirTemp("", "egress") // short: the path of a socket is bounded
		if err != nil {
			g.t.Fatal(err)
		}
		g.t.Cleanup(func() { os.RemoveAll(dir) })
		socket := filepath.Join(dir, "s")
		g.bind = "unix/" + socket
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
		before := plainClient.Transport
		plainClient.Transport = &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64, DialContext: dial}
		g.t.Cleanup(func() {
			plainClient.CloseIdleConnections()
			plainClient.Transport = before
		})
	}
}

// startGateway runs Caddy with a site of routes.
func startGateway(t *testing.T, routes string, options ...gatewayOption) *gateway {
	t.Helper()
	g := &gateway{t: t, Addr: freeAddr(t), log: filepath.Join(t.TempDir(), "caddy.log"), bind: "127.0.0.1"}
	g.URL = "http://" + g.Addr
	for _, option := range options {
		option(g)
	}
	if err := g.load(routes); err != nil {
		t.Fatalf("loading: %v", err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Errorf("stopping: %v", err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", g.Log())
		}
	})
	return g
}

// load adapts and loads the config, like a reload of Caddy's.
func (g *gateway) load(routes string) error {
	return caddy.Load(g.adapt(routes), true)
}

// caddyfile returns the whole config around routes.
func (g *gateway) caddyfile(routes string) string {
	return fmt.Sprintf(`{
	admin off
	persist_config off
	auto_https off
	grace_period 5s
	log {
		output file %s
		level DEBUG
		format json
	}
	servers {
		log_credentials
		protocols h1 h2c
		%s
	}
	%s
}
http://:%s {
	bind %s
	%s
}
`, g.log, g.srv, g.opts, g.Addr[strings.LastIndex(g.Addr, ":")+1:], g.bind, routes)
}

func (g *gateway) adapt(routes string) []byte {
	g.t.Helper()
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(g.caddyfile(routes)), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		g.t.Fatalf("adapting: %v", err)
	}
	return config
}

// Log returns what Caddy has logged.
func (g *gateway) Log() string {
	log, err := os.ReadFile(g.log)
	if err != nil {
		return err.Error()
	}
	return string(log)
}

// get sends a GET and returns status, header and body.
func (g *gateway) get(path string) (*http.Response, string) {
	g.t.Helper()
	return g.do(g.request(http.MethodGet, path, nil))
}

func (g *gateway) request(method, path string, body io.Reader) *http.Request {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.URL+path, body)
	if err != nil {
		g.t.Fatal(err)
	}
	return req
}

// do sends req and returns the answer with its body read.
func (g *gateway) do(req *http.Request) (*http.Response, string) {
	g.t.Helper()
	resp, err := plainClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp, string(body)
}

// raw sends bytes as they are and returns the status line of the answer.
func (g *gateway) raw(request string) string {
	g.t.Helper()
	conn, err := net.Dial("tcp", g.Addr)
	if err != nil {
		g.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		g.t.Fatal(err)
	}
	line, _ := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line)
}

// plainClient adds nothing to a request that a test did not put there.
var plainClient = &http.Client{
	Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Second},
	CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	},
}

// freeAddr returns a loopback address that the kernel picked.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// received is a request as it arrived at an API.
type received struct {
	Method, Target, Host, Proto string
	Header                      http.Header
	Trailer                     http.Header
	Body                        string
}

// recorder is an API that records what arrives and answers 200.
type recorder struct {
	*httptest.Server
	mu       sync.Mutex
	requests []received
	handler  http.HandlerFunc // answers instead, after the request was recorded
}

// newRecorder starts an API over start: httptest's Start or StartTLS.
func newRecorder(t *testing.T, start func(*httptest.Server)) *recorder {
	t.Helper()
	r := new(recorder)
	r.Server = httptest.NewUnstartedServer(r)
	start(r.Server)
	t.Cleanup(r.Close)
	return r
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	r.mu.Lock()
	r.requests = append(r.requests, received{
		Method: req.Method, Target: req.RequestURI, Host: req.Host, Proto: req.Proto,
		Header: req.Header.Clone(), Trailer: req.Trailer.Clone(), Body: string(body),
	})
	r.mu.Unlock()
	if r.handler != nil {
		req.Body = io.NopCloser(bytes.NewReader(body))
		r.handler(w, req)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{}`)
}

// last returns the request that arrived last.
func (r *recorder) last(t *testing.T) received {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.requests) == 0 {
		t.Fatal("no request has arrived at the API")
	}
	return r.requests[len(r.requests)-1]
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.requests)
}

// tokens is a token endpoint: it issues testToken with a number.
type tokens struct {
	*httptest.Server
	mu       sync.Mutex
	issued   int
	latency  time.Duration
	answer   http.HandlerFunc // answers instead
	lifetime int              // seconds
}

func newTokens(t *testing.T) *tokens {
	t.Helper()
	e := &tokens{lifetime: 3600}
	e.Server = httptest.NewServer(e)
	t.Cleanup(e.Close)
	return e
}

func (e *tokens) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	e.mu.Lock()
	e.issued++
	n, latency, answer, lifetime := e.issued, e.latency, e.answer, e.lifetime
	e.mu.Unlock()
	select {
	case <-time.After(latency):
	case <-req.Context().Done():
		return
	}
	if answer != nil {
		answer(w, req)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"access_token":"%s%d","token_type":"bearer","expires_in":%d}`, testToken, n, lifetime)
}

// set changes the endpoint while it serves.
func (e *tokens) set(change func(*tokens)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(e)
}

// count returns how many token requests there were.
func (e *tokens) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.issued
}

// egress returns the directive for api with tokens of endpoint.
func egress(api, tokenURL, options string) string {
	return fmt.Sprintf(`egress oauth2 %s {
		token_url %s
		client_id gateway
		client_secret {env.EGRESS_TEST_SECRET}
		%s
	}`, api, tokenURL, options)
}

// newSandbox serves an imitation of an API.
func newSandbox(t *testing.T, options sandbox.Options) (*sandbox.Server, *httptest.Server) {
	t.Helper()
	s, err := sandbox.New(options)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, server
}

// trust writes the certificate of a TLS server to a file and returns its path.
func trust(t *testing.T, server *httptest.Server) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(file, block, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// eventually waits until condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// heapGrowth returns by how much the heap grows at most while f runs.
func heapGrowth(f func()) int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, most := int64(m.HeapInuse), int64(0)

	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			runtime.ReadMemStats(&m)
			most = max(most, int64(m.HeapInuse)-before)
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	f()
	close(done)
	wg.Wait()
	return most
}
