package egress

import (
	"sync"
	"sync/atomic"
	"time"
)

// apiHealth is what the last requests with a credential have in common, if they have
// failed. Metrics cannot tell: they count, and know no order.
type apiHealth struct {
	failing atomic.Bool // there is a streak, which an answer may end

	mu         sync.Mutex // held for these
	unanswered streak
	rejected   streak // answered as an API answers where it rejects the token
}

// streak is what has happened to one request after the other.
type streak struct {
	times       int
	since, last time.Time
}

// longStreak is how many requests in a row are more than chance.
const longStreak = 3

// isLong reports whether it is more than chance.
func (s streak) isLong() bool { return s.times >= longStreak }

func (s *streak) add(now time.Time) {
	if s.times == 0 {
		s.since = now
	}
	s.times++
	s.last = now
}

// noAnswer notes that the API did not answer a request. That says nothing about the
// token.
func (h *apiHealth) noAnswer() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unanswered.add(time.Now())
	h.failing.Store(true)
}

// answered notes that it did. While all is well, that costs no more than a look.
func (h *apiHealth) answered(rejected bool) {
	if !rejected && !h.failing.Load() {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.unanswered = streak{}
	if rejected {
		h.rejected.add(time.Now())
	} else {
		h.rejected = streak{}
	}
	h.failing.Store(rejected)
}

// streaks returns both.
func (h *apiHealth) streaks() (unanswered, rejected streak) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.unanswered, h.rejected
}
