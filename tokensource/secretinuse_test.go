package tokensource_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

// The files of a secret can be exchanged while a token lives. What is said of it is of
// the values as they are now: whoever deletes the others must be able to rely on it.
func TestSecretInUseIsOfTheValuesAsTheyAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRotating("old", "")
		r.accepted = []string{"old"}
		s := newSource(t, nil, func(o *tokensource.Options) { o.Provider = r })
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			first, second string
			want          int
		}{
			{"old", "", 1},
			{"old", "old", 1},
			{"new", "old", 2},
			{"old", "new", 1},
			{"new", "older", 0},
			{"new", "", 0},
			{"", "old", 2},
			{"", "", 1}, // not known: that of then
			{"hang", "old", 2},
			{"hang", "hang", 1},
		} {
			r.change(func(r *rotating) { r.values = []string{step.first, step.second} })
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if got := s.SecretInUse(ctx); got != step.want {
				t.Errorf("with %q and %q it is %d, want %d", step.first, step.second, got, step.want)
			}
			cancel()
		}
		close(r.hanging)
	})
}

// With one value there is nothing to tell, and nothing without a token.
func TestSecretInUseOfOneValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, none := newSource(t, &issuer{lifetime: time.Hour}), newRotating("a", "b")
		if err := one.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		without := newSource(t, nil, func(o *tokensource.Options) { o.Provider = none })
		if a, b := one.SecretInUse(t.Context()), without.SecretInUse(t.Context()); a != 0 || b != 0 {
			t.Errorf("%d and %d, want 0", a, b)
		}
	})
}
