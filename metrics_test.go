package egress

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
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

func TestRateLimitOfTheAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newCredentialMetrics(t.Name(), "test")
		limited := func(api tokenprovider.API, header ...string) {
			m.answered(status(http.StatusTooManyRequests, header...), api)
		}
		if got := m.limitedFor(); got != 0 {
			t.Errorf("limited for %v from the start", got)
		}
		m.answered(status(http.StatusOK, "Retry-After", "100"), tokenprovider.API{})
		if got := m.limitedFor(); got != 0 {
			t.Errorf("a success limits for %v", got)
		}
		limited(tokenprovider.API{}) // does not say how long
		if got := m.limitedFor(); got != 0 {
			t.Errorf("limited for %v", got)
		}
		limited(tokenprovider.API{RateLimitWait: time.Minute})
		if got := m.limitedFor(); got != time.Minute {
			t.Errorf("limited for %v, want the API's 1m", got)
		}
		limited(tokenprovider.API{RateLimitWait: time.Minute}, "Retry-After", "30") // less than before
		if got := m.limitedFor(); got != time.Minute {
			t.Errorf("limited for %v, want 1m still", got)
		}
		limited(tokenprovider.API{RateLimitWait: time.Minute}, "Retry-After", "90")
		if got := m.limitedFor(); got != 90*time.Second {
			t.Errorf("limited for %v, want 90s", got)
		}
		time.Sleep(89 * time.Second)
		if got := m.limitedFor(); got != time.Second {
			t.Errorf("limited for %v, want 1s", got)
		}
		time.Sleep(2 * time.Second)
		if got := m.limitedFor(); got != 0 {
			t.Errorf("limited for %v after the time", got)
		}
		if got := total(t, rateLimitedTotal, t.Name()); got != 4 {
			t.Errorf("counted %v, want 4", got)
		}
	})
}

func TestCallsThatAreLeft(t *testing.T) {
	m := newCredentialMetrics(t.Name(), "test")
	api := tokenprovider.API{RemainingHeaders: []string{"X-First", "X-Second"}}
	for _, test := range []struct {
		header []string
		want   int64
	}{
		{nil, -1},
		{[]string{"X-First", "none"}, -1},
		{[]string{"X-First", "-1"}, -1},
		{[]string{"X-Second", "7"}, 7},
		{[]string{"X-First", "5", "X-Second", "6"}, 5},
		{[]string{"X-First", "x", "X-Second", "6"}, 5}, // the first one that is there counts
		{[]string{"X-First", "0"}, 0},
	} {
		m.answered(status(http.StatusOK, test.header...), api)
		if got := m.remainingCalls.Load(); got != test.want {
			t.Errorf("after %v: %d, want %d", test.header, got, test.want)
		}
	}
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
	m := newCredentialMetrics(t.Name(), "test")
	if got := series(); len(got) != 2 { // failed refreshes, from zero on
		t.Errorf("series at first: %v", got)
	}
	m.request(outcomeForwarded, 0)
	if got := series(); len(got) != 9 {
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
