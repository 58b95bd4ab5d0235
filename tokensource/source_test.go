package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

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

// TestTokenThatComesMeanwhile: the token came between the look at the live one
// and the wait for another.
func TestTokenThatComesMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i)
		token, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got, err := s.Wait(t.Context()); err != nil || got != token || i.count() != 1 {
				t.Errorf("token %v, error %v, %d token requests; want the one that is live", got, err, i.count())
			}
		}
	})
}
