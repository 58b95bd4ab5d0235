package tokensource

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// How long to wait after a failed token request. The wait doubles with each
// failure in a row, up to a bound.
const (
	transientFirst  = 500 * time.Millisecond
	transientMax    = 30 * time.Second // while a live token remains, or nobody wants one
	transientWanted = 4 * time.Second  // while requests fail for lack of a token
	refusedFirst    = 5 * time.Second
	refusedMax      = time.Minute
	refusedDoubt    = 30 * time.Second // how long a refusal of secrets that were good is doubted

	// backoffJitter is the part of a wait that varies at random, so that
	// instances do not march in step.
	backoffJitter = 0.2

	// secretCheck is how often a refused credential is looked at for a changed secret.
	secretCheck = time.Second
)

// Error says why there is no token.
type Error struct {
	// Credential is the credential's name.
	Credential string

	// Refused says that the authorization server will not issue a token until
	// somebody changes the credential.
	Refused bool

	// RetryAfter is when the next token request is due, from now.
	RetryAfter time.Duration

	// Err is the failure of the last token request.
	Err error
}

// Error implements error.
func (e *Error) Error() string {
	return "no token for credential " + e.Credential + ": " + e.Err.Error()
}

// Unwrap returns the failure of the last token request.
func (e *Error) Unwrap() error { return e.Err }

// failure is what a failed token request leaves behind.
type failure struct {
	err          error
	class        tokenprovider.Class
	count        int        // failures in a row
	since        time.Time  // of the first of them
	until        time.Time  // the next token request is due
	ifWanted     time.Time  // it is due then already if requests fail for lack of a token
	notBefore    time.Time  // the server does not want it any sooner
	fingerprints [][32]byte // of the values that the secret had
	checked      time.Time  // its values were last compared with them
	rejected     bool       // the API has answered 401 to the live token
}

// newFailure returns the failure that err is, given the one before it.
func newFailure(before *failure, err error, now time.Time, rateLimitWait time.Duration) *failure {
	f := &failure{err: err, class: tokenprovider.Transient, count: 1, since: now}
	if before != nil {
		f.since = before.since
	}

	var retryAfter time.Duration
	if providerErr, ok := errors.AsType[*tokenprovider.Error](err); ok {
		f.class = providerErr.Class
		retryAfter = providerErr.RetryAfter
		if providerErr.Status == 429 && retryAfter == 0 {
			retryAfter = rateLimitWait
		}
	}
	// the waits of another kind of failure start over
	if before != nil && (before.class == tokenprovider.Refused) == (f.class == tokenprovider.Refused) {
		f.count = before.count + 1
	}

	first, limit := transientFirst, transientMax
	if f.class == tokenprovider.Refused {
		first, limit = refusedFirst, refusedMax
	}
	share := 1 - backoffJitter*rand.Float64() //nolint:gosec // no secret
	after := func(wait time.Duration) time.Time { return now.Add(time.Duration(float64(wait) * share)) }
	f.until = after(backoff(f.count, first, limit))
	f.ifWanted = f.until
	if f.class != tokenprovider.Refused {
		f.ifWanted = after(backoff(f.count, first, transientWanted))
	}
	f.notBefore = now.Add(retryAfter)
	if f.until.Before(f.notBefore) {
		f.until = f.notBefore
	}
	return f
}

// backoff returns the wait after the n-th failure in a row: doubled each time.
func backoff(n int, first, limit time.Duration) time.Duration {
	wait := first
	for ; n > 1 && wait < limit; n-- {
		wait *= 2
	}
	return min(wait, limit)
}

// startOver returns f with the wait over, unless the server does not want a token
// request any sooner, and with the waits to come as after a first failure. Others
// may hold f itself.
func (f *failure) startOver(now time.Time) *failure {
	again := *f
	again.count = 0
	again.shortenWait(now)
	return &again
}

// shortenWait ends the wait at then, but not before the server allows another
// token request, and reports whether the wait is shorter now.
func (f *failure) shortenWait(then time.Time) bool {
	if then.Before(f.notBefore) {
		then = f.notBefore
	}
	if !f.until.After(then) {
		return false
	}
	f.until = then
	return true
}

// error returns the failure as those without a token see it.
func (f *failure) error(credential string, now time.Time) *Error {
	return &Error{
		Credential: credential,
		Refused:    f.class == tokenprovider.Refused,
		RetryAfter: max(Until(f.until, now), 0),
		Err:        f.err,
	}
}

// The budget of token requests, whatever asks for them; those that 401 answers
// cause have another.
const (
	budgetSize  = 5
	budgetEvery = time.Second
)

// doubtedRefusal returns the last failure if the secret has to be looked at because of
// it, which is at most every secretCheck: it was a refusal, and the secret may have
// changed. Else it returns nil. mu is held.
func (st *State) doubtedRefusal(now time.Time) *failure {
	f := st.failure
	if f == nil || f.class != tokenprovider.Refused || now.Sub(f.checked) < secretCheck {
		return nil
	}
	f.checked = now
	return f
}

// endWait ends the wait after f, a refusal, if the secret has a value by now that it
// did not have.
func (s *Source) endWait(ctx context.Context, f *failure) {
	ctx, cancel := context.WithTimeout(ctx, rememberedWait)
	defer cancel()
	values, _ := s.read(ctx)
	if !slices.ContainsFunc(values, func(a alternative) bool { return !slices.Contains(f.fingerprints, a.fingerprint) }) {
		return
	}
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	switch {
	case st.failure != f:
	case st.current.Load().live(): // no request waits for another
		st.failure = f.startOver(time.Now())
		st.reschedule()
	default:
		st.failure = nil
	}
}
