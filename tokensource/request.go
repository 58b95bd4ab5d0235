package tokensource

import (
	"math/rand/v2"
	"slices"
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
	Trigger    string               // warmup, demand, refresh or rejected
	Took       time.Duration        // from when it was sent
	Token      *tokenprovider.Token // nil if it failed
	Err        error                // why it failed
	Class      tokenprovider.Class  // of the failure
	Live       bool                 // there is a live token all the same
	Next       time.Duration        // until the next attempt, after a failure
	Unanswered int                  // how often it was sent again for want of an answer
	Refused    int                  // how many values of the secret were refused and another tried
	Shared     bool                 // another instance obtained the token: there was no token request
}

// tokenRequest is a token request under way, shared by all who wait for it.
type tokenRequest struct {
	source  *Source
	trigger string
	timeout time.Duration

	// mu of the endpoint is held for these.
	unsent bool // it is still to be sent
	queued bool // it has been in the queue
	waited bool // a client waits for it

	wanted chan struct{} // closed once waited is set
	by     Sender        // whose 401 has caused it, and is charged with it
	unlock func()        // gives up the lock that it is sent under; nil: there is none

	charged bool // to the budget
	refused int  // how many values of the secret were refused and another tried. mu of the state is held

	done    chan struct{} // closed once either of token and failure is set
	token   *Token
	shared  bool // the token is one that another instance has obtained
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

// startRequest starts a token request, detached from whatever asks for it. Where
// tokens are shared, one that another instance has obtained may take its place. mu
// is held, and no other token request is under way.
func (s *Source) startRequest(trigger string) *tokenRequest {
	r := s.newRequest(trigger)
	if r.source.shares() {
		go r.source.consult(r)
	} else {
		r.source.send(r)
	}
	return r
}

// newRequest returns a token request that is under way from now on. It is made as
// the config says that was loaded last, which may have mended what the others have
// wrong. mu is held.
func (s *Source) newRequest(trigger string) *tokenRequest {
	r := &tokenRequest{
		source:  s.state.newest(s),
		trigger: trigger,
		unsent:  true,
		wanted:  make(chan struct{}),
		done:    make(chan struct{}),
	}
	s.state.request = r
	return r
}

// send sends r as soon as budget and endpoint permit it. mu is held.
func (s *Source) send(r *tokenRequest) {
	timeout := s.opts.TokenTimeout
	var wait time.Duration
	if r.trigger != triggerRejected { // those have a budget of their own, and are charged already
		r.charged = true
		wait = s.state.budget.take(time.Now()) // little more than a second: requests are made one after the other
	}
	r.timeout = timeout - wait
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
}

// giveUp ends r, which was not sent for lack of budget.
func (s *Source) giveUp(r *tokenRequest) {
	s.state.mu.Lock()
	s.state.budget.refund()
	s.state.mu.Unlock()
	s.finish(r, Outcome{Err: errBudget}, attempt{})
}

// errBudget says that a token request was not sent for lack of budget.
var errBudget = &tokenprovider.Error{Class: tokenprovider.Transient, Reason: "the budget of token requests is used up"}

// run makes the token request, with a place at the endpoint, and shares its
// outcome.
func (s *Source) run(r *tokenRequest) {
	sent := time.Now()
	a, unanswered := s.exchange(r)
	s.finish(r, Outcome{Took: time.Since(sent), Token: a.token, Err: a.err, Unanswered: unanswered}, a)
}

// finish shares the outcome of r with all who wait for it, and with other instances.
func (s *Source) finish(r *tokenRequest, outcome Outcome, a attempt) {
	st := s.state
	now := time.Now()
	outcome.Trigger = r.trigger

	st.mu.Lock()
	outcome.Refused = r.refused
	st.requests += int64(1 + outcome.Unanswered + outcome.Refused)
	st.failures += int64(outcome.Unanswered + outcome.Refused)
	if outcome.Err != nil {
		s.failed(r, now, outcome.Err, a.read)
		st.failures++
		outcome.Class, outcome.Next = r.failure.class, r.failure.until.Sub(now)
		outcome.Live = st.current.Load().live()
	} else {
		s.obtained(r, now, a)
	}
	st.request = nil
	st.reschedule()
	close(r.done)
	sharer := st.newest(nil) // the config of r may have ended
	shares := r.token != nil && sharer != nil && sharer.opts.Shared != nil
	if shares {
		r.token.place, r.token.told = sharer.opts.Shared.Place(), make(chan struct{})
	}
	st.mu.Unlock()

	if s.opts.OnOutcome != nil {
		s.opts.OnOutcome(outcome)
	}
	if shares {
		sharer.share(r.token, a.used.secrets)
		close(r.token.told)
	}
	if r.unlock != nil {
		r.unlock()
	}
}

// obtained puts the token that r has obtained into use. mu is held.
func (s *Source) obtained(r *tokenRequest, now time.Time, a attempt) {
	st := s.state
	s.log.obtained(r, a.token, s.opts.Provider.Grant().Scopes, st.failure, now)
	if len(s.providers) > 1 {
		s.logSecretInUse(a)
	}
	st.tokens++
	r.token = newToken(a.token, st.tokens, rand.Float64()) //nolint:gosec // no secret
	s.use(r.token, a.used, now)
}

// use puts t into use, which was obtained with that value of the secret. mu is held.
func (s *Source) use(t *Token, value alternative, now time.Time) {
	st := s.state
	st.failure, st.fingerprint, st.inUse = nil, value.fingerprint, value.number
	t.fingerprint = value.fingerprint
	if newest := st.newest(s); newest == s {
		st.renew = nil
	} else if st.inUse = newest.numberOf(value.fingerprint); st.inUse == 0 {
		st.renew = newest
	}
	st.lifetime = t.Expires.Sub(t.Issued)
	st.rejections.forgetIdle(now)
	st.current.Store(t)
}

// failed notes that r has failed. mu is held.
func (s *Source) failed(r *tokenRequest, now time.Time, err error, values []alternative) {
	st := s.state
	before := st.failure
	f := newFailure(before, err, now, s.opts.Provider.API().RateLimitWait)
	f.checked = now
	f.rejected = r.trigger == triggerRejected || before != nil && before.rejected
	for _, a := range values {
		f.fingerprints = append(f.fingerprints, a.fingerprint)
	}
	if f.class == tokenprovider.Refused && slices.Contains(f.fingerprints, st.fingerprint) && now.Sub(f.since) < refusedDoubt {
		f.ifWanted = now.Add(transientWanted) // one of these was good: it may be the server's fault
	}
	r.failure, st.failure = f, f

	live := st.current.Load()
	switch {
	case live.live():
		f.shortenWait(live.Expires)
	case now.Sub(st.lastUse) < transientMax:
		f.shortenWait(f.ifWanted) // whoever has failed lately will try again
	}
	s.log.failed(r, before, now, live.live())
}
