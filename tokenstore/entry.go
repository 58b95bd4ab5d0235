package tokenstore

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// format is the format of entries that this version writes. An entry of a later
// one is as good as none: an instance that knows it uses the storage as well, while
// a fleet is upgraded.
const format = 1

const (
	// maxEntry is the size of the largest entry that is parsed, in bytes.
	maxEntry = 256 << 10

	// maxAhead is how far the clock of whoever stored an entry may be ahead of ours.
	maxAhead = 5 * time.Second
)

// entry is what is stored of a token. All but the token itself can be read by
// anybody, so that those that nobody needs any more can be told.
type entry struct {
	Format  int       `json:"format"`
	Expires time.Time `json:"expires"`
	Nonce   []byte    `json:"nonce"`
	Sealed  []byte    `json:"sealed"` // content, by AES-256-GCM
}

// content is what is sealed.
type content struct {
	Token         string    `json:"token"`
	Issued        time.Time `json:"issued"`
	Expires       time.Time `json:"expires"`
	ExpiryAssumed bool      `json:"expiry_assumed,omitempty"`
	Scopes        []string  `json:"scopes"` // null: as asked for
	Revoked       bool      `json:"revoked,omitempty"`
}

var (
	errNewer    = errors.New("is of a later version")
	errDamaged  = errors.New("is damaged")
	errSealed   = errors.New("is sealed with another secret, belongs to another credential, or is damaged")
	errClock    = errors.New("is from the future: the clock of the instance that stored it, or of this one, is wrong")
	errNoSecret = errors.New("the credential has no secret that a token could be sealed with")
)

// seal returns t as it is stored under key.
func seal(key string, secrets []tokenprovider.Secret, t tokensource.SharedToken) ([]byte, error) {
	e := entry{Format: format, Expires: t.Expires.UTC().Truncate(time.Second)}
	aead, err := e.cipher(key, secrets)
	if err != nil {
		return nil, err
	}
	plain, err := json.Marshal(content{
		Token:         t.Value.Reveal(),
		Issued:        t.Issued.UTC(),
		Expires:       t.Expires.UTC(),
		ExpiryAssumed: t.ExpiryAssumed,
		Scopes:        t.Scopes,
		Revoked:       t.Revoked,
	})
	if err != nil {
		return nil, err
	}
	e.Nonce = make([]byte, aead.NonceSize())
	_, _ = rand.Read(e.Nonce) // never fails
	e.Sealed = aead.Seal(nil, e.Nonce, plain, e.bound())
	return json.Marshal(e)
}

// parse returns the entry that value is.
func parse(value []byte) (*entry, error) {
	var e entry
	if len(value) > maxEntry {
		return nil, errDamaged
	}
	if err := json.Unmarshal(value, &e); err != nil {
		// a later format may look otherwise in all but this
		var later struct {
			Format int `json:"format"`
		}
		if json.Unmarshal(value, &later) == nil && later.Format > format {
			return nil, errNewer
		}
		return nil, errDamaged
	}
	switch {
	case e.Format > format:
		return nil, errNewer
	case e.Format != format:
		return nil, errDamaged
	}
	return &e, nil
}

// openAny is open with the alternative that value is sealed with: while a secret is
// rotated, instances seal with one value or another.
func openAny(key string, alternatives [][]tokenprovider.Secret, value []byte, now time.Time) (t *tokensource.SharedToken, err error) {
	err = errNoSecret
	for i, secrets := range alternatives {
		t, err = open(key, secrets, value, now)
		if err == nil {
			t.Alternative = i
		}
		if !errors.Is(err, errSealed) {
			break
		}
	}
	return t, err
}

// open returns the token that was stored under key, with its times by our clock.
func open(key string, secrets []tokenprovider.Secret, value []byte, now time.Time) (*tokensource.SharedToken, error) {
	e, err := parse(value)
	if err != nil {
		return nil, err
	}
	aead, err := e.cipher(key, secrets)
	if err != nil {
		return nil, err
	}
	if len(e.Nonce) != aead.NonceSize() {
		return nil, errDamaged
	}
	plain, err := aead.Open(nil, e.Nonce, e.Sealed, e.bound())
	if err != nil {
		return nil, errSealed // not err: it says no more
	}
	var c content
	if json.Unmarshal(plain, &c) != nil || c.Token == "" || !c.Issued.Before(c.Expires) {
		return nil, errDamaged
	}
	age := now.Sub(c.Issued) // by the wall clock, since Issued has no other
	if age < -maxAhead {
		return nil, errClock
	}
	issued := now.Add(-max(age, 0))
	return &tokensource.SharedToken{
		Token: tokenprovider.Token{
			Value:         tokenprovider.NewSecret(c.Token),
			Issued:        issued,
			Expires:       issued.Add(c.Expires.Sub(c.Issued)),
			ExpiryAssumed: c.ExpiryAssumed,
			Scopes:        c.Scopes,
		},
		Revoked: c.Revoked,
	}, nil
}

// cipher returns what seals the entry under key. Its own key is derived from the
// secrets, for this key and format: under another, the entry cannot be opened.
func (e *entry) cipher(key string, secrets []tokenprovider.Secret) (cipher.AEAD, error) {
	if !tokenprovider.HasLasting(secrets) {
		return nil, errNoSecret
	}
	var material []byte
	for _, secret := range secrets {
		if secret.Reveal() == "" {
			continue
		}
		digest := sha256.Sum256([]byte(secret.Reveal())) // fixed width: no two lists look alike
		material = append(material, digest[:]...)
	}
	derived, err := hkdf.Key(sha256.New, material, nil, fmt.Sprintf("caddy-egress shared token, format %d, %s", e.Format, key), 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// bound is what else the sealed token is bound to.
func (e *entry) bound() []byte { return []byte(e.Expires.UTC().Format(time.RFC3339Nano)) }
