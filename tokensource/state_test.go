package tokensource_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
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
		return state.Retire(10*time.Second, time.Minute)
	}

	t.Run("waits for the requests that carry the token", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, state, s := start(t, true)
			token, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			done, _ := s.InUse(token)
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
	t.Run("reports that the token could not be revoked", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			able := &ablerIssuer{issuer: &issuer{lifetime: time.Hour}, able: true, latency: time.Hour}
			state := tokensource.NewState()
			s := newSource(t, able.issuer, func(o *tokensource.Options) {
				o.Provider, o.State, o.RevokeOnStop = able, state, true
			})
			s.Start()
			if _, err := s.Token(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := retire(state); err == nil {
				t.Error("a revocation without an answer is taken for one")
			}
			s.Stop()
		})
	})
	t.Run("but not for ever", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, state, s := start(t, true)
			token, err := s.Token(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			stalled, _ := s.InUse(token)
			start := time.Now()
			if err := retire(state); err != nil || fmt.Sprint(r.revoked) != "[token-1]" || time.Since(start) != 10*time.Second {
				t.Errorf("revoked %v after %v, error %v; want token-1 after 10s all the same", r.revoked, time.Since(start), err)
			}
			// a request that had taken the token, and has not been sent
			if _, ok := s.InUse(token); ok {
				t.Error("a request may carry the token that was revoked")
			}
			stalled()
			if _, ok := s.InUse(token); ok {
				t.Error("a request may carry the token that was revoked")
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

func TestRetireWaitsForEachRequestThatCarriesTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &revoker{issuer: &issuer{lifetime: time.Hour}}
		state := tokensource.NewState()
		s := newSource(t, r.issuer, func(o *tokensource.Options) { o.Provider, o.State, o.RevokeOnStop = r, state, true })
		s.Start()
		token, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		for _, after := range []time.Duration{time.Second, 2 * time.Second, 3010 * time.Millisecond} {
			done, _ := s.InUse(token)
			time.AfterFunc(after, done)
		}
		if err := state.Retire(time.Hour, time.Minute); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 3010*time.Millisecond || took > 3020*time.Millisecond {
			t.Errorf("revoked after %v, want within 20 ms of the last request", took)
		}
		if s.Live() == token {
			t.Error("the revoked token is in use")
		}
	})
}

func TestRetireDoesNotWaitForEverForATokenRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &revoker{issuer: &issuer{hang: true}}
		state := tokensource.NewState()
		s := newSource(t, r.issuer, func(o *tokensource.Options) { o.Provider, o.State, o.RevokeOnStop = r, state, true })
		s.Start()
		synctest.Wait()
		s.Stop()
		start := time.Now()
		if err := state.Retire(2*time.Second, time.Minute); err != nil || time.Since(start) != 2*time.Second {
			t.Errorf("error %v after %v, want none: there is no token to revoke", err, time.Since(start))
		}
	})
}

func TestRetireOfAStateThatNeverStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if err := tokensource.NewState().Retire(time.Hour, time.Minute); err != nil {
			t.Error(err)
		}
		newSource(t, &issuer{}).Stop() // does nothing
	})
}

// TestRetireAfterReloads: what the config says that was started last counts.
func TestRetireAfterReloads(t *testing.T) {
	for name, c := range map[string]struct{ before, after, want bool }{
		"which asks for it":              {false, true, true},
		"which no longer asks for it":    {true, false, false},
		"which asks for it as before":    {true, true, true},
		"which asks as little as before": {false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &revoker{issuer: &issuer{lifetime: time.Hour}}
				state := tokensource.NewState()
				var before *tokensource.Source
				for _, revoke := range []bool{c.before, c.after} {
					s := newSource(t, r.issuer, func(o *tokensource.Options) { o.Provider, o.State, o.RevokeOnStop = r, state, revoke })
					s.Start()
					synctest.Wait()
					if before != nil {
						before.Stop()
					}
					before = s
				}
				before.Stop()
				if err := state.Retire(time.Hour, time.Minute); err != nil || (len(r.revoked) > 0) != c.want {
					t.Errorf("revoked %v, error %v; want a token: %v", r.revoked, err, c.want)
				}
			})
		})
	}
}

func TestRetireOfAnExpiredToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &revoker{issuer: &issuer{lifetime: time.Minute}}
		state := tokensource.NewState()
		s := newSource(t, r.issuer, func(o *tokensource.Options) { o.Provider, o.State, o.RevokeOnStop = r, state, true })
		s.Start()
		synctest.Wait()
		s.Stop()
		if state.Current() == nil {
			t.Error("no live token")
		}
		time.Sleep(time.Minute)
		if state.Current() != nil {
			t.Error("the expired token is in use")
		}
		if err := state.Retire(time.Hour, time.Minute); err != nil || len(r.revoked) > 0 {
			t.Errorf("revoked %v, error %v; want none: it has expired", r.revoked, err)
		}
	})
}

func TestStatePrintsNoToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := tokensource.NewState()
		s := newSource(t, &issuer{lifetime: time.Hour}, func(o *tokensource.Options) { o.State = state })
		token, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%v %+v %#v %s", state, state, state, state); strings.Contains(got, "token-1") || strings.Count(got, "tokensource.State") != 4 {
			t.Errorf("prints as %s", got)
		}
		header := token.Authorization()
		if len(header) != 1 || header[0] != "Bearer token-1" || cap(header) != 1 {
			t.Errorf("Authorization is %q with room for %d, want one value and no more", header, cap(header))
		}
	})
}

func TestFingerprint(t *testing.T) {
	of := func(values ...string) [32]byte {
		var secrets []tokenprovider.Secret
		for _, v := range values {
			secrets = append(secrets, tokenprovider.NewSecret(v))
		}
		return tokensource.Fingerprint(secrets)
	}
	first := of("a", "b")
	if first != of("a", "b") {
		t.Error("the same secrets have two fingerprints")
	}
	// nobody outside of this process can compute it
	digest := sha256.Sum256([]byte("a"))
	guess := hmac.New(sha256.New, make([]byte, 32))
	guess.Write(digest[:])
	if got := of("a"); bytes.Equal(got[:], guess.Sum(nil)) {
		t.Error("the key is known")
	}
	seen := map[[32]byte][]string{}
	for _, values := range [][]string{nil, {""}, {"a"}, {"b"}, {"a", "b"}, {"b", "a"}, {"ab"}, {"a", "b", ""}, {"", "ab"}} {
		if same, ok := seen[of(values...)]; ok {
			t.Errorf("%q and %q have one fingerprint", values, same)
		}
		seen[of(values...)] = values
	}
}
