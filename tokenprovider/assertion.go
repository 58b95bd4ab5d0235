package tokenprovider

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// assertionType is that of client assertions that are a JWT (RFC 7523 §2.2).
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

	// assertionLifetime is how long an assertion of ours is valid. It is used at once.
	assertionLifetime = time.Minute
)

// Assertion is what a client assertion of private_key_jwt says (RFC 7523 §3).
type Assertion struct {
	ClientID string // its issuer and its subject

	// Audience is one string, which is what all servers read: that of the token
	// endpoint, or whatever else the server wants to be called.
	Audience string

	KeyID     string // kid; empty: that of the key, if it has one
	Algorithm string // empty: that of the key
}

// Sign returns a as a signed JWT that is valid for a minute from now on, and is not
// to be sent twice.
func (k *SigningKey) Sign(a Assertion) (Secret, error) {
	algorithm, err := k.Algorithm(a.Algorithm)
	if err != nil {
		return Secret{}, err
	}
	keyID := a.KeyID
	if keyID == "" {
		keyID = k.id
	}
	options := new(jose.SignerOptions).WithType("JWT")
	if keyID != "" {
		options.WithHeader("kid", keyID)
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(algorithm), Key: k.private()}, options)
	if err != nil {
		return Secret{}, errors.New("the key cannot sign") // without what go-jose says of it
	}
	now := time.Now()
	claims, err := json.Marshal(struct {
		Issuer   string `json:"iss"`
		Subject  string `json:"sub"`
		Audience string `json:"aud"`
		ID       string `json:"jti"`
		IssuedAt int64  `json:"iat"`
		Expires  int64  `json:"exp"`
	}{a.ClientID, a.ClientID, a.Audience, rand.Text(), now.Unix(), now.Add(assertionLifetime).Unix()})
	if err != nil {
		return Secret{}, err
	}
	signed, err := signer.Sign(claims)
	if err != nil {
		return Secret{}, errors.New("the key cannot sign")
	}
	assertion, err := signed.CompactSerialize()
	return NewSecret(assertion), err
}

// CheckAssertion returns an error unless assertion has the form of a signed JWT:
// what is in the file may be something else, or half of it. Neither the signature
// nor the claims are judged, which is for the authorization server.
func CheckAssertion(assertion Secret) error {
	_, err := parseAssertion(assertion.Reveal())
	return err
}

// assertionTimes are when an assertion is valid, by its own claims; zero where it
// does not say.
type assertionTimes struct{ notBefore, expires time.Time }

// parseAssertion reads when an assertion is valid.
func parseAssertion(assertion string) (assertionTimes, error) {
	var times assertionTimes
	parts := strings.Split(assertion, ".")
	if len(parts) != 3 {
		return times, errors.New("is not a signed JWT, which has 3 parts separated by dots")
	}
	for _, part := range parts {
		if _, err := base64.RawURLEncoding.Strict().DecodeString(part); err != nil || part == "" || strings.ContainsAny(part, "\r\n") {
			return times, errors.New("is not a signed JWT: a part of it is empty or not base64url")
		}
	}
	var claims map[string]json.RawMessage
	for _, part := range parts[:2] {
		decoded, _ := base64.RawURLEncoding.DecodeString(part)
		var ok bool
		if claims, ok = parseObject(decoded); !ok {
			return times, errors.New("is not a signed JWT: its header or its claims are not a JSON object")
		}
	}
	times.expires = numericDate(claims["exp"])
	times.notBefore = numericDate(claims["iat"])
	if t := numericDate(claims["nbf"]); t.After(times.notBefore) {
		times.notBefore = t
	}
	return times, nil
}

// numericDate reads a time of a JWT (RFC 7519 §2); zero if it is none.
func numericDate(raw json.RawMessage) time.Time {
	seconds, ok := parseNumber(string(raw))
	if !ok || seconds <= 0 || seconds > math.MaxInt32*1000 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}
