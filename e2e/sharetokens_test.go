package e2e_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// sharing is a gateway that shares its tokens in a folder, with itself: each run is
// another instance.
type sharing struct {
	*egresstest.Gateway
	t        *testing.T
	admin    egresstest.Admin
	dir      string
	endpoint *egresstest.Tokens
	revoked  func() int
	routes   string
}

func newSharing(t *testing.T, options string) *sharing {
	t.Helper()
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	revocations := egresstest.NewRecorder(t)
	admin, option := egresstest.NewAdmin(t)
	s := &sharing{t: t, admin: admin, dir: egresstest.StorageDir(t), endpoint: endpoint, routes: "egress shared", revoked: revocations.Count}
	s.Gateway = egresstest.StartWatched(t, s.routes, egresstest.WithGlobal(option+fmt.Sprintf(`egress {
		share_tokens {
			storage file_system %s
		}
		credential shared oauth2 %s {
			token_url %s
			client_id id
			client_secret {env.EGRESS_TEST_SECRET}
			revocation_url %s
			%s
		}
	}`, s.dir, api.URL, endpoint.URL, revocations.URL, options)))
	return s
}

// restart ends the run, as a stop of Caddy does, and begins the next after between.
func (s *sharing) restart(between ...func() error) {
	s.t.Helper()
	if err := caddy.Stop(); err != nil {
		s.t.Fatal(err)
	}
	for _, f := range between {
		if err := f(); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := s.Load("log\n" + s.routes); err != nil {
		s.t.Fatal(err)
	}
	egresstest.Eventually(s.t, "the admin API", func() bool { // that of the run before may have taken the connection
		_, _, err := s.admin.Try(http.MethodGet, "/egress/tokens")
		return err == nil
	})
}

func (s *sharing) get() {
	s.t.Helper()
	if resp, body := s.GetAfterReload("/v1/x"); resp.StatusCode != http.StatusOK {
		s.t.Fatalf("answered %d %s, want 200", resp.StatusCode, body)
	}
}

// storedKey is a key of what is stored of tokens.
var storedKey = regexp.MustCompile(`/egress/(tokens/[0-9a-f]{64}|sharers/[0-9a-f]{64}/[0-9a-f]{16})$`)

// storedTokens returns how many tokens are in a folder, under their names: a file has
// another one while it is written.
func storedTokens(dir string) int {
	entries, _ := filepath.Glob(filepath.Join(dir, "egress", "tokens", strings.Repeat("[0-9a-f]", 64)))
	return len(entries)
}

// holdsAToken reports whether the token has been stored, which requests do not wait for.
func (s *sharing) holdsAToken() bool {
	keys, _ := s.stored()
	return len(keys) == 1
}

// stored returns the keys of what is stored of tokens, and all that is in the folder.
func (s *sharing) stored() (keys []string, all string) {
	s.t.Helper()
	err := filepath.WalkDir(s.dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // it has its name by now
			return nil
		}
		if key := storedKey.FindString(filepath.ToSlash(path)); key != "" {
			keys = append(keys, key)
		}
		all += path + "\n" + string(content) + "\n"
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return keys, all
}

func TestRunsShareAToken(t *testing.T) {
	s := newSharing(t, "")
	s.get()
	if from := s.admin.Status(t, "shared").TokenFrom; from != "own" {
		t.Errorf("the first token is from %q", from)
	}
	egresstest.Eventually(t, "the token in the storage", s.holdsAToken)
	for range 3 {
		s.restart()
		// the storage has less time where a client waits
		egresstest.Eventually(t, "the token from the storage", func() bool { return s.admin.Status(t, "shared").TokenFrom == "shared" })
		s.get()
	}
	if n := s.endpoint.Count(); n != 1 {
		t.Errorf("%d token requests in 4 runs, want 1", n)
	}
	keys, all := s.stored()
	egresstest.CheckLeaks(t, "the storage", all)
	if len(keys) != 1 || !strings.HasPrefix(keys[0], "/egress/tokens/") {
		t.Errorf("stored are %q, want egress/tokens/<identity>", keys)
	}

	status := s.admin.Status(t, "shared")
	if status.TokenFrom != "shared" || status.Store == nil || status.Store.State != "ok" || status.Store.Storage != "caddy.storage.file_system" ||
		status.Store.Error != "" || status.Store.Since.IsZero() || status.TokenRequests != 0 {
		t.Errorf("status %+v, %+v", status, status.Store)
	}
	got := runCaddy(t, "egress", "status", "--address", string(s.admin))
	want := regexp.MustCompile(`^CREDENTIAL PROVIDER STATE EXPIRES FROM DETAILS
shared oauth2 fresh in \S+ shared next refresh in \S+

Tokens are shared in caddy.storage.file_system: ok since \d\d:\d\d:\d\d \(\d+s\)$`)
	if text := regexp.MustCompile(` {2,}`).ReplaceAllString(strings.TrimSpace(got.stdout), " "); !want.MatchString(text) {
		t.Errorf("printed\n%s\nwant\n%s", text, want)
	}
	metrics := s.admin.Metrics(t, "")
	for _, operation := range []string{"load", "store", "lock"} {
		series := fmt.Sprintf("caddy_egress_store_operations_total{operation=%q,outcome=\"ok\"}", operation)
		if metrics[series] == 0 {
			t.Errorf("%s is %v", series, metrics[series])
		}
	}
}

func TestRunWhoseStorageCannotBeUsed(t *testing.T) {
	s := newSharing(t, "")
	s.get()
	egresstest.Eventually(t, "the token to be stored", s.holdsAToken) // the folder is not to come back
	s.restart(func() error {
		if err := os.Rename(s.dir, s.dir+".before"); err != nil {
			return err
		}
		return os.WriteFile(s.dir, nil, 0o600) // a file where the folder was
	})
	s.get()
	if n := s.endpoint.Count(); n != 2 {
		t.Errorf("%d token requests, want one of each run", n)
	}
	egresstest.Eventually(t, "the failure in the status", func() bool {
		status := s.admin.Status(t, "shared")
		return status.TokenFrom == "own" && status.Store.State == "failing" && status.Store.Error != ""
	})
	got := runCaddy(t, "egress", "status", "--address", string(s.admin))
	if !regexp.MustCompile(`file_system: failing since \d\d:\d\d:\d\d \(\d+s\), each instance uses tokens of its own meanwhile; \S`).MatchString(got.stdout) {
		t.Errorf("printed\n%s", got.stdout)
	}
	if n := len(s.LogLines("the storage of shared tokens fails; tokens are not shared meanwhile")); n != 1 {
		t.Errorf("warned %d times, want once", n)
	}
}

func TestSharedTokenIsRevokedAtTheEndOfTheLastRun(t *testing.T) {
	s := newSharing(t, "revoke_on_stop")
	s.get()
	egresstest.Eventually(t, "token and instance in the storage", func() bool {
		keys, _ := s.stored()
		return len(keys) == 2
	})
	s.restart()
	egresstest.Eventually(t, "the revocation", func() bool { return s.revoked() == 1 })
	s.get()
	if n := s.endpoint.Count(); n != 2 {
		t.Errorf("%d token requests, want another after the revocation", n)
	}
}

// Others need not wait for a handler of events, such as a command, to have the token.
func TestTokenIsSharedWhateverHandlersOfEventsDo(t *testing.T) {
	s := newSharing(t, "")
	s.Global += "\nevents {\non egress.token_obtained egress_test hang\n}\n"
	if err := s.Load("log\n" + s.routes); err != nil {
		t.Fatal(err)
	}
	s.get()
	egresstest.Eventually(t, "the token to be stored", s.holdsAToken)
	_, before := s.stored()
	if resp, body := s.admin.Ask(t, http.MethodPost, "/egress/tokens/shared/refresh"); resp.StatusCode != http.StatusOK {
		t.Fatalf("refreshing: %d %s", resp.StatusCode, body)
	}
	egresstest.Eventually(t, "another token to be stored", func() bool {
		_, now := s.stored()
		return now != before
	})
	egresstest.Eventually(t, "the event", func() bool { return len(eventsOf("egress.token_obtained", "shared")) > 0 })
}

func TestSharingBeginsAndEndsByReload(t *testing.T) {
	s := newSharing(t, "")
	s.get()
	global := s.Global
	s.Global = regexp.MustCompile(`(?s)share_tokens \{.*?\}\s*\n\s*credential`).ReplaceAllString(global, "credential")
	if s.Global == global {
		t.Fatal("the config is as before")
	}
	for _, shares := range []bool{false, true} {
		if shares {
			s.Global = global
		}
		if err := s.Load("log\n" + s.routes); err != nil {
			t.Fatal(err)
		}
		s.get()
		if status := s.admin.Status(t, "shared"); (status.Store != nil) != shares {
			t.Errorf("shares %t, want %t", status.Store != nil, shares)
		}
	}
	if n := s.endpoint.Count(); n != 1 {
		t.Errorf("%d token requests, want that reloads keep the token", n)
	}
}
