package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

func TestPhases(t *testing.T) {
	fail := func(err error) func(*issuer) {
		return func(i *issuer) { i.err = err }
	}
	tests := map[string]struct {
		latency time.Duration
		fails   error // from the start on
		use     bool  // a request carries the first token
		at      time.Duration
		change  func(*issuer) // after the first token
		want    tokensource.Phase
		live    bool
		ready   bool
		class   tokenprovider.Class
	}{
		"the first token is on its way":         {latency: time.Second, at: 500 * time.Millisecond, want: tokensource.PhaseRefreshing},
		"there never was one":                   {fails: down, at: time.Minute, want: tokensource.PhaseExpired, class: tokenprovider.Transient},
		"refused from the start on":             {fails: refused, at: time.Minute, want: tokensource.PhaseRefused, class: tokenprovider.Refused},
		"a live token":                          {at: time.Minute, want: tokensource.PhaseFresh, live: true, ready: true},
		"its refresh fails":                     {use: true, at: 43 * time.Minute, change: fail(down), want: tokensource.PhaseStale, live: true, ready: true, class: tokenprovider.Transient},
		"its refresh is refused":                {use: true, at: 43 * time.Minute, change: fail(refused), want: tokensource.PhaseStale, live: true, ready: true, class: tokenprovider.Refused},
		"its refresh hangs":                     {use: true, at: 43 * time.Minute, change: func(i *issuer) { i.hang = true }, want: tokensource.PhaseRefreshing, live: true, ready: true, class: tokenprovider.Transient},
		"it has expired":                        {use: true, at: 61 * time.Minute, change: fail(down), want: tokensource.PhaseExpired, ready: true, class: tokenprovider.Transient},
		"it has expired and another is refused": {use: true, at: 61 * time.Minute, change: fail(refused), want: tokensource.PhaseRefused, ready: true, class: tokenprovider.Refused},
		"nobody has wanted one for long":        {at: 4 * time.Hour, want: tokensource.PhaseIdle, ready: true},
		"nor for long since it failed":          {use: true, at: 4 * time.Hour, change: fail(down), want: tokensource.PhaseIdle, ready: true, class: tokenprovider.Transient},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := &issuer{latency: test.latency, lifetime: time.Hour, err: test.fails}
				s := newSource(t, i)
				if got := s.Status(); got.Phase != tokensource.PhaseIdle || !got.Next.IsZero() || got.Ready {
					t.Errorf("before the start: %+v", got)
				}
				start := time.Now()
				s.Start()
				synctest.Wait()
				if test.use {
					if _, _, err := get(s); err != nil {
						t.Fatal(err)
					}
				}
				if test.change != nil {
					i.set(test.change)
				}
				time.Sleep(time.Until(start.Add(test.at)))
				synctest.Wait()
				// a retry may be under way just now; it is over after token_timeout
				got := s.Status()
				for deadline := time.Now().Add(time.Minute); got.Phase != test.want && time.Now().Before(deadline); got = s.Status() {
					time.Sleep(time.Second)
				}

				if got.Phase != test.want || got.Ready != test.ready || !got.Expires.IsZero() != test.live || !got.Issued.IsZero() != test.live {
					t.Errorf("got %+v, want phase %s, live %v, ready %v", got, test.want, test.live, test.ready)
				}
				if (got.Failure != nil) != (test.class != "") || got.Class != test.class || (got.Attempts > 0) != (test.class != "") || got.Since.IsZero() != (test.class == "") {
					t.Errorf("got %+v, want a failure of class %q", got, test.class)
				}
				switch {
				case test.want == tokensource.PhaseIdle:
					if !got.Next.IsZero() {
						t.Errorf("the next attempt is at %v, want none before a request needs a token", got.Next)
					}
				case test.want != tokensource.PhaseRefreshing:
					if got.Next.Before(time.Now()) {
						t.Errorf("the next attempt is at %v, which is over", got.Next)
					}
				}
				if got.Requests != int64(i.count()) && got.Phase != tokensource.PhaseRefreshing {
					t.Errorf("%d token requests, want %d", got.Requests, i.count())
				}
			})
		})
	}
}

func TestManualRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{latency: 100 * time.Millisecond, lifetime: time.Hour, err: refused}
		s := newSource(t, i)
		s.Start()
		time.Sleep(time.Second)
		before := s.Status()
		if before.Phase != tokensource.PhaseRefused || time.Until(before.Next) < 2*time.Second {
			t.Fatalf("got %+v, want a refused credential that is left alone for a while", before)
		}

		// it does not wait for the backoff; what it finds is still the same outage
		n := i.count()
		if err := s.Refresh(t.Context()); !errors.Is(err, refused) {
			t.Errorf("got %v, want the refusal", err)
		}
		after := s.Status()
		if i.count() != n+1 || !after.Since.Equal(before.Since) || after.Attempts != 1 {
			t.Errorf("%d token requests, %+v; want another that fails since %v, with waits that start over", i.count()-n, after, before.Since)
		}

		// two share one request
		i.set(func(i *issuer) { i.err = nil })
		n = i.count()
		errs := make(chan error)
		for range 2 {
			go func() { errs <- s.Refresh(t.Context()) }()
		}
		if err := errors.Join(<-errs, <-errs); err != nil || i.count() != n+1 {
			t.Errorf("%d token requests, error %v; want one for both", i.count()-n, err)
		}
		if got := s.Status(); got.Phase != tokensource.PhaseFresh || got.Failure != nil || !got.Since.IsZero() {
			t.Errorf("got %+v, want a fresh token", got)
		}

		// a live token is replaced, and kept where that fails
		if err := s.Refresh(t.Context()); err != nil || i.count() != n+2 {
			t.Errorf("%d token requests, error %v; want another", i.count()-n, err)
		}
		i.set(func(i *issuer) { i.err = down })
		if err := s.Refresh(t.Context()); !errors.Is(err, down) {
			t.Errorf("got %v, want the failure", err)
		}
		if got := s.Status(); got.Phase != tokensource.PhaseStale {
			t.Errorf("got %+v, want the token of before", got)
		}
	})
}

// ablerIssuer can revoke and introspect, after latency.
type ablerIssuer struct {
	*issuer
	able    bool
	latency time.Duration
	tokens  []string
	fails   error
}

func (a *ablerIssuer) CanRevoke() bool     { return a.able }
func (a *ablerIssuer) CanIntrospect() bool { return a.able }

func (a *ablerIssuer) Revoke(ctx context.Context, _ *http.Client, token tokenprovider.Secret) error {
	a.tokens = append(a.tokens, token.Reveal())
	if a.latency == 0 { // see issuer.Token
		return a.fails
	}
	select {
	case <-time.After(a.latency):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (a *ablerIssuer) Introspect(ctx context.Context, c *http.Client, token tokenprovider.Secret) (*tokenprovider.Introspection, error) {
	if err := a.Revoke(ctx, c, token); err != nil {
		return nil, err
	}
	return &tokenprovider.Introspection{Active: true}, nil
}

func TestRevokeAndIntrospect(t *testing.T) {
	introspect := func(s *tokensource.Source, ctx context.Context) error {
		_, err := s.Introspect(ctx)
		return err
	}
	for name, do := range map[string]func(*tokensource.Source, context.Context) error{
		"revoke": (*tokensource.Source).Revoke, "introspect": introspect,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if err := do(newSource(t, &issuer{lifetime: time.Hour}), t.Context()); !errors.Is(err, tokensource.ErrNotSupported) {
					t.Errorf("a provider that never can: %v", err)
				}
				a := &ablerIssuer{issuer: &issuer{lifetime: time.Hour}}
				s := newSource(t, a.issuer, func(o *tokensource.Options) { o.Provider = a })
				if err := do(s, t.Context()); !errors.Is(err, tokensource.ErrNotSupported) {
					t.Errorf("a provider that cannot as it is configured: %v", err)
				}
				a.able = true
				if err := do(s, t.Context()); !errors.Is(err, tokensource.ErrNoToken) {
					t.Errorf("without a token: %v", err)
				}
				first, _, err := get(s)
				if err != nil {
					t.Fatal(err)
				}
				if err := do(s, t.Context()); err != nil || len(a.tokens) != 1 || a.tokens[0] != first {
					t.Errorf("asked about %v, error %v; want %s", a.tokens, err, first)
				}
				second, _, err := get(s)
				if err != nil || (second != first) != (name == "revoke") {
					t.Errorf("after that: token %s, error %v", second, err)
				}

				// an authorization server that hangs does not hang whoever asks
				a.latency = time.Hour
				start := time.Now()
				if err := do(s, t.Context()); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, want a timeout", err)
				}
				if took := time.Since(start); took != tokensource.DefaultTokenTimeout {
					t.Errorf("it took %v, want %v", took, tokensource.DefaultTokenTimeout)
				}
			})
		})
	}
}

func TestRequestsAndFailuresAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour, granted: []string{"read"}}
		s := newSource(t, i)
		if s.Name() != "test" || s.Provider() != i {
			t.Errorf("name %q, provider %v", s.Name(), s.Provider())
		}
		for n, err := range []error{nil, down, refused, nil, down} {
			i.set(func(i *issuer) { i.err = err })
			_ = s.Refresh(t.Context())
			got := s.Status()
			if want := []int64{0, 1, 2, 2, 3}[n]; got.Requests != int64(n+1) || got.Failures != want {
				t.Errorf("%d requests, %d failures; want %d, %d", got.Requests, got.Failures, n+1, want)
			}
			if !slices.Equal(got.Granted, i.granted) || got.Expires.Sub(got.Issued) != time.Hour {
				t.Errorf("got %+v, want what the live token has", got)
			}
		}
	})
}

func TestRevokedTokenIsReplacedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &ablerIssuer{issuer: &issuer{lifetime: time.Hour}, able: true}
		s := newSource(t, a.issuer, func(o *tokensource.Options) { o.Provider = a })
		s.Start()
		// used first when it was not for more than a lifetime
		time.Sleep(70 * time.Minute)
		if s.Live() == nil || a.count() != 2 {
			t.Fatalf("%d token requests, want 2", a.count())
		}
		time.Sleep(time.Minute)
		if err := s.Revoke(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := s.Live(); got == nil || a.count() != 3 {
			t.Errorf("live token %v after %d token requests, want the third", got, a.count())
		}
	})
}

func TestRevocationThatFailsCanBeRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &ablerIssuer{issuer: &issuer{lifetime: time.Hour}, able: true, fails: errors.New("down")}
		s := newSource(t, a.issuer, func(o *tokensource.Options) { o.Provider = a })
		s.Start()
		token, _ := s.Token(t.Context())
		for range 2 {
			if err := s.Revoke(t.Context()); err == nil || s.Live() != token || a.count() != 1 {
				t.Fatalf("error %v, live token %v, %d token requests; want an error and the token in use", err, s.Live(), a.count())
			}
		}
		a.fails = nil
		if err := s.Revoke(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(a.tokens); got != "[token-1 token-1 token-1]" || s.Live() == token {
			t.Errorf("asked to revoke %v, live token %v; want the first each time, and then another", got, s.Live())
		}
	})
}

func TestRevokedTokenStaysOutOfUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &ablerIssuer{issuer: &issuer{lifetime: time.Hour}, able: true}
		s := newSource(t, a.issuer, func(o *tokensource.Options) { o.Provider = a })
		token, _ := s.Token(t.Context())
		// rejected once, and put back into use
		a.set(func(i *issuer) { i.err = down })
		_, _ = s.Rejected(token, by).Token(t.Context())
		if s.Live() != token {
			t.Fatal("the rejected token is not in use")
		}
		if err := s.Revoke(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Refresh(t.Context()); err == nil || s.Live() != nil {
			t.Errorf("error %v, live token %v; want none", err, s.Live())
		}
	})
}

func TestIdleCredentialThatIsWantedIsExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i)
		s.Start()
		time.Sleep(4 * time.Hour)
		i.set(func(i *issuer) { i.err = down })
		if _, _, err := get(s); !errors.Is(err, down) {
			t.Errorf("got %v, want the failure", err)
		}
		n := i.count()
		if got := s.Status(); got.Phase != tokensource.PhaseExpired || got.Next.IsZero() {
			t.Errorf("got %+v, want an expired credential, and the next attempt", got)
		}
		time.Sleep(time.Second)
		if got := i.count(); got != n+1 {
			t.Errorf("%d token requests in the second after that, want a retry", got-n)
		}
	})
}

func TestIdleAfterALifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i)
		_, _, _ = get(s)
		time.Sleep(time.Hour - 1)
		i.set(func(i *issuer) { i.err = down })
		_ = s.Refresh(t.Context())
		if got := s.Status().Phase; got != tokensource.PhaseStale {
			t.Errorf("got %s, want stale: the token lives", got)
		}
		time.Sleep(time.Nanosecond)
		if got := s.Status().Phase; got != tokensource.PhaseIdle {
			t.Errorf("got %s, want idle: nobody has wanted a token for its lifetime", got)
		}
	})
}

func TestWithoutASecretNothingIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		missing := errors.New("client_secret: no such file")
		i := &issuer{lifetime: time.Hour, noSecret: missing}
		s := newSource(t, i)
		if _, _, err := get(s); !errors.Is(err, missing) || i.count() != 0 {
			t.Errorf("got %v after %d token requests, want %v and none", err, i.count(), missing)
		}
	})
}

// Whoever looks right after a revocation sees that another token is on its way.
func TestStatusAfterARevocation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &revoker{issuer: &issuer{lifetime: time.Hour, latency: time.Second}}
		s := newSource(t, nil, func(o *tokensource.Options) { o.Provider = i })
		s.Start()
		for range 2 { // at first, and late in the life of a token
			if _, _, err := get(s); err != nil {
				t.Fatal(err)
			}
			before := i.count()
			if err := s.Revoke(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := s.Status(); got.Phase != tokensource.PhaseRefreshing {
				t.Errorf("the phase is %s", got.Phase)
			}
			time.Sleep(30 * time.Minute)
			if n := i.count() - before; n != 1 {
				t.Errorf("%d token requests, want another", n)
			}
		}
	})
}
