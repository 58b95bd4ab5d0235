package egress_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	egressmodule "github.com/caddy-egress/caddy-egress"
	"github.com/caddy-egress/caddy-egress/sandbox"
)

// asCaddy makes the test binary be Caddy's command. It holds all that
// ./cmd/caddy does, and what else the tests were built with.
const asCaddy = "EGRESS_TEST_AS_CADDY"

func init() {
	if os.Getenv(asCaddy) != "" {
		caddycmd.Main()
		os.Exit(0)
	}
}

// caddyResult is what came of a command.
type caddyResult struct {
	stdout, stderr string
	status         int
}

// runCaddy runs `caddy <args...>`. What it prints is searched for leaks.
func runCaddy(t *testing.T, args ...string) caddyResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	home := t.TempDir()
	cmd.Env = append(os.Environ(), asCaddy+"=1", "HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_DATA_HOME="+home)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	checkLeaks(t, "caddy "+strings.Join(args, " "), stdout.String()+stderr.String())
	return caddyResult{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

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

// checked are the servers of a config that is checked, and the config.
type checked struct {
	voucherify, understory                *sandbox.Server
	voucherifyURL, understoryURL, downURL string
	all, good                             string // Caddyfiles
}

func newChecked(t *testing.T) *checked {
	t.Helper()
	c := new(checked)
	var voucherify, understory *httptest.Server
	c.voucherify, voucherify = newSandbox(t, sandbox.Options{API: "voucherify", ClientID: "id", ClientSecret: testSecret})
	c.understory, understory = newSandbox(t, sandbox.Options{API: "understory", ClientID: "id", ClientSecret: testSecret})
	c.voucherifyURL, c.understoryURL, c.downURL = voucherify.URL, understory.URL, "http://"+freeAddr(t)
	t.Setenv("EGRESS_TEST_WRONG_SECRET", testSecret+"-wrong")

	credential := func(name, provider, api, id, secret, secretEnv, scopes, options string) string {
		return fmt.Sprintf("credential %s %s %s {\n%s id\n%s {env.%s}\nscopes %s\n%s\n}\n", name, provider, api, id, secret, secretEnv, scopes, options)
	}
	vouchers := func(name, api, secretEnv string) string {
		return credential(name, "voucherify", api, "app_id", "app_token", secretEnv, "vouchers campaigns", "")
	}
	tours := func(name, scopes string) string {
		return credential(name, "understory", understory.URL, "client_id", "client_secret", "EGRESS_TEST_SECRET", scopes,
			"token_url "+understory.URL+"/oauth2/token")
	}
	good := vouchers("vouchers", voucherify.URL, "EGRESS_TEST_SECRET") + tours("tours", "booking.read")
	site := func(credentials, routes string) string {
		return "{\nadmin off\negress {\n" + credentials + "}\n}\n:8080 {\n" + routes + "}\n"
	}
	c.good = site(good, "egress vouchers\n")
	c.all = site(good+
		vouchers("bad-secret", voucherify.URL, "EGRESS_TEST_WRONG_SECRET")+
		tours("bad-scope", "no.such.scope")+
		vouchers("down", c.downURL, "EGRESS_TEST_SECRET")+
		vouchers("no-secret", voucherify.URL, "EGRESS_TEST_NOT_SET"),
		"egress /a* vouchers\negress /b* vouchers {\nscopes vouchers\n}\n"+
			fmt.Sprintf("egress /c* voucherify %s {\napp_id id\napp_token {env.EGRESS_TEST_SECRET}\nscopes api\n}\n", voucherify.URL))
	return c
}

// normal returns what a command printed with what varies replaced.
func (c *checked) normal(text string) string {
	for from, to := range map[string]string{c.voucherifyURL: "<voucherify>", c.understoryURL: "<understory>", c.downURL: "<down>"} {
		text = strings.ReplaceAll(text, from, to)
		text = strings.ReplaceAll(text, strings.TrimPrefix(from, "http://"), strings.Trim(to, "<>"))
	}
	return tidy(regexp.MustCompile(`(vouchers|voucherify)-[0-9a-f]{8}`).ReplaceAllString(text, "$1-<id>"))
}

func TestCheckCommand(t *testing.T) {
	c := newChecked(t)
	config := writeConfig(t, "Caddyfile", c.all)

	t.Run("table", func(t *testing.T) {
		got := runCaddy(t, "egress", "check", "--config", config)
		const want = `
CREDENTIAL PROVIDER ENDPOINT RESULT LIFETIME SCOPES GRANTED
bad-scope understory <understory>/oauth2/token refused - -
bad-secret voucherify <voucherify>/v1/oauth/token refused - -
down voucherify <down>/v1/oauth/token transient - -
no-secret voucherify - misconfigured - -
tours understory <understory>/oauth2/token ok 59m59s booking.read
vouchers voucherify <voucherify>/v1/oauth/token ok 15m0s vouchers campaigns
vouchers-<id> voucherify <voucherify>/v1/oauth/token ok 15m0s vouchers
voucherify-<id> voucherify <voucherify>/v1/oauth/token ok 15m0s api

bad-scope: token endpoint answered 400 Bad Request (invalid_scope)
→ check the scopes: ask only for those that the key has, by their exact names

bad-secret: token endpoint answered 401 Unauthorized (unauthorized)
→ check the client id and the secret, and whether the key was deleted or blocked

down: requesting a token: dial tcp down: connect: connection refused
→ check that this host reaches the token endpoint: DNS, firewall, proxy and certificates

no-secret: loading module 'voucherify': provision egress.providers.voucherify: app_token: {env.EGRESS_TEST_NOT_SET} has no value; is it set, and may this process read it?
→ correct the config or what its placeholders stand for`
		if text := c.normal(got.stdout); text != tidy(want) || got.status != 1 {
			t.Errorf("status %d, printed\n%s\nwant status 1 and\n%s\nstderr: %s", got.status, text, tidy(want), got.stderr)
		}
		if n := strings.Count(got.stderr, "at least one credential gets no token"); n != 1 || strings.Contains(got.stderr, "Usage:") {
			t.Errorf("stderr is %s", got.stderr)
		}
		// Voucherify's are revoked, Understory's cannot be
		if got := c.voucherify.Stats(); got.LiveTokens != 0 || got.TokenRequests != 4 {
			t.Errorf("Voucherify: %+v, want 4 token requests and no live token", got)
		}
		if got := c.understory.Stats(); got.LiveTokens != 1 || got.TokenRequests != 2 || got.APIRequests != 0 {
			t.Errorf("Understory: %+v, want 2 token requests", got)
		}
	})
	t.Run("JSON", func(t *testing.T) {
		got := runCaddy(t, "egress", "check", "--config", config, "--json")
		var results []struct {
			Credential, Provider, Result, Error, Advice string
			Lifetime                                    float64  `json:"lifetime_seconds"`
			Scopes                                      []string `json:"scopes_granted"`
		}
		if err := json.Unmarshal([]byte(got.stdout), &results); err != nil || got.status != 1 || len(results) != 8 {
			t.Fatalf("status %d, error %v, printed %s", got.status, err, got.stdout)
		}
		for _, r := range results {
			ok := r.Result == "ok"
			if ok != (r.Error == "") || ok != (r.Advice == "") || ok != (r.Lifetime > 0) || ok != (len(r.Scopes) > 0) {
				t.Errorf("got %+v", r)
			}
		}
	})
	for name, test := range map[string]struct {
		config string
		names  []string
		status int
		prints string
		says   string // on stderr
	}{
		"all good":             {c.good, nil, 0, "vouchers voucherify <voucherify>/v1/oauth/token ok", ""},
		"one of them":          {c.all, []string{"tours"}, 0, "tours understory", ""},
		"two of them":          {c.all, []string{"tours", "down"}, 1, "down: requesting a token", "at least one"},
		"unknown name":         {c.all, []string{"tours", "nobody"}, 1, "", `the config has no credential "nobody"`},
		"config without any":   {":8080 {\nrespond 204\n}\n", nil, 1, "", "the config has no credential"},
		"config that is wrong": {":8080 {\negress nobody\n}\n", nil, 1, "", `"nobody" is neither a provider`},
	} {
		t.Run(name, func(t *testing.T) {
			got := runCaddy(t, append([]string{"egress", "check", "--config", writeConfig(t, "Caddyfile", test.config)}, test.names...)...)
			text := c.normal(got.stdout)
			if got.status != test.status || !strings.Contains(text, test.prints) || (text == "") != (test.prints == "") || !strings.Contains(got.stderr, test.says) {
				t.Errorf("status %d, printed\n%s\nand\n%s\nwant status %d, %q and %q", got.status, text, got.stderr, test.status, test.prints, test.says)
			}
			for _, other := range []string{"tours", "vouchers", "down", "bad-"} {
				if len(test.names) > 0 && strings.Contains(got.stdout, other) && !strings.Contains(strings.Join(test.names, " "), other) {
					t.Errorf("%s was not asked for:\n%s", other, got.stdout)
				}
			}
		})
	}
	t.Run("credential without anything", func(t *testing.T) {
		file := writeConfig(t, "caddy.json", `{"apps":{"egress":{"credentials":{"null":null,"empty":{}}}}}`)
		got := runCaddy(t, "egress", "check", "--config", file)
		if got.status != 1 || strings.Count(got.stdout, "misconfigured") != 2 || !strings.Contains(got.stdout, "null: has no provider") || strings.Contains(got.stderr, "panic") {
			t.Errorf("status %d, printed\n%s\nand\n%s", got.status, got.stdout, got.stderr)
		}
	})
	t.Run("no config", func(t *testing.T) {
		t.Chdir(t.TempDir())
		if got := runCaddy(t, "egress", "check"); got.status != 1 || !strings.Contains(got.stderr, "no config file; name one with --config") {
			t.Errorf("status %d, printed\n%s", got.status, got.stderr)
		}
	})
}

func TestCheckTellsOfScopesThatAreNotGranted(t *testing.T) {
	endpoint := newTokens(t)
	endpoint.answer = say(http.StatusOK, `{"access_token":"`+testToken+`","token_type":"bearer","expires_in":60,"scope":"read"}`)
	config := writeConfig(t, "Caddyfile", ":8080 {\n"+egress("http://127.0.0.1:1", endpoint.URL, "scopes read write")+"\n}\n")
	got := runCaddy(t, "egress", "check", "--config", config)
	if got.status != 0 || !strings.Contains(got.stdout, "not granted: write\n") {
		t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
	}
}

func TestCheckSendsNoSecretWhereLoadingWouldNot(t *testing.T) {
	for name, options := range map[string]string{
		"token endpoint":      "token_url http://auth.invalid/token",
		"revocation endpoint": "token_url https://auth.invalid/token\n revocation_url http://auth.invalid/revoke",
	} {
		t.Run(name, func(t *testing.T) {
			config := writeConfig(t, "Caddyfile", ":8080 {\n egress oauth2 http://127.0.0.1:1 {\n client_id id\n client_secret {env.EGRESS_TEST_SECRET}\n"+options+"\n}\n}\n")
			got := runCaddy(t, "egress", "check", "--config", config)
			if got.status != 1 || !strings.Contains(got.stdout, "misconfigured") || !strings.Contains(got.stdout, "would send the secret unencrypted") {
				t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
			}
		})
	}
}

func TestCommandsOnARunningCaddy(t *testing.T) {
	voucherify, voucherifyServer := newSandbox(t, sandbox.Options{API: "voucherify", ClientID: "id", ClientSecret: testSecret})
	endpoint := newTokens(t)
	endpoint.answer = say(http.StatusServiceUnavailable, "")
	admin, option := newAdmin(t)
	g := startWatched(t, "handle /v1/* {\n egress vouchers\n}\nhandle {\n egress down\n}", withGlobal(option+fmt.Sprintf(`egress {
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
	eventually(t, "the first token requests", func() bool {
		return admin.status(t, "vouchers").State == "fresh" && admin.status(t, "down").LastError != nil
	})
	g.get("/v1/vouchers")
	address := []string{"--address", string(admin)}
	run := func(args ...string) caddyResult {
		t.Helper()
		return runCaddy(t, append(append([]string{"egress"}, args...), address...)...)
	}
	// what varies, in one line of the table
	normal := func(text string) string {
		for _, rule := range [][2]string{
			{`\bin (\d+h)?(\d+m)?\d+s`, "in <duration>"}, {`\d+:\d\d:\d\d \(\S+, \d+ attempts\)`, "<time> (<duration>, <n> attempts)"},
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
		var all []egressmodule.CredentialStatus
		got := run("status", "--json")
		if err := json.Unmarshal([]byte(got.stdout), &all); err != nil || len(all) != 2 || got.status != 0 {
			t.Errorf("status %d, error %v, printed\n%s", got.status, err, got.stdout)
		}
		var one egressmodule.CredentialStatus
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
		var status egressmodule.CredentialStatus
		if err := json.Unmarshal([]byte(got.stdout), &status); err != nil || got.status != 0 || status.Credential != "vouchers" {
			t.Errorf("status %d, error %v, printed\n%s\n%s", got.status, err, got.stdout, got.stderr)
		}
		eventually(t, "another token", func() bool { return admin.status(t, "vouchers").State == "fresh" })
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
		{"a name that is none", []string{"refresh", "a/../b c"}, "no such action"},
		{"name is missing", []string{"refresh"}, "accepts 1 arg"},
		{"too many names", []string{"status", "vouchers", "down"}, "accepts at most 1 arg"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := run(test.args...); got.status != 1 || !strings.Contains(got.stderr, test.says) || got.stdout != "" {
				t.Errorf("status %d, printed\n%s\n%s\nwant %q", got.status, got.stdout, got.stderr, test.says)
			}
		})
	}
	t.Run("rate limit", func(t *testing.T) {
		if err := voucherify.SetFaults(sandbox.Faults{API: sandbox.Fault{Status: 429, RetryAfter: "90"}}); err != nil {
			t.Fatal(err)
		}
		g.get("/v1/vouchers")
		if got := run("status", "vouchers"); !strings.HasSuffix(normal(got.stdout), "; rate limited by the API, over in <duration>") {
			t.Errorf("printed\n%s", got.stdout)
		}
	})
	t.Run("no credential", func(t *testing.T) {
		g.opts = option
		if err := g.load("respond 204"); err != nil {
			t.Fatal(err)
		}
		if got := run("status"); got.status != 0 || got.stdout != "no credential is in use\n" {
			t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
		}
	})
	t.Run("no Caddy", func(t *testing.T) {
		got := runCaddy(t, "egress", "status", "--address", freeAddr(t))
		if got.status != 1 || !strings.Contains(got.stderr, "connection refused") {
			t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
		}
	})
}

func TestHelpOfCommands(t *testing.T) {
	for command, says := range map[string][]string{
		"":           {"check", "status", "refresh", "revoke", "introspect", "No command shows a secret or a token"},
		"check":      {"--config", "--adapter", "--json", "Exits with status 1"},
		"status":     {"--address", "--config", "--json", "how the tokens of a running Caddy are doing"},
		"refresh":    {"--address", "Replaces the token"},
		"revoke":     {"--address", "Revokes the token"},
		"introspect": {"--address", "Asks the authorization server"},
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
