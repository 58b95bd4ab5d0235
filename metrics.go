package egress

import (
	"errors"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// Outcomes of a request, beside the keys of the gateway's own answers.
const (
	outcomeForwarded  = "forwarded"
	outcomeReplayed   = "replayed"
	outcomeBadRequest = "bad_request"
	outcomeClientGone = "client_gone" // while it waited for a token
)

// outcomes are all there are: a label has to be bounded.
var outcomes = []string{
	outcomeForwarded, outcomeReplayed, keyTokenUnavailable, keyCredentialRefused, keyRateLimited, keyClientNotAllowed,
	keyHostNotAllowed, keyOriginNotAllowed, keyOperationNotAllowed, keyAPIHostNotAllowed, outcomeBadRequest, outcomeClientGone,
}

// Outcomes of a token request: a token, or the class of the failure.
const tokenOutcomeOK = "ok"

var tokenOutcomes = []string{tokenOutcomeOK, string(tokenprovider.Transient), string(tokenprovider.Refused), string(tokenprovider.Malformed)}

// Results of a 401 by the API.
const (
	unauthorizedReplayedOK    = "replayed_ok"
	unauthorizedReplayed401   = "replayed_401"
	unauthorizedNotReplayable = "not_replayable"
	unauthorizedHeldBack      = "held_back"
)

var unauthorizedResults = []string{unauthorizedReplayedOK, unauthorizedReplayed401, unauthorizedNotReplayable, unauthorizedHeldBack}

// The collectors belong to the process, so that counters survive reloads: each
// config has a registry of its own, and registers the same ones.
var (
	credentialLabels = []string{"credential", "provider"}

	requestsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "requests_total",
		Help: "Requests by what became of them.",
	}, append(credentialLabels, "outcome"))
	tokenRequestsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "token_requests_total",
		Help: "Token requests by what made them necessary and how they ended.",
	}, append(credentialLabels, "trigger", "outcome"))
	tokenRequestSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "token_request_duration_seconds",
		Help:    "Time that token requests took.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, credentialLabels)
	tokenWaitSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "token_wait_seconds",
		Help:    "Time that requests waited for a token; those that found one at hand do not count.",
		Buckets: []float64{.001, .01, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, credentialLabels)
	tokenExpiry = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "token_expiry_timestamp_seconds",
		Help: "When the last token that was obtained expires.",
	}, credentialLabels)
	tokenLastSuccess = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "token_last_success_timestamp_seconds",
		Help: "When a token was last obtained.",
	}, credentialLabels)
	unauthorizedTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "upstream_unauthorized_total",
		Help: "Answers of 401 by the API, by what became of them.",
	}, append(credentialLabels, "result"))
	rateLimitedTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "rate_limited_total",
		Help: "Answers of 429 by the API.",
	}, credentialLabels)
	rateLimitRemaining = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "rate_limit_remaining",
		Help: "Calls that the API said are left before it limits the rate.",
	}, credentialLabels)
)

// registerMetrics makes the collectors show in a config's registry.
func registerMetrics(registry *prometheus.Registry) error {
	if registry == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{
		requestsTotal, tokenRequestsTotal, tokenRequestSeconds, tokenWaitSeconds, tokenExpiry,
		tokenLastSuccess, unauthorizedTotal, rateLimitedTotal, rateLimitRemaining,
	} {
		var registered prometheus.AlreadyRegisteredError
		if err := registry.Register(c); err != nil && !errors.As(err, &registered) {
			return err
		}
	}
	return nil
}

// meter is what is measured of one credential. Its counters are looked up once,
// so that counting costs an atomic addition.
type meter struct {
	labels       []string // values of credentialLabels
	requests     map[string]prometheus.Counter
	unauthorized map[string]prometheus.Counter
	refusals     map[string]*sparing // log lines about them, by outcome
	wait         prometheus.Observer
	limited      prometheus.Counter
	remaining    atomic.Pointer[prometheus.Gauge]

	mu   sync.Mutex // held while a gauge is created
	gone bool       // the credential is no longer configured

	remainingCalls atomic.Int64 // as the API said last; -1: it never did
	limitedUntil   atomic.Int64 // Unix nanoseconds
}

func newMeter(credential, provider string) *meter {
	m := &meter{
		labels:       []string{credential, provider},
		requests:     make(map[string]prometheus.Counter, len(outcomes)),
		unauthorized: make(map[string]prometheus.Counter, len(unauthorizedResults)),
		refusals:     make(map[string]*sparing, len(outcomes)),
		wait:         tokenWaitSeconds.WithLabelValues(credential, provider),
		limited:      rateLimitedTotal.WithLabelValues(credential, provider),
	}
	for _, outcome := range outcomes {
		m.requests[outcome] = requestsTotal.WithLabelValues(credential, provider, outcome)
		m.refusals[outcome] = new(sparing)
	}
	for _, trigger := range tokensource.Triggers {
		for _, outcome := range tokenOutcomes { // from zero on: a first failure has to show as an increase
			tokenRequestsTotal.WithLabelValues(credential, provider, trigger, outcome)
		}
	}
	for _, result := range unauthorizedResults {
		m.unauthorized[result] = unauthorizedTotal.WithLabelValues(credential, provider, result)
	}
	m.remainingCalls.Store(-1)
	return m
}

// tokenRequest counts a token request that has ended.
func (m *meter) tokenRequest(r tokensource.Request) {
	outcome := tokenOutcomeOK
	if r.Err != nil {
		outcome = string(r.Class)
	}
	if r.Token != nil {
		m.whileConfigured(func() {
			tokenExpiry.WithLabelValues(m.labels...).Set(seconds(r.Token.Expires))
			tokenLastSuccess.WithLabelValues(m.labels...).Set(seconds(time.Now()))
		})
	}
	tokenRequestsTotal.WithLabelValues(m.labels[0], m.labels[1], r.Trigger, outcome).Inc()
	tokenRequestSeconds.WithLabelValues(m.labels...).Observe(r.Took.Seconds())
}

// whileConfigured calls f unless the credential is no longer configured: what
// comes late must not bring back a gauge that nothing takes away again.
func (m *meter) whileConfigured(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.gone {
		f()
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// remainingHeaders are those in which APIs say how many calls are left.
var remainingHeaders = []string{"X-Rate-Limit-Remaining", "X-Ratelimit-Remaining", "Ratelimit-Remaining"}

// answered notes what an answer of the API says of its rate limit.
func (m *meter) answered(resp *http.Response, api tokenprovider.API) {
	for _, name := range remainingHeaders {
		values, ok := resp.Header[name]
		if !ok {
			continue
		}
		if n, err := strconv.ParseInt(values[0], 10, 64); err == nil && n >= 0 {
			m.setRemaining(n)
		}
		break
	}
	if resp.StatusCode != http.StatusTooManyRequests {
		return
	}
	m.limited.Inc()
	wait := tokenprovider.ParseRetryAfter(resp.Header, time.Now())
	if wait == 0 {
		wait = api.RateLimitWait
	}
	// an answer that came later may ask for less
	until := time.Now().Add(wait).UnixNano()
	for before := m.limitedUntil.Load(); before < until; before = m.limitedUntil.Load() {
		if m.limitedUntil.CompareAndSwap(before, until) {
			return
		}
	}
}

// setRemaining shows the gauge from the first time on: before, there is nothing
// to tell.
func (m *meter) setRemaining(n int64) {
	m.remainingCalls.Store(n)
	if m.remaining.Load() == nil {
		m.whileConfigured(func() {
			gauge := rateLimitRemaining.WithLabelValues(m.labels...)
			m.remaining.Store(&gauge)
		})
	}
	if gauge := m.remaining.Load(); gauge != nil {
		(*gauge).Set(float64(n))
	}
}

// limitedFor returns how long the API has asked to be left alone.
func (m *meter) limitedFor() time.Duration {
	until := m.limitedUntil.Load()
	if until == 0 {
		return 0
	}
	return max(time.Until(time.Unix(0, until)), 0)
}

// Destruct implements caddy.Destructor: it drops what is no longer true of a
// credential that is no longer configured. Its counters stay.
func (m *meter) Destruct() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = true
	tokenExpiry.DeleteLabelValues(m.labels...)
	tokenLastSuccess.DeleteLabelValues(m.labels...)
	rateLimitRemaining.DeleteLabelValues(m.labels...)
	return nil
}
