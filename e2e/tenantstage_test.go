package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

const (
	tenantByHeader = "tenant {http.request.header." + egresstest.TenantHeader + "}\n"
	tenantByQuery  = "tenant {http.request.uri.query.tenant}\n"

	// rememberedUnknown is how long a tenant without files is remembered as unknown, in seconds.
	rememberedUnknown = 5
)

// tenantStage is a gateway with the credential "tenants", which has a value for each.
type tenantStage struct {
	t *testing.T
	*egresstest.Tenants
	g     *egresstest.Gateway
	admin egresstest.Admin
	watch func(t testing.TB, routes string, options ...egresstest.GatewayOption) *egresstest.Gateway

	credential string
	global     string // other options in the global option egress
	before     string // other global options
}

// newTenantStage returns a stage of a provider that has not started, for tenants with
// those names.
func newTenantStage(t *testing.T, provider string, names ...string) *tenantStage {
	t.Helper()
	s := &tenantStage{t: t, Tenants: egresstest.NewTenants(t, names...), watch: egresstest.StartWatched}
	s.credential = s.Credential("tenants", provider)
	return s
}

// options are the global options.
func (s *tenantStage) options() string {
	return s.before + "egress {\n" + s.credential + s.global + "}\n"
}

// start starts the gateway with routes; without any, with one that serves the tenant
// in a header.
func (s *tenantStage) start(routes ...string) *tenantStage {
	s.t.Helper()
	var admin string
	s.admin, admin = egresstest.NewAdmin(s.t)
	s.before += admin
	with := egresstest.WithGlobal
	if strings.Contains(s.global, "caller ") {
		with = egresstest.WithCallers
	}
	s.g = s.watch(s.t, tenantRoutes(routes...), with(s.options()))
	return s
}

func tenantRoutes(routes ...string) string {
	if len(routes) == 0 {
		return "egress tenants {\n" + tenantByHeader + "}"
	}
	return strings.Join(routes, "\n")
}

// reload loads the config anew, with the options as they are now.
func (s *tenantStage) reload(routes ...string) {
	s.t.Helper()
	s.g.Global = s.options()
	if err := s.g.Load("log\n" + tenantRoutes(routes...)); err != nil {
		s.t.Fatal(err)
	}
	s.g.GetAfterReload("/v1/after-reload") // no tenant is named
}

// as sends a GET for a tenant, with pairs of further headers.
func (s *tenantStage) as(tenant, path string, header ...string) (*http.Response, string) {
	s.t.Helper()
	return ask(s.g, http.MethodGet, path, append([]string{egresstest.TenantHeader, tenant, egresstest.ExpectHeader, tenant}, header...)...)
}

// serves checks that a request for a tenant is answered by the API, and with which of
// the tenant's tokens.
func (s *tenantStage) serves(tenant string, number int, header ...string) {
	s.t.Helper()
	resp, body := s.as(tenant, "/v1/x", header...)
	whose, which, _ := cutTenant(body)
	if resp.StatusCode != http.StatusOK || whose != tenant || which != fmt.Sprint(number) {
		s.t.Errorf("a request for %s is answered %d %s, want by its token %d", tenant, resp.StatusCode, body, number)
	}
}

// refuses checks that a request for a tenant is answered by the gateway itself.
func (s *tenantStage) refuses(tenant string, status int, key string, header ...string) {
	s.t.Helper()
	resp, body := s.as(tenant, "/v1/x", header...)
	checkTenantRefused(s.t, fmt.Sprintf("tenant %q", tenant), resp, body, status, key)
}

// checkTenantRefused checks an answer of the gateway's own, of any API's shape.
func checkTenantRefused(t *testing.T, what string, resp *http.Response, body string, status int, key string) {
	t.Helper()
	details := fmt.Sprintf("; details=%q", key)
	if resp.StatusCode != status || !strings.Contains(body, `"`+key+`"`) || !json.Valid([]byte(body)) ||
		!strings.HasPrefix(resp.Header.Get("Proxy-Status"), "caddy-egress; error=") || !strings.HasSuffix(resp.Header.Get("Proxy-Status"), details) {
		t.Errorf("%s: answered %d %s %q, want %d %s", what, resp.StatusCode, body, resp.Header.Get("Proxy-Status"), status, key)
	}
	if resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s: Cache-Control is %q", what, resp.Header.Get("Cache-Control"))
	}
}

// tenantName returns the n-th of many names.
func tenantName(n int) string { return fmt.Sprintf("tenant-%05d", n) }

// tenantNames returns many names.
func tenantNames(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = tenantName(i)
	}
	return names
}

// cutTenant returns what an answer of the API says: whose token it was, which of that
// tenant's, and its scopes.
func cutTenant(body string) (whose, number, scopes string) {
	whose, rest, _ := strings.Cut(body, " #")
	number, scopes, _ = strings.Cut(rest, " ")
	return whose, number, scopes
}
