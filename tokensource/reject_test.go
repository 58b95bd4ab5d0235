package tokensource_test

import (
	"errors"
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
// accepts says, and reports whether the client saw a 401.
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

// rejectedTwice has the API reject the token of s, and the fresh one as well:
// from then on, 401 answers are held back. It returns the fresh token.
func rejectedTwice(t *testing.T, s *tokensource.Source) *tokensource.Token {
	t.Helper()
	first, err := s.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fresh := s.Rejected(first, false)
	if fresh == nil {
		t.Fatal("the first 401 asks for no other token")
	}
	second, err := fresh.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.Rejected(second, true) != nil {
		t.Fatal("a second try is sent a third time")
	}
	return second
}

func TestRefreshesAreHeldBackFor30SecondsDoubling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, option := observed()
		i := &issuer{lifetime: 24 * time.Hour}
		s := newSource(t, i, option)
		token := rejectedTwice(t, s)
		for n, want := range []time.Duration{30, 60, 120, 240, 480, 600, 600} {
			want *= time.Second
			if got := logs.FilterMessageSnippet("rejects a fresh token").All()[n].ContextMap()["hold"]; got != want {
				t.Errorf("logged a hold of %v, want %v", got, want)
			}
			time.Sleep(want - 1)
			if s.Rejected(token, false) != nil {
				t.Fatalf("a 401 asked for another token less than %v after the last", want)
			}
			time.Sleep(time.Nanosecond)
			fresh := s.Rejected(token, false)
			if fresh == nil {
				t.Fatalf("a 401 asked for no other token after %v", want)
			}
			token, _ = fresh.Token(t.Context())
			s.Rejected(token, true)
		}

		// a second try that succeeds starts over
		time.Sleep(10 * time.Minute)
		token, _ = s.Rejected(token, false).Token(t.Context())
		s.Accepted(token, true)
		logs.TakeAll()
		rejectedTwice(t, s)
		if got := logs.All()[logs.Len()-1].ContextMap()["hold"]; got != 30*time.Second {
			t.Errorf("a hold of %v after a second try that succeeded, want 30s", got)
		}
	})
}

func TestManyRejectionsOfOneTokenCountOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, option := observed()
		i := &issuer{latency: time.Second, lifetime: 24 * time.Hour}
		s := newSource(t, i, option)
		first, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				second, err := s.Rejected(first, false).Token(t.Context())
				if err != nil {
					t.Error(err)
				}
				if s.Rejected(second, true) != nil || s.Rejected(second, false) != nil {
					t.Error("a 401 asked for another token although a fresh one was rejected as well")
				}
			})
		}
		wg.Wait()
		if got := logs.FilterMessageSnippet("rejects a fresh token").Len(); got != 1 {
			t.Errorf("logged %d times, want once", got)
		}
		time.Sleep(30 * time.Second)
		if s.Rejected(s.Live(), false) == nil {
			t.Error("a 401 asked for no other token after 30 s")
		}
	})
}

func TestFreshTokenThatNobodyTriedAgainIsHeldBackToo(t *testing.T) {
	// a body was too large to be sent again: the next request is the first to
	// carry the fresh token
	for name, worked := range map[string]bool{"it never worked": false, "it has worked": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{lifetime: time.Hour}
				s := newSource(t, i)
				first, _ := s.Token(t.Context())
				second, err := s.Rejected(first, false).Token(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if worked {
					s.Accepted(second, false)
				}
				if fresh := s.Rejected(second, false); (fresh != nil) != worked {
					t.Errorf("its 401 asks for another token: %v, want %v", fresh != nil, worked)
				}
			})
		})
	}
}

func TestRejectionDuringARefresh(t *testing.T) {
	for name, fails := range map[string]bool{"that succeeds": false, "that fails": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				recorded, record := record()
				i := &issuer{latency: time.Second, lifetime: time.Hour}
				s := newSource(t, i, record)
				s.Start()
				first, _ := s.Token(t.Context())
				time.Sleep(time.Until(s.Status().Next))
				synctest.Wait()
				if got := s.Status().Phase; got != tokensource.PhaseRefreshing || i.count() != 2 {
					t.Fatalf("%s after %d token requests, want a refresh under way", got, i.count())
				}
				if fails {
					i.set(func(i *issuer) { i.err = down })
				}

				fresh := s.Rejected(first, false)
				again := s.Rejected(first, false)
				if fresh == nil || again == nil || !fresh.First || again.First {
					t.Fatalf("got %+v and %+v, want the refresh for both, and to know which was first", fresh, again)
				}
				if s.Live() != nil {
					t.Error("the rejected token is still in use")
				}
				token, err := fresh.Token(t.Context())
				if outcomes := recorded.all(); i.count() != 2 || len(outcomes) != 2 || outcomes[1].Trigger != "refresh" {
					t.Errorf("%d token requests, want none beside the refresh", i.count())
				}
				if fails {
					if !errors.Is(err, down) || s.Live() != first {
						t.Errorf("error %v, live token %v; want the failure, and the rejected token again", err, s.Live())
					}
					return
				}
				if err != nil || token == first || s.Live() != token {
					t.Errorf("got %v, %v; want the token of the refresh", token, err)
				}
				// a 401 waited for it: that it is rejected as well counts
				s.Rejected(token, true)
				if s.Rejected(token, false) != nil {
					t.Error("a 401 asked for another token although the fresh one was rejected as well")
				}
			})
		})
	}
}

func TestFreshTokenOfARefreshIsNotHeldBack(t *testing.T) {
	// a 401 on a token that no 401 asked for is news, even on a second try
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i)
		first, _ := s.Token(t.Context())
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		fresh := s.Rejected(first, false) // late
		if fresh == nil || fresh.First {
			t.Fatalf("got %+v, want the token that is live already", fresh)
		}
		token, err := fresh.Token(t.Context())
		if err != nil || token != s.Live() || i.count() != 2 {
			t.Fatalf("token %v, error %v, %d token requests; want the live one", token, err, i.count())
		}
		if s.Rejected(token, true) != nil {
			t.Error("a second try is sent a third time")
		}
		if s.Rejected(token, false) == nil {
			t.Error("the next 401 asks for no other token")
		}
	})
}

func TestLateRejectionOfAFreshTokenHoldsNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, option := observed()
		s := newSource(t, &issuer{lifetime: time.Hour}, option)
		first, _ := s.Token(t.Context())
		second, _ := s.Rejected(first, false).Token(t.Context())
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.Rejected(second, true) != nil {
			t.Error("a second try is sent a third time")
		}
		checkSummary(t, logs)
		if s.Rejected(s.Live(), false) == nil {
			t.Error("the next 401 asks for no other token")
		}
	})
}

func TestLateRejectionOfATokenThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Minute}
		s := newSource(t, i)
		first, _ := s.Token(t.Context())
		time.Sleep(2 * time.Minute)
		second, _ := s.Token(t.Context())
		if s.Rejected(first, true) != nil {
			t.Error("a second try is sent a third time")
		}
		time.Sleep(2 * time.Minute)
		if s.Rejected(first, false) != nil || i.count() != 2 {
			t.Errorf("%d token requests; want none for a token that was replaced long ago", i.count())
		}
		if s.Rejected(second, false) == nil {
			t.Error("the 401 on the last token asks for no other")
		}
	})
}

func TestFiveInARow(t *testing.T) {
	reject := func(s *tokensource.Source, token *tokensource.Token, times int) (fresh *tokensource.Fresh) {
		for range times {
			if fresh = s.Rejected(token, false); fresh != nil {
				return fresh
			}
		}
		return nil
	}
	t.Run("and no other token can be had", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i := &issuer{lifetime: time.Hour}
			s := newSource(t, i)
			s.Start()
			token, _ := s.Token(t.Context())
			i.set(func(i *issuer) { i.err = refused })
			if _, err := reject(s, token, 1).Token(t.Context()); !errors.Is(err, refused) {
				t.Fatal(err)
			}
			if fresh := reject(s, token, 3); fresh != nil || s.Live() != token {
				t.Fatalf("after four: %v, live token %v; want the token in use", fresh, s.Live())
			}
			s.Accepted(token, false)
			if fresh := reject(s, token, 4); fresh != nil || s.Live() != token {
				t.Fatalf("after another four: %v, live token %v; want the token in use", fresh, s.Live())
			}
			if fresh := reject(s, token, 1); fresh != nil || s.Live() != nil {
				t.Errorf("after five: %v, live token %v; want none", fresh, s.Live())
			}
			if got := i.count(); got != 2 {
				t.Errorf("%d token requests, want 2", got)
			}
			// from now on another is asked for in the background
			time.Sleep(5 * time.Second)
			synctest.Wait()
			if got := i.count(); got != 3 {
				t.Errorf("%d token requests after the wait, want 3", got)
			}
		})
	})
	t.Run("while the token request is under way", func(t *testing.T) {
		for rejections, kept := range map[int]bool{4: true, 5: false} {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{latency: time.Second, lifetime: time.Hour}
				s := newSource(t, i)
				token, _ := s.Token(t.Context())
				i.set(func(i *issuer) { i.err = down })
				for range rejections {
					_ = s.Rejected(token, false)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if got := s.Live() == token; got != kept {
					t.Errorf("after %d: the token is in use again: %v, want %v", rejections, got, kept)
				}
			})
		}
	})
	t.Run("or ten, or twenty", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			i := &issuer{lifetime: 24 * time.Hour}
			s := newSource(t, i)
			token := rejectedTwice(t, s)
			if reject(s, token, 30) != nil {
				t.Error("the token never worked: it is not one that was revoked")
			}
			for _, enough := range []int{5, 10, 20} {
				s.Accepted(token, false)
				if reject(s, token, enough-1) != nil {
					t.Fatalf("less than %d in a row asked for another token", enough)
				}
				fresh := reject(s, token, 1)
				if fresh == nil {
					t.Fatalf("%d in a row asked for no other token", enough)
				}
				token, _ = fresh.Token(t.Context())
			}
			// a second try that succeeds starts over
			s.Accepted(token, true)
			rejectedTwice(t, s)
			token = s.Live()
			s.Accepted(token, false)
			if reject(s, token, 5) == nil {
				t.Error("five in a row asked for no other token")
			}
		})
	})
}
