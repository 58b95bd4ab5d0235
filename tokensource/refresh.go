package tokensource

import (
	"context"
	"slices"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// jitterPart of the time before expiry varies at random, so that instances
// which started together do not refresh together.
const jitterPart = 0.1

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
	s.revokeOnRetire = new(revokeOnRetire)
	if revoker, ok := s.opts.Provider.(tokenprovider.Revoker); ok && s.opts.RevokeOnStop {
		client := s.opts.Client
		s.revokeOnRetire.revoke = func(ctx context.Context, token tokenprovider.Secret) error {
			return revoker.Revoke(ctx, client, token)
		}
	}
	st.retirements = append(st.retirements, s.revokeOnRetire)
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
	if len(st.retirements) > 1 {
		st.retirements = slices.DeleteFunc(st.retirements, func(f *revokeOnRetire) bool { return f == s.revokeOnRetire })
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
			s.startRequest(trigger)
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
	if st.request != nil {
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
