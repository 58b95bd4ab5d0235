package e2e_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// authClient is a client of an authServer, in the metadata of OpenID Connect.
type authClient map[string]any

// authConfig is what an authServer has beside one client with a secret.
type authConfig struct {
	Clients  []authClient      `json:"clients"`
	TLS      map[string]string `json:"tls,omitempty"`
	Required bool              `json:"required,omitempty"`
	Clock    int               `json:"clock,omitempty"`
}

// startAuthServerWith starts an authorization server with a configuration.
func startAuthServerWith(t *testing.T, config authConfig) *authServer {
	t.Helper()
	s := newAuthServer(t, time.Hour)
	s.config = filepath.Join(t.TempDir(), "config.json")
	s.configure(config)
	s.start()
	return s
}

// configure changes what the server has when it is started the next time.
func (s *authServer) configure(config authConfig) {
	s.t.Helper()
	text, err := json.Marshal(config)
	if err == nil {
		err = os.WriteFile(s.config, text, 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// newKeyOf returns a private key for an algorithm.
func newKeyOf(t *testing.T, algorithm string) crypto.Signer {
	t.Helper()
	var key crypto.Signer
	var err error
	switch algorithm {
	case "ES256":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ES384":
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "EdDSA":
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// keyPEM returns a private key in PEM.
func keyPEM(t *testing.T, key crypto.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// write writes a file of a directory and returns its path.
func write(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// publicKeys returns the keys of a client, by their identifiers.
func publicKeys(keys map[string]crypto.Signer) jose.JSONWebKeySet {
	var set jose.JSONWebKeySet
	for id, key := range keys {
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key.Public(), KeyID: id, Use: "sig"})
	}
	return set
}

// signing returns a client that signs with one of keys.
func signing(id string, keys map[string]crypto.Signer) authClient {
	return authClient{"client_id": id, "token_endpoint_auth_method": "private_key_jwt", "jwks": publicKeys(keys)}
}

// writePair writes a certificate and its key to files in dir.
func writePair(t *testing.T, dir string, pair tls.Certificate) (cert, key string) {
	t.Helper()
	block := &pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}
	return write(t, filepath.Join(dir, "cert.pem"), string(pem.EncodeToMemory(block))),
		write(t, filepath.Join(dir, "key.pem"), keyPEM(t, pair.PrivateKey))
}

// certified returns a client whose certificates are self-signed.
func certified(id string, pairs ...tls.Certificate) authClient {
	var set jose.JSONWebKeySet
	for i, pair := range pairs {
		set.Keys = append(set.Keys, jose.JSONWebKey{
			Key: pair.Leaf.PublicKey, Certificates: []*x509.Certificate{pair.Leaf}, KeyID: fmt.Sprint(id, i),
		})
	}
	return authClient{"client_id": id, "token_endpoint_auth_method": "self_signed_tls_client_auth", "jwks": set}
}

// secured returns the tls of an authServer that trusts clients of ca, and the file
// that its own certificate is verified against.
func secured(t *testing.T, ca *egresstest.Authority) (config map[string]string, trust string) {
	t.Helper()
	cert, key := ca.ServerFiles(t, "127.0.0.1")
	return map[string]string{
		"cert": egresstest.ReadText(t, cert), "key": egresstest.ReadText(t, key), "ca": egresstest.ReadText(t, ca.File),
	}, ca.File
}

// authCredentials are credentials of an authServer in a gateway, with a route for
// the path of each one's name.
type authCredentials struct {
	server *authServer
	api    *egresstest.Recorder
	scheme string

	global, routes strings.Builder
}

func (s *authServer) credentials(scheme string) *authCredentials {
	return &authCredentials{server: s, scheme: scheme, api: egresstest.NewRecorder(s.t)}
}

// add adds a credential.
func (c *authCredentials) add(name, options string) {
	fmt.Fprintf(&c.global, `credential %s oauth2 %s {
		token_url %[3]s/token
		revocation_url %[3]s/token/revocation
		introspection_url %[3]s/token/introspection
		client_id %[1]s
		scopes orders.read
		%[4]s
	}
	`, name, c.api.URL, c.scheme+"://"+c.server.address, options)
	c.routes.WriteString(egresstest.Site("/"+name+"/", "egress "+name))
}

// start starts a gateway with the credentials.
func (c *authCredentials) start() (*egresstest.Gateway, egresstest.Admin) {
	t := c.server.t
	t.Helper()
	admin, option := egresstest.NewAdmin(t)
	return egresstest.StartWatched(t, c.routes.String(), egresstest.WithGlobal(option+"egress {\n"+c.global.String()+"\n}")), admin
}

func TestClientAuthentication(t *testing.T) {
	ca := egresstest.NewAuthority(t)
	files, trust := secured(t, ca)
	config := authConfig{TLS: files, Clients: []authClient{
		{"client_id": "basic", "client_secret": egresstest.Secret},
		{"client_id": "ca", "token_endpoint_auth_method": "tls_client_auth", "tls_client_auth_san_dns": "gateway.internal"},
	}}
	options := map[string]string{}

	// a certificate goes with a secret, too
	ofCA, keyOfCA := writePair(t, t.TempDir(), ca.Issue([]string{"gateway.internal"}))
	options["basic"] = fmt.Sprintf("client_secret {env.%s}\ntoken_cert %s %s", egresstest.SecretVariable, ofCA, keyOfCA)
	options["ca"] = fmt.Sprintf("auth_method tls_client_auth\ntoken_cert %s %s", ofCA, keyOfCA)
	self := egresstest.SelfSigned(t, []string{"gateway.internal"})
	config.Clients = append(config.Clients, certified("self-signed", self))
	cert, key := writePair(t, t.TempDir(), self)
	options["self-signed"] = fmt.Sprintf("auth_method tls_client_auth\ntoken_cert %s %s", cert, key)

	dir := t.TempDir()
	for _, algorithm := range []string{"RS256", "PS256", "ES256", "ES384", "EdDSA"} {
		key := newKeyOf(t, algorithm)
		config.Clients = append(config.Clients, signing(algorithm, map[string]crypto.Signer{"one": newKeyOf(t, algorithm), "two": key}))
		file := write(t, filepath.Join(dir, algorithm), keyPEM(t, key))
		options[algorithm] = fmt.Sprintf("auth_method private_key_jwt\nprivate_key {file.%s}\nkey_id two", file)
		if algorithm == "PS256" {
			options[algorithm] += "\nsigning_algorithm PS256"
		}
	}
	jwk, err := (&jose.JSONWebKey{Key: newKeyOf(t, "ES256"), KeyID: "own"}).MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var read jose.JSONWebKey
	if err := read.UnmarshalJSON(jwk); err != nil {
		t.Fatal(err)
	}
	config.Clients = append(config.Clients, signing("jwk", map[string]crypto.Signer{"own": read.Key.(crypto.Signer)}))
	options["jwk"] = "auth_method private_key_jwt\nprivate_key {file." + write(t, filepath.Join(dir, "jwk"), string(jwk)) + "}"

	issuer := newKeyOf(t, "RS256")
	config.Clients = append(config.Clients, signing("assertion", map[string]crypto.Signer{"issuer": issuer}))

	s := startAuthServerWith(t, config)
	assertion := write(t, filepath.Join(dir, "assertion"), s.assertion(issuer, "https", time.Now()))
	options["assertion"] = "auth_method client_assertion\nclient_assertion {file." + assertion + "}"

	c := s.credentials("https")
	for name, of := range options {
		c.add(name, of+"\ntoken_ca "+trust)
	}
	g, admin := c.start()
	for name := range options {
		t.Run(name, func(t *testing.T) {
			egresstest.Eventually(t, "an answer of the API", func() bool {
				resp, _ := g.Get("/" + name + "/x")
				return resp.StatusCode == http.StatusOK
			})
			if got := c.api.Last(t).Header.Get("Authorization"); !strings.HasPrefix(got, "Bearer ") {
				t.Error("no token has arrived")
			}
			if name == "assertion" { // which is used up
				write(t, assertion, s.assertion(issuer, "https", time.Now()))
			}
			if resp, body := admin.Ask(t, http.MethodPost, "/egress/tokens/"+name+"/introspect"); resp.StatusCode != http.StatusOK || !strings.Contains(body, `"active":true`) {
				t.Errorf("introspection answered %d %s", resp.StatusCode, body)
			}
			if name == "assertion" {
				write(t, assertion, s.assertion(issuer, "https", time.Now()))
			}
			if resp, body := admin.Ask(t, http.MethodPost, "/egress/tokens/"+name+"/revoke"); resp.StatusCode != http.StatusOK {
				t.Errorf("revocation answered %d %s", resp.StatusCode, body)
			}
		})
	}
}

// assertion returns what somebody else has signed for the client "assertion" at a
// time: good for a minute.
func (s *authServer) assertion(key crypto.Signer, scheme string, at time.Time) string {
	s.t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: key}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	claims, err := json.Marshal(map[string]any{
		"iss": "assertion", "sub": "assertion", "aud": scheme + "://" + s.address, "jti": rand.Text(),
		"iat": at.Unix(), "exp": at.Add(time.Minute).Unix(),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		s.t.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		s.t.Fatal(err)
	}
	return compact
}

// refusal returns what the log says of the credential that was refused last: why,
// and what to do.
func refusal(t *testing.T, g *egresstest.Gateway, credential string) (reason, advice string) {
	t.Helper()
	for _, message := range []string{
		"the authorization server refuses the credential; requests fail until it is corrected",
		"no first token yet; trying again",
		"could not get a token; requests fail until one comes",
		"could not refresh the token; the present one is used until it expires",
	} {
		for _, line := range g.LogLines(message) {
			if line["credential"] == credential {
				reason, advice = fmt.Sprint(line["error"]), fmt.Sprint(line["advice"])
			}
		}
	}
	return reason, advice
}

// checkRefused checks what a client and the log say of a credential that is refused.
func checkRefused(t *testing.T, g *egresstest.Gateway, credential string, reason, advice string) {
	t.Helper()
	egresstest.Eventually(t, "a refusal", func() bool {
		resp, body := g.Get("/" + credential + "/x")
		return resp.StatusCode == http.StatusBadGateway && strings.Contains(body, reason)
	})
	gotReason, gotAdvice := refusal(t, g, credential)
	if !strings.Contains(gotReason, reason) || !strings.HasPrefix(gotAdvice, advice) {
		t.Errorf("%s: the log says %q, %q\nwant %q, %q", credential, gotReason, gotAdvice, reason, advice)
	}
}

// Where the server does not accept the client, the log says what to do.
func TestClientAuthenticationFails(t *testing.T) {
	ca := egresstest.NewAuthority(t)
	files, trust := secured(t, ca)
	issuer := newKeyOf(t, "RS256")
	s := startAuthServerWith(t, authConfig{TLS: files, Clients: []authClient{
		signing("key", map[string]crypto.Signer{"one": newKeyOf(t, "ES256")}),
		signing("assertion", map[string]crypto.Signer{"issuer": issuer}),
		{"client_id": "certificate", "token_endpoint_auth_method": "tls_client_auth", "tls_client_auth_san_dns": "gateway.internal"},
	}})
	dir := t.TempDir()
	c := s.credentials("https")
	add := func(name, options string) { c.add(name, options+"\ntoken_ca "+trust) }
	add("key", "auth_method private_key_jwt\nprivate_key {file."+write(t, filepath.Join(dir, "key"), keyPEM(t, newKeyOf(t, "ES256")))+"}")
	signed := time.Now().Add(-time.Hour)
	add("assertion", "auth_method client_assertion\nclient_assertion {file."+write(t, filepath.Join(dir, "assertion"), s.assertion(issuer, "https", signed))+"}")
	cert, key := writePair(t, dir, ca.Issue([]string{"other.internal"}))
	add("certificate", fmt.Sprintf("auth_method tls_client_auth\ntoken_cert %s %s", cert, key))
	g, _ := c.start()

	checkRefused(t, g, "key", "token endpoint answered 401 Unauthorized (invalid_client)", "check that private_key and key_id are those whose public key is registered")
	checkRefused(t, g, "assertion", "(invalid_client): the client assertion expired at "+signed.Add(time.Minute).UTC().Format(time.RFC3339),
		"look at what renews the client assertion")
	checkRefused(t, g, "certificate", "token endpoint answered 401 Unauthorized (invalid_client)", "check that the certificate of token_cert is the one that is registered")
}

// warm has an authorization server, which has just started, refuse a token request.
func warm(t *testing.T, s *authServer) {
	t.Helper()
	resp, err := http.PostForm("http://"+s.address+"/token", url.Values{"grant_type": {"client_credentials"}, "client_id": {"key"}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

// A clock that is off is found by the Date of the server's answer.
func TestClockIsOff(t *testing.T) {
	key := newKeyOf(t, "EdDSA")
	file := write(t, filepath.Join(t.TempDir(), "key"), keyPEM(t, key))
	for clock, direction := range map[int]string{120: "behind", -120: "ahead of"} {
		t.Run(direction, func(t *testing.T) {
			want := regexp.MustCompile(`\(invalid_client\): the clock of this machine is (\S+) ` + direction + ` that of the server$`)
			s := startAuthServerWith(t, authConfig{Clock: clock, Clients: []authClient{signing("key", map[string]crypto.Signer{"one": key})}})
			warm(t, s) // the Date of an answer that takes a second says a second less
			c := s.credentials("http")
			c.add("key", "auth_method private_key_jwt\nprivate_key {file."+file+"}")
			asked := time.Now()
			g, admin := c.start()
			if clock < 0 { // which this server forgives: it judges the end of an assertion only
				egresstest.Eventually(t, "an answer of the API", func() bool {
					resp, _ := g.Get("/key/x")
					return resp.StatusCode == http.StatusOK
				})
				s.kill()
				s.configure(authConfig{Clock: clock, Clients: []authClient{signing("key", map[string]crypto.Signer{"one": newKeyOf(t, "EdDSA")})}})
				s.start()
				warm(t, s)
				asked = time.Now()
				if resp, body := admin.Ask(t, http.MethodPost, "/egress/tokens/key/refresh"); resp.StatusCode != http.StatusBadGateway {
					t.Errorf("a refresh with a key that the server does not know answered %d %s", resp.StatusCode, body)
				}
			} else {
				checkRefused(t, g, "key", "(invalid_client): the clock of this machine is ", "")
			}
			took := time.Since(asked) // the answer may have been under way for so long
			reason, advice := refusal(t, g, "key")
			var off time.Duration
			if said := want.FindStringSubmatch(reason); said != nil {
				off, _ = time.ParseDuration(said[1])
			}
			if (off-2*time.Minute).Abs() > time.Second+took || !strings.HasPrefix(advice, "set the clock of this machine, which says when an assertion is valid; else check that private_key") {
				t.Errorf("the log says %q, %q", reason, advice)
			}
		})
	}
}

// A key that is replaced is used at the next token request; nobody notices that it
// is half-written, or not yet known to the server, while a token lives.
func TestKeyFileIsReplaced(t *testing.T) {
	first, second := newKeyOf(t, "ES256"), newKeyOf(t, "RS256")
	s := startAuthServerWith(t, authConfig{Clients: []authClient{signing("key", map[string]crypto.Signer{"one": first, "two": second})}})
	file := write(t, filepath.Join(t.TempDir(), "key"), keyPEM(t, first))
	c := s.credentials("http")
	c.add("key", "auth_method private_key_jwt\nprivate_key {file."+file+"}")
	g, admin := c.start()
	served := func() {
		t.Helper()
		egresstest.Eventually(t, "an answer of the API", func() bool {
			resp, _ := g.Get("/key/x")
			return resp.StatusCode == http.StatusOK
		})
	}
	refresh := func(want int) {
		t.Helper()
		if resp, body := admin.Ask(t, http.MethodPost, "/egress/tokens/key/refresh"); resp.StatusCode != want {
			t.Errorf("a refresh answered %d %s, want %d", resp.StatusCode, body, want)
		}
		if resp, body := g.Get("/key/x"); resp.StatusCode != http.StatusOK {
			t.Errorf("a request was answered %d %s", resp.StatusCode, body)
		}
	}
	served()
	text := keyPEM(t, second)
	write(t, file, text[:len(text)/2])
	refresh(http.StatusBadGateway)
	write(t, file, keyPEM(t, newKeyOf(t, "ES256")))
	refresh(http.StatusBadGateway)
	write(t, file, text)
	refresh(http.StatusOK)
	tokens := make(map[string]bool)
	for _, got := range c.api.All() {
		tokens[got.Header.Get("Authorization")] = true
	}
	if len(tokens) != 2 {
		t.Errorf("the API got %d tokens, want one of each key", len(tokens))
	}
	egresstest.CheckLines(t, "what may not be shown", nil, leaksOf(t, g, text))
}

// leaksOf returns the lines of a key in PEM that the log shows.
func leaksOf(t *testing.T, g *egresstest.Gateway, key string) (shown []string) {
	t.Helper()
	log := g.Log()
	for line := range strings.Lines(key) {
		if line = strings.TrimSpace(line); len(line) > 20 && !strings.HasPrefix(line, "---") && strings.Contains(log, line) {
			shown = append(shown, line[:4])
		}
	}
	return shown
}

// So it is with a certificate; while its files do not make a pair, the one before
// is used.
func TestCertificateIsReplaced(t *testing.T) {
	ca := egresstest.NewAuthority(t)
	files, trust := secured(t, ca)
	first, second := egresstest.SelfSigned(t, []string{"first.internal"}), egresstest.SelfSigned(t, []string{"second.internal"})
	config := authConfig{TLS: files, Clients: []authClient{certified("certificate", first, second)}}
	s := startAuthServerWith(t, config)
	dir := t.TempDir()
	cert, key := writePair(t, dir, first)
	c := s.credentials("https")
	c.add("certificate", fmt.Sprintf("auth_method tls_client_auth\ntoken_cert %s %s\ntoken_ca %s", cert, key, trust))
	g, admin := c.start()
	egresstest.Eventually(t, "an answer of the API", func() bool {
		resp, _ := g.Get("/certificate/x")
		return resp.StatusCode == http.StatusOK
	})
	refresh := func(what string, want int) {
		t.Helper()
		if resp, body := admin.Ask(t, http.MethodPost, "/egress/tokens/certificate/refresh"); resp.StatusCode != want {
			t.Errorf("%s: a refresh answered %d %s, want %d", what, resp.StatusCode, body, want)
		}
	}
	const unreadable = "the certificate of token_cert cannot be read; the one before is still used"
	text := egresstest.ReadText(t, key)
	write(t, key, text[:len(text)/2])
	refresh("half a key", http.StatusOK)
	refresh("half a key, again", http.StatusOK)
	write(t, key, keyPEM(t, second.PrivateKey))
	refresh("the key of another certificate", http.StatusOK)
	if lines := g.LogLines(unreadable); len(lines) != 1 {
		t.Errorf("%d lines about files that are not good, want 1", len(lines))
	}

	// only the second is known from now on
	s.kill()
	s.configure(authConfig{TLS: files, Clients: []authClient{certified("certificate", second)}})
	s.start()
	refresh("a certificate that the server does not know", http.StatusBadGateway)
	writePair(t, dir, second)
	egresstest.Eventually(t, "a token by the new certificate", func() bool {
		resp, _ := admin.Ask(t, http.MethodPost, "/egress/tokens/certificate/refresh")
		return resp.StatusCode == http.StatusOK
	})
	write(t, cert, "")
	refresh("an empty certificate", http.StatusOK)
	if lines := g.LogLines(unreadable); len(lines) != 2 {
		t.Errorf("%d lines about files that are not good, want one more", len(lines))
	}

	// a server that hangs up on those that it does not trust
	s.kill()
	s.configure(authConfig{TLS: files, Required: true, Clients: config.Clients})
	s.start()
	refresh("a certificate that the server does not trust", http.StatusBadGateway)
	if reason, advice := refusal(t, g, "certificate"); !strings.Contains(advice, "token_cert") {
		t.Errorf("the log says %q, %q", reason, advice)
	}
}
