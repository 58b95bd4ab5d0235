package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// What surrounds the instances of a simulated fleet: the server that issues
// tokens and takes them, and the storage that the instances share.

// simServer is the authorization server, and the API.
type simServer struct {
	latency  time.Duration // of a token request
	lifetime time.Duration

	mu       sync.Mutex
	onAsk    func(*instance) // called with whoever makes a token request
	issued   int
	live     map[string]time.Time // tokens, and when they expire
	mostLive int
}

// watch has f called with each instance that makes a token request.
func (s *simServer) watch(f func(*instance)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onAsk = f
}

// issue makes a token.
func (s *simServer) issue(to *instance) (value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.onAsk != nil {
		s.onAsk(to)
	}
	now := time.Now()
	s.issued++
	value = fmt.Sprintf("token-%d", s.issued)
	maps.DeleteFunc(s.live, func(_ string, expires time.Time) bool { return !expires.After(now) })
	s.live[value] = now.Add(s.lifetime)
	s.mostLive = max(s.mostLive, len(s.live))
	return value
}

// accepts reports whether the API takes a token.
func (s *simServer) accepts(value string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[value].After(time.Now())
}

// revokeAll ends all tokens.
func (s *simServer) revokeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.live)
}

// measure returns the number of token requests so far, and how many tokens were
// live at most since it was called last.
func (s *simServer) measure() (issued, mostLive int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mostLive, s.mostLive = s.mostLive, 0
	return s.issued, mostLive
}

// simProvider is what an instance knows the server by.
type simProvider struct {
	server   *simServer
	instance *instance
}

func (simProvider) API() tokenprovider.API           { return tokenprovider.API{RateLimitWait: time.Minute} }
func (simProvider) SecretOptions() map[string]string { return nil }
func (simProvider) Grant() tokenprovider.Grant {
	return tokenprovider.Grant{Provider: "simulated", TokenURL: "https://login.example/token", ClientID: "fleet"}
}

func (p simProvider) WithScopes([]string) (tokenprovider.Provider, error) { return p, nil }

func (p simProvider) Secrets() ([]tokenprovider.Secret, error) {
	return []tokenprovider.Secret{tokenprovider.NewSecret(*p.instance.secret.Load())}, nil
}

func (p simProvider) Token(ctx context.Context, _ *http.Client) (*tokenprovider.Token, error) {
	if p.instance.dead.Load() {
		return nil, errDead
	}
	sent := time.Now()
	value := p.server.issue(p.instance)
	if err := pause(ctx, p.server.latency); err != nil || p.instance.dead.Load() {
		return nil, &tokenprovider.Error{Class: tokenprovider.Transient, Err: errors.New("no answer")}
	}
	return &tokenprovider.Token{Value: tokenprovider.NewSecret(value), Issued: sent, Expires: sent.Add(p.server.lifetime)}, nil
}

var (
	errDead = errors.New("the process has ended")
	errDown = errors.New("connection refused")
)

// pause sleeps for d, which is above zero, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// simStorage is one storage for all instances. It locks as Caddy's modules for
// files and for Redis do: who waits for a lock looks once a second, and the lock of
// a process that has died is free some seconds later.
type simStorage struct {
	latency time.Duration // of each operation
	lockTTL time.Duration

	locksNothing bool // as some modules for S3

	mu      sync.Mutex
	down    bool
	entries map[string][]byte
	locks   map[string]simLock
	loads   int
	stores  int
}

type simLock struct {
	holder *instance
	freed  time.Time // once the holder has died
}

func (s *simStorage) setDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// died starts the time after which the locks of a process that has died are free.
func (s *simStorage) died(holder *instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, lock := range s.locks {
		if lock.holder == holder && lock.freed.IsZero() {
			s.locks[name] = simLock{holder, time.Now().Add(s.lockTTL)}
		}
	}
}

func (s *simStorage) counts() (loads, stores int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loads, s.stores
}

// storageOf is the storage as one instance has it.
type storageOf struct {
	*simStorage
	instance *instance
}

var _ certmagic.Storage = storageOf{}

// do does f to the storage, after its latency.
func (s storageOf) do(ctx context.Context, f func() error) error {
	if err := pause(ctx, s.latency); err != nil {
		return err
	}
	if s.instance.dead.Load() {
		return errDead
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return errDown
	}
	return f()
}

func (s storageOf) Load(ctx context.Context, key string) (value []byte, err error) {
	err = s.do(ctx, func() error {
		s.loads++
		found, ok := s.entries[key]
		if !ok {
			return fs.ErrNotExist
		}
		value = slices.Clone(found)
		return nil
	})
	return value, err
}

func (s storageOf) Store(ctx context.Context, key string, value []byte) error {
	return s.do(ctx, func() error {
		s.stores++
		s.entries[key] = slices.Clone(value)
		return nil
	})
}

func (s storageOf) Delete(ctx context.Context, key string) error {
	return s.do(ctx, func() error {
		delete(s.entries, key)
		return nil
	})
}

func (s storageOf) Exists(ctx context.Context, key string) bool {
	_, err := s.Load(ctx, key)
	return err == nil
}

func (s storageOf) List(ctx context.Context, prefix string, _ bool) (keys []string, err error) {
	err = s.do(ctx, func() error {
		for key := range s.entries {
			if strings.HasPrefix(key, path.Clean(prefix)+"/") {
				keys = append(keys, key)
			}
		}
		return nil
	})
	return keys, err
}

func (s storageOf) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	value, err := s.Load(ctx, key)
	return certmagic.KeyInfo{Key: key, Size: int64(len(value)), IsTerminal: true}, err
}

// lockPoll is how often the modules look whether a lock has become free.
const lockPoll = time.Second

func (s storageOf) Lock(ctx context.Context, name string) error {
	for {
		held := false
		if err := s.do(ctx, func() error {
			lock, found := s.locks[name]
			if held = found && !s.locksNothing && (lock.freed.IsZero() || lock.freed.After(time.Now())); !held {
				s.locks[name] = simLock{holder: s.instance}
			}
			return nil
		}); err != nil || !held {
			return err
		}
		if err := pause(ctx, lockPoll); err != nil {
			return err
		}
	}
}

func (s storageOf) Unlock(ctx context.Context, name string) error {
	return s.do(ctx, func() error {
		if s.locks[name].holder == s.instance {
			delete(s.locks, name)
		}
		return nil
	})
}
