package e2e_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func bearer(caller string) []string {
	return []string{"Authorization", "Bearer " + egresstest.Key(caller)}
}

// newTenantCallers returns a stage with the callers shop, agent and ops.
func newTenantCallers(t *testing.T, names ...string) *tenantStage {
	t.Helper()
	s := newTenantStage(t, "oauth2", names...)
	s.watch = egresstest.StartGateway // the log has X-Tenant, and no secrets: WithCallers looks for keys
	s.global = egresstest.Caller(t, "shop") + egresstest.Caller(t, "agent") + egresstest.Caller(t, "ops")
	return s
}

// A grant with tenants lends those, and no others; one without lends all.
func TestGrantsOfTenants(t *testing.T) {
	s := newTenantCallers(t, "acme", "globex", "initech").start(
		"egress tenants {\n" + tenantByHeader + "grant shop {\n tenants acme globex\n}\n grant agent {\n tenants initech\n allow GET /v1/x\n}\n grant ops\n}")
	for caller, want := range map[string]map[string]string{
		"shop":  {"acme": "", "globex": "", "initech": "caller_not_granted", "nobody": "caller_not_granted"},
		"agent": {"acme": "caller_not_granted", "globex": "caller_not_granted", "initech": "", "nobody": "caller_not_granted"},
		"ops":   {"acme": "", "globex": "", "initech": "", "nobody": "tenant_unknown"},
		"guest": {"acme": "caller_unknown", "nobody": "caller_unknown", "../acme": "caller_unknown"},
	} {
		for tenant, key := range want {
			switch key {
			case "":
				s.serves(tenant, 1, bearer(caller)...)
			case "caller_unknown":
				s.refuses(tenant, http.StatusUnauthorized, key, bearer(caller)...)
			default:
				s.refuses(tenant, http.StatusForbidden, key, bearer(caller)...)
			}
		}
	}
	for _, caller := range []string{"shop", "agent", "ops"} {
		s.refuses("../acme", http.StatusBadRequest, "tenant_invalid", bearer(caller)...)
		s.refuses("", http.StatusBadRequest, "tenant_invalid", bearer(caller)...)
	}
	if n := s.Issued(); n != 3 {
		t.Errorf("%d token requests, want one for each tenant", n)
	}
}

// Whoever may not use a tenant does not learn whether it is there, and has no file read.
func TestGrantsOfTenantsTellNothing(t *testing.T) {
	s := newTenantCallers(t, "acme", "globex")
	opens := watchOpens(t, filepath.Join(s.Folder, "globex"))
	s.start("egress tenants {\n" + tenantByHeader + "grant shop {\n tenants acme\n}\n}")
	there, thereBody := s.as("globex", "/v1/x", bearer("shop")...)
	absent, absentBody := s.as("absent", "/v1/x", bearer("shop")...)
	if there.StatusCode != http.StatusForbidden || there.StatusCode != absent.StatusCode || strings.ReplaceAll(thereBody, "globex", "absent") != absentBody {
		t.Errorf("a tenant that is there is answered %d %s, one that is not %d %s", there.StatusCode, thereBody, absent.StatusCode, absentBody)
	}
	for _, caller := range []string{"guest", "agent"} { // unknown, and without a grant
		there, thereBody = s.as("globex", "/v1/x", bearer(caller)...)
		absent, absentBody = s.as("absent", "/v1/x", bearer(caller)...)
		if there.StatusCode != absent.StatusCode || strings.ReplaceAll(thereBody, "globex", "absent") != absentBody || there.StatusCode < 401 {
			t.Errorf("%s: a tenant that is there is answered %d %s, one that is not %d %s", caller, there.StatusCode, thereBody, absent.StatusCode, absentBody)
		}
	}
	if all := opens.all(); len(all) > 0 {
		t.Errorf("opened %v", all)
	}
}

// The first grant that names the caller counts, also where a later one has the tenant.
func TestFirstGrantCountsWithTenants(t *testing.T) {
	s := newTenantCallers(t, "acme", "globex").start(
		"egress tenants {\n" + tenantByHeader + "grant shop {\n tenants acme\n}\n grant * {\n tenants globex\n}\n}")
	s.serves("acme", 1, bearer("shop")...)
	s.refuses("globex", http.StatusForbidden, "caller_not_granted", bearer("shop")...)
	s.serves("globex", 1, bearer("agent")...)
	s.refuses("acme", http.StatusForbidden, "caller_not_granted", bearer("agent")...)
}

// A tenant has a token for each set of scopes, which all grants with the same share.
func TestScopesOfTenants(t *testing.T) {
	s := newTenantCallers(t, "acme", "globex").start(
		egresstest.Site("/v1/", "egress tenants {\n"+tenantByHeader+"grant shop {\n scopes vouchers\n}\n grant agent {\n scopes vouchers campaigns\n}\n grant ops {\n scopes campaigns vouchers\n}\n}"),
		egresstest.Site("/v2/", "egress tenants {\n"+tenantByHeader+"scopes reports\n}"))
	for range 2 {
		for _, tenant := range []string{"acme", "globex"} {
			for caller, scopes := range map[string][]string{"shop": {"vouchers"}, "agent": {"vouchers", "campaigns"}, "ops": {"vouchers", "campaigns"}} {
				resp, body := s.as(tenant, "/v1/x", bearer(caller)...)
				if resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, tenant+" #") || len(strings.Fields(body)) != 2+len(scopes) {
					t.Errorf("%s for %s: %d %s", caller, tenant, resp.StatusCode, body)
				}
				for _, scope := range scopes {
					if !strings.Contains(body, scope) {
						t.Errorf("%s for %s has the token %s, want scope %s", caller, tenant, body, scope)
					}
				}
			}
			if resp, body := s.as(tenant, "/v2/x"); resp.StatusCode != http.StatusOK || !strings.HasSuffix(body, " reports") {
				t.Errorf("%s: %d %s", tenant, resp.StatusCode, body)
			}
		}
	}
	for _, tenant := range []string{"acme", "globex"} {
		if n := s.Count(tenant); n != 3 {
			t.Errorf("%d token requests for %s, want one for each set of scopes", n, tenant)
		}
	}
	_, all := s.admin.Ask(t, http.MethodGet, "/egress/tokens")
	for _, name := range []string{"acme", "globex"} {
		if n := strings.Count(all, "/"+name); n < 3 {
			t.Errorf("%d tokens of %s are listed: %s", n, name, all)
		}
	}
}

// A limit of a grant is the caller's, whichever tenants it calls for.
func TestLimitsWithTenants(t *testing.T) {
	s := newTenantCallers(t, "acme", "globex").start("egress tenants {\n" + tenantByHeader + "grant shop {\n limit 4/h\n}\n grant agent\n}")
	for _, tenant := range []string{"acme", "globex", "acme", "globex"} {
		s.serves(tenant, 1, bearer("shop")...)
	}
	for _, tenant := range []string{"acme", "globex"} {
		resp, body := s.as(tenant, "/v1/x", bearer("shop")...)
		checkWait(t, resp, body, "caller_limited", 3600)
		s.serves(tenant, 1, bearer("agent")...)
	}
}

// What a tenant has left of its quota says nothing of another's.
func TestReserveWithTenants(t *testing.T) {
	s := newTenantCallers(t, "acme", "globex")
	s.Answer = func(tenant string, w http.ResponseWriter) {
		left := map[string]int{"acme": 10, "globex": 900}[tenant]
		w.Header().Set("X-RateLimit-Limit", "1000")
		w.Header().Set("X-RateLimit-Remaining", fmt.Sprint(left))
	}
	s.start("egress tenants {\n" + tenantByHeader + "grant shop {\n reserve 20%\n}\n grant ops\n}")
	s.serves("acme", 1, bearer("ops")...)
	s.serves("globex", 1, bearer("ops")...)
	resp, body := s.as("acme", "/v1/x", bearer("shop")...)
	checkWait(t, resp, body, "quota_reserved", 3600)
	s.serves("globex", 1, bearer("shop")...)
	s.serves("acme", 1, bearer("ops")...)
}

// A 429 of the API to one tenant holds nobody else back.
func TestRateLimitsOfTenants(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "globex")
	s.Answer = func(tenant string, w http.ResponseWriter) {
		if tenant == "acme" {
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}
	s.start("egress tenants {\n" + tenantByHeader + "respect_rate_limit 5m\n}")
	if resp, _ := s.as("acme", "/v1/x"); resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Proxy-Status") != "" {
		t.Errorf("the API's 429 is answered %d %v", resp.StatusCode, resp.Header)
	}
	s.refuses("acme", http.StatusTooManyRequests, "rate_limited")
	s.serves("globex", 1)
	s.serves("globex", 1)
}
