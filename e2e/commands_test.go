package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	egress "github.com/caddy-egress/caddy-egress"
	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/sandbox"
)

// caddyResult is what came of a command.
type caddyResult struct {
	stdout, stderr string
	status         int
}

// runCaddy runs `caddy <args...>`. What it prints is searched for leaks.
func runCaddy(t *testing.T, args ...string) caddyResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := egresstest.CaddyCommand(ctx, t.TempDir(), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	egresstest.CheckLeaks(t, "caddy "+strings.Join(args, " "), stdout.String()+stderr.String())
	return caddyResult{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// noneInUse is what status says without a token to list.
const noneInUse = "no credential is in use; a credential with {tenant} is in use once a request names a tenant"

// tidy returns text with runs of blanks as one, and without those at the ends of lines.
func tidy(text string) string {
	text = regexp.MustCompile(` {2,}`).ReplaceAllString(text, " ")
	return strings.TrimSpace(regexp.MustCompile(` *\n *`).ReplaceAllString(text, "\n"))
}

// writeConfig writes a Caddyfile or JSON, and returns its path.
func writeConfig(t *testing.T, name, config string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestCommandsOnARunningCaddy(t *testing.T) {
	voucherify, voucherifyServer := egresstest.NewSandbox(t, "voucherify")
	endpoint := egresstest.NewTokens(t)
	endpoint.Answer = egresstest.Say(http.StatusServiceUnavailable, "")
	admin, option := egresstest.NewAdmin(t)
	g := egresstest.StartWatched(t, "handle /v1/* {\n egress vouchers\n}\nhandle {\n egress down\n}", egresstest.WithGlobal(option+fmt.Sprintf(`egress {
		credential vouchers voucherify %s {
			app_id id
			app_token {env.EGRESS_TEST_SECRET}
			scopes vouchers
		}
		credential down oauth2 http://127.0.0.1:1 {
			token_url %s
			client_id id
			client_secret {env.EGRESS_TEST_SECRET}
		}
	}`, voucherifyServer.URL, endpoint.URL)))
	egresstest.Eventually(t, "the first token requests", func() bool {
		return admin.Status(t, "vouchers").State == "fresh" && admin.Status(t, "down").LastError != nil
	})
	g.Get("/v1/vouchers")
	address := []string{"--address", string(admin)}
	run := func(args ...string) caddyResult {
		t.Helper()
		return runCaddy(t, append(append([]string{"egress"}, args...), address...)...)
	}
	// what varies, in one line of the table
	normal := func(text string) string {
		for _, rule := range [][2]string{
			{`\bin (\d+h)?(\d+m)?\d+s`, "in <duration>"}, {`\d+:\d\d:\d\d \(\S+, \d+ attempts?\)`, "<time> (<duration>, <n> attempts)"},
			{`next attempt now|a token request is under way`, "next attempt in <duration>"}, {`\b(expired|refreshing)\b`, "expired"},
		} {
			text = regexp.MustCompile(rule[0]).ReplaceAllString(text, rule[1])
		}
		return tidy(text)
	}
	const (
		heading = "CREDENTIAL PROVIDER STATE EXPIRES DETAILS\n"
		down    = "down oauth2 expired - token endpoint answered 503 Service Unavailable; failing since <time> (<duration>, <n> attempts); " +
			"next attempt in <duration>; wait; the authorization server is in trouble"
		vouchers = "vouchers voucherify fresh in <duration> next refresh in <duration>"
	)

	t.Run("status", func(t *testing.T) {
		got := run("status")
		if text := normal(got.stdout); got.status != 0 || text != heading+down+"\n"+vouchers {
			t.Errorf("status %d, printed\n%s\nwant\n%s\n%s", got.status, text, heading+down+"\n"+vouchers, got.stderr)
		}
	})
	t.Run("status of one", func(t *testing.T) {
		if got := run("status", "vouchers"); got.status != 0 || normal(got.stdout) != heading+vouchers {
			t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
		}
	})
	t.Run("status as JSON", func(t *testing.T) {
		var all []egress.CredentialStatus
		got := run("status", "--json")
		if err := json.Unmarshal([]byte(got.stdout), &all); err != nil || len(all) != 2 || got.status != 0 {
			t.Errorf("status %d, error %v, printed\n%s", got.status, err, got.stdout)
		}
		var one egress.CredentialStatus
		got = run("status", "vouchers", "--json")
		if err := json.Unmarshal([]byte(got.stdout), &one); err != nil || one.State != "fresh" {
			t.Errorf("error %v, printed\n%s", err, got.stdout)
		}
	})
	t.Run("address out of the config", func(t *testing.T) {
		file := writeConfig(t, "Caddyfile", "{\n"+option+"}\n")
		if got := runCaddy(t, "egress", "status", "vouchers", "--config", file); got.status != 0 || normal(got.stdout) != heading+vouchers {
			t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
		}
	})
	t.Run("refresh", func(t *testing.T) {
		before := voucherify.Stats().TokenRequests
		got := run("refresh", "vouchers")
		if got.status != 0 || normal(got.stdout) != heading+vouchers || voucherify.Stats().TokenRequests != before+1 {
			t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
		}
	})
	t.Run("introspect", func(t *testing.T) {
		got := run("introspect", "vouchers")
		if got.status != 0 || !regexp.MustCompile(`^ACTIVE CLIENT EXPIRES SCOPES\ntrue \w+ in <duration> vouchers$`).MatchString(normal(got.stdout)) {
			t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
		}
		if got := run("introspect", "vouchers", "--json"); !strings.HasPrefix(got.stdout, `{"active":true,`) {
			t.Errorf("printed %s", got.stdout)
		}
	})
	t.Run("revoke", func(t *testing.T) {
		got := run("revoke", "vouchers", "--json")
		var status egress.CredentialStatus
		if err := json.Unmarshal([]byte(got.stdout), &status); err != nil || got.status != 0 || status.Credential != "vouchers" {
			t.Errorf("status %d, error %v, printed\n%s\n%s", got.status, err, got.stdout, got.stderr)
		}
		egresstest.Eventually(t, "another token", func() bool { return admin.Status(t, "vouchers").State == "fresh" })
		if got := voucherify.Stats(); got.TokenRequests != 3 || got.LiveTokens != 2 {
			t.Errorf("got %+v, want 3 tokens of which one is revoked", got)
		}
	})
	for _, test := range []struct {
		name string
		args []string
		says string
	}{
		{"refresh that fails", []string{"refresh", "down"}, "503"},
		{"not supported", []string{"revoke", "down"}, "does not support"},
		{"unknown name", []string{"status", "nobody"}, "nobody"},
		{"a name that no credential can have", []string{"refresh", "a/../b c"}, "no such action"},
		{"name is missing", []string{"refresh"}, "refresh: name a credential; in use: down, vouchers"},
		{"too many names to act on", []string{"refresh", "vouchers", "down"}, "accepts at most 1 arg"},
		{"too many names", []string{"status", "vouchers", "down"}, "accepts at most 1 arg"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := run(test.args...); got.status != 1 || !strings.Contains(got.stderr, test.says) || got.stdout != "" {
				t.Errorf("status %d, printed\n%s\n%s\nwant %q", got.status, got.stdout, got.stderr, test.says)
			}
		})
	}
	t.Run("who acted is logged", func(t *testing.T) {
		seen := make(map[string]bool)
		for _, line := range g.LogLines("an operator acted on a token") {
			seen[fmt.Sprint(line["action"], " ", line["credential"], " ", line["error"] != nil)] = true
			agent, _ := line["user_agent"].(string)
			if addr, _ := line["remote_addr"].(string); !strings.HasPrefix(addr, "127.0.0.1:") || !regexp.MustCompile(`^caddy-egress \(.+@.+\)$`).MatchString(agent) || line["level"] != "info" {
				t.Errorf("logged %v", line)
			}
		}
		for _, want := range []string{"refresh vouchers false", "revoke vouchers false", "refresh down true", "revoke down true"} {
			if !seen[want] {
				t.Errorf("%s is not logged, but %v", want, seen)
			}
		}
		if len(seen) != 4 {
			t.Errorf("logged %v", seen)
		}
	})
	t.Run("rate limit", func(t *testing.T) {
		if err := voucherify.SetFaults(sandbox.Faults{API: sandbox.Fault{Status: 429, RetryAfter: "90"}}); err != nil {
			t.Fatal(err)
		}
		g.Get("/v1/vouchers")
		if got := run("status", "vouchers"); !strings.HasSuffix(normal(got.stdout), "; rate limited by the API, over in <duration>") {
			t.Errorf("printed\n%s", got.stdout)
		}
	})
	t.Run("no credential", func(t *testing.T) {
		g.Global = option
		if err := g.Load("respond 204"); err != nil {
			t.Fatal(err)
		}
		if got := run("status"); got.status != 0 || got.stdout != noneInUse+"\n" {
			t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
		}
	})
	t.Run("no Caddy", func(t *testing.T) {
		got := runCaddy(t, "egress", "status", "--address", egresstest.FreeAddr(t))
		if got.status != 1 || !strings.Contains(got.stderr, "connection refused") {
			t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
		}
		got = runCaddy(t, "egress", "revoke", "--address", egresstest.FreeAddr(t))
		if got.status != 1 || !strings.Contains(got.stderr, "revoke: name a credential; those in use could not be listed: ") {
			t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
		}
	})
}

func TestUnknownCommand(t *testing.T) {
	got := runCaddy(t, "egress", "stats")
	const want = `egress: "stats" is not a command; there are access, check, introspect, key, refresh, revoke, status; did you mean status?`
	if got.status != 1 || !strings.Contains(got.stderr, want) || got.stdout != "" {
		t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
	}
	if got := runCaddy(t, "egress", "help", "status"); got.status != 0 || !strings.Contains(got.stdout, "--address") {
		t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
	}
	if got := runCaddy(t, "egress", "help", "stats"); got.status != 1 || !strings.Contains(got.stderr, "did you mean status?") {
		t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
	}
	if got := runCaddy(t, "egress"); got.status != 0 || !strings.Contains(got.stdout, "status") {
		t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
	}
}

// The help of status explains each state that a credential can be in.
func TestHelpExplainsStates(t *testing.T) {
	help := runCaddy(t, "egress", "status", "--help").stdout
	for _, state := range constants(t, "../tokensource", func(name string) bool { return strings.HasPrefix(name, "Phase") }) {
		if !regexp.MustCompile(`(?m)^\s+` + state + `\s+\S`).MatchString(help) {
			t.Errorf("no line is about %s in\n%s", state, help)
		}
	}
}

func TestHelpOfCommands(t *testing.T) {
	for command, says := range map[string][]string{
		"":           {"access", "check", "key", "status", "refresh", "revoke", "introspect", "No command shows a secret or a token"},
		"access":     {"--config", "--adapter", "--json", "(anybody)", "no secret is read"},
		"key":        {"caller", "X-Api-Key", "umask 077"},
		"check":      {"--config", "--adapter", "--json", "Exits with status 1"},
		"status":     {"--address", "--config", "--json", "how the tokens of a running Caddy are doing", "Exits with status 1"},
		"refresh":    {"--address", "Replaces the token", "Exits with status 1"},
		"revoke":     {"--address", "Revokes the token", "Exits with status 1"},
		"introspect": {"--address", "Asks the authorization server", "Exits with status 1"},
	} {
		t.Run(command, func(t *testing.T) {
			got := runCaddy(t, append([]string{"egress"}, append(strings.Fields(command), "--help")...)...)
			for _, want := range says {
				if got.status != 0 || !strings.Contains(got.stdout, want) {
					t.Errorf("status %d, want %q in\n%s", got.status, want, got.stdout)
				}
			}
		})
	}
}
