package e2e_test

import (
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"unicode/utf8"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// invalidTenants are what a stranger may try that is not the name of a tenant.
var invalidTenants = []string{
	"", ".", "..", "...", "../acme", "../../canary", "../canary", "..\\canary", "acme/../../canary", "acme/..", "/canary", "//canary", "./acme", "acme/", "acme/client_id",
	"acme/../globex", "acme/.", "acme//", "globex/../acme", "..;/canary", "..\u0000/canary",
	"acme\x00", "\x00", "acme\x00/../canary", "acme\n", "\nacme", "acme\r\nX: y", "acme\n/../../canary", " acme", "acme ", "ac me", "acme\u00a0", "acme\t",
	"..%2fcanary", "%2e%2e%2fcanary", "%2e%2e/canary", "..%c0%afcanary", "..%252fcanary", "acme%00", "%61cme",
	"‥/canary", "．．／canary", "..／canary", "..∕canary", "..⁄canary", "․․/canary", "acme\u200b", "acme\u202e", "\ufeffacme", "ácme", "аcme", "ａｃｍｅ", "acme\xff", "\xc0\xae\xc0\xae/canary",
	"~", "~root", "$HOME", "${HOME}", "`id`", "acme;id", "acme|id", "acme&x", "acme?", "acme#", "acme*", "*", "[a-z]cme", "{a,b}", "{", "}", "}/../../canary/{",
	"{tenant}", "{env.HOME}", "{file./etc/passwd}", "{http.request.header.X-Tenant}", "C:\\canary", "\\\\host\\share", "acme:stream", "con/..",
	"-rf", "_acme", ".acme", "+acme", "acme+globex", "acme@globex", "acme=1", "acme,globex", "'acme'", `"acme"`, "acme\\", `\acme`,
	strings.Repeat("x", 64), strings.Repeat("x", 255), strings.Repeat("x", 4096), strings.Repeat("../", 100) + "canary",
}

// queryOf returns the query that names a tenant, whatever it consists of.
func queryOf(tenant string) string { return url.Values{"tenant": {tenant}}.Encode() }

// newCanaries puts credentials wherever a name that is not one could lead to, and returns
// the folders that they are in.
func newCanaries(t *testing.T, s *tenantStage) (folders []string) {
	t.Helper()
	base := filepath.Dir(s.Folder)
	plant := func(folder string) {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{"client_id", "client_secret"} {
			if err := os.WriteFile(filepath.Join(folder, file), []byte("canary"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		folders = append(folders, folder)
	}
	plant(base)
	plant(s.Folder)
	plant(filepath.Join(base, "canary"))
	plant(filepath.Join(s.Folder, "acme", "sub"))
	for _, name := range invalidTenants {
		if name == "" || len(name) > 255 || strings.ContainsAny(name, "/\x00") || strings.Trim(name, ".") == "" {
			continue // it cannot be that of a folder
		}
		plant(filepath.Join(s.Folder, name))
	}
	for _, folder := range folders {
		for _, file := range []string{".id", ".secret"} { // of the layout with a file for each tenant
			if err := os.WriteFile(folder+file, []byte("canary"), 0o600); err != nil && len(filepath.Base(folder)) < 240 {
				t.Fatal(err)
			}
		}
	}
	return folders
}

// Whatever a request says for its tenant, no file is opened but those of tenants.
func TestTenantNamesReachNoOtherFile(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme")
	flat := strings.NewReplacer("credential tenants", "credential flat", "/{tenant}/client_id", "/{tenant}.id", "/{tenant}/client_secret", "/{tenant}.secret")
	s.credential += flat.Replace(s.credential)
	canaries := newCanaries(t, s)
	opens := watchOpens(t, canaries...)
	route := func(prefix, credential, tenant string) string {
		return egresstest.Site(prefix, "egress "+credential+" {\n clients any\n hosts any\n tenant "+tenant+"\n}")
	}
	const byPath = "{http.request.orig_uri.path.1}{http.request.orig_uri.path.2}" // what is decoded, put together again
	var routes string
	for _, credential := range []string{"tenants", "flat"} {
		routes += route("/"+credential+"-query", credential, "{http.request.uri.query.tenant}") +
			route("/"+credential+"-header", credential, "{http.request.header."+egresstest.TenantHeader+"}") +
			route("/"+credential+"-path", credential, byPath)
	}
	s.watch = egresstest.StartGateway // names are logged as they are, and those of placeholders look like leaks
	s.start(routes)

	check := func(what string, resp *http.Response, body string) {
		t.Helper()
		if (resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusForbidden) || strings.Contains(body, "canary") && !strings.Contains(what, "canary") {
			t.Errorf("%s is answered %d %s", what, resp.StatusCode, body)
		}
		if !utf8.ValidString(body) || strings.ContainsAny(body, "\x00\r\n") {
			t.Errorf("%s is answered with characters of its own: %q", what, body)
		}
	}
	for _, name := range invalidTenants {
		for _, credential := range []string{"tenants", "flat"} {
			what := fmt.Sprintf("%s: %q ", credential, name)
			resp, body := s.g.Get("/" + credential + "-query?" + queryOf(name))
			check(what+"in the query", resp, body)
			resp, body = s.g.Get("/" + credential + "-path/" + url.PathEscape(name) + "/")
			if !strings.Contains(name, "/") && name != "" && name != ".." && name != "." { // else another segment is taken, or another route
				check(what+"in the path", resp, body)
			}
			if !strings.ContainsAny(name, "\x00\r\n") {
				resp, body = ask(s.g, http.MethodGet, "/"+credential+"-header", egresstest.TenantHeader, name)
				if strings.TrimSpace(name) == "acme" && credential == "tenants" { // blanks around it are not part of a header
					continue
				}
				check(what+"in a header", resp, body)
			}
		}
	}
	wire := s.g.Wire()
	for _, value := range []string{"acme\x00", "\x00", "..\x00", "acme\x01", "acme\x7f", "acme\r", "acme\r\n ../canary", "a\r\n\tb"} {
		resp, body := wire.Send("GET /tenants-header HTTP/1.1\r\nHost: " + s.g.Addr + "\r\n" + egresstest.TenantHeader + ": " + value + "\r\n\r\n")
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q in a header, as it is, is answered %d %s", value, resp.StatusCode, body)
		}
	}
	if all := opens.all(); len(all) > 0 {
		t.Errorf("opened %v", all)
	}
	if s.Issued() > 1 || s.Strays() != 0 { // acme, with blanks around it
		t.Errorf("%d tokens, and %d token requests of others", s.Issued(), s.Strays())
	}
	s.serveVia("/tenants-query?tenant=acme")
	if all := opens.all(); len(all) > 0 {
		t.Errorf("opened %v", all)
	}
}

// serveVia checks that a route serves acme.
func (s *tenantStage) serveVia(path string) {
	s.t.Helper()
	if resp, body := ask(s.g, http.MethodGet, path, egresstest.ExpectHeader, "acme"); resp.StatusCode != http.StatusOK || !strings.HasPrefix(body, "acme #1") {
		s.t.Errorf("%s is answered %d %s", path, resp.StatusCode, body)
	}
}

// So many names that no tenant has cost no token request and little memory, and those
// that are there are served meanwhile.
func TestManyUnknownTenants(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "globex")
	opens := watchOpens(t, s.Folder, filepath.Dir(s.Folder))
	s.watch = func(t testing.TB, routes string, options ...egresstest.GatewayOption) *egresstest.Gateway {
		return egresstest.StartGateway(t, routes, append(options, egresstest.WithoutLog())...)
	}
	s.start()
	s.serves("acme", 1)
	s.serves("globex", 1)

	const workers = 8
	names := inTenantForm(10_000, 100_000)
	send := func(tenant, expect string) (int, string) {
		req := s.g.Request(http.MethodGet, "/v1/x", nil)
		req.Header.Set(egresstest.TenantHeader, tenant)
		req.Header.Set(egresstest.ExpectHeader, expect)
		resp, body, err := s.g.Try(req)
		if err != nil {
			return 0, err.Error()
		}
		return resp.StatusCode, body
	}
	run := func(first, last int) {
		var wg sync.WaitGroup
		var next atomic.Int64
		next.Store(int64(first))
		for range workers {
			wg.Go(func() {
				for n := next.Add(1) - 1; n < int64(last); n = next.Add(1) - 1 {
					tenant, want := fmt.Sprintf("stranger-%d", n), http.StatusForbidden
					switch n % 10 {
					case 1:
						tenant, want = "../"+tenant, http.StatusBadRequest
					case 2:
						tenant, want = tenant+"é", http.StatusBadRequest
					}
					if status, body := send(tenant, ""); status != want {
						t.Errorf("%s: %d %s", tenant, status, body)
						return
					}
					if n%50 == 0 {
						if status, body := send("acme", "acme"); status != http.StatusOK {
							t.Errorf("acme, meanwhile: %d %s", status, body)
							return
						}
					}
				}
			})
		}
		wg.Wait()
	}
	warmUp := names / 10
	run(0, warmUp)
	usage := func() egresstest.Usage { // without connections that happen to be kept still
		s.g.Client.CloseIdleConnections()
		egresstest.SettledGoroutines(t, 0)
		return egresstest.OwnUsage()
	}
	before := usage()
	run(warmUp, names)
	after := usage()
	t.Logf("%d names: heap %d KiB more, %d goroutines, %d before", names-warmUp, (after.Heap-before.Heap)>>10, after.Goroutines, before.Goroutines)
	if grown := after.Heap - before.Heap; grown > 4<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	if after.Goroutines > before.Goroutines+2*workers {
		t.Errorf("%d goroutines, %d before", after.Goroutines, before.Goroutines)
	}
	if s.Issued() != 2 || s.Strays() != 0 {
		t.Errorf("%d token requests, want those of acme and globex", s.Issued()+s.Strays())
	}
	if all := opens.all(); len(all) > 0 {
		t.Errorf("opened %v", all)
	}
	s.serves("globex", 1)
	s.refuses("stranger-0", http.StatusForbidden, "tenant_unknown")
}
