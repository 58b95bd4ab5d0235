package egresstest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/certmagic"

	"github.com/caddyserver/caddy/v2"
)

// SharedStorage is a storage that processes share, and a test looks into.
type SharedStorage struct {
	certmagic.Storage

	// Option is the global option `storage` of a Caddyfile.
	Option string

	// Dump returns all that it holds, names and content, as somebody sees it who
	// can read it, but knows nothing else.
	Dump func() string

	control string
}

// StorageDir returns a folder for a storage of files. Unlike that of t.TempDir, it may
// be written to for a moment after the gateway has stopped: a token is used before it
// is stored. It is in memory where that is possible: a disk may be slow at times.
func StorageDir(t testing.TB) string {
	t.Helper()
	parent, err := os.MkdirTemp("/dev/shm", "egress") // tests rename what is in it
	if err != nil {
		parent, err = os.MkdirTemp("", "egress")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Eventually(t, "the storage to be removed", func() bool { return os.RemoveAll(parent) == nil }) })
	dir := filepath.Join(parent, "storage")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// NewSharedFiles returns a storage of files in a [StorageDir], a [FaultyStorage] that
// works at first. A test that means it to be slow can say so.
func NewSharedFiles(t testing.TB) *SharedStorage {
	t.Helper()
	dir := StorageDir(t)
	root, control := filepath.Join(dir, "root"), filepath.Join(dir, "fault")
	if err := os.Mkdir(root, 0o700); err != nil {
		t.Fatal(err)
	}
	return &SharedStorage{
		Storage: &certmagic.FileStorage{Path: root},
		Option:  "storage test_faulty " + root + " " + control + "\n",
		Dump:    func() string { return dumpFiles(t, root) },
		control: control,
	}
}

// dumpFiles returns paths and content of all files below root.
func dumpFiles(t testing.TB, root string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a lock, or a file that was about to be renamed
		}
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		all.WriteString(path + "\n" + string(content) + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// Fault has a storage of files suffer from a fault, in all processes.
func (s *SharedStorage) Fault(t testing.TB, fault StorageFault) {
	t.Helper()
	// at once, since others read it
	if err := os.WriteFile(s.control+".new", []byte(fault), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(s.control+".new", s.control); err != nil {
		t.Fatal(err)
	}
}

// NewSharedRedis returns a storage in a Redis.
func NewSharedRedis(t testing.TB, server *RedisServer) *SharedStorage {
	t.Helper()
	storage := &RedisStorage{Socket: server.Socket}
	if err := storage.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = storage.Cleanup() })
	return &SharedStorage{
		Storage: storage,
		Option:  "storage test_redis " + server.Socket + "\n",
		Dump:    server.dump,
	}
}
