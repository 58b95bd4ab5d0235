package egress

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

const (
	benchCallers = 1_000
	benchGrants  = 10_000
)

func benchKey(n int) string { return fmt.Sprintf("key-of-caller-%d-0123456789abcdef", n) }

// benchWithGrants returns the transport of benchTransport with very many callers
// and grants, or with the same operations on the route itself.
func benchWithGrants(tb testing.TB, grants, certificates bool) *Transport {
	tb.Helper()
	transport := benchTransport(tb)
	transport.api = quotaAPI
	allow := []Operation{{Methods: []string{http.MethodGet}, Paths: []string{"/v1/vouchers", "/v1/vouchers/*"}}}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: tb.Context()})
	tb.Cleanup(cancel)
	if !grants {
		guard, err := newGuard(ctx, RouteOptions{Allow: allow}, tokenprovider.API{}, nil)
		if err != nil {
			tb.Fatal(err)
		}
		transport.guard = guard
		return transport
	}

	configured := make(map[string]*Caller)
	for n := range benchCallers {
		configured[fmt.Sprintf("caller-%d", n)] = &Caller{Key: []string{benchKey(n)}}
		if certificates {
			configured[fmt.Sprintf("caller-%d", n)] = &Caller{ClientCert: []string{fmt.Sprintf("spiffe://corp/caller-%d", n)}}
		}
	}
	known, err := newCallers(configured, zap.NewNop())
	if err != nil {
		tb.Fatal(err)
	}
	var all []Grant
	for n := range benchGrants {
		all = append(all, Grant{Callers: []string{fmt.Sprintf("caller-%d", n%benchCallers)}, Allow: allow, Limit: "1000000/s", Reserve: "10%"})
	}
	granted, err := newGranted(all, known, func(g *Grant) (*granted, error) {
		operations, err := provisionOperations(ctx, g.Allow)
		return &granted{credential: transport.credential, allow: operations}, err
	})
	if err != nil {
		tb.Fatal(err)
	}
	if transport.guard, err = newGuard(ctx, RouteOptions{}, tokenprovider.API{KeyHeaders: []string{"X-App-Token", "X-Client-Token"}}, known); err != nil {
		tb.Fatal(err)
	}
	transport.guard.grant(granted, RouteOptions{})
	transport.credential.quota.counts.Store(true)
	return transport
}

// benchProofs are requests of one caller that prove who it is in different ways.
var benchProofs = []struct {
	name, header, value string
	tls                 *tls.ConnectionState
}{
	{name: "bearer", header: "Authorization", value: "Bearer " + benchKey(777)},
	{name: "basic", header: "Authorization", value: "Basic Y2FsbGVyLTc3NzprZXktb2YtY2FsbGVyLTc3Ny0wMTIzNDU2Nzg5YWJjZGVm"},
	{name: "header", header: "X-Client-Token", value: benchKey(777)},
	{name: "certificate", header: "X-Request-Id", value: "1", tls: &tls.ConnectionState{HandshakeComplete: true, VerifiedChains: [][]*x509.Certificate{{{
		NotAfter: time.Now().AddDate(1, 0, 0), DNSNames: []string{"Other.internal"}, URIs: []*url.URL{{Scheme: "spiffe", Host: "corp", Path: "/caller-777"}},
	}}}}},
}

// BenchmarkLocalToken measures what it costs to know a caller by a local token.
func BenchmarkLocalToken(b *testing.B) {
	t := benchWithGrants(b, true, false)
	token, _, ok := t.guard.callers.issueToken("caller-777", benchKey(777))
	if !ok {
		b.Fatal("no token")
	}
	b.ReportAllocs()
	for b.Loop() {
		if c := t.guard.callers.ofKey([]byte(token)); c == nil {
			b.Fatal("nobody")
		}
	}
}

// BenchmarkGrants measures what 1,000 callers and 10,000 grants add to a request,
// beside the same operations on a route without.
func BenchmarkGrants(b *testing.B) {
	run := func(b *testing.B, t *Transport, req *http.Request) {
		b.ReportAllocs()
		for b.Loop() {
			if resp, err := t.RoundTrip(traced(req)); err != nil || resp.StatusCode != http.StatusOK {
				b.Fatal(resp, err)
			}
		}
	}
	for _, proof := range benchProofs {
		for name, grants := range map[string]bool{"without": false, "with": true} {
			b.Run(proof.name+"/"+name, func(b *testing.B) {
				req := benchRequest("")
				req.Header.Set(proof.header, proof.value)
				req.TLS = proof.tls
				run(b, benchWithGrants(b, grants, proof.tls != nil), req)
			})
		}
	}
}

// TestGrantsAllocateNothing holds that knowing the caller, and judging by its grant,
// costs no allocation.
func TestGrantsAllocateNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates, too")
	}
	for _, proof := range benchProofs {
		// what differs besides: a caller that proves more than its address makes the
		// default of hosts superfluous
		measure := func(transport *Transport) float64 {
			sent := func() {
				req := benchRequest("")
				req.Header.Set(proof.header, proof.value)
				req.TLS = proof.tls
				if resp, err := transport.RoundTrip(req); err != nil || resp.StatusCode != http.StatusOK {
					t.Fatal(resp, err)
				}
			}
			sent()
			return testing.AllocsPerRun(1000, sent)
		}
		want := measure(benchWithGrants(t, false, false))
		if got := measure(benchWithGrants(t, true, proof.tls != nil)); got > want {
			t.Errorf("%s: %v allocations with callers and grants, %v without", proof.name, got, want)
		}
	}
}
