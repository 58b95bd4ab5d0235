package tokensource_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

// by is a client with one operation.
var by = tokensource.Sender{Client: "10.0.0.1", Method: "GET", Path: "/v1/x"}

func TestInvalidation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{latency: 100 * time.Millisecond, lifetime: time.Hour}
		s := newSource(t, i)
		first, err := s.Token(t.Context())
		if err != nil {
			t.Fatal(err)
		}

		// many requests are answered 401 at once: one token request
		var fresh atomic.Int32
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				f := s.Rejected(first, by)
				next, err := f.Token(t.Context())
				if err != nil || next == first {
					t.Errorf("got %v, want a fresh token", err)
					return
				}
				f.Answered(next, 200)
				fresh.Add(1)
			})
		}
		synctest.Wait()
		if s.Live() != first {
			t.Error("the token is out of use before there is another")
		}
		wg.Wait()
		if got := i.count(); got != 2 || fresh.Load() != 100 {
			t.Fatalf("%d token requests and %d fresh tokens, want 2 and 100", got, fresh.Load())
		}

		// a late 401 for the first token does not touch the second
		next, err := s.Rejected(first, by).Token(t.Context())
		if err != nil || next.Value.Reveal() != "token-2" || i.count() != 2 {
			t.Errorf("late 401: token %v, error %v, %d requests; want token-2 again", next.Value.Reveal(), err, i.count())
		}
	})
}

// call imitates a request through the gateway to an API that answers as
// accepts says, and reports whether the client saw a 401.
func call(t *testing.T, s *tokensource.Source, by tokensource.Sender, accepts func(token string) bool) (unauthorized bool) {
	t.Helper()
	token, err := s.Token(t.Context())
	if err != nil {
		t.Errorf("no token: %v", err)
		return false
	}
	if accepts(token.Value.Reveal()) {
		if s.HoldsBack() {
			s.Accepted(by, 200)
		}
		return false
	}
	fresh := s.Rejected(token, by)
	if fresh == nil {
		return true
	}
	if token, err = fresh.Token(t.Context()); err != nil {
		return true
	}
	if accepts(token.Value.Reveal()) {
		fresh.Answered(token, 200)
		return false
	}
	fresh.Answered(token, 401)
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
			if !call(t, s, by, never) {
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
				broken := tokensource.Sender{Client: by.Client, Method: "GET", Path: "/v1/broken"}
				for n := range 900 * 50 {
					if bad(n) {
						call(t, s, broken, never)
					} else if call(t, s, by, always) {
						t.Fatal("a healthy request was answered 401")
					}
					time.Sleep(20 * time.Millisecond)
				}
				if got := i.count(); got > 9 {
					t.Errorf("%d token requests in 900 s, want at most 9", got)
				}
			})
		})
	}
}

// hostile are clients that get 401 answers to whatever they like, and what they
// call beside that.
var hostile = map[string]func(t *testing.T, s *tokensource.Source, n int){
	"one operation": func(t *testing.T, s *tokensource.Source, _ int) {
		call(t, s, tokensource.Sender{Client: "10.0.0.66", Method: "GET", Path: "/v1/forbidden"}, never)
	},
	"another operation each time": func(t *testing.T, s *tokensource.Source, n int) {
		call(t, s, tokensource.Sender{Client: "10.0.0.66", Method: "GET", Path: fmt.Sprint("/v1/", n)}, never)
	},
	"401 and 404 by turns": func(t *testing.T, s *tokensource.Source, n int) {
		call(t, s, tokensource.Sender{Client: "10.0.0.66", Method: "GET", Path: "/v1/public"}, func(string) bool { return n%2 == 0 })
	},
	"another address each time": func(t *testing.T, s *tokensource.Source, n int) {
		call(t, s, tokensource.Sender{Client: fmt.Sprint("10.66.", n%5000), Method: "GET", Path: "/v1/forbidden"}, never)
	},
}

func TestHostileClientCostsTheOthersNothing(t *testing.T) {
	for name, attack := range hostile {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				recorded, record := record()
				i := &issuer{latency: 50 * time.Millisecond, lifetime: time.Hour}
				s := newSource(t, i, record)
				s.Start()
				_, _ = s.Token(t.Context())
				var done atomic.Bool
				var wg sync.WaitGroup
				wg.Go(func() {
					for n := 0; !done.Load(); n++ {
						attack(t, s, n)
						time.Sleep(25 * time.Millisecond)
					}
				})

				// nothing is revoked: the honest client has a token all the time
				for range 5 * 60 * 10 {
					if s.Live() == nil {
						t.Fatal("there is no token in use")
					}
					if call(t, s, by, always) {
						t.Fatal("the honest client saw a 401")
					}
					time.Sleep(100 * time.Millisecond)
				}
				caused := 0
				for _, o := range recorded.all() {
					if o.Trigger == "rejected" {
						caused++
					}
				}
				t.Logf("%d token requests caused in 5 minutes", caused)
				if most := 5 * 5; name != "another address each time" && caused > most {
					t.Errorf("the hostile client caused %d token requests in 5 minutes, want at most %d", caused, most)
				}
				if most := 5 + 150; caused > most {
					t.Errorf("%d token requests in 5 minutes, want at most %d", caused, most)
				}

				// then the token is revoked
				revoked := s.Live().Value.Reveal()
				start := time.Now()
				for call(t, s, by, func(token string) bool { return token != revoked }) {
					time.Sleep(10 * time.Millisecond)
				}
				t.Logf("back after %v", time.Since(start))
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("the honest client was answered 401 for %v", took)
				}
				done.Store(true)
				wg.Wait()
			})
		})
	}
}

func TestOperationThatIsAnswered401ByTurns(t *testing.T) {
	// the second request always succeeds, as if each fresh token had helped
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i)
		for range 5 * 60 * 40 {
			n := 0
			call(t, s, by, func(string) bool { n++; return n == 2 })
			time.Sleep(25 * time.Millisecond)
		}
		if got := i.count() - 1; got > 34 {
			t.Errorf("%d token requests in 5 minutes, want 34 at most", got)
		}
	})
}

func TestRevokedDuringAnOutageOfTheTokenEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for n := range 10 {
			i := &issuer{latency: 50 * time.Millisecond, lifetime: time.Hour}
			s := newSource(t, i)
			s.Start()
			_, _, _ = get(s)
			i.set(func(i *issuer) { i.err = down })
			time.Sleep(50*time.Minute + time.Duration(n)*3*time.Second) // a refresh is due, and tried every 30 s by now
			i.set(func(i *issuer) { i.err = nil })
			revoked := s.Live().Value.Reveal()
			start := time.Now()
			for call(t, s, by, func(token string) bool { return token != revoked }) {
				time.Sleep(100 * time.Millisecond)
			}
			if took := time.Since(start); took > 4*time.Second+200*time.Millisecond {
				t.Errorf("401 for %v after the endpoint is back, want 4 s at most", took)
			}
			s.Stop()
		}
	})
}

func TestRevocationsInARow(t *testing.T) {
	// an API that forgets tokens sooner than it says: each 401 is a good reason
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i)
		for n := range 100 {
			current, _ := s.Token(t.Context())
			revoked := current.Value.Reveal()
			if call(t, s, by, func(token string) bool { return token != revoked }) {
				t.Fatalf("revocation %d: the client saw a 401", n)
			}
			time.Sleep(10 * time.Second)
		}
	})
}

func TestRejectedTokenStaysInUseWhereNoOtherCanBeHad(t *testing.T) {
	for name, err := range map[string]error{"down": down, "refused": refused} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{lifetime: 900 * time.Second}
				s := newSource(t, i)
				call(t, s, by, always)
				i.set(func(i *issuer) { i.err = err })
				for range 1000 {
					if !call(t, s, by, never) {
						t.Fatal("the client did not see the API's 401")
					}
					if token, took, err := get(s); err != nil || token != "token-1" || took != 0 {
						t.Fatalf("token %q after %v, error %v; want the old token", token, took, err)
					}
					time.Sleep(10 * time.Millisecond)
				}
				if got := i.count(); got > 6 {
					t.Errorf("%d token requests in 10 s, want at most 6", got)
				}
			})
		})
	}
}

// An operator has deleted the key with its tokens, and writes the new one to the file
// later than that.
func TestChangedSecretIsTriedAtOnceWhereTheTokenIsRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{latency: 50 * time.Millisecond, lifetime: 15 * time.Minute, secret: "old"}
		s := newSource(t, i)
		s.Start()
		_, _, _ = get(s)
		i.set(func(i *issuer) { i.err = refused })
		revoked := s.Live().Value.Reveal()
		valid := func(token string) bool { return token != revoked }
		for range 200 { // until the waits are as long as they get
			if !call(t, s, by, valid) {
				t.Fatal("the client did not see the API's 401")
			}
			time.Sleep(time.Second)
		}
		if got := i.count(); got > 20 {
			t.Errorf("%d token requests with a secret that stays the same, want 20 at most in 200 s", got)
		}
		i.set(func(i *issuer) { i.secret, i.err = "new", nil })
		start := time.Now()
		for call(t, s, by, valid) {
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(start); took > 1200*time.Millisecond {
			t.Errorf("401 for %v after the secret has changed, want a second, and what the token request takes", took)
		}
	})
}

// rejectedTwice has the API reject the token of s, and the fresh one as well. It
// returns the fresh token.
func rejectedTwice(t *testing.T, s *tokensource.Source, by tokensource.Sender) *tokensource.Token {
	t.Helper()
	first, err := s.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fresh := s.Rejected(first, by)
	if fresh == nil {
		t.Fatal("the first 401 asks for no other token")
	}
	second, err := fresh.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fresh.Answered(second, 401)
	return second
}

func TestOperationIsHeldBackLongerAndLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: 48 * time.Hour}
		s := newSource(t, i)
		token := rejectedTwice(t, s, by)
		if !s.HoldsBack() {
			t.Error("nothing is held back")
		}
		for _, want := range []time.Duration{1, 30, 60, 120, 240, 480, 600, 600} {
			want *= time.Second
			time.Sleep(want - 1)
			if s.Rejected(token, by) != nil {
				t.Fatalf("a 401 asked for another token less than %v after the last", want)
			}
			time.Sleep(time.Nanosecond)
			fresh := s.Rejected(token, by)
			if fresh == nil {
				t.Fatalf("a 401 asked for no other token after %v", want)
			}
			token, _ = fresh.Token(t.Context())
			fresh.Answered(token, 401)
		}

		// others are not held back
		for _, other := range []tokensource.Sender{
			{Client: "10.0.0.2", Method: by.Method, Path: by.Path},
			{Client: by.Client, Method: "POST", Path: by.Path},
			{Client: by.Client, Method: by.Method, Path: "/v1/y"},
		} {
			time.Sleep(20 * time.Second)
			fresh := s.Rejected(s.Live(), other)
			if fresh == nil {
				t.Fatalf("%v asks for no other token", other)
			}
			token, _ = fresh.Token(t.Context())
			fresh.Answered(token, 404)
		}

		// an answer other than 401 ends it
		time.Sleep(20 * time.Second)
		s.Accepted(by, 503)
		if s.Rejected(s.Live(), by) != nil {
			t.Error("a 503 has ended it")
		}
		s.Accepted(by, 404)
		if s.Rejected(s.Live(), by) == nil {
			t.Error("the next 401 asks for no other token")
		}
		time.Sleep(20*time.Minute + 30*time.Second)
		if s.HoldsBack() {
			t.Error("answers are watched although nothing is held back")
		}
	})
}

func TestAnswersThatProveNothing(t *testing.T) {
	// a hostile client could have its requests answered 429: that is not a success
	for _, status := range []int{429, 500, 503} {
		synctest.Test(t, func(t *testing.T) {
			i := &issuer{lifetime: time.Hour}
			s := newSource(t, i)
			for n := range 60 {
				token, _ := s.Token(t.Context())
				if fresh := s.Rejected(token, tokensource.Sender{Client: by.Client, Method: "GET", Path: fmt.Sprint(n)}); fresh != nil {
					token, _ := fresh.Token(t.Context())
					fresh.Answered(token, status)
				}
				time.Sleep(time.Second)
			}
			if got := i.count() - 1; got != 5 && got != 4 {
				t.Errorf("%d: %d token requests in a minute, want 4 or 5", status, got)
			}
		})
	}
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
		for n := range 100 {
			wg.Go(func() {
				fresh := s.Rejected(first, by)
				second, err := fresh.Token(t.Context())
				if err != nil {
					t.Error(err)
				}
				time.Sleep(time.Duration(n) * time.Second) // late answers, too
				fresh.Answered(second, 401)
			})
		}
		wg.Wait()
		if got := logs.FilterMessageSnippet("rejects a fresh token").Len(); got != 1 {
			t.Errorf("logged %d times, want once", got)
		}
		if s.Rejected(s.Live(), by) == nil {
			t.Error("a 401 asked for no other token after the first hold was over")
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
				second, err := s.Rejected(first, by).Token(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if worked {
					s.Accepted(by, 200)
				}
				if fresh := s.Rejected(second, by); (fresh != nil) != worked {
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

				fresh := s.Rejected(first, by)
				if fresh == nil || fresh.First {
					t.Fatalf("got %+v, want the refresh, which no 401 caused", fresh)
				}
				if s.Live() != first {
					t.Error("the token is out of use before there is another")
				}
				token, err := fresh.Token(t.Context())
				if outcomes := recorded.all(); i.count() != 2 || len(outcomes) != 2 || outcomes[1].Trigger != "refresh" {
					t.Errorf("%d token requests, want none beside the refresh", i.count())
				}
				if fails {
					if !errors.Is(err, down) || s.Live() != first {
						t.Errorf("error %v, live token %v; want the failure, and the token in use", err, s.Live())
					}
					return
				}
				if err != nil || token == first || s.Live() != token {
					t.Errorf("got %v, %v; want the token of the refresh", token, err)
				}
				// that it is rejected as well counts
				fresh.Answered(token, 401)
				if s.Rejected(token, by) != nil {
					t.Error("a 401 asked for another token although the fresh one was rejected as well")
				}
			})
		})
	}
}

func TestLateRejectionOfATokenThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Minute}
		s := newSource(t, i)
		first, _ := s.Token(t.Context())
		time.Sleep(2 * time.Minute)
		// it has expired: whoever is told so needs another, as any request does
		second, err := s.Rejected(first, by).Token(t.Context())
		if err != nil || i.count() != 2 {
			t.Fatalf("error %v after %d token requests, want another token", err, i.count())
		}
		i.set(func(i *issuer) { i.err = refused })
		time.Sleep(2 * time.Minute)
		if _, err := s.Rejected(second, by).Token(t.Context()); !errors.Is(err, refused) {
			t.Errorf("error %v, want the failure", err)
		}
		if s.Rejected(second, by) != nil || i.count() != 3 {
			t.Errorf("%d token requests, want none while the failure is remembered", i.count())
		}
	})
}

func TestWhatIsRememberedOfClientsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: 24 * time.Hour}
		s := newSource(t, i)
		for n := range 5000 {
			if n%100 == 0 {
				time.Sleep(2 * time.Second)
			}
			call(t, s, tokensource.Sender{Client: fmt.Sprint("10.66.", n), Method: "GET", Path: "/"}, never)
		}
		for n := range 500 {
			time.Sleep(20 * time.Second)
			call(t, s, tokensource.Sender{Client: by.Client, Method: "GET", Path: fmt.Sprint(n)}, never)
		}
		if clients, holds := s.Remembered(); clients > 1024 || holds > 1024+16 || holds == 0 {
			t.Errorf("%d clients and %d holds are remembered, want at most 1024 and 16 of one client", clients, holds)
		}
		time.Sleep(11 * time.Minute)
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		if clients, holds := s.Remembered(); clients != 0 || holds != 0 || s.HoldsBack() {
			t.Errorf("%d clients and %d holds are remembered after all have gone", clients, holds)
		}
	})
}
