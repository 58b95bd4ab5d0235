package egress

import (
	"context"
	"net/http"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// measuredRequest does what each request pays for being measured, where the API
// tells no rate limit.
func measuredRequest(t *Transport, req *http.Request, resp *http.Response) {
	t.report(req, outcomeForwarded, 0)
	t.meter.answered(resp, t.api)
}

// benchReport returns a request that carries nothing to report to but the
// metrics, and is no probe.
func benchReport(tb testing.TB) (*Transport, *http.Request, *http.Response) {
	t, req := benchTransport(tb)
	t.api = tokenprovider.API{}
	resp := &http.Response{StatusCode: http.StatusOK, Header: http.Header{
		"Content-Type": {"application/json"}, "Content-Length": {"2"}, "Date": {"Mon, 01 Jan 2035 00:00:00 GMT"},
		"Server": {"api"}, "Etag": {`"1"`}, "Vary": {"Accept"},
	}}
	return t, req.WithContext(context.WithValue(req.Context(), caddyhttp.VarsCtxKey, map[string]any{})), resp
}

// total returns the sum of all counters of a family.
func total(tb testing.TB, c prometheus.Collector) (sum float64) {
	tb.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			sum += metric.GetCounter().GetValue()
		}
	}
	return sum
}

// BenchmarkMetrics measures what the metrics add to a request.
func BenchmarkMetrics(b *testing.B) {
	t, req, resp := benchReport(b)
	b.ReportAllocs()
	for b.Loop() {
		measuredRequest(t, req, resp)
	}
}

func TestMetricsAllocateNothing(t *testing.T) {
	transport, req, resp := benchReport(t)
	before := total(t, requestsTotal)
	if got := testing.AllocsPerRun(1000, func() { measuredRequest(transport, req, resp) }); got > 0 {
		t.Errorf("the metrics allocate %v times for a request, want 0", got)
	}
	if got := total(t, requestsTotal) - before; got != 1001 {
		t.Errorf("counted %v requests, want 1001: the test shows nothing", got)
	}
}
