package tokensource_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

func TestTokenRequestThatIsNotAnsweredIsSentAgain(t *testing.T) {
	for name, c := range map[string]struct {
		unanswered int
		took       time.Duration
		failed     bool
	}{
		"once":   {1, 4 * time.Second, false},
		"twice":  {2, 8 * time.Second, false},
		"thrice": {3, 10 * time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				recorded, record := record()
				i := &issuer{lifetime: time.Hour, unanswered: c.unanswered}
				s := newSource(t, i, record)
				_, took, err := get(s)
				if took != c.took || (err != nil) != c.failed {
					t.Errorf("error %v after %v, want after %v", err, took, c.took)
				}
				outcomes := recorded.all()
				if len(outcomes) != 1 || outcomes[0].Unanswered != i.count()-1 {
					t.Errorf("outcomes %+v of %d token requests", outcomes, i.count())
				}
				if got := s.Status(); got.Requests != int64(i.count()) || got.Failures != int64(c.unanswered) {
					t.Errorf("%d token requests, of which %d failed; want %d and %d", got.Requests, got.Failures, i.count(), c.unanswered)
				}
			})
		})
	}
}

func TestAnswerThatIsAFailureCountsToo(t *testing.T) {
	limited := &tokenprovider.Error{Class: tokenprovider.Transient, Status: 429, RetryAfter: time.Minute}
	for _, failure := range []error{limited, refused, down} {
		synctest.Test(t, func(t *testing.T) {
			i := &issuer{lifetime: time.Hour, unanswered: 1, err: failure}
			s := newSource(t, i)
			if _, took, err := get(s); !errors.Is(err, failure) || took != 4*time.Second || i.count() != 2 {
				t.Errorf("error %v after %v and %d token requests, want %v after 4s and 2", err, took, i.count(), failure)
			}
			if next := time.Until(s.Status().Next); errors.Is(failure, limited) && next != time.Minute {
				t.Errorf("the next token request is due in %v, want 1m", next)
			}
		})
	}
}

func TestTokenRequestThatA401CausesIsSentOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i)
		token, _ := s.Token(t.Context())
		i.set(func(i *issuer) { i.hang = true })
		if _, err := s.Rejected(token, by).Token(t.Context()); err == nil || i.count() != 2 {
			t.Errorf("error %v after %d token requests, want 1 for the 401", err, i.count()-1)
		}
	})
}

func TestTokenRequestThatNobodyWaitsForIsSentOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour, hang: true}
		s := newSource(t, i)
		s.Start()
		time.Sleep(9 * time.Second)
		if got := i.count(); got != 1 {
			t.Errorf("%d token requests, want 1", got)
		}
	})
}

func TestSlowEndpointIsAskedAgain(t *testing.T) {
	// the first answer counts, whichever request it is to
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour, latency: 6 * time.Second}
		s := newSource(t, i)
		if token, took, err := get(s); err != nil || token != "token-1" || took != 6*time.Second || i.count() != 2 {
			t.Errorf("got %q after %v and %d token requests, error %v; want token-1 after 6s", token, took, i.count(), err)
		}
	})
}

func TestRequestsThatAreSentAgainCountAtTheEndpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		endpoint := tokensource.NewEndpoint()
		var issuers []*issuer
		var wg sync.WaitGroup
		for range tokensource.MaxConcurrent + 4 {
			i := &issuer{hang: true}
			issuers = append(issuers, i)
			s := newSource(t, i, func(o *tokensource.Options) { o.Endpoint = endpoint })
			wg.Go(func() { _, _, _ = get(s) })
		}
		time.Sleep(9 * time.Second)
		sent := 0
		for _, i := range issuers {
			sent += i.count()
		}
		if sent != tokensource.MaxConcurrent {
			t.Errorf("%d token requests are under way, want %d", sent, tokensource.MaxConcurrent)
		}
		wg.Wait()
	})
}

func TestSecretsThatCannotBeReadInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Minute}
		s := newSource(t, i)
		s.Start()
		first, _ := s.Token(t.Context())
		hangs := make(chan struct{})
		i.set(func(i *issuer) { i.reading = hangs })

		// a live token is used, whatever reads the secrets for the next one
		time.Sleep(50 * time.Second)
		if s.Live() != first {
			t.Error("the token is not in use")
		}
		// then each request fails in time, and so does asking how it is doing
		time.Sleep(time.Hour)
		for range 50 {
			_, took, err := get(s)
			if err == nil || took > 10100*time.Millisecond || !strings.Contains(err.Error(), "reading the secret takes too long") {
				t.Fatalf("error %v after %v, want within token_timeout that the secret cannot be read", err, took)
			}
			if s.Status().Failure == nil {
				t.Error("the status does not have the failure")
			}
			time.Sleep(5 * time.Second)
		}
		if got := i.count(); got != 1 {
			t.Errorf("%d token requests, want none without a secret", got)
		}
		close(hangs)
		i.set(func(i *issuer) { i.reading = nil })
		time.Sleep(5 * time.Second)
		if _, _, err := get(s); err != nil {
			t.Errorf("no token although the secret can be read again: %v", err)
		}
	})
}

func TestRefusalIsDoubtedWhereTheSecretsWereGood(t *testing.T) {
	for name, good := range map[string]bool{"they were": true, "they never were": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{lifetime: time.Minute}
				s := newSource(t, i)
				if good {
					_, _, _ = get(s)
					time.Sleep(2 * time.Minute)
				}
				i.set(func(i *issuer) { i.err = refused })
				start := i.count()
				for range 3 * 60 * 5 {
					_, _, _ = get(s)
					time.Sleep(200 * time.Millisecond)
				}
				waits := i.waits()[start:]
				if doubted := waits[0] < 5*time.Second && waits[4] < 5*time.Second; doubted != good {
					t.Errorf("asked again after %v; want within 5 s at first: %v", waits, good)
				}
				if last := waits[len(waits)-1]; last < 20*time.Second {
					t.Errorf("asked again after %v; want longer and longer waits in the end", waits)
				}
			})
		})
	}
}

func TestReloadMakesAFailureDue(t *testing.T) {
	retryLater := &tokenprovider.Error{Class: tokenprovider.Transient, Status: 503, RetryAfter: time.Minute}
	for err, want := range map[error]time.Duration{down: 0, refused: 0, retryLater: time.Minute} {
		t.Run(err.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{lifetime: time.Hour, err: err}
				state := tokensource.NewState()
				old := newSource(t, i, func(o *tokensource.Options) { o.State = state })
				old.Start()
				time.Sleep(10 * time.Minute)
				time.Sleep(time.Until(old.Status().Next)) // one has just failed
				synctest.Wait()
				i.set(func(i *issuer) { i.err = nil })
				start := time.Now()
				s := newSource(t, i, func(o *tokensource.Options) { o.State = state })
				s.Start()
				synctest.Wait()
				for s.Live() == nil && time.Since(start) < time.Hour {
					time.Sleep(time.Second)
				}
				if got := time.Since(start); got < want || got > want+time.Second {
					t.Errorf("ready after %v, want %v", got, want)
				}
			})
		})
	}
}

func TestOtherSecrets(t *testing.T) {
	// a reload with other secrets: the token in use stays until they have brought one
	for name, err := range map[string]error{"that are right": nil, "that are wrong": refused} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logs, option := observed()
				state := tokensource.NewState()
				share := func(o *tokensource.Options) { o.State = state }
				right := &issuer{lifetime: time.Hour, secret: "one"}
				old := newSource(t, right, share)
				old.Start()
				first, _ := old.Token(t.Context())

				other := &issuer{lifetime: time.Hour, secret: "two", latency: time.Second, err: err}
				s := newSource(t, other, share, option)
				s.Start()
				old.Stop()
				synctest.Wait()
				if s.Live() != first || other.count() != 1 {
					t.Fatalf("live token %v after %d token requests, want the first while another is requested", s.Live(), other.count())
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if err == nil {
					if s.Live() == first || s.Status().Phase != tokensource.PhaseFresh {
						t.Error("the other secrets have brought no token")
					}
					time.Sleep(30 * time.Minute)
					if other.count() != 1 {
						t.Errorf("%d token requests, want one", other.count())
					}
					return
				}
				if s.Live() != first || !errors.Is(s.Status().Failure, refused) {
					t.Errorf("live token %v, failure %v; want the first, and that the other secrets are refused", s.Live(), s.Status().Failure)
				}
				if logs.FilterMessageSnippet("could not refresh the token").FilterField(zap.String("error_code", "invalid_client")).Len() == 0 {
					t.Errorf("logged %v, want that the other secrets are refused", logs.All())
				}
				// corrected in place: found by the next attempt
				other.set(func(i *issuer) { i.err = nil })
				time.Sleep(6 * time.Second)
				synctest.Wait()
				if s.Live() == first || s.Live() == nil {
					t.Error("the corrected secrets have brought no token")
				}
			})
		})
	}
}

func TestOtherSecretsWhileTheFirstTokenIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := tokensource.NewState()
		share := func(o *tokensource.Options) { o.State = state }
		before := &issuer{latency: time.Second, lifetime: time.Hour, secret: "one"}
		other := &issuer{latency: time.Second, lifetime: time.Hour, secret: "two"}
		old := newSource(t, before, share)
		old.Start()
		time.Sleep(100 * time.Millisecond)
		newSource(t, other, share).Start()
		old.Stop()
		time.Sleep(10 * time.Second)
		if before.count() != 1 || other.count() != 1 {
			t.Errorf("%d and %d token requests, want one with each secret", before.count(), other.count())
		}
	})
}

func TestTokenRequestsAreMadeAsTheNewestConfigSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := tokensource.NewState()
		share := func(o *tokensource.Options) { o.State = state }
		wrong := &issuer{lifetime: time.Hour, err: down}
		right := &issuer{lifetime: time.Minute}
		old, s := newSource(t, wrong, share), newSource(t, right, share)
		old.Start()
		synctest.Wait()
		s.Start()
		synctest.Wait()
		time.Sleep(3 * time.Minute) // the token has expired, and nobody has used it
		before := wrong.count()
		if _, _, err := get(old); err != nil || wrong.count() != before {
			t.Errorf("error %v, %d token requests of the old config; want a token, and none", err, wrong.count()-before)
		}
	})
}

func TestSameSecretsCauseNoTokenRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		state := tokensource.NewState()
		share := func(o *tokensource.Options) { o.State = state }
		i := &issuer{lifetime: time.Hour, secret: "one"}
		for range 10 {
			s := newSource(t, i, share)
			s.Start()
			synctest.Wait()
			defer s.Stop()
		}
		if got := i.count(); got != 1 {
			t.Errorf("%d token requests, want 1", got)
		}
	})
}
