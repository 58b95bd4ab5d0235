package tokensource_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

// TestReloadWithMoreOrFewerValues: a token of any configured value stays in use, and
// one of another is replaced.
func TestReloadWithMoreOrFewerValues(t *testing.T) {
	for _, c := range []struct {
		before, after string
		renewed       bool
		inUse         int
	}{
		{"old", "new old", false, 2},
		{"old", "old new", false, 1},
		{"old", "new", true, 0},
		{"old spare", "new old", false, 2},
		{"old new", "new", true, 0},
		{"old new", "new spare", true, 1},
		{"old", "- old", false, 2},
	} {
		t.Run(c.before+" to "+c.after, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				state := tokensource.NewState()
				config := func(values string) (*rotating, *tokensource.Source) {
					r := newRotating(strings.Fields(values)...)
					for i, value := range r.values {
						r.values[i] = strings.Trim(value, "-")
					}
					r.accepted = []string{"old", "new"}
					s, _ := newRotatingSource(t, r, func(o *tokensource.Options) { o.State = state })
					return r, s
				}
				_, s := config(c.before)
				s.Start()
				first, _, _ := get(s)
				r, reloaded := config(c.after)
				reloaded.Start()
				s.Stop()
				synctest.Wait()
				if got, _, err := get(reloaded); err != nil || (got != first) != c.renewed {
					t.Errorf("token %q after %q, error %v; want another: %v", got, first, err, c.renewed)
				}
				if got := reloaded.Status(); got.SecretInUse != c.inUse || (got.SecretValues > 0) != (len(r.values) > 1) {
					t.Errorf("status %+v, want value %d in use", got, c.inUse)
				}
			})
		})
	}
}

// TestRefusedValueStaysLastOverAReload, and over a config that is given up again.
func TestRefusedValueStaysLastOverAReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("new", "old")
		r.accepted = []string{"old"}
		state := tokensource.NewState()
		same := func(o *tokensource.Options) { o.State = state }
		s, _ := newRotatingSource(t, r, same)
		s.Start()
		_, _, _ = get(s)
		checkTried(t, "at first", r, "new old")

		other := newRotating("spare", "new", "old")
		other.accepted = []string{"old"}
		givenUp, _ := newRotatingSource(t, other, same)
		givenUp.Start()
		synctest.Wait()
		if got := givenUp.Status(); got.SecretInUse != 3 || got.SecretValues != 3 {
			t.Errorf("status %+v, want the third in use", got)
		}
		givenUp.Stop()
		if got := s.Status(); got.SecretInUse != 2 || got.SecretValues != 2 {
			t.Errorf("status %+v, want the second in use", got)
		}

		reloaded, _ := newRotatingSource(t, r, same)
		reloaded.Start()
		s.Stop()
		time.Sleep(50 * time.Second)
		checkTried(t, "after a reload", r, "old")
		// a restart knows nothing
		restarted, _ := newRotatingSource(t, r)
		_, _, _ = get(restarted)
		checkTried(t, "after a restart", r, "new old")
	})
}
