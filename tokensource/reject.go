package tokensource

import (
	"context"
	"time"
)

const (
	holdFirst = 30 * time.Second
	holdMax   = 10 * time.Minute

	// enough401 answers in a row on a token that worked before look like a
	// revoked token rather than like one endpoint that always says 401.
	enough401 = 5
)

// refreshHold keeps 401 answers from causing token requests again and again
// where a fresh token does not help: an API that always says 401, or one
// endpoint that does.
type refreshHold struct {
	until     time.Time
	renewals  int // how often it was renewed without a replay that succeeded
	overrides int // how often 401 answers in a row have overridden it since
}

// renew starts the hold, or doubles it.
func (h *refreshHold) renew(now time.Time) {
	h.renewals++
	h.until = now.Add(backoff(h.renewals, holdFirst, holdMax))
}

// allows reports whether a 401 on t may cause a token request.
func (h *refreshHold) allows(t *Token, now time.Time) bool {
	if !now.Before(h.until) {
		return true
	}
	// each time this proves wrong it takes twice as many: a busy endpoint that
	// always says 401 beside a quiet one that does not also sends runs of them
	if !t.worked.Load() || int64(t.streak.Load()) < enough401<<h.overrides {
		return false
	}
	h.overrides++
	return true
}

// Accepted notes that something other than 401 came back for a request that
// carried t; replay says that it was the second try of a request.
func (s *Source) Accepted(t *Token, replay bool) {
	if t.streak.Load() != 0 {
		t.streak.Store(0)
	}
	if !t.worked.Load() {
		t.worked.Store(true)
	}
	if replay {
		s.state.replayed.Store(true)
	}
}

// Rejected notes that 401 came back for a request that carried t, and has the
// token replaced unless that is held back. It returns the token to replay the
// request with, or nil: then the 401 is the answer. Only the token that was
// rejected is taken out of use, never one that came after it.
func (s *Source) Rejected(t *Token, replay bool) *Fresh {
	st := s.state
	now := time.Now()
	t.streak.Add(1)

	st.mu.Lock()
	defer st.mu.Unlock()
	current := st.current.Load()
	switch {
	case current == t:
	case replay:
		return nil // about a token that was replaced meanwhile
	case current.live():
		return &Fresh{source: s, token: current}
	case st.request != nil:
		return s.replacement()
	default:
		return nil // the replacement has failed
	}

	if st.replayed.Swap(false) { // a fresh token helped: the API means its 401
		st.refreshHold = refreshHold{}
	}
	if t.after401 && !t.held && (replay || !t.worked.Load()) {
		t.held = true
		st.refreshHold.renew(now)
		s.log.held(st.refreshHold.until, now)
		return nil
	}
	if replay || !st.refreshHold.allows(t, now) {
		return nil
	}
	if st.request == nil && st.failure != nil && now.Before(st.failure.until) {
		// no other token can be had now. This one stays, in case only one
		// endpoint rejects it, until too many say the same.
		if t.streak.Load() >= enough401 {
			st.current.Store(nil)
			st.reschedule()
		}
		return nil
	}

	st.current.Store(nil)
	st.rejected = t
	fresh := s.replacement()
	fresh.First = true
	return fresh
}

// replacement returns the token to come in place of one that was rejected. mu
// is held.
func (s *Source) replacement() *Fresh {
	remembered := s.state.failure
	r := s.requestToWaitFor(triggerRejected)
	r.after401 = true
	return &Fresh{source: s, request: r, remembered: remembered}
}

// Fresh is a token to replay a request with, perhaps still to come.
type Fresh struct {
	source     *Source
	token      *Token
	request    *tokenRequest
	remembered *failure

	// First reports whether it was this 401 that took the token out of use.
	First bool
}

// Token waits for the token, as Source.Token does.
func (f *Fresh) Token(ctx context.Context) (*Token, error) {
	if f.token != nil {
		return f.token, nil
	}
	return f.source.join(ctx, f.request, f.remembered)
}
