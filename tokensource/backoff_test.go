package tokensource_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

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

func TestRetryAfterHoldsWhenTheTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const asked = 10 * time.Second
		i := &issuer{lifetime: 300 * time.Second}
		s := newSource(t, i)
		s.Start()
		synctest.Wait()
		i.set(func(i *issuer) {
			i.err = &tokenprovider.Error{Class: tokenprovider.Transient, Status: 503, RetryAfter: asked}
		})
		// the early refresh fails until its waits are longer than what was
		// asked for; then the token expires, and requests fail for lack of one
		for start := time.Now(); time.Since(start) < 400*time.Second; time.Sleep(100 * time.Millisecond) {
			_, _, _ = get(s)
		}
		for n := 2; n < i.count(); n++ {
			if waited := i.at(n).Sub(i.at(n - 1)); waited < asked {
				t.Errorf("token request %d came %v after the one before, want %v at least", n+1, waited, asked)
			}
		}
	})
}

func TestUsedUpBudgetIsNoFaultOfTheCredential(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// each token is dead on arrival, and nobody waits for the budget
		i := &issuer{lifetime: time.Nanosecond}
		s := newSource(t, i, func(o *tokensource.Options) { o.TokenTimeout = 100 * time.Millisecond })
		var err error
		for range 100 {
			if _, _, err = get(s); err != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		var cause *tokenprovider.Error
		if !errors.As(err, &cause) || cause.Class != tokenprovider.Transient || !strings.Contains(cause.Error(), "budget") {
			t.Errorf("got error %v, want one of the token request that names the budget", err)
		}
	})
}

func TestRequestThatIsNotMadeIsNotPaidFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// each token is dead on arrival, and the budget is not waited for
		i := &issuer{lifetime: time.Nanosecond}
		s := newSource(t, i, func(o *tokensource.Options) { o.TokenTimeout = 100 * time.Millisecond })
		start := time.Now()
		for ; time.Since(start) < time.Minute; time.Sleep(10 * time.Millisecond) {
			_, _, _ = get(s)
		}
		// 5 at once and one a second, less what the waits after failures cost
		if got := i.count(); got < 40 || got > 66 {
			t.Errorf("%d token requests in a minute, want 40 to 66", got)
		}
	})
}
