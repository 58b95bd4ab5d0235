package egress

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// triggerRefresh is the trigger of most token requests: the token is about to expire.
const triggerRefresh = "refresh"

// tokenOutcomeOK is the outcome of a token request that returned a token;
// others are the classes of failures.
const tokenOutcomeOK = "ok"

// Results of a 401 by the API.
const (
	unauthorizedReplayedOK    = "replayed_ok"
	unauthorizedReplayed401   = "replayed_401"
	unauthorizedNotReplayable = "not_replayable"
	unauthorizedHeldBack      = "held_back"
)

// The collectors belong to the process, so that counters survive reloads: each
// config has a registry of its own, and registers the same ones.
var (
	credentialLabels = []string{"credential", "provider"}

	requestsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "requests_total",
		Help: "Requests by outcome.",
	}, append(credentialLabels, "outcome"))
	callerRequestsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "caller_requests_total",
		Help: "Requests of known callers by outcome.",
	}, []string{"caller", "credential", "outcome"})
	tokenRequestsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "token_requests_total",
		Help: "Token requests by what made them necessary and how they ended.",
	}, append(credentialLabels, "trigger", "outcome"))
	// by endpoint, not by credential: it says how the server is doing, and a
	// histogram for each of thousands of credentials would be most of /metrics
	tokenRequestSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "token_request_duration_seconds",
		Help:    "Time that token requests took.",
		Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
	}, []string{"provider", "token_endpoint"})
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
		Help: "When a token was last obtained, by this instance or one that shares its tokens.",
	}, credentialLabels)
	secretInUse = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "secret_in_use",
		Help: "Which value of the secret the last token was obtained with: 1 for the first. Only where a secret has several values.",
	}, credentialLabels)
	unauthorizedTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "upstream_unauthorized_total",
		Help: "Answers of the API that reject a token (401, or a rejected_status), by outcome.",
	}, append(credentialLabels, "result"))
	upstreamFailuresTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "upstream_failures_total",
		Help: "Requests that the API has not answered. Each try counts.",
	}, credentialLabels)
	storeOperationsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "egress", Name: "store_operations_total",
		Help: "Operations on the storage of shared tokens by how they ended.",
	}, []string{"operation", "outcome"})
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
		requestsTotal, callerRequestsTotal, localTokensTotal, tokenRequestsTotal, tokenRequestSeconds, tokenWaitSeconds, tokenExpiry,
		tokenLastSuccess, secretInUse, unauthorizedTotal, upstreamFailuresTotal, storeOperationsTotal, rateLimitedTotal, rateLimitRemaining,
	} {
		var registered prometheus.AlreadyRegisteredError
		if err := registry.Register(c); err != nil && !errors.As(err, &registered) {
			return err
		}
	}
	return nil
}

// credentialMetrics is what is measured of one credential.
//
// A series appears with the first event that it counts, so that credentials
// which are configured and not used cost nothing. Those that alerts need from
// zero on appear earlier: a first failure has to show as an increase.
type credentialMetrics struct {
	*requestCounters
	labels    []string // values of credentialLabels
	remaining atomic.Pointer[prometheus.Gauge]
	ofTenants bool                      // gauges would be those of one tenant or another: there are none
	refusals  [outcomeCount]logLimiter  // log lines about those of clients that are not known
	unknown   [missingProofs]logLimiter // those of outcomeCallerUnknown

	mu   sync.Mutex // held while a gauge is created
	gone bool       // the credential is no longer configured
}

// requestCounters are the counters of requests with one credential. They last as long
// as the process, as their series do: the status page reads them, and a credential that
// is removed may come back.
type requestCounters struct {
	used     atomic.Bool // there was a request
	requests [outcomeCount]atomic.Pointer[prometheus.Counter]
	callers  sync.Map // from the name of a caller to its *callerMetrics
}

// allRequestCounters are those of each credential and provider.
var allRequestCounters sync.Map

func newCredentialMetrics(credential, provider string, ofTenants bool) *credentialMetrics {
	counters, _ := allRequestCounters.LoadOrStore([2]string{credential, provider}, new(requestCounters))
	m := &credentialMetrics{requestCounters: counters.(*requestCounters), labels: []string{credential, provider}, ofTenants: ofTenants}
	for _, class := range []tokenprovider.Class{tokenprovider.Transient, tokenprovider.Refused} {
		m.tokenRequests(triggerRefresh, string(class))
	}
	return m
}

func (m *credentialMetrics) with(values ...string) []string {
	return append(slices.Clip(m.labels), values...)
}

func (m *credentialMetrics) tokenRequests(trigger, outcome string) prometheus.Counter {
	return tokenRequestsTotal.WithLabelValues(m.with(trigger, outcome)...)
}

// request counts a client's request, and the time that it waited for a token.
func (m *credentialMetrics) request(o outcome, wait time.Duration) {
	if !m.used.Load() {
		m.firstRequest()
	}
	counter := m.requests[o].Load()
	if counter == nil {
		counter = m.requestCounter(o)
	}
	(*counter).Inc()
	if wait > 0 {
		tokenWaitSeconds.WithLabelValues(m.labels...).Observe(wait.Seconds())
	}
}

// callerMetrics is what is measured of one caller with one credential.
type callerMetrics struct {
	requests [outcomeCount]atomic.Pointer[prometheus.Counter]
	refusals [outcomeCount]logLimiter
}

func (m *credentialMetrics) caller(c *caller) *callerMetrics {
	found, ok := m.callers.Load(c.label)
	if !ok {
		found, _ = m.callers.LoadOrStore(c.label, new(callerMetrics))
	}
	return found.(*callerMetrics)
}

// callerRequest counts a request of a known caller.
func (m *credentialMetrics) callerRequest(c *caller, o outcome) {
	requests := &m.caller(c).requests
	counter := requests[o].Load()
	if counter == nil {
		made := callerRequestsTotal.WithLabelValues(c.name, m.labels[0], o.String())
		counter = &made
		requests[o].Store(counter)
	}
	(*counter).Inc()
}

// refusal returns what limits the log lines about refusals such as r of c, or of all
// clients that are not known if it is nil: one that is refused all the time hides no other.
func (m *credentialMetrics) refusal(c *caller, r *refusal) *logLimiter {
	switch {
	case c != nil:
		return &m.caller(c).refusals[r.outcome]
	case r.outcome == outcomeCallerUnknown:
		return &m.unknown[r.missing]
	}
	return &m.refusals[r.outcome]
}

// firstRequest makes the series that alerts about requests need.
func (m *credentialMetrics) firstRequest() {
	m.used.Store(true)
	m.requestCounter(outcomeTokenUnavailable)
	m.requestCounter(outcomeCredentialRefused)
	upstreamFailuresTotal.WithLabelValues(m.labels...)
	rateLimitedTotal.WithLabelValues(m.labels...)
	tokenWaitSeconds.WithLabelValues(m.labels...)
	for _, result := range []string{unauthorizedReplayed401, unauthorizedHeldBack} {
		unauthorizedTotal.WithLabelValues(m.with(result)...)
	}
}

// requestCounter returns the counter of an outcome, and has it at hand from then on.
func (m *credentialMetrics) requestCounter(o outcome) *prometheus.Counter {
	counter := requestsTotal.WithLabelValues(m.with(o.String())...)
	m.requests[o].Store(&counter)
	return &counter
}

// unauthorized counts a 401 of the API.
func (m *credentialMetrics) unauthorized(result string) {
	unauthorizedTotal.WithLabelValues(m.with(result)...).Inc()
}

// upstreamFailure counts a request that the API has not answered.
func (m *credentialMetrics) upstreamFailure() {
	upstreamFailuresTotal.WithLabelValues(m.labels...).Inc()
}

// storeOperation counts an operation on the storage of shared tokens.
func storeOperation(operation, outcome string) {
	storeOperationsTotal.WithLabelValues(operation, outcome).Inc()
}

// tokenRequest counts a token request to endpoint that has ended.
func (m *credentialMetrics) tokenRequest(endpoint string, r tokensource.Outcome) {
	outcome := tokenOutcomeOK
	if r.Err != nil {
		outcome = string(r.Class)
	}
	if r.Token != nil {
		m.whileConfigured(func() {
			if !m.ofTenants {
				tokenExpiry.WithLabelValues(m.labels...).Set(seconds(r.Token.Expires))
			}
			tokenLastSuccess.WithLabelValues(m.labels...).Set(seconds(r.Token.Issued))
		})
	}
	if r.Shared {
		return
	}
	m.tokenRequests(r.Trigger, outcome).Inc()
	if r.Unanswered > 0 {
		m.tokenRequests(r.Trigger, string(tokenprovider.Transient)).Add(float64(r.Unanswered))
	}
	if r.Refused > 0 { // another value of the secret was tried after each
		m.tokenRequests(r.Trigger, string(tokenprovider.Refused)).Add(float64(r.Refused))
	}
	tokenRequestSeconds.WithLabelValues(m.labels[1], endpoint).Observe(r.Took.Seconds())
}

// whileConfigured calls f unless the credential is no longer configured: a late
// event must not bring back a gauge that nothing removes again.
func (m *credentialMetrics) whileConfigured(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.gone {
		f()
	}
}

// noteSecretInUse sets the gauge to the number of the value of the secret that the
// token of s was obtained with. There is none where the secret has one value, or
// each tenant one of its own.
func (m *credentialMetrics) noteSecretInUse(s *tokensource.Source) {
	if m.ofTenants {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	number := s.Status().SecretInUse // read with mu held: what is set last is right
	if number == 0 || m.gone {
		secretInUse.DeleteLabelValues(m.labels...)
		return
	}
	secretInUse.WithLabelValues(m.labels...).Set(float64(number))
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// setRemaining sets the gauge, which is created by the first value.
func (m *credentialMetrics) setRemaining(n int64) {
	if m.ofTenants {
		return
	}
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

// Destruct implements caddy.Destructor: it removes the gauges of a credential
// that is no longer configured. Its counters stay.
func (m *credentialMetrics) Destruct() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone = true
	tokenExpiry.DeleteLabelValues(m.labels...)
	tokenLastSuccess.DeleteLabelValues(m.labels...)
	secretInUse.DeleteLabelValues(m.labels...)
	rateLimitRemaining.DeleteLabelValues(m.labels...)
	return nil
}

// logLimiter lets one log line a second through, or one in another time.
type logLimiter struct {
	last    atomic.Pointer[time.Time]
	leftOut atomic.Int64
}

// next reports whether a line may be logged now, and how many were left out
// before it.
func (l *logLimiter) next(now time.Time) (leftOut int64, ok bool) { return l.oneIn(time.Second, now) }

// oneIn is next where one line is let through in that time.
func (l *logLimiter) oneIn(interval time.Duration, now time.Time) (leftOut int64, ok bool) {
	last := l.last.Load()
	if last == nil || tokensource.Until(last.Add(interval), now) <= 0 {
		if line := now; l.last.CompareAndSwap(last, &line) { // a copy: now itself would cost an allocation each time
			return l.leftOut.Swap(0), true
		}
	}
	l.leftOut.Add(1)
	return 0, false
}
