package egress

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-egress/caddy-egress/internal/option"
)

// loadAs has the app of ts use another credential with tenants.
func (s *tenantsStage) loadAs(ts *tenants, name, raw string) *tenants {
	s.t.Helper()
	credential := Credential{ProviderRaw: json.RawMessage(raw)}
	provider, err := credential.loadProvider(ts.app.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	family, err := ts.app.use(name, provider, credential)
	if err != nil {
		s.t.Fatal(err)
	}
	return family.tenants
}

// Two credentials may differ in what is secret only, which is not in an identity.
func TestTenantsOfTwoCredentialsShareNoToken(t *testing.T) {
	s := newTenantsStage(t, 10, "a")
	raw := `{"name":"oauth2","api_url":"http://127.0.0.1","token_url":"http://127.0.0.1/token","client_id":"one","client_secret":"one","header":{"X-Company":"REGION-{tenant}"}}`
	eu, err := s.loadAs(s.tenants, "eu", strings.ReplaceAll(raw, "REGION", "eu")).get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	us, err := s.loadAs(s.tenants, "us", strings.ReplaceAll(raw, "REGION", "us")).get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if eu.state == us.state {
		t.Error("eu/a and us/a share a token")
	}
}

// What one grant reserves is counted, whoever else uses the tenant.
func TestQuotaOfTenantIsCounted(t *testing.T) {
	s := newTenantsStage(t, 10, "a")
	s.family.reserve()
	c, err := s.get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	raw := string(s.credential.ProviderRaw)
	ofOthers := s.loadAs(s.tenants, "other", strings.Replace(raw, `"client_id"`, `"scopes":["x"],"client_id"`, 1))
	ofOthers.base = s.base // as that of a route with scopes of its own
	other, err := ofOthers.get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if c.quota != other.quota {
		t.Fatal("tokens of other scopes have another quota")
	}
	if !c.quota.counts.Load() {
		t.Error("the quota is not counted any more")
	}
}

// A tenant that lapses while its token is being obtained has it when it returns:
// else more tenants at a time than can be live cost a token request each time.
func TestTenantLapsesBeforeItsToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTenantsStage(t, 1, "a", "b")
		s.delay = time.Second
		first, err := s.get(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan error)
		go func() {
			_, err := first.source.Token(context.Background())
			got <- err
		}()
		synctest.Wait()
		s.use(s.tenants, "b", 1) // a lapses
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		s.use(s.tenants, "a", 1)
	})
}

// A panic while a tenant is set up, as of a provider, costs it a moment, and nobody
// else anything.
func TestTenantWhoseSetUpPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTenantsStage(t, 10, "a")
		good := s.app.clients
		s.app.clients = nil // an entry cannot be added
		for range 2 {
			_, err := s.get(t.Context(), "a")
			if err == nil {
				t.Fatal("a tenant without a provider has a credential")
			}
		}
		if n := len(s.settingUp); n != 0 {
			t.Errorf("%d tenants are being set up", n)
		}
		s.app.clients = good
		time.Sleep(2 * unknownFor)
		s.use(s.tenants, "a", 1)
	})
}

// A tenant may be told by its certificate alone.
func TestTenantWithoutCertificateIsUnknown(t *testing.T) {
	s := newTenantsStage(t, 10, "a")
	for name, c := range map[string]Credential{
		"certificate": {TokenCert: &TokenCert{Certificate: filepath.Join(s.dir, "{tenant}", "cert"), Key: filepath.Join(s.dir, "{tenant}", "key")}},
		"authorities": {TokenCA: []string{filepath.Join(s.dir, "{tenant}", "ca")}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &tenantsStage{tenants: s.load(10), t: t, dir: s.dir}
			defer s.end(s.tenants)
			c.ProviderRaw = s.credential.ProviderRaw
			s.credential = c
			s.refused("a")
		})
	}
}

// A file of one tenant that hangs holds up nobody else.
func TestTenantWhoseAuthoritiesHang(t *testing.T) {
	s := newTenantsStage(t, 10, "a", "slow")
	s.credential.TokenCA = []string{filepath.Join(s.dir, "{tenant}", "ca")}
	pipe := filepath.Join(s.dir, "slow", "ca")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = s.get(context.Background(), "slow")
	}()
	w, err := os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	for tick := time.Tick(time.Millisecond); err != nil; w, err = os.OpenFile(pipe, os.O_WRONLY|syscall.O_NONBLOCK, 0) {
		<-tick // until it is read
	}
	other := make(chan struct{})
	go func() {
		defer close(other)
		_, _ = s.get(t.Context(), "a")
	}()
	select {
	case <-other:
	case <-done:
		t.Error("another tenant waits for the file")
	}
	fmt.Fprint(w, "x")
	w.Close()
	<-done
	<-other
}

// Files of tenants that hang take up places that their credential alone has.
func TestFilesOfTenantsThatHang(t *testing.T) {
	s := newTenantsStage(t, 10, "a")
	s.credential.TokenCA = []string{filepath.Join(s.dir, "{tenant}", "ca")}
	s.files = s.credential.tenantValues()
	want := []string{"{file." + s.dir + "/{tenant}/ca}", "{file." + s.dir + "/{tenant}/id}", "{file." + s.dir + "/{tenant}/secret}"}
	if got := slices.Sorted(slices.Values(s.files)); !slices.Equal(got, want) {
		t.Errorf("files of tenants are %q, want %q", got, want)
	}

	// as many as may be read at a time
	var hanging, values []string
	for n := range 128 {
		file := filepath.Join(s.dir, fmt.Sprint("hangs-", n))
		if err := syscall.Mkfifo(file, 0o600); err != nil {
			t.Fatal(err)
		}
		hanging, values = append(hanging, file), append(values, option.FileValue(file))
	}
	defer option.ReadInGroup("tenants of "+s.base, values)()
	for _, file := range hanging {
		_, _ = option.ReadFile(file, time.Millisecond)
		defer func() {
			if w, err := os.OpenFile(file, os.O_WRONLY|syscall.O_NONBLOCK, 0); err == nil {
				w.Close()
			}
		}()
	}
	_, err := s.get(t.Context(), "a")
	if err == nil || !strings.Contains(err.Error(), "takes too long") {
		t.Errorf("a tenant has got a place: %v", err)
	}
	for _, file := range []string{"id", "secret"} { // as of a credential of the config
		if _, err := option.Resolve(file, option.FileValue(filepath.Join(s.dir, "a", file))); err != nil {
			t.Error(err)
		}
	}
}

// Tenants that are set up by turns, more than may be live, are warned of now and then.
func TestWarningsOfTenantsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTenantsStage(t, 1, "a", "b")
		s.stop() // no token is requested
		core, logs := observer.New(zap.WarnLevel)
		s.app.logger = zap.New(core)
		for _, name := range []string{"a", "b"} {
			files := writeTokenCert(t, filepath.Join(s.dir, name), time.Now().Add(-time.Hour))
			for _, file := range []string{files.Key, filepath.Join(s.dir, name, "secret")} {
				if err := os.Chmod(file, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
		s.credential.TokenCert = &TokenCert{Certificate: filepath.Join(s.dir, "{tenant}", "cert"), Key: filepath.Join(s.dir, "{tenant}", "key")}
		turns := func() map[string]int {
			for n := range 100 {
				if _, err := s.get(t.Context(), []string{"a", "b"}[n%2]); err != nil {
					t.Fatal(err)
				}
			}
			lines := make(map[string]int)
			for _, entry := range logs.TakeAll() {
				lines[entry.Message]++
			}
			return lines
		}
		want := map[string]int{openFileMessage: 1, "the certificate of token_cert has expired": 1}
		if got := turns(); !maps.Equal(got, want) {
			t.Errorf("logged %v, want %v", got, want)
		}
		time.Sleep(time.Minute)
		if got := turns(); !maps.Equal(got, want) {
			t.Errorf("logged %v a minute later, want %v", got, want)
		}
	})
}

// What all tenants have in common is wrong when the config is loaded.
func TestTenantsWithoutCommonAuthorities(t *testing.T) {
	s := newTenantsStage(t, 10)
	credential := s.credential
	credential.TokenCA = []string{filepath.Join(s.dir, "ca")}
	provider, err := credential.loadProvider(s.app.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.app.use("others", provider, credential); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// check calls tenants as logs do, and tells what came of one from what came of another.
func TestCheckOfTenants(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"error":"invalid_client"}`)
	}))
	defer server.Close()
	raw := fmt.Sprintf(`{"name":"oauth2","api_url":"http://127.0.0.1","token_url":"%s/token","client_id":"id-{tenant}","client_secret":["{tenant}1","{tenant}2"]}`, server.URL)
	config := func(credential, transport string) []byte {
		return fmt.Appendf(nil, `{"apps":{"egress":{"credentials":{%s}},"http":{"servers":{"x":{"listen":[":1"],"routes":[{"handle":[{"handler":"reverse_proxy","transport":{"protocol":"egress",%s,"tenant":"acme"},"upstreams":[{"dial":"127.0.0.1:1"}]}]}]}}}}}`, credential, transport)
	}
	for name, c := range map[string][]byte{
		"tenants":               config(`"tenants":{"provider":`+raw+`}`, `"credential":"tenants"`),
		"oauth2-" + hashOf(raw): config("", `"provider":`+raw),
	} {
		results, err := check(t.Context(), c, nil, []string{"acme", "globex"})
		if err != nil {
			t.Fatal(err)
		}
		for i, tenant := range []string{"acme", "globex"} {
			r := results[i]
			if want := name + "/" + tenant; r.Credential != want || r.client == nil || r.client.name != want || r.SameCauseAs != "" {
				t.Errorf("%s: got %+v", want, r)
			}
		}
	}
}

func hashOf(raw string) string {
	digest := sha256.Sum256([]byte(raw))
	return hex.EncodeToString(digest[:4])
}

// A route of one tenant is not for any.
func TestAccessToAFixedTenant(t *testing.T) {
	for row, want := range map[*accessRow]string{
		{Tenant: "acme"}:                "tenant acme",
		{Tenant: "{http.auth.user.id}"}: "any tenant",
		{Tenant: "{http.auth.user.id}", Tenants: []string{"acme"}}: "tenants acme",
	} {
		if got := row.limitsText(); got != want {
			t.Errorf("%+v: got %q, want %q", row, got, want)
		}
	}
}
