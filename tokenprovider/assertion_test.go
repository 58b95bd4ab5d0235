package tokenprovider

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddy-egress/caddy-egress/tokenprovider/internal/wiretest"
)

// Keys are made once: those of RSA take their time.
var (
	rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err)
		}
		return key
	})
	edKey = sync.OnceValue(func() ed25519.PrivateKey {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			panic(err)
		}
		return key
	})
)

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// inPEM returns one block, made of what marshals key.
func inPEM[K any](t testing.TB, blockType string, marshal func(K) ([]byte, error), key K) string {
	t.Helper()
	der, err := marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der}))
}

func pkcs8(t testing.TB, key any) string {
	t.Helper()
	return inPEM(t, "PRIVATE KEY", x509.MarshalPKCS8PrivateKey, key)
}

func pkcs1(t testing.TB, key *rsa.PrivateKey) string {
	t.Helper()
	return inPEM(t, "RSA PRIVATE KEY", func(key *rsa.PrivateKey) ([]byte, error) { return x509.MarshalPKCS1PrivateKey(key), nil }, key)
}

func sec1(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	return inPEM(t, "EC PRIVATE KEY", x509.MarshalECPrivateKey, key)
}

func asJWK(t testing.TB, jwk jose.JSONWebKey) string {
	t.Helper()
	text, err := jwk.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// verify returns header and claims of an assertion that key has signed.
func verify(t *testing.T, assertion Secret, key crypto.PublicKey) (header, claims map[string]any) {
	t.Helper()
	var all []jose.SignatureAlgorithm
	for _, algorithm := range SigningAlgorithms {
		all = append(all, jose.SignatureAlgorithm(algorithm))
	}
	signed, err := jose.ParseSigned(assertion.Reveal(), all)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := signed.Verify(key)
	if err != nil {
		t.Fatal(err)
	}
	encoded, _, _ := strings.Cut(assertion.Reveal(), ".")
	decoded, err := base64.RawURLEncoding.DecodeString(encoded)
	if err == nil {
		err = json.Unmarshal(decoded, &header)
	}
	if err == nil {
		err = json.Unmarshal(payload, &claims)
	}
	if err != nil {
		t.Fatal(err)
	}
	return header, claims
}

func TestSign(t *testing.T) {
	p256, p384, p521 := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P384()), ecKey(t, elliptic.P521())
	leading := "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
	for name, test := range map[string]struct {
		key       string
		public    crypto.PublicKey
		algorithm string // asked for
		keyID     string
		want      string // alg
		wantID    any    // kid
	}{
		"RSA, PKCS#8":       {pkcs8(t, rsaKey()), rsaKey().Public(), "", "", "RS256", nil},
		"RSA, PKCS#1":       {pkcs1(t, rsaKey()), rsaKey().Public(), "RS512", "k", "RS512", "k"},
		"RSA, PSS":          {pkcs8(t, rsaKey()), rsaKey().Public(), "PS256", "", "PS256", nil},
		"RSA, PSS 512":      {pkcs8(t, rsaKey()), rsaKey().Public(), "PS512", "", "PS512", nil},
		"P-256, PKCS#8":     {pkcs8(t, p256), p256.Public(), "", "", "ES256", nil},
		"P-256, SEC1":       {leading + sec1(t, p256), p256.Public(), "ES256", "", "ES256", nil},
		"P-384":             {sec1(t, p384), p384.Public(), "", "", "ES384", nil},
		"P-521":             {pkcs8(t, p521), p521.Public(), "", "", "ES512", nil},
		"Ed25519":           {pkcs8(t, edKey()), edKey().Public(), "", "k", "EdDSA", "k"},
		"JWK":               {asJWK(t, jose.JSONWebKey{Key: p256, KeyID: "own"}), p256.Public(), "", "", "ES256", "own"},
		"JWK, other kid":    {asJWK(t, jose.JSONWebKey{Key: edKey(), KeyID: "own"}), edKey().Public(), "", "k", "EdDSA", "k"},
		"JWK, alg":          {asJWK(t, jose.JSONWebKey{Key: rsaKey(), Algorithm: "PS384"}), rsaKey().Public(), "", "", "PS384", nil},
		"JWK, other alg":    {asJWK(t, jose.JSONWebKey{Key: rsaKey(), Algorithm: "PS384"}), rsaKey().Public(), "RS256", "", "RS256", nil},
		"JWK, unknown alg":  {asJWK(t, jose.JSONWebKey{Key: rsaKey(), Algorithm: "RSA-OAEP"}), rsaKey().Public(), "", "", "RS256", nil},
		"with space around": {"\n " + pkcs8(t, edKey()) + "\n\n", edKey().Public(), "", "", "EdDSA", nil},
	} {
		t.Run(name, func(t *testing.T) {
			key, err := ParseSigningKey(NewSecret(test.key))
			if err != nil {
				t.Fatal(err)
			}
			signed, err := key.Sign(Assertion{ClientID: "gateway", Audience: "https://a/token", KeyID: test.keyID, Algorithm: test.algorithm})
			if err != nil {
				t.Fatal(err)
			}
			header, claims := verify(t, signed, test.public)
			if header["alg"] != test.want || header["kid"] != test.wantID || header["typ"] != "JWT" {
				t.Errorf("header %v", header)
			}
			if claims["iss"] != "gateway" || claims["sub"] != "gateway" || claims["aud"] != "https://a/token" {
				t.Errorf("claims %v", claims)
			}
			if err := CheckAssertion(signed); err != nil {
				t.Error(err)
			}
			wiretest.NoLeak(t, key, "PRIVATE", rsaKey().D.String())
		})
	}
}

// An assertion is valid for a minute from when it is made, and each is another.
func TestSignTimes(t *testing.T) {
	key, err := ParseSigningKey(NewSecret(pkcs8(t, edKey())))
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ids := make(map[any]bool)
		for range 3 {
			signed, err := key.Sign(Assertion{ClientID: "gateway", Audience: "a"})
			if err != nil {
				t.Fatal(err)
			}
			_, claims := verify(t, signed, edKey().Public())
			now := float64(time.Now().Unix())
			if claims["iat"] != now || claims["exp"] != now+60 {
				t.Errorf("at %v: %v", now, claims)
			}
			if id, ok := claims["jti"].(string); !ok || len(id) < 20 || ids[id] {
				t.Errorf("jti %v", claims["jti"])
			}
			ids[claims["jti"]] = true
			time.Sleep(time.Hour)
		}
	})
}

func TestParseSigningKeyErrors(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	public := inPEM(t, "PUBLIC KEY", x509.MarshalPKIXPublicKey, any(rsaKey().Public()))
	p224 := ecKey(t, elliptic.P224())
	whole := pkcs8(t, rsaKey())
	for name, test := range map[string]struct{ key, want string }{
		"empty":             {"", "neither"},
		"something else":    {"s3cret-text", "neither"},
		"half":              {whole[:len(whole)/2], "neither"},
		"damaged":           {strings.Replace(whole, whole[100:104], "AAAA", 1), "damaged"},
		"encrypted":         {"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n", "encrypted"},
		"encrypted, PKCS#1": {"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMAA=\n-----END RSA PRIVATE KEY-----\n", "encrypted"},
		"public":            {public, "public key"},
		"certificate":       {"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", "certificate"},
		"OpenSSH":           {"-----BEGIN OPENSSH PRIVATE KEY-----\nMAA=\n-----END OPENSSH PRIVATE KEY-----\n", "OpenSSH"},
		"short RSA":         {pkcs1(t, short), "1024 bits"},
		"short RSA, JWK":    {asJWK(t, jose.JSONWebKey{Key: short}), "1024 bits"},
		"P-224":             {pkcs8(t, p224), "another curve"},
		"X25519": {"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VuBCIEIHcHbQpzGKV9PBbBclGyZkXfTC+H68CZKrF3+6UduSwq\n-----END PRIVATE KEY-----\n",
			"cannot sign"},
		"public JWK":    {asJWK(t, jose.JSONWebKey{Key: rsaKey().Public()}), "public key"},
		"symmetric JWK": {`{"kty":"oct","k":"czNjcmV0"}`, "JWK of an RSA"},
		"unknown JWK":   {`{"kty":"OKP","crv":"s3cret"}`, "JWK of an RSA"},
		"half a JWK":    {`{"kty":"OKP","d":"s3cret`, "not valid JSON"},
		"set of JWKs":   {`{"keys":[]}`, "set of keys"},
	} {
		_, err := ParseSigningKey(NewSecret(test.key))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
			continue
		}
		wiretest.NoLeak(t, err, "s3cret", whole[100:120])
	}
}

func TestSigningAlgorithmOfAnotherKey(t *testing.T) {
	key, err := ParseSigningKey(NewSecret(pkcs8(t, edKey())))
	if err != nil {
		t.Fatal(err)
	}
	for _, algorithm := range []string{"RS256", "ES256", "HS256", "none"} {
		if _, err := key.Sign(Assertion{Algorithm: algorithm}); err == nil || !strings.Contains(err.Error(), "an Ed25519 key, which signs with EdDSA") {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
}

// jwt returns an assertion with claims, which nobody has signed.
func jwt(claims string) string {
	encode := base64.RawURLEncoding.EncodeToString
	return encode([]byte(`{"alg":"RS256"}`)) + "." + encode([]byte(claims)) + "." + encode([]byte("signature"))
}

func TestCheckAssertion(t *testing.T) {
	for assertion, want := range map[string]string{
		jwt(`{"exp":1}`):        "",
		jwt(`{}`):               "",
		jwt(`{"exp":"s3cret"}`): "",
		"":                      "3 parts",
		"s3cret":                "3 parts",
		"a.b":                   "3 parts",
		"a.b.c.d.e":             "3 parts",
		jwt(`{}`) + "\n":        "base64url",
		jwt(`{}`)[:20]:          "parts",
		strings.TrimRight(jwt(`{}`), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"): "empty",
		jwt(`["s3cret"]`):            "JSON object",
		jwt(`{"exp":`):               "JSON object",
		"czNjcmV0." + jwt("{}")[21:]: "JSON object",
		"!." + jwt("{}")[21:]:        "base64url",
	} {
		err := CheckAssertion(NewSecret(assertion))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", assertion, err, want)
		}
		wiretest.NoLeak(t, err, "s3cret")
	}
}
