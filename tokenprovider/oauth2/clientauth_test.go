package oauth2

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokenprovider/internal/wiretest"
)

// newKey returns a private key in PEM, and its public key.
func newKey(t *testing.T, curve elliptic.Curve) (text string, public crypto.PublicKey) {
	t.Helper()
	var private crypto.Signer
	var err error
	if curve == nil {
		_, private, err = ed25519.GenerateKey(rand.Reader)
	} else {
		private, err = ecdsa.GenerateKey(curve, rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), private.Public()
}

// signed returns the claims and the kid of the assertion in form, which public has
// to verify.
func signed(t *testing.T, form url.Values, public crypto.PublicKey) (claims map[string]any, keyID string) {
	t.Helper()
	if got := form.Get("client_assertion_type"); got != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" {
		t.Errorf("client_assertion_type %q", got)
	}
	jws, err := jose.ParseSigned(form.Get("client_assertion"), []jose.SignatureAlgorithm{"EdDSA", "ES256", "ES384"})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := jws.Verify(public)
	if err == nil {
		err = json.Unmarshal(payload, &claims)
	}
	if err != nil {
		t.Fatal(err)
	}
	return claims, jws.Signatures[0].Header.KeyID
}

// withKey returns a provider that signs with the key in a file.
func withKey(server, file string) *Provider {
	p := at(server)
	p.ClientSecret, p.AuthMethod, p.PrivateKey = nil, "private_key_jwt", values("{file."+file+"}")
	return p
}

func TestPrivateKeyJWT(t *testing.T) {
	server := wiretest.Serve(t, wiretest.Granted)
	file := filepath.Join(t.TempDir(), "key.pem")
	text, public := newKey(t, nil)
	wiretest.WriteFile(t, file, text)
	p := withKey(server.URL, file)
	p.KeyID = values("k-1")
	wiretest.Provision(t, p)
	ids := make(map[any]bool)
	for name, do := range map[string]func() error{
		"token":      func() error { _, err := p.Token(t.Context(), client); return err },
		"revocation": func() error { return p.Revoke(t.Context(), client, tokenprovider.NewSecret("tok-1")) },
		"introspection": func() error {
			_, err := p.Introspect(t.Context(), client, tokenprovider.NewSecret("tok-1"))
			return err
		},
	} {
		_ = do() // the answer is that of a token request
		request := server.Last(t)
		form := request.Form(t)
		claims, keyID := signed(t, form, public)
		if claims["iss"] != "i d" || claims["sub"] != "i d" || claims["aud"] != p.TokenURL || form.Get("client_id") != "i d" || keyID != "k-1" {
			t.Errorf("%s: claims %v, client_id %q, kid %q", name, claims, form.Get("client_id"), keyID)
		}
		if ids[claims["jti"]] || form.Has("client_secret") || request.Header.Get("Authorization") != "" {
			t.Errorf("%s: jti %v again, or another authentication: %v", name, claims["jti"], request.Header)
		}
		ids[claims["jti"]] = true
	}

	p.AssertionAudience = "https://auth.example"
	if _, err := p.Token(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	if claims, _ := signed(t, server.Last(t).Form(t), public); claims["aud"] != "https://auth.example" {
		t.Errorf("aud %v", claims["aud"])
	}
	if grant := p.Grant(); grant.KeyID != "k-1" || grant.AuthMethod != "private_key_jwt" {
		t.Errorf("grant %+v", grant)
	}
}

// The key is read anew for each request: one that is replaced needs no reload.
func TestPrivateKeyIsReplaced(t *testing.T) {
	server := wiretest.Serve(t, wiretest.Granted)
	file := filepath.Join(t.TempDir(), "key.pem")
	first, _ := newKey(t, nil)
	wiretest.WriteFile(t, file, first)
	p := wiretest.Provision(t, withKey(server.URL, file))
	second, public := newKey(t, elliptic.P384())
	wiretest.WriteFile(t, file, second)
	if _, err := p.Token(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	signed(t, server.Last(t).Form(t), public)
	secrets, err := p.Secrets()
	if err != nil || len(secrets) != 1 || secrets[0].Reveal()+"\n" != second {
		t.Errorf("%d secrets, %v", len(secrets), err)
	}

	wiretest.WriteFile(t, file, second[:len(second)/2])
	_, err = p.Token(t.Context(), client)
	if err == nil || !strings.HasPrefix(err.Error(), "private_key: is neither") {
		t.Errorf("half a file: %v", err)
	}
	if _, err := p.Secrets(); err == nil {
		t.Error("half a file is a secret")
	}
	if n := len(server.Requests()); n != 1 {
		t.Errorf("%d requests, want none without a key", n)
	}
}

// While a key is rotated, each one goes with the identifiers that belong to it.
func TestAlternatives(t *testing.T) {
	server := wiretest.Serve(t, wiretest.Granted)
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "new"), filepath.Join(dir, "old")}
	var publics []crypto.PublicKey
	for _, file := range files {
		text, public := newKey(t, elliptic.P256())
		wiretest.WriteFile(t, file, text)
		publics = append(publics, public)
	}
	p := withKey(server.URL, files[0])
	p.PrivateKey = append(p.PrivateKey, "{file."+files[1]+"}")
	p.KeyID, p.ClientID = values("k-new", "k-old"), values("id-new", "id-old")
	wiretest.Provision(t, p)
	all := p.Alternatives()
	if len(all) != 2 {
		t.Fatalf("%d alternatives", len(all))
	}
	for i, name := range []string{"new", "old"} {
		if grant := all[i].Grant(); grant.ClientID != "id-"+name || grant.KeyID != "k-"+name {
			t.Errorf("grant %+v", grant)
		}
		if _, err := all[i].Token(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		form := server.Last(t).Form(t)
		if _, keyID := signed(t, form, publics[i]); keyID != "k-"+name || form.Get("client_id") != "id-"+name {
			t.Errorf("%s: kid %s, client_id %s", name, keyID, form.Get("client_id"))
		}
	}
	if grant := p.Grant(); grant.ClientID != "id-new" || grant.KeyID != "k-new" {
		t.Errorf("grant %+v", grant)
	}

	// one whose file is still to come, or gone, is skipped
	wiretest.WriteFile(t, files[0], "")
	if _, err := p.Token(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	signed(t, server.Last(t).Form(t), publics[1])
	secrets, err := p.Secrets()
	if old, _ := all[1].Secrets(); err != nil || !reflect.DeepEqual(secrets, old) {
		t.Errorf("secrets are not those of the one that can be read: %v", err)
	}
	if _, err := all[0].Secrets(); err == nil {
		t.Error("an empty file is a secret")
	}

	one := at(server.URL)
	if all := tokenprovider.Alternatives(one); len(all) != 1 || all[0] != tokenprovider.Provider(one) {
		t.Errorf("%d alternatives of one value", len(all))
	}
	one.ClientSecret = values("a", "b")
	for i, want := range []string{"a", "b"} {
		if secrets, err := one.Alternatives()[i].Secrets(); err != nil || len(secrets) != 1 || secrets[0].Reveal() != want {
			t.Errorf("alternative %d: %v", i, err)
		}
	}
	if got := one.SecretOptions(); !reflect.DeepEqual(got, map[string]string{"client_secret": "a", "client_secret 2": "b"}) {
		t.Errorf("secret options %v", got)
	}
}

func TestClientAssertion(t *testing.T) {
	server := wiretest.Serve(t, wiretest.Granted)
	file := filepath.Join(t.TempDir(), "token")
	encode := base64.RawURLEncoding.EncodeToString
	assertion := func(n string) string { // long expired, which is the server's to judge
		return encode([]byte(`{"alg":"RS256"}`)) + "." + encode([]byte(`{"exp":1,"sub":"`+n+`"}`)) + ".c2lnbmF0dXJl"
	}
	wiretest.WriteFile(t, file, assertion("first")+"\n")
	p := at(server.URL)
	p.ClientSecret, p.AuthMethod, p.ClientAssertion = nil, "client_assertion", "{file."+file+"}"
	p.Headers = map[string]string{"X-Key": "header-key"}
	wiretest.Provision(t, p)
	for _, n := range []string{"first", "second"} {
		wiretest.WriteFile(t, file, assertion(n)+"\n")
		if _, err := p.Token(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		form := server.Last(t).Form(t)
		if form.Get("client_assertion") != assertion(n) || form.Get("client_id") != "i d" || form.Get("client_assertion_type") == "" {
			t.Errorf("%s: form %v", n, form)
		}
	}
	if secrets, err := p.Secrets(); tokenprovider.HasLasting(secrets) || err != nil {
		t.Errorf("%d secrets that last, %v", len(secrets), err)
	}
	wiretest.WriteFile(t, file, assertion("half")[:30])
	_, err := p.Token(t.Context(), client)
	if err == nil || !strings.HasPrefix(err.Error(), "client_assertion: is not a signed JWT") {
		t.Errorf("half an assertion: %v", err)
	}
	wiretest.NoLeak(t, err, assertion("half")[:20])
	p.Params = map[string]string{"client_assertion": "a"}
	if err := p.Validate(); err == nil || err.Error() != "param client_assertion: has an option of its own" {
		t.Errorf("a parameter that it sets itself: %v", err)
	}
	if n := len(server.Requests()); n != 2 {
		t.Errorf("%d requests, want none with half an assertion", n)
	}
}

func TestTLSClientAuth(t *testing.T) {
	p := at("https://auth.example")
	p.ClientSecret, p.AuthMethod = nil, "tls_client_auth"
	wiretest.Provision(t, p)
	if !p.API().NeedsCertificate || at("https://auth.example").API().NeedsCertificate {
		t.Error("the need of a certificate is not that of the method")
	}
	if secrets, err := p.Secrets(); tokenprovider.HasLasting(secrets) || err != nil {
		t.Errorf("%d secrets, %v", len(secrets), err)
	}
	request, err := p.request(p.TokenURL, url.Values{})
	if err != nil || !reflect.DeepEqual(request.Form, url.Values{"client_id": {"i d"}}) {
		t.Errorf("form %v, %v", request.Form, err)
	}
	p.TokenURL = "http://127.0.0.1/token"
	if err := p.Validate(); err == nil || err.Error() != "token_url: auth_method tls_client_auth needs https" {
		t.Errorf("plain HTTP: %v", err)
	}
}

// A value of the secret whose identifier is not there is no value: another is tried.
func TestIdentifierIsMissing(t *testing.T) {
	dir := t.TempDir()
	id := filepath.Join(dir, "id")
	wiretest.WriteFile(t, id, "new")
	p := at("https://auth.example")
	p.ClientID, p.ClientSecret = values("{file."+id+"}", "old"), values("a", "b")
	wiretest.Provision(t, p)
	wiretest.WriteFile(t, id, "")
	all := p.Alternatives()
	if _, err := all[0].Secrets(); err == nil {
		t.Error("a value without an identifier is taken for one that can be tried")
	}
	if _, err := all[1].Secrets(); err != nil {
		t.Error(err)
	}
}

// Without a secret, headers tell credentials apart, and nothing is sealed with them.
func TestHeadersWithoutASecret(t *testing.T) {
	var all [][]tokenprovider.Secret
	for _, tenant := range []string{"acme", "globex"} {
		p := at("https://auth.example")
		p.ClientSecret, p.AuthMethod, p.Headers = nil, "tls_client_auth", map[string]string{"X-Tenant": tenant}
		secrets, err := wiretest.Provision(t, p).Secrets()
		if err != nil {
			t.Fatal(err)
		}
		if tokenprovider.HasLasting(secrets) {
			t.Error("a header is taken for a secret that lasts")
		}
		all = append(all, secrets)
	}
	if reflect.DeepEqual(all[0], all[1]) {
		t.Error("one credential is taken for the other, and would get its token")
	}
}

// What to do depends on how the client authenticates.
func TestAdviceWhereTheClientIsNotAccepted(t *testing.T) {
	server := wiretest.Serve(t, "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\n\r\n"+`{"error":"invalid_client","error_description":"m4rker"}`)
	file := filepath.Join(t.TempDir(), "key.pem")
	text, _ := newKey(t, nil)
	wiretest.WriteFile(t, file, text)
	assertion := at(server.URL)
	assertion.ClientSecret, assertion.AuthMethod, assertion.ClientAssertion = nil, "client_assertion", "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl"
	certificate := at("https://auth.example")
	certificate.ClientSecret, certificate.AuthMethod = nil, "tls_client_auth"
	for want, p := range map[string]*Provider{
		"check the client id and the secret":          at(server.URL),
		"check that private_key and key_id are those": withKey(server.URL, file),
		"check client_id, and that the authorization": assertion,
	} {
		_, err := wiretest.Provision(t, p).Token(t.Context(), client)
		var e *tokenprovider.Error
		if !errors.As(err, &e) || !e.UnknownClient() || !strings.HasPrefix(e.Advice(), want) {
			t.Errorf("%v, advice %q, want %q", err, tokenprovider.Advice(err), want)
		}
		wiretest.NoLeak(t, err, "m4rker")
	}
	if request, err := certificate.request("https://auth.example", url.Values{}); err != nil || !strings.HasPrefix(request.ClientAdvice, "check that the certificate of token_cert is the one") {
		t.Errorf("advice %q, %v", request.ClientAdvice, err)
	}
}

func TestTokenHeaderOfTheAPI(t *testing.T) {
	none, token := "", "Token"
	for _, test := range []struct {
		header       *TokenHeader
		name, prefix string
	}{
		{nil, "", ""},
		{&TokenHeader{Name: "authorization"}, "Authorization", "Bearer "},
		{&TokenHeader{Name: "Authorization", Prefix: &none}, "Authorization", ""},
		{&TokenHeader{Name: "Authorization", Prefix: &token}, "Authorization", "Token "},
		{&TokenHeader{Name: "x-api-key"}, "X-Api-Key", ""},
		{&TokenHeader{Name: "X-Api-Key", Prefix: &token}, "X-Api-Key", "Token "},
	} {
		p := at("https://auth.example")
		p.TokenHeader, p.RejectedStatus = test.header, []int{403}
		api := wiretest.Provision(t, p).API()
		if api.TokenHeader != test.name || api.TokenPrefix != test.prefix || !reflect.DeepEqual(api.RejectedStatus, []int{403}) {
			t.Errorf("%+v: %q %q %v", test.header, api.TokenHeader, api.TokenPrefix, api.RejectedStatus)
		}
	}
}
