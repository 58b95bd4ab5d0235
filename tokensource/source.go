// Package tokensource keeps one live token per credential: cached, refreshed
// before it expires, requested once however many wait for it, and not
// requested more often than the authorization server can bear.
//
// A Source belongs to one config; the State behind it survives reloads.
package tokensource

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

const (
	// DefaultTokenTimeout bounds one token request, all of it.
	DefaultTokenTimeout = 10 * time.Second

	// rememberedWait bounds how long a request waits for a retry while a
	// failure is remembered.
	rememberedWait = time.Second
)

// Options configure a Source.
type Options struct {
	// Name of the credential, for people.
	Name string

	// Provider issues the tokens, over Client.
	Provider tokenprovider.Provider
	Client   *http.Client

	// State survives the config.
	State *State

	// Fingerprints are those of the values that the provider's secret had when the
	// config was loaded, as the function of that name returns them. A token that was
	// obtained with another stays in use until it can be replaced.
	Fingerprints [][32]byte

	// Shared has the token shared with other instances of the gateway. nil: it is
	// not.
	Shared Shared

	// Refresher starts the refreshes, and those of other sources with it.
	// nil: one of its own.
	Refresher *Refresher

	// Endpoint bounds the token requests of all sources that use the same token
	// endpoint. nil: one of its own.
	Endpoint *Endpoint

	// RefreshBefore is how long before its expiry a token is replaced, at most
	// half of its lifetime. 0: a third of the lifetime.
	RefreshBefore time.Duration

	// TokenTimeout bounds one token request. 0: DefaultTokenTimeout.
	TokenTimeout time.Duration

	// RevokeOnStop has the token revoked once the state is retired. The
	// provider has to be a Revoker that can.
	RevokeOnStop bool

	// OnOutcome is called after each token request, by its goroutine and with
	// no lock held. May be nil.
	OnOutcome func(Outcome)

	Logger *zap.Logger
}

// Source hands out the live token of one credential.
type Source struct {
	opts      Options
	providers []tokenprovider.Provider // one for each value of the secret
	state     *State
	log       logger
	schedule  schedule
}

// New returns a source. It requests a token when Start is called or a request
// needs one.
func New(opts Options) *Source {
	if opts.TokenTimeout == 0 {
		opts.TokenTimeout = DefaultTokenTimeout
	}
	if opts.Refresher == nil {
		opts.Refresher = NewRefresher()
	}
	if opts.Endpoint == nil {
		opts.Endpoint = NewEndpoint()
	}
	return &Source{
		opts:      opts,
		providers: tokenprovider.Alternatives(opts.Provider),
		state:     opts.State,
		log:       logger{logger: opts.Logger, credential: opts.Name, provider: opts.Provider.Grant().Provider},
		schedule:  schedule{index: unscheduled},
	}
}

// Name returns the credential's name.
func (s *Source) Name() string { return s.opts.Name }

// Provider returns the provider of the tokens.
func (s *Source) Provider() tokenprovider.Provider { return s.opts.Provider }

// Live returns the live token, or nil: an atomic load and a look at the clock.
func (s *Source) Live() *Token {
	t := s.state.current.Load()
	if !t.live() {
		return nil
	}
	if !t.used.Load() {
		s.firstUse(t)
	}
	return t
}

// Token returns the live token. Without one it waits for the token request
// under way, or starts one, until ctx ends; while an earlier failure is
// remembered it fails with that, at once or after a second at most. The error
// is an *Error, or that of ctx.
func (s *Source) Token(ctx context.Context) (*Token, error) {
	if t := s.Live(); t != nil {
		return t, nil
	}
	return s.wait(ctx)
}

// firstUse notes, once per token, that the credential is not idle. If it was
// taken to be idle, a refresh may be due now. Where tokens are shared, it is called
// from time to time, and has the stored one looked at.
func (s *Source) firstUse(t *Token) {
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	if t.used.Swap(true) {
		return
	}
	st.lastUse = time.Now()
	st.reschedule()
	st.lookSoon()
}

// wait returns the token of the request under way, or of a new one.
func (s *Source) wait(ctx context.Context) (*Token, error) {
	st := s.state
	st.mu.Lock()
	if refusal := st.doubtedRefusal(time.Now()); refusal != nil {
		newest := st.newest(s)
		st.mu.Unlock()
		newest.endWait(ctx, refusal)
		st.mu.Lock()
	}
	now := time.Now()
	if t := st.current.Load(); t.live() {
		st.mu.Unlock()
		return t, nil
	}
	st.lastUse = now
	remembered := st.failure
	if remembered != nil && remembered.shortenWait(remembered.ifWanted) {
		st.reschedule()
	}
	if st.request == nil && remembered != nil && Until(remembered.until, now) > 0 {
		defer st.mu.Unlock()
		return nil, s.unavailable(remembered)
	}
	r := s.requestToWaitFor(triggerDemand)
	st.mu.Unlock()

	return s.join(ctx, r, remembered)
}

// join waits for r.
func (s *Source) join(ctx context.Context, r *tokenRequest, remembered *failure) (*Token, error) {
	var timeout <-chan time.Time
	if remembered != nil {
		wait := rememberedWait
		if r.source.opts.Shared != nil {
			wait += sharedPatience + sharedLastLook
		}
		timer := time.NewTimer(wait)
		defer timer.Stop()
		timeout = timer.C
	}
	failed := remembered
	select {
	case <-r.done:
		if r.failure == nil {
			if !r.token.used.Load() {
				s.firstUse(r.token)
			}
			return r.token, nil
		}
		failed = r.failure
	case <-timeout:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for a token of credential %s: %w", s.opts.Name, context.Cause(ctx))
	}
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	return nil, s.unavailable(failed)
}

// unavailable returns f as the error of a request that fails for lack of a
// token, and shortens the wait for the next token request, since one is wanted.
// mu is held.
func (s *Source) unavailable(f *failure) *Error {
	if f.shortenWait(f.ifWanted) {
		s.state.reschedule()
	}
	return f.error(s.opts.Name, time.Now())
}

// InUse notes that a request carries t, and returns what to call when the API
// has answered it: a token is not revoked while a request carries it. ok is false
// if it has been revoked meanwhile; the request then needs another.
func (s *Source) InUse(t *Token) (done func(), ok bool) {
	if !s.opts.RevokeOnStop {
		return func() {}, true
	}
	if t.inUse.Add(1) < 0 {
		t.inUse.Add(-1)
		return nil, false
	}
	return func() { t.inUse.Add(-1) }, true
}
