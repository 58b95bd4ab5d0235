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

// Triggers are all there are.
var Triggers = []string{triggerWarmup, triggerDemand, triggerRefresh, triggerRejected}

// tokenRequest is a token request under way, shared by all who wait for it.
type tokenRequest struct {
	trigger  string
	after401 bool // a 401 waits for it. mu of the state is held.

	done    chan struct{} // closed once either is set
	token   *Token
	failure *failure
}

// startRequest starts the one token request, detached from whatever asks for
// it. mu is held, and no flight is under way.
func (s *Source) startRequest(trigger string) *tokenRequest {
	st := s.state
	f := &tokenRequest{trigger: trigger, after401: trigger == triggerRejected, done: make(chan struct{})}
	st.request = f
	wait := st.budget.take(time.Now())
	go s.run(f, wait)
	return f
}

// Outcome is a token request that has ended.
type Outcome struct {
	Trigger string // warmup, demand, refresh or rejected
	Took    time.Duration
	Token   *tokenprovider.Token // nil if it failed
	Err     error                // why it failed
	Class   tokenprovider.Class  // of the failure
	Live    bool                 // a live token remains all the same
	Next    time.Duration        // until the next attempt, after a failure
}

// run makes the token request and shares its outcome.
func (s *Source) run(f *tokenRequest, wait time.Duration) {
	st := s.state
	start := time.Now()
	issued, fingerprint, err := s.exchange(wait)
	now := time.Now()
	outcome := Outcome{Trigger: f.trigger, Took: now.Sub(start), Token: issued, Err: err}

	st.mu.Lock()
	st.requests++
	if err != nil {
		s.failed(f, now, err, fingerprint)
		st.failures++
		outcome.Class, outcome.Next = f.failure.class, f.failure.until.Sub(now)
		outcome.Live = st.current.Load().live()
	} else {
		s.obtained(f, now, issued)
	}
	st.request = nil
	st.wake()
	close(f.done)
	st.mu.Unlock()

	s.opts.OnOutcome(outcome)
}

// obtained puts the token that f brought into use. mu is held.
func (s *Source) obtained(f *tokenRequest, now time.Time, issued *tokenprovider.Token) {
	st := s.state
	s.log.obtained(f, issued, s.opts.Provider.Grant().Scopes, st.failure, now)
	f.token = newToken(issued, rand.Float64(), f.after401) //nolint:gosec // no secret
	st.failure, st.rejected = nil, nil
	st.lifetime = issued.Expires.Sub(issued.Issued)
	st.current.Store(f.token)
}

// failed notes that f brought no token. mu is held.
func (s *Source) failed(f *tokenRequest, now time.Time, err error, fingerprint [32]byte) {
	st := s.state
	before := st.failure
	f.failure = after(before, err, now, s.opts.Provider.API().RateLimitWait)
	f.failure.fingerprint, f.failure.checked = fingerprint, now
	st.failure = f.failure

	// a token that was rejected is better than none, unless many said the same
	if st.rejected.live() && st.rejected.streak.Load() < enough401 {
		st.current.Store(st.rejected)
	}
	st.rejected = nil

	live := st.current.Load()
	switch {
	case live.live():
		f.failure.shortenWait(live.Expires)
	case now.Sub(st.lastUse) < transientMax:
		f.failure.shortenWait(f.failure.ifWanted) // whoever has failed lately will try again
	}
	s.log.failed(f, before, now, live.live())
}

// exchange makes the token request after wait.
func (s *Source) exchange(wait time.Duration) (token *tokenprovider.Token, fingerprint [32]byte, err error) {
	defer func() {
		// this goroutine is nobody's request: a panic would end the process
		if p := recover(); p != nil {
			s.log.panicked()
			token, err = nil, &tokenprovider.Error{Class: tokenprovider.Transient, Reason: "internal error, see the log"}
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.TokenTimeout)
	defer cancel()
	if wait > 0 { // a second at most: requests are made one after the other
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			s.state.mu.Lock()
			s.state.budget.left++ // nothing was sent
			s.state.mu.Unlock()
			return nil, fingerprint, &tokenprovider.Error{Class: tokenprovider.Transient, Reason: "the budget of token requests is used up"}
		}
	}
	secrets, err := s.opts.Provider.Secrets()
	if err != nil {
		return nil, fingerprint, err
	}
	token, err = s.opts.Provider.Token(ctx, s.opts.Client)
	return token, Fingerprint(secrets), err
}
