package tokenstore

import (
	"context"
	"errors"
	"time"
)

// lock waits for the lock of that name until ctx ends. It returns what gives the
// lock up. Errors other than that of ctx are left to the caller to judge: to some
// storages, a lock that another instance has is one.
//
// It is Lock, not TryLock: certmagic's file storage recognizes the lock of a dead
// process in the former only, if that has left its file empty, and its TryLock
// waits for two seconds as well.
func (s *Store) lock(ctx context.Context, name string) (unlock func(), err error) {
	if err := s.health.leftAlone(OperationLock); err != nil {
		return nil, err
	}
	err = s.acquire(ctx, name)
	switch {
	case err == nil:
		s.health.worked(OperationLock)
		s.opts.OnOperation(OperationLock, OutcomeOK)
		return func() { s.unlock(name) }, nil
	case ctx.Err() != nil:
		s.opts.OnOperation(OperationLock, OutcomeBusy)
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		s.doubtLocks() // who has it may be waiting for a token; or nobody gets any
	}
	return nil, err
}

// acquire waits for the lock of that name until ctx ends, also if the storage
// ignores its context.
func (s *Store) acquire(ctx context.Context, name string) error {
	if _, waits := s.locking.LoadOrStore(name, nil); waits {
		return errors.New("an earlier wait for the lock has not ended")
	}
	granted := make(chan error, 1)
	go func() {
		err := recovered(func() error {
			storage, err := s.open()
			if err == nil {
				err = storage.Lock(ctx, name)
			}
			return err
		})
		s.locking.Delete(name)
		granted <- err
	}()
	select {
	case err := <-granted:
		return err
	case <-ctx.Done():
		go func() {
			if <-granted == nil {
				s.unlock(name)
			}
		}()
		return ctx.Err()
	}
}

// lockFailed notes that a lock could not be had.
func (s *Store) lockFailed(err error) {
	s.health.failed(OperationLock, err)
	s.opts.OnOperation(OperationLock, OutcomeFailed)
}

// unlockTries is how often it is tried to give up a lock: some storages keep it
// until this process ends.
const unlockTries = 3

// unlock gives up a lock. An error may mean that it has expired.
func (s *Store) unlock(name string) {
	for try := range unlockTries {
		if try > 0 {
			time.Sleep(operationTimeout)
		}
		if s.tryUnlock(name) == nil {
			return
		}
	}
}

func (s *Store) tryUnlock(name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), operationTimeout)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- recovered(func() error {
			storage, err := s.open()
			if err == nil {
				err = storage.Unlock(ctx, name)
			}
			return err
		})
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
