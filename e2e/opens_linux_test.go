package e2e_test

import (
	"encoding/binary"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// opened are the files and folders that are opened below some folders, by whoever it is.
type opened struct {
	t        testing.TB
	sentinel string // a file that is watched, too

	mu    sync.Mutex
	names map[string]int
}

// watchOpens notes what is opened in folders, the folders themselves included.
func watchOpens(t testing.TB, folders ...string) *opened {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "inotify") // that its reads end with Close takes IN_NONBLOCK
	watched := make(map[int32]string)
	for _, folder := range folders {
		wd, err := unix.InotifyAddWatch(fd, folder, unix.IN_OPEN)
		if err != nil {
			t.Fatalf("watching %s: %v", folder, err)
		}
		watched[int32(wd)] = folder
	}
	o := &opened{t: t, names: make(map[string]int), sentinel: filepath.Join(t.TempDir(), "sentinel")}
	if err := os.WriteFile(o.sentinel, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	wd, err := unix.InotifyAddWatch(fd, o.sentinel, unix.IN_OPEN)
	if err != nil {
		t.Fatal(err)
	}
	watched[int32(wd)] = o.sentinel
	done := make(chan struct{})
	go func() {
		defer close(done)
		buffer := make([]byte, 64<<10)
		for {
			n, err := file.Read(buffer)
			if err != nil {
				return
			}
			o.note(watched, buffer[:n])
		}
	}()
	t.Cleanup(func() {
		file.Close()
		<-done
	})
	return o
}

// note reads events, each of which has the length of the name that follows it.
func (o *opened) note(watched map[int32]string, events []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(events) >= unix.SizeofInotifyEvent {
		wd := int32(binary.NativeEndian.Uint32(events))
		length := int(binary.NativeEndian.Uint32(events[12:]))
		name := strings.TrimRight(string(events[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+length]), "\x00")
		if name != "" {
			name = "/" + name
		}
		o.names[watched[wd]+name]++
		events = events[unix.SizeofInotifyEvent+length:]
	}
}

// all returns what was opened, and how often. Events come in order: that of the
// sentinel, which is opened now, is the last.
func (o *opened) all() map[string]int {
	o.t.Helper()
	before := o.copied()[o.sentinel]
	file, err := os.Open(o.sentinel)
	if err != nil {
		o.t.Fatal(err)
	}
	file.Close()
	var names map[string]int
	egresstest.Eventually(o.t, "all that was opened", func() bool {
		names = o.copied()
		return names[o.sentinel] > before
	})
	delete(names, o.sentinel)
	return names
}

func (o *opened) copied() map[string]int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return maps.Clone(o.names)
}
