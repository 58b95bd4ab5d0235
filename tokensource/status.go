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
	Next     time.Time // the next token request is due; zero: when a request needs a token
	Failure  error     // of the last token request; nil if it succeeded
	Class    tokenprovider.Class
	Since    time.Time // the first of the failures in a row
	Attempts int       // failures in a row
	Requests int64     // token requests so far
	Failures int64     // of them failed
	Ready    bool      // there has been a token
}

// Status returns how the credential is doing.
func (s *Source) Status() Status {
	st := s.state
	now := time.Now()
	st.mu.Lock()
	defer st.mu.Unlock()

	status := Status{Requests: st.requests, Failures: st.failures, Ready: st.lifetime != 0}
	if t := st.current.Load(); t.live() {
		status.Issued, status.Expires, status.Granted = t.Issued, t.Expires, t.Scopes
		status.Next = s.refreshAt(t)
	}
	if f := st.failure; f != nil {
		status.Failure, status.Class, status.Since, status.Attempts, status.Next = f.err, f.class, f.since, f.count, f.until
	}
	live := !status.Expires.IsZero()
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

// Refresh makes a token request now, whatever failed before, and returns when
// it has ended. It joins one that is under way. If that fails as well, the waits
// start over; since when requests fail is not forgotten.
func (s *Source) Refresh(ctx context.Context) error {
	st := s.state
	st.mu.Lock()
	if st.failure != nil {
		again := *st.failure // others may hold that one
		again.count, again.until = 0, time.Time{}
		st.failure = &again
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

// Revoke revokes the live token. The next request gets another. It takes no
// longer than a token request may.
func (s *Source) Revoke(ctx context.Context) error {
	revoker, ok := s.opts.Provider.(tokenprovider.Revoker)
	if !ok || !revoker.CanRevoke() {
		return ErrNotSupported
	}
	st := s.state
	st.mu.Lock()
	t := st.current.Load()
	if !t.live() {
		st.mu.Unlock()
		return ErrNoToken
	}
	st.current.Store(nil)
	st.reschedule()
	st.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, s.opts.TokenTimeout)
	defer cancel()
	return revoker.Revoke(ctx, s.opts.Client, t.Value)
}

// Introspect asks the authorization server about the live token. It takes no
// longer than a token request may.
func (s *Source) Introspect(ctx context.Context) (*tokenprovider.Introspection, error) {
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
	return introspector.Introspect(ctx, s.opts.Client, t.Value)
}
