package egresstest

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/redis/go-redis/v9"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

func init() {
	caddy.RegisterModule(new(RedisStorage))
}

const (
	// What becomes of a lock is as in the module for Redis that is used most: it is
	// asked for each second, and expires 5 seconds after its holder has died.
	redisLockPoll  = time.Second
	redisLockTTL   = 5 * time.Second
	redisLockRenew = 2 * time.Second

	redisKeys  = "caddy/"
	redisLocks = "caddy-locks/"
)

// RedisStorage is a storage of Caddy in a Redis. It has no TryLock, as the
// modules in use. Syntax:
//
//	storage test_redis <unix socket>
type RedisStorage struct {
	// Path of the unix socket at which Redis listens.
	Socket string `json:"socket,omitempty"`

	client *redis.Client

	mu   sync.Mutex
	held map[string]redisLock // by name
}

// redisLock is a lock that this process holds.
type redisLock struct {
	owner string             // its value in Redis
	stop  context.CancelFunc // ends the renewal
}

// CaddyModule returns the Caddy module information.
func (*RedisStorage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.test_redis", New: func() caddy.Module { return new(RedisStorage) }}
}

// UnmarshalCaddyfile implements caddyfile.Unmarshaler.
func (s *RedisStorage) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.AllArgs(&s.Socket) {
		return d.ArgErr()
	}
	return nil
}

// Provision implements caddy.Provisioner.
func (s *RedisStorage) Provision(caddy.Context) error {
	s.client = redisClient(s.Socket)
	s.held = make(map[string]redisLock)
	return nil
}

// redisClient returns a client of the Redis at a unix socket.
func redisClient(socket string) *redis.Client {
	return redis.NewClient(&redis.Options{
		Dialer: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		ContextTimeoutEnabled: true, // a storage has to honour contexts
	})
}

// Cleanup implements caddy.CleanerUpper.
func (s *RedisStorage) Cleanup() error {
	if s.client == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, lock := range s.held {
		lock.stop()
	}
	return s.client.Close()
}

// CertMagicStorage implements caddy.StorageConverter.
func (s *RedisStorage) CertMagicStorage() (certmagic.Storage, error) { return s, nil }

// Store implements certmagic.Storage.
func (s *RedisStorage) Store(ctx context.Context, key string, value []byte) error {
	return s.client.Set(ctx, redisKeys+key, value, 0).Err()
}

// Load implements certmagic.Storage.
func (s *RedisStorage) Load(ctx context.Context, key string) ([]byte, error) {
	value, err := s.client.Get(ctx, redisKeys+key).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, fs.ErrNotExist
	}
	return value, err
}

// Delete implements certmagic.Storage.
func (s *RedisStorage) Delete(ctx context.Context, key string) error {
	below, err := s.below(ctx, key)
	if err != nil {
		return err
	}
	keys := []string{redisKeys + key}
	for _, k := range below {
		keys = append(keys, redisKeys+k)
	}
	return s.client.Del(ctx, keys...).Err()
}

// Exists implements certmagic.Storage.
func (s *RedisStorage) Exists(ctx context.Context, key string) bool {
	_, err := s.Stat(ctx, key)
	return err == nil
}

// List implements certmagic.Storage.
func (s *RedisStorage) List(ctx context.Context, path string, recursive bool) ([]string, error) {
	below, err := s.below(ctx, path)
	if err != nil || recursive {
		return below, err
	}
	var direct []string
	seen := make(map[string]bool)
	for _, key := range below {
		rest := strings.TrimPrefix(key, prefixOf(path))
		name, _, _ := strings.Cut(rest, "/")
		if child := prefixOf(path) + name; !seen[child] {
			seen[child] = true
			direct = append(direct, child)
		}
	}
	return direct, nil
}

// below returns all keys below path.
func (s *RedisStorage) below(ctx context.Context, path string) (keys []string, err error) {
	scan := s.client.Scan(ctx, 0, redisKeys+"*", 1000).Iterator()
	for scan.Next(ctx) {
		key := strings.TrimPrefix(scan.Val(), redisKeys)
		if strings.HasPrefix(key, prefixOf(path)) {
			keys = append(keys, key)
		}
	}
	return keys, scan.Err()
}

// prefixOf returns what the keys below path begin with.
func prefixOf(path string) string {
	if path == "" {
		return ""
	}
	return path + "/"
}

// Stat implements certmagic.Storage.
func (s *RedisStorage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	value, err := s.Load(ctx, key)
	if err == nil {
		return certmagic.KeyInfo{Key: key, Size: int64(len(value)), IsTerminal: true}, nil
	}
	if below, listing := s.below(ctx, key); len(below) > 0 || listing != nil {
		return certmagic.KeyInfo{Key: key}, listing
	}
	return certmagic.KeyInfo{}, err
}

// Lock implements certmagic.Locker.
func (s *RedisStorage) Lock(ctx context.Context, name string) error {
	owner := rand.Text()
	for {
		_, err := s.client.SetArgs(ctx, redisLocks+name, owner, redis.SetArgs{Mode: "NX", TTL: redisLockTTL}).Result()
		switch {
		case err == nil:
			s.hold(name, owner)
			return nil
		case !errors.Is(err, redis.Nil): // it may have been granted all the same
			s.release(context.WithoutCancel(ctx), name, owner)
			return cmp.Or(ctx.Err(), err)
		}
		select {
		case <-time.After(redisLockPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// hold renews a lock until it is unlocked.
func (s *RedisStorage) hold(name, owner string) {
	ctx, stop := context.WithCancel(context.Background())
	s.mu.Lock()
	s.held[name] = redisLock{owner, stop}
	s.mu.Unlock()
	go func() {
		tick := time.NewTicker(redisLockRenew)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = renewLock.Run(ctx, s.client, []string{redisLocks + name}, owner, redisLockTTL.Milliseconds()).Err()
			case <-ctx.Done():
				return
			}
		}
	}()
}

// Unlock implements certmagic.Locker.
func (s *RedisStorage) Unlock(ctx context.Context, name string) error {
	s.mu.Lock()
	lock, ok := s.held[name]
	delete(s.held, name)
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("lock %s is not held", name)
	}
	lock.stop()
	return s.release(ctx, name, lock.owner)
}

// release deletes a lock, unless it has expired and is somebody else's by now.
func (s *RedisStorage) release(ctx context.Context, name, owner string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return deleteLock.Run(ctx, s.client, []string{redisLocks + name}, owner).Err()
}

// What is done with a lock is done by its owner only.
var (
	renewLock  = redis.NewScript(`return redis.call("get", KEYS[1]) == ARGV[1] and redis.call("pexpire", KEYS[1], ARGV[2])`)
	deleteLock = redis.NewScript(`return redis.call("get", KEYS[1]) == ARGV[1] and redis.call("del", KEYS[1])`)
)

// Interface guards
var (
	_ caddy.Provisioner      = (*RedisStorage)(nil)
	_ caddy.CleanerUpper     = (*RedisStorage)(nil)
	_ caddy.StorageConverter = (*RedisStorage)(nil)
	_ caddyfile.Unmarshaler  = (*RedisStorage)(nil)
	_ certmagic.Storage      = (*RedisStorage)(nil)
)
