package egress

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/certmagic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-egress/caddy-egress/internal/replaybody"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
	"github.com/caddy-egress/caddy-egress/tokenstore"
)

// fixedToken is a Provider whose token lives for an hour.
type fixedToken struct{ tokenprovider.Provider }

func (fixedToken) Grant() tokenprovider.Grant { return tokenprovider.Grant{Provider: "test"} }
func (fixedToken) API() tokenprovider.API     { return tokenprovider.API{} }
func (fixedToken) Secrets() ([]tokenprovider.Secret, error) {
	return []tokenprovider.Secret{tokenprovider.NewSecret("secret")}, nil
}
func (fixedToken) Token(context.Context, *http.Client) (*tokenprovider.Token, error) {
	now := time.Now()
	return &tokenprovider.Token{Value: tokenprovider.NewSecret("token"), Issued: now, Expires: now.Add(time.Hour)}, nil
}

// sink is an API that reads a request and answers at once.
type sink struct{ response http.Response }

func (s *sink) RoundTrip(out *http.Request) (*http.Response, error) {
	if out.Body != nil {
		_, _ = io.Copy(io.Discard, out.Body)
		_ = out.Body.Close()
	}
	return &s.response, nil
}

// benchTransport returns a transport with its default guards, of which the
// network is left out.
func benchTransport(tb testing.TB) *Transport {
	tb.Helper()
	return benchTransportSharing(tb, nil)
}

// benchTransportSharing is benchTransport whose token is shared, unless shared is
// nil.
func benchTransportSharing(tb testing.TB, shared tokensource.Shared) *Transport {
	tb.Helper()
	source := tokensource.New(tokensource.Options{Name: "test", Provider: fixedToken{}, State: tokensource.NewState(), Shared: shared, Logger: zap.NewNop()})
	source.Start()
	tb.Cleanup(source.Stop)
	if _, err := source.Token(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	guard, err := newGuard(caddy.Context{}, RouteOptions{}, tokenprovider.API{}, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return &Transport{
		app:         &App{memory: replaybody.NewMemory(defaultReplayMemory)},
		credential:  &activeCredential{called: "test", source: source, metrics: newCredentialMetrics("test", "test", false), rateLimit: newRateLimit(), quota: new(quota)},
		guard:       guard,
		destination: &destination{hosts: []string{"127.0.0.1:9001"}},
		upstream: &sink{http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Header: http.Header{
			"Content-Type": {"application/json"}, "Content-Length": {"1024"}, "Date": {"Mon, 01 Jan 2035 00:00:00 GMT"}, "Server": {"api"},
			"Cache-Control": {"private, no-cache"}, "Etag": {`W/"400-2Bd1r9ByPiMQ3u3LQnWbpFtyiO8"`}, "X-Request-Id": {"b5c7e6ee-4aa7-4a08-9a0e-3a4a7d3c5f21"},
			"X-Rate-Limit-Limit": {"2000"}, "X-Rate-Limit-Remaining": {"1999"}, "Strict-Transport-Security": {"max-age=31536000"},
		}}},
	}
}

// benchRequest returns a request as reverse_proxy hands it to a transport: with
// seven headers of the client, those that Caddy adds, and a trace of its own.
func benchRequest(body string) *http.Request {
	req := httptest.NewRequest(http.MethodGet, "http://localhost:8080/v1/vouchers?limit=10", nil)
	req.RemoteAddr = "127.0.0.1:50000"
	repl := caddy.NewReplacer()
	req = caddyhttp.PrepareRequest(req, repl, httptest.NewRecorder(), new(caddyhttp.Server))
	req.URL.Scheme, req.URL.Host, req.Host = "http", "127.0.0.1:9001", "localhost:8080"
	req.Header = http.Header{
		"Accept": {"*/*"}, "Accept-Encoding": {"gzip"}, "Accept-Language": {"en"}, "User-Agent": {"curl/8"},
		"Content-Type": {"application/json"}, "X-Request-Id": {"1"}, "If-None-Match": {`"2"`},
		"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"http"}, "X-Forwarded-Host": {"localhost:8080"}, "Via": {"1.1 Caddy"},
	}
	if body != "" {
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
	}
	return traced(req)
}

// traced returns req with the trace that reverse_proxy makes for each round trip.
func traced(req *http.Request) *http.Request {
	return req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(int, textproto.MIMEHeader) error { return nil },
	}))
}

// BenchmarkTransport measures what the transport adds to a request: guards,
// token, copy, metrics and the answer's headers. What it leaves for the access log
// is made once, and so left out; the trace, which is not its own, is made anew.
func BenchmarkTransport(b *testing.B) {
	t, req := benchTransport(b), benchRequest("")
	b.ReportAllocs()
	for b.Loop() {
		if resp, err := t.RoundTrip(traced(req)); err != nil || resp.StatusCode != http.StatusOK {
			b.Fatal(resp, err)
		}
	}
}

// BenchmarkTransportSharing is BenchmarkTransport with a token that is shared.
func BenchmarkTransportSharing(b *testing.B) {
	t, req := benchTransportSharing(b, inFolder(b)), benchRequest("")
	b.ReportAllocs()
	for b.Loop() {
		if resp, err := t.RoundTrip(traced(req)); err != nil || resp.StatusCode != http.StatusOK {
			b.Fatal(resp, err)
		}
	}
}

// inFolder returns what shares a token in a folder.
func inFolder(tb testing.TB) tokensource.Shared {
	tb.Helper()
	dir, err := os.MkdirTemp("", "egress")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) }) // tb.TempDir fails where something is still stored in the background
	storage := &certmagic.FileStorage{Path: dir}
	return tokenstore.New(tokenstore.Options{Storage: storage, Logger: zap.NewNop()}).Credential("test", "test")
}

// BenchmarkTransportWithBody is BenchmarkTransport with a body of 1 KiB that is
// kept for a replay.
func BenchmarkTransportWithBody(b *testing.B) {
	body := strings.Repeat("x", 1<<10)
	t, req := benchTransport(b), benchRequest(body)
	b.ReportAllocs()
	for b.Loop() {
		req.Body = io.NopCloser(strings.NewReader(body))
		if resp, err := t.RoundTrip(traced(req)); err != nil || resp.StatusCode != http.StatusOK {
			b.Fatal(resp, err)
		}
	}
}

// raceDetector is set where the tests run under the race detector, which
// allocates on its own account.
var raceDetector bool

// TestAllocations holds what a request costs exactly: one that becomes dearer
// has to say so here.
func TestAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates, too")
	}
	alone, sharing := benchTransport(t), benchTransportSharing(t, inFolder(t))
	for name, test := range map[string]struct {
		transport *Transport
		body      string
		want      float64
	}{
		// the request with what is left for the access log, its headers, and what
		// looks for informational answers
		"GET":                 {transport: alone, want: 6},
		"with a shared token": {transport: sharing, want: 6},
		// and the body, whose memory is charged to its client, and what strips its trailers
		"with a body": {transport: alone, body: strings.Repeat("x", 1<<10), want: 9},
	} {
		sent := func() {
			if resp, err := test.transport.RoundTrip(benchRequest(test.body)); err != nil || resp.StatusCode != http.StatusOK {
				t.Fatal(resp, err)
			}
		}
		sent() // the first of all remembers verdicts and makes metrics
		request := testing.AllocsPerRun(1000, func() { benchRequest(test.body) })
		if got := testing.AllocsPerRun(1000, sent) - request; got != test.want {
			t.Errorf("%s: the transport allocates %v times, want exactly %v", name, got, test.want)
		}
	}
}

// TestMetricsAllocateNothing holds that counting a request costs no allocation.
func TestMetricsAllocateNothing(t *testing.T) {
	m, l := newCredentialMetrics("TestMetricsAllocateNothing", "test", false), newRateLimit()
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{
		"Content-Type": {"application/json"}, "Content-Length": {"2"}, "Date": {"Mon, 01 Jan 2035 00:00:00 GMT"},
	}}
	measure := func() {
		m.request(outcomeForwarded, 0)
		l.answered(resp, tokenprovider.API{}, m)
	}
	if got := testing.AllocsPerRun(1000, measure); got > 0 {
		t.Errorf("the metrics allocate %v times for a request, want 0", got)
	}
}
