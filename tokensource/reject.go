package tokensource

import (
	"context"
	"time"
)

const (
	holdFirst = 30 * time.Second
	holdMax   = 10 * time.Minute

	// enough401 in a row on a token that worked before look like a revoked
	// token rather than like one endpoint that always says 401.
	enough401 = 5
)

// hold keeps 401 answers from asking for tokens again and again, where a fresh
// token does not help: an API that always says 401, or one endpoint that does.
type refreshHold struct {
	until     time.Time
	renewals  int // times the hold was renewed without a replay that succeeded
	overrides int // times it was broken since, for 401 in a row
}

// renew starts the hold, or doubles it.
func (h *refreshHold) renew(now time.Time) {
	h.until = now.Add(min(holdFirst<<min(h.renewals, 10), holdMax))
	h.renewals++
}

// allows reports whether a 401 on t may ask for another token.
func (h *refreshHold) allows(t *Token, now time.Time) bool {
	if !now.Before(h.until) {
		return true
	}
	// each time this proves wrong it takes twice as many: a busy endpoint that
	// always says 401 beside a quiet one that does not also sends runs of them
	if !t.worked.Load() || int(t.streak.Load()) < enough401<<min(h.overrides, 16) {
		return false
	}
	h.overrides++
	return true
}

// Accepted notes that something but 401 came back for a request that carried t.
func (s *Source) Accepted(t *Token, replay bool) {
	if t.streak.Load() != 0 {
		t.streak.Store(0)
	}
	if !t.worked.Load() {
		t.worked.Store(true)
	}
	if replay {
		// a fresh token helped: the API means its 401
		s.state.mu.Lock()
		s.state.refreshHold = refreshHold{}
		s.state.mu.Unlock()
	}
}

// Rejected notes that 401 came back for a request that carried t, and has the
// token replaced unless that is held back. It returns the flight of the token
// to replay the request with, or nil: then the 401 is the answer. Only the
// token that was rejected is taken out of use, never one that came after it.
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
		return nil // late word of a token that is gone
	case current.live():
		return &Fresh{source: s, token: current}
	case st.request != nil:
		st.request.after401 = true
		return &Fresh{source: s, request: st.request, remembered: st.failure}
	default:
		return nil // the replacement has failed
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
			st.wake()
		}
		return nil
	}

	st.current.Store(nil)
	st.rejected = t
	if st.request == nil {
		s.startRequest(triggerRejected)
	}
	st.request.after401 = true
	return &Fresh{source: s, request: st.request, remembered: st.failure, First: true}
}

// Fresh is a token to replay a request with, perhaps still to come.
type Fresh struct {
	source     *Source
	token      *Token
	request    *tokenRequest
	remembered *failure

	// First says that it was this 401 that took the token out of use.
	First bool
}

// Token waits for the token, as Source.Token does.
func (f *Fresh) Token(ctx context.Context) (*Token, error) {
	if f.token != nil {
		return f.token, nil
	}
	return f.source.join(ctx, f.request, f.remembered)
}
