package egress

import (
	"math"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// quota is what is left of an API's own quota, by what its answers say. It belongs
// to the client of the API: tokens of different scopes use up the same.
//
// An answer tells what was left when the API saw the request. Others are under way
// then, of which the API has counted some, so what is left now is that or up to so
// many less. Between answers each request that is sent counts as one less.
type quota struct {
	// counts is set once a grant reserves a part of it: until then nobody asks, and
	// it costs no request anything
	counts atomic.Bool

	mu    sync.Mutex
	known bool
	limit int64 // the whole quota
	left  int64
	sent  int64     // requests without an answer yet
	until time.Time // when the quota is whole again
	named bool      // the API has said so
}

// quotaTime is how long what an API says of its quota counts where it does not say
// when the quota is whole again, or that is further away than MaxRetryAfter. From
// then on one request at a time finds out.
const quotaTime = time.Minute

// send notes that a request is sent, and reports whether it counts: what becomes of
// it is then noted, too.
func (q *quota) send() bool {
	if !q.counts.Load() {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sent++
	q.left--
	return true
}

// unanswered notes that a request has got no answer.
func (q *quota) unanswered() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sent--
}

// answered notes an answer, and what it says of the quota.
func (q *quota) answered(resp *http.Response, api tokenprovider.API) {
	left, limit := headerNumber(resp.Header, api.RemainingHeaders), headerNumber(resp.Header, api.LimitHeaders)
	now := time.Now()
	wait := tokenprovider.ParseRetryAfter(resp.Header, now, api.RetryHeaders...)
	named := 0 < wait && wait < tokenprovider.MaxRetryAfter
	if wait == 0 {
		wait = quotaTime
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.sent--
	if left < 0 || limit <= 0 {
		return
	}
	if !q.known || q.limit != limit {
		q.known, q.limit, q.left = true, limit, left
	}
	q.left = min(max(q.left, left-q.sent), left)
	q.until, q.named = now.Add(wait), named
}

// reserved returns how long until the quota is whole again if less than share of it
// is left, and else 0.
func (q *quota) reserved(share float64) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.known {
		return 0
	}
	wait := tokensource.Until(q.until, time.Now())
	enough := int64(math.Ceil(share * float64(q.limit)))
	switch {
	case wait <= 0 && q.named: // the next answer tells how much it is
		q.left, q.until, q.named = q.limit, time.Now().Add(quotaTime), false
		return 0
	case wait <= 0 && q.left < enough: // it may be whole or not: one request finds out
		q.until = time.Now().Add(quotaTime)
		return 0
	case q.left < enough:
		return wait
	}
	return 0
}

// headerNumber returns the number at the beginning of the first of the headers that
// is present, or -1.
func headerNumber(header http.Header, names []string) int64 {
	for _, name := range names {
		values, ok := header[name]
		if !ok {
			continue
		}
		text := values[0]
		if end := strings.IndexAny(text, ",; "); end >= 0 { // as in `100, 100;w=60`
			text = text[:end]
		}
		if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= 0 {
			return n
		}
		return -1
	}
	return -1
}
