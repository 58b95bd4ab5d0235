package egresstest_test

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// Faults that a test causes have to be those that it means.

func TestRedisStorage(t *testing.T) {
	server := egresstest.StartRedis(t)
	ctx := t.Context()
	mine, others := egresstest.NewSharedRedis(t, server), egresstest.NewSharedRedis(t, server)
	checkStorage(t, mine)

	if err := mine.Lock(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := others.Lock(short, "x"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("taking a lock that is held: %v, want that the deadline is exceeded", err)
	}
	if err := others.Unlock(ctx, "x"); err == nil {
		t.Error("others give up a lock that they do not hold")
	}
	if err := mine.Unlock(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	if err := others.Lock(ctx, "x"); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(mine.Dump(), "caddy-locks/x") {
		t.Errorf("the dump %q lacks the lock", mine.Dump())
	}

	server.Stop()
	if _, err := mine.Load(ctx, "a/b"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("loading from a Redis that is down: %v", err)
	}
	server.Start()
	if _, err := mine.Load(ctx, "a/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("loading from a Redis that has restarted: %v", err)
	}
	server.Suspend()
	defer server.Resume()
	short, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := mine.Load(short, "a/b"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("loading from a Redis that hangs: %v", err)
	}
}

// checkStorage checks what certmagic asks of a storage, locks aside.
func checkStorage(t *testing.T, s *egresstest.SharedStorage) {
	t.Helper()
	ctx := t.Context()
	if _, err := s.Load(ctx, "a/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("loading what is absent: %v", err)
	}
	for _, key := range []string{"a/b", "a/c/d", "ab"} {
		if err := s.Store(ctx, key, []byte("value of "+key)); err != nil {
			t.Fatal(err)
		}
	}
	if value, err := s.Load(ctx, "a/c/d"); string(value) != "value of a/c/d" || err != nil {
		t.Errorf("loaded %q, error %v", value, err)
	}
	keys, err := s.List(ctx, "a", false)
	slices.Sort(keys)
	if !slices.Equal(keys, []string{"a/b", "a/c"}) || err != nil {
		t.Errorf("a holds %q, error %v", keys, err)
	}
	if info, err := s.Stat(ctx, "a/c"); info.IsTerminal || err != nil {
		t.Errorf("a/c is %+v, error %v", info, err)
	}
	if !strings.Contains(s.Dump(), "value of a/b") {
		t.Errorf("the dump is %q", s.Dump())
	}
	if err := s.Delete(ctx, "a"); err != nil || s.Exists(ctx, "a/b") || s.Exists(ctx, "a/c/d") || !s.Exists(ctx, "ab") {
		t.Errorf("after a was deleted, error %v, there is %q", err, s.Dump())
	}
}

func TestFaultyStorage(t *testing.T) {
	shared := egresstest.NewSharedFiles(t)
	checkStorage(t, shared)
	fields := strings.Fields(shared.Option)
	faulty := &egresstest.FaultyStorage{Root: fields[2], Control: fields[3]}
	if err := faulty.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	var storage certmagic.Storage = faulty
	ctx := t.Context()
	outcomes := func(fault egresstest.StorageFault) (errs [3]error) {
		shared.Fault(t, fault)
		patience := time.Minute
		if fault == egresstest.StorageNoLocks { // the one that is waited for in vain
			patience = 10 * time.Millisecond
		}
		limited, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		_, errs[0] = storage.Load(ctx, "ab")
		errs[1] = storage.Store(ctx, "ab", nil)
		if errs[2] = storage.Lock(limited, "x"); errs[2] == nil {
			if err := storage.Unlock(ctx, "x"); err != nil {
				t.Error(err)
			}
		}
		return errs
	}
	for fault, want := range map[egresstest.StorageFault][3]error{
		egresstest.StorageWorks:    {},
		egresstest.StorageReadOnly: {nil, syscall.EROFS, syscall.EROFS},
		egresstest.StorageNoLocks:  {nil, nil, context.DeadlineExceeded},
	} {
		for i, err := range outcomes(fault) {
			if !errors.Is(err, want[i]) {
				t.Errorf("%q: errors are %v, want %v", fault, err, want[i])
			}
		}
	}
	for _, err := range outcomes(egresstest.StorageDown) {
		if err == nil {
			t.Error("something succeeds while the storage is down")
		}
	}
	if errs := outcomes(egresstest.StorageForgets); !errors.Is(errs[0], fs.ErrNotExist) || errs[1] == nil || errs[2] == nil {
		t.Errorf("it forgets, but errors are %v", errs)
	}

	start := time.Now()
	shared.Fault(t, egresstest.StorageSlow)
	if _, err := storage.Load(ctx, "ab"); err != nil || time.Since(start) < time.Second {
		t.Errorf("loading took %s, error %v", time.Since(start), err)
	}
	shared.Fault(t, egresstest.StorageHangs)
	done := make(chan error)
	go func() { done <- storage.Store(ctx, "late", nil) }()
	select {
	case err := <-done:
		t.Errorf("storing ends with %v, though it hangs", err)
	case <-time.After(50 * time.Millisecond):
		shared.Fault(t, egresstest.StorageWorks)
		if err := <-done; err != nil || !storage.Exists(ctx, "late") {
			t.Errorf("what was to be stored is not there, error %v", err)
		}
	}

	if errs := outcomes(egresstest.StorageFull); errs[0] != nil || !errors.Is(errs[1], syscall.ENOSPC) || !errors.Is(errs[2], syscall.ENOSPC) {
		t.Errorf("it is full, but errors are %v", errs)
	}
	if !strings.Contains(shared.Dump(), "/locks/x.lock\n\n") {
		t.Errorf("no empty lock is left in %q", shared.Dump())
	}
}
