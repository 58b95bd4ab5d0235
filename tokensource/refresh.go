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
// Stop. A token that was obtained with other secrets stays in use until it can be
// replaced. What failed before is tried again at once, unless the server has said
// when: somebody may just have loaded a config that corrects it.
func (s *Source) Start() {
	s.start()
	if t := s.state.Current(); t != nil {
		go s.noteUse(t) // a reload does not wait for a storage
	}
}

func (s *Source) start() {
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	now := time.Now()
	switch {
	case st.failure == nil:
	case st.failure.class == tokenprovider.Refused:
		st.failure = nil // requests wait for the next answer, as at first
	default:
		st.failure = st.failure.startOver(now)
	}
	if st.current.Load().live() {
		if st.inUse = s.numberOf(st.fingerprint); st.inUse == 0 {
			st.renew = s
		}
	}
	st.lastUse = now
	if before := st.newest(nil); before != nil {
		before.opts.Refresher.remove(before)
	}
	st.started = append(st.started, s)
	st.reschedule()
}

// Stop ends the refreshing. Requests that still drain get tokens all the same.
// With the last config that uses the state, a token request that has not been
// sent is dropped unless a client waits for it, and the token is no longer shared.
func (s *Source) Stop() {
	if !s.stop() {
		return
	}
	st := s.state
	t := st.Current()
	if t == nil || s.revoke() == nil || !s.leave(t) {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.left = t
}

// stop is Stop, but for what is done with the token. It reports whether s was the
// last that was started.
func (s *Source) stop() (last bool) {
	st := s.state
	st.mu.Lock()
	defer st.mu.Unlock()
	i := slices.Index(st.started, s)
	if i < 0 {
		return false
	}
	st.started = slices.Delete(st.started, i, i+1)
	if st.renew == s {
		st.renew = nil
	}
	s.opts.Refresher.remove(s)
	if n := len(st.started); n > 0 {
		if i == n { // a config that was given up again
			st.inUse = st.newest(nil).numberOf(st.fingerprint)
		}
		st.reschedule()
		return false
	}
	st.revoke, st.left = s.revoke(), nil
	if r := st.request; r != nil && r.source.opts.Endpoint.withdraw(r) {
		if r.charged {
			st.budget.refund()
		}
		st.request = nil
		close(r.done)
		if r.unlock != nil {
			go r.unlock()
		}
	}
	return true
}

// newest returns the source that was started last, or s if none is. mu is held.
func (st *State) newest(s *Source) *Source {
	if n := len(st.started); n > 0 {
		return st.started[n-1]
	}
	return s
}

// reschedule has the source that was started last look again at when a token
// request is due in the background. mu is held.
func (st *State) reschedule() {
	if s := st.newest(nil); s != nil {
		s.opts.Refresher.set(s, s.next(time.Now()))
	}
}

// refresh starts a token request if one is due in the background.
func (s *Source) refresh() {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	s.startDue(time.Now())
}

// startDue is refresh with mu held.
func (s *Source) startDue(now time.Time) {
	st := s.state
	if st.request != nil || s != st.newest(nil) || Until(s.next(now), now) > 0 {
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
// credential is in use and no token request is under way. What has failed is tried
// again while the token lives, too: whoever wanted another one, an operator or a
// request that the API answered with 401, still does. mu is held.
func (s *Source) next(now time.Time) time.Time {
	st := s.state
	due := now
	if t := st.current.Load(); t.live() && st.renew != s && st.failure == nil {
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
