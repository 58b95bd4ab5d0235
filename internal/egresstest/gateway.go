package egresstest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
)

// Gateway is a whole Caddy, from Caddyfile to sockets.
type Gateway struct {
	// Addr is the host:port that it listens on, and URL the same as a URL.
	Addr, URL string

	// Client sends the requests of [Gateway.Do]. Default: [Client].
	Client *http.Client

	// Global is further global options of the Caddyfile. It may be changed
	// before a Load.
	Global string

	t      testing.TB
	log    string // file
	output string // of the log
	server string // further options of the server
	hides  bool   // Caddy keeps Authorization out of its logs
	bind   string // address it listens on
}

// GatewayOption changes a gateway before it starts.
type GatewayOption func(*Gateway)

// WithGlobal adds global options.
func WithGlobal(options string) GatewayOption {
	return func(g *Gateway) { g.Global = options }
}

// WithCallers is [WithGlobal] for options with callers. Caddy hides Authorization
// in its logs, as it does by default: else it would show their keys.
func WithCallers(options string) GatewayOption {
	return func(g *Gateway) { g.Global, g.hides = options, true }
}

// WithServer adds options of the server.
func WithServer(options string) GatewayOption {
	return func(g *Gateway) { g.server = options }
}

// WithoutLog has it log nothing, for tests of very many requests.
func WithoutLog() GatewayOption {
	return func(g *Gateway) { g.output = "discard" }
}

// OverUnixSocket has the gateway listen on a unix socket, and its Client use it.
// With TCP, a reload resets the connections that the old listener has not accepted
// yet, whatever the handler. Caddy hands a unix socket over without that gap.
func OverUnixSocket() GatewayOption {
	return func(g *Gateway) {
		dir, err := os.MkdirTemp("", "egress") // short: the path of a socket is bounded
		if err != nil {
			g.t.Fatal(err)
		}
		g.t.Cleanup(func() { os.RemoveAll(dir) })
		socket := filepath.Join(dir, "s")
		g.bind = "unix/" + socket
		g.Client = newClient()
		g.Client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
		g.t.Cleanup(g.Client.CloseIdleConnections)
	}
}

// NewGateway returns a gateway that does not run yet; see [Gateway.Adapt] and
// [Gateway.Load].
func NewGateway(t testing.TB, options ...GatewayOption) *Gateway {
	t.Helper()
	g := &Gateway{t: t, Addr: FreeAddr(t), Client: Client, log: filepath.Join(t.TempDir(), "caddy.log"), bind: "127.0.0.1"}
	g.URL, g.output = "http://"+g.Addr, "file "+g.log
	for _, option := range options {
		option(g)
	}
	return g
}

// gracePeriod is how long requests may go on after the gateway has stopped.
const gracePeriod = 5 * time.Second

// StartGateway runs Caddy with a site of routes until the test ends.
func StartGateway(t testing.TB, routes string, options ...GatewayOption) *Gateway {
	t.Helper()
	g := NewGateway(t, options...)
	if err := g.Load(routes); err != nil {
		t.Fatalf("loading: %v", err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Errorf("stopping: %v", err)
		}
		await(gracePeriod, func() bool { // a request is logged when it has ended
			return !strings.Contains(Stacks(), "caddyhttp.(*Server).ServeHTTP(")
		})
		if g.hides {
			CheckKeys(t, "the log", g.Log())
		}
		if t.Failed() && g.output != "discard" {
			t.Logf("log:\n%s", g.Log())
		}
	})
	return g
}

// StartWatched is [StartGateway] with an access log, and a look for leaks in the
// log at the end.
func StartWatched(t testing.TB, routes string, options ...GatewayOption) *Gateway {
	t.Helper()
	g := StartGateway(t, "log\n"+routes, options...)
	t.Cleanup(func() { CheckLeaks(t, "the log", g.Log()) })
	return g
}

// Load adapts and loads a site of routes, like a reload of Caddy's.
func (g *Gateway) Load(routes string) error {
	config := g.Adapt(routes)
	if err := caddy.Load(config, true); err != nil {
		return err
	}
	g.awaitAdmin(config)
	return nil
}

// awaitAdmin waits until the admin API of a config, if it has one, is served. Caddy does
// so in the background: what has not begun by the next reload is served by the next
// server, and looks as if the old one went on.
func (g *Gateway) awaitAdmin(config []byte) {
	g.t.Helper()
	var parsed struct {
		Admin struct {
			Disabled bool
			Listen   string
		}
	}
	if err := json.Unmarshal(config, &parsed); err != nil {
		g.t.Fatal(err)
	}
	if parsed.Admin.Disabled || parsed.Admin.Listen == "" {
		return
	}
	AwaitReload(g.t, parsed.Admin.Listen)
	Eventually(g.t, "the admin API", func() bool {
		_, _, err := Admin(parsed.Admin.Listen).Try(http.MethodGet, "/config/admin")
		return err == nil
	})
}

// Adapt returns the JSON of the whole config around routes.
func (g *Gateway) Adapt(routes string) []byte {
	g.t.Helper()
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(g.caddyfile(routes)), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		g.t.Fatalf("adapting: %v", err)
	}
	return config
}

func (g *Gateway) caddyfile(routes string) string {
	credentials := "log_credentials"
	if g.hides {
		credentials = ""
	}
	return fmt.Sprintf(`{
	admin off
	persist_config off
	auto_https off
	grace_period %s
	log {
		output %s
		level DEBUG
		format json
	}
	servers {
		%s
		protocols h1 h2c
		%s
	}
	%s
}
http://:%s {
	bind %s
	%s
}
`, gracePeriod, g.output, credentials, g.server, g.Global, Port(g.Addr), g.bind, routes)
}

// Log returns what Caddy has logged.
func (g *Gateway) Log() string {
	log, err := os.ReadFile(g.log)
	if err != nil {
		return err.Error()
	}
	return string(log)
}

// LogLines returns the lines of the log with a message, as JSON objects.
func (g *Gateway) LogLines(message string) []map[string]any { return logLines(g.Log(), message) }

func logLines(log, message string) (lines []map[string]any) {
	plain, _, _ := strings.Cut(message, `"`)
	for line := range strings.Lines(log) {
		if !strings.Contains(line, `"msg":"`+plain) { // a log of traffic is long, and slow to decode
			continue
		}
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) == nil && fields["msg"] == message {
			lines = append(lines, fields)
		}
	}
	return lines
}

// Request returns a request to the gateway.
func (g *Gateway) Request(method, path string, body io.Reader) *http.Request {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.URL+path, body)
	if err != nil {
		g.t.Fatal(err)
	}
	return req
}

// Get sends a GET and returns the answer with its body read.
func (g *Gateway) Get(path string) (*http.Response, string) {
	g.t.Helper()
	return g.Do(g.Request(http.MethodGet, path, nil))
}

// Do sends req and returns the answer with its body read.
func (g *Gateway) Do(req *http.Request) (*http.Response, string) {
	g.t.Helper()
	resp, body, err := g.Try(req)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp, body
}

// Try is [Gateway.Do] for requests that may fail, and for other goroutines than
// the test's.
func (g *Gateway) Try(req *http.Request) (*http.Response, string, error) {
	resp, err := g.Client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	checkFor(g.t, "the answer", fmt.Sprint(resp.Header, string(body)), keyLeaks)
	return resp, string(body), err
}

// AwaitReload waits until a reload, which has just returned, has reached addr: until
// then the old server may take a new connection as well.
func AwaitReload(t testing.TB, addr string) {
	t.Helper()
	Eventually(t, "the end of the old listener", func() bool { return caddy.ListenerUsage("tcp", addr) <= 1 })
}

// AwaitReload has the requests that follow answered by the new config: the old server
// still answers on connections that were kept, too. It resets those that it took last.
func (g *Gateway) AwaitReload() {
	g.t.Helper()
	AwaitReload(g.t, g.Addr)
	g.Client.CloseIdleConnections()
}

// GetAfterReload is [Gateway.Get] where a reload has just returned, and is
// answered by the new config; see [Gateway.AwaitReload].
func (g *Gateway) GetAfterReload(path string) (resp *http.Response, body string) {
	g.t.Helper()
	g.AwaitReload()
	Eventually(g.t, "a connection", func() bool {
		var err error
		resp, body, err = g.Try(g.Request(http.MethodGet, path, nil))
		return err == nil
	})
	return resp, body
}

// Raw sends bytes as they are and returns the status line of the answer.
func (g *Gateway) Raw(request string) string {
	g.t.Helper()
	return g.SendRaw(request)()
}

// SendRaw sends bytes as they are. The function it returns waits for the answer
// and returns its status line.
func (g *Gateway) SendRaw(request string) (status func() string) {
	g.t.Helper()
	conn, err := net.Dial("tcp", g.Addr)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, request); err != nil {
		g.t.Fatal(err)
	}
	return func() string {
		defer conn.Close()
		line, _ := bufio.NewReader(conn).ReadString('\n')
		return strings.TrimSpace(line)
	}
}

// Wire returns a connection for requests that are sent byte for byte.
func (g *Gateway) Wire() *Wire { return NewWire(g.t, From("127.0.0.1", g.Addr)) }

// Client adds nothing to a request that a test did not put there.
var Client = newClient()

func newClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Second},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}
}

// Egress returns the directive for api with tokens of the endpoint at tokenURL.
func Egress(api, tokenURL, options string) string {
	return fmt.Sprintf(`egress oauth2 %s {
		token_url %s
		client_id gateway
		client_secret {env.%s}
		%s
	}`, api, tokenURL, SecretVariable, options)
}

// Site returns a route for the requests whose path begins with prefix.
func Site(prefix, route string) string {
	return fmt.Sprintf("handle %s* {\n%s\n}\n", prefix, route)
}
