package tokenstore

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

const (
	warning  = "the storage of shared tokens fails; tokens are not shared meanwhile"
	recovery = "the storage of shared tokens works again"
	unusable = "a shared token cannot be used; a token of our own takes its place"
)

func TestStoredTokenIsLoaded(t *testing.T) {
	storage := newMemory()
	one, other := use(storage).Credential("shop", identity), use(storage)
	ctx := t.Context()
	got, err := other.Credential("shop", identity).Load(ctx, alternatives("s"))
	if got != nil || err != nil || other.count("load absent") != 1 {
		t.Errorf("got %v, %v; want nothing", got, err)
	}
	if err := one.Store(ctx, secret("s"), issued("a-token", time.Now())); err != nil {
		t.Fatal(err)
	}
	got, err = other.Credential("shop", identity).Load(ctx, alternatives("s"))
	if err != nil || got.Value.Reveal() != "a-token" || other.count("load ok") != 1 {
		t.Errorf("got %v, %v; want the token", got, err)
	}
}

func TestFaultIsWarnedOfOnceAndEnds(t *testing.T) {
	for _, operation := range []string{OperationLoad, OperationStore, OperationLock} {
		t.Run(operation, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage := newMemory()
				u := use(storage)
				c := u.Credential("shop", identity)
				ctx := t.Context()
				if err := c.Store(ctx, secret("s"), issued("a-token", time.Now())); err != nil {
					t.Fatal(err)
				}
				all := func() {
					_, _ = c.Load(ctx, alternatives("s"))
					_ = c.Store(ctx, secret("s"), issued("a-token", time.Now()))
					for _, which := range []tokensource.Lock{tokensource.FirstLock, tokensource.SecondLock} {
						if unlock, err := c.Lock(ctx, which); err == nil {
							unlock()
						}
					}
				}
				storage.set(func(m *memory) { m.fails[operation] = errors.New("out of order"); m.calls[operation] = 0 })
				for range 600 {
					all()
					time.Sleep(100 * time.Millisecond)
				}
				if h := u.Health(); !h.Failing || h.Err == nil {
					t.Errorf("health %+v, want a failure", h)
				}
				// 1, 2, 4, 8, 16 s, and then 30 s after the one before
				// and then each of them, and whoever looks whether it works again
				most := map[string]int{OperationLoad: 7, OperationStore: 7 * 2, OperationLock: 7 * 3}[operation]
				if got := storage.called(operation); got > most {
					t.Errorf("tried %d times in a minute, want at most %d", got, most)
				}
				storage.set(func(m *memory) { m.fails = make(map[string]error) })
				for range 310 {
					all()
					time.Sleep(100 * time.Millisecond)
				}
				if h := u.Health(); h.Failing || h.Err != nil {
					t.Errorf("health %+v, want that it works", h)
				}
				if u.logs.FilterMessage(warning).Len() != 1 || u.logs.FilterMessage(recovery).Len() != 1 {
					t.Errorf("logged %v, want one warning and one end", u.logs.All())
				}
				if u.count(operation+" failed") == 0 {
					t.Error("no failure is counted")
				}
			})
		})
	}
}

func TestFollowerNoticesThatTheStorageWorksAgain(t *testing.T) {
	for _, operation := range []string{OperationStore, OperationLock} {
		t.Run(operation, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				storage := newMemory()
				u := use(storage)
				c := u.Credential("shop", identity)
				storage.set(func(m *memory) { m.values[key] = mustSeal(t, issued("a-token", time.Now()), "s") })
				storage.set(func(m *memory) { m.fails[operation] = errors.New("out of order") })
				_ = c.Store(t.Context(), secret("s"), issued("a-token", time.Now()))
				_, _ = c.Lock(t.Context(), tokensource.SecondLock)
				look := func() { // and no more: others make the token requests
					for range 80 {
						_, _ = c.Load(t.Context(), alternatives("s"))
						time.Sleep(time.Second)
					}
				}
				look()
				if !u.Health().Failing {
					t.Error("taken to work")
				}
				storage.set(func(m *memory) { delete(m.fails, operation) })
				look()
				if u.Health().Failing || len(u.logs.All()) != 2 {
					t.Errorf("logged %v, want one warning and its end", u.logs.All())
				}
				if len(storage.values) != 1 || storage.locked(probesPrefix+"/"+u.instance) {
					t.Error("something is left of looking whether it works")
				}
			})
		})
	}
}

func TestStorageThatComesAndGoesIsWarnedOfOnceAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newMemory()
		u := use(storage)
		c := u.Credential("shop", identity)
		storage.set(func(m *memory) { m.values[key] = mustSeal(t, issued("a-token", time.Now()), "s") })
		for n := range 150 { // every other load fails, for five minutes
			storage.set(func(m *memory) {
				if m.fails[OperationLoad] = nil; n%2 == 0 {
					m.fails[OperationLoad] = errors.New("out of order")
				}
			})
			_, _ = c.Load(t.Context(), alternatives("s"))
			time.Sleep(2 * time.Second)
		}
		if warned, ended := u.logs.FilterMessage(warning).Len(), u.logs.FilterMessage(recovery).Len(); warned < 4 || warned > 6 || ended != warned {
			t.Errorf("warned %d times and said %d times that it works again, want both once a minute", warned, ended)
		}
	})
}

// stubborn is a storage that does not give up a lock at first.
type stubborn struct {
	*memory
	refuses int
}

func (s *stubborn) Unlock(ctx context.Context, name string) error {
	if s.refuses--; s.refuses >= 0 {
		return errors.New("out of order")
	}
	return s.memory.Unlock(ctx, name)
}

func TestUnlockThatFailsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := &stubborn{newMemory(), 2}
		unlock, err := use(storage).Credential("shop", identity).Lock(t.Context(), tokensource.FirstLock)
		if err != nil {
			t.Fatal(err)
		}
		unlock()
		if storage.locked(key) {
			t.Error("the lock is kept")
		}
	})
}

// Somebody has them for good, while others can be had.
func TestLocksThatAreNeverGranted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newMemory()
		storage.locks[key], storage.locks[key+"/2"] = true, true
		u := use(storage)
		c := u.Credential("shop", identity)
		for n := range 4 {
			if n < 3 && len(u.logs.All()) > 0 {
				t.Errorf("a fault after %d times, which can be a slow token endpoint", n)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_, _ = c.Lock(ctx, tokensource.FirstLock)
			cancel()
			ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
			_, _ = c.Lock(ctx, tokensource.SecondLock)
			cancel()
			synctest.Wait()
		}
		if len(u.logs.All()) != 1 || u.logs.FilterMessage(unusable).Len() != 1 || u.count("lock failed") != 2 || u.Health().Failing {
			t.Errorf("logged %v, counted %d, want one warning, and two of four counted as failed", u.logs.All(), u.count("lock failed"))
		}
	})
}

// certmagic's storage of files takes two seconds to recognize one.
func TestEmptyLockFileOfAFullDisk(t *testing.T) {
	dir := t.TempDir()
	u := use(&certmagic.FileStorage{Path: dir})
	file := filepath.Join(dir, "locks", certmagic.StorageKeys.Safe(u.probeName())+".lock")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	u.lockFailed(errors.New("no space left on device"))
	u.probeLocks()
	if h := u.Health(); h.Failing {
		t.Errorf("the storage still fails: %v", h.Err)
	}
}

// Some storages say that of everything they cannot read.
func TestAbsentEntryProvesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newMemory()
		u := use(storage)
		c := u.Credential("shop", identity)
		storage.set(func(m *memory) { m.fails[OperationLoad], m.fails[OperationStore] = fs.ErrNotExist, errors.New("down") })
		for range 100 {
			_, _ = c.Load(t.Context(), alternatives("s"))
			_ = c.Store(t.Context(), secret("s"), issued("a-token", time.Now()))
			time.Sleep(time.Second)
		}
		if len(u.logs.All()) != 1 {
			t.Errorf("logged %v, want one warning", u.logs.All())
		}
	})
}

func TestOperationThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newMemory()
		storage.set(func(m *memory) { m.takes[OperationLoad] = time.Hour }) // whatever the context says
		u := use(storage)
		c := u.Credential("shop", identity)
		start := time.Now()
		if _, err := c.Load(t.Context(), alternatives("s")); err == nil || time.Since(start) != operationTimeout {
			t.Errorf("error %v after %v, want one after %v", err, time.Since(start), operationTimeout)
		}
		// whoever waits less long does not make it a fault
		time.Sleep(2 * leaveFirst)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		start = time.Now()
		if _, err := c.Load(ctx, alternatives("s")); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 50*time.Millisecond {
			t.Errorf("error %v after %v, want that of the context", err, time.Since(start))
		}
		for range 110 {
			time.Sleep(leaveMax)
			_, _ = c.Load(t.Context(), alternatives("s"))
		}
		if storage.called(OperationLoad) > maxOperations {
			t.Errorf("%d operations were begun while those before hang", storage.called(OperationLoad))
		}
		time.Sleep(2 * time.Hour)
	})
}

func TestStorageThatPanics(t *testing.T) {
	u := use(nil) // whatever is called panics
	c := u.Credential("shop", identity)
	if _, err := c.Load(t.Context(), alternatives("s")); err == nil {
		t.Error("no error")
	}
	if _, err := c.Lock(t.Context(), tokensource.FirstLock); err == nil {
		t.Error("no error of the lock")
	}
}

func TestUnusableEntryIsWarnedOfOnce(t *testing.T) {
	synctest.Test(t, testUnusableEntry)
}

func testUnusableEntry(t *testing.T) {
	storage := newMemory()
	u := use(storage)
	c := u.Credential("shop", identity)
	for range 4 { // an hour each two
		time.Sleep(30 * time.Minute)
		storage.set(func(m *memory) { m.values[key] = []byte("damaged") })
		for range 3 {
			if got, err := c.Load(t.Context(), alternatives("s")); got != nil || err != nil {
				t.Errorf("got %v, %v; want nothing", got, err)
			}
		}
		if err := c.Store(t.Context(), secret("s"), issued("a-token", time.Now())); err != nil {
			t.Fatal(err)
		}
		if got, _ := c.Load(t.Context(), alternatives("s")); got == nil {
			t.Error("an entry in its place is not used")
		}
	}
	if got := u.logs.FilterMessage(unusable).Len(); got != 2 || u.count("load unusable") != 12 {
		t.Errorf("warned %d times, counted %d; want 2 and 12", got, u.count("load unusable"))
	}
	if u.Health().Failing {
		t.Error("the storage is taken to fail")
	}
	storage.set(func(m *memory) { m.values[key] = []byte(`{"format":2}`) })
	if got, err := c.Load(t.Context(), alternatives("s")); got != nil || err != nil || u.logs.FilterMessage(unusable).Len() != 2 {
		t.Errorf("a later format: got %v, %v, logged %v", got, err, u.logs.All())
	}
}

func TestLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newMemory()
		u := use(storage)
		c := u.Credential("shop", identity)
		unlock, err := c.Lock(t.Context(), tokensource.FirstLock)
		if err != nil {
			t.Fatal(err)
		}
		second, err := c.Lock(t.Context(), tokensource.SecondLock)
		if err != nil {
			t.Fatalf("the locks are one: %v", err)
		}
		second()

		// given up while it waits: another instance was faster
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		other := use(storage)
		if _, err := other.Credential("shop", identity).Lock(ctx, tokensource.FirstLock); !errors.Is(err, context.Canceled) || other.count("lock busy") != 1 {
			t.Errorf("error %v, want that it was given up", err)
		}
		if other.Health().Failing {
			t.Error("the storage is taken to fail since a lock was held")
		}
		unlock()
		synctest.Wait() // the wait that was given up has ended
		if unlock, err = other.Credential("shop", identity).Lock(t.Context(), tokensource.FirstLock); err != nil {
			t.Fatalf("a lock that was given up is not granted: %v", err)
		}

		// not given up: its holder may wait for a token, unless nobody gets any lock
		for _, stuck := range []bool{false, true} {
			if stuck {
				storage.set(func(m *memory) { m.locks[u.probeName()] = true })
			}
			ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := c.Lock(ctx, tokensource.FirstLock)
			time.Sleep(2 * probeLockTimeout)
			if err == nil || u.Health().Failing != stuck {
				t.Errorf("error %v, failing %t, want %t", err, u.Health().Failing, stuck)
			}
		}
		unlock()
	})
}

// The lock would be held for good.
func TestLockThatIsGrantedTooLateIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		storage := newMemory()
		storage.set(func(m *memory) { m.takes[OperationLock] = time.Minute })
		c := use(storage).Credential("shop", identity)
		for range 10 {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			if _, err := c.Lock(ctx, tokensource.FirstLock); err == nil {
				t.Error("granted")
			}
		}
		if got := storage.called(OperationLock); got != 1 {
			t.Errorf("waits for the lock %d times at once", got)
		}
		time.Sleep(2 * time.Minute)
		if storage.locked(key) {
			t.Error("the lock is still held")
		}
	})
}

func TestClosedStoreIsSilent(t *testing.T) {
	storage := newMemory()
	u := use(storage)
	c := u.Credential("shop", identity)
	u.Close()
	storage.set(func(m *memory) { m.fails[OperationLoad] = errors.New("closed") })
	if _, err := c.Load(t.Context(), alternatives("s")); err == nil || storage.called(OperationLoad) != 0 {
		t.Errorf("error %v after %d loads, want none", err, storage.called(OperationLoad))
	}
	if _, err := c.Lock(t.Context(), tokensource.FirstLock); err == nil || len(u.logs.All()) != 0 {
		t.Errorf("error %v, logged %v", err, u.logs.All())
	}
}
