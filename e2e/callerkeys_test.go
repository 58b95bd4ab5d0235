package e2e_test

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// keyStage is a gateway whose callers have their keys in files.
type keyStage struct {
	t     *testing.T
	g     *egresstest.Gateway
	files map[string]*secretFile // by caller; before: the previous one of shop
}

// newKeyStage starts a gateway with the callers shop, with a previous key that has
// no value yet, agent, clock, and others.
func newKeyStage(t *testing.T, others ...string) *keyStage {
	s := &keyStage{t: t, files: make(map[string]*secretFile)}
	callers := ""
	for _, name := range append(others, "shop", "agent", "clock", "before") {
		s.files[name] = newSecretFile(t, egresstest.Key(name)+"\n")
		if name != "shop" && name != "before" {
			callers += fmt.Sprintf("caller %s {\n key {file.%s}\n}\n", name, s.files[name].path)
		}
	}
	s.files["before"].write("")
	callers += fmt.Sprintf("caller shop {\n key {file.%s} {file.%s}\n}\n", s.files["shop"].path, s.files["before"].path)
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	s.g = egresstest.StartGateway(t, "egress plain {\n grant *\n"+showCaller+"}", egresstest.WithCallers("egress {\n"+plainCredential(api.URL, endpoint.URL)+callers+"}"))
	return s
}

// knows returns whose key the gateway takes key for, "" if nobody's.
func (s *keyStage) knows(key string) string {
	s.t.Helper()
	resp, body := ask(s.g, http.MethodGet, "/v1/x", "Authorization", "Bearer "+key)
	caller := resp.Header.Get("X-Caller")
	if (resp.StatusCode == http.StatusOK) != (caller != "") || caller == "" && resp.StatusCode != http.StatusUnauthorized {
		s.t.Errorf("taken for %q, and answered %d %s", caller, resp.StatusCode, body)
	}
	return caller
}

// becomes waits until the gateway takes key for a caller, and returns how long it took.
func (s *keyStage) becomes(key, caller string) time.Duration {
	s.t.Helper()
	start := time.Now()
	egresstest.Eventually(s.t, fmt.Sprintf("a key to be that of %q", caller), func() bool { return s.knows(key) == caller })
	return time.Since(start)
}

// settle waits until all files have been looked at twice: the clock has had two new
// keys, and files in other directories are looked at as often.
func (s *keyStage) settle() {
	s.t.Helper()
	for range 3 {
		next := egresstest.Key(fmt.Sprint("clock-", time.Now().UnixNano()))
		s.files["clock"].write(next)
		s.becomes(next, "clock")
	}
}

// A key is replaced while it is used: both count until the previous one is removed.
func TestKeyIsReplacedUnderLoad(t *testing.T) {
	s := newKeyStage(t)
	users := func(key string) (end func() (sent, failed int64)) {
		client := clientAt(t, "127.0.0.1")
		client.Transport = keyed{key, client.Transport}
		var sent, failed atomic.Int64
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 4 { // 200 requests a second
			wg.Go(func() {
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
					case <-stop:
						return
					}
					resp, err := client.Get(s.g.URL + "/v1/x")
					if err != nil {
						t.Error(err)
						return
					}
					resp.Body.Close()
					sent.Add(1)
					if resp.StatusCode != http.StatusOK {
						failed.Add(1)
					}
				}
			})
		}
		return func() (int64, int64) {
			close(stop)
			wg.Wait()
			return sent.Load(), failed.Load()
		}
	}
	key := egresstest.Key("shop")
	for n := range 3 {
		next := egresstest.Key(fmt.Sprint("shop-", n+1))
		end := users(key)
		s.files["before"].write(key + "\n")
		s.files["shop"].write(next + "\n")
		began := s.becomes(next, "shop")
		endNext := users(next)
		s.settle()
		sent, failed := end()
		if failed > 0 || sent == 0 {
			t.Errorf("change %d: %d of %d requests with the previous key failed", n, failed, sent)
		}
		s.files["before"].write("")
		ended := s.becomes(key, "")
		sentNext, failedNext := endNext()
		if failedNext > 0 || sentNext == 0 {
			t.Errorf("change %d: %d of %d requests with the new key failed", n, failedNext, sentNext)
		}
		t.Logf("change %d: the new key counted after %v, the previous one until %v after it was removed; %d and %d requests, none failed", n, began, ended, sent, sentNext)
		if began > 10*time.Second || ended > 10*time.Second { // on a machine that is free: 1 s
			t.Errorf("change %d: the new key counted after %v, the previous one until %v after it was removed", n, began, ended)
		}
		key = next
	}
}

// A file that is gone or empty ends its key; one that cannot be used changes
// nothing and is warned about, whatever is wrong with it.
func TestFilesOfKeys(t *testing.T) {
	const gone, unusable = "the key of a caller is gone, and no longer counts", "the key of a caller cannot be read; the one before is still used"
	cases := map[string]struct {
		change func(f *secretFile)
		logged string // why the key ended, or did not
	}{
		"removed":           {func(f *secretFile) { _ = os.Remove(f.path) }, gone},
		"empty":             {func(f *secretFile) { f.write("") }, gone},
		"a-line-break":      {func(f *secretFile) { f.write("\n") }, gone},
		"space":             {func(f *secretFile) { f.write(" \r\n\n") }, gone},
		"dangling-link":     {func(f *secretFile) { _ = os.Remove(f.path); _ = os.Symlink(f.path+".nowhere", f.path) }, gone},
		"too-short":         {func(f *secretFile) { f.write(egresstest.KeyPrefix + "x") }, unusable},
		"too-long":          {func(f *secretFile) { f.write(egresstest.Key(strings.Repeat("x", 512))) }, unusable},
		"two-lines":         {func(f *secretFile) { f.write(egresstest.Key("one") + "\n" + egresstest.Key("two") + "\n") }, unusable},
		"not-ASCII":         {func(f *secretFile) { f.write(egresstest.Key("schlüssel-der-zu-nichts")) }, unusable},
		"huge":              {func(f *secretFile) { f.write(strings.Repeat("x", 3<<20)) }, unusable},
		"a-directory":       {func(f *secretFile) { _ = os.Remove(f.path); _ = os.MkdirAll(filepath.Join(f.path, "x", "y"), 0o700) }, unusable},
		"a-loop-of-links":   {func(f *secretFile) { _ = os.Remove(f.path); _ = os.Symlink(f.path, f.path) }, unusable},
		"anothers-key":      {func(f *secretFile) { f.write(egresstest.Key("agent")) }, unusable},
		"looks-like-tokens": {func(f *secretFile) { f.write("egress_" + egresstest.Key("x")) }, unusable},
	}
	s := newKeyStage(t, slices.Sorted(maps.Keys(cases))...)
	for name, c := range cases {
		c.change(s.files[name])
	}
	s.settle()
	for name, c := range cases {
		other := map[string]string{gone: unusable, unusable: gone}[c.logged]
		of := func(message string) (lines []map[string]any) {
			for _, line := range s.g.LogLines(message) {
				if line["caller"] == name && line["file"] == s.files[name].path {
					lines = append(lines, line)
				}
			}
			return lines
		}
		egresstest.Eventually(t, "a line in the log about "+name, func() bool { return len(of(c.logged)) > 0 })
		if c.logged == gone { // which is logged before it counts
			s.becomes(egresstest.Key(name), "")
		} else if got := s.knows(egresstest.Key(name)); got != name {
			t.Errorf("%s: its key is that of %q", name, got)
		}
		if got, more := of(c.logged), of(other); len(got) != 1 || len(more) > 0 {
			t.Errorf("%s: logged %v and %v, want one line", name, got, more)
		}
	}
	for _, name := range []string{"shop", "agent"} {
		if got := s.knows(egresstest.Key(name)); got != name {
			t.Errorf("the key of %s is that of %q", name, got)
		}
	}
	// whatever it was, it ends
	for name := range cases {
		_ = os.RemoveAll(s.files[name].path)
		s.files[name].write(egresstest.Key(name+"-after") + "\r\n")
	}
	for name := range cases {
		s.becomes(egresstest.Key(name+"-after"), name)
		s.becomes(egresstest.Key(name), "")
	}
}

// A key that could not be used since another caller has it counts once that one
// has let it go.
func TestKeyGoesToAnotherCaller(t *testing.T) {
	s := newKeyStage(t)
	s.files["shop"].write(egresstest.Key("agent"))
	egresstest.Eventually(t, "a line in the log", func() bool { return strings.Contains(s.g.Log(), "is that of caller agent, too") })
	old := time.Now().Add(-time.Hour) // however long that took
	if err := os.Chtimes(s.files["shop"].path, old, old); err != nil {
		t.Fatal(err)
	}
	s.settle()
	s.files["agent"].write(egresstest.Key("agent-after"))
	s.becomes(egresstest.Key("agent"), "shop")
	s.becomes(egresstest.Key("agent-after"), "agent")
	s.becomes(egresstest.Key("shop"), "")
}

// A file that cannot be read for now holds up no other.
func TestFileOfAKeyThatHangs(t *testing.T) {
	s := newKeyStage(t)
	s.files["shop"].hang()
	s.files["agent"].write(egresstest.Key("agent-after"))
	s.becomes(egresstest.Key("agent-after"), "agent")
	s.files["shop"].write(egresstest.Key("shop-after"))
	s.becomes(egresstest.Key("shop-after"), "shop")
}

// Kubernetes replaces all files of a volume at once: by another target of a
// symbolic link to their directory.
func TestKeysInAVolumeOfKubernetes(t *testing.T) {
	dir := t.TempDir()
	deploy := func(n int, files map[string]string) {
		version := fmt.Sprint("..v", n)
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, content := range files {
			file := filepath.Join(dir, version, name)
			if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			same := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) // as of volumes with reproducible contents
			if err := os.Chtimes(file, same, same); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			_ = os.RemoveAll(filepath.Join(dir, fmt.Sprint("..v", n-1)))
		}
	}
	key := func(n int) string { return egresstest.Key(fmt.Sprint("shop-", n)) }
	deploy(0, map[string]string{"key": key(0), "previous": ""})
	for _, name := range []string{"key", "previous"} {
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	g := egresstest.StartGateway(t, "egress plain {\n grant *\n"+showCaller+"}", egresstest.WithCallers("egress {\n"+plainCredential(api.URL, endpoint.URL)+
		fmt.Sprintf("caller shop {\n key {file.%s/key} {file.%s/previous}\n}\n", dir, dir)+"}"))
	s := &keyStage{t: t, g: g}
	for n := range 4 {
		deploy(n+1, map[string]string{"key": key(n + 1), "previous": key(n)})
		egresstest.Eventually(t, "the new key", func() bool {
			if s.knows(key(n)) != "shop" {
				t.Fatalf("version %d: the key before does not count", n+1)
			}
			return s.knows(key(n+1)) == "shop"
		})
		if n > 0 {
			s.becomes(key(n-1), "")
		}
	}
}

// Keys that could not tell callers apart, or that could be guessed, are not loaded;
// the error names the caller and does not show the key.
func TestKeysThatAreNotLoaded(t *testing.T) {
	t.Setenv("EGRESS_TEST_TWICE", egresstest.Key("twice"))
	t.Setenv("EGRESS_TEST_SHORT", egresstest.KeyPrefix+"x")
	t.Setenv("EGRESS_TEST_SPACE", egresstest.Key("with a space"))
	g := egresstest.NewGateway(t)
	for keys, want := range map[string]string{
		"caller shop {\n key {env.EGRESS_TEST_TWICE}\n}\ncaller agent {\n key {env.EGRESS_TEST_TWICE}\n}":                                 "agent",
		"caller shop {\n key {env.EGRESS_TEST_TWICE}\n}\ncaller agent {\n key " + egresstest.Key("other") + " {env.EGRESS_TEST_TWICE}\n}": "agent",
		"caller shop {\n key {env.EGRESS_TEST_SHORT}\n}":                                                                                  "shop",
		"caller shop {\n key {env.EGRESS_TEST_SPACE}\n}":                                                                                  "shop",
		"caller shop {\n key {env.EGRESS_TEST_UNSET}\n}":                                                                                  "shop",
		"caller shop {\n key {file./nowhere/at/all}\n}":                                                                                   "shop",
		"caller shop {\n key egress_" + egresstest.Key("of-a-token") + "\n}":                                                              "shop",
	} {
		g.Global = "egress {\n" + plainCredential("http://127.0.0.1:1", "http://127.0.0.1:1") + keys + "\n}"
		err := egresstest.Validate(t, g.Adapt("egress plain {\n grant *\n}"))
		if err == nil || !strings.Contains(err.Error(), "caller "+want) {
			t.Errorf("%s: %v", keys, err)
			continue
		}
		egresstest.CheckKeys(t, "the error", err.Error())
	}
	// the key before may be left out, or be the same
	g.Global = "egress {\n" + plainCredential("http://127.0.0.1:1", "http://127.0.0.1:1") + "caller shop {\n key {env.EGRESS_TEST_TWICE} {env.EGRESS_TEST_UNSET}\n}\ncaller agent {\n key " + egresstest.Key("other") + " " + egresstest.Key("other") + "\n}\n}"
	if err := egresstest.Validate(t, g.Adapt("egress plain {\n grant *\n}")); err != nil {
		t.Errorf("without a key before: %v", err)
	}
}
