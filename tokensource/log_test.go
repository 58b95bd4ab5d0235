package tokensource_test

import (
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
	logEarly   = "warn: no first token yet"
	logNone    = "error: could not get a token"
	logStale   = "warn: could not refresh the token"
	logRefused = "error: the authorization server refuses the credential"
	logAgain   = "info: token endpoint issues tokens again"
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
