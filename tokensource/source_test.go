package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// issuer is a Provider without a network: each token request takes latency and
// ends as answer says.
type issuer struct {
	latency  time.Duration
	lifetime time.Duration

	mu       sync.Mutex
	err      error
	secret   string
	hang     bool
	requests []time.Time
	same     bool // the same token again and again
}

func (*issuer) API() tokenprovider.API           { return tokenprovider.API{RateLimitWait: time.Minute} }
func (*issuer) SecretOptions() map[string]string { return nil }

func (*issuer) Grant() tokenprovider.Grant { return tokenprovider.Grant{Provider: "test"} }

func (i *issuer) WithScopes([]string) (tokenprovider.Provider, error) { return i, nil }

func (i *issuer) Secrets() ([]tokenprovider.Secret, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return []tokenprovider.Secret{tokenprovider.NewSecret(i.secret)}, nil
}

func (i *issuer) Token(ctx context.Context, _ *http.Client) (*tokenprovider.Token, error) {
	sent := time.Now()
	i.mu.Lock()
	i.requests = append(i.requests, sent)
	n, hang := len(i.requests), i.hang
	i.mu.Unlock()

	latency := i.latency
	if hang {
		latency = time.Hour
	}
	select {
	case <-time.After(latency):
	case <-ctx.Done():
		return nil, &tokenprovider.Error{Class: tokenprovider.Transient, Err: errors.New("no answer")}
	}

	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return nil, i.err
	}
	value := fmt.Sprintf("token-%d", n)
	if i.same {
		value = "token"
	}
	return &tokenprovider.Token{Value: tokenprovider.NewSecret(value), Issued: sent, Expires: sent.Add(i.lifetime)}, nil
}

func (i *issuer) set(change func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.requests)
}

// at returns when the n-th token request was made.
func (i *issuer) at(n int) time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.requests[n]
}

func newSource(t *testing.T, i *issuer, options ...func(*tokensource.Options)) *tokensource.Source {
	t.Helper()
	o := tokensource.Options{Name: "test", Provider: i, State: tokensource.NewState(), Logger: zap.NewNop()}
	for _, option := range options {
		option(&o)
	}
	s := tokensource.New(o)
	t.Cleanup(func() {
		s.Stop()
		time.Sleep(time.Minute) // in a bubble: lets the token request under way end
	})
	return s
}

var (
	down    = &tokenprovider.Error{Class: tokenprovider.Transient, Err: errors.New("connection refused")}
	refused = &tokenprovider.Error{Class: tokenprovider.Refused, Status: 401, Code: "invalid_client"}
)

// get asks for a token and tells how long that took.
func get(s *tokensource.Source) (string, time.Duration, error) {
	start := time.Now()
	token, err := s.Token(context.Background())
	took := time.Since(start)
	if err != nil {
		return "", took, err
	}
	return token.Value.Reveal(), took, nil
}

func TestOneRequestForAllWaiters(t *testing.T) {
	for _, failing := range []bool{false, true} {
		t.Run(fmt.Sprintf("failing=%v", failing), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{latency: 300 * time.Millisecond, lifetime: time.Hour}
				if failing {
					i.err = down
				}
				s := newSource(t, i)
				errs := make([]error, 1000)
				var wg sync.WaitGroup
				for n := range errs {
					wg.Go(func() {
						_, took, err := get(s)
						errs[n] = err
						if took != 300*time.Millisecond {
							t.Errorf("waited %v, want 300ms", took)
						}
					})
				}
				wg.Wait()
				if got := i.count(); got != 1 {
					t.Errorf("%d token requests, want 1", got)
				}
				for _, err := range errs {
					if failing != (err != nil) || failing && err.Error() != errs[0].Error() {
						t.Fatalf("got error %v, want the same for all: %v", err, errs[0])
					}
				}
			})
		})
	}
}

func TestNobodyWaitsAfterTheFirstToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{latency: 500 * time.Millisecond, lifetime: 6 * time.Second}
		s := newSource(t, i)
		s.Start()
		if _, _, err := get(s); err != nil {
			t.Fatal(err)
		}
		end := time.Now().Add(5 * i.lifetime)
		for time.Now().Before(end) {
			if _, took, err := get(s); err != nil || took != 0 {
				t.Fatalf("waited %v, error %v; want a token at once", took, err)
			}
			time.Sleep(7 * time.Millisecond)
		}
		// a lifetime of 6 s is renewed after 4 to 4.2 s
		if got := i.count(); got < 7 || got > 9 {
			t.Errorf("%d token requests in 5 lifetimes, want about 8", got)
		}
	})
}

func TestRefreshBefore(t *testing.T) {
	for _, c := range []struct {
		before      time.Duration
		least, most time.Duration // when the token is renewed
	}{
		{0, 60 * time.Second, 63 * time.Second}, // a third of 90 s, up to a tenth of it later
		{10 * time.Second, 80 * time.Second, 81 * time.Second},
		{80 * time.Second, 45 * time.Second, 49500 * time.Millisecond}, // at most half
	} {
		t.Run(c.before.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{lifetime: 90 * time.Second}
				s := newSource(t, i, func(o *tokensource.Options) { o.RefreshBefore = c.before })
				s.Start()
				synctest.Wait()
				for i.count() == 1 {
					time.Sleep(100 * time.Millisecond)
					if _, _, err := get(s); err != nil {
						t.Fatal(err)
					}
				}
				if at := i.at(1).Sub(i.at(0)); at < c.least || at > c.most {
					t.Errorf("renewed after %v, want between %v and %v", at, c.least, c.most)
				}
			})
		})
	}
}

func TestIdleCredentialLapses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: 90 * time.Second}
		s := newSource(t, i)
		s.Start()
		time.Sleep(time.Hour)
		idle := i.count()
		if idle > 2 {
			t.Errorf("%d token requests in an hour that nobody used the credential, want at most 2", idle)
		}
		if _, _, err := get(s); err != nil {
			t.Fatal(err)
		}
		if got := i.count(); got != idle+1 {
			t.Errorf("%d token requests after a use, want %d", got, idle+1)
		}
		// and it is kept fresh again
		time.Sleep(70 * time.Second)
		if got := i.count(); got != idle+2 {
			t.Errorf("%d token requests after the use and most of a lifetime, want %d", got, idle+2)
		}
	})
}

func TestFailedRefreshLeavesTheTokenAndIsNotRepeatedTooOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: 60 * time.Second}
		s := newSource(t, i)
		s.Start()
		synctest.Wait()
		i.set(func(i *issuer) { i.err = down })

		start := time.Now()
		failures, starved := 0, 0
		for time.Since(start) < 120*time.Second {
			token, took, err := get(s)
			switch alive := time.Since(start) < 60*time.Second; {
			case alive && (err != nil || token != "token-1" || took != 0):
				t.Fatalf("after %v: token %q after %v, error %v; want the live token", time.Since(start), token, took, err)
			case !alive && err == nil:
				t.Fatalf("after %v: got a token from nowhere", time.Since(start))
			case !alive:
				if starved == 0 {
					starved = i.count()
				}
				failures++
				var unavailable *tokensource.Error
				if !errors.As(err, &unavailable) || unavailable.Refused || unavailable.RetryAfter > 4*time.Second {
					t.Fatalf("got %v, want a transient error with a retry within 4 s", err)
				}
				if took > 50*time.Millisecond {
					t.Fatalf("failed after %v, want at once", took)
				}
			}
			time.Sleep(20 * time.Millisecond)
		}
		// refresh due 20 s before expiry: 0.5 1 2 4 8 …; starved: every 3.2 to 4 s
		if starved > 9 {
			t.Errorf("%d token requests while the token lived, want at most 9", starved)
		}
		if got := i.count() - starved; got > 20 || got < 14 {
			t.Errorf("%d token requests in 60 s without a token, want one every 3.2 to 4 s", got)
		}
		if failures == 0 {
			t.Error("no request failed")
		}

		i.set(func(i *issuer) { i.err = nil })
		back := time.Now()
		for {
			if _, _, err := get(s); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(back); took > 4100*time.Millisecond {
			t.Errorf("back after %v, want within 4 s", took)
		}
	})
}

func TestOutageOf20Seconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: 15 * time.Second}
		s := newSource(t, i)
		s.Start()
		synctest.Wait()
		before := i.count()
		i.set(func(i *issuer) { i.err = down })
		for range 20 * 200 {
			_, _, _ = get(s)
			time.Sleep(5 * time.Millisecond)
		}
		if got := i.count() - before; got > 12 {
			t.Errorf("%d token requests in the outage, want at most 12", got)
		}
	})
}

func TestHangingEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Minute, hang: true}
		s := newSource(t, i)
		_, took, err := get(s)
		if err == nil || took != tokensource.DefaultTokenTimeout {
			t.Fatalf("first request: error %v after %v, want one after token_timeout", err, took)
		}
		for range 100 {
			_, took, err := get(s)
			if err == nil || took > time.Second {
				t.Fatalf("error %v after %v, want one within a second", err, took)
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
}

func TestRefusedCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour, err: refused, secret: "wrong"}
		s := newSource(t, i)
		for range 20 * 100 {
			_, took, err := get(s)
			var unavailable *tokensource.Error
			if !errors.As(err, &unavailable) || !unavailable.Refused {
				t.Fatalf("got %v, want a refusal", err)
			}
			if took != 0 {
				t.Fatalf("answered after %v, want at once", took)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if got := i.count(); got > 4 {
			t.Errorf("%d token requests in 20 s, want at most 4", got)
		}

		// a changed secret does not wait for the backoff
		i.set(func(i *issuer) { i.err, i.secret = nil, "right" })
		time.Sleep(time.Second)
		if _, _, err := get(s); err != nil {
			t.Errorf("with the right secret: %v", err)
		}
	})
}

func TestStartGivesARefusedCredentialAnotherChance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := tokensource.NewState()
		i := &issuer{lifetime: time.Hour, err: refused}
		old := tokensource.New(tokensource.Options{Name: "old", Provider: i, State: state, Logger: zap.NewNop()})
		old.Start()
		synctest.Wait()
		old.Stop()

		i.set(func(i *issuer) { i.err = nil })
		reloaded := tokensource.New(tokensource.Options{Name: "new", Provider: i, State: state, Logger: zap.NewNop()})
		reloaded.Start()
		synctest.Wait()
		reloaded.Stop()
		if state.Current() == nil {
			t.Error("no token after a reload")
		}
	})
}

func TestRetryAfter(t *testing.T) {
	for name, c := range map[string]struct {
		err  *tokenprovider.Error
		want time.Duration
	}{
		"told":     {&tokenprovider.Error{Class: tokenprovider.Transient, Status: 503, RetryAfter: 7 * time.Second}, 7 * time.Second},
		"bare 429": {&tokenprovider.Error{Class: tokenprovider.Transient, Status: 429}, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{lifetime: time.Hour, err: c.err}
				s := newSource(t, i)
				s.Start()
				start := time.Now()
				for i.count() < 2 {
					_, _, _ = get(s)
					time.Sleep(10 * time.Millisecond)
				}
				if waited := i.at(1).Sub(start); waited < c.want || waited > c.want+20*time.Millisecond {
					t.Errorf("asked again after %v, want %v", waited, c.want)
				}
			})
		})
	}
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// each token is dead on arrival
		i := &issuer{lifetime: time.Nanosecond}
		s := newSource(t, i)
		s.Start()
		for range 1000 {
			_, _, _ = get(s)
			time.Sleep(10 * time.Millisecond)
		}
		// 5, and one for each of the 10 s and however long the waits were
		if got, most := i.count(), 5+int(time.Since(i.at(0)).Seconds())+1; got > most {
			t.Errorf("%d token requests, want at most %d", got, most)
		}
	})
}

func TestSameTokenAgainDoesNotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: 90 * time.Second, same: true}
		s := newSource(t, i)
		s.Start()
		for range 300 {
			_, _, _ = get(s)
			time.Sleep(time.Second)
		}
		if got := i.count(); got > 6 {
			t.Errorf("%d token requests in 300 s, want one a minute", got)
		}
	})
}

func TestWaiterLeavesOnItsOwnContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{latency: time.Second, lifetime: time.Hour}
		s := newSource(t, i)
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		if _, err := s.Token(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's error", err)
		}
		// the token request goes on without it
		token, took, err := get(s)
		if err != nil || token != "token-1" || took != 900*time.Millisecond {
			t.Errorf("token %q after %v, error %v; want that of the request under way", token, took, err)
		}
	})
}

func TestInvalidation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{latency: 100 * time.Millisecond, lifetime: time.Hour}
		s := newSource(t, i)
		first, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.Accepted(first, false)

		// many requests are answered 401 at once: one token request
		var fresh atomic.Int32
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				next, err := s.Rejected(first, false).Token(t.Context())
				if err != nil || next == first {
					t.Errorf("got %v, want a fresh token", err)
					return
				}
				s.Accepted(next, true)
				fresh.Add(1)
			})
		}
		wg.Wait()
		if got := i.count(); got != 2 || fresh.Load() != 100 {
			t.Fatalf("%d token requests and %d fresh tokens, want 2 and 100", got, fresh.Load())
		}

		// a late 401 for the first token does not touch the second
		next, err := s.Rejected(first, false).Token(t.Context())
		if err != nil || next.Value.Reveal() != "token-2" || i.count() != 2 {
			t.Errorf("late 401: token %v, error %v, %d requests; want token-2 again", next.Value.Reveal(), err, i.count())
		}
	})
}

// call imitates a request through the gateway to an API that answers as
// accepts says, and tells whether the client saw a 401.
func call(t *testing.T, s *tokensource.Source, accepts func(token string) bool) (unauthorized bool) {
	t.Helper()
	token, err := s.Token(t.Context())
	if err != nil {
		return false
	}
	if accepts(token.Value.Reveal()) {
		s.Accepted(token, false)
		return false
	}
	fresh := s.Rejected(token, false)
	if fresh == nil {
		return true
	}
	if token, err = fresh.Token(t.Context()); err != nil {
		return true
	}
	if accepts(token.Value.Reveal()) {
		s.Accepted(token, true)
		return false
	}
	s.Rejected(token, true)
	return true
}

func always(string) bool { return true }
func never(string) bool  { return false }

func TestAPIThatAlwaysSays401(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: 900 * time.Second}
		s := newSource(t, i)
		s.Start()
		for range 10 * 200 {
			if !call(t, s, never) {
				t.Fatal("the client did not see the API's 401")
			}
			time.Sleep(5 * time.Millisecond)
		}
		if got := i.count(); got > 3 {
			t.Errorf("%d token requests in 10 s, want at most 3", got)
		}
	})
}

func TestOneEndpointThatAlwaysSays401(t *testing.T) {
	// however the two kinds of requests are mixed
	for name, bad := range map[string]func(n int) bool{
		"every second":  func(n int) bool { return n%2 == 0 },
		"most":          func(n int) bool { return n%50 != 0 },
		"bursts":        func(n int) bool { return n/100%2 == 0 },
		"now and again": func(n int) bool { return n%400 == 0 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{lifetime: 900 * time.Second}
				s := newSource(t, i)
				s.Start()
				for n := range 900 * 50 {
					if bad(n) {
						call(t, s, never)
					} else if call(t, s, always) {
						t.Fatal("a healthy request was answered 401")
					}
					time.Sleep(20 * time.Millisecond)
				}
				if got := i.count(); got > 12 {
					t.Errorf("%d token requests in 900 s, want at most 12", got)
				}
			})
		})
	}
}

func TestRevokedTokenIsReplacedDuringAHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: 900 * time.Second}
		s := newSource(t, i)
		call(t, s, never) // begins a hold on token-2
		call(t, s, always)
		revoked := func(token string) bool { return token != "token-2" }
		saw := 0
		for range 10 {
			if call(t, s, revoked) {
				saw++
			}
		}
		if saw != 4 {
			t.Errorf("%d clients saw a 401, want 4: the fifth in a row asks for another token", saw)
		}
		if got := i.count(); got != 3 {
			t.Errorf("%d token requests, want 3", got)
		}
	})
}

func TestRejectedTokenIsBetterThanNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: 900 * time.Second}
		s := newSource(t, i)
		call(t, s, always)
		i.set(func(i *issuer) { i.err = down })
		if !call(t, s, never) {
			t.Fatal("the client did not see the API's 401")
		}
		// one endpoint says 401 while the token endpoint is down: others go on
		if token, took, err := get(s); err != nil || token != "token-1" || took != 0 {
			t.Fatalf("token %q after %v, error %v; want the old token", token, took, err)
		}
		// but 401 after 401 means that it is dead: say so
		for range 10 {
			call(t, s, never)
		}
		if _, _, err := get(s); err == nil {
			t.Error("the dead token is still in use")
		}
	})
}

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
