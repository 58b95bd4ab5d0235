package e2e_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// Of more tenants than max_tenants the least recently used lapses. One that returns
// while its token lives has that one.
func TestTenantsLapseAndReturn(t *testing.T) {
	names := tenantNames(12)
	s := newTenantStage(t, "oauth2", names...)
	s.credential = s.Credential("tenants", "oauth2", "max_tenants 3")
	s.start()
	for range 3 {
		for _, name := range names {
			s.serves(name, 1)
			if n := s.listed(); n > 3 {
				t.Fatalf("%d tenants are live, want 3 at most", n)
			}
		}
	}
	if n := s.Issued(); n != int64(len(names)) {
		t.Errorf("%d token requests for %d tenants that return", n, len(names))
	}
	// the one that is used lapses last
	s.serves(names[0], 1)
	for _, name := range names[1:] {
		s.serves(name, 1)
		s.serves(names[0], 1)
		if !strings.Contains(s.list(), "/"+names[0]+`"`) {
			t.Fatalf("%s has lapsed, though it was used last", names[0])
		}
	}
}

// list returns what the admin API says of all tokens.
func (s *tenantStage) list() string {
	s.t.Helper()
	_, body := s.admin.Ask(s.t, http.MethodGet, "/egress/tokens")
	return body
}

// listed returns how many tenants the admin API lists.
func (s *tenantStage) listed() int {
	s.t.Helper()
	return strings.Count(s.list(), `"credential":"tenants/`)
}

// A token of a tenant that has lapsed and expired is asked for anew, once.
func TestTenantReturnsAfterItsToken(t *testing.T) {
	names := tenantNames(4)
	s := newTenantStage(t, "oauth2", names...)
	s.Lifetime = 3 // a token of one second may have expired when it arrives
	s.credential = s.Credential("tenants", "oauth2", "max_tenants 1")
	s.start()
	for _, name := range names {
		s.serves(name, 1)
	}
	egresstest.Eventually(t, "the first token to expire", func() bool {
		resp, body := s.as(names[0], "/v1/x")
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("answered %d %s", resp.StatusCode, body)
		}
		return strings.HasSuffix(body, " #2")
	})
}

// More tenants at the same time than may be live are served all the same.
func TestMoreTenantsAtOnceThanMayBeLive(t *testing.T) {
	names := tenantNames(40)
	s := newTenantStage(t, "oauth2", names...)
	s.credential = s.Credential("tenants", "oauth2", "max_tenants 2")
	s.start()
	const requests = 3 // for each
	var wg sync.WaitGroup
	for range requests {
		for _, name := range names {
			wg.Go(func() {
				req := s.g.Request(http.MethodGet, "/v1/x", nil)
				req.Header.Set(egresstest.TenantHeader, name)
				req.Header.Set(egresstest.ExpectHeader, name)
				if resp, body, err := s.g.Try(req); err != nil || resp.StatusCode != http.StatusOK {
					t.Errorf("%s: %v %v %s", name, err, resp, body)
				}
			})
		}
	}
	wg.Wait()
	for _, name := range names { // one that lapses while its token is asked for may ask again
		if n := s.Count(name); n > requests {
			t.Errorf("%d token requests for %s", n, name)
		}
	}
	if n := s.listed(); n > 2 {
		t.Errorf("%d tenants are live, want 2 at most", n)
	}
}

// A reload costs no token request, also for tenants that have lapsed before it.
func TestReloadKeepsTenantsTokens(t *testing.T) {
	names := tenantNames(6)
	s := newTenantStage(t, "oauth2", names...)
	s.credential = s.Credential("tenants", "oauth2", "max_tenants 4")
	s.start()
	for _, name := range names {
		s.serves(name, 1)
	}
	s.reload()
	for _, name := range names {
		s.serves(name, 1)
	}
	s.reload()
	s.reload() // without a request in between
	for _, name := range names {
		s.serves(name, 1)
	}
	if n := s.Issued(); n != int64(len(names)) {
		t.Errorf("%d token requests for %d tenants over three reloads", n, len(names))
	}

	// without the credential their tokens are gone, as those of all others are
	if err := s.g.Load("respond 204"); err != nil {
		t.Fatal(err)
	}
	s.reload()
	s.serves(names[0], 2)
}

// With share_tokens a restart costs no token request.
func TestTenantsShareTokensWithTheNextRun(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "globex")
	dir := egresstest.StorageDir(t)
	s.global = "share_tokens {\n storage file_system " + dir + "\n}\n"
	s.start()
	s.serves("acme", 1)
	s.serves("globex", 1)
	egresstest.Eventually(t, "both tokens in the storage", func() bool { // they are stored after the requests are answered
		return storedTokens(dir) == 2
	})
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	s.reload()
	late := 0
	for _, name := range []string{"acme", "globex"} {
		start := time.Now()
		resp, body := s.as(name, "/v1/x")
		if whose, number, _ := cutTenant(body); resp.StatusCode == http.StatusOK && whose == name && number == "2" && time.Since(start) >= fleetPatience {
			late++ // the machine is busy: a client does not wait for the storage any longer
		} else if resp.StatusCode != http.StatusOK || body != name+" #1" {
			t.Errorf("after the restart, %s is answered %d %s, want by its token 1", name, resp.StatusCode, body)
		}
	}
	if n := s.Issued(); n != int64(2+late) {
		t.Errorf("%d token requests for two tenants and a restart", n)
	}
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		egresstest.CheckLeaks(t, path, string(content))
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// revoke_on_stop revokes the tokens of all tenants, those that have lapsed included.
func TestTenantsRevokeOnStop(t *testing.T) {
	names := tenantNames(6)
	s := newTenantStage(t, "oauth2", names...)
	s.credential = s.Credential("tenants", "oauth2", "max_tenants 3", "revoke_on_stop")
	s.start()
	for _, name := range names {
		s.serves(name, 1)
	}
	s.reload()
	for _, name := range names {
		if n := s.Returned(name); n != 0 {
			t.Errorf("%d tokens of %s are revoked, though it is still served", n, name)
		}
		s.serves(name, 1)
	}
	if err := s.g.Load("respond 204"); err != nil { // without the credential
		t.Fatal(err)
	}
	egresstest.Eventually(t, "the tokens to be revoked", func() bool {
		n := 0
		for _, name := range names {
			n += s.Returned(name)
		}
		return n == len(names)
	})
}

// A 401 to one tenant's token gets that tenant another one, and nobody else.
func TestTenantsRejectedToken(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "globex").start()
	s.serves("acme", 1)
	s.serves("globex", 1)
	s.Invalidate("acme")
	s.serves("acme", 2) // replayed
	s.serves("globex", 1)
	if n := s.Expired(); n != 1 {
		t.Errorf("the API has said 401 %d times, want once", n)
	}

	// one whose tokens are never good takes nothing from others
	s.Answer = nil
	for range 30 {
		s.Invalidate("acme")
		s.as("acme", "/v1/x")
		s.serves("globex", 1)
	}
	if n := s.Count("acme"); n > 10 {
		t.Errorf("%d token requests for acme", n)
	}
}

// A tenant whose client is refused is told so, and takes nothing from others.
func TestTenantsRefusedCredential(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "globex").start()
	s.Refuse("acme", true)
	s.refuses("acme", http.StatusBadGateway, "credential_refused")
	s.serves("globex", 1)
	var line map[string]any
	egresstest.Eventually(t, "a line in the log", func() bool {
		lines := s.g.LogLines("the authorization server refuses the credential; requests fail until it is corrected")
		if len(lines) > 0 {
			line = lines[0]
		}
		return line != nil
	})
	if line["credential"] != "tenants/acme" {
		t.Errorf("the log names %v", line["credential"])
	}
	s.Refuse("acme", false)
	egresstest.Eventually(t, "acme to be served", func() bool {
		resp, _ := s.as("acme", "/v1/x")
		return resp.StatusCode == http.StatusOK
	})
	s.serves("globex", 1)
}

// A tenant whose files are deleted is served while its token lives, and then unknown.
func TestTenantOffboarded(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "globex")
	s.Lifetime = 3
	s.start()
	expires := time.Now().Add(3 * time.Second) // or later
	s.serves("acme", 1)
	s.Remove("acme")
	tokens := s.Count("acme")
	failures := func() float64 { // as the alert EgressTokenEndpointFailing counts them
		n, _ := s.admin.Metrics(t, "").Of("token_requests_total", "tenants",
			egresstest.Label("trigger", "refresh"), egresstest.Label("outcome", "transient"))
		return n
	}
	before := failures()
	var last *http.Response
	var body string
	egresstest.Eventually(t, "the tenant to be unknown", func() bool {
		sent := time.Now()
		last, body = s.as("acme", "/v1/x")
		if last.StatusCode != http.StatusOK && sent.Add(500*time.Millisecond).Before(expires) {
			t.Fatalf("%s before its token expires: %d %s", time.Until(expires), last.StatusCode, body)
		}
		if resp, body := s.as("globex", "/v1/x"); resp.StatusCode != http.StatusOK {
			t.Fatalf("another tenant: %d %s", resp.StatusCode, body)
		}
		return last.StatusCode != http.StatusOK
	})
	checkTenantRefused(t, "after its token", last, body, http.StatusForbidden, "tenant_unknown")
	if n := s.Count("acme"); n != tokens {
		t.Errorf("%d token requests after the files were deleted", n-tokens)
	}
	if failures() == before {
		t.Error("its refreshes have not failed")
	}
	if lines := s.g.LogLines("could not refresh the token; the present one is used until it expires"); len(lines) == 0 || lines[0]["credential"] != "tenants/acme" {
		t.Errorf("the log warns of %v", lines)
	}

	// with its files it is back
	s.Add("acme")
	egresstest.Eventually(t, "the tenant to be known again", func() bool {
		resp, _ := s.as("acme", "/v1/x")
		return resp.StatusCode == http.StatusOK
	})
}

// Without its files, and with its token ended at the API, a tenant gets the API's 401,
// and then is unknown. Its token cannot be revoked any more.
func TestTenantOffboardedAtTheAPI(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "globex")
	s.Lifetime = 6 // in which it is used, revoked, and ended
	s.start()
	s.serves("acme", 1)
	s.Remove("acme")
	s.serves("acme", 1)
	resp, body := s.admin.Ask(t, http.MethodPost, "/egress/tokens/tenants/acme/revoke")
	if resp.StatusCode != http.StatusBadGateway || !strings.Contains(body, "/acme/client_id} has no value") || s.Returned("acme") != 0 {
		t.Errorf("revoking without the files: %d %s", resp.StatusCode, body)
	}
	s.Invalidate("acme")
	if resp, body := s.as("acme", "/v1/x"); resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("Proxy-Status") != "" {
		t.Errorf("answered %d %s, want the API's 401", resp.StatusCode, body)
	}
	egresstest.Eventually(t, "the tenant to be unknown", func() bool {
		resp, body = s.as("acme", "/v1/x")
		return resp.StatusCode != http.StatusUnauthorized
	})
	checkTenantRefused(t, "after its token", resp, body, http.StatusForbidden, "tenant_unknown")
	if n := s.Count("acme"); n != 1 {
		t.Errorf("%d token requests for acme", n)
	}
	resp, body = s.as("globex", "/v1/x")
	if resp.StatusCode != http.StatusOK {
		t.Errorf("another tenant: %d %s", resp.StatusCode, body)
	}
}

// A secret that is replaced is used at the next token request of that tenant.
func TestTenantsSecretIsReplaced(t *testing.T) {
	s := newTenantStage(t, "oauth2", "acme", "globex").start()
	s.serves("acme", 1)
	s.serves("globex", 1)
	s.Rotate("acme")
	s.serves("acme", 1)
	s.Invalidate("acme")
	s.serves("acme", 2)
	s.Rotate("acme")
	s.reload()
	s.serves("globex", 1)
	egresstest.Eventually(t, "a token of the other secret", func() bool {
		resp, body := s.as("acme", "/v1/x")
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("answered %d %s", resp.StatusCode, body)
		}
		return strings.HasSuffix(body, " #3")
	})
	s.serves("globex", 1)
}

// Requests that are under way while their tenant lapses or the config is reloaded end well.
func TestTenantsLapseUnderWay(t *testing.T) {
	names := tenantNames(8)
	s := newTenantStage(t, "oauth2", names...)
	s.credential = s.Credential("tenants", "oauth2", "max_tenants 1", "revoke_on_stop")
	arrived, release := make(chan struct{}), make(chan struct{})
	var held atomic.Bool
	s.Answer = func(tenant string, _ http.ResponseWriter) {
		if tenant == names[0] && held.CompareAndSwap(false, true) {
			close(arrived)
			<-release
		}
	}
	s.start()
	done := make(chan string, 1)
	req := s.g.Request(http.MethodGet, "/v1/x", nil)
	req.Header.Set(egresstest.TenantHeader, names[0])
	req.Header.Set(egresstest.ExpectHeader, names[0])
	go func() {
		_, body, err := s.g.Try(req)
		if err != nil {
			body = err.Error()
		}
		done <- body
	}()
	<-arrived
	for _, name := range names[1:] {
		s.serves(name, 1)
	}
	if n := s.Returned(names[0]); n != 0 {
		t.Error("the token of a request under way is revoked")
	}
	close(release)
	if got := <-done; got != names[0]+" #1" {
		t.Errorf("answered %s", got)
	}
	s.serves(names[0], 1)
}
