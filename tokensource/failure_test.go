package tokensource_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

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
