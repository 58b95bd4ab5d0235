package tokensource

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// What makes a token request.
const (
	triggerWarmup   = "warmup"   // the app has started
	triggerDemand   = "demand"   // a request needs a token
	triggerRefresh  = "refresh"  // the token is about to expire
	triggerRejected = "rejected" // the API answered 401
)

// Triggers lists all of them.
var Triggers = []string{triggerWarmup, triggerDemand, triggerRefresh, triggerRejected}

// Outcome is a token request that has ended.
type Outcome struct {
	Trigger string               // warmup, demand, refresh or rejected
	Took    time.Duration        // from when it was sent
	Token   *tokenprovider.Token // nil if it failed
	Err     error                // why it failed
	Class   tokenprovider.Class  // of the failure
	Live    bool                 // there is a live token all the same
	Next    time.Duration        // until the next attempt, after a failure
}

// tokenRequest is a token request under way, shared by all who wait for it.
type tokenRequest struct {
	source   *Source
	trigger  string
	timeout  time.Duration
	after401 bool // a 401 waits for it; mu of the state is held

	// mu of the endpoint is held for these.
	unsent bool // it is still to be sent
	queued bool // it has been in the queue
	waited bool // a client waits for it

	done    chan struct{} // closed once either of these is set
	token   *Token
	failure *failure
}

// requestToWaitFor returns the token request under way, or a new one, for a
// client that is going to wait for it. mu is held.
func (s *Source) requestToWaitFor(trigger string) *tokenRequest {
	r := s.state.request
	if r == nil {
		r = s.startRequest(trigger)
	}
	r.source.opts.Endpoint.promote(r)
	return r
}

// startRequest starts a token request, as soon as budget and endpoint permit
// it, detached from whatever asks for it. mu is held, and no other token
// request is under way.
func (s *Source) startRequest(trigger string) *tokenRequest {
	st := s.state
	timeout := s.opts.TokenTimeout
	wait := st.budget.take(time.Now()) // little more than a second: requests are made one after the other
	r := &tokenRequest{
		source:  s,
		trigger: trigger,
		timeout: timeout - wait,
		unsent:  true,
		done:    make(chan struct{}),
	}
	st.request = r
	endpoint := s.opts.Endpoint
	switch {
	case wait == 0:
		endpoint.enqueue(r)
	case wait < timeout:
		go func() {
			time.Sleep(wait)
			endpoint.enqueue(r)
		}()
	default:
		r.unsent = false
		go func() {
			time.Sleep(timeout)
			s.giveUp(r)
		}()
	}
	return r
}

// giveUp ends r, which was not sent for lack of budget.
func (s *Source) giveUp(r *tokenRequest) {
	s.state.mu.Lock()
	s.state.budget.refund()
	s.state.mu.Unlock()
	err := &tokenprovider.Error{Class: tokenprovider.Transient, Reason: "the budget of token requests is used up"}
	s.finish(r, 0, nil, [32]byte{}, err)
}

// run makes the token request, with a place at the endpoint, and shares its
// outcome.
func (s *Source) run(r *tokenRequest) {
	sent := time.Now()
	issued, fingerprint, err := s.exchange(r.timeout)
	s.opts.Endpoint.release()
	s.finish(r, time.Since(sent), issued, fingerprint, err)
}

// exchange makes the token request.
func (s *Source) exchange(timeout time.Duration) (token *tokenprovider.Token, fingerprint [32]byte, err error) {
	defer func() {
		// no request of a client runs this: a panic would end the process
		if p := recover(); p != nil {
			s.log.panicked()
			token, err = nil, &tokenprovider.Error{Class: tokenprovider.Transient, Reason: "internal error, see the log"}
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	secrets, err := s.opts.Provider.Secrets()
	if err != nil {
		return nil, fingerprint, err
	}
	token, err = s.opts.Provider.Token(ctx, s.opts.Client)
	return token, Fingerprint(secrets), err
}

// finish shares the outcome of r with all who wait for it.
func (s *Source) finish(r *tokenRequest, took time.Duration, issued *tokenprovider.Token, fingerprint [32]byte, err error) {
	st := s.state
	now := time.Now()
	outcome := Outcome{Trigger: r.trigger, Took: took, Token: issued, Err: err}

	st.mu.Lock()
	st.requests++
	if err != nil {
		s.failed(r, now, err, fingerprint)
		st.failures++
		outcome.Class, outcome.Next = r.failure.class, r.failure.until.Sub(now)
		outcome.Live = st.current.Load().live()
	} else {
		s.obtained(r, now, issued)
	}
	st.request = nil
	st.reschedule()
	close(r.done)
	st.mu.Unlock()

	if s.opts.OnOutcome != nil {
		s.opts.OnOutcome(outcome)
	}
}

// obtained puts the token that r has obtained into use. mu is held.
func (s *Source) obtained(r *tokenRequest, now time.Time, issued *tokenprovider.Token) {
	st := s.state
	s.log.obtained(r, issued, s.opts.Provider.Grant().Scopes, st.failure, now)
	r.token = newToken(issued, rand.Float64(), r.after401) //nolint:gosec // no secret
	st.failure, st.rejected = nil, nil
	st.lifetime = issued.Expires.Sub(issued.Issued)
	st.current.Store(r.token)
}

// failed notes that r has failed. mu is held.
func (s *Source) failed(r *tokenRequest, now time.Time, err error, fingerprint [32]byte) {
	st := s.state
	before := st.failure
	f := newFailure(before, err, now, s.opts.Provider.API().RateLimitWait)
	f.fingerprint, f.checked = fingerprint, now
	r.failure, st.failure = f, f

	// a token that was rejected is better than none, unless many requests were
	// answered 401
	if st.rejected.live() && st.rejected.streak.Load() < enough401 {
		st.current.Store(st.rejected)
	}
	st.rejected = nil

	live := st.current.Load()
	switch {
	case live.live():
		f.shortenWait(live.Expires)
	case now.Sub(st.lastUse) < transientMax:
		f.shortenWait(f.ifWanted) // whoever has failed lately will try again
	}
	s.log.failed(r, before, now, live.live())
}
