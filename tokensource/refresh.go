package tokensource

import (
	"slices"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// jitterPart of the time before expiry varies at random, so that instances
// that started together do not refresh together.
const jitterPart = 0.1

// Start requests the first token in the background and keeps it fresh until
// Stop. A credential that was refused before gets another chance: somebody may
// just have loaded a config that corrects it.
func (s *Source) Start() {
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.failure != nil && st.failure.class == tokenprovider.Refused {
		st.failure = nil
	}
	st.lastUse = time.Now()
	st.started = append(st.started, s)
	st.reschedule()
}

// Stop ends the refreshing. Requests that still drain get tokens all the same.
// With the last config that uses the state, a token request that has not been
// sent is dropped unless a client waits for it.
func (s *Source) Stop() {
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	i := slices.Index(st.started, s)
	if i < 0 {
		return
	}
	st.started = slices.Delete(st.started, i, i+1)
	s.opts.Refresher.remove(s)
	if len(st.started) > 0 {
		return
	}
	st.revoke = s.revoke()
	if r := st.request; r != nil && r.source.opts.Endpoint.withdraw(r) {
		st.budget.refund()
		st.request = nil
		close(r.done)
	}
}

// reschedule has each source that was started look again at when a token
// request is due in the background. mu is held.
func (st *State) reschedule() {
	now := time.Now()
	for _, s := range st.started {
		s.opts.Refresher.set(s, s.next(now))
	}
}

// refresh starts a token request if one is due in the background.
func (s *Source) refresh() {
	st := s.state
	now := time.Now()
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.request != nil || !slices.Contains(st.started, s) || now.Before(s.next(now)) {
		return // whatever changed meanwhile has scheduled s again
	}
	// due, unless nobody has wanted a token for a whole lifetime
	if t := st.current.Load(); t != nil && t.used.Swap(false) {
		st.lastUse = now
	}
	switch {
	case st.lifetime == 0:
		s.startRequest(triggerWarmup)
	case now.Sub(st.lastUse) < st.lifetime:
		s.startRequest(triggerRefresh)
	}
}

// next returns when the next token request in the background is due, if the
// credential is in use and no token request is under way. mu is held.
func (s *Source) next(now time.Time) time.Time {
	st := s.state
	due := now
	if t := st.current.Load(); t.live() {
		due = s.refreshAt(t)
	}
	if st.failure != nil && st.failure.until.After(due) {
		due = st.failure.until
	}
	return due
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
