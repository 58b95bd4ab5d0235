package e2e_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	egress "github.com/caddy-egress/caddy-egress"
	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// The admin API lists the tenants that are live, and acts on one.
func TestAdminAPIWithTenants(t *testing.T) {
	s := newTenantStage(t, "voucherify", "acme", "globex", "refresh", "idle").start()
	for _, name := range []string{"globex", "acme", "refresh"} {
		s.serves(name, 1)
	}
	var all []egress.CredentialStatus
	if err := json.Unmarshal([]byte(s.list()), &all); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range all {
		names = append(names, c.Credential)
	}
	egresstest.CheckLines(t, "the tokens that are listed", names, []string{"tenants/acme", "tenants/globex", "tenants/refresh"})

	for _, name := range []string{"acme", "refresh"} {
		status := s.admin.Status(t, "tenants/"+name)
		if status.Credential != "tenants/"+name || status.Provider != "voucherify" || status.ClientID != "id-of-"+name || status.State != "fresh" || status.TokenRequests != 1 {
			t.Errorf("the status of %s is %+v", name, status)
		}
		resp, body := s.admin.Ask(t, http.MethodPost, "/egress/tokens/tenants/"+name+"/refresh")
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"credential":"tenants/`+name+`"`) {
			t.Errorf("refreshing %s: %d %s", name, resp.StatusCode, body)
		}
		s.serves(name, 2)
		resp, body = s.admin.Ask(t, http.MethodPost, "/egress/tokens/tenants/"+name+"/revoke")
		if resp.StatusCode != http.StatusOK || s.Returned(name) != 1 {
			t.Errorf("revoking %s: %d %s, %d tokens are revoked", name, resp.StatusCode, body, s.Returned(name))
		}
		s.serves(name, 3)
	}
	s.serves("globex", 1)

	for _, test := range []struct {
		name, method, path string
		status             int
		says               string
	}{
		{"a tenant that is not live", http.MethodGet, "/egress/tokens/tenants/idle", 404, "tenant idle of credential tenants is not live"},
		{"a tenant that is not there", http.MethodGet, "/egress/tokens/tenants/nobody", 404, "tenant nobody of credential tenants is not live"},
		{"not a name", http.MethodGet, "/egress/tokens/tenants/..%2Facme", 404, ""},
		{"none", http.MethodGet, "/egress/tokens/tenants", 404, "name one, as in tenants/acme"},
		{"an action on all", http.MethodPost, "/egress/tokens/tenants/revoke", 404, ""},
		{"another action", http.MethodPost, "/egress/tokens/tenants/acme/delete", 404, "no such action"},
		{"deeper", http.MethodPost, "/egress/tokens/tenants/acme/refresh/now", 404, ""},
		{"another credential", http.MethodGet, "/egress/tokens/others/acme", 404, ""},
		{"method of one", http.MethodDelete, "/egress/tokens/tenants/acme", 405, "use GET"},
		{"method of an action", http.MethodGet, "/egress/tokens/tenants/acme/refresh", 405, "use POST"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if resp, body := s.admin.Ask(t, test.method, test.path); resp.StatusCode != test.status || !strings.Contains(body, test.says) {
				t.Errorf("answered %d %s, want %d with %q", resp.StatusCode, body, test.status, test.says)
			}
		})
	}
	for _, name := range []string{"acme", "globex", "refresh"} {
		if n, want := s.Count(name), map[string]int{"globex": 1}[name]; n != want && want > 0 || s.Strays() > 0 {
			t.Errorf("%d token requests for %s", n, name)
		}
	}
}

func TestCommandsWithTenants(t *testing.T) {
	s := newTenantStage(t, "voucherify", "acme", "globex").start()
	s.serves("acme", 1)
	s.serves("globex", 1)
	run := func(args ...string) caddyResult {
		t.Helper()
		return runCaddy(t, append(append([]string{"egress"}, args...), "--address", string(s.admin))...)
	}
	if got := run("status"); got.status != 0 || !strings.Contains(got.stdout, "\ntenants/acme ") || !strings.Contains(got.stdout, "\ntenants/globex ") {
		t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
	}
	if got := run("status", "tenants/acme"); got.status != 0 || !strings.Contains(got.stdout, "\ntenants/acme ") || strings.Contains(got.stdout, "globex") {
		t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
	}
	if got := run("refresh", "tenants/acme"); got.status != 0 || !strings.Contains(got.stdout, "\ntenants/acme ") {
		t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
	}
	s.serves("acme", 2)
	if got := run("revoke", "tenants/acme"); got.status != 0 || s.Returned("acme") != 1 {
		t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
	}
	s.serves("acme", 3)
	s.serves("globex", 1)
	for _, action := range []string{"status", "refresh", "revoke", "introspect"} {
		if got := run(action, "tenants/nobody"); got.status != 1 || !strings.Contains(got.stderr, "tenant nobody of credential tenants") {
			t.Errorf("%s: status %d, printed\n%s\n%s", action, got.status, got.stdout, got.stderr)
		}
	}
}

// `caddy egress check --tenant acme` obtains a token of that tenant.
func TestCheckCommandWithATenant(t *testing.T) {
	s := newTenantStage(t, "voucherify", "acme", "wrong")
	s.Refuse("wrong", true)
	config := writeConfig(t, "Caddyfile", "{\n admin off\n egress {\n"+s.credential+"}\n}\n:8080 {\n egress tenants {\n"+tenantByHeader+"}\n}\n")
	for name, test := range map[string]struct {
		args   []string
		status int
		prints []string
		says   string
	}{
		"one that works":        {[]string{"--tenant", "acme"}, 0, []string{"tenants/acme ", " ok "}, ""},
		"named":                 {[]string{"tenants", "--tenant", "acme"}, 0, []string{"tenants/acme ", " ok "}, ""},
		"one that is refused":   {[]string{"--tenant", "wrong"}, 1, []string{"tenants/wrong ", " refused "}, "at least one credential gets no token"},
		"one that is unknown":   {[]string{"--tenant", "nobody"}, 1, []string{"tenants/nobody ", " misconfigured "}, "at least one credential gets no token"},
		"one that cannot be":    {[]string{"--tenant", "../acme"}, 1, nil, "../acme"},
		"none":                  {nil, 1, nil, "--tenant"},
		"an unknown credential": {[]string{"others", "--tenant", "acme"}, 1, nil, "others"},
	} {
		t.Run(name, func(t *testing.T) {
			got := runCaddy(t, append([]string{"egress", "check", "--config", config}, test.args...)...)
			for _, text := range test.prints {
				if !strings.Contains(got.stdout, text) {
					t.Errorf("printed\n%s\nwant %q", got.stdout, text)
				}
			}
			if all := got.stdout + got.stderr; got.status != test.status || !strings.Contains(all, test.says) {
				t.Errorf("status %d, printed\n%s\nwant status %d and %q", got.status, all, test.status, test.says)
			}
		})
	}
	if n, returned := s.Count("acme"), s.Returned("acme"); n != 2 || returned != 2 || s.Strays() != 0 {
		t.Errorf("%d token requests for acme, of which %d tokens are revoked", n, returned)
	}
}

// A request's tenant is in the access log and in the placeholder, and in log lines.
func TestTenantsInLogsAndPlaceholders(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "globex")
	s.start("egress tenants {\n" + tenantByHeader + "header_down X-Credential {http.reverse_proxy.egress.credential}\n}")
	for _, name := range []string{"acme", "globex"} {
		if resp, _ := s.as(name, "/v1/of/"+name); resp.Header.Get("X-Credential") != "tenants/"+name {
			t.Errorf("the placeholder of %s is %q", name, resp.Header.Get("X-Credential"))
		}
	}
	start := time.Now()
	for _, name := range []string{"nobody", "../acme", ""} {
		resp, _ := s.as(name, "/v1/of/none")
		if got := resp.Header.Get("X-Credential"); got != "tenants" {
			t.Errorf("the placeholder of tenant %q is %q", name, got)
		}
	}
	invalid := 1 + int(time.Since(start).Seconds()) // log lines of two requests: one, unless a second is between them
	egresstest.Eventually(t, "the access log", func() bool { return len(accesses(s.g, "/v1/of/")) == 5 })
	counts := make(map[string]int)
	for line := range strings.Lines(s.g.Log()) {
		var entry struct {
			Credential string `json:"egress_credential"`
			Outcome    string `json:"egress_outcome"`
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Outcome != "" {
			counts[entry.Credential+" "+entry.Outcome]++
		}
	}
	want := map[string]int{"tenants/acme forwarded": 1, "tenants/globex forwarded": 1, "tenants tenant_unknown": 1, "tenants bad_request": 2}
	if fmt.Sprint(counts) != fmt.Sprint(want) {
		t.Errorf("the access log has %v, want %v", counts, want)
	}
	reasons := ""
	for _, line := range s.g.LogLines("refused a request") {
		reasons += fmt.Sprintln(line["credential"], line["outcome"], line["reason"])
	}
	for key, most := range map[string]int{"tenants tenant_unknown ": 1, "tenants tenant_invalid ": invalid} {
		if n := strings.Count(reasons, key); n < 1 || n > most {
			t.Errorf("the log says %s, want one line of %s", reasons, key)
		}
	}
}

// Metrics have the credential's name alone, however many tenants there are.
func TestMetricsOfTenants(t *testing.T) {
	suffix := fmt.Sprint(".bounded", suffixes.Add(1))
	names := tenantNames(60)
	s := newTenantStage(t, "oauth2", names...)
	s.credential = s.Credential("tenants"+suffix, "oauth2", "max_tenants 20")
	s.start("egress tenants" + suffix + " {\n" + tenantByHeader + "}")
	count := func(names ...string) egresstest.Series {
		for _, name := range names {
			s.serves(name, 1)
			s.refuses("not-"+name, http.StatusForbidden, "tenant_unknown")
			s.refuses("."+name, http.StatusBadRequest, "tenant_invalid")
		}
		return s.admin.Metrics(t, suffix)
	}
	counted := func(tenants int) func() bool { // after it has served the request
		return func() bool {
			return s.admin.Metrics(t, suffix).Sum("token_requests_total", "tenants") == float64(tenants)
		}
	}
	count(names[0])
	egresstest.Eventually(t, "the token request of the first tenant", counted(1))
	few := s.admin.Metrics(t, suffix)
	many := count(names[1:]...)
	for key := range many {
		if strings.Contains(key, "tenant-") || strings.Contains(key, "tenants/") {
			t.Errorf("a metric has a tenant: %s", key)
		}
		if strings.Contains(key, "token_expiry") || strings.Contains(key, "rate_limit_remaining") {
			t.Errorf("%s is one tenant's", key)
		}
	}
	if len(many) > len(few)+2 {
		t.Errorf("%d series with one tenant, %d with %d", len(few), len(many), len(names))
	}
	for _, want := range []struct {
		name   string
		labels []string
		count  float64
	}{
		{"requests_total", []string{egresstest.Label("outcome", "forwarded")}, 60},
		{"requests_total", []string{egresstest.Label("outcome", "tenant_unknown")}, 60},
		{"requests_total", []string{egresstest.Label("outcome", "bad_request")}, 60},
	} {
		if got, _ := many.Of(want.name, "tenants", want.labels...); got != want.count {
			t.Errorf("%s%v is %v, want %v", want.name, want.labels, got, want.count)
		}
	}
	egresstest.Eventually(t, "a token request of each tenant", counted(len(names)))
}

// A health check is for no tenant, so it carries nobody's token. The directive egress
// refuses them.
func TestHealthChecksWithTenants(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme")
	s.start("reverse_proxy " + s.URL + " {\n" + healthChecks + "transport egress {\n credential tenants\n" + tenantByHeader + "}\n}")
	egresstest.Eventually(t, "the end of a health check", func() bool {
		return strings.Contains(s.g.Log(), "health_checker.active")
	})
	if n := s.Probes(); n != 0 {
		t.Errorf("%d health checks have arrived with a token", n)
	}
	if n := s.Issued(); n != 0 {
		t.Errorf("%d token requests", n)
	}
}

// Events name the tenant.
func TestEventsOfTenants(t *testing.T) {
	suffix := fmt.Sprint(".events", suffixes.Add(1))
	s := newTenantStage(t, "oauth2", "acme", "globex")
	s.before = "events {\n on * egress_test\n}\n"
	s.credential = s.Credential("tenants"+suffix, "oauth2")
	s.start("egress tenants" + suffix + " {\n" + tenantByHeader + "}")
	for _, name := range []string{"acme", "globex"} {
		s.serves(name, 1)
		egresstest.Eventually(t, "the event of "+name, func() bool {
			return len(eventsOf("egress.token_obtained", "tenants"+suffix+"/"+name)) == 1
		})
	}
}

// Names that strangers make up are not worth a line each, in any log.
func TestUnknownTenantsDoNotFloodTheLog(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme")
	s.start("log_skip\negress tenants {\n" + tenantByHeader + "}")
	before := strings.Count(s.g.Log(), `"level":"error"`) + strings.Count(s.g.Log(), `"level":"warn"`)
	start := time.Now()
	const strangers = 200
	for n := range strangers {
		s.refuses(fmt.Sprintf("stranger-%d", n), http.StatusForbidden, "tenant_unknown")
	}
	lines := strings.Count(s.g.Log(), `"level":"error"`) + strings.Count(s.g.Log(), `"level":"warn"`) - before
	if most := 2 + int(time.Since(start).Seconds()); lines > most {
		t.Errorf("%d lines of warnings and errors about %d strangers, want at most %d", lines, strangers, most)
	}
}

// Files of tenants are secrets that are not written in the config.
func TestSecretsOfTenantsAreNotInTheConfig(t *testing.T) {
	for _, provider := range tenantProviders {
		s := newTenantStage(t, provider, "acme")
		s.start()
		s.serves("acme", 1)
		if lines := s.g.LogLines("a secret is written in the config itself; give it as {env.NAME} or {file./path}"); len(lines) > 0 {
			t.Errorf("%s: the log warns of %v", provider, lines)
		}
		if err := s.g.Load("respond 204"); err != nil { // one gateway at a time
			t.Fatal(err)
		}
	}

	// what is in it is warned about, whatever the tenant
	s := newTenantStage(t, "oauth2", "acme")
	s.credential = strings.Replace(s.credential, "{file."+s.Folder+"/{tenant}/client_secret}", "of-{tenant}", 1)
	s.start()
	if lines := s.g.LogLines("a secret is written in the config itself; give it as {env.NAME} or {file./path}"); len(lines) != 1 {
		t.Errorf("the log warns of %v", lines)
	}
}

// A file of a tenant that everyone may read is warned about when the tenant is set up.
func TestReadableFileOfATenant(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "globex")
	file := filepath.Join(s.Folder, "acme", "client_secret")
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.serves("acme", 1)
	s.serves("globex", 1)
	s.serves("acme", 1)
	lines := s.g.LogLines("everyone on this machine may read the file of a secret; chmod o-r")
	if len(lines) != 1 || lines[0]["file"] != file || lines[0]["credential"] != "tenants/acme" {
		t.Errorf("the log warns of %v, want of %s", lines, file)
	}
}

// What a provider warns of is logged once, however often tenants are set up.
func TestWarningsOfAProviderWithTenants(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/oauth/token") {
			egresstest.Issue(`,"token_type":"bearer","expires_in":3600`)(w, r)
		}
	}))
	t.Cleanup(api.Close)
	credential := func(name, id, more string) string {
		return fmt.Sprintf("credential %s voucherify %s {\napp_id %s\napp_token {env.%s}\nproject_id project\nscopes vouchers.read\noauth v2\n%s\n}\n",
			name, api.URL, id, egresstest.SecretVariable, more)
	}
	g := egresstest.StartGateway(t, "egress tenants {\ntenant {http.request.header.X-Tenant}\n}", egresstest.WithGlobal(
		"egress {\n"+credential("tenants", "id-of-{tenant}", "max_tenants 1")+credential("other", "id", "")+"}"))
	for n := range 10 { // more than may be live, by turns
		req := g.Request("GET", "/v1/x", nil)
		req.Header.Set("X-Tenant", []string{"acme", "globex"}[n%2])
		if resp, body := g.Do(req); resp.StatusCode != 200 {
			t.Fatal(resp.StatusCode, body)
		}
	}
	warned := make(map[any]int)
	for _, line := range g.LogLines("oauth v2 of voucherify is experimental") {
		warned[line["credential"]]++
	}
	if want := map[any]int{"tenants": 1, "other": 1}; !maps.Equal(warned, want) {
		t.Errorf("the log warns of %v, want %v", warned, want)
	}
}
