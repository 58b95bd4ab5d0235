package tokensource

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// Shared keeps the token of one credential where other instances of the gateway
// find it. What is behind it may be slow, or fail: each method returns when ctx ends
// all the same, and all but Lock in some seconds at most.
type Shared interface {
	// Place tells storages apart.
	Place() string

	// Load returns what is stored, if one of the alternatives can read it: the secrets
	// of each value that is at hand. It returns nil if that is nothing, or nothing that
	// can be used; the error says that it cannot be known.
	Load(ctx context.Context, alternatives [][]tokenprovider.Secret) (*SharedToken, error)

	// Store replaces what is stored by t, which nobody can read without the secrets.
	Store(ctx context.Context, secrets []tokenprovider.Secret, t SharedToken) error

	// Lock waits for a lock that one instance has at a time, or until ctx ends. It
	// returns what gives the lock up. Its holder may die without that, and an error
	// may be all that comes where another instance has it, so that nothing may
	// depend on getting it.
	Lock(ctx context.Context, which Lock) (unlock func(), err error)

	// Join notes that this instance uses t, until Leave. Leave reports whether no
	// other instance does, as far as can be known; then t is no longer stored.
	Join(ctx context.Context, t tokenprovider.Token)
	Leave(ctx context.Context, alternatives [][]tokenprovider.Secret, t tokenprovider.Token) (last bool)
}

// SharedToken is a token as it is stored.
type SharedToken struct {
	tokenprovider.Token

	// Revoked says that the token is dead, and stored for others to learn that.
	Revoked bool

	// Alternative is the index of the secrets that it could be read with.
	Alternative int
}

// Lock is what instances agree with on who makes a token request.
type Lock int

// The holder of the first lock may have died. Then whoever gets the second makes
// the token request.
const (
	FirstLock Lock = iota
	SecondLock
)

const (
	// A client may wait that much longer for a token because it is shared: for
	// others to obtain one, and for a last look.
	sharedPatience = 225 * time.Millisecond
	sharedLastLook = 25 * time.Millisecond

	// sharedPoll is how often an instance looks whether another, which makes a token
	// request, has obtained the token.
	sharedPoll = 50 * time.Millisecond

	// sharedTurn is how long an instance without a token waits for the first lock
	// where no client waits for the token.
	sharedTurn = 3 * time.Second

	// leaveTimeout bounds how long the end of a credential waits to know whether
	// others use its token.
	leaveTimeout = 2 * time.Second
)

// shares reports whether the token is shared with other instances. mu is held.
func (s *Source) shares() bool {
	return s.opts.Shared != nil && slices.Contains(s.state.started, s)
}

// consult takes over the token of another instance in place of r, or sends r:
// where others may do the same, as the one instance whose turn it is. It uses
// nothing of the budget, and no place at the endpoint, before r is sent.
func (s *Source) consult(r *tokenRequest) {
	ctx, cancel := s.untilImpatient(r)
	defer cancel()
	reading, cancel := context.WithTimeout(ctx, s.opts.TokenTimeout)
	defer cancel()
	s.tellRevoked(reading)
	values, _ := s.read(reading)
	if len(values) == 0 {
		s.sendConsulted(r, nil) // the request fails for the same reason, and says so
		return
	}
	found, err := s.opts.Shared.Load(ctx, secretsOf(values))
	if s.takeOver(r, found, values) {
		return
	}
	if err != nil {
		s.sendConsulted(r, nil)
		return
	}
	s.sendConsulted(r, s.awaitTurn(ctx, r, values))
}

// untilImpatient returns a context that ends some time after a client has begun
// to wait for r.
func (s *Source) untilImpatient(r *tokenRequest) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		select {
		case <-r.wanted:
		case <-ctx.Done():
			return
		}
		patience := time.NewTimer(sharedPatience)
		defer patience.Stop()
		select {
		case <-patience.C:
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// sendConsulted sends r, unless it has ended. unlock gives up the lock that it is
// sent under; nil: there is none.
func (s *Source) sendConsulted(r *tokenRequest, unlock func()) {
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.request == r {
		r.unlock = unlock
		s.send(r)
		return
	}
	if unlock != nil {
		go unlock()
	}
}

// awaitTurn waits until it is for this instance to send r, and returns what gives
// up the lock that says so; nil: there is none, and r is sent all the same. If
// another instance obtains a token meanwhile, r ends with that.
func (s *Source) awaitTurn(ctx context.Context, r *tokenRequest, values []alternative) (unlock func()) {
	turn, all := s.turns()
	ctx, cancel := context.WithTimeout(ctx, all)
	defer cancel() // a lock that is got later is given up at once
	locks := make(chan func())
	go s.awaitLock(ctx, FirstLock, locks)
	second := time.NewTimer(turn)
	defer second.Stop()
	poll := time.NewTicker(sharedPoll)
	defer poll.Stop()
	for refused := 0; refused < 2; {
		select {
		case unlock := <-locks:
			if unlock == nil {
				refused++
				continue
			}
			if s.lookFor(ctx, r, values) { // whoever had the lock before obtained a token
				unlock()
				return nil
			}
			return unlock
		case <-second.C:
			go s.awaitLock(ctx, SecondLock, locks)
		case <-poll.C:
			if s.lookFor(ctx, r, values) {
				return nil
			}
		case <-r.done: // withdrawn
			return nil
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), sharedLastLook)
			defer cancel()
			s.lookFor(last, r, values)
			return nil
		}
	}
	return nil // locks cannot be had
}

// lookFor ends r with a token that another instance has obtained, and reports
// whether there is nothing more to be done for r.
func (s *Source) lookFor(ctx context.Context, r *tokenRequest, values []alternative) (done bool) {
	found, _ := s.opts.Shared.Load(ctx, secretsOf(values))
	return s.takeOver(r, found, values)
}

// awaitLock sends what gives up the lock to locks once it has it, or nil if it
// cannot be had.
func (s *Source) awaitLock(ctx context.Context, which Lock, locks chan<- func()) {
	unlock, err := s.opts.Shared.Lock(ctx, which)
	if err != nil {
		unlock = nil
	}
	select {
	case locks <- unlock:
	case <-ctx.Done():
		if unlock != nil {
			unlock()
		}
	}
}

// turns returns how long to wait for the first lock alone, and for either in all. A
// third of what is left of the token in use is left for a token request.
func (s *Source) turns() (first, all time.Duration) {
	t := s.state.Current()
	if t == nil {
		return sharedTurn, sharedTurn + s.opts.TokenTimeout
	}
	first = min(Until(t.Expires, time.Now())/3, s.opts.TokenTimeout)
	return first, 2 * first
}

// takeOver puts a token of another instance into use, if it is of more use than
// ours, and ends r with it; r is nil without a token request. It reports
// whether there is nothing more to be done for r.
func (s *Source) takeOver(r *tokenRequest, found *SharedToken, values []alternative) (done bool) {
	st := s.state
	now := time.Now()
	st.mu.Lock()
	s.drop(found)
	if st.request != r {
		st.mu.Unlock()
		return true
	}
	newest := st.newest(nil)
	if newest == nil || newest.opts.Shared == nil || !s.prefers(found, now) { // a token that others have is not for a state that may be retired
		st.mu.Unlock()
		return false
	}
	st.tokens++
	t := newToken(&found.Token, st.tokens, rand.Float64()) //nolint:gosec // no secret
	t.shared, t.place, t.told = true, s.opts.Shared.Place(), make(chan struct{})
	s.log.tookOver(t, st.failure, now)
	s.use(t, values[found.Alternative], now)
	outcome := Outcome{Token: &t.Token, Shared: true}
	if r != nil {
		outcome.Trigger = r.trigger
		r.token, r.shared = t, true
		if r.trigger == triggerRejected {
			st.rejections.takeBack(r.by)
		}
		st.request = nil
		close(r.done)
	}
	st.reschedule()
	st.mu.Unlock()

	newest.noteUse(t)
	close(t.told)
	if s.opts.OnOutcome != nil {
		s.opts.OnOutcome(outcome)
	}
	return true
}

// prefers reports whether found is to take the place of our token. mu is held.
func (s *Source) prefers(found *SharedToken, now time.Time) bool {
	st := s.state
	if found == nil || found.Revoked || Until(found.Expires, now) <= 0 || digest(found.Value) == st.revoked {
		return false
	}
	t := st.current.Load()
	if !t.live() {
		return true
	}
	return t.Value.Reveal() != found.Value.Reveal() && (found.Issued.After(t.Issued) || st.renew == s)
}

// share stores t, which this instance has obtained with secrets.
func (s *Source) share(t *Token, secrets []tokenprovider.Secret) {
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.TokenTimeout)
	defer cancel()
	s.tellRevoked(ctx)
	err := s.opts.Shared.Store(ctx, secrets, SharedToken{Token: t.Token}) // it says itself if it fails
	if next := s.successor(); err != nil && next != nil && next.opts.Shared != nil && next.opts.Shared.Place() == s.opts.Shared.Place() {
		next.share(t, secrets) // the config of s has ended meanwhile
		return
	}
	s.noteUse(t)
}

// successor returns the source that was started last, if that is not s.
func (s *Source) successor() *Source {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	if next := s.state.newest(nil); next != s {
		return next
	}
	return nil
}

// noteUse has others know that this instance uses t, where that matters and they
// can have it.
func (s *Source) noteUse(t *Token) {
	if s.opts.RevokeOnStop && s.opts.Shared != nil && s.state.placeOf(t) == s.opts.Shared.Place() {
		s.opts.Shared.Join(context.Background(), t.Token)
	}
}

func (st *State) placeOf(t *Token) string {
	st.mu.Lock()
	defer st.mu.Unlock()
	return t.place
}

// leave reports whether t may be revoked as far as others are concerned, now that
// this instance stops using it.
func (s *Source) leave(t *Token) bool {
	switch place := s.state.placeOf(t); {
	case place == "": // nobody else has it
		return true
	case s.opts.Shared == nil || s.opts.Shared.Place() != place: // nobody knows
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	select {
	case <-t.told: // else it would be stored after it has been revoked
	case <-ctx.Done():
		return false
	}
	values, _ := s.read(ctx)
	return len(values) > 0 && s.opts.Shared.Leave(ctx, secretsOf(values), t.Token)
}
