package egresstest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/caddyserver/certmagic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func init() {
	caddy.RegisterModule(new(FaultyStorage))
}

// StorageFault is what is wrong with a [FaultyStorage].
type StorageFault string

// The faults of a [FaultyStorage].
const (
	StorageWorks    StorageFault = ""          // none
	StorageDown     StorageFault = "down"      // all operations fail
	StorageHangs    StorageFault = "hangs"     // none ends before the fault does, whatever its context says: a dead NFS
	StorageSlow     StorageFault = "slow"      // each takes a second longer, whatever its context says
	StorageReadOnly StorageFault = "read-only" // nothing can be written, no lock taken
	StorageFull     StorageFault = "full"      // the same, and who tries to take a lock leaves an empty one
	StorageNoLocks  StorageFault = "no locks"  // a lock is waited for in vain
	StorageForgets  StorageFault = "forgets"   // down, but what is read seems to be absent: the Redis module that is used most
	StorageBusy     StorageFault = "busy"      // a lock is an error at once, as that of a module for Postgres if it is held
)

// FaultyStorage is Caddy's storage in files, with faults that come and go as a
// file says, so that a test can cause them in other processes. Syntax:
//
//	storage test_faulty <directory> <file with the fault>
type FaultyStorage struct {
	// Where it keeps what it stores.
	Root string `json:"root,omitempty"`

	// A file that holds a [StorageFault]. Without that file it works.
	Control string `json:"control,omitempty"`

	files *certmagic.FileStorage
}

// CaddyModule returns the Caddy module information.
func (*FaultyStorage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.test_faulty", New: func() caddy.Module { return new(FaultyStorage) }}
}

// UnmarshalCaddyfile implements caddyfile.Unmarshaler.
func (s *FaultyStorage) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.AllArgs(&s.Root, &s.Control) {
		return d.ArgErr()
	}
	return nil
}

// Provision implements caddy.Provisioner.
func (s *FaultyStorage) Provision(caddy.Context) error {
	s.files = &certmagic.FileStorage{Path: s.Root}
	return nil
}

// CertMagicStorage implements caddy.StorageConverter.
func (s *FaultyStorage) CertMagicStorage() (certmagic.Storage, error) { return s, nil }

// fault returns what is wrong now.
func (s *FaultyStorage) fault() StorageFault {
	fault, _ := os.ReadFile(s.Control)
	return StorageFault(fault)
}

// suffer returns what is wrong with an operation, once it has taken as long as
// that takes. err is set if it fails whatever it is, or whatever it reads.
func (s *FaultyStorage) suffer(reads bool) (fault StorageFault, err error) {
	switch s.fault() {
	case StorageDown:
		return "", errors.New("the storage is down")
	case StorageForgets:
		if reads {
			return "", fs.ErrNotExist
		}
		return "", errors.New("the storage is down")
	case StorageSlow:
		time.Sleep(time.Second)
	case StorageHangs:
		for s.fault() == StorageHangs {
			time.Sleep(20 * time.Millisecond)
		}
	}
	return s.fault(), nil
}

// write is suffer for an operation that needs to write.
func (s *FaultyStorage) write(key string) error {
	fault, err := s.suffer(false)
	switch {
	case err != nil:
		return err
	case fault == StorageReadOnly:
		return &fs.PathError{Op: "open", Path: s.files.Filename(key), Err: syscall.EROFS}
	case fault == StorageFull:
		return &fs.PathError{Op: "write", Path: s.files.Filename(key), Err: syscall.ENOSPC}
	}
	return nil
}

// Store implements certmagic.Storage.
func (s *FaultyStorage) Store(ctx context.Context, key string, value []byte) error {
	if err := s.write(key); err != nil {
		return err
	}
	return s.files.Store(ctx, key, value)
}

// Load implements certmagic.Storage.
func (s *FaultyStorage) Load(ctx context.Context, key string) ([]byte, error) {
	if _, err := s.suffer(true); err != nil {
		return nil, err
	}
	return s.files.Load(ctx, key)
}

// Delete implements certmagic.Storage.
func (s *FaultyStorage) Delete(ctx context.Context, key string) error {
	fault, err := s.suffer(false)
	switch {
	case err != nil:
		return err
	case fault == StorageReadOnly:
		return &fs.PathError{Op: "unlinkat", Path: s.files.Filename(key), Err: syscall.EROFS}
	}
	return s.files.Delete(ctx, key)
}

// Exists implements certmagic.Storage.
func (s *FaultyStorage) Exists(ctx context.Context, key string) bool {
	if _, err := s.suffer(true); err != nil {
		return false
	}
	return s.files.Exists(ctx, key)
}

// List implements certmagic.Storage.
func (s *FaultyStorage) List(ctx context.Context, path string, recursive bool) ([]string, error) {
	if _, err := s.suffer(true); err != nil {
		return nil, err
	}
	return s.files.List(ctx, path, recursive)
}

// Stat implements certmagic.Storage.
func (s *FaultyStorage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	if _, err := s.suffer(true); err != nil {
		return certmagic.KeyInfo{}, err
	}
	return s.files.Stat(ctx, key)
}

// Lock implements certmagic.Locker.
func (s *FaultyStorage) Lock(ctx context.Context, name string) error {
	_, err := s.lock(ctx, name, func() (bool, error) { return true, s.files.Lock(ctx, name) })
	return err
}

// TryLock implements certmagic.TryLocker.
func (s *FaultyStorage) TryLock(ctx context.Context, name string) (bool, error) {
	return s.lock(ctx, name, func() (bool, error) { return s.files.TryLock(ctx, name) })
}

// lock takes a lock by take, unless there is a fault.
func (s *FaultyStorage) lock(ctx context.Context, name string, take func() (bool, error)) (bool, error) {
	fault, err := s.suffer(false)
	switch {
	case err != nil:
		return false, err
	case fault == StorageReadOnly:
		return false, &fs.PathError{Op: "open", Path: s.lockFile(name), Err: syscall.EROFS}
	case fault == StorageFull:
		return false, s.leaveEmptyLock(name)
	case fault == StorageNoLocks:
		<-ctx.Done()
		return false, ctx.Err()
	case fault == StorageBusy:
		return false, errors.New("key is locked")
	}
	return take()
}

// leaveEmptyLock fails as certmagic does where there is no space: the file of the
// lock is made, and stays, but nothing can be written to it.
func (s *FaultyStorage) leaveEmptyLock(name string) error {
	file := s.lockFile(name)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return &fs.PathError{Op: "write", Path: file, Err: syscall.ENOSPC}
}

// lockFile returns where certmagic keeps a lock.
func (s *FaultyStorage) lockFile(name string) string {
	return filepath.Join(s.Root, "locks", certmagic.StorageKeys.Safe(name)+".lock")
}

// Unlock implements certmagic.Locker.
func (s *FaultyStorage) Unlock(ctx context.Context, name string) error {
	fault, err := s.suffer(false)
	switch {
	case err != nil:
		return err
	case fault == StorageReadOnly:
		return &fs.PathError{Op: "unlinkat", Path: s.lockFile(name), Err: syscall.EROFS}
	}
	return s.files.Unlock(ctx, name)
}

// String names it in errors of Caddy.
func (s *FaultyStorage) String() string { return strings.TrimSpace("faulty " + s.Root) }

// Interface guards
var (
	_ caddy.Provisioner      = (*FaultyStorage)(nil)
	_ caddy.StorageConverter = (*FaultyStorage)(nil)
	_ caddyfile.Unmarshaler  = (*FaultyStorage)(nil)
	_ certmagic.Storage      = (*FaultyStorage)(nil)
	_ certmagic.TryLocker    = (*FaultyStorage)(nil)
)
