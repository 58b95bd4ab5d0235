package e2e_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// A failed refresh says what becomes of the token in use, and a failed revocation or
// introspection what was asked.
func TestCommandsSayWhatHasFailed(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }))
	t.Cleanup(api.Close)
	endpoint := egresstest.NewTokens(t)
	down := "http://" + egresstest.FreeAddr(t)
	admin, option := egresstest.NewAdmin(t)
	g := egresstest.StartWatched(t, "egress some", egresstest.WithGlobal(option+fmt.Sprintf(`egress {
		credential some oauth2 %s {
			token_url %s
			client_id id
			client_secret {env.EGRESS_TEST_SECRET}
			revocation_url %[3]s/revoke
			introspection_url %[3]s/introspect
		}
	}`, api.URL, endpoint.URL, down)))
	egresstest.Eventually(t, "the first token", func() bool { return admin.Status(t, "some").State == "fresh" })
	endpoint.SetAnswer(egresstest.Say(http.StatusServiceUnavailable, ""))
	checkSays := func(command, want string) {
		t.Helper()
		got := runCaddy(t, "egress", command, "some", "--address", string(admin))
		if said := regexp.MustCompile(`in \S+s\b`).ReplaceAllString(got.stderr, "in <duration>"); got.status != 1 || got.stdout != "" || said != "Error: "+want+"\n" {
			t.Errorf("%s: status %d, printed\n%s\n%s\nwant\n%s", command, got.status, got.stdout, got.stderr, want)
		}
	}

	const failed = "refresh: no new token for credential some: token endpoint answered 503 Service Unavailable; "
	refused := strings.TrimPrefix(down, "http://") + ": connect: connection refused"
	checkSays("refresh", failed+"the token in use stays until it expires in <duration>")
	checkSays("revoke", "revoke: asking the revocation endpoint: dial tcp "+refused)
	checkSays("introspect", "introspect: asking the introspection endpoint: dial tcp "+refused)

	g.Get("/")
	checkSays("refresh", failed+"the API has answered 401 to the token in use")
}

func TestRevokeSaysThatItSucceeded(t *testing.T) {
	_, server := egresstest.NewSandbox(t, "voucherify")
	admin, option := egresstest.NewAdmin(t)
	egresstest.StartWatched(t, "egress vouchers", egresstest.WithGlobal(option+fmt.Sprintf(`egress {
		credential vouchers voucherify %s {
			app_id id
			app_token {env.EGRESS_TEST_SECRET}
			scopes api
		}
	}`, server.URL)))
	egresstest.Eventually(t, "the first token", func() bool { return admin.Status(t, "vouchers").State == "fresh" })
	got := runCaddy(t, "egress", "revoke", "vouchers", "--address", string(admin))
	const want = "The token of vouchers is revoked. The status of the next one:\n\nCREDENTIAL "
	if got.status != 0 || !strings.HasPrefix(got.stdout, want) {
		t.Errorf("status %d, printed\n%s\n%s\nwant first\n%s", got.status, got.stdout, got.stderr, want)
	}
}

func TestCommandsWithoutALiveTenant(t *testing.T) {
	s := newTenantStage(t, "voucherify", "acme").start()
	if got := runCaddy(t, "egress", "status", "--address", string(s.admin)); got.status != 0 || got.stdout != noneInUse+"\n" {
		t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
	}
	if got := runCaddy(t, "egress", "refresh", "--address", string(s.admin)); got.status != 1 || !strings.HasSuffix(got.stderr, "refresh: name a credential; "+noneInUse+"\n") {
		t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
	}
}

// A command that cannot ask the Caddy that is meant says so, and asks no other.
func TestCommandsThatReachNoCaddy(t *testing.T) {
	admin, option := egresstest.NewAdmin(t)
	egresstest.StartGateway(t, "respond 204", egresstest.WithGlobal(option))
	t.Setenv("CADDY_ADMIN", string(admin)) // the default
	const (
		notThere = "; is Caddy running there? give its admin address by --address, or its config by --config\n"
		forms    = "is not the address of an admin API; give host:port, or unix//path for a unix socket, as in unix//run/caddy/admin.sock\n"
	)
	off := writeConfig(t, "Caddyfile", "{\n\tadmin off\n}\n")
	for _, test := range []struct {
		name, flag, value, says string
	}{
		{"nobody listens", "--address", egresstest.FreeAddr(t), "connection refused" + notThere},
		{"no such socket", "--address", "unix//nonexistent/admin.sock", "no such file or directory" + notThere},
		{"a URL", "--address", "http://" + string(admin), `--address: "http://` + string(admin) + `" ` + forms},
		{"a URL without a port", "--address", "http://localhost", forms},
		{"a socket without unix/", "--address", "/run/admin.sock", forms},
		{"a relative path", "--address", "run/admin.sock", forms},
		{"a host without a port", "--address", "localhost", forms},
		{"several ports", "--address", "localhost:2019-2020", forms},
		{"not a port", "--address", "localhost:admin", forms},
		{"a path behind the port", "--address", string(admin) + "/egress", forms},
		{"the admin API is off", "--config", off, off + " turns the admin API off, so a Caddy that runs it cannot be asked; give its global option admin an address\n"},
		{"a config that is not there", "--config", off + "x", "no such file or directory\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := runCaddy(t, "egress", "status", test.flag, test.value); got.status != 1 || got.stdout != "" || !strings.HasSuffix(got.stderr, test.says) {
				t.Errorf("status %d, printed\n%s\n%s\nwant %s", got.status, got.stdout, got.stderr, test.says)
			}
		})
	}
	for _, address := range []string{string(admin), "tcp/" + string(admin), "localhost:" + egresstest.Port(string(admin))} {
		if got := runCaddy(t, "egress", "status", "--address", address); got.status != 0 || got.stdout != noneInUse+"\n" {
			t.Errorf("%s: status %d, printed\n%s\n%s", address, got.status, got.stdout, got.stderr)
		}
	}
	if got := runCaddy(t, "egress", "status"); got.status != 0 {
		t.Errorf("the default: status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
	}
}

// What Caddy logs while it reads a config is not shown, unless it is a warning.
func TestCommandsShowWarningsOnly(t *testing.T) {
	admin, option := egresstest.NewAdmin(t)
	egresstest.StartGateway(t, "respond 204", egresstest.WithGlobal(option))
	_, server := egresstest.NewSandbox(t, "voucherify")
	config := fmt.Sprintf("{\n\tadmin %s\n}\n:8080 {\n\tegress voucherify %s {\n\t\tapp_id id\n\t\tapp_token {env.EGRESS_TEST_SECRET}\n\t\tscopes api\n\t}\n}\n", admin, server.URL)
	formatted := writeConfig(t, "Caddyfile", config)
	unformatted := writeConfig(t, "Caddyfile", strings.ReplaceAll(config, "\t", ""))
	for _, command := range []string{"access", "check", "status"} {
		if got := runCaddy(t, "egress", command, "--config", formatted); got.status != 0 || got.stderr != "" {
			t.Errorf("%s: status %d, printed on stderr\n%s", command, got.status, got.stderr)
		}
		got := runCaddy(t, "egress", command, "--config", unformatted)
		if got.status != 0 || !strings.Contains(got.stderr, "not formatted") || strings.Count(got.stderr, "\n") != 1 {
			t.Errorf("%s: status %d, printed on stderr\n%s\nwant the warning", command, got.status, got.stderr)
		}
	}
}
