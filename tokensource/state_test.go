package tokensource_test

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// revoker is an issuer that can revoke.
type revoker struct {
	*issuer
	revoked []string
}

func (r *revoker) CanRevoke() bool { return true }

func (r *revoker) Revoke(_ context.Context, _ *http.Client, token tokenprovider.Secret) error {
	r.revoked = append(r.revoked, token.Reveal())
	return nil
}

func TestRetire(t *testing.T) {
	start := func(t *testing.T, revoke bool) (*revoker, *tokensource.State, *tokensource.Source) {
		r := &revoker{issuer: &issuer{latency: time.Second, lifetime: time.Hour}}
		state := tokensource.NewState()
		s := newSource(t, r.issuer, func(o *tokensource.Options) {
			o.Provider, o.State, o.RevokeOnStop = r, state, revoke
		})
		s.Start()
		return r, state, s
	}
	retire := func(state *tokensource.State) error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return state.Retire(ctx)
	}

	t.Run("waits for the requests that carry the token", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, state, s := start(t, true)
			token, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			done := s.Carry(token)
			time.AfterFunc(3*time.Second, func() {
				if len(r.revoked) > 0 {
					t.Error("revoked while a request carried it")
				}
				done()
			})
			if err := retire(state); err != nil || fmt.Sprint(r.revoked) != "[token-1]" {
				t.Errorf("revoked %v, error %v; want token-1", r.revoked, err)
			}
			// what still drains gets another
			if token, _, err := get(s); err != nil || token != "token-2" {
				t.Errorf("token %q, error %v; want another", token, err)
			}
		})
	})
	t.Run("but not for ever", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, state, s := start(t, true)
			token, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Carry(token)
			if err := retire(state); err == nil || len(r.revoked) > 0 {
				t.Errorf("revoked %v, error %v; want none and an error", r.revoked, err)
			}
		})
	})
	t.Run("waits for the token request under way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, state, s := start(t, true)
			synctest.Wait()
			s.Stop()
			if err := retire(state); err != nil || fmt.Sprint(r.revoked) != "[token-1]" {
				t.Errorf("revoked %v, error %v; want token-1", r.revoked, err)
			}
		})
	})
	t.Run("as the config that runs has it, not one that was rejected", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, state, s := start(t, true)
			if _, err := s.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
			rejected := newSource(t, r.issuer, func(o *tokensource.Options) { o.Provider, o.State = r, state })
			rejected.Start()
			rejected.Stop()
			s.Stop()
			if err := retire(state); err != nil || fmt.Sprint(r.revoked) != "[token-1]" {
				t.Errorf("revoked %v, error %v; want token-1", r.revoked, err)
			}
		})
	})
	t.Run("leaves the token to expire where nobody asks for it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, state, s := start(t, false)
			if _, err := s.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := retire(state); err != nil || len(r.revoked) > 0 {
				t.Errorf("revoked %v, error %v; want none", r.revoked, err)
			}
		})
	})
}
