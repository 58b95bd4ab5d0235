package tokensource

import (
	"context"
	"errors"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// Phase says how a credential is doing.
type Phase string

const (
	PhaseFresh      Phase = "fresh"      // a live token, and the last token request succeeded
	PhaseRefreshing Phase = "refreshing" // a token request is under way
	PhaseStale      Phase = "stale"      // a live token that could not be refreshed
	PhaseExpired    Phase = "expired"    // no live token, and the last token request failed
	PhaseRefused    Phase = "refused"    // no live token, and the credential is refused
	PhaseIdle       Phase = "idle"       // no live token, and nobody has wanted one
)

// Status is how a credential is doing. It holds no secret and no token.
type Status struct {
	Phase    Phase
	Issued   time.Time // of the live token; zero without one, as are the next two
	Expires  time.Time
	Granted  []string  // nil: as asked for
	Shared   bool      // another instance obtained the live token
	Rejected bool      // the API has answered 401 to the live token, and no other could be had since
	Next     time.Time // the next token request is due; zero: when a request needs a token
	Failure  error     // of the last token request; nil if it succeeded
	Class    tokenprovider.Class
	Since    time.Time // the first of the failures in a row
	Attempts int       // failures in a row
	Requests int64     // token requests so far
	Failures int64     // of them failed
	Ready    bool      // there has been a token

	// Which value of the secret the live token was obtained with, from 1, and how many
	// are configured. Both are 0 unless there are several.
	SecretInUse, SecretValues int
}

// Status returns how the credential is doing.
func (s *Source) Status() Status {
	st := s.state
	now := time.Now()
	st.mu.Lock()
	defer st.mu.Unlock()

	status := Status{Requests: st.requests, Failures: st.failures, Ready: st.lifetime != 0}
	if t := st.current.Load(); t.live() {
		status.Issued, status.Expires, status.Granted, status.Shared = t.Issued, t.Expires, t.Scopes, t.shared
		status.Next = s.refreshAt(t)
	}
	if f := st.failure; f != nil {
		status.Failure, status.Class, status.Since, status.Attempts, status.Next = f.err, f.class, f.since, f.count, f.until
		status.Rejected = f.rejected && !status.Expires.IsZero()
	}
	live := !status.Expires.IsZero()
	if n := len(st.newest(s).providers); n > 1 {
		status.SecretValues = n
		if live {
			status.SecretInUse = st.inUse
		}
	}
	switch {
	case st.request != nil:
		status.Phase = PhaseRefreshing
	case live && st.failure == nil:
		status.Phase = PhaseFresh
	case live:
		status.Phase = PhaseStale
	case st.failure == nil || now.Sub(st.lastUse) >= st.lifetime && st.lifetime != 0:
		status.Phase = PhaseIdle
		status.Next = time.Time{}
	case st.failure.class == tokenprovider.Refused:
		status.Phase = PhaseRefused
	default:
		status.Phase = PhaseExpired
	}
	return status
}

// SecretInUse is that of Status, with the values of the secret as they are now: what
// was the first one may be the second by now, or gone, which is 0. Where they cannot
// be read until ctx ends, it is the number that the value had then.
func (s *Source) SecretInUse(ctx context.Context) int {
	number := s.Status().SecretInUse
	if number == 0 {
		return 0
	}
	values, _ := s.read(ctx)
	if len(values) == 0 {
		return number
	}
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, value := range values {
		if value.fingerprint == st.fingerprint {
			return value.number
		}
	}
	return 0
}

// Refresh makes a token request now, whatever failed before, and returns when
// it has ended. It joins one that is under way. If that fails as well, the waits
// start over; since when requests fail is not forgotten. Values of the secret are
// tried in the order in which they are configured.
func (s *Source) Refresh(ctx context.Context) error {
	st := s.state
	st.mu.Lock()
	if st.failure != nil {
		st.failure = st.failure.startOver(time.Time{})
	}
	clear(st.refusals)
	if st.request == nil {
		r := s.newRequest(triggerRefresh)
		r.source.send(r) // a token that others have is not what is asked for
	}
	r := s.requestToWaitFor(triggerRefresh)
	st.mu.Unlock()
	_, err := s.join(ctx, r, nil)
	return err
}

// ErrNotSupported says that the provider cannot do what was asked for.
var ErrNotSupported = errors.New("the provider of the credential, as it is configured, does not support that")

// ErrNoToken says that there is no live token.
var ErrNoToken = errors.New("the credential has no live token")

// Revoke revokes the live token, and has another requested. If it fails, the
// token stays in use. It takes no longer than a token request may. Where the token
// is shared, others are told.
func (s *Source) Revoke(ctx context.Context) error {
	revoker, ok := s.opts.Provider.(tokenprovider.Revoker)
	if !ok || !revoker.CanRevoke() {
		return ErrNotSupported
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.TokenTimeout)
	defer cancel()
	if s.opts.Shared != nil {
		s.look(ctx) // the one to be revoked is that which all use
	}
	st := s.state
	t := st.Current()
	if t == nil {
		return ErrNoToken
	}
	if err := st.withSecret(s.providers, revoking(ctx, s.opts.Client, t.Value)); err != nil {
		return err
	}
	s.revoked(t)
	if s.opts.Shared != nil {
		s.tellRevoked(ctx)
	}
	return nil
}

// revoked takes t out of use.
func (s *Source) revoked(t *Token) {
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.revoked = digest(t.Value); s.opts.Shared != nil {
		st.untold = t
	}
	if !st.current.CompareAndSwap(t, nil) {
		return
	}
	now := time.Now()
	if t.used.Swap(false) {
		st.lastUse = now
	}
	st.reschedule()
	if newest := st.newest(nil); newest != nil {
		newest.startDue(now) // whoever asks for the status next is told of it
	}
}

// Introspect asks the authorization server about the live token. It takes no
// longer than a token request may.
func (s *Source) Introspect(ctx context.Context) (in *tokenprovider.Introspection, err error) {
	introspector, ok := s.opts.Provider.(tokenprovider.Introspector)
	if !ok || !introspector.CanIntrospect() {
		return nil, ErrNotSupported
	}
	t := s.state.Current()
	if t == nil {
		return nil, ErrNoToken
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.TokenTimeout)
	defer cancel()
	err = s.state.withSecret(s.providers, func(p tokenprovider.Provider) error {
		introspector, ok := p.(tokenprovider.Introspector)
		if !ok {
			return ErrNotSupported
		}
		in, err = introspector.Introspect(ctx, s.opts.Client, t.Value)
		return err
	})
	return in, err
}
