// Package tokensource keeps one live token per credential: cached, refreshed
// before it expires, asked for once however many wait for it, and not asked
// for more often than the authorization server can bear.
//
// A Source belongs to one config; the State behind it survives reloads.
package tokensource

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
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

	// jitterPart of the time before expiry varies at random, so that instances
	// which started together do not refresh together.
	jitterPart = 0.1
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

	// RefreshBefore is how long before its expiry a token is replaced, at most
	// half of its lifetime. 0: a third of the lifetime.
	RefreshBefore time.Duration

	// TokenTimeout bounds one token request. 0: DefaultTokenTimeout.
	TokenTimeout time.Duration

	// RevokeOnStop has the token revoked once the state is retired. The
	// provider has to be a Revoker that can.
	RevokeOnStop bool

	// OnRequest is called after each token request, by its goroutine and with
	// no lock held. May be nil.
	OnRequest func(Request)

	Logger *zap.Logger
}

// Source hands out the live token of one credential.
type Source struct {
	opts  Options
	state *State
	log   *reporter

	stop     context.CancelFunc // ends the refreshing; nil before Start
	done     sync.WaitGroup
	farewell *farewell
}

// New returns a source. It asks for a token when Start is called or a request needs one.
func New(opts Options) *Source {
	if opts.TokenTimeout == 0 {
		opts.TokenTimeout = DefaultTokenTimeout
	}
	if opts.OnRequest == nil {
		opts.OnRequest = func(Request) {}
	}
	return &Source{
		opts:  opts,
		state: opts.State,
		log:   &reporter{logger: opts.Logger.With(zap.String("credential", opts.Name), zap.String("provider", opts.Provider.Grant().Provider))},
	}
}

// Name returns the credential's name.
func (s *Source) Name() string { return s.opts.Name }

// Provider returns the provider of the tokens.
func (s *Source) Provider() tokenprovider.Provider { return s.opts.Provider }

// Live returns the live token, or nil: an atomic load and a look at the clock.
func (s *Source) Live() *Token {
	t := s.state.current.Load()
	if t == nil || time.Until(t.Expires) <= 0 {
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

// firstUse notes that the credential is not idle, once per token: had it been
// taken for idle, the refresh is due now.
func (s *Source) firstUse(t *Token) {
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	if t.used.Swap(true) {
		return
	}
	st.lastUse = time.Now()
	st.wake()
}

// wait returns the token of the request under way or of a new one.
func (s *Source) wait(ctx context.Context) (*Token, error) {
	st := s.state
	now := time.Now()

	st.mu.Lock()
	if t := st.current.Load(); t.live() {
		st.mu.Unlock()
		return t, nil
	}
	st.lastUse = now
	if st.failure != nil && s.secretChanged(now) {
		st.failure = nil
	}
	remembered := st.failure
	f := st.flight
	if f == nil {
		if remembered != nil && now.Before(remembered.until) {
			defer st.mu.Unlock()
			return nil, s.starved(remembered)
		}
		f = s.startFlight(triggerDemand)
	}
	st.mu.Unlock()

	return s.join(ctx, f, remembered)
}

// join waits for f.
func (s *Source) join(ctx context.Context, f *flight, remembered *failure) (*Token, error) {
	var patience <-chan time.Time
	if remembered != nil {
		timer := time.NewTimer(rememberedWait)
		defer timer.Stop()
		patience = timer.C
	}
	failed := remembered
	select {
	case <-f.done:
		if f.failure == nil {
			f.token.used.Store(true)
			return f.token, nil
		}
		failed = f.failure
	case <-patience:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for a token of credential %s: %w", s.opts.Name, context.Cause(ctx))
	}
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	return nil, s.starved(failed)
}

// starved returns f as a request that fails with it sees it, and has the next
// token request made sooner for its sake. mu is held.
func (s *Source) starved(f *failure) *Error {
	if f.starve() {
		s.state.wake()
	}
	return f.error(s.opts.Name, time.Now())
}

// Carry notes that a request carries t, and returns what to call when the API
// has answered it. A token is revoked only when no request carries it.
func (s *Source) Carry(t *Token) (done func()) {
	if !s.opts.RevokeOnStop {
		return func() {}
	}
	t.carried.Add(1)
	return func() { t.carried.Add(-1) }
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
		s.state.hold = hold{}
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
	case st.flight != nil:
		st.flight.after401 = true
		return &Fresh{source: s, flight: st.flight, remembered: st.failure}
	default:
		return nil // the replacement has failed
	}

	if t.after401 && !t.held && (replay || !t.worked.Load()) {
		t.held = true
		st.hold.renew(now)
		s.log.held(st.hold.until, now)
		return nil
	}
	if replay || !st.hold.allows(t, now) {
		return nil
	}
	if st.flight == nil && st.failure != nil && now.Before(st.failure.until) {
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
	if st.flight == nil {
		s.startFlight(triggerRejected)
	}
	st.flight.after401 = true
	return &Fresh{source: s, flight: st.flight, remembered: st.failure, First: true}
}

// Fresh is a token to replay a request with, perhaps still to come.
type Fresh struct {
	source     *Source
	token      *Token
	flight     *flight
	remembered *failure

	// First says that it was this 401 that took the token out of use.
	First bool
}

// Token waits for the token, as Source.Token does.
func (f *Fresh) Token(ctx context.Context) (*Token, error) {
	if f.token != nil {
		return f.token, nil
	}
	return f.source.join(ctx, f.flight, f.remembered)
}

// secretChanged reports whether the secrets are others than those that were
// refused, looking at most every secretCheck. mu is held.
func (s *Source) secretChanged(now time.Time) bool {
	f := s.state.failure
	if f.class != tokenprovider.Refused || now.Sub(f.checked) < secretCheck {
		return false
	}
	f.checked = now
	secrets, err := s.opts.Provider.Secrets()
	return err == nil && Fingerprint(secrets) != f.fingerprint
}

// Start fetches the first token in the background and keeps it fresh until Stop.
// A credential that was refused before gets another chance: somebody may just
// have loaded a config that mends it.
func (s *Source) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel

	st := s.state
	st.mu.Lock()
	if st.failure != nil && st.failure.class == tokenprovider.Refused {
		st.failure = nil
	}
	st.lastUse = time.Now()
	s.farewell = new(farewell)
	if revoker, ok := s.opts.Provider.(tokenprovider.Revoker); ok && s.opts.RevokeOnStop {
		client := s.opts.Client
		s.farewell.revoke = func(ctx context.Context, token tokenprovider.Secret) error {
			return revoker.Revoke(ctx, client, token)
		}
	}
	st.farewells = append(st.farewells, s.farewell)
	st.mu.Unlock()

	s.done.Go(func() { s.keepFresh(ctx) })
}

// Stop ends the refreshing. Requests that still drain get tokens all the same.
func (s *Source) Stop() {
	if s.stop == nil {
		return
	}
	s.stop()
	s.done.Wait()

	// the last one stays, for Retire; that of a config which was rejected after
	// it had started is not the last
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.farewells) > 1 {
		st.farewells = slices.DeleteFunc(st.farewells, func(f *farewell) bool { return f == s.farewell })
	}
}

// keepFresh starts a token request whenever one is due.
func (s *Source) keepFresh(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	st := s.state
	for ctx.Err() == nil {
		st.mu.Lock()
		trigger, due, ok := s.next(time.Now())
		wait := time.Until(due)
		if ok && wait <= 0 {
			s.startFlight(trigger)
			ok = false
		}
		changed := st.changed
		st.mu.Unlock()

		timer.Stop()
		if ok {
			timer.Reset(wait)
		}
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// next returns the token request that is due next in the background, and when;
// ok is false if none is before something changes. mu is held.
func (s *Source) next(now time.Time) (trigger string, due time.Time, ok bool) {
	st := s.state
	if st.flight != nil {
		return "", due, false
	}
	t := st.current.Load()
	trigger, due = triggerRefresh, now
	if st.lifetime == 0 {
		trigger = triggerWarmup
	}
	if t.live() {
		due = s.refreshAt(t)
	}
	if st.failure != nil && st.failure.until.After(due) {
		due = st.failure.until
	}
	if now.Before(due) {
		return trigger, due, true
	}

	// due, unless nobody has wanted a token for a whole lifetime
	if t != nil && t.used.Swap(false) {
		st.lastUse = now
	}
	if st.lifetime != 0 && now.Sub(st.lastUse) >= st.lifetime {
		return "", due, false
	}
	return trigger, due, true
}

// refreshAt returns when t is to be replaced.
func (s *Source) refreshAt(t *Token) time.Time {
	lifetime := t.Expires.Sub(t.Issued)
	before := s.opts.RefreshBefore
	if before == 0 {
		before = lifetime / 3
	}
	before = min(before, lifetime/2)
	before -= time.Duration(float64(before) * jitterPart * t.jitter)
	return t.Expires.Add(-before)
}

// What makes a token request.
const (
	triggerWarmup   = "warmup"   // the app has started
	triggerDemand   = "demand"   // a request needs a token
	triggerRefresh  = "refresh"  // the token is about to expire
	triggerRejected = "rejected" // the API answered 401
)

// Triggers are all there are.
var Triggers = []string{triggerWarmup, triggerDemand, triggerRefresh, triggerRejected}

// flight is a token request under way, shared by all who wait for it.
type flight struct {
	trigger  string
	after401 bool // a 401 waits for it. mu of the state is held.

	done    chan struct{} // closed once either is set
	token   *Token
	failure *failure
}

// startFlight starts the one token request, detached from whatever asks for
// it. mu is held, and no flight is under way.
func (s *Source) startFlight(trigger string) *flight {
	st := s.state
	f := &flight{trigger: trigger, after401: trigger == triggerRejected, done: make(chan struct{})}
	st.flight = f
	wait := st.budget.take(time.Now())
	go s.fly(f, wait)
	return f
}

// fly makes the token request and shares its outcome.
func (s *Source) fly(f *flight, wait time.Duration) {
	st := s.state
	start := time.Now()
	issued, fingerprint, err := s.request(wait)
	now := time.Now()
	outcome := Request{Trigger: f.trigger, Took: now.Sub(start), Token: issued, Err: err}

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
	st.flight = nil
	st.wake()
	close(f.done)
	st.mu.Unlock()

	s.opts.OnRequest(outcome)
}

// obtained puts the token that f brought into use. mu is held.
func (s *Source) obtained(f *flight, now time.Time, issued *tokenprovider.Token) {
	st := s.state
	s.log.obtained(f, issued, s.opts.Provider.Grant().Scopes, st.failure, now)
	f.token = newToken(issued, rand.Float64(), f.after401) //nolint:gosec // no secret
	st.failure, st.rejected = nil, nil
	st.lifetime = issued.Expires.Sub(issued.Issued)
	st.current.Store(f.token)
}

// failed notes that f brought no token. mu is held.
func (s *Source) failed(f *flight, now time.Time, err error, fingerprint [32]byte) {
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
		f.failure.cut(live.Expires)
	case now.Sub(st.lastUse) < transientMax:
		f.failure.starve() // whoever has failed lately will try again
	}
	s.log.failed(f, before, now, live.live())
}

// request makes the token request after wait.
func (s *Source) request(wait time.Duration) (token *tokenprovider.Token, fingerprint [32]byte, err error) {
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
