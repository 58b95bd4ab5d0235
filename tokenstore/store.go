// Package tokenstore keeps tokens in a storage of Caddy's, where the instances of
// a gateway and their next runs find them: sealed, so that nobody reads one there
// who does not have the client secret.
//
// Storage and locks are certmagic's. Either may be slow or fail: an operation is
// given less than a second, and an instance that gets nothing here uses tokens of
// its own.
package tokenstore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
)

const (
	// operationTimeout bounds one operation on the storage.
	operationTimeout = 750 * time.Millisecond

	// maxOperations is how many operations are under way at a time, and placeTimeout
	// is how long another waits for its turn: one that hangs has a goroutine.
	maxOperations = 64
	placeTimeout  = 5 * time.Second
)

// Where things are in the storage.
const (
	tokensPrefix  = "egress/tokens"
	sharersPrefix = "egress/sharers"
	probesPrefix  = "egress/probes"
)

// Operations on the storage, and how they end.
const (
	OperationLoad   = "load"
	OperationStore  = "store"
	OperationLock   = "lock"
	OperationDelete = "delete"
	OperationList   = "list"

	OutcomeOK       = "ok"
	OutcomeAbsent   = "absent"   // there is nothing to load
	OutcomeUnusable = "unusable" // there is, and it cannot be used
	OutcomeBusy     = "busy"     // another instance has the lock
	OutcomeFailed   = "failed"
)

// Options configure a Store.
type Options struct {
	// Storage keeps the tokens; Name is its name for people.
	Storage certmagic.Storage
	Name    string

	// Place tells storages apart: stores of the same place have the same tokens.
	// Default: Name.
	Place string

	// Open returns the storage where Storage is nil: it could not be set up so far.
	// It is called again until it succeeds, and not after CloseSoon.
	Open func() (certmagic.Storage, error)

	// OnOperation is called after each operation with its outcome, from any
	// goroutine. May be nil.
	OnOperation func(operation, outcome string)

	Logger *zap.Logger
}

// Store keeps the tokens of all credentials of a config.
type Store struct {
	opts     Options
	instance string // names this instance, to others
	health   health
	places   chan struct{} // has a value for each operation under way
	locking  sync.Map      // names of locks that are waited for
	probing  atomic.Bool

	opening sync.Mutex        // held while storage is opened
	storage certmagic.Storage // nil: it is still to be opened
	ending  bool              // nothing is to be opened any more
}

// instance names this process to others.
var instance = sync.OnceValue(func() string {
	id := make([]byte, 8)
	_, _ = rand.Read(id) // never fails
	return hex.EncodeToString(id)
})

// New returns a store.
func New(opts Options) *Store {
	if opts.Place == "" {
		opts.Place = opts.Name
	}
	if opts.OnOperation == nil {
		opts.OnOperation = func(string, string) {}
	}
	return &Store{
		opts:     opts,
		storage:  opts.Storage,
		health:   health{logger: opts.Logger, since: time.Now()},
		places:   make(chan struct{}, maxOperations),
		instance: instance(),
	}
}

// Health returns how the storage is doing.
func (s *Store) Health() Health { return s.health.get(s.opts.Name) }

// CloseSoon has no storage opened any more. It waits for one that is being opened.
func (s *Store) CloseSoon() {
	s.opening.Lock()
	defer s.opening.Unlock()
	s.ending = true
}

// Close has nothing more looked up, stored or logged. What is behind the store may
// be closed after that.
func (s *Store) Close() { s.health.close() }

// open returns the storage.
func (s *Store) open() (certmagic.Storage, error) {
	s.opening.Lock()
	defer s.opening.Unlock()
	switch {
	case s.storage != nil:
		return s.storage, nil
	case s.ending:
		return nil, errClosed
	}
	storage, err := s.opts.Open()
	if err == nil {
		s.storage = storage
	}
	return storage, err
}

// load returns what is stored under key.
func (s *Store) load(ctx context.Context, key string) ([]byte, error) {
	return do(ctx, s, OperationLoad, func(ctx context.Context, storage certmagic.Storage) ([]byte, error) {
		return storage.Load(ctx, key)
	})
}

func (s *Store) store(ctx context.Context, key string, value []byte) error {
	_, err := do(ctx, s, OperationStore, func(ctx context.Context, storage certmagic.Storage) (any, error) {
		return nil, storage.Store(ctx, key, value)
	})
	return err
}

func (s *Store) delete(ctx context.Context, key string) error {
	_, err := do(ctx, s, OperationDelete, func(ctx context.Context, storage certmagic.Storage) (any, error) {
		err := storage.Delete(ctx, key)
		if errors.Is(err, fs.ErrNotExist) { // some say so, though they need not
			err = nil
		}
		return nil, err
	})
	return err
}

// list returns the keys below prefix.
func (s *Store) list(ctx context.Context, prefix string) ([]string, error) {
	return do(ctx, s, OperationList, func(ctx context.Context, storage certmagic.Storage) ([]string, error) {
		keys, err := storage.List(ctx, prefix, true)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return keys, err
	})
}

// do does f, an operation on the storage of s, in the time that it may take, also
// if f ignores its context. It returns before that when ctx ends. That says nothing
// of the storage: f goes on, and what becomes of it is noted.
func do[T any](ctx context.Context, s *Store, operation string, f func(context.Context, certmagic.Storage) (T, error)) (result T, err error) {
	if err := s.health.leftAlone(operation); err != nil {
		return result, err
	}
	if err := s.enter(ctx); err != nil {
		return result, err
	}
	type ended struct {
		result T
		err    error
	}
	during, cancel := context.WithTimeout(context.WithoutCancel(ctx), operationTimeout)
	done, noted := make(chan ended, 1), make(chan ended, 1)
	go func() {
		var e ended
		e.err = recovered(func() error {
			storage, err := s.open()
			if err == nil {
				e.result, err = f(during, storage)
			}
			return err
		})
		<-s.places
		done <- e
	}()
	go func() {
		defer cancel()
		var e ended
		select {
		case e = <-done:
		case <-during.Done():
			e.err = fmt.Errorf("no answer within %v", operationTimeout)
		}
		s.note(operation, e.err)
		noted <- e
	}()
	select {
	case e := <-noted:
		return e.result, e.err
	case <-ctx.Done():
		return result, ctx.Err()
	}
}

// enter waits for a place among the operations under way.
func (s *Store) enter(ctx context.Context) error {
	timeout := time.NewTimer(placeTimeout)
	defer timeout.Stop()
	select {
	case s.places <- struct{}{}:
		return nil
	case <-timeout.C:
		return errors.New("too many operations on the storage hang")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// recovered calls f, and makes an error of a panic. No request of a client runs f,
// so that a panic would end the process.
func recovered(f func() error) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("the storage module panicked")
		}
	}()
	return f()
}

// note notes how an operation has ended. What a load has brought is for the caller
// to judge. That there is nothing proves nothing: some storages say so whatever is
// wrong with them.
func (s *Store) note(operation string, err error) {
	switch {
	case operation == OperationLoad && errors.Is(err, fs.ErrNotExist):
		s.opts.OnOperation(operation, OutcomeAbsent)
	case err != nil:
		s.health.failed(operation, err)
		s.opts.OnOperation(operation, OutcomeFailed)
	case operation == OperationLoad:
		s.health.worked(operation)
	default:
		s.health.worked(operation)
		s.opts.OnOperation(operation, OutcomeOK)
	}
}
