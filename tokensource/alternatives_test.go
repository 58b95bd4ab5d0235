package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// rotating is an issuer whose secret has several values. Its server accepts some of
// them, and issues tokens that are named after them.
type rotating struct {
	issuer

	mu       sync.Mutex
	values   []string // empty: it cannot be read; "hang": nor can that be told
	accepted []string
	failing  map[string]error // how the server fails with a value in another way
	tries    []string         // values that were tried
	times    []time.Time
	revoked  []string // token with value
	hanging  chan struct{}
}

func newRotating(values ...string) *rotating {
	return &rotating{issuer: issuer{lifetime: time.Minute}, values: values, failing: make(map[string]error), hanging: make(chan struct{})}
}

func (r *rotating) change(change func(*rotating)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(r)
}

// tried returns the values that were tried since it was last asked.
func (r *rotating) tried() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := strings.Join(r.tries, " ")
	r.tries = nil
	return all
}

func (r *rotating) Secrets() ([]tokenprovider.Secret, error) { return r.Alternatives()[0].Secrets() }

func (r *rotating) Alternatives() (all []tokenprovider.Provider) {
	for i := range r.values {
		all = append(all, &rotated{r, i})
	}
	return all
}

func (r *rotating) CanRevoke() bool { return true }
func (r *rotating) Revoke(context.Context, *http.Client, tokenprovider.Secret) error {
	return errors.New("revoked with no value")
}

func (r *rotating) CanIntrospect() bool { return true }
func (r *rotating) Introspect(context.Context, *http.Client, tokenprovider.Secret) (*tokenprovider.Introspection, error) {
	return nil, errors.New("introspected with no value")
}

// rotated is a rotating with one of its values.
type rotated struct {
	*rotating
	i int
}

func (r *rotated) value() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.values[r.i]
}

func (r *rotated) Secrets() ([]tokenprovider.Secret, error) {
	switch value := r.value(); value {
	case "":
		return nil, fmt.Errorf("client_secret: value %d is empty", r.i+1)
	case "hang":
		<-r.hanging
		return nil, errors.New("client_secret: hung up")
	default:
		return []tokenprovider.Secret{tokenprovider.NewSecret(value)}, nil
	}
}

// authenticate returns the value, or why the server does not know it.
func (r *rotated) authenticate() (string, error) {
	if _, err := r.Secrets(); err != nil {
		return "", err
	}
	value := r.value()
	r.mu.Lock()
	defer r.mu.Unlock()
	switch err := r.failing[value]; {
	case err != nil:
		return value, err
	case !slices.Contains(r.accepted, value):
		return value, refused
	}
	return value, nil
}

func (r *rotated) Token(ctx context.Context, client *http.Client) (*tokenprovider.Token, error) {
	value, err := r.authenticate()
	r.change(func(rot *rotating) {
		rot.tries, rot.times = append(rot.tries, value), append(rot.times, time.Now())
	})
	if err != nil {
		return nil, err
	}
	t, err := r.issuer.Token(ctx, client)
	if err == nil {
		t.Value = tokenprovider.NewSecret(t.Value.Reveal() + "-of-" + value)
	}
	return t, err
}

func (r *rotated) Revoke(_ context.Context, _ *http.Client, token tokenprovider.Secret) error {
	value, err := r.authenticate()
	r.change(func(rot *rotating) { rot.revoked = append(rot.revoked, token.Reveal()+" with "+value) })
	return err
}

func (r *rotated) Introspect(context.Context, *http.Client, tokenprovider.Secret) (*tokenprovider.Introspection, error) {
	value, err := r.authenticate()
	return &tokenprovider.Introspection{Active: true, ClientID: value}, err
}

// newRotatingSource returns a source with the values of r, and its log.
func newRotatingSource(t *testing.T, r *rotating, options ...func(*tokensource.Options)) (*tokensource.Source, *observer.ObservedLogs) {
	core, logs := observer.New(zap.InfoLevel)
	with := func(o *tokensource.Options) { o.Provider, o.Logger = r, zap.New(core) }
	return newSource(t, &r.issuer, append([]func(*tokensource.Options){with}, options...)...), logs
}

// checkTried compares the values that were tried since it was last called.
func checkTried(t *testing.T, when string, r *rotating, want string) {
	t.Helper()
	synctest.Wait()
	if got := r.tried(); got != want {
		t.Errorf("%s: tried %q, want %q", when, got, want)
	}
}

func TestValuesAreTriedInTheirOrder(t *testing.T) {
	for name, c := range map[string]struct {
		values, accepted string
		tried, token     string
		inUse            int
	}{
		"the first works":                   {"new old", "new old", "new", "token-1-of-new", 1},
		"the first is not active yet":       {"new old", "old", "new old", "token-1-of-old", 2},
		"the second is deleted already":     {"new old", "new", "new", "token-1-of-new", 1},
		"the first cannot be read":          {"- old", "old", "old", "token-1-of-old", 2},
		"the second cannot be read":         {"new -", "new", "new", "token-1-of-new", 1},
		"a third is all that works":         {"a b c", "c", "a b c", "token-1-of-c", 3},
		"the one in between is gone":        {"a - c", "c", "a c", "token-1-of-c", 3},
		"there is one":                      {"only", "only", "only", "token-1-of-only", 0},
		"the same value stands there twice": {"old old", "old", "old", "token-1-of-old", 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRotating(strings.Fields(c.values)...)
				for i, value := range r.values {
					r.values[i] = strings.Trim(value, "-")
				}
				r.accepted = strings.Fields(c.accepted)
				recorded, record := record()
				s, _ := newRotatingSource(t, r, record)
				s.Start()
				token, took, err := get(s)
				if err != nil || token != c.token || took != 0 {
					t.Errorf("got %q after %v, error %v; want %s at once", token, took, err, c.token)
				}
				checkTried(t, "first", r, c.tried)
				refused := len(strings.Fields(c.tried)) - 1
				status := s.Status()
				if status.SecretInUse != c.inUse || (status.SecretValues != 0) != (len(r.values) > 1) || status.Phase != tokensource.PhaseFresh {
					t.Errorf("status %+v, want value %d in use", status, c.inUse)
				}
				if int(status.Requests) != refused+1 || int(status.Failures) != refused {
					t.Errorf("%d token requests of which %d failed, want %d and %d", status.Requests, status.Failures, refused+1, refused)
				}
				if outcomes := recorded.all(); len(outcomes) != 1 || outcomes[0].Refused != refused || outcomes[0].Err != nil {
					t.Errorf("outcomes %+v, want one with %d refused", outcomes, refused)
				}
			})
		})
	}
}

// TestRefusedValueIsTriedLastForAnHour: it costs no token request at each refresh,
// and is used once it is active.
func TestRefusedValueIsTriedLastForAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("new", "old")
		r.accepted = []string{"old"}
		r.lifetime = 12 * time.Minute // replaced after 8 to 8.4
		s, _ := newRotatingSource(t, r)
		s.Start()
		used := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
				if _, took, err := get(s); err != nil || took != 0 {
					t.Fatalf("error %v after %v", err, took)
				}
			}
		}
		used(time.Minute)
		checkTried(t, "at first", r, "new old")
		used(54 * time.Minute)
		checkTried(t, "within the hour", r, "old old old old old old")
		used(15 * time.Minute) // the seventh refresh is after 56 to 58.8, the eighth after 64 to 67.2
		checkTried(t, "after an hour", r, "old new old")
		r.change(func(r *rotating) { r.accepted = []string{"new", "old"} })
		used(2 * time.Hour)
		if got := r.tried(); !strings.Contains(got, " new new") || strings.HasSuffix(got, "old") {
			t.Errorf("once it is active: tried %q, want the first from then on", got)
		}
		if got := s.Status().SecretInUse; got != 1 {
			t.Errorf("value %d is in use, want the first", got)
		}
	})
}

func TestOldValueThatIsDeletedTooEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("new", "old")
		r.accepted = []string{"old"}
		s, _ := newRotatingSource(t, r)
		s.Start()
		_, _, _ = get(s)
		checkTried(t, "at first", r, "new old")
		// its tokens are dead with it
		r.change(func(r *rotating) { r.accepted = []string{"new"} })
		token := s.Live()
		other, err := s.Rejected(token, by).Token(t.Context())
		if err != nil || other.Value.Reveal() != "token-2-of-new" {
			t.Errorf("after a 401: %v, error %v; want a token of the new value", other, err)
		}
		checkTried(t, "after a 401", r, "old new")
	})
}

func TestRefreshOnCommandBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("new", "old")
		r.accepted = []string{"old"}
		s, _ := newRotatingSource(t, r)
		s.Start()
		_, _, _ = get(s)
		checkTried(t, "at first", r, "new old")
		r.change(func(r *rotating) { r.accepted = []string{"new", "old"} })
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkTried(t, "on command", r, "new")
		if got := s.Status().SecretInUse; got != 1 {
			t.Errorf("value %d is in use, want the first", got)
		}
	})
}

func TestChangedValueIsTriedInItsOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("wrong", "old")
		r.accepted = []string{"old", "right"}
		s, _ := newRotatingSource(t, r)
		s.Start()
		_, _, _ = get(s)
		checkTried(t, "at first", r, "wrong old")
		r.change(func(r *rotating) { r.values[0] = "right" })
		time.Sleep(50 * time.Second)
		checkTried(t, "at the next refresh", r, "right")
	})
}

// TestOnlyRefusalsOfPresentValuesAreKept, however often a value is replaced.
func TestOnlyRefusalsOfPresentValuesAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("", "old")
		r.accepted = []string{"old"}
		s, _ := newRotatingSource(t, r)
		for n := range 50 {
			r.change(func(r *rotating) { r.values[0] = fmt.Sprintf("wrong-%d", n) })
			if err := s.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Second) // and a refresh by itself
		}
		if got := s.Refusals(); got > 2 {
			t.Errorf("%d refusals are kept, want those of two values", got)
		}
	})
	// of the one value that others have, nothing is kept
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("wrong")
		s, _ := newRotatingSource(t, r)
		_, _, _ = get(s)
		if got := s.Refusals(); got != 0 {
			t.Errorf("%d refusals are kept", got)
		}
	})
}

// TestValueThatIsCorrectedIsTriedAtOnce: where no token is left, nothing waits for
// the backoff.
func TestValueThatIsCorrectedIsTriedAtOnce(t *testing.T) {
	for _, which := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			r := newRotating("a", "b")
			r.accepted = []string{"right"}
			s, _ := newRotatingSource(t, r)
			s.Start()
			_, _, err := get(s)
			checkTried(t, "at first", r, "a b")
			var failure *tokensource.Error
			if !errors.As(err, &failure) || !failure.Refused || !errors.Is(err, refused) {
				t.Errorf("error %v, want that the credential is refused", err)
			}
			for range 2 { // the backoff is over after 4 seconds at the earliest
				time.Sleep(1100 * time.Millisecond)
				_, _, _ = get(s)
				checkTried(t, "unchanged", r, "")
			}
			r.change(func(r *rotating) { r.values[1-which] = "" }) // that there is less is not a change
			time.Sleep(1100 * time.Millisecond)
			_, _, _ = get(s)
			checkTried(t, "with one of them", r, "")
			r.change(func(r *rotating) { r.values[which] = "right" })
			time.Sleep(1100 * time.Millisecond)
			if token, took, err := get(s); err != nil || took != 0 {
				t.Errorf("got %q after %v, error %v; want a token at once", token, took, err)
			}
		})
	}
}

func TestOnlyAnUnknownClientHasTheNextValueTried(t *testing.T) {
	for name, c := range map[string]struct {
		err   error
		tried string
		class tokenprovider.Class
	}{
		"down":          {down, "new", tokenprovider.Transient},
		"invalid_scope": {&tokenprovider.Error{Class: tokenprovider.Refused, Status: 400, Code: "invalid_scope"}, "new", tokenprovider.Refused},
		"malformed":     {&tokenprovider.Error{Class: tokenprovider.Malformed, Status: 200}, "new", tokenprovider.Malformed},
		"401":           {&tokenprovider.Error{Class: tokenprovider.Refused, Status: 401}, "new old", tokenprovider.Refused},
		"own code":      {&tokenprovider.Error{Class: tokenprovider.Refused, Status: 400, Code: "invalid_client"}, "new old", tokenprovider.Refused},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRotating("new", "old")
				r.failing["new"] = c.err
				s, _ := newRotatingSource(t, r)
				_, _, err := get(s)
				checkTried(t, "at first", r, c.tried)
				if !errors.Is(err, c.err) || s.Status().Class != c.class {
					t.Errorf("error %v of class %s, want %v", err, s.Status().Class, c.err)
				}
				if !strings.Contains(err.Error(), "with value 1 of 2 of the secret") {
					t.Errorf("error %q does not say which value", err)
				}
			})
		})
	}
}

// TestErrorOfTheFirstThatTheServerAnsweredCounts, in whatever order they were tried.
func TestErrorOfTheFirstThatTheServerAnsweredCounts(t *testing.T) {
	of := map[string]error{}
	for _, value := range []string{"a", "b", "c"} {
		of[value] = &tokenprovider.Error{Class: tokenprovider.Refused, Status: 401, Code: "invalid_client", Reason: value}
	}
	for _, c := range []struct{ values, counts, text string }{
		{"a b", "a", ", with value 1 of 2 of the secret; no other is accepted either"},
		{"- b c", "b", ", with value 2 of 3 of the secret; no other that can be read is accepted either, and one cannot: client_secret: value 1 is empty"},
		{"- b", "b", ", with value 2 of 2 of the secret; no other that can be read is accepted either, and one cannot: client_secret: value 1 is empty"},
		{"- -", "", "client_secret: value 1 is empty"},
		{"a", "a", " (invalid_client): a"},
	} {
		t.Run(c.values, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRotating(strings.Fields(c.values)...)
				for i, value := range r.values {
					r.values[i] = strings.Trim(value, "-")
				}
				r.failing = of
				s, _ := newRotatingSource(t, r)
				for range 2 { // the second time all are remembered as refused
					err := s.Refresh(t.Context())
					if err == nil || c.counts != "" && !errors.Is(err, of[c.counts]) || !strings.HasSuffix(err.Error(), c.text) {
						t.Errorf("error %v, want that of %q, and %q at its end", err, c.counts, c.text)
					}
					time.Sleep(time.Hour)
				}
			})
		})
	}
}

func TestFurtherTriesAreChargedToTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("1", "2", "3", "4", "5", "6", "7", "8")
		r.accepted = []string{"8"}
		s, _ := newRotatingSource(t, r)
		// five at once, and then one a second
		if token, took, err := get(s); err != nil || took != 3*time.Second {
			t.Errorf("got %q after %v, error %v; want it after 3s", token, took, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("1", "2", "3", "4", "5", "6", "7", "8")
		r.accepted = []string{"8"}
		s, _ := newRotatingSource(t, r, func(o *tokensource.Options) { o.TokenTimeout = 2500 * time.Millisecond })
		_, took, err := get(s)
		if err == nil || took > 2600*time.Millisecond || s.Status().Class != tokenprovider.Transient || !strings.Contains(err.Error(), "budget") {
			t.Errorf("error %v after %v, want within token_timeout that the budget is used up", err, took)
		}
		// what was refused is tried last: the next request gets there
		time.Sleep(2 * time.Second)
		if token, took, err := get(s); err != nil || took != 0 {
			t.Errorf("got %q after %v, error %v; want it at once", token, took, err)
		}
	})
}

// TestTokenTimeoutBoundsAllValuesTogether: the second is not answered.
func TestTokenTimeoutBoundsAllValuesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("new", "old")
		r.accepted = []string{"old"}
		r.hang = true
		s, _ := newRotatingSource(t, r)
		_, took, err := get(s)
		if err == nil || took > 10100*time.Millisecond || s.Status().Class != tokenprovider.Transient {
			t.Errorf("error %v after %v, want within token_timeout that there is no answer", err, took)
		}
		// it is sent again twice, and goes on with the value that was not refused
		checkTried(t, "unanswered", r, "new old old old")
		if status := s.Status(); status.Requests != 4 || status.Failures != 4 {
			t.Errorf("%d token requests of which %d failed, want 4", status.Requests, status.Failures)
		}
	})
}

func TestValueThatHangsDoesNotHoldUpTheOthers(t *testing.T) {
	for _, hangs := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			r := newRotating("value", "value")
			r.accepted = []string{"value"}
			defer close(r.hanging)
			s, _ := newRotatingSource(t, r)
			r.change(func(r *rotating) { r.values[hangs] = "hang" })
			before := bubbled(t)
			for n := range 50 {
				start := time.Now()
				if err := s.Refresh(t.Context()); err != nil {
					t.Fatalf("refresh %d: %v", n, err)
				}
				most := time.Second
				if n >= 4 {
					most = 0 // it hangs all the time
				}
				if took := time.Since(start); took > most {
					t.Errorf("refresh %d took %v, want at most %v", n, took, most)
				}
				time.Sleep(2 * time.Second)
			}
			if got := bubbled(t) - before; got > 6 {
				t.Errorf("%d more goroutines, want four that hang", got)
			}
		})
	}
}

func TestRevocationAndIntrospectionUseTheValueThatWorked(t *testing.T) {
	for _, c := range []struct {
		values, accepted, later string
		revoked, client         string
	}{
		{"new old", "old", "new old", "token-1-of-old with old", "old"},
		{"new old", "old", "new", "token-1-of-old with old, token-1-of-old with new", "new"},
		{"new old", "new old", "new old", "token-1-of-new with new", "new"},
		{"new old", "new", "old", "token-1-of-new with new, token-1-of-new with old", "old"},
		{"only", "only", "only", "token-1-of-only with only", "only"},
	} {
		t.Run(c.accepted+" then "+c.later, func(t *testing.T) {
			for _, how := range []string{"command", "stop"} {
				synctest.Test(t, func(t *testing.T) {
					r := newRotating(strings.Fields(c.values)...)
					r.accepted = strings.Fields(c.accepted)
					state := tokensource.NewState()
					s, _ := newRotatingSource(t, r, func(o *tokensource.Options) { o.State, o.RevokeOnStop = state, true })
					s.Start()
					_, _, _ = get(s)
					r.change(func(r *rotating) { r.accepted = strings.Fields(c.later) })
					if in, err := s.Introspect(t.Context()); err != nil || in.ClientID != c.client {
						t.Errorf("introspected %+v, error %v; want by %s", in, err, c.client)
					}
					if how == "command" {
						if err := s.Revoke(t.Context()); err != nil {
							t.Error(err)
						}
					} else {
						s.Stop()
						if err := state.Retire(time.Second, time.Second); err != nil {
							t.Error(err)
						}
					}
					if got := strings.Join(r.revoked, ", "); got != c.revoked {
						t.Errorf("revoked %s, want %s", got, c.revoked)
					}
				})
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("new", "old")
		r.accepted = []string{"new", "old"}
		s, _ := newRotatingSource(t, r)
		_, _, _ = get(s)
		r.change(func(r *rotating) { r.values[0], r.accepted = "", nil })
		if err := s.Revoke(t.Context()); !errors.Is(err, refused) {
			t.Errorf("error %v, want that of the server", err)
		}
		r.change(func(r *rotating) { r.values = []string{"new", ""} })
		if err := s.Revoke(t.Context()); !errors.Is(err, refused) {
			t.Errorf("error %v, want that of the server", err)
		}
		r.change(func(r *rotating) { r.values[1], r.failing["new"] = "old", down })
		if err := s.Revoke(t.Context()); !errors.Is(err, down) {
			t.Errorf("error %v, want that it is down: another value does not help", err)
		}
	})
}

// TestValueInUseIsLoggedWhenItChanges, and not at each refresh.
func TestValueInUseIsLoggedWhenItChanges(t *testing.T) {
	const (
		refusedLine    = "the first value of the secret is refused; another one is in use"
		unreadableLine = "the first value of the secret cannot be read; another one is in use"
		worksLine      = "the first value of the secret works; the others are not needed any more and can be deleted"
		worksAgainLine = "the first value of the secret works"
	)
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("current", "")
		r.accepted = []string{"current"}
		s, logs := newRotatingSource(t, r)
		s.Start()
		check := func(when string, want ...string) {
			t.Helper()
			for range 3 {
				if err := s.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Second)
			}
			var got []string
			for _, entry := range logs.TakeAll() {
				got = append(got, entry.Message)
				fields := entry.ContextMap()
				if fields["credential"] != "test" || fields["secret_values"] != int64(2) || fields["secret_in_use"] != int64(s.Status().SecretInUse) {
					t.Errorf("%s: logged with %v", when, fields)
				}
				if (fields["error"] != nil) != (s.Status().SecretInUse == 2) {
					t.Errorf("%s: logged with error %v", when, fields["error"])
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: logged %q, want %q", when, got, want)
			}
		}
		check("with one value at hand")
		r.change(func(r *rotating) { r.values = []string{"next", "current"} })
		check("the next is not active yet", refusedLine)
		r.change(func(r *rotating) { r.accepted = []string{"next", "current"} })
		check("it is active", worksLine)
		r.change(func(r *rotating) { r.values[1] = "" })
		check("the other is deleted")
		r.change(func(r *rotating) { r.values = []string{"", "next"} })
		check("in between", unreadableLine)
		r.change(func(r *rotating) { r.values = []string{"next", ""} })
		check("as before", worksAgainLine)
		r.change(func(r *rotating) { r.values, r.accepted = []string{"third", "next"}, []string{"third", "next"} })
		check("the next rotation", worksLine)
	})
}

// A file may go between the time that it is read and the token request: the next
// value is tried, as if it had not been there, and nothing is charged for it.
func TestValueGoesWhileItIsTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("new", "old")
		r.accepted = []string{"old"}
		r.failing["new"] = errors.New("client_secret: has no value")
		s, logs := newRotatingSource(t, r)
		if token, _, err := get(s); err != nil || token != "token-1-of-old" {
			t.Errorf("got %q, error %v", token, err)
		}
		if status := s.Status(); status.Requests != 1 || status.Failures != 0 {
			t.Errorf("%d token requests of which %d failed, want 1 and 0", status.Requests, status.Failures)
		}
		if logs.FilterMessage("the first value of the secret cannot be read; another one is in use").Len() != 1 {
			t.Errorf("the log does not say why: %v", logs.All())
		}
		r.change(func(r *rotating) { r.failing["old"] = errors.New("client_secret: has no value either") })
		if err := s.Refresh(t.Context()); err == nil || !strings.Contains(err.Error(), "client_secret: has no value") {
			t.Errorf("error %v", err)
		}
	})
}
