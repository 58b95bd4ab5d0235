package option

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// hangingFiles returns paths of n files that hang until the test ends, of which nothing
// is waited for long.
func hangingFiles(t *testing.T, n int) []string {
	t.Helper()
	before := readTimeout
	readTimeout = 20 * time.Millisecond
	dir := t.TempDir()
	var paths []string
	for i := range n {
		paths = append(paths, filepath.Join(dir, fmt.Sprint("hangs-", i)))
	}
	if err := exec.Command("mkfifo", paths...).Run(); err != nil {
		t.Skipf("no named pipe: %v", err)
	}
	t.Cleanup(func() {
		underWay := func() int {
			groups.mu.Lock()
			defer groups.mu.Unlock()
			n := len(groups.all)
			for _, group := range groups.byName {
				n += len(group)
			}
			return n
		}
		for underWay() > 0 {
			for _, path := range paths { // a reader has begun once there is a writer, and ends with it
				if f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
					_ = f.Close()
				}
			}
		}
		readTimeout = before
	})
	return paths
}

// Files of tenants may hang, and any client may name a tenant. That keeps neither the
// files of a config from being read, nor those of another credential's tenants.
func TestFilesThatHangKeepOthersFromNothing(t *testing.T) {
	paths := hangingFiles(t, maxReadsOfGroup+50)
	good := filepath.Join(t.TempDir(), "good")
	if err := os.WriteFile(good, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	var values []string
	for _, path := range paths {
		values = append(values, FileValue(path))
	}
	end := ReadInGroup("some", append(values, FileValue(good)))
	var wg sync.WaitGroup
	for _, value := range values {
		wg.Go(func() {
			if _, err := Resolve("client_secret", value); err == nil || !strings.Contains(err.Error(), "takes too long") {
				t.Errorf("%s: %v", value, err)
			}
		})
	}
	wg.Wait()
	if n := len(groups.all); n != 0 {
		t.Errorf("%d reads of no group", n)
	}
	if value, err := Resolve("client_secret", FileValue(good)); err == nil {
		t.Errorf("got %q; the group has no place left", value)
	}
	end()
	end() // once is enough

	readTimeout = time.Minute // for files that are there, on a machine that is busy
	if value, err := Resolve("client_secret", FileValue(good)); err != nil || value != "secret" {
		t.Errorf("in no group: %q, %v", value, err)
	}
	defer ReadInGroup("other", []string{FileValue(good)})()
	if value, err := Resolve("client_secret", FileValue(good)); err != nil || value != "secret" {
		t.Errorf("in another group: %q, %v", value, err)
	}
	if len(groups.of) != 1 {
		t.Errorf("%d values are in a group", len(groups.of))
	}
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string][]byte{"small": []byte("a\n"), "empty": nil, "large": make([]byte, maxFile), "too large": make([]byte, maxFile+1)} {
		if err := os.WriteFile(path(name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path("small"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"small": 2, "empty": 0, "large": maxFile} {
		if content, err := ReadFile(path(name), 0); err != nil || len(content) != size {
			t.Errorf("%s: %d bytes, %v", name, len(content), err)
		}
		if IsWorldReadable(path(name)) != (name == "small") {
			t.Errorf("%s: who may read it is wrong", name)
		}
	}
	if _, err := ReadFile(path("too large"), 0); err == nil || err.Error() != path("too large")+" is larger than 4 MiB" {
		t.Errorf("too large: %v", err)
	}
	if _, err := ReadFile("/dev/zero", 0); err == nil {
		t.Error("a file without an end is read")
	}
	if _, err := ReadFile(path("missing"), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	hangs := hangingFiles(t, 1)[0]
	for _, patience := range []time.Duration{0, time.Millisecond} {
		_, err := ReadFile(hangs, patience)
		if want := "reading " + hangs + " takes too long: it is on a file system that does not answer, or is not a plain file"; err == nil || err.Error() != want {
			t.Errorf("hangs: %v", err)
		}
	}
}
