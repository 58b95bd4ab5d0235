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

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// storage keeps the token of one credential for all instances of a test.
type storage struct {
	mu     sync.Mutex
	stored *tokensource.SharedToken
	held   map[tokensource.Lock]bool
	users  map[*instance]string

	place   string
	latency time.Duration // of each operation
	storing time.Duration // how much longer it takes to store
	err     error         // of each operation
	lockErr error         // of each lock
	stuck   map[tokensource.Lock]bool
	loads   int
}

// instance is the storage as one instance sees it.
type instance struct{ *storage }

func newStorage() *storage {
	return &storage{
		held: make(map[tokensource.Lock]bool), users: make(map[*instance]string),
		stuck: make(map[tokensource.Lock]bool), latency: time.Millisecond, place: "here",
	}
}

func (s *storage) set(change func(*storage)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// wait is what each operation begins with.
func (s *storage) wait(ctx context.Context) error {
	s.mu.Lock()
	latency, err := s.latency, s.err
	s.mu.Unlock()
	select {
	case <-time.After(latency):
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (i *instance) Place() string { return i.place }

func (i *instance) Load(ctx context.Context, _ [][]tokenprovider.Secret) (*tokensource.SharedToken, error) {
	if err := i.wait(ctx); err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.loads++
	return i.stored, nil
}

func (i *instance) Store(ctx context.Context, _ []tokenprovider.Secret, t tokensource.SharedToken) error {
	select {
	case <-time.After(i.storing):
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := i.wait(ctx); err != nil {
		return err
	}
	i.set(func(s *storage) { s.stored = &t })
	return nil
}

func (i *instance) Lock(ctx context.Context, which tokensource.Lock) (func(), error) {
	for {
		if err := i.wait(ctx); err != nil {
			return nil, err
		}
		i.mu.Lock()
		if err := i.lockErr; err != nil {
			i.mu.Unlock()
			return nil, err
		}
		if !i.held[which] && !i.stuck[which] {
			i.held[which] = true
			i.mu.Unlock()
			return func() { i.set(func(s *storage) { s.held[which] = false }) }, nil
		}
		i.mu.Unlock()
	}
}

func (i *instance) Join(_ context.Context, t tokenprovider.Token) {
	i.set(func(s *storage) { s.users[i] = t.Value.Reveal() })
}

func (i *instance) Leave(_ context.Context, _ [][]tokenprovider.Secret, t tokenprovider.Token) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.users, i)
	for _, other := range i.users {
		if other == t.Value.Reveal() {
			return false
		}
	}
	i.stored = nil
	return true
}

// fleet returns n sources that share their tokens; those of client request them.
func fleet(t *testing.T, n int, i *issuer, s *storage, options ...func(*tokensource.Options)) []*tokensource.Source {
	sources := make([]*tokensource.Source, n)
	for k := range sources {
		share := func(o *tokensource.Options) { o.Shared = &instance{s} }
		sources[k] = newSource(t, i, append([]func(*tokensource.Options){share}, options...)...)
	}
	return sources
}

func start(sources []*tokensource.Source) {
	for _, s := range sources {
		s.Start()
	}
}

// carry has every source asked for its token, as often as every for d, and
// returns the slowest answer.
func carry(t *testing.T, sources []*tokensource.Source, d, every time.Duration) (slowest time.Duration) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for k, s := range sources {
		wg.Go(func() {
			time.Sleep(time.Duration(k+1) * time.Millisecond)
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(every) {
				_, took, err := get(s)
				if err != nil {
					t.Errorf("instance %d: %v", k, err)
				}
				mu.Lock()
				slowest = max(slowest, took)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return slowest
}

func TestInstancesShareATokenRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: 12 * time.Second, latency: 20 * time.Millisecond}
		sources := fleet(t, 5, i, newStorage())
		start(sources)
		slowest := carry(t, sources, 2*time.Minute, 30*time.Millisecond)
		// a token is replaced after 8 s, and a tenth of 4 s later at most
		if n := i.count(); n < 14 || n > 16 {
			t.Errorf("%d token requests in two minutes, want 15 and no more", n)
		}
		if slowest > 100*time.Millisecond { // the first: the others look every 50 ms
			t.Errorf("the slowest request waited %v", slowest)
		}
		var shared int
		for _, s := range sources {
			if status := s.Status(); status.Shared {
				shared++
			} else if status.Requests == 0 {
				t.Error("a token is its own, and it has made no token request")
			}
		}
		if shared != 4 {
			t.Errorf("%d of 5 have the token of another, want 4", shared)
		}
	})
}

func TestRestartUsesTheStoredToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, stored := &issuer{lifetime: time.Hour}, newStorage()
		for range 20 {
			s := fleet(t, 1, i, stored)[0]
			s.Start()
			if _, took, err := get(s); err != nil || took > 10*time.Millisecond {
				t.Errorf("error %v after %v", err, took)
			}
			s.Stop()
			time.Sleep(time.Minute)
		}
		if i.count() != 1 {
			t.Errorf("%d token requests in 20 restarts, want 1", i.count())
		}
	})
}

// Its budget would be used up by a tenth of these.
func TestTakingOverCostsNoBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, stored := &issuer{lifetime: time.Hour}, newStorage()
		s := fleet(t, 1, i, stored)[0]
		s.Start()
		_, _, _ = get(s)
		for range 50 {
			time.Sleep(10 * time.Millisecond)
			live := s.Live()
			stored.set(func(st *storage) {
				st.stored = &tokensource.SharedToken{Token: live.Token}
				st.stored.Issued, st.stored.Value = time.Now(), tokenprovider.NewSecret("of-another-"+time.Now().String())
			})
			fresh := s.Rejected(live, by)
			if fresh == nil {
				t.Fatal("the 401 was held back")
			}
			if token, err := fresh.Token(t.Context()); err != nil || token == live {
				t.Fatalf("got %v, %v; want the newer token", token, err)
			} else {
				fresh.Answered(token, http.StatusOK)
			}
		}
		if i.count() != 1 {
			t.Errorf("%d token requests, want 1", i.count())
		}
	})
}

func TestRejectedTokenThatIsStoredIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour, latency: 20 * time.Millisecond}
		sources := fleet(t, 5, i, newStorage())
		start(sources)
		carry(t, sources, time.Second, 100*time.Millisecond)
		var wg sync.WaitGroup
		for _, s := range sources { // the server has revoked it: all of them are told so at once
			rejected := s.Live()
			wg.Go(func() {
				token, err := s.Rejected(rejected, by).Token(t.Context())
				if err != nil || token.Value.Reveal() != "token-2" {
					t.Errorf("got %v, %v; want the second token", token, err)
				}
			})
		}
		wg.Wait()
		if i.count() != 2 {
			t.Errorf("%d token requests, want the second to serve all", i.count())
		}
	})
}

func TestLeaderThatDied(t *testing.T) {
	for name, stuck := range map[string][]tokensource.Lock{"first": {tokensource.FirstLock}, "both": {tokensource.FirstLock, tokensource.SecondLock}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i, stored := &issuer{lifetime: 12 * time.Second, latency: 20 * time.Millisecond}, newStorage()
				sources := fleet(t, 4, i, stored)
				start(sources)
				carry(t, sources, 7*time.Second, 100*time.Millisecond)
				stored.set(func(s *storage) {
					for _, which := range stuck {
						s.stuck[which] = true
					}
				})
				if slowest := carry(t, sources, 5*time.Second, 100*time.Millisecond); slowest != 0 {
					t.Errorf("a request waited %v, although its token lived", slowest)
				}
				want := 2 // one of them asks, under the second lock
				if len(stuck) > 1 {
					want = 5 // each asks for itself
				}
				if i.count() > want || i.count() < 2 {
					t.Errorf("%d token requests, want at most %d", i.count(), want)
				}
			})
		})
	}
}

func TestLockThatIsRefusedBySomeStoragesWhileItIsHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, stored := &issuer{lifetime: time.Hour, latency: 100 * time.Millisecond}, newStorage()
		leader, follower := fleet(t, 1, i, stored)[0], fleet(t, 1, i, stored)[0]
		leader.Start()
		time.Sleep(20 * time.Millisecond) // it has the lock
		stored.set(func(s *storage) { s.lockErr = errors.New("is locked") })
		follower.Start()
		if _, took, err := get(follower); err != nil || took > 200*time.Millisecond || i.count() != 1 {
			t.Errorf("error %v after %v and %d token requests, want the leader's token", err, took, i.count())
		}
	})
}

func TestStorageIsNotWaitedFor(t *testing.T) {
	tests := map[string]func(*storage){
		"fails":     func(s *storage) { s.err = errors.New("down") },
		"hangs":     func(s *storage) { s.latency = time.Minute },
		"lock held": func(s *storage) { s.stuck[tokensource.FirstLock] = true },
		"no locks":  func(s *storage) { s.lockErr = errors.New("read-only") },
	}
	for name, fault := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i, stored := &issuer{lifetime: time.Hour, latency: 20 * time.Millisecond}, newStorage()
				stored.set(fault)
				s := fleet(t, 1, i, stored)[0]
				s.Start()
				if _, took, err := get(s); err != nil || took > 270*time.Millisecond {
					t.Errorf("error %v after %v, want a token of its own after 250 ms at most", err, took)
				}
				if status := s.Status(); status.Shared || i.count() != 1 {
					t.Errorf("shared %t after %d token requests, want a token of its own", status.Shared, i.count())
				}
			})
		})
	}
}

func TestWhatIsStoredAndOfNoUse(t *testing.T) {
	tests := map[string]func(t *tokensource.SharedToken){
		"expired":         func(t *tokensource.SharedToken) { t.Expires = time.Now().Add(-time.Second) },
		"revoked":         func(t *tokensource.SharedToken) { t.Revoked = true },
		"older than ours": func(t *tokensource.SharedToken) { t.Issued = t.Issued.Add(-time.Minute) },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i, stored := &issuer{lifetime: time.Hour}, newStorage()
				s := fleet(t, 1, i, stored)[0]
				s.Start()
				ours, _, err := get(s)
				if err != nil {
					t.Fatal(err)
				}
				live := s.Live()
				time.Sleep(time.Second)
				other := tokensource.SharedToken{Token: live.Token}
				other.Value = tokenprovider.NewSecret("other")
				change(&other)
				stored.set(func(s *storage) { s.stored = &other })
				carry(t, []*tokensource.Source{s}, 5*time.Second, 100*time.Millisecond)
				if got, _, _ := get(s); got != ours {
					t.Errorf("uses %s, want to stay with %s", got, ours)
				}
			})
		})
	}
}

func TestRevocationReachesTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &revoker{issuer: &issuer{lifetime: time.Hour, latency: 20 * time.Millisecond}}
		stored := newStorage()
		core, logs := observer.New(zap.InfoLevel)
		sources := make([]*tokensource.Source, 3)
		for k := range sources {
			sources[k] = tokensource.New(tokensource.Options{
				Name: "test", Provider: i, State: tokensource.NewState(), Shared: &instance{stored}, Logger: zap.New(core),
			})
			t.Cleanup(func() { sources[k].Stop(); time.Sleep(time.Minute) })
		}
		start(sources)
		carry(t, sources, time.Second, 100*time.Millisecond)
		time.Sleep(10 * time.Minute) // nobody uses it
		i.set(func(i *issuer) { i.err = down })
		if err := sources[0].Revoke(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, s := range sources[1:] {
			if s.Live() == nil {
				t.Error("it was looked up although nobody used it")
			}
		}
		time.Sleep(2 * time.Second)
		for k, s := range sources {
			if token := s.Live(); token != nil {
				t.Errorf("instance %d uses %s 2 s after its first use", k, token.Value.Reveal())
			}
		}
		i.set(func(i *issuer) { i.err = nil })
		time.Sleep(10 * time.Second)
		carry(t, sources, time.Second, 100*time.Millisecond)
		if got := logs.FilterMessageSnippet("revoked by another instance").Len(); got != 2 {
			t.Errorf("%d instances have logged the revocation, want 2", got)
		}
		if !slices.Equal(i.revoked, []string{"token-1"}) {
			t.Errorf("revoked %v, want the first token", i.revoked)
		}
		tokens := make(map[string]bool)
		for _, s := range sources {
			token, _, err := get(s)
			if err != nil {
				t.Fatal(err)
			}
			tokens[token] = true
		}
		if len(tokens) != 1 || tokens["token-1"] {
			t.Errorf("the tokens are %v, want one that is new", tokens)
		}
	})
}

func TestRevokedTokenIsNotTakenOverAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &revoker{issuer: &issuer{lifetime: time.Hour}}
		stored := newStorage()
		s := tokensource.New(tokensource.Options{Name: "test", Provider: i, State: tokensource.NewState(), Shared: &instance{stored}, Logger: zap.NewNop()})
		t.Cleanup(func() { s.Stop(); time.Sleep(time.Minute) })
		s.Start()
		_, _, _ = get(s)
		synctest.Wait()
		stored.set(func(st *storage) { st.err = errors.New("down") })
		if err := s.Revoke(t.Context()); err != nil {
			t.Fatal(err)
		}
		stored.set(func(st *storage) { st.err = nil }) // and it still has the first token
		if token, _, err := get(s); err != nil || token != "token-2" {
			t.Errorf("got %s, %v; want the second token", token, err)
		}
	})
}

func TestTokenIsRevokedOnceNobodySharesIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &revoker{issuer: &issuer{lifetime: time.Hour}}
		stored := newStorage()
		states := []*tokensource.State{tokensource.NewState(), tokensource.NewState()}
		var sources []*tokensource.Source
		for _, state := range states {
			sources = append(sources, tokensource.New(tokensource.Options{
				Name: "test", Provider: i, State: state, Shared: &instance{stored}, RevokeOnStop: true, Logger: zap.NewNop(),
			}))
		}
		start(sources)
		carry(t, sources, time.Second, 100*time.Millisecond)
		for k, s := range sources {
			s.Stop()
			if err := states[k].Retire(time.Second, time.Second); err != nil {
				t.Fatal(err)
			}
			if want := k; len(i.revoked) != want {
				t.Errorf("%d tokens are revoked after %d of 2 instances have stopped, want %d", len(i.revoked), k+1, want)
			}
		}
		if stored.stored != nil {
			t.Error("a revoked token is still stored")
		}
		time.Sleep(time.Minute)
	})
}

// Unlike a refresh that is due, one that somebody asks for makes a token request.
func TestRefreshOnCommandIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{lifetime: time.Hour}
		sources := fleet(t, 3, i, newStorage())
		start(sources)
		carry(t, sources, time.Second, 100*time.Millisecond)
		if err := sources[1].Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		carry(t, sources, 2*time.Second, 100*time.Millisecond)
		for k, s := range sources {
			if got, _, _ := get(s); got != "token-2" {
				t.Errorf("instance %d uses %s, want token-2", k, got)
			}
		}
		if i.count() != 2 {
			t.Errorf("%d token requests, want 2", i.count())
		}
	})
}

func TestIdleCredentialIsNotLookedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i, stored := &issuer{lifetime: time.Hour}, newStorage()
		sources := fleet(t, 1, i, stored)
		start(sources)
		carry(t, sources, 10*time.Second, 100*time.Millisecond)
		stored.mu.Lock()
		before := stored.loads
		stored.mu.Unlock()
		if before < 9 || before > 14 {
			t.Errorf("looked up %d times in 10 s of use, want once a second", before)
		}
		time.Sleep(20 * time.Minute)
		stored.mu.Lock()
		defer stored.mu.Unlock()
		if got := stored.loads - before; got > 1 {
			t.Errorf("looked up %d times while idle", got)
		}
	})
}

func TestSecretThatHangsIsAFailure(t *testing.T) {
	for _, share := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			i, stored := &issuer{lifetime: time.Hour, latency: 20 * time.Millisecond}, newStorage()
			s := newSource(t, i, func(o *tokensource.Options) {
				if share {
					o.Shared = &instance{stored}
				}
			})
			s.Start()
			_, _, _ = get(s)
			reading := make(chan struct{})
			i.set(func(i *issuer) { i.reading = reading })
			time.Sleep(55 * time.Minute) // unused: whoever looks for it would read the secret as well
			if st := s.Status(); st.Failure == nil {
				t.Errorf("share %v: phase %s, no failure 15 min after the refresh was due", share, st.Phase)
			}
			i.set(func(i *issuer) { i.reading = nil })
			close(reading)
		})
	}
}

func TestRevocationWhileATokenRequestIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &revoker{issuer: &issuer{lifetime: time.Hour, latency: 20 * time.Millisecond}}
		stored := newStorage()
		opt := func(o *tokensource.Options) { o.Provider = i; o.Shared = &instance{stored} }
		a, b := newSource(t, i.issuer, opt), newSource(t, i.issuer, opt)
		a.Start()
		_, _, _ = get(a)
		time.Sleep(time.Second)
		b.Start()
		_, _, _ = get(b)
		i.set(func(i *issuer) { i.latency = 9 * time.Second })
		go func() { _ = b.Refresh(t.Context()) }()
		time.Sleep(100 * time.Millisecond)
		if err := a.Revoke(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 30 {
			b.Live()
			time.Sleep(100 * time.Millisecond)
		}
		if tk := b.Live(); tk != nil {
			t.Errorf("b uses %s 3 s after it was revoked", tk.Value.Reveal())
		}
		time.Sleep(20 * time.Second)
	})
}

func TestWaitAfterAFailureIsNoShorter(t *testing.T) {
	for _, share := range []bool{false, true} {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i, stored := &issuer{lifetime: time.Hour, latency: 20 * time.Millisecond, err: down}, newStorage()
				stored.stuck[tokensource.FirstLock] = true
				stored.stuck[tokensource.SecondLock] = true
				s := newSource(t, i, func(o *tokensource.Options) {
					if share {
						o.Shared = &instance{stored}
					}
				})
				s.Start()
				_, _, _ = get(s)
				i.set(func(i *issuer) { i.err = nil; i.latency = 850 * time.Millisecond })
				for until := time.Now().Add(time.Minute); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
					n := i.count()
					tk, took, err := get(s)
					if err != nil && took > 10*time.Millisecond {
						t.Errorf("failed after %v, token requests before %d and after %d: %v", took, n, i.count(), err)
					}
					if tk != "" {
						break
					}
				}
			})
		})
	}
}

// usedUp returns a source whose budget is used up, and whose tokens are dead at once.
func usedUp(t *testing.T, stored *storage) *tokensource.Source {
	t.Helper()
	s := fleet(t, 1, &issuer{lifetime: 10 * time.Millisecond}, stored)[0]
	for range 5 {
		if err := s.Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(20 * time.Millisecond)
	return s
}

func TestLockOfARequestThatIsDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored := newStorage()
		s := usedUp(t, stored)
		s.Start()
		time.Sleep(200 * time.Millisecond) // it has the lock, and waits for the budget
		held := func() bool {
			stored.mu.Lock()
			defer stored.mu.Unlock()
			return stored.held[tokensource.FirstLock]
		}
		if !held() {
			t.Fatal("the token request does not have the lock")
		}
		s.Stop()
		time.Sleep(50 * time.Millisecond)
		if held() {
			t.Error("the lock is still held")
		}
	})
}

func TestRequestThatIsDroppedBeforeItIsSentGivesNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stored := newStorage()
		stored.stuck[tokensource.FirstLock] = true
		s := usedUp(t, stored)
		s.Start()
		time.Sleep(100 * time.Millisecond) // it waits for the lock, and costs nothing yet
		s.Stop()
		if _, took, err := get(s); err != nil || took < 500*time.Millisecond {
			t.Errorf("error %v after %v, want that the budget is used up", err, took)
		}
	})
}
