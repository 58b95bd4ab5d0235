package e2e_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestTenantsExample(t *testing.T) {
	e := startCallersExample(t, "tenants", "desk", "8080", "9002")
	e.checkCommands()
	var credentials []string
	for _, line := range e.accessLog() {
		credential, _ := line["egress_credential"].(string)
		credentials = append(credentials, credential)
	}
	slices.Sort(credentials)
	egresstest.CheckLines(t, "the credentials in the access log", slices.Compact(credentials),
		[]string{"tenants", "tenants+vouchers", "tenants+vouchers/globex", "tenants/acme", "tenants/globex"})

	// the guide shows what is answered
	guide := egresstest.ReadText(t, "../docs/guides/tenants.md")
	for _, key := range []string{"tenant_invalid", "tenant_unknown"} {
		if body := e.bodies[key]; body == "" || !strings.Contains(guide, "\n"+body+"\n") {
			t.Errorf("docs/guides/tenants.md does not show the answer %s: %s", key, body)
		}
	}
}

// A tenant is added and removed by the commands of the example, without a reload.
func TestTenantsExampleAddsATenant(t *testing.T) {
	e := startCallersExample(t, "tenants", "desk", "8080", "9002")
	_, section, found := strings.Cut(e.text, "# Add:")
	if !found {
		t.Fatal("the example does not say how to add a tenant")
	}
	section, _, _ = strings.Cut(section, "# You see:")
	commands := regexp.MustCompile(`(?m)^# +((?:\(umask|mv|rm) .*)$`).FindAllStringSubmatch(section, -1)
	if len(commands) != 3 {
		t.Fatalf("%d commands add and remove a tenant, want three: %q", len(commands), commands)
	}
	status := func(tenant string) string {
		return strings.TrimSpace(e.bash(e.curl("-u reports:$(cat $CALLERS/reports) -H 'X-Tenant: " + tenant + "' http://127.0.0.1:8080/v1/vouchers")))
	}
	if got := status("initech"); got != "403" {
		t.Errorf("before it is there: %s", got)
	}
	e.bash(commands[0][1])
	e.bash(commands[1][1])
	egresstest.Eventually(t, "the tenant to be known", func() bool { return status("initech") == "200" })
	e.bash(commands[2][1])
	if got := status("initech"); got != "200" { // by its token
		t.Errorf("after its files are gone: %s", got)
	}
	if got := status("globex"); got != "200" {
		t.Errorf("another tenant: %s", got)
	}
}
