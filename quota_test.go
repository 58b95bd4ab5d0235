package egress

import (
	"net/http"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

var quotaAPI = tokenprovider.API{
	RemainingHeaders: []string{"X-Rate-Limit-Remaining"}, LimitHeaders: []string{"X-Rate-Limit-Limit"}, RetryHeaders: []string{"X-Rate-Limit-Retry"},
}

// newCountingQuota returns a quota of which a grant reserves a part.
func newCountingQuota() *quota {
	q := new(quota)
	q.counts.Store(true)
	return q
}

// counting is an API that counts down its quota.
type counting struct {
	mu          sync.Mutex
	left, limit int64
	latency     time.Duration
	reset       string // X-RateLimit-Reset
}

// call sends one request of a caller that has to leave a share to others, and
// reports whether it was sent.
func (c *counting) call(q *quota, share float64) bool {
	if q.reserved(share) > 0 {
		return false
	}
	q.send()
	c.mu.Lock()
	c.left--
	resp := &http.Response{Header: http.Header{
		"X-Rate-Limit-Remaining": {strconv.FormatInt(max(c.left, 0), 10)}, "X-Rate-Limit-Limit": {strconv.FormatInt(c.limit, 10)},
	}}
	if c.reset != "" {
		resp.Header.Set("X-Ratelimit-Reset", c.reset)
	}
	c.mu.Unlock()
	time.Sleep(c.latency)
	q.answered(resp, quotaAPI)
	return true
}

// With many requests under way, what is reserved stays, within 5 % of the quota.
func TestQuotaIsReservedUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api, q := &counting{left: 1000, limit: 1000, latency: 50 * time.Millisecond}, newCountingQuota()
		for range 40 {
			var wg sync.WaitGroup
			for range 50 {
				wg.Go(func() { api.call(q, 0.2) })
			}
			wg.Wait()
		}
		if api.left < 150 || api.left > 250 {
			t.Errorf("%d of 1000 calls are left, want 200", api.left)
		}
		// who reserves nothing may go on
		if !api.call(q, 0) {
			t.Error("a request without a reserve was refused")
		}
	})
}

func TestQuota(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newCountingQuota()
		if wait := q.reserved(0.5); wait != 0 {
			t.Errorf("nothing is known, and a request has to wait for %v", wait)
		}
		say := func(header http.Header) {
			q.send()
			q.answered(&http.Response{Header: header}, quotaAPI)
		}
		limit := func(left, limit string, more ...string) http.Header {
			h := http.Header{"X-Rate-Limit-Remaining": {left}, "X-Rate-Limit-Limit": {limit}}
			if more != nil {
				h["X-Rate-Limit-Retry"] = more
			}
			return h
		}
		say(limit("50", "100"))
		if wait := q.reserved(0.5); wait != 0 {
			t.Errorf("half of the quota is left, and a request has to wait for %v", wait)
		}
		say(limit("49", "100"))
		if wait := q.reserved(0.5); wait != time.Minute {
			t.Errorf("less is left, and a request has to wait for %v, want a minute", wait)
		}
		for _, useless := range []http.Header{nil, limit("x", "100"), limit("80", "0"), limit("-1", "100"), limit("", "")} {
			if say(useless); q.reserved(0.5) == 0 {
				t.Errorf("%v says nothing, and a request is let pass", useless)
			}
		}
		// a request without an answer counts until the next one
		q.send()
		q.unanswered()
		say(limit("49", "100", strconv.FormatInt(time.Now().Add(20*time.Second).Unix(), 10)))
		if wait := q.reserved(0.5); wait != 20*time.Second {
			t.Errorf("a request has to wait for %v, want as long as the API says", wait)
		}
		time.Sleep(20 * time.Second)
		if wait := q.reserved(0.5); wait != 0 {
			t.Errorf("the quota is whole again, and a request has to wait for %v", wait)
		}
		// another window, and another limit
		say(limit("10, 10;w=1", "2000, 2000;w=60"))
		if wait := q.reserved(0.5); wait == 0 {
			t.Error("10 of 2000 are left, and a request is let pass")
		}
		say(limit("1999", "2000"))
		if wait := q.reserved(0.5); wait != 0 {
			t.Errorf("the quota is whole again, and a request has to wait for %v", wait)
		}
	})
}

// What is reserved stays over an hour in which the API does not say when the quota
// is whole again, or says that it takes longer than is waited for.
func TestQuotaIsReservedForAnHour(t *testing.T) {
	for name, reset := range map[string]string{"not said": "", "in an hour": "3600", "as Unix seconds": "1795534691"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api, q := &counting{left: 205, limit: 1000, latency: 50 * time.Millisecond, reset: reset}, newCountingQuota()
				for range 3600 {
					var wg sync.WaitGroup
					for range 50 {
						wg.Go(func() { api.call(q, 0.2) })
					}
					wg.Wait()
					time.Sleep(time.Second)
				}
				if api.left < 50 {
					t.Errorf("%d of 1000 calls are left, want 200 less one a minute and 5 %%", api.left)
				}
				api.left = api.limit // as the next window begins
				time.Sleep(5 * time.Minute)
				for range 2 {
					if !api.call(q, 0.2) {
						t.Error("the quota is whole again, and a request was refused")
					}
				}
			})
		})
	}
}

// The request that finds out for a caller that leaves much lets none pass of those
// that leave less.
func TestQuotaWithTwoShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newCountingQuota()
		q.send()
		q.answered(&http.Response{Header: http.Header{"X-Rate-Limit-Remaining": {"150"}, "X-Rate-Limit-Limit": {"1000"}}}, quotaAPI)
		time.Sleep(quotaTime)
		if wait := q.reserved(0.5); wait != 0 {
			t.Errorf("the request that finds out has to wait for %v", wait)
		}
		if q.reserved(0.2) == 0 || q.reserved(0.5) == 0 {
			t.Error("150 of 1000 are left, and another request is let pass")
		}
	})
}
