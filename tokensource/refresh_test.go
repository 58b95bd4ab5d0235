package tokensource_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

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
