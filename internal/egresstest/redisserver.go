package egresstest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"
)

// RedisServer is a Redis in a process of its own, which keeps nothing on disk.
type RedisServer struct {
	// Socket is the path of the unix socket at which it listens.
	Socket string

	t      testing.TB
	client *redis.Client
	cmd    *exec.Cmd
}

// StartRedis starts a Redis until the test ends. Where there is none installed,
// the test is skipped, or fails with EGRESS_REQUIRE_CLIENTS=1.
func StartRedis(t testing.TB) *RedisServer {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		reason := "install redis-server: " + err.Error()
		if os.Getenv("EGRESS_REQUIRE_CLIENTS") == "1" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	socket := filepath.Join(shortDir(t), "redis")
	r := &RedisServer{Socket: socket, t: t, client: redisClient(socket)}
	t.Cleanup(func() {
		r.Stop()
		r.client.Close()
	})
	r.Start()
	return r
}

// shortDir returns a directory that is removed when the test ends. Its path is
// short: that of a unix socket is bounded.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "egress")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// Start starts it, empty, and waits until it answers.
func (r *RedisServer) Start() {
	r.t.Helper()
	r.cmd = exec.Command("redis-server", "--port", "0", "--unixsocket", r.Socket, "--dir", filepath.Dir(r.Socket), "--save", "", "--appendonly", "no")
	if err := r.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	Eventually(r.t, "Redis", func() bool { return r.client.Ping(r.t.Context()).Err() == nil })
}

// Stop ends it, and all it holds with it.
func (r *RedisServer) Stop() {
	if r.cmd != nil {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		r.cmd = nil
	}
}

// Suspend has it answer nothing, until it is resumed.
func (r *RedisServer) Suspend() { r.signal(syscall.SIGSTOP) }

// Resume has it go on, with what has been sent to it meanwhile.
func (r *RedisServer) Resume() { r.signal(syscall.SIGCONT) }

func (r *RedisServer) signal(s os.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(s); err != nil {
		r.t.Fatal(err)
	}
}

// dump returns names and values of all keys.
func (r *RedisServer) dump() string {
	r.t.Helper()
	ctx := r.t.Context()
	keys, err := r.client.Keys(ctx, "*").Result()
	if err != nil {
		r.t.Fatal(err)
	}
	var all strings.Builder
	for _, key := range keys {
		value, err := r.client.Get(ctx, key).Result()
		if err != nil && !errors.Is(err, redis.Nil) { // a lock may be gone by now
			r.t.Fatal(err)
		}
		all.WriteString(key + "\n" + value + "\n")
	}
	return all.String()
}
