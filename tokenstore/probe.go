package tokenstore

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// probeValue is an entry without anything in it, which has expired for ever.
var probeValue = fmt.Appendf(nil, `{"format":%d}`, format)

// probe tries what has failed and may be tried again, in the background. An
// instance that takes over what others have stored would not notice otherwise that
// it could store something itself.
func (s *Store) probe() {
	if !s.health.anyFailing() || !s.probing.CompareAndSwap(false, true) {
		return
	}
	go func() {
		defer s.probing.Store(false)
		ctx, cancel := context.WithTimeout(context.Background(), 2*operationTimeout)
		defer cancel()
		name := s.probeName()
		if s.health.isDue(OperationStore) && s.store(ctx, name, probeValue) == nil {
			_ = s.delete(ctx, name)
		}
		if s.health.isDue(OperationLock) {
			s.probeLocks()
		}
	}()
}

func (s *Store) probeName() string { return probesPrefix + "/" + s.instance }

// doubtLocks looks, in the background, whether locks can be had at all.
func (s *Store) doubtLocks() {
	if s.probing.CompareAndSwap(false, true) {
		go func() {
			defer s.probing.Store(false)
			s.probeLocks()
		}()
	}
}

// probeLockTimeout is how long a lock that nobody else wants may take. A storage of
// files needs two seconds to find out that an empty lock file, such as a full disk
// leaves, is nobody's.
const probeLockTimeout = 5 * time.Second

// probeLocks tries to get a lock that nobody else wants.
func (s *Store) probeLocks() {
	ctx, cancel := context.WithTimeout(context.Background(), probeLockTimeout)
	defer cancel()
	err := s.acquire(ctx, s.probeName())
	switch {
	case err == nil:
		s.health.worked(OperationLock)
		s.unlock(s.probeName())
	case ctx.Err() != nil:
		s.lockFailed(fmt.Errorf("a lock that nobody else wants was not granted within %v", probeLockTimeout))
	case !errors.Is(err, errClosed):
		s.lockFailed(err)
	}
}
