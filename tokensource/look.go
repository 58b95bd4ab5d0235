package tokensource

import (
	"context"
	"crypto/sha256"
	"slices"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// lookEvery is how often an instance that uses a token looks for a newer one, and
// whether it has been revoked.
const lookEvery = time.Second

// lookSoon has the credential looked up in the background, at most once every
// lookEvery and only while it is used: whoever looks has the next use noticed. mu
// is held.
func (st *State) lookSoon() {
	s := st.newest(nil)
	if s == nil || s.opts.Shared == nil || st.looking {
		return
	}
	st.looking = true
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.opts.TokenTimeout)
		defer cancel()
		s.look(ctx)
		time.AfterFunc(lookEvery, st.noticeUse)
	}()
}

// noticeUse has the next use of the token noticed.
func (st *State) noticeUse() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.looking = false
	if t := st.current.Load(); t != nil {
		t.used.Store(false)
	}
}

// look takes over a newer token of another instance, and drops ours if it has been
// revoked.
func (s *Source) look(ctx context.Context) {
	s.tellRevoked(ctx)
	values, _ := s.read(ctx)
	if len(values) == 0 {
		return
	}
	if found, err := s.opts.Shared.Load(ctx, secretsOf(values)); err == nil {
		s.takeOver(nil, found, values)
	}
}

// drop takes our token out of use if found says that it has been revoked. mu is
// held.
func (s *Source) drop(found *SharedToken) {
	if found == nil || !found.Revoked {
		return
	}
	st := s.state
	st.revoked = digest(found.Value)
	if t := st.current.Load(); t.live() && digest(t.Value) == st.revoked {
		st.current.Store(nil)
		s.log.dropped()
		st.reschedule()
	}
}

// tellRevoked has the token marked as revoked that was revoked last, if it is not
// yet. A token that comes after it is stored after that.
func (s *Source) tellRevoked(ctx context.Context) {
	st := s.state
	select {
	case st.telling <- struct{}{}:
		defer func() { <-st.telling }()
	case <-ctx.Done():
		return
	}
	st.mu.Lock()
	t := st.untold
	st.mu.Unlock()
	if t == nil {
		return
	}
	values, _ := s.read(ctx)
	if len(values) == 0 {
		return // the next time, then
	}
	// sealed as the token was: whoever uses it can read that
	sealing := values[max(0, slices.IndexFunc(values, func(a alternative) bool { return a.fingerprint == t.fingerprint }))]
	if s.opts.Shared.Store(ctx, sealing.secrets, SharedToken{Token: t.Token, Revoked: true}) != nil {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.untold == t {
		st.untold = nil
	}
}

// digest tells tokens apart without keeping them.
func digest(token tokenprovider.Secret) [sha256.Size]byte {
	return sha256.Sum256([]byte(token.Reveal()))
}
