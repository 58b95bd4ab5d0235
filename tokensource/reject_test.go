package tokensource_test

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

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
