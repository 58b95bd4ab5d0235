package egress

import (
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/prometheus/client_golang/prometheus"
)

// total returns the sum of all counters of a family, of one credential.
func total(tb testing.TB, c prometheus.Collector, credential string) (sum float64) {
	tb.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		tb.Fatal(err)
	}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			for _, label := range metric.GetLabel() {
				if label.GetName() == "credential" && label.GetValue() == credential {
					sum += metric.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

// Configured credentials cost next to nothing in /metrics.
func TestSeriesAppearWithTheirFirstEvent(t *testing.T) {
	series := func() (names []string) {
		registry := prometheus.NewRegistry()
		if err := registerMetrics(registry); err != nil {
			t.Fatal(err)
		}
		if err := registerMetrics(registry); err != nil { // as the next config does
			t.Fatal(err)
		}
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, family := range families {
			for _, metric := range family.GetMetric() {
				if strings.Contains(metric.String(), t.Name()) {
					names = append(names, family.GetName())
				}
			}
		}
		return names
	}
	m := newCredentialMetrics(t.Name(), "test", false)
	if got := series(); len(got) != 2 { // failed refreshes, from zero on
		t.Errorf("series at first: %v", got)
	}
	m.request(outcomeForwarded, 0)
	if got := series(); len(got) != 10 {
		t.Errorf("series after a request: %v", got)
	}
	m.request(outcomeForwarded, 0)
	m.request(outcomeForwarded, time.Second)
	if got := total(t, requestsTotal, t.Name()); got != 3 {
		t.Errorf("counted %v requests, want 3", got)
	}
	if err := registerMetrics(nil); err != nil {
		t.Errorf("without a registry: %v", err)
	}
}

// setBack returns t as a clock that was set back by d shows it: the monotonic
// reading is the same.
func setBack(t *testing.T, at time.Time, d time.Duration) time.Time {
	t.Helper()
	back := at
	*(*uint64)(unsafe.Pointer(&back)) -= uint64(d/time.Second) << 30
	if back.Sub(at) != 0 || at.Round(0).Sub(back.Round(0)) != d {
		t.Fatal("time.Time is made of other fields by now")
	}
	return back
}

// A clock that is set back does not silence logs.
func TestLogLimiterWhenTheClockIsSetBack(t *testing.T) {
	var logs logLimiter
	now := time.Now()
	logs.next(now)
	if leftOut, ok := logs.next(setBack(t, now.Add(time.Second-1), time.Hour)); ok {
		t.Errorf("two lines in a second, %d left out", leftOut)
	}
	if leftOut, ok := logs.next(setBack(t, now.Add(time.Second), time.Hour)); !ok || leftOut != 1 {
		t.Errorf("the next second: %v, %d left out, want one", ok, leftOut)
	}
}

// What the status page shows of a credential goes on where it was, if a config removes
// it and another brings it back: so do its series.
func TestRequestsOfACredentialThatReturns(t *testing.T) {
	count := func(m *credentialMetrics) int64 {
		var c requestCount
		c.read(&m.requests)
		return c.Total
	}
	before := newCredentialMetrics(t.Name(), "oauth2", false)
	start := count(before)
	for range 5 {
		before.request(outcomeForwarded, 0)
	}
	if err := before.Destruct(); err != nil {
		t.Fatal(err)
	}
	after := newCredentialMetrics(t.Name(), "oauth2", false)
	if got := count(after) - start; got != 5 {
		t.Errorf("%d requests at first, want 5", got)
	}
	after.request(outcomeForwarded, 0)
	if got := count(after) - start; got != 6 {
		t.Errorf("%d requests after another, want 6", got)
	}
}
