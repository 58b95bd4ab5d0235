package egress

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"time"
)

// A local token is what egress_token hands out: it says who calls, and proves it
// as the key of the caller does. It is signed under a key that is derived from
// that key, so every instance with the same callers accepts it, and none does once
// the caller no longer has that key.
//
//	egress_<base64url of: version, expiry, name, HMAC-SHA256 of these>
//
// Its form is not for clients to know, and may change.
const (
	localTokenPrefix   = "egress_"
	localTokenVersion  = 1
	localTokenLifetime = time.Hour

	localTokenHeader = 1 + 8 // version, and expiry in Unix seconds
	maxLocalToken    = localTokenHeader + maxCredentialName + sha256.Size
)

// newLocalToken returns a token that says who calls until expires.
func newLocalToken(name string, proof *keyProof, expires time.Time) string {
	token := make([]byte, 0, maxLocalToken)
	token = append(token, localTokenVersion)
	token = binary.BigEndian.AppendUint64(token, uint64(expires.Unix())) //nolint:gosec // after 1970
	token = append(token, name...)
	token = append(token, localTokenMAC(token, proof)...)
	return localTokenPrefix + base64.RawURLEncoding.EncodeToString(token)
}

// randomLocalToken returns a token that proves nothing, for clients of a gateway
// that knows no callers, or that knows them by something else.
func randomLocalToken() string {
	random := make([]byte, sha256.Size)
	_, _ = rand.Read(random) // never fails
	return localTokenPrefix + base64.RawURLEncoding.EncodeToString(random)
}

func localTokenMAC(signed []byte, proof *keyProof) []byte {
	mac := hmac.New(sha256.New, proof.tokenKey[:])
	mac.Write(signed)
	return mac.Sum(nil)
}

// localToken is a local token that was read and not yet verified.
type localToken struct {
	signed, mac []byte
}

// readLocalToken reads text, which begins with localTokenPrefix.
func readLocalToken(text []byte) (token localToken, ok bool) {
	text = text[len(localTokenPrefix):]
	if base64.RawURLEncoding.DecodedLen(len(text)) > maxLocalToken {
		return token, false
	}
	raw := make([]byte, maxLocalToken)
	n, err := base64.RawURLEncoding.Strict().Decode(raw, text)
	if err != nil || n <= localTokenHeader+sha256.Size || raw[0] != localTokenVersion {
		return token, false
	}
	return localToken{raw[:n-sha256.Size], raw[n-sha256.Size : n]}, true
}

// name returns who calls, by the token's own word.
func (t localToken) name() []byte { return t.signed[localTokenHeader:] }

// verify reports whether the token was signed with one of the keys that proofs are
// of, and lives.
func (t localToken) verify(proofs []*keyProof, now time.Time) bool {
	expires := int64(binary.BigEndian.Uint64(t.signed[1:localTokenHeader])) //nolint:gosec // as it was written
	if now.Unix() >= expires {
		return false
	}
	for _, proof := range proofs {
		if subtle.ConstantTimeCompare(t.mac, localTokenMAC(t.signed, proof)) == 1 {
			return true
		}
	}
	return false
}
