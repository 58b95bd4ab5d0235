package tokenstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// These are about what becomes of a shared token as configs come and go, with the
// real source and the real store.

// issuer is a Provider without a network.
type issuer struct {
	mu       sync.Mutex
	n        int
	latency  time.Duration
	lifetime time.Duration
	err      error
	revoked  []string
}

func (*issuer) API() tokenprovider.API           { return tokenprovider.API{RateLimitWait: time.Minute} }
func (*issuer) SecretOptions() map[string]string { return nil }
func (*issuer) Grant() tokenprovider.Grant       { return tokenprovider.Grant{Provider: "test"} }
func (i *issuer) WithScopes([]string) (tokenprovider.Provider, error) {
	return i, nil
}
func (i *issuer) Secrets() ([]tokenprovider.Secret, error) { return secret("s"), nil }
func (i *issuer) Token(ctx context.Context, _ *http.Client) (*tokenprovider.Token, error) {
	sent := time.Now()
	i.mu.Lock()
	i.n++
	n, err, lat := i.n, i.err, i.latency
	i.mu.Unlock()
	if lat > 0 {
		select {
		case <-time.After(lat):
		case <-ctx.Done():
			return nil, &tokenprovider.Error{Class: tokenprovider.Transient, Err: errors.New("no answer")}
		}
	}
	if err != nil {
		return nil, err
	}
	return &tokenprovider.Token{Value: tokenprovider.NewSecret(fmt.Sprintf("token-%d", n)), Issued: sent, Expires: sent.Add(i.lifetime)}, nil
}
func (i *issuer) CanRevoke() bool { return true }
func (i *issuer) Revoke(_ context.Context, _ *http.Client, t tokenprovider.Secret) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.revoked = append(i.revoked, t.Reveal())
	return nil
}

// newSource returns a source of its own state and instance.
func newSource(i *issuer, st *tokensource.State, sh tokensource.Shared, revoke bool) *tokensource.Source {
	s := tokensource.New(tokensource.Options{Name: "test", Provider: i, State: st, Shared: sh, RevokeOnStop: revoke,
		Fingerprints: [][32]byte{tokensource.Fingerprint(secret("s"))}, Logger: zap.NewNop()})
	return s
}

// token returns the token that s has for a request.
func token(t *testing.T, s *tokensource.Source) string {
	t.Helper()
	tk, err := s.Token(context.Background())
	if err != nil {
		t.Error(err)
		return ""
	}
	return tk.Value.Reveal()
}

func TestReloadKeepsWhoUsesATokenKnown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, i := newMemory(), &issuer{lifetime: time.Hour}
		st := tokensource.NewState()
		u1, u2 := use(m), use(m)
		u2.instance = u1.instance // of the same process
		a := newSource(i, st, u1.Credential("test", identity), true)
		a.Start()
		token(t, a)
		time.Sleep(5 * time.Second)
		b := newSource(i, st, u2.Credential("test", identity), true)
		b.Start()
		a.Stop()
		u1.CloseSoon()
		u1.Close()
		for range 20 {
			token(t, b)
			time.Sleep(time.Second)
		}
		b.Stop()
		_ = st.Retire(time.Second, time.Second)
		if len(i.revoked) != 1 {
			t.Errorf("revoked %v, want token-1", i.revoked)
		}
		time.Sleep(time.Minute)
	})
}

func TestReloadThatAddsRevokeOnStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, i := newMemory(), &issuer{lifetime: time.Hour}
		sts := []*tokensource.State{tokensource.NewState(), tokensource.NewState()}
		var before, after []*tokensource.Source
		for _, st := range sts {
			s := newSource(i, st, use(m).Credential("test", identity), false)
			s.Start()
			token(t, s)
			before = append(before, s)
			time.Sleep(time.Second)
		}
		for k, st := range sts {
			s := newSource(i, st, use(m).Credential("test", identity), true)
			s.Start()
			before[k].Stop()
			after = append(after, s)
		}
		for range 20 {
			for _, s := range after {
				token(t, s)
			}
			time.Sleep(time.Second)
		}
		after[0].Stop()
		_ = sts[0].Retire(time.Second, time.Second)
		if len(i.revoked) != 0 {
			t.Errorf("revoked %v, which the other instance uses: %s", i.revoked, token(t, after[1]))
		}
		after[1].Stop()
		time.Sleep(time.Minute)
	})
}

// Who shares it there is not known any more.
func TestTokenOfAnotherStorageIsNotRevoked(t *testing.T) {
	for _, other := range []bool{false, true} {
		t.Run(fmt.Sprint(other), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, i := newMemory(), &issuer{lifetime: time.Hour}
				sta, stb := tokensource.NewState(), tokensource.NewState()
				a := newSource(i, sta, use(m).Credential("test", identity), true)
				b := newSource(i, stb, use(m).Credential("test", identity), true)
				a.Start()
				token(t, a)
				time.Sleep(time.Second)
				b.Start()
				if got := token(t, b); got != "token-1" {
					t.Fatal(got)
				}
				time.Sleep(time.Second)
				var sh tokensource.Shared
				if other {
					sh = use(newMemory()).Credential("test", identity)
				}
				a2 := newSource(i, sta, sh, true)
				a2.Start()
				a.Stop()
				time.Sleep(5 * time.Second)
				a2.Stop()
				_ = sta.Retire(time.Second, time.Second)
				if len(i.revoked) != 0 {
					t.Errorf("other storage %v: revoked %v, while the other uses %s", other, i.revoked, token(t, b))
				}
				b.Stop()
				time.Sleep(time.Minute)
			})
		})
	}
}

func TestTokenObtainedDuringAReloadIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, i := newMemory(), &issuer{lifetime: 12 * time.Second, latency: 200 * time.Millisecond}
		stb := tokensource.NewState()
		sta := tokensource.NewState()
		before := use(m)
		a := newSource(i, sta, before.Credential("test", identity), false)
		a.Start()
		time.Sleep(50 * time.Millisecond) // request under way
		a2 := newSource(i, sta, use(m).Credential("test", identity), false)
		a2.Start()
		a.Stop()
		before.Close()
		time.Sleep(time.Second)
		got := token(t, a2)
		time.Sleep(2 * time.Second)
		b := newSource(i, stb, use(m).Credential("test", identity), false)
		b.Start()
		if other := token(t, b); other != got || i.n != 1 {
			t.Errorf("a has %s, b %s, after %d token requests", got, other, i.n)
		}
		a2.Stop()
		b.Stop()
		time.Sleep(time.Minute)
	})
}

func TestStopWhileAnotherObtainsTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, i := newMemory(), &issuer{lifetime: time.Hour, latency: 100 * time.Millisecond}
		sta, stb := tokensource.NewState(), tokensource.NewState()
		a := newSource(i, sta, use(m).Credential("test", identity), true)
		b := newSource(i, stb, use(m).Credential("test", identity), true)
		b.Start()
		time.Sleep(20 * time.Millisecond) // b has the lock, and its request is under way
		a.Start()
		go func() { _, _ = a.Token(context.Background()) }()
		time.Sleep(20 * time.Millisecond)
		a.Stop()
		_ = sta.Retire(2*time.Second, 2*time.Second)
		time.Sleep(time.Second)
		if got := token(t, b); got != "token-1" || !slices.Equal(i.revoked, []string{"token-2"}) {
			t.Errorf("revoked %v, while b uses %s; want that a has revoked a token of its own", i.revoked, got)
		}
		b.Stop()
		time.Sleep(time.Minute)
	})
}

func TestOthersAreToldOfARevocationLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, i := newMemory(), &issuer{lifetime: time.Hour}
		sta, stb := tokensource.NewState(), tokensource.NewState()
		a := newSource(i, sta, use(m).Credential("test", identity), false)
		b := newSource(i, stb, use(m).Credential("test", identity), false)
		a.Start()
		token(t, a)
		time.Sleep(time.Second)
		b.Start()
		token(t, b)
		i.mu.Lock()
		i.err = &tokenprovider.Error{Class: tokenprovider.Transient, Err: errors.New("down")}
		i.mu.Unlock()
		m.set(func(m *memory) { m.fails[OperationStore] = errors.New("blip") })
		if err := a.Revoke(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		m.set(func(m *memory) { m.fails[OperationStore] = nil })
		for range 60 {
			b.Live()
			_, _ = a.Token(t.Context())
			time.Sleep(time.Second)
		}
		if b.Live() != nil {
			t.Error("b uses the revoked token a minute later")
		}
		a.Stop()
		b.Stop()
		time.Sleep(time.Minute)
	})
}
