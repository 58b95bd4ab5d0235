package tokenstore

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"))
}

// memory is a storage that can have faults.
type memory struct {
	mu     sync.Mutex
	values map[string][]byte
	locks  map[string]bool

	fails map[string]error         // by operation
	takes map[string]time.Duration // by operation; the context is ignored
	calls map[string]int
}

func newMemory() *memory {
	return &memory{
		values: make(map[string][]byte), locks: make(map[string]bool),
		fails: make(map[string]error), takes: make(map[string]time.Duration), calls: make(map[string]int),
	}
}

func (m *memory) set(change func(*memory)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m)
}

// called returns how often an operation was begun.
func (m *memory) called(operation string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[operation]
}

func (m *memory) locked(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.locks[name]
}

func (m *memory) begin(operation string) error {
	m.mu.Lock()
	m.calls[operation]++
	takes, err := m.takes[operation], m.fails[operation]
	m.mu.Unlock()
	if takes > 0 {
		time.Sleep(takes)
	}
	return err
}

func (m *memory) Load(_ context.Context, key string) ([]byte, error) {
	if err := m.begin(OperationLoad); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	value, ok := m.values[key]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return value, nil
}

func (m *memory) Store(_ context.Context, key string, value []byte) error {
	if err := m.begin(OperationStore); err != nil {
		return err
	}
	m.set(func(m *memory) { m.values[key] = value })
	return nil
}

func (m *memory) Delete(_ context.Context, key string) error {
	if err := m.begin(OperationDelete); err != nil {
		return err
	}
	m.set(func(m *memory) { delete(m.values, key) })
	return nil
}

// List returns what is between as well, as the storage of files does.
func (m *memory) List(_ context.Context, prefix string, _ bool) (keys []string, err error) {
	if err := m.begin(OperationList); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for key := range m.values {
		if rest, ok := strings.CutPrefix(key, prefix+"/"); ok {
			keys = append(keys, key)
			if folder, _, below := strings.Cut(rest, "/"); below {
				keys = append(keys, prefix+"/"+folder)
			}
		}
	}
	return keys, nil
}

func (m *memory) Lock(ctx context.Context, name string) error {
	if err := m.begin(OperationLock); err != nil {
		return err
	}
	for {
		m.mu.Lock()
		if !m.locks[name] {
			m.locks[name] = true
			m.mu.Unlock()
			return nil
		}
		m.mu.Unlock()
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *memory) Unlock(_ context.Context, name string) error {
	m.set(func(m *memory) { m.locks[name] = false })
	return nil
}

func (m *memory) Exists(context.Context, string) bool { return false }
func (m *memory) Stat(context.Context, string) (certmagic.KeyInfo, error) {
	return certmagic.KeyInfo{}, fs.ErrNotExist
}

// used is a store with what it has logged and counted.
type used struct {
	*Store
	logs *observer.ObservedLogs

	mu     sync.Mutex
	counts map[string]int // by operation and outcome
}

func use(storage certmagic.Storage) *used {
	core, logs := observer.New(zap.DebugLevel)
	u := &used{logs: logs, counts: make(map[string]int)}
	u.Store = New(Options{Storage: storage, Name: "memory", Place: fmt.Sprintf("memory %p", storage), Logger: zap.New(core), OnOperation: func(operation, outcome string) {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.counts[operation+" "+outcome]++
	}})
	u.instance = fmt.Sprintf("%016x", instances.Add(1)) // as if each was a process of its own
	return u
}

var instances atomic.Int64

func (u *used) count(what string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.counts[what]
}

const identity = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func secret(values ...string) (secrets []tokenprovider.Secret) {
	for _, value := range values {
		secrets = append(secrets, tokenprovider.NewSecret(value))
	}
	return secrets
}

// alternatives returns secrets that have these values.
func alternatives(values ...string) (all [][]tokenprovider.Secret) {
	for _, value := range values {
		all = append(all, secret(value))
	}
	return all
}

// issued returns a token that was issued then.
func issued(value string, then time.Time) tokensource.SharedToken {
	return tokensource.SharedToken{Token: tokenprovider.Token{
		Value: tokenprovider.NewSecret(value), Issued: then, Expires: then.Add(time.Hour),
	}}
}
