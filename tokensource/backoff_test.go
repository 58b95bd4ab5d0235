package tokensource_test

import (
	"errors"
	"slices"
	"strconv"
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
		"told":       {&tokenprovider.Error{Class: tokenprovider.Transient, Status: 503, RetryAfter: 7 * time.Second}, 7 * time.Second},
		"told a 429": {&tokenprovider.Error{Class: tokenprovider.Transient, Status: 429, RetryAfter: 7 * time.Second}, 7 * time.Second},
		"bare 429":   {&tokenprovider.Error{Class: tokenprovider.Transient, Status: 429}, time.Minute},
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

// TestWaitsAfterFailures pins the waits that the README documents.
func TestWaitsAfterFailures(t *testing.T) {
	const sources = 200
	unavailable := &tokenprovider.Error{Class: tokenprovider.Transient, Status: 503}
	seconds := func(waits ...float64) (longest []time.Duration) {
		for _, wait := range waits {
			longest = append(longest, time.Duration(wait*float64(time.Second)))
		}
		return longest
	}
	for name, c := range map[string]struct {
		live bool  // a token is live, and used once
		err  error // of all token requests but the one of that
		want bool  // requests want a token all the time
		skip int   // failures that do not count
		run  time.Duration
		most []time.Duration // after each failure; the waits are up to a fifth shorter
	}{
		"while a token is live":             {live: true, err: unavailable, run: 45 * time.Minute, most: seconds(.5, 1, 2, 4, 8, 16, 30, 30, 30)},
		"refused while a token is live":     {live: true, err: refused, run: 50 * time.Minute, most: seconds(5, 10, 20, 40, 60, 60, 60)},
		"no token, and requests want one":   {err: unavailable, want: true, run: 20 * time.Second, most: seconds(.5, 1, 2, 4, 4)},
		"no token, and nobody wants one":    {err: unavailable, skip: 15, run: 20 * time.Minute, most: seconds(30, 30, 30)},
		"refused, and requests want one":    {err: refused, want: true, run: 80 * time.Second, most: seconds(5, 10, 20, 40)},
		"an error that is not the server's": {err: errors.New("no secret"), run: 20 * time.Second, most: seconds(.5, 1, 2, 4, 4)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var all []*tokensource.Source
				var issuers []*issuer
				for range sources {
					i := &issuer{lifetime: time.Hour}
					if !c.live {
						i.err = c.err
					}
					s := newSource(t, i)
					s.Start()
					all, issuers = append(all, s), append(issuers, i)
				}
				synctest.Wait()
				for n, s := range all {
					if c.live {
						_, _, _ = get(s)
					}
					issuers[n].set(func(i *issuer) { i.err = c.err })
				}
				for start := time.Now(); c.want && time.Since(start) < c.run; time.Sleep(c.run / 400) {
					for _, s := range all {
						_, _, _ = get(s)
					}
				}
				if !c.want {
					time.Sleep(c.run)
				}
				for _, s := range all {
					s.Stop()
				}
				for n, most := range c.most {
					var samples []time.Duration
					for _, i := range issuers {
						waits := i.waits()
						if c.live {
							waits = waits[1:] // until the refresh
						}
						samples = append(samples, waits[c.skip+n])
					}
					checkSpread(t, "wait "+strconv.Itoa(n+1), samples, most*4/5, most)
				}
			})
		})
	}
}

func TestAnotherKindOfFailureStartsTheWaitsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour, err: refused}
		s := newSource(t, i)
		s.Start()
		synctest.Wait()
		start := time.Now()
		time.Sleep(time.Minute) // 5 10 20 40
		i.set(func(i *issuer) { i.err = down })
		for failures := i.count(); i.count() == failures; {
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		got := s.Status()
		if wait := time.Until(got.Next); got.Attempts != 1 || wait > 500*time.Millisecond || wait < 398*time.Millisecond {
			t.Errorf("attempt %d, and %v until the next; want the first, and half a second", got.Attempts, wait)
		}
		if !got.Since.Equal(start) {
			t.Errorf("failing since %v, want %v: the outage is the same", got.Since, start)
		}
	})
}

func TestTokenRequestIsMadeWhenTheTokenExpires(t *testing.T) {
	for name, used := range map[string]bool{"in use": true, "idle": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{lifetime: time.Minute}
				s := newSource(t, i)
				s.Start()
				synctest.Wait()
				if used {
					_, _, _ = get(s)
				}
				i.set(func(i *issuer) { i.err = down })
				time.Sleep(62 * time.Second)
				// 0.5 1 2 4 8 s after the refresh at 40 s or a little later
				synctest.Wait()
				atExpiry := slices.ContainsFunc(i.requests, func(at time.Time) bool { return at.Sub(i.at(0)) == time.Minute })
				if atExpiry != used {
					t.Errorf("a token request when the token expires: %v, want %v", atExpiry, used)
				}
				if got := i.at(i.count() - 1).Sub(i.at(0)); !used && got > time.Minute {
					t.Errorf("a token request after %v: nobody has wanted a token for a lifetime", got)
				}
			})
		})
	}
}

func TestRequestThatFailsShortensTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour, err: down}
		s := newSource(t, i)
		s.Start()
		time.Sleep(10 * time.Minute)
		time.Sleep(time.Until(s.Status().Next))
		synctest.Wait()
		failures := i.count()

		time.Sleep(time.Second)
		_, took, err := get(s)
		var unavailable *tokensource.Error
		if !errors.As(err, &unavailable) || took != 0 || i.count() != failures {
			t.Fatalf("got %v after %v, want the failure that is remembered", err, took)
		}
		if next := time.Until(s.Status().Next); unavailable.RetryAfter != next {
			t.Errorf("retry after %v, want %v", unavailable.RetryAfter, next)
		}
		time.Sleep(5 * time.Second)
		if got := i.at(failures).Sub(i.at(failures - 1)); got < 3200*time.Millisecond || got > 4*time.Second {
			t.Errorf("the next token request came %v after the one that failed, want 3.2 to 4 s", got)
		}
	})
}

func TestRequestThatFindsARetryDueWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour, err: down, latency: 200 * time.Millisecond}
		s := newSource(t, i)
		s.Start()
		time.Sleep(10 * time.Minute)
		time.Sleep(time.Until(s.Status().Next))
		time.Sleep(10 * time.Second) // of 24 to 30; longer than a wait while requests fail
		i.set(func(i *issuer) { i.err = nil })
		if token, took, err := get(s); err != nil || took != 200*time.Millisecond {
			t.Errorf("got %q after %v, error %v; want a token, as the server would issue one", token, took, err)
		}
	})
}

func TestFailureBoundsHowLongRequestsWait(t *testing.T) {
	for latency, want := range map[time.Duration]struct {
		took time.Duration
		ok   bool
	}{
		990 * time.Millisecond:  {990 * time.Millisecond, true},
		1010 * time.Millisecond: {time.Second, false},
	} {
		t.Run(latency.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{latency: latency, lifetime: time.Hour, err: down}
				s := newSource(t, i) // not started: nothing tries again by itself
				if _, took, err := get(s); err == nil || took != latency {
					t.Fatalf("error %v after %v, want one after %v: nothing is remembered yet", err, took, latency)
				}
				i.set(func(i *issuer) { i.err = nil })
				time.Sleep(time.Minute)
				if _, took, err := get(s); took != want.took || (err == nil) != want.ok {
					t.Errorf("error %v after %v, want %v, success %v", err, took, want.took, want.ok)
				}
			})
		})
	}
}

func TestTokenTimeout(t *testing.T) {
	for _, c := range []struct{ option, want time.Duration }{{0, 10 * time.Second}, {3 * time.Second, 3 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			s := newSource(t, &issuer{hang: true}, func(o *tokensource.Options) { o.TokenTimeout = c.option })
			if _, took, err := get(s); err == nil || took != c.want {
				t.Errorf("token_timeout %v: error %v after %v, want one after %v", c.option, err, took, c.want)
			}
		})
	}
}

func TestChangedSecretIsLookedForOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour, err: refused, secret: "wrong"}
		s := newSource(t, i)
		start := time.Now()
		_, _, _ = get(s)
		at := func(after time.Duration, want bool, change func(*issuer)) {
			t.Helper()
			time.Sleep(time.Until(start.Add(after)))
			if _, _, err := get(s); (err == nil) != want {
				t.Errorf("after %v: error %v, want success %v", after, err, want)
			}
			if change != nil {
				i.set(change)
			}
		}
		at(time.Second, false, func(i *issuer) { i.noSecret = errors.New("no such file") })
		at(2*time.Second, false, func(i *issuer) { i.noSecret, i.err, i.secret = nil, nil, "right" })
		at(2999*time.Millisecond, false, nil)
		if got := i.count(); got != 1 {
			t.Errorf("%d token requests, want 1: the secret has not changed", got)
		}
		at(3*time.Second, true, nil)
	})
}

func TestChangedSecretMattersToARefusalOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour, err: &tokenprovider.Error{Class: tokenprovider.Transient, Status: 429}}
		s := newSource(t, i)
		_, _, _ = get(s)
		i.set(func(i *issuer) { i.secret = "another" })
		time.Sleep(30 * time.Second)
		if _, _, err := get(s); err == nil || i.count() != 1 {
			t.Errorf("error %v, %d token requests; want no other before the minute is over", err, i.count())
		}
	})
}

func TestBudgetIsFiveAndOneASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i)
		burst := func(requests int) []time.Duration {
			start, before := time.Now(), i.count()
			for range requests {
				_ = s.Refresh(t.Context())
			}
			var at []time.Duration
			for n := before; n < i.count(); n++ {
				at = append(at, i.at(n).Sub(start))
			}
			return at
		}
		want := []time.Duration{0, 0, 0, 0, 0, time.Second, 2 * time.Second, 3 * time.Second}
		if got := burst(8); !slices.Equal(got, want) {
			t.Errorf("token requests after %v, want %v", got, want)
		}
		time.Sleep(2500 * time.Millisecond)
		want = []time.Duration{0, 0, 500 * time.Millisecond, 1500 * time.Millisecond}
		if got := burst(4); !slices.Equal(got, want) {
			t.Errorf("2.5 s later: after %v, want %v", got, want)
		}
		time.Sleep(time.Hour)
		want = []time.Duration{0, 0, 0, 0, 0, time.Second}
		if got := burst(6); !slices.Equal(got, want) {
			t.Errorf("an hour later: after %v, want %v: no more than 5 are saved up", got, want)
		}
	})
}

func TestPanicOfAProviderIsAFailedRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, option := observed()
		i := &issuer{lifetime: time.Hour, panics: true}
		s := newSource(t, i, option)
		s.Start()
		_, _, err := get(s)
		var unavailable *tokensource.Error
		if !errors.As(err, &unavailable) || unavailable.Refused || err.Error() != "no token for credential test: requesting a token failed: internal error, see the log" {
			t.Errorf("got %v, want a transient error that points to the log", err)
		}
		entries := logs.FilterMessage("a token request ended in a panic; please report this").All()
		if len(entries) != 1 || entries[0].ContextMap()["stack"] == "" {
			t.Errorf("logged %v, want the panic with its stack", entries)
		}
		i.set(func(i *issuer) { i.panics = false })
		time.Sleep(500 * time.Millisecond)
		if _, took, err := get(s); err != nil || took != 0 {
			t.Errorf("error %v after %v, want the token of the retry", err, took)
		}
	})
}
