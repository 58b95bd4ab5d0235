package tokensource_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// observed returns an option that has the source log to the observer.
func observed() (*observer.ObservedLogs, func(*tokensource.Options)) {
	core, logs := observer.New(zap.DebugLevel)
	return logs, func(o *tokensource.Options) { o.Logger = zap.New(core) }
}

// summary returns level and beginning of each line above debug.
func summary(logs *observer.ObservedLogs) string {
	var lines []string
	for _, entry := range logs.All() {
		if entry.Level > zapcore.DebugLevel {
			message, _, _ := strings.Cut(entry.Message, ";")
			lines = append(lines, entry.Level.String()+": "+message)
		}
	}
	return strings.Join(lines, "\n")
}

func checkSummary(t *testing.T, logs *observer.ObservedLogs, want ...string) {
	t.Helper()
	if got := summary(logs); got != strings.Join(want, "\n") {
		t.Errorf("logged\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

const (
	logEarly    = "info: no first token yet"
	logNone     = "error: could not get a token"
	logStale    = "warn: could not refresh the token"
	logRejected = "error: could not replace a token that the API has rejected"
	logRefused  = "error: the authorization server refuses the credential"
	logAgain    = "info: token endpoint issues tokens again"
)

func TestOutageIsLoggedOnceAndItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, option := observed()
		i := &issuer{lifetime: time.Hour, err: &tokenprovider.Error{Class: tokenprovider.Transient, Status: 503, Code: "server_error"}}
		s := newSource(t, i, option)
		s.Start()
		synctest.Wait()
		for range 30 * 100 { // requests want a token all the time
			_, _, _ = get(s)
			time.Sleep(10 * time.Millisecond)
		}
		checkSummary(t, logs, logEarly, logNone)

		failed := logs.FilterMessageSnippet("could not get a token").All()[0].ContextMap()
		for field, want := range map[string]any{
			"credential": "test", "provider": "test", "attempt": int64(2), "status": int64(503), "error_code": "server_error",
			"advice": "wait; the authorization server is in trouble", "error": "token endpoint answered 503 Service Unavailable (server_error)",
		} {
			if failed[field] != want {
				t.Errorf("%s is %v, want %v", field, failed[field], want)
			}
		}
		if next, ok := failed["next_attempt"].(time.Duration); !ok || next <= 0 {
			t.Errorf("next_attempt is %v", failed["next_attempt"])
		}

		for range 3 * 60 { // what goes on is said again, a minute later
			_, _, _ = get(s)
			time.Sleep(time.Second)
		}
		if got := logs.FilterMessageSnippet("could not get a token").Len(); got < 3 || got > 5 {
			t.Errorf("logged %d times in 3.5 minutes, want about once a minute", got)
		}

		logs.TakeAll()
		i.set(func(i *issuer) { i.err = nil })
		time.Sleep(10 * time.Second)
		checkSummary(t, logs, logAgain)
		again := logs.FilterMessageSnippet("again").All()[0].ContextMap()
		if outage, _ := again["outage"].(time.Duration); outage < 210*time.Second || outage > 230*time.Second {
			t.Errorf("outage is %v, want 3.5 minutes", again["outage"])
		}
	})
}

func TestFailedRefreshIsAWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, option := observed()
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i, option)
		s.Start()
		synctest.Wait()
		if _, _, err := get(s); err != nil {
			t.Fatal(err)
		}
		i.set(func(i *issuer) { i.err = down })
		time.Sleep(43 * time.Minute)
		if got := summary(logs); !strings.HasPrefix(got, logStale) || strings.Contains(got, "error") {
			t.Errorf("logged\n%s\nwant warnings", got)
		}

		i.set(func(i *issuer) { i.err = refused }) // another story
		time.Sleep(time.Minute)
		if got := summary(logs); !strings.HasSuffix(got, logStale) {
			t.Errorf("logged\n%s\nwant a warning last", got)
		}
		time.Sleep(20 * time.Minute) // and now it has expired
		if got := summary(logs); !strings.HasSuffix(got, logRefused) {
			t.Errorf("logged\n%s\nwant an error last", got)
		}
	})
}

func TestEndOfAnOutageIsLoggedWhateverEndsIt(t *testing.T) {
	mended := func(i *issuer) { i.err, i.secret = nil, "right" }
	for name, end := range map[string]func(t *testing.T, i *issuer, s *tokensource.Source){
		"a retry": func(_ *testing.T, i *issuer, _ *tokensource.Source) {
			i.set(mended)
			time.Sleep(time.Minute)
		},
		"a refresh by hand": func(t *testing.T, i *issuer, s *tokensource.Source) {
			i.set(mended)
			if err := s.Refresh(t.Context()); err != nil {
				t.Error(err)
			}
		},
		"a refresh by hand after one that failed": func(t *testing.T, i *issuer, s *tokensource.Source) {
			_ = s.Refresh(t.Context())
			i.set(mended)
			if err := s.Refresh(t.Context()); err != nil {
				t.Error(err)
			}
		},
		"a changed secret": func(t *testing.T, i *issuer, s *tokensource.Source) {
			i.set(mended)
			if _, _, err := get(s); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logs, option := observed()
				i := &issuer{lifetime: time.Hour, err: refused, secret: "wrong"}
				s := newSource(t, i, option)
				s.Start()
				time.Sleep(2 * time.Second)
				end(t, i, s)
				checkSummary(t, logs, logRefused, logAgain)
				if outage, _ := logs.All()[logs.Len()-1].ContextMap()["outage"].(time.Duration); outage < 2*time.Second {
					t.Errorf("outage is %v, want 2 seconds at least", outage)
				}
				logs.TakeAll()
				if err := s.Refresh(t.Context()); err != nil {
					t.Error(err)
				}
				checkSummary(t, logs) // nothing more
			})
		})
	}
}

func TestOngoingFailureIsLoggedOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, option := observed()
		i := &issuer{lifetime: time.Hour, err: errors.New("no such file")} // not a *tokenprovider.Error
		s := newSource(t, i, option)
		for start := time.Now(); time.Since(start) < 20*time.Minute; time.Sleep(time.Second) {
			_, _, _ = get(s)
		}
		lines := logs.FilterMessageSnippet("could not get a token").All()
		for n := 1; n < len(lines); n++ {
			if got := lines[n].Time.Sub(lines[n-1].Time); got < time.Minute || got > 65*time.Second {
				t.Errorf("logged again after %v, want a minute and the wait that goes on", got)
			}
		}
		if len(lines) != logs.Len() || len(lines) < 18 {
			t.Errorf("%d lines, %d of them of the failure; want one a minute", logs.Len(), len(lines))
		}
	})
}

func TestFailureIsLoggedAgainAfterAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, option := observed()
		s := newSource(t, &issuer{err: down}, option)
		start := time.Now()
		for n, after := range []time.Duration{0, time.Minute - 1, time.Minute, 2*time.Minute - 1, 2 * time.Minute} {
			time.Sleep(time.Until(start.Add(after)))
			_ = s.Refresh(t.Context())
			if got, want := logs.Len(), n/2+1; got != want {
				t.Errorf("%d lines after %v, want %d", got, after, want)
			}
		}
	})
}

func TestEachKindOfFailureIsLogged(t *testing.T) {
	provider := func(class tokenprovider.Class, status int, code string) error {
		return &tokenprovider.Error{Class: class, Status: status, Code: code}
	}
	synctest.Test(t, func(t *testing.T) {
		logs, option := observed()
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i, option)
		for n, c := range []struct {
			err    error
			logged bool
		}{
			{provider(tokenprovider.Transient, 500, "x"), true},
			{provider(tokenprovider.Transient, 500, "x"), false},
			{provider(tokenprovider.Transient, 503, "x"), true},
			{provider(tokenprovider.Transient, 503, "y"), true},
			{provider(tokenprovider.Transient, 503, "y"), false},
			{provider(tokenprovider.Refused, 503, "y"), true},
			{errors.New("no such file"), true},
			{errors.New("no such file"), false},
			{errors.New("permission denied"), true},
			{provider(tokenprovider.Transient, 503, "y"), true},
		} {
			logs.TakeAll()
			i.set(func(i *issuer) { i.err = c.err })
			_ = s.Refresh(t.Context())
			if got := logs.Len() == 1; got != c.logged {
				t.Errorf("%d: %v: logged %v, want %v", n, c.err, got, c.logged)
			}
			time.Sleep(2 * time.Second)
		}
	})
}

func TestWarningBecomesAnErrorWhenTheTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, option := observed()
		i := &issuer{lifetime: time.Minute}
		s := newSource(t, i, option)
		s.Start()
		_, _, _ = get(s)
		i.set(func(i *issuer) { i.err = down })
		time.Sleep(time.Minute)
		synctest.Wait()
		checkSummary(t, logs, logStale, logNone)
		if got := logs.All()[logs.Len()-1].Time.Sub(i.at(0)); got != time.Minute {
			t.Errorf("the error came after %v, want it when the token expires", got)
		}
	})
}

func TestRejectedTokenThatCannotBeReplacedIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, option := observed()
		i := &issuer{lifetime: time.Hour}
		s := newSource(t, i, option)
		s.Start()
		_, _, _ = get(s)
		i.set(func(i *issuer) { i.err = down })
		for range 10 { // by a 401, and then by time
			call(t, s, by, never)
			time.Sleep(time.Second)
		}
		checkSummary(t, logs, logRejected)

		i.set(func(i *issuer) { i.err = nil })
		time.Sleep(time.Minute)
		i.set(func(i *issuer) { i.err = down })
		logs.TakeAll()
		time.Sleep(42 * time.Minute) // a refresh has failed
		if got := summary(logs); !strings.HasPrefix(got, logStale) || strings.Contains(got, "error") {
			t.Errorf("logged\n%s\nwant warnings", got)
		}
		logs.TakeAll()
		call(t, s, by, never)
		time.Sleep(31 * time.Second) // the next one has
		checkSummary(t, logs, logRejected)
	})
}

func TestFirstFailureOfAStart(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want []string
	}{
		"its own servers may not be up yet": {down, []string{logEarly, logNone}},
		"a refusal is one":                  {refused, []string{logRefused}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logs, option := observed()
				s := newSource(t, &issuer{err: c.err}, option)
				s.Start()
				time.Sleep(time.Minute)
				checkSummary(t, logs, c.want...)
			})
		})
	}
	t.Run("but not that of a request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			logs, option := observed()
			_, _, _ = get(newSource(t, &issuer{err: down}, option))
			checkSummary(t, logs, logNone)
		})
	})
}

func TestNewTokensAreLoggedAtDebug(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, option := observed()
		s := newSource(t, &issuer{lifetime: time.Hour}, option)
		s.Start()
		time.Sleep(45 * time.Minute)
		entries := logs.FilterMessage("obtained a token").All()
		if len(entries) != 2 || logs.Len() != 2 || entries[0].Level != zapcore.DebugLevel {
			t.Fatalf("logged %v, want two tokens", logs.All())
		}
		for n, trigger := range []string{"warmup", "refresh"} {
			fields := entries[n].ContextMap()
			if fields["trigger"] != trigger || fields["lifetime"] != time.Hour || fields["credential"] != "test" || fields["provider"] != "test" {
				t.Errorf("fields are %v, want trigger %s and a lifetime of an hour", fields, trigger)
			}
		}
	})
}

func TestEndOfAnOutageCountsItsAttempts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		logs, option := observed()
		i := &issuer{lifetime: time.Hour, err: down}
		s := newSource(t, i, option)
		s.Start()
		time.Sleep(time.Second) // it fails at 0 and, for the last time, after half a second
		i.set(func(i *issuer) { i.err = nil })
		time.Sleep(time.Second)
		fields := logs.FilterMessageSnippet("again").All()[1].ContextMap()
		if fields["attempts"] != int64(3) || fields["trigger"] != "warmup" || fields["lifetime"] != time.Hour || fields["outage"] != i.at(2).Sub(i.at(0)) {
			t.Errorf("fields are %v, want three attempts", fields)
		}
	})
}

func TestWhatTheServerDoesWithEveryTokenIsLoggedOnce(t *testing.T) {
	const (
		less    = "warn: the authorization server granted less than was asked for"
		assumed = "warn: the token response has no lifetime above zero (expires_in)"
	)
	for name, c := range map[string]struct {
		granted []string
		assumed bool
		want    []string
	}{
		"nothing special":            {},
		"all that was asked for":     {granted: []string{"write", "read", "more"}},
		"less":                       {granted: []string{"read"}, want: []string{less}},
		"nothing":                    {granted: []string{}, want: []string{less}},
		"no lifetime":                {assumed: true, want: []string{assumed}},
		"no lifetime, and less":      {granted: []string{"read"}, assumed: true, want: []string{less, assumed}},
		"no lifetime, and all of it": {granted: []string{"read", "write"}, assumed: true, want: []string{assumed}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				logs, option := observed()
				s := newSource(t, &issuer{lifetime: time.Hour, granted: c.granted, assumed: c.assumed}, option)
				for range 3 {
					if err := s.Refresh(t.Context()); err != nil {
						t.Error(err)
					}
				}
				checkSummary(t, logs, c.want...)
				for _, entry := range logs.FilterMessageSnippet("granted less").All() {
					missing := []any{"write"}
					if len(c.granted) == 0 {
						missing = []any{"read", "write"}
					}
					if got := entry.ContextMap()["scopes_missing"]; !reflect.DeepEqual(got, missing) {
						t.Errorf("scopes_missing is %v, want %v", got, missing)
					}
				}
				for _, entry := range logs.FilterMessageSnippet("no lifetime").All() {
					if got := entry.ContextMap()["lifetime"]; got != time.Hour {
						t.Errorf("lifetime is %v, want that which is assumed", got)
					}
				}
			})
		})
	}
}

// One warning does not keep the other from being logged.
func TestWarningsOfTokensAreIndependent(t *testing.T) {
	const (
		less    = "warn: the authorization server granted less than was asked for"
		assumed = "warn: the token response has no lifetime above zero (expires_in)"
	)
	narrow, endless := func(i *issuer) { i.granted = []string{"read"} }, func(i *issuer) { i.granted, i.assumed = nil, true }
	for _, c := range []struct {
		first, second func(*issuer)
		want          []string
	}{
		{narrow, endless, []string{less, assumed}},
		{endless, narrow, []string{assumed, less}},
	} {
		synctest.Test(t, func(t *testing.T) {
			logs, option := observed()
			i := &issuer{lifetime: time.Hour}
			s := newSource(t, i, option)
			for _, change := range []func(*issuer){c.first, c.second, c.first} {
				i.set(func(i *issuer) {
					i.assumed = false
					change(i)
				})
				if err := s.Refresh(t.Context()); err != nil {
					t.Error(err)
				}
			}
			checkSummary(t, logs, c.want...)
		})
	}
}
