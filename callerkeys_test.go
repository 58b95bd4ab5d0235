package egress

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

const (
	firstKey  = "first-key-0123456789"
	secondKey = "second-key-0123456789"
	thirdKey  = "third-key-0123456789"
)

// keyFiles are callers whose keys are in files, and what was logged about them.
type keyFiles struct {
	*callers
	t         *testing.T
	directory string
	logs      *observer.ObservedLogs
}

// newKeyFiles returns the callers shop, with a key and one before, and agent.
func newKeyFiles(t *testing.T) *keyFiles {
	t.Helper()
	f := &keyFiles{t: t, directory: t.TempDir()}
	f.write("shop", firstKey)
	f.write("agent", thirdKey)
	core, logs := observer.New(zap.InfoLevel)
	f.logs = logs
	value := func(name string) string { return "{file." + filepath.Join(f.directory, name) + "}" }
	var err error
	f.callers, err = newCallers(map[string]*Caller{
		"shop": {Key: []string{value("shop"), value("shop.before")}}, "agent": {Key: []string{value("agent")}},
	}, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// write replaces a file as a whole.
func (f *keyFiles) write(name, content string) {
	f.t.Helper()
	path := filepath.Join(f.directory, name)
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		f.t.Fatal(err)
	}
}

func (f *keyFiles) remove(name string) {
	f.t.Helper()
	if err := os.Remove(filepath.Join(f.directory, name)); err != nil {
		f.t.Fatal(err)
	}
}

// look looks at the files once, and checks whose keys are whose then.
func (f *keyFiles) look(want map[string]string) {
	f.t.Helper()
	f.keys.look(f.keys.keys)
	for _, key := range []string{firstKey, secondKey, thirdKey} {
		got := ""
		if c := f.ofKey([]byte(key)); c != nil {
			got = c.name
		}
		if got != want[key] {
			f.t.Errorf("%s is the key of %q, want %q", key, got, want[key])
		}
	}
}

func TestKeyFiles(t *testing.T) {
	both := map[string]string{firstKey: "shop", thirdKey: "agent"}
	for name, test := range map[string]struct {
		change func(f *keyFiles)
		want   map[string]string // when it is looked for
		then   map[string]string // when it is looked for again
		logged string
	}{
		"unchanged": {func(*keyFiles) {}, both, both, ""},
		"changed": {
			func(f *keyFiles) { f.write("shop", secondKey) },
			map[string]string{secondKey: "shop", thirdKey: "agent"}, map[string]string{secondKey: "shop", thirdKey: "agent"},
			"the key of a caller has changed",
		},
		"changed, and the one before kept": {
			func(f *keyFiles) { f.write("shop.before", firstKey); f.write("shop", secondKey+"\n") },
			map[string]string{firstKey: "shop", secondKey: "shop", thirdKey: "agent"}, map[string]string{firstKey: "shop", secondKey: "shop", thirdKey: "agent"},
			"the key of a caller has changed",
		},
		"gone":      {func(f *keyFiles) { f.remove("shop") }, both, map[string]string{thirdKey: "agent"}, "the key of a caller is gone, and no longer counts"},
		"emptied":   {func(f *keyFiles) { f.write("shop", "\n") }, both, map[string]string{thirdKey: "agent"}, "the key of a caller is gone, and no longer counts"},
		"too short": {func(f *keyFiles) { f.write("shop", "short") }, both, both, "the key of a caller cannot be read; the one before is still used"},
		"a directory": {
			func(f *keyFiles) { f.remove("shop"); _ = os.Mkdir(filepath.Join(f.directory, "shop"), 0o700) },
			both, both, "the key of a caller cannot be read; the one before is still used",
		},
		"that of another": {func(f *keyFiles) { f.write("shop", thirdKey) }, both, both, "the key of a caller cannot be read; the one before is still used"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newKeyFiles(t)
			f.look(both)
			test.change(f)
			f.look(test.want)
			f.look(test.then)
			f.look(test.then)
			logged := f.logs.TakeAll()
			if (test.logged == "") != (len(logged) == 0) || len(logged) > 2 {
				t.Errorf("logged %d lines", len(logged))
			}
			for _, line := range logged {
				if line.Message != test.logged || line.ContextMap()["caller"] != "shop" {
					t.Errorf("logged %s %v", line.Message, line.ContextMap())
				}
				if text := fmt.Sprint(line); strings.Contains(text, firstKey) || strings.Contains(text, secondKey) || strings.Contains(text, thirdKey) {
					t.Errorf("a key was logged: %s", text)
				}
			}
		})
	}
}

// The end of a rotation is no reason to warn. That of a key which is needed is.
func TestLevelOfAKeyThatIsGone(t *testing.T) {
	f := newKeyFiles(t)
	level := func() zapcore.Level {
		t.Helper()
		f.keys.look(f.keys.keys)
		f.keys.look(f.keys.keys)
		lines := f.logs.FilterMessage("the key of a caller is gone, and no longer counts").All()
		f.logs.TakeAll()
		if len(lines) != 1 {
			t.Fatalf("logged %d lines, want 1", len(lines))
		}
		return lines[0].Level
	}
	rotate := func() {
		f.write("shop.before", firstKey)
		f.write("shop", secondKey)
		f.look(map[string]string{firstKey: "shop", secondKey: "shop", thirdKey: "agent"})
	}
	rotate()
	f.remove("shop.before")
	if got := level(); got != zap.InfoLevel {
		t.Errorf("the previous key: logged at %s", got)
	}
	rotate()
	f.remove("shop")
	if got := level(); got != zap.WarnLevel {
		t.Errorf("the present key, beside a previous one: logged at %s", got)
	}
	f.remove("shop.before")
	if got := level(); got != zap.WarnLevel {
		t.Errorf("the last key: logged at %s", got)
	}
}

// A file that is gone for a moment only, as while it is replaced, ends nothing.
func TestKeyFileThatComesBack(t *testing.T) {
	f := newKeyFiles(t)
	both := map[string]string{firstKey: "shop", thirdKey: "agent"}
	f.remove("shop")
	f.look(both)
	f.write("shop", firstKey)
	f.look(both)
	f.remove("shop")
	f.look(both)
	f.write("shop", secondKey)
	f.look(map[string]string{secondKey: "shop", thirdKey: "agent"})

	// and one that has ended begins again
	f.remove("agent")
	f.keys.look(f.keys.keys)
	f.look(map[string]string{secondKey: "shop"})
	f.write("agent", thirdKey)
	f.look(map[string]string{secondKey: "shop", thirdKey: "agent"})
}

// What comes in place of a key that has ended, and cannot be one, is said to be so.
func TestKeyThatEndedAndCannotBeRead(t *testing.T) {
	f := newKeyFiles(t)
	f.remove("shop")
	f.keys.look(f.keys.keys)
	f.look(map[string]string{thirdKey: "agent"})
	f.logs.TakeAll()
	f.write("shop", "short")
	f.look(map[string]string{thirdKey: "agent"})
	logged := f.logs.TakeAll()
	if len(logged) != 1 || logged[0].Message != "the key of a caller cannot be read, and does not count" {
		t.Errorf("logged %v", logged)
	}
}

// Files of procfs, and of some network file systems, have the size 0 whatever they hold.
func TestKeyInAFileWithoutASize(t *testing.T) {
	const file = "/proc/sys/kernel/random/boot_id"
	if runtime.GOOS != "linux" {
		t.Skip("needs procfs")
	}
	known, err := newCallers(map[string]*Caller{"shop": {Key: []string{"{file." + file + "}"}}}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	key := known.keys.keys[0]
	for range 3 {
		key.file = nil // as if it had changed
		known.keys.look(known.keys.keys)
		if key.proof == nil {
			t.Fatal("the key is gone, and its file has not changed")
		}
	}
}

// Callers may exchange their keys.
func TestKeysAreExchanged(t *testing.T) {
	f := newKeyFiles(t)
	f.look(map[string]string{firstKey: "shop", thirdKey: "agent"})
	f.write("shop", thirdKey)
	f.write("agent", firstKey)
	f.look(map[string]string{firstKey: "agent", thirdKey: "shop"})
	f.look(map[string]string{firstKey: "agent", thirdKey: "shop"})

	// what was logged as another's is over
	f.write("shop", secondKey)
	f.look(map[string]string{firstKey: "agent", secondKey: "shop"})
}

func TestKeysThatCannotBe(t *testing.T) {
	for key, want := range map[string]string{
		strings.Repeat("x", 19):                    "key: has fewer than 20 characters; `caddy egress key` makes one",
		strings.Repeat("x", 513):                   "key: has more than 512 characters; `caddy egress key` makes one",
		"a key with spaces in it":                  "key: has a space or another character than visible ASCII; `caddy egress key` makes one",
		"schlüssel-0123456789abcdef":               "key: has a space or another character than visible ASCII; `caddy egress key` makes one",
		localTokenPrefix + strings.Repeat("x", 40): "key: begins with egress_, as tokens of egress_token do; `caddy egress key` makes one",
	} {
		_, err := newCallers(map[string]*Caller{"shop": {Key: []string{key}}}, zap.NewNop())
		if err == nil || err.Error() != "caller shop: "+want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// BenchmarkLookAtKeys measures what it costs, twice a second, to look at the files
// of 1,000 callers with two keys each.
func BenchmarkLookAtKeys(b *testing.B) {
	directory := b.TempDir()
	configured := make(map[string]*Caller)
	for n := range benchCallers {
		path := filepath.Join(directory, fmt.Sprint(n))
		if err := os.WriteFile(path, []byte(benchKey(n)), 0o600); err != nil {
			b.Fatal(err)
		}
		configured[fmt.Sprintf("caller-%d", n)] = &Caller{Key: []string{"{file." + path + "}", "{file." + path + ".before}"}}
	}
	known, err := newCallers(configured, zap.NewNop())
	if err != nil {
		b.Fatal(err)
	}
	for _, key := range known.keys.keys { // as if they had not changed for long
		key.read = key.read.Add(settled)
	}
	b.ReportAllocs()
	for b.Loop() {
		for _, key := range known.keys.keys {
			key.read = key.read.Add(settled)
		}
		known.keys.look(known.keys.keys)
	}
}
