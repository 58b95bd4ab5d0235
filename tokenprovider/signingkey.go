package tokenprovider

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"
)

// minRSABits is the length of the shortest RSA key that may be used (RFC 7518 §3.3).
const minRSABits = 2048

// rsaAlgorithms are those that an RSA key can sign with, the default first.
var rsaAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}

// SigningAlgorithms are all algorithms of signing keys.
var SigningAlgorithms = append(slices.Clone(rsaAlgorithms), "ES256", "ES384", "ES512", "EdDSA")

// SigningKey is a private key that signs client assertions.
type SigningKey struct {
	private    func() crypto.Signer // a function, which prints as nothing of the key
	id         string               // kid of a JWK; empty: none
	kind       string               // for people
	algorithms []string             // that it can sign with, the default first
}

// ParseSigningKey reads a private key: PEM of PKCS#8, PKCS#1 or SEC1, or a JWK. The
// error quotes nothing of it.
func ParseSigningKey(key Secret) (*SigningKey, error) {
	text := strings.TrimSpace(key.Reveal())
	if strings.HasPrefix(text, "{") {
		return parseJWK([]byte(text))
	}
	private, err := parsePEM([]byte(text))
	if err != nil {
		return nil, err
	}
	return newSigningKey(private)
}

// ID returns the key's own identifier: the kid of a JWK, or nothing.
func (k *SigningKey) ID() string { return k.id }

// Algorithm returns the algorithm called name, or that of the key if name is empty.
// One that the key cannot sign with is an error.
func (k *SigningKey) Algorithm(name string) (string, error) {
	switch {
	case name == "":
		return k.algorithms[0], nil
	case !slices.Contains(k.algorithms, name):
		return "", fmt.Errorf("%s is not for %s, which signs with %s", name, k.kind, strings.Join(k.algorithms, ", "))
	}
	return name, nil
}

func newSigningKey(private any) (*SigningKey, error) {
	k := new(SigningKey)
	switch key := private.(type) {
	case *rsa.PrivateKey:
		if bits := key.N.BitLen(); bits < minRSABits {
			return nil, fmt.Errorf("the RSA key has %d bits, and needs %d at least", bits, minRSABits)
		}
		k.kind, k.algorithms = "an RSA key", rsaAlgorithms
	case *ecdsa.PrivateKey:
		algorithms := map[elliptic.Curve]string{elliptic.P256(): "ES256", elliptic.P384(): "ES384", elliptic.P521(): "ES512"}
		algorithm, ok := algorithms[key.Curve]
		if !ok {
			return nil, errors.New("the EC key has another curve than P-256, P-384 and P-521")
		}
		k.kind, k.algorithms = "an EC key of curve "+key.Curve.Params().Name, []string{algorithm}
	case ed25519.PrivateKey:
		k.kind, k.algorithms = "an Ed25519 key", []string{"EdDSA"}
	default:
		return nil, errors.New("is a key that cannot sign; RSA, EC and Ed25519 keys can")
	}
	signer := private.(crypto.Signer)
	k.private = func() crypto.Signer { return signer }
	return k, nil
}

// parsePEM returns the first private key in text.
func parsePEM(text []byte) (any, error) {
	var others []string
	for rest := text; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		var key any
		var err error
		switch {
		case block.Type == "ENCRYPTED PRIVATE KEY", strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED"):
			return nil, errors.New("the private key is encrypted; decrypt it, for example with openssl pkey")
		case block.Type == "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case block.Type == "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case block.Type == "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default: // EC PARAMETERS, or a certificate
			others = append(others, block.Type)
			continue
		}
		if err != nil {
			return nil, errors.New("the private key in the PEM is damaged, or of another kind than RSA, EC and Ed25519")
		}
		return key, nil
	}
	switch {
	case slices.Contains(others, "PUBLIC KEY"), slices.Contains(others, "RSA PUBLIC KEY"):
		return nil, errors.New("is a public key; the private key signs")
	case slices.Contains(others, "CERTIFICATE"):
		return nil, errors.New("is a certificate; the private key of it signs")
	case slices.Contains(others, "OPENSSH PRIVATE KEY"):
		return nil, errors.New("is a key of OpenSSH; convert it, for example with ssh-keygen -p -m PKCS8")
	}
	return nil, errors.New("is neither a private key in PEM (PKCS#8, PKCS#1 or SEC1) nor a JWK, or only a part of one")
}

// parseJWK reads a private key as JSON (RFC 7517).
func parseJWK(text []byte) (*SigningKey, error) {
	fields, ok := parseObject(text)
	if !ok {
		return nil, errors.New("begins like a JWK, and is not valid JSON")
	}
	if _, ok := fields["keys"]; ok {
		return nil, errors.New("is a set of keys; give one JWK")
	}
	var jwk jose.JSONWebKey
	if jwk.UnmarshalJSON(text) != nil {
		return nil, errors.New("is not a JWK of an RSA, EC or Ed25519 key")
	}
	if jwk.IsPublic() {
		return nil, errors.New("is a public key; the private key signs")
	}
	if !jwk.Valid() {
		return nil, errors.New("is not a JWK of an RSA, EC or Ed25519 key")
	}
	if jwk.Use != "" && jwk.Use != "sig" {
		return nil, errors.New("is a JWK for another use than signatures")
	}
	k, err := newSigningKey(jwk.Key)
	if err != nil {
		return nil, err
	}
	k.id = jwk.KeyID
	if slices.Contains(k.algorithms, jwk.Algorithm) { // what the key is for
		k.algorithms = append([]string{jwk.Algorithm}, k.algorithms...)
		k.algorithms = slices.Compact(k.algorithms)
	}
	return k, nil
}
