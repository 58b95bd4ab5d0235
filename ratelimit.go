package egress

import (
	"encoding/json"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// rateLimit is what the API has said of the rate limit of a credential. It
// belongs to the credential, not to its name, which may stand for another one
// after a reload.
type rateLimit struct {
	remaining atomic.Int64              // calls, as the API said last; -1: it never did
	limited   atomic.Pointer[timeLimit] // nil: the rate is not limited
}

// timeLimit is a time during which an API wants to be left alone.
type timeLimit struct {
	since time.Time // when it said so last
	until time.Time // the latest that it has named
}

func newRateLimit() *rateLimit {
	l := new(rateLimit)
	l.remaining.Store(-1)
	return l
}

// answered notes what an answer of the API says of the rate limit, in metrics
// as well.
func (l *rateLimit) answered(resp *http.Response, api tokenprovider.API, metrics *credentialMetrics) {
	if n := headerNumber(resp.Header, api.RemainingHeaders); n >= 0 {
		l.remaining.Store(n)
		metrics.setRemaining(n)
	}
	if resp.StatusCode != http.StatusTooManyRequests {
		return
	}
	rateLimitedTotal.WithLabelValues(metrics.labels...).Inc()
	now := time.Now()
	wait := tokenprovider.ParseRetryAfter(resp.Header, now, api.RetryHeaders...)
	if wait == 0 {
		wait = api.RateLimitWait
	}
	if wait > 0 {
		l.limit(now, wait)
	}
}

// limit notes that the API has asked at now to be left alone for wait.
func (l *rateLimit) limit(now time.Time, wait time.Duration) {
	for {
		before := l.limited.Load()
		next := &timeLimit{since: now, until: now.Add(wait)}
		if before != nil && before.left(now, 0) > wait { // an answer that came later may ask for less
			next.until = before.until
		}
		if l.limited.CompareAndSwap(before, next) {
			return
		}
	}
}

// limitedFor returns how long the API has asked to be left alone, where one
// answer counts for most at most; 0 means without a bound.
func (l *rateLimit) limitedFor(most time.Duration) time.Duration {
	limited := l.limited.Load()
	if limited == nil {
		return 0
	}
	now := time.Now()
	if limited.left(now, 0) == 0 {
		l.limited.CompareAndSwap(limited, nil)
		return 0
	}
	return limited.left(now, most)
}

// left returns what is left of the time, where one answer counts for most.
func (t *timeLimit) left(now time.Time, most time.Duration) time.Duration {
	left := tokensource.Until(t.until, now)
	if most > 0 {
		left = min(left, tokensource.Until(t.since.Add(most), now))
	}
	return max(left, 0)
}

// RateLimitMax is how long an answer of 429 keeps requests from the API at most;
// 0 is not at all. In JSON it is a duration, or a boolean: `true` stands for the
// default, 60 seconds.
type RateLimitMax caddy.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (m *RateLimitMax) UnmarshalJSON(text []byte) error {
	var on bool
	if json.Unmarshal(text, &on) != nil {
		return json.Unmarshal(text, (*caddy.Duration)(m))
	}
	*m = 0
	if on {
		*m = defaultRateLimitMax
	}
	return nil
}

// MarshalJSON implements json.Marshaler.
func (m RateLimitMax) MarshalJSON() ([]byte, error) {
	if m == defaultRateLimitMax {
		return json.Marshal(true)
	}
	return json.Marshal(caddy.Duration(m))
}

// Interface guards
var (
	_ json.Unmarshaler = (*RateLimitMax)(nil)
	_ json.Marshaler   = RateLimitMax(0)
)
