package egress

import (
	"sync/atomic"
	"time"
)

// apiHealth is what the last requests with a credential have in common, if they have
// failed. Metrics cannot tell: they count, and know no order.
type apiHealth struct {
	unanswered streak
	rejected   streak // answered as an API answers a token that it rejects
}

// noAnswer notes that the API did not answer a request. That says nothing about the
// token.
func (h *apiHealth) noAnswer(now time.Time) { h.unanswered.add(now) }

// answered notes that it did.
func (h *apiHealth) answered(rejected bool) {
	h.unanswered.end()
	if rejected {
		h.rejected.add(time.Now())
	} else {
		h.rejected.end()
	}
}

// streak is how often in a row something has happened, and since when.
type streak struct{ times, since atomic.Int64 }

// add adds one more.
func (s *streak) add(now time.Time) {
	if s.times.Add(1) == 1 {
		s.since.Store(now.UnixNano())
	}
}

// end ends the streak. It writes only if there is one: requests under way at the same
// time do not wait for each other.
func (s *streak) end() {
	if s.times.Load() != 0 {
		s.times.Store(0)
	}
}

// longStreak is how often in a row is more than chance.
const longStreak = 3

// long returns the streak if it is one that matters.
func (s *streak) long() (times int, since time.Time, ok bool) {
	n := s.times.Load()
	return int(n), time.Unix(0, s.since.Load()), n >= longStreak
}
