package tokensource

import (
	"hash/maphash"
	"sync/atomic"
	"time"
)

// Bounds on the token requests that 401 answers cause. They are charged to the
// client that caused them, so that the others have theirs. A request that
// succeeded with the fresh token is not charged, but no more often than others
// are: an API may answer the same request 401 and something else by turns.
const (
	rejectedByClient      = 2 // at once: 5 in any minute
	rejectedByClientEvery = 20 * time.Second
	rejectedByAll         = 5
	rejectedByAllEvery    = 2 * time.Second
)

// How long 401 answers to an operation cause no token request, once a fresh token
// was rejected as well. The first time may be chance: the token may have been
// revoked together with the one before.
const (
	holdFirst  = time.Second
	holdAsked  = 30 * time.Second // how long a token that a 401 has asked for counts as fresh
	holdSecond = 30 * time.Second
	holdMax    = 10 * time.Minute
)

// Bounds on what is remembered.
const (
	maxClients    = 1024
	maxOperations = 16 // of one client
)

// rejections bound the token requests that 401 answers cause. All but watched is
// guarded by mu of the state.
type rejections struct {
	all     bucket
	clients map[string]*rejectedClient
	watched atomic.Int64 // until when other answers make a difference, Unix nanoseconds
}

// rejectedClient is a client that was answered 401.
type rejectedClient struct {
	requests bucket // token requests that it may cause
	refunds  bucket
	last     time.Time
	holds    map[uint64]*hold // by operation
}

// hold is an operation that was answered 401.
type hold struct {
	token    int64     // the last token that it rejected, by number
	asked    time.Time // another was asked for in its place
	renewals int       // how many fresh tokens it has rejected
	until    time.Time
}

func newRejections() rejections {
	return rejections{all: newBucket(rejectedByAll, rejectedByAllEvery), clients: make(map[string]*rejectedClient)}
}

// operationSeed makes hashes of operations that clients cannot predict.
var operationSeed = maphash.MakeSeed()

// operation returns a key of bounded size for method and path.
func (by Sender) operation() uint64 {
	return maphash.Comparable(operationSeed, Sender{Method: by.Method, Path: by.Path})
}

// allow reports whether a 401 that by got for t may cause a token request, and
// charges that to the client.
func (r *rejections) allow(by Sender, t *Token, now time.Time) bool {
	c, key := r.client(by.Client, now), by.operation()
	h := c.holds[key]
	if h != nil && t.number > h.token && now.Sub(h.asked) < holdAsked {
		r.renew(h, t, now) // t was the fresh token, and was not tried by a second request
	}
	if h != nil && Until(h.until, now) > 0 {
		return false
	}
	if !c.requests.has(now) || !r.all.has(now) {
		return false
	}
	c.requests.take(now)
	r.all.take(now)
	if h == nil {
		h = newHold(c, key)
	}
	h.token, h.asked = t.number, now
	r.watch(now.Add(holdAsked))
	return true
}

// hold has 401 answers to an operation cause no token request for a while, since
// it rejected t, a fresh token. It reports until when, and whether that is longer
// than before: each token counts once.
func (r *rejections) hold(by Sender, t *Token, now time.Time) (until time.Time, renewed bool) {
	c, key := r.client(by.Client, now), by.operation()
	h := c.holds[key]
	switch {
	case h == nil:
		h = newHold(c, key)
	case h.token >= t.number:
		return h.until, false
	}
	r.renew(h, t, now)
	return h.until, true
}

// renew begins a hold, or one that is longer than the one before.
func (r *rejections) renew(h *hold, t *Token, now time.Time) {
	h.token = t.number
	h.renewals++
	wait := holdFirst
	if h.renewals > 1 {
		wait = backoff(h.renewals-1, holdSecond, holdMax)
	}
	h.until = now.Add(wait)
	r.watch(h.until.Add(holdMax)) // and for a while after that: the next hold would be longer
}

// watch has other answers noticed until then.
func (r *rejections) watch(then time.Time) {
	r.watched.Store(max(r.watched.Load(), then.UnixNano()))
}

// release ends a hold.
func (r *rejections) release(by Sender) {
	if c := r.clients[by.Client]; c != nil {
		delete(c.holds, by.operation())
	}
}

// refund gives the client back what allow has charged.
func (r *rejections) refund(by Sender, now time.Time) {
	if c := r.clients[by.Client]; c != nil && c.refunds.has(now) {
		c.refunds.take(now)
		c.requests.refund()
	}
}

// takeBack takes back what allow has charged by with: there was no token request.
func (r *rejections) takeBack(by Sender) {
	r.all.refund()
	if c := r.clients[by.Client]; c != nil {
		c.requests.refund()
	}
}

// client returns what is remembered of a client. The one that was not heard of
// for longest makes room for a new one.
func (r *rejections) client(name string, now time.Time) *rejectedClient {
	c := r.clients[name]
	if c == nil {
		if len(r.clients) >= maxClients {
			r.forgetOldest()
		}
		c = &rejectedClient{
			requests: newBucket(rejectedByClient, rejectedByClientEvery),
			refunds:  newBucket(rejectedByClient, rejectedByClientEvery),
			holds:    make(map[uint64]*hold),
		}
		r.clients[name] = c
	}
	c.last = now
	return c
}

func (r *rejections) forgetOldest() {
	var oldest string
	var last *rejectedClient
	for name, c := range r.clients {
		if last == nil || c.last.Before(last.last) {
			oldest, last = name, c
		}
	}
	delete(r.clients, oldest)
}

// forgetIdle forgets the clients of which nothing holds any longer.
func (r *rejections) forgetIdle(now time.Time) {
	for name, c := range r.clients {
		if now.Sub(c.last) > holdMax {
			delete(r.clients, name)
		}
	}
}

// newHold adds a hold, in place of the one that ends first if there are too many.
func newHold(c *rejectedClient, key uint64) *hold {
	if len(c.holds) >= maxOperations {
		var first uint64
		var ends *hold
		for key, h := range c.holds {
			if ends == nil || h.until.Before(ends.until) {
				first, ends = key, h
			}
		}
		delete(c.holds, first)
	}
	h := new(hold)
	c.holds[key] = h
	return h
}
