package tokensource_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// issuer is a Provider without a network: each token request takes latency and
// ends as answer says.
type issuer struct {
	latency  time.Duration
	lifetime time.Duration

	mu       sync.Mutex
	err      error
	secret   string
	hang     bool
	requests []time.Time
	same     bool     // the same token again and again
	panics   bool     // a token request ends in a panic
	noSecret error    // what Secrets fails with
	granted  []string // scopes, as the answer has them
	assumed  bool     // the answer has no lifetime

	unanswered int           // how many token requests more are not answered
	suspended  time.Duration // how much less is left of the lifetime by the wall clock
	reading    chan struct{} // not nil: reading the secrets hangs until it is closed
}

func (*issuer) API() tokenprovider.API           { return tokenprovider.API{RateLimitWait: time.Minute} }
func (*issuer) SecretOptions() map[string]string { return nil }
func (*issuer) Grant() tokenprovider.Grant {
	return tokenprovider.Grant{Provider: "test", Scopes: []string{"read", "write"}}
}

func (i *issuer) WithScopes([]string) (tokenprovider.Provider, error) { return i, nil }

func (i *issuer) Secrets() ([]tokenprovider.Secret, error) {
	i.mu.Lock()
	reading := i.reading
	i.mu.Unlock()
	if reading != nil {
		<-reading
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return []tokenprovider.Secret{tokenprovider.NewSecret(i.secret)}, i.noSecret
}

func (i *issuer) Token(ctx context.Context, _ *http.Client) (*tokenprovider.Token, error) {
	sent := time.Now()
	i.mu.Lock()
	i.requests = append(i.requests, sent)
	n, hang, panics, latency := len(i.requests), i.hang, i.panics, i.latency
	if i.unanswered > 0 {
		i.unanswered--
		hang = true
	}
	i.mu.Unlock()
	if panics {
		panic("a defect of the provider")
	}

	if hang {
		latency = time.Hour
	}
	if latency > 0 { // Go 1.26.8 can crash on a timer of zero in a bubble under the race detector
		select {
		case <-time.After(latency):
		case <-ctx.Done():
			return nil, &tokenprovider.Error{Class: tokenprovider.Transient, Err: errors.New("no answer")}
		}
	}

	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil {
		return nil, i.err
	}
	value := fmt.Sprintf("token-%d", n)
	if i.same {
		value = "token"
	}
	return &tokenprovider.Token{
		Value: tokenprovider.NewSecret(value), Issued: sent, Expires: tokensource.Suspend(sent.Add(i.lifetime), i.suspended),
		ExpiryAssumed: i.assumed, Scopes: i.granted,
	}, nil
}

func (i *issuer) set(change func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.requests)
}

// at returns when the n-th token request was made.
func (i *issuer) at(n int) time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.requests[n]
}

func newSource(t *testing.T, i *issuer, options ...func(*tokensource.Options)) *tokensource.Source {
	t.Helper()
	o := tokensource.Options{Name: "test", Provider: i, State: tokensource.NewState(), Logger: zap.NewNop()}
	for _, option := range options {
		option(&o)
	}
	o.Fingerprints, _ = tokensource.Fingerprints(o.Provider)
	s := tokensource.New(o)
	t.Cleanup(func() {
		s.Stop()
		time.Sleep(time.Minute) // in a bubble: lets the token request under way end
	})
	return s
}

var (
	down    = &tokenprovider.Error{Class: tokenprovider.Transient, Err: errors.New("connection refused")}
	refused = &tokenprovider.Error{Class: tokenprovider.Refused, Status: 401, Code: "invalid_client"}
)

// waits returns how long after the one before each token request was made.
func (i *issuer) waits() []time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	var waits []time.Duration
	for n := 1; n < len(i.requests); n++ {
		waits = append(waits, i.requests[n].Sub(i.requests[n-1]))
	}
	return waits
}

// recorded are the outcomes of token requests.
type recorded struct {
	mu       sync.Mutex
	outcomes []tokensource.Outcome
}

// record returns an option that has the outcomes recorded.
func record() (*recorded, func(*tokensource.Options)) {
	r := new(recorded)
	return r, func(o *tokensource.Options) {
		o.OnOutcome = func(outcome tokensource.Outcome) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.outcomes = append(r.outcomes, outcome)
		}
	}
}

// all returns the outcomes of all token requests that have ended by now.
func (r *recorded) all() []tokensource.Outcome {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.outcomes)
}

// checkSpread checks that all samples of what varies at random are in a range
// and that they fill it.
func checkSpread(t *testing.T, what string, samples []time.Duration, least, most time.Duration) {
	t.Helper()
	low, high, margin := slices.Min(samples), slices.Max(samples), (most-least)/4
	if low < least || high > most || low > least+margin || high < most-margin {
		t.Errorf("%s: between %v and %v, want all from %v to %v", what, low, high, least, most)
	}
}

// get asks for a token and returns how long that took.
func get(s *tokensource.Source) (string, time.Duration, error) {
	start := time.Now()
	token, err := s.Token(context.Background())
	took := time.Since(start)
	if err != nil {
		return "", took, err
	}
	return token.Value.Reveal(), took, nil
}
