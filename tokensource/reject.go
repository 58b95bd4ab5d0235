package tokensource

import (
	"context"
	"net/http"
	"time"
)

// Sender is whose request carried a token, and for what. A 401 is evidence about
// these alone: the API may refuse this operation to everyone, or the client may
// send what nobody should. It says that the token is dead only if a fresh one
// fares better.
type Sender struct{ Client, Method, Path string }

// HoldsBack reports whether there have been 401 answers lately to which other
// answers make a difference: see Accepted.
func (s *Source) HoldsBack() bool {
	until := s.state.rejections.watched.Load()
	return until != 0 && time.Now().UnixNano() < until
}

// Accepted notes that something other than 401 came back for a request of by.
func (s *Source) Accepted(by Sender, status int) {
	if provesNothing(status) {
		return
	}
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	st.rejections.release(by)
}

// Rejected notes that 401 came back for a request of by that carried t. It
// returns the token to send the request with a second time, or nil: then the 401
// is the answer. Where no other token is at hand or under way, one is requested,
// unless that is held back; until it comes, t stays in use.
func (s *Source) Rejected(t *Token, by Sender) *Fresh {
	st := s.state
	now := time.Now()
	st.mu.Lock()
	defer st.mu.Unlock()

	fresh := &Fresh{source: s, by: by, remembered: st.failure}
	current := st.current.Load()
	switch {
	case current.live() && current != t:
		fresh.token = current
	case st.request != nil:
		fresh.request = s.requestToWaitFor(triggerRejected)
	case st.failure != nil && Until(st.failure.until, now) > 0:
		// no other token can be had now; but one is wanted, as far as this client
		// may want one
		st.failure.rejected = true
		if refusal := st.doubtedRefusal(now); refusal != nil {
			go st.newest(s).endWait(context.Background(), refusal) // the 401 does not wait for a file
		}
		if current.live() && st.rejections.allow(by, t, now) && st.failure.shortenWait(st.failure.ifWanted) {
			st.reschedule()
		}
		return nil
	case !current.live():
		fresh.request = s.requestToWaitFor(triggerDemand)
	case st.rejections.allow(by, t, now):
		fresh.request = s.requestToWaitFor(triggerRejected)
		fresh.request.by = by
		fresh.First = true
	default:
		return nil
	}
	return fresh
}

// Fresh is a token to send a request with a second time, perhaps still to come.
type Fresh struct {
	source     *Source
	by         Sender
	token      *Token
	request    *tokenRequest
	remembered *failure

	// First reports whether it was this 401 that had the token requested.
	First bool
}

// Token waits for the token, as Source.Token does.
func (f *Fresh) Token(ctx context.Context) (*Token, error) {
	if f.token != nil {
		return f.token, nil
	}
	return f.source.join(ctx, f.request, f.remembered)
}

// Answered notes the status of the answer to the second request, which carried
// t. If that is 401 as well, a fresh token does not help this client with this
// operation.
func (f *Fresh) Answered(t *Token, status int) {
	st := f.source.state
	now := time.Now()
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case status == http.StatusUnauthorized:
		if until, renewed := st.rejections.hold(f.by, t, now); renewed {
			f.source.log.held(f.by.Client, until, now)
		}
	case !provesNothing(status):
		st.rejections.release(f.by)
		if f.First && !f.request.shared {
			st.rejections.refund(f.by, now)
		}
	}
}

// provesNothing reports whether an answer is not about the request: a client can
// bring an API to say 429, or 5xx, to one that it would answer 401.
func provesNothing(status int) bool {
	return status == http.StatusTooManyRequests || status >= 500
}
