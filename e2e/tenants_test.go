package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

var tenantProviders = []string{"oauth2", "understory", "voucherify"}

// Each tenant is served with a token of its own, which is asked for at its first request.
func TestTenants(t *testing.T) {
	for _, provider := range tenantProviders {
		t.Run(provider, func(t *testing.T) {
			names := []string{"acme", "globex", "a", "0", "A.b_c-9", strings.Repeat("x", 63)}
			s := newTenantStage(t, provider, names...).start()
			if n := s.Issued(); n != 0 {
				t.Errorf("%d token requests before the first request of a tenant", n)
			}
			for range 3 {
				for _, name := range names {
					s.serves(name, 1)
				}
			}
			s.refuses("Acme", http.StatusForbidden, "tenant_unknown") // a name is as it is written
			if n := s.Issued(); n != int64(len(names)) {
				t.Errorf("%d token requests for %d tenants", n, len(names))
			}
		})
	}
}

// {tenant} may be a part of any option that says who asks for a token and for what.
func TestTenantAnywhereInACredential(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "globex")
	s.credential = fmt.Sprintf(`credential tenants oauth2 %s {
		token_url %s/{tenant}/oauth/token
		client_id id-of-{tenant}
		client_secret {env.EGRESS_TEST_SECRET}/{tenant}
		scopes read:{tenant} all
		param account {tenant}
		header X-Account of-{tenant}
	}
	`, s.URL, s.Auth.URL)
	s.start()
	for _, name := range []string{"acme", "globex"} {
		s.serves(name, 1)
		tokens := s.Tokens(name)
		if len(tokens) != 1 {
			t.Fatalf("%d token requests for %s", len(tokens), name)
		}
		token := tokens[0]
		if token.Path != "/"+name+"/oauth/token" || token.Param != name || token.Header != "of-"+name || token.Scope != "read:"+name+" all" {
			t.Errorf("the token request for %s has %q, account %q, X-Account %q, scope %q", name, token.Path, token.Param, token.Header, token.Scope)
		}
	}

	u := newTenantStage(t, "understory", "acme", "globex")
	u.credential = strings.Replace(u.credential, u.Auth.URL+"/oauth/token", u.Auth.URL+"/{tenant}/oauth/token", 1)
	if err := s.g.Load("respond 204"); err != nil { // one gateway at a time
		t.Fatal(err)
	}
	u.start()
	u.serves("acme", 1)
	u.serves("globex", 1)
	if got := u.Tokens("globex")[0].Path; got != "/globex/oauth/token" {
		t.Errorf("globex asks for a token at %s", got)
	}
}

// Who the tenant is may come from anything that Caddy knows of a request.
func TestTenantFromAnyPlaceholder(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "globex")
	s.start(
		egresstest.Site("/header/", "egress tenants {\n"+tenantByHeader+"}"),
		egresstest.Site("/query/", "egress tenants {\n"+tenantByQuery+"}"),
		egresstest.Site("/path/", "egress tenants {\n tenant {http.request.orig_uri.path.1}\n}"),
		egresstest.Site("/host/", "egress tenants {\n tenant {http.request.host.labels.2}\n}"),
		egresstest.Site("/vars/", "vars customer {http.request.header.X-Customer}\n egress tenants {\n tenant {http.vars.customer}\n}"),
		egresstest.Site("/kept/", "egress tenants {\n"+tenantByHeader+"header_up -"+egresstest.TenantHeader+"\n}"),
		egresstest.Site("/fixed/", "egress tenants {\n tenant acme\n}"))
	for _, name := range []string{"acme", "globex"} {
		for path, header := range map[string][]string{
			"/header/v1":               {egresstest.TenantHeader, name},
			"/kept/v1":                 {egresstest.TenantHeader, name},
			"/query/v1?tenant=" + name: nil,
			"/path/" + name + "/v1":    nil,
			"/host/v1":                 {"Host", name + ".egress.internal"},
			"/vars/v1":                 {"X-Customer", name},
		} {
			resp, body := ask(s.g, http.MethodGet, path, append(header, egresstest.ExpectHeader, name)...)
			if resp.StatusCode != http.StatusOK || body != name+" #1" {
				t.Errorf("%s with %q: %d %s", path, header, resp.StatusCode, body)
			}
			if saw := resp.Header.Get("X-Saw") != ""; saw != strings.HasPrefix(path, "/header/") {
				t.Errorf("%s: the API has seen the header: %v", path, saw)
			}
			// what names no tenant of its own is not somebody's by accident
			if resp, _ := ask(s.g, http.MethodGet, "/path/", egresstest.TenantHeader, name); resp.StatusCode != http.StatusBadRequest {
				t.Errorf("/path/ is answered %d", resp.StatusCode)
			}
		}
	}
	if resp, body := ask(s.g, http.MethodGet, "/fixed/v1", egresstest.TenantHeader, "globex", egresstest.ExpectHeader, "acme"); resp.StatusCode != http.StatusOK {
		t.Errorf("a route of one tenant: %d %s", resp.StatusCode, body)
	}
}

// A tenant that is added while others are served is served from its first request on.
func TestTenantAddedUnderTraffic(t *testing.T) {
	s := newTenantStage(t, "voucherify", "acme", "globex").start()
	var stop atomic.Bool
	var wg sync.WaitGroup
	for _, name := range []string{"acme", "globex"} {
		wg.Go(func() {
			for !stop.Load() {
				req := s.g.Request(http.MethodGet, "/v1/x", nil)
				req.Header.Set(egresstest.TenantHeader, name)
				req.Header.Set(egresstest.ExpectHeader, name)
				if resp, body, err := s.g.Try(req); err != nil || resp.StatusCode != http.StatusOK {
					t.Errorf("%s, which was there before: %v %s", name, err, body)
					return
				}
			}
		})
	}
	for n := range 20 {
		s.Add(tenantName(n))
		s.serves(tenantName(n), 1)
	}
	stop.Store(true)
	wg.Wait()
}

// What cannot be the name of a tenant is answered with 400, in the shape of the API.
func TestTenantInvalid(t *testing.T) {
	for _, provider := range tenantProviders {
		t.Run(provider, func(t *testing.T) {
			s := newTenantStage(t, provider, "acme").start(egresstest.Site("/q", "egress tenants {\n"+tenantByQuery+"}"), tenantRoutes())
			for _, name := range invalidTenants {
				resp, body := s.g.Get("/q?" + queryOf(name))
				checkTenantRefused(t, fmt.Sprintf("%q", name), resp, body, http.StatusBadRequest, "tenant_invalid")
				checkShape(t, provider, resp, body, http.StatusBadRequest, "tenant_invalid")
			}
			resp, body := s.g.Get("/v1/x")
			checkTenantRefused(t, "no header", resp, body, http.StatusBadRequest, "tenant_invalid")
			for what, headers := range map[string][]string{
				"an empty header":            {""},
				"two headers":                {"acme", "acme"},
				"two headers, one empty":     {"acme", ""},
				"two tenants in one":         {"acme,acme"},
				"two tenants, and a space":   {"acme, globex"},
				"what a shell would expand":  {"acm*"},
				"what Caddy would replace":   {"{env.EGRESS_TEST_SECRET}"},
				"what the gateway would":     {"{tenant}"},
				"a file":                     {"{file./etc/passwd}"},
				"a tab":                      {"ac\tme"},
				"escapes in a header":        {"acm%65"},
				"an absolute path":           {s.Folder + "/acme"},
				"a trailing slash":           {"acme/"},
				"a leading dot":              {".acme"},
				"a leading hyphen":           {"-acme"},
				"letters beyond ASCII":       {"acmé"},
				"the longest name, and more": {strings.Repeat("x", 64)},
				"many":                       {strings.Repeat("x", 10_000)},
			} {
				var pairs []string
				for _, value := range headers {
					pairs = append(pairs, egresstest.TenantHeader, value)
				}
				resp, body := ask(s.g, http.MethodGet, "/v1/x", pairs...)
				checkTenantRefused(t, what, resp, body, http.StatusBadRequest, "tenant_invalid")
			}
			if s.Issued()+s.Served()+s.Strays() != 0 {
				t.Errorf("%d token requests and %d requests for no tenant", s.Issued()+s.Strays(), s.Served())
			}
			s.serves("acme", 1)
		})
	}
}

// checkShape checks that an answer has the shape of the errors of an API.
func checkShape(t *testing.T, provider string, resp *http.Response, body string, status int, key string) {
	t.Helper()
	shape := map[string]string{
		"oauth2":     fmt.Sprintf(`"code":%q`, key),
		"understory": fmt.Sprintf(`{"code":%q,"message":`, key),
		"voucherify": fmt.Sprintf(`{"code":%d,"key":%q,"message":`, status, key),
	}[provider]
	contentType := "application/json"
	if provider == "oauth2" {
		contentType = "application/problem+json"
	}
	if !strings.Contains(body, shape) || resp.Header.Get("Content-Type") != contentType {
		t.Errorf("%s has the body %s of type %q, want %s", key, body, resp.Header.Get("Content-Type"), shape)
	}
}

// A tenant without files is unknown, and remembered as that for a while.
func TestTenantUnknown(t *testing.T) {
	for _, provider := range tenantProviders {
		t.Run(provider, func(t *testing.T) {
			s := newTenantStage(t, provider, "acme").start()
			s.Know("late")
			start := time.Now()
			resp, body := s.as("late", "/v1/x")
			checkTenantRefused(t, "a tenant without files", resp, body, http.StatusForbidden, "tenant_unknown")
			checkShape(t, provider, resp, body, http.StatusForbidden, "tenant_unknown")
			if strings.Contains(body, s.Folder) {
				t.Errorf("the answer says where files are: %s", body)
			}
			s.Add("late")
			s.serves("acme", 1)
			resp, body = s.as("late", "/v1/x")
			switch known := time.Since(start); {
			case resp.StatusCode == http.StatusForbidden:
			case known < (rememberedUnknown-1)*time.Second:
				t.Errorf("known after %s: %d %s", known, resp.StatusCode, body)
			}
			var refused, known time.Duration // when the last request was sent that was refused; when one was not
			egresstest.Eventually(t, "the tenant to be known", func() bool {
				sent := time.Since(start)
				resp, _ = s.as("late", "/v1/x")
				known = time.Since(start)
				if resp.StatusCode != http.StatusOK {
					refused = sent
				}
				return resp.StatusCode == http.StatusOK
			})
			if known < (rememberedUnknown-1)*time.Second || refused > (rememberedUnknown+5)*time.Second {
				t.Errorf("known after %s, and refused until %s, want %d s", known, refused, rememberedUnknown)
			}
			if s.Count("late") != 1 || s.Count("acme") != 1 {
				t.Errorf("%d and %d token requests", s.Count("late"), s.Count("acme"))
			}
		})
	}
}

// What is missing of a tenant's files is not looked for with each request.
func TestHalfATenantIsUnknown(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "half", "empty", "folder")
	for tenant, change := range map[string]func(string) error{
		"half":   os.Remove,
		"empty":  func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"folder": func(path string) error { _ = os.Remove(path); return os.Mkdir(path, 0o700) },
	} {
		if err := change(filepath.Join(s.Folder, tenant, "client_secret")); err != nil {
			t.Fatal(err)
		}
	}
	opens := watchOpens(t, filepath.Join(s.Folder, "half"), filepath.Join(s.Folder, "empty"), filepath.Join(s.Folder, "folder"))
	s.start()
	start := time.Now()
	const requests = 100
	for range requests {
		for _, tenant := range []string{"half", "empty", "folder"} {
			s.refuses(tenant, http.StatusForbidden, "tenant_unknown")
		}
	}
	most := 2 * (1 + int(time.Since(start).Seconds()/rememberedUnknown)) // looks, with some at load
	for file, n := range opens.all() {
		if n > 2*most {
			t.Errorf("%s was opened %d times in %s for %d requests", file, n, time.Since(start), requests)
		}
	}
	if s.Issued()+s.Strays() != 0 {
		t.Errorf("%d token requests", s.Issued()+s.Strays())
	}
}

// A route may hold the credential inline. Routes that hold the same one share its tenants.
func TestTenantsOfAnInlineCredential(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "globex")
	_, block, _ := strings.Cut(s.credential, "{\n")
	inline := func(options string) string {
		return "egress oauth2 " + s.URL + " {\n" + tenantByHeader + "max_tenants 5\n" + options + strings.TrimSpace(block)
	}
	s.credential = ""
	s.start(egresstest.Site("/v1/", inline("")), egresstest.Site("/v2/", inline("respect_rate_limit\n")))
	for _, path := range []string{"/v1/x", "/v2/x", "/v1/x"} {
		for _, name := range []string{"acme", "globex"} {
			if resp, body := s.as(name, path); resp.StatusCode != http.StatusOK || body != name+" #1" {
				t.Errorf("%s for %s: %d %s", path, name, resp.StatusCode, body)
			}
		}
	}
	list := s.list()
	for _, name := range []string{"acme", "globex"} {
		if !regexp.MustCompile(`"credential":"oauth2-[0-9a-f]{8}/` + name + `"`).MatchString(list) {
			t.Errorf("%s is not in %s", name, list)
		}
	}
}

// A tenant's value may be in a variable of the environment.
func TestTenantsInTheEnvironment(t *testing.T) {
	s := newTenantStage(t, "voucherify", "acme", "globex")
	for _, name := range []string{"acme", "globex"} {
		t.Setenv("EGRESS_TEST_ID_"+name, "id-of-"+name)
		t.Setenv("EGRESS_TEST_SECRET_"+name, egresstest.TenantSecret(name))
	}
	s.credential = "credential tenants voucherify " + s.URL + " {\n app_id {env.EGRESS_TEST_ID_{tenant}}\n app_token {env.EGRESS_TEST_SECRET_{tenant}}\n scopes api\n}\n"
	s.start()
	s.serves("acme", 1)
	s.serves("globex", 1)
	s.refuses("initech", http.StatusForbidden, "tenant_unknown")
	const want = "the gateway has no credential of tenant initech: app_id: {env.EGRESS_TEST_ID_initech} has no value; is it set, and may this process read it?"
	if lines := s.g.LogLines("refused a request"); len(lines) != 1 || lines[0]["reason"] != want {
		t.Errorf("the log says %v, want %s", lines, want)
	}
}

// The log says where to look, and not what a client has put there: it could be a key.
func TestInvalidTenantIsNotLogged(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme").start(tenantRoutes())
	ask(s.g, http.MethodGet, "/v1/x", egresstest.TenantHeader, "a key, and no name")
	lines := s.g.LogLines("refused a request")
	if len(lines) != 1 || !strings.HasSuffix(lines[0]["reason"].(string), "; the value of {http.request.header."+egresstest.TenantHeader+"} cannot be a name") {
		t.Errorf("the log says %v", lines)
	}
}
