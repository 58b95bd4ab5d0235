package egresstest

import (
	"cmp"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	// TenantHeader is the header by which a client of the tests names a tenant.
	TenantHeader = "X-Tenant"

	// ExpectHeader has the tenant that a request is meant for, whatever the route takes
	// it from. The API of a [Tenants] compares the token with it.
	ExpectHeader = "X-Expect"

	tenantID = "id-of-" // what a tenant's client id begins with
)

// TenantSecret returns the client secret of a tenant.
func TenantSecret(tenant string) string { return Secret + "/" + tenant }

// Tenants are an authorization server that knows the client of each tenant, an API that
// judges whose token a request has, and a folder with the credential files of each
// tenant: <tenant>/client_id and <tenant>/client_secret. The server is the API; tokens
// are issued at Auth and, as Voucherify does, at the API.
//
// Every mistake is an error of the test: a token request of a client that was never
// there, a token that is not of the tenant in [ExpectHeader], or that was never issued.
type Tenants struct {
	*httptest.Server

	// Auth is the authorization server. It issues tokens at /oauth/token and at
	// /<tenant>/oauth/token, and revokes them at /oauth/revoke.
	Auth *httptest.Server

	// Folder has a folder for each tenant.
	Folder string

	// Lifetime is that of tokens, in seconds. It is set before the first request.
	Lifetime int

	// Answer is called before the API answers a tenant's request. It is set before the
	// first one.
	Answer func(tenant string, w http.ResponseWriter)

	t       testing.TB
	byToken sync.Map // string to *TenantToken
	clients sync.Map // tenant to *tenantClient
	issued  atomic.Int64
	served  atomic.Int64
	expired atomic.Int64
	faults  atomic.Int64
	strays  atomic.Int64
	probes  atomic.Int64
}

// TenantToken is a token, and the request that it was issued for.
type TenantToken struct {
	Tenant string
	Scope  string
	Param  string // the parameter "account" of the token request
	Header string // its header X-Account
	Path   string // its path
	Number int    // of the tenant's tokens, from 1 on

	expires  time.Time
	revoked  atomic.Bool // the API does not take it any more
	returned atomic.Bool // it was revoked at the authorization server
}

type tenantClient struct {
	mu      sync.Mutex
	tokens  []*TenantToken
	refused bool // no token is issued to it
	secret  string
}

// NewTenants starts the servers for tenants with those names.
func NewTenants(t testing.TB, names ...string) *Tenants {
	t.Helper()
	s := &Tenants{t: t, Lifetime: 3600, Folder: filepath.Join(t.TempDir(), "tenants")}
	if err := os.Mkdir(s.Folder, 0o700); err != nil {
		t.Fatal(err)
	}
	s.Server, s.Auth = httptest.NewServer(s), httptest.NewServer(http.HandlerFunc(s.serveAuth))
	t.Cleanup(func() {
		s.Close()
		s.Auth.Close()
		if n := s.faults.Load(); n > 0 {
			t.Errorf("%d requests had a token of another tenant, or one that was never issued", n)
		}
	})
	s.Add(names...)
	return s
}

// Add makes tenants known to the authorization server, and writes their files. Each file
// is there as a whole at once, as secret stores do it.
func (s *Tenants) Add(names ...string) {
	s.t.Helper()
	for _, name := range names {
		s.Know(name)
		s.Write(filepath.Join(s.Folder, name), name)
	}
}

// Know makes a tenant known to the authorization server, without files.
func (s *Tenants) Know(name string) {
	s.clients.LoadOrStore(name, &tenantClient{secret: TenantSecret(name)})
}

// Rotate replaces the secret of a tenant, at the authorization server and in its file.
func (s *Tenants) Rotate(name string) {
	s.t.Helper()
	c := s.client(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.secret += "'"
	file := filepath.Join(s.Folder, name, "client_secret")
	if err := os.WriteFile(file+".new", []byte(c.secret), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		s.t.Fatal(err)
	}
}

// Write writes the credential of a tenant to a folder that is not there yet.
func (s *Tenants) Write(folder, tenant string) {
	s.t.Helper()
	next := folder + ".new"
	if err := os.MkdirAll(next, 0o700); err != nil {
		s.t.Fatal(err)
	}
	for file, content := range map[string]string{"client_id": tenantID + tenant, "client_secret": TenantSecret(tenant)} {
		if err := os.WriteFile(filepath.Join(next, file), []byte(content+"\n"), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := os.Rename(next, folder); err != nil {
		s.t.Fatal(err)
	}
}

// Remove removes the files of a tenant.
func (s *Tenants) Remove(name string) {
	s.t.Helper()
	if err := os.RemoveAll(filepath.Join(s.Folder, name)); err != nil {
		s.t.Fatal(err)
	}
}

// Refuse has the authorization server refuse the client of a tenant, or not any more.
func (s *Tenants) Refuse(name string, refused bool) {
	c := s.client(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused = refused
}

// Credential returns the definition of a credential with {tenant} in its files.
func (s *Tenants) Credential(name, provider string, options ...string) string {
	id, secret := "{file."+s.Folder+"/{tenant}/client_id}", "{file."+s.Folder+"/{tenant}/client_secret}"
	own := map[string]string{
		"oauth2": fmt.Sprintf("client_id %s\n client_secret %s\n token_url %s/oauth/token\n revocation_url %[3]s/oauth/revoke", id, secret, s.Auth.URL),
		"understory": fmt.Sprintf("client_id %s\n client_secret %s\n token_url %s/oauth/token\n scopes openid",
			id, secret, s.Auth.URL),
		"voucherify": fmt.Sprintf("app_id %s\n app_token %s\n scopes api", id, secret),
	}
	return fmt.Sprintf("credential %s %s %s {\n%s\n%s\n}\n", name, provider, s.URL, own[provider], strings.Join(options, "\n"))
}

func (s *Tenants) client(name string) *tenantClient {
	c, _ := s.clients.Load(name)
	client, _ := c.(*tenantClient)
	if client == nil {
		client = new(tenantClient)
	}
	return client
}

// Tokens returns the tokens that were issued to a tenant.
func (s *Tenants) Tokens(name string) []*TenantToken {
	c := s.client(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.tokens)
}

// Count returns how many tokens were issued to a tenant.
func (s *Tenants) Count(name string) int { return len(s.Tokens(name)) }

// Issued returns how many tokens were issued in all, Served how many requests the API
// has answered, Expired how many it has answered with 401, Probes how many came from no
// client, and Strays how many token requests were of clients that are not there.
func (s *Tenants) Issued() int64  { return s.issued.Load() }
func (s *Tenants) Served() int64  { return s.served.Load() }
func (s *Tenants) Expired() int64 { return s.expired.Load() }
func (s *Tenants) Probes() int64  { return s.probes.Load() }
func (s *Tenants) Strays() int64  { return s.strays.Load() }

// Invalidate has the API take none of the tokens that a tenant has by now.
func (s *Tenants) Invalidate(name string) {
	for _, token := range s.Tokens(name) {
		token.revoked.Store(true)
	}
}

// Returned returns how many tokens of a tenant were revoked at the authorization server.
func (s *Tenants) Returned(name string) (n int) {
	for _, token := range s.Tokens(name) {
		if token.returned.Load() {
			n++
		}
	}
	return n
}

// serveAuth is the authorization server.
func (s *Tenants) serveAuth(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasSuffix(r.URL.Path, "/revoke"):
		value := cmp.Or(r.PostFormValue("token"), r.PostFormValue("access_token"))
		if token, ok := s.byToken.Load(value); ok {
			token.(*TenantToken).returned.Store(true)
			token.(*TenantToken).revoked.Store(true)
			return
		}
		s.t.Errorf("a token that was never issued is revoked at %s", r.URL.Path)
	case strings.HasSuffix(r.URL.Path, "/oauth/token"):
		s.issue(w, r)
	default:
		s.t.Errorf("the authorization server is asked for %q", r.URL.Path)
		http.NotFound(w, r)
	}
}

// issue issues a token to a tenant whose secret is right.
func (s *Tenants) issue(w http.ResponseWriter, r *http.Request) {
	id, secret, ok := r.BasicAuth()
	switch {
	case ok: // form-encoded, of which the secret has what matters
		id, secret = decoded(id), decoded(secret)
	case r.Header.Get("X-App-Id") != "":
		id, secret = r.Header.Get("X-App-Id"), r.Header.Get("X-App-Token")
	default:
		id, secret = r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	}
	tenant, ok := strings.CutPrefix(id, tenantID)
	known, _ := s.clients.Load(tenant)
	client, _ := known.(*tenantClient)
	if !ok || client == nil {
		s.strays.Add(1)
		s.t.Errorf("a token request of the client %q, which is not there", id)
		Say(http.StatusUnauthorized, `{"error":"invalid_client"}`)(w, r)
		return
	}
	client.mu.Lock()
	refused := client.refused || secret != client.secret
	client.mu.Unlock()
	if refused {
		Say(http.StatusUnauthorized, `{"error":"invalid_client"}`)(w, r)
		return
	}
	token := &TenantToken{
		Tenant: tenant, Scope: r.PostFormValue("scope"), Param: r.PostFormValue("account"), Header: r.Header.Get("X-Account"), Path: r.URL.Path,
		expires: time.Now().Add(time.Duration(s.Lifetime) * time.Second),
	}
	client.mu.Lock()
	client.tokens = append(client.tokens, token)
	token.Number = len(client.tokens)
	client.mu.Unlock()
	s.issued.Add(1)
	value := fmt.Sprintf("%s%s.%d", TokenPrefix, tenant, token.Number)
	s.byToken.Store(value, token)
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"access_token":%q,"token_type":"bearer","expires_in":%d}`, value, s.Lifetime)
}

// ServeHTTP is the API. It answers with whose token it was, with which scopes, and
// which of the tenant's tokens; X-Saw has the [TenantHeader] that has arrived.
func (s *Tenants) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.Contains(r.URL.Path, "/oauth/") {
		s.serveAuth(w, r)
		return
	}
	expected := r.Header.Get(ExpectHeader)
	if expected == "" { // of the gateway itself
		s.probes.Add(1)
	}
	value, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	found, ok := s.byToken.Load(value)
	if !ok {
		s.fault("a request for %q has a token that was never issued", expected)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	token := found.(*TenantToken)
	if expected != "" && token.Tenant != expected {
		s.fault("a request for %q has a token of %q", expected, token.Tenant)
		w.WriteHeader(http.StatusForbidden)
		return
	}
	if token.revoked.Load() || time.Now().After(token.expires) {
		s.expired.Add(1)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	s.served.Add(1)
	w.Header().Set("X-Saw", r.Header.Get(TenantHeader))
	if s.Answer != nil {
		s.Answer(token.Tenant, w)
	}
	_, _ = fmt.Fprint(w, token)
}

// String returns what the API says of a request with the token.
func (t *TenantToken) String() string {
	return strings.TrimSpace(t.Tenant + " #" + strconv.Itoa(t.Number) + " " + t.Scope)
}

// fault notes a request that should never be, and reports the first few.
func (s *Tenants) fault(format string, args ...any) {
	if s.faults.Add(1) <= 3 {
		s.t.Errorf(format, args...)
	}
}

// decoded returns a value of client_secret_basic as it was before (RFC 6749 §2.3.1).
func decoded(value string) string {
	plain, err := url.QueryUnescape(value)
	if err != nil {
		return value
	}
	return plain
}
