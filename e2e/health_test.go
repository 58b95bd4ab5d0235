package e2e_test

import (
	"bytes"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

const healthChecks = `
	health_uri      /health
	health_interval 50ms
	health_timeout  20s
`

func TestHealthChecksCarryTheToken(t *testing.T) {
	api, endpoint := egresstest.NewGuarded(t, (*httptest.Server).Start), egresstest.NewTokens(t)
	api.Accept(egresstest.Token(1))
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, healthChecks))

	// without a token, the probe would mark the only upstream as down
	egresstest.Eventually(t, "probes", func() bool { return api.Accepted.Load() > 3 })
	if resp, body := g.Get("/v1/x"); resp.StatusCode != http.StatusOK {
		t.Errorf("answered %d %s, want 200", resp.StatusCode, body)
	}
	if got := api.Unauthorized.Load(); got != 0 {
		t.Errorf("%d probes came without a token", got)
	}
	if got := endpoint.Count(); got != 1 {
		t.Errorf("%d token requests, want 1", got)
	}
}

func TestValidatingAConfigFetchesNothing(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	g := egresstest.NewGateway(t)
	if err := egresstest.Validate(t, g.Adapt(egresstest.Egress(api.URL, endpoint.URL, healthChecks))); err != nil {
		t.Fatal(err)
	}
	if endpoint.Count() != 0 || api.Count() != 0 {
		t.Errorf("validating made %d token requests and %d API requests", endpoint.Count(), api.Count())
	}
}

// overheard is a listener that keeps what its connections receive.
type overheard struct {
	net.Listener
	mu    sync.Mutex
	bytes bytes.Buffer
}

type overheardConn struct {
	net.Conn
	l *overheard
}

func (l *overheard) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return overheardConn{conn, l}, err
}

func (c overheardConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.l.bytes.Write(p[:n])
	return n, err
}

func (l *overheard) heard(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.bytes.Bytes(), []byte(text))
}

// A health check follows redirects. Whatever they say, the token goes nowhere
// that a request could not send it.
func TestRedirectedHealthChecks(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	other := egresstest.NewRecorder(t)
	plain, encrypted := (*httptest.Server).Start, (*httptest.Server).StartTLS

	for name, test := range map[string]struct {
		start    egresstest.Start
		location func(api *egresstest.Recorder) string
		options  func(api *egresstest.Recorder) string
		follows  bool
	}{
		"same host":    {plain, func(r *egresstest.Recorder) string { return r.URL + "/redirected" }, nil, true},
		"another host": {plain, func(*egresstest.Recorder) string { return other.URL + "/redirected" }, nil, false},
		"another name": {plain, func(*egresstest.Recorder) string { return "http://evil.test/redirected" }, nil, false},
		"to plain http": {encrypted, func(r *egresstest.Recorder) string {
			return "http://example.com:" + egresstest.Port(r.URL) + "/redirected"
		}, func(r *egresstest.Recorder) string {
			return "api_hosts example.com\ntransport http {\ntls_server_name example.com\ntls_trust_pool file " + egresstest.Trust(t, r.Server) + "\n}"
		}, false},
		// the name is one of the API's, the host that is dialed is not
		"to plain http, which is permitted": {encrypted, func(r *egresstest.Recorder) string {
			return "http://example.com:" + egresstest.Port(r.URL) + "/redirected"
		}, func(r *egresstest.Recorder) string {
			return "allow_http\napi_hosts example.com\ntransport http {\ntls_server_name example.com\ntls_trust_pool file " + egresstest.Trust(t, r.Server) + "\n}"
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			// an API for each: the last probe of a gateway may come after its end
			var redirected, probes atomic.Int64
			var ear *overheard
			api := egresstest.NewRecorderOver(t, func(s *httptest.Server) {
				ear = &overheard{Listener: s.Listener}
				s.Listener = ear
				test.start(s)
			})
			api.Handler = func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/redirected" {
					redirected.Add(1)
					return
				}
				probes.Add(1)
				http.Redirect(w, r, test.location(api), http.StatusFound)
			}
			options := "health_uri /health\nhealth_interval 20ms\nhealth_timeout 2s\nhealth_follow_redirects\n"
			if test.options != nil {
				options += test.options(api)
			}
			egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, options))
			egresstest.Eventually(t, "probes", func() bool {
				return probes.Load() > 3 && (redirected.Load() > 0 || !test.follows)
			})
			if got := redirected.Load() > 0; got != test.follows {
				t.Errorf("the redirect was followed: %v, want %v", got, test.follows)
			}
			if other.Count() > 0 {
				t.Error("a probe has reached another host")
			}
			if api.TLS != nil && ear.heard("Bearer") {
				t.Error("the token was sent in plain text")
			}
		})
	}
}

// The Host of a probe is that of api_url, as it is for requests, unless
// health_headers has another.
func TestHostOfHealthChecks(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	for name, c := range map[string]struct{ options, want string }{
		"api_url":        {"", "localhost"},
		"health_headers": {"health_headers {\n Host probed.example\n}", "probed.example"},
	} {
		t.Run(name, func(t *testing.T) {
			api := egresstest.NewRecorder(t)
			host := api.Listener.Addr().String()
			egresstest.StartGateway(t, egresstest.Egress("http://localhost:80", endpoint.URL,
				"to "+host+"\napi_hosts "+host+"\n"+c.options+healthChecks))
			egresstest.Eventually(t, "a probe", func() bool { return api.Count() > 0 })
			if got := api.Last(t); got.Host != c.want || !strings.HasPrefix(got.Header.Get("Authorization"), "Bearer ") {
				t.Errorf("the probe has Host %q and Authorization %q, want Host %q", got.Host, got.Header.Get("Authorization"), c.want)
			}
		})
	}
}
