package tokenstore

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

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// authServer issues tokens to clients that have one of the secrets it accepts.
type authServer struct {
	mu       sync.Mutex
	accepted []string
	tokens   []string
	refused  int
}

// rotating is a Provider of one instance, whose secret has several values.
type rotating struct {
	*issuer
	server *authServer
	values []string
}

func (r *rotating) Secrets() ([]tokenprovider.Secret, error) { return secret(r.values[0]), nil }

func (r *rotating) Alternatives() (all []tokenprovider.Provider) {
	for _, value := range r.values {
		all = append(all, &rotating{r.issuer, r.server, []string{value}})
	}
	return all
}

func (r *rotating) Token(context.Context, *http.Client) (*tokenprovider.Token, error) {
	now := time.Now()
	time.Sleep(10 * time.Millisecond)
	r.server.mu.Lock()
	defer r.server.mu.Unlock()
	if !slices.Contains(r.server.accepted, r.values[0]) {
		r.server.refused++
		return nil, &tokenprovider.Error{Class: tokenprovider.Refused, Status: 401, Code: "invalid_client"}
	}
	value := fmt.Sprintf("token-%d-of-%s", len(r.server.tokens)+1, r.values[0])
	r.server.tokens = append(r.server.tokens, value)
	return &tokenprovider.Token{Value: tokenprovider.NewSecret(value), Issued: now, Expires: now.Add(r.issuer.lifetime)}, nil
}

// startRotating starts an instance with values of the secret.
func startRotating(m *memory, server *authServer, values string) *tokensource.Source {
	r := &rotating{&issuer{lifetime: time.Minute}, server, strings.Fields(values)}
	fingerprints, _ := tokensource.Fingerprints(r)
	s := tokensource.New(tokensource.Options{
		Name: "test", Provider: r, State: tokensource.NewState(), Shared: use(m).Credential("test", identity),
		Fingerprints: fingerprints, Logger: zap.NewNop(),
	})
	s.Start()
	return s
}

func TestEntryIsOpenedWithAnyValue(t *testing.T) {
	ctx := t.Context()
	for sealing, want := range map[string]int{"new": 0, "old": 1, "third": 2, "other": -1} {
		c := use(newMemory()).Credential("shop", identity)
		if err := c.Store(ctx, secret(sealing), issued("a-token", time.Now())); err != nil {
			t.Fatal(err)
		}
		got, err := c.Load(ctx, alternatives("new", "old", "third"))
		switch {
		case err != nil:
			t.Errorf("%s: %v", sealing, err)
		case want < 0 && got != nil:
			t.Errorf("%s: opened", sealing)
		case want >= 0 && (got == nil || got.Alternative != want || got.Value.Reveal() != "a-token"):
			t.Errorf("%s: got %+v, want it by alternative %d", sealing, got, want)
		}
	}
	if _, err := openAny(identity, nil, nil, time.Now()); !errors.Is(err, errNoSecret) {
		t.Errorf("without a value: %v", err)
	}
}

// TestFleetWhoseInstancesHaveOtherValues: while a config is rolled out, or a file
// reaches one machine after the other, instances do not have the same values. None
// waits for a token, and they make no more token requests than if they shared none.
func TestFleetWhoseInstancesHaveOtherValues(t *testing.T) {
	const cycles = 30 // of 40 to 42 seconds
	for _, c := range []struct {
		instances []string
		accepted  string
		most      int // token requests in a cycle that succeed
		refused   int // in all
	}{
		{[]string{"new old", "new old", "new old"}, "new old", 1, 0},
		{[]string{"new old", "old"}, "new old", 2, 0},
		{[]string{"old", "new old"}, "new old", 2, 0},
		{[]string{"new old", "old"}, "old", 1, 1},
		{[]string{"new old", "new"}, "new", 1, 0},
		{[]string{"new old", "old new"}, "new old", 1, 0},
		{[]string{"new old", "old new", "new", "old"}, "new old", 3, 0},
		{[]string{"new", "old"}, "new old", 2, 0}, // nothing in common
	} {
		t.Run(strings.Join(c.instances, ", ")+" accepts "+c.accepted, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, server := newMemory(), &authServer{accepted: strings.Fields(c.accepted)}
				var sources []*tokensource.Source
				for _, values := range c.instances {
					s := startRotating(m, server, values)
					sources = append(sources, s)
					token(t, s)
				}
				start := time.Now()
				for time.Since(start) < cycles*41*time.Second {
					for i, s := range sources {
						before := time.Now()
						token(t, s)
						if took := time.Since(before); took > 0 {
							t.Errorf("instance %d waited %v", i, took)
						}
						got, status := "", tokensource.Status{}
						for got != token(t, s) { // a look at the storage may bring another
							got = token(t, s)
							synctest.Wait()
							status = s.Status()
						}
						_, of, _ := strings.Cut(got, "-of-")
						values := strings.Fields(c.instances[i])
						number := slices.Index(values, of) + 1
						if number == 0 {
							t.Errorf("instance %d uses %s, which is of none of its values", i, got)
						}
						if len(values) > 1 && status.SecretInUse != number {
							t.Errorf("instance %d uses %s, and says it is of value %d", i, got, status.SecretInUse)
						}
					}
					time.Sleep(500 * time.Millisecond)
				}
				server.mu.Lock()
				if got, most := len(server.tokens), (cycles+2)*c.most; got > most {
					t.Errorf("%d token requests in %d cycles, want at most %d", got, cycles, most)
				}
				if server.refused > c.refused*len(c.instances) {
					t.Errorf("%d token requests were refused, want at most %d by each instance", server.refused, c.refused)
				}
				server.mu.Unlock()
				for _, s := range sources {
					s.Stop()
				}
				time.Sleep(time.Minute)
			})
		})
	}
}

// TestRevocationIsReadByInstancesWithOneValue: the note is sealed as the token was.
func TestRevocationIsReadByInstancesWithOneValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, server := newMemory(), &authServer{accepted: []string{"old"}}
		one := startRotating(m, server, "new old")
		first := token(t, one)
		time.Sleep(time.Second)
		other := startRotating(m, server, "old")
		if got := token(t, other); got != first {
			t.Fatalf("the other uses %s, want %s", got, first)
		}
		if err := one.Revoke(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			time.Sleep(500 * time.Millisecond)
			token(t, other)
		}
		if got := token(t, other); got == first {
			t.Error("the other still uses the token that was revoked")
		}
		one.Stop()
		other.Stop()
		time.Sleep(time.Minute)
	})
}
