package tokensource_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// TestRefreshesAreSpread: instances that started together do not refresh
// together.
func TestRefreshesAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var issuers []*issuer
		var all []*tokensource.Source
		for range 200 {
			i := &issuer{lifetime: 90 * time.Second}
			s := newSource(t, i)
			s.Start()
			issuers, all = append(issuers, i), append(all, s)
		}
		time.Sleep(65 * time.Second)
		var samples []time.Duration
		for n, i := range issuers {
			all[n].Stop()
			samples = append(samples, i.waits()[0])
		}
		// a third of the lifetime before its end, up to a tenth of that later
		checkSpread(t, "refreshed after", samples, 60*time.Second, 63*time.Second)
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

// What has failed is tried again while the token lives, whatever had asked for
// another one, and the status says when.
func TestFailureIsTriedAgainWhileTheTokenLives(t *testing.T) {
	for name, ask := range map[string]func(*testing.T, *tokensource.Source){
		"by hand": func(t *testing.T, s *tokensource.Source) {
			if err := s.Refresh(t.Context()); err == nil {
				t.Error("the refresh has not failed")
			}
		},
		"401": func(t *testing.T, s *tokensource.Source) {
			fresh := s.Rejected(s.Live(), tokensource.Sender{Client: "c", Method: "GET", Path: "/"})
			if fresh == nil {
				t.Fatal("the 401 has caused no token request")
			}
			if _, err := fresh.Token(t.Context()); err == nil {
				t.Error("the token request has not failed")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{lifetime: time.Hour}
				s := newSource(t, i)
				s.Start()
				synctest.Wait()
				before := s.Live()
				i.set(func(i *issuer) { i.err = down })
				ask(t, s)
				failed := i.count()
				got := s.Status()
				if got.Rejected != (name == "401") {
					t.Errorf("got %+v", got)
				}
				if name != "401" && s.Rejected(before, tokensource.Sender{Client: "c", Method: "GET", Path: "/"}) == nil && !s.Status().Rejected {
					t.Errorf("got %+v after a 401", s.Status())
				}
				if wait := time.Until(got.Next); got.Phase != tokensource.PhaseStale || wait <= 0 || wait > time.Second {
					t.Errorf("got %+v, want another attempt in a moment", got)
				}
				time.Sleep(10 * time.Minute) // to a wait of 30 s each
				if n := i.count() - failed; n < 20 || n > 40 || s.Live() != before {
					t.Errorf("%d token requests in ten minutes, and the token is %v", n, s.Live())
				}
				i.set(func(i *issuer) { i.err = nil })
				time.Sleep(time.Minute)
				if got := s.Status(); got.Phase != tokensource.PhaseFresh || s.Live() == before {
					t.Errorf("got %+v, want another token", got)
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
		if idle != 2 {
			t.Errorf("%d token requests in an hour that nobody used the credential, want 2: a lifetime is not over with the first token", idle)
		}
		if got := s.Status(); got.Phase != tokensource.PhaseIdle || !got.Next.IsZero() {
			t.Errorf("got %+v, want an idle credential", got)
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
		// refresh due 20 s before expiry: 0.5 1 2 4 8 …; wanted: every 3.2 to 4 s
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

func TestUseOfATokenKeepsItFresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: 90 * time.Second}
		s := newSource(t, i)
		s.Start()
		// the second token, obtained after 60 to 63 s, would be refreshed after 120
		// to 126 s: nobody has used the credential for a lifetime by then
		time.Sleep(130 * time.Second)
		if got := i.count(); got != 2 {
			t.Fatalf("%d token requests, want 2", got)
		}
		if token, took, err := get(s); err != nil || took != 0 || token != "token-2" {
			t.Fatalf("token %q after %v, error %v; want the one that is left", token, took, err)
		}
		synctest.Wait()
		if got := i.count(); got != 3 {
			t.Fatalf("%d token requests, want one as soon as the credential is used", got)
		}
		// one use is good for as long as the credential was unused before
		time.Sleep(time.Hour)
		if got := i.count(); got != 4 {
			t.Errorf("%d token requests after one use, want one more", got)
		}
		if got := s.Status().Phase; got != tokensource.PhaseIdle {
			t.Errorf("got %s, want idle", got)
		}
	})
}

func TestTokenThatWasWaitedForIsInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{latency: time.Second, lifetime: 90 * time.Second}
		s := newSource(t, i)
		s.Start()
		if _, took, err := get(s); err != nil || took != time.Second {
			t.Fatalf("error %v after %v, want the token of the start", err, took)
		}
		// used once, by the request that waited: refreshed after 60, 120 and,
		// counted from the refresh that found it used, not after 180 s
		time.Sleep(10 * time.Minute)
		if got := i.count(); got != 3 {
			t.Errorf("%d token requests, want 3", got)
		}
	})
}

func TestTriggers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		recorded, record := record()
		i := &issuer{latency: time.Second, lifetime: time.Minute}
		s := newSource(t, i, record)
		check := func(want tokensource.Outcome) {
			t.Helper()
			outcomes := recorded.all()
			if len(outcomes) == 0 {
				t.Fatal("no token request has ended")
			}
			got := outcomes[len(outcomes)-1]
			if (got.Token != nil) != (want.Err == nil) || want.Err == nil && got.Token.Value.Reveal() != fmt.Sprintf("token-%d", i.count()) {
				t.Errorf("got token %v, want the one of this request if there is one", got.Token)
			}
			got.Token = nil
			if want.Err != nil {
				if got.Next < 300*time.Millisecond || got.Next > time.Second {
					t.Errorf("%v until the next attempt", got.Next)
				}
				got.Next = 0
			}
			if got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
		s.Start()
		time.Sleep(time.Second)
		check(tokensource.Outcome{Trigger: "warmup", Took: time.Second})
		token, _ := s.Token(t.Context())
		time.Sleep(43 * time.Second)
		check(tokensource.Outcome{Trigger: "refresh", Took: time.Second})
		_, _, _ = get(s)
		i.set(func(i *issuer) { i.err, i.latency = down, 0 })
		s.Rejected(s.Live(), by)
		check(tokensource.Outcome{Trigger: "rejected", Err: down, Class: tokenprovider.Transient, Live: true})
		s.Stop()
		time.Sleep(2 * time.Minute)
		_, _, _ = get(s)
		check(tokensource.Outcome{Trigger: "demand", Err: down, Class: tokenprovider.Transient})
		if token == s.Live() {
			t.Error("the expired token is in use")
		}
		if !slices.Equal(tokensource.Triggers, []string{"warmup", "demand", "refresh", "rejected"}) {
			t.Errorf("triggers are %v", tokensource.Triggers)
		}
	})
}

func TestFirstTokenIsAskedForUntilThereIsOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		recorded, record := record()
		i := &issuer{lifetime: time.Hour, err: down}
		s := newSource(t, i, record)
		s.Start()
		time.Sleep(time.Second)
		got := recorded.all()
		if len(got) != 2 || got[0].Trigger != "warmup" || got[1].Trigger != "warmup" {
			t.Errorf("got %+v, want two attempts at a first token", got)
		}
		// nobody wants one: it goes on all the same
		time.Sleep(24 * time.Hour)
		i.set(func(i *issuer) { i.err = nil })
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if s.Live() == nil {
			t.Error("no first token after a day of failures, and half a minute without")
		}
	})
}

func TestStartOfAnotherConfig(t *testing.T) {
	t.Run("wakes a credential that lapsed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			state, i := tokensource.NewState(), &issuer{lifetime: time.Minute}
			shared := func(o *tokensource.Options) { o.State = state }
			old := newSource(t, i, shared)
			old.Start()
			time.Sleep(time.Hour)
			lapsed := i.count()
			reloaded := newSource(t, i, shared)
			reloaded.Start()
			old.Stop()
			synctest.Wait()
			if got := i.count(); got != lapsed+1 || state.Current() == nil {
				t.Errorf("%d token requests, want one", got-lapsed)
			}
		})
	})
	t.Run("makes no token request beside one under way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			state, i := tokensource.NewState(), &issuer{latency: time.Second, lifetime: time.Minute}
			shared := func(o *tokensource.Options) { o.State = state }
			for range 3 {
				s := newSource(t, i, shared)
				s.Start()
				defer s.Stop()
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if got := i.count(); got != 1 {
				t.Errorf("%d token requests, want 1", got)
			}
			// nor when the token is due
			time.Sleep(45 * time.Second)
			if got := i.count(); got != 2 {
				t.Errorf("%d token requests, want 2", got)
			}
		})
	})
	t.Run("does not forget what may pass by itself", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			state := tokensource.NewState()
			i := &issuer{lifetime: time.Hour, err: &tokenprovider.Error{Class: tokenprovider.Transient, Status: 429}}
			shared := func(o *tokensource.Options) { o.State = state }
			old := newSource(t, i, shared)
			old.Start()
			synctest.Wait()
			reloaded := newSource(t, i, shared)
			reloaded.Start()
			old.Stop()
			time.Sleep(59 * time.Second)
			if got := i.count(); got != 1 {
				t.Errorf("%d token requests within the minute that a 429 asks for, want 1", got)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if got := i.count(); got != 2 {
				t.Errorf("%d token requests after it, want 2", got)
			}
		})
	})
}

func TestStoppedSourceRefreshesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Minute}
		s := newSource(t, i)
		s.Start()
		_, _, _ = get(s)
		s.Stop()
		time.Sleep(time.Hour)
		if got := i.count(); got != 1 {
			t.Errorf("%d token requests, want 1", got)
		}
		// but requests that drain get tokens
		if token, _, err := get(s); err != nil || token != "token-2" {
			t.Errorf("token %q, error %v; want another", token, err)
		}
	})
}
