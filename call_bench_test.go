package egress

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// fixedToken is a Provider whose token lives for an hour.
type fixedToken struct{ tokenprovider.Provider }

func (fixedToken) Grant() tokenprovider.Grant               { return tokenprovider.Grant{Provider: "test"} }
func (fixedToken) API() tokenprovider.API                   { return tokenprovider.API{} }
func (fixedToken) Secrets() ([]tokenprovider.Secret, error) { return nil, nil }
func (fixedToken) Token(context.Context, *http.Client) (*tokenprovider.Token, error) {
	now := time.Now()
	return &tokenprovider.Token{Value: tokenprovider.NewSecret("token"), Issued: now, Expires: now.Add(time.Hour)}, nil
}

// sink is an API that answers at once.
type sink struct{ response http.Response }

func (s *sink) RoundTrip(*http.Request) (*http.Response, error) { return &s.response, nil }

// benchTransport returns a transport of which the network is left out, and a
// request of 7 headers for it.
func benchTransport(b testing.TB) (*Transport, *http.Request) {
	source := tokensource.New(tokensource.Options{Name: "test", Provider: fixedToken{}, State: tokensource.NewState(), Logger: zap.NewNop()})
	if _, err := source.Token(b.Context()); err != nil {
		b.Fatal(err)
	}
	t := &Transport{
		app:      &App{memory: newMemory(defaultReplayMemory)},
		source:   source,
		meter:    newMeter("test", "test"),
		upstream: &sink{http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody}},
	}
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://127.0.0.1:9001/v1/vouchers?limit=10", nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header = http.Header{
		"Accept": {"*/*"}, "Accept-Encoding": {"gzip"}, "Accept-Language": {"en"}, "User-Agent": {"curl/8"},
		"Content-Type": {"application/json"}, "X-Request-Id": {"1"}, "If-None-Match": {`"2"`},
	}
	return t, req
}

// BenchmarkTransport measures what the transport adds to a request: the token,
// the copy, the header, the metrics and the bookkeeping. Guards, which differ
// from route to route, are left out.
func BenchmarkTransport(b *testing.B) {
	t, req := benchTransport(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := t.send(req); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTransportWithBody is BenchmarkTransport with a body of 1 KiB that is
// kept for a replay.
func BenchmarkTransportWithBody(b *testing.B) {
	t, req := benchTransport(b)
	body := strings.Repeat("x", 1<<10)
	t.upstream = roundTripperFunc(func(out *http.Request) (*http.Response, error) {
		_, _ = io.Copy(io.Discard, out.Body)
		_ = out.Body.Close()
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody}, nil
	})
	b.ReportAllocs()
	for b.Loop() {
		req.Body, req.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		if _, err := t.send(req); err != nil {
			b.Fatal(err)
		}
	}
}

type roundTripperFunc func(*http.Request) (*http.Response, error)

func (f roundTripperFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestAllocations(t *testing.T) {
	transport, req := benchTransport(t)
	if got := testing.AllocsPerRun(1000, func() { _, _ = transport.send(req) }); got > 4 {
		t.Errorf("the transport allocates %v times for a request of 7 headers, want at most 4", got)
	}
}
