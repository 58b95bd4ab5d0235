package tokensource_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// A token is used before it is stored. The end waits until it is, so that no revoked
// token is stored after it.
func TestRevokedTokenIsNotStoredAfterTheEnd(t *testing.T) {
	for _, storing := range []time.Duration{100 * time.Millisecond, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			i := &revoker{issuer: &issuer{lifetime: time.Hour}}
			stored, state := newStorage(), tokensource.NewState()
			source := tokensource.New(tokensource.Options{
				Name: "test", Provider: i, State: state, Shared: &instance{stored}, RevokeOnStop: true, Logger: zap.NewNop(),
				TokenTimeout: 10 * time.Second,
			})
			stored.storing = storing
			source.Start()
			if _, _, err := get(source); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			source.Stop()
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("the end has taken %v", took)
			}
			if err := state.Retire(time.Second, time.Second); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Minute)
			stored.set(func(s *storage) {
				if s.stored != nil && len(i.revoked) > 0 {
					t.Error("a revoked token is still stored")
				}
			})
			if storing < time.Second && len(i.revoked) != 1 {
				t.Errorf("%d tokens are revoked, want 1", len(i.revoked))
			}
		})
	}
}

// closing is the storage as an instance sees it whose config ends.
type closing struct {
	*instance
	closed atomic.Bool
}

func (c *closing) Store(ctx context.Context, secrets []tokenprovider.Secret, t tokensource.SharedToken) error {
	if err := c.wait(ctx); err != nil {
		return err
	}
	if c.closed.Load() {
		return errors.New("the config has ended")
	}
	return c.instance.Store(ctx, secrets, t)
}

// A config may end while the token that it has obtained is being stored. The next one
// stores it.
func TestTokenIsStoredWhoseConfigEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour}
		stored, state := newStorage(), tokensource.NewState()
		before := &closing{instance: &instance{stored}}
		var sources []*tokensource.Source
		for _, shared := range []tokensource.Shared{before, &closing{instance: &instance{stored}}} {
			sources = append(sources, newSource(t, i, func(o *tokensource.Options) { o.State, o.Shared = state, shared }))
		}
		sources[0].Start()
		token, _, err := get(sources[0])
		if err != nil {
			t.Fatal(err)
		}
		before.closed.Store(true)
		sources[1].Start()
		sources[0].Stop()
		time.Sleep(time.Minute)
		stored.set(func(s *storage) {
			if s.stored == nil || s.stored.Value.Reveal() != token {
				t.Errorf("stored is %v", s.stored)
			}
		})
		if n := i.count(); n != 1 {
			t.Errorf("%d token requests, want 1", n)
		}
	})
}
