package egress

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

func testProof(tb testing.TB, key string) *keyProof {
	tb.Helper()
	proof, err := newKeyProof(key)
	if err != nil {
		tb.Fatal(err)
	}
	return proof
}

// verifies reports whether a token proves to be of name by one of keys.
func verifies(tb testing.TB, text, name string, now time.Time, keys ...string) bool {
	tb.Helper()
	token, ok := readLocalToken([]byte(text))
	if !ok || string(token.name()) != name {
		return false
	}
	var proofs []*keyProof
	for _, key := range keys {
		proofs = append(proofs, testProof(tb, key))
	}
	return token.verify(proofs, now)
}

func TestLocalToken(t *testing.T) {
	const key, other = "key-0123456789abcdefghij", "key-0123456789abcdefghiJ"
	now := time.Now()
	text := newLocalToken("web-shop", testProof(t, key), now.Add(time.Hour))
	if strings.Contains(text, "web-shop") || strings.Contains(text, key) {
		t.Errorf("%s shows more than it should", text)
	}
	for name, test := range map[string]struct {
		now  time.Time
		keys []string
		want bool
	}{
		"its key":               {now, []string{key}, true},
		"the key before":        {now, []string{other, key}, true},
		"another key":           {now, []string{other}, false},
		"no key":                {now, nil, false},
		"just before its end":   {now.Add(time.Hour - 2*time.Second), []string{key}, true},
		"after its end":         {now.Add(time.Hour), []string{key}, false},
		"long after its end":    {now.AddDate(10, 0, 0), []string{key}, false},
		"with a clock too slow": {now.Add(-time.Hour), []string{key}, true},
	} {
		if got := verifies(t, text, "web-shop", test.now, test.keys...); got != test.want {
			t.Errorf("%s: %t, want %t", name, got, test.want)
		}
	}
	raw, _ := base64.RawURLEncoding.DecodeString(text[len(localTokenPrefix):])
	for i := range raw {
		for bit := range 8 {
			raw[i] ^= 1 << bit
			tampered := localTokenPrefix + base64.RawURLEncoding.EncodeToString(raw)
			if token, ok := readLocalToken([]byte(tampered)); ok && token.verify([]*keyProof{testProof(t, key)}, now) {
				t.Fatalf("bit %d of byte %d does not count", bit, i)
			}
			raw[i] ^= 1 << bit
		}
	}
}

func TestRandomLocalTokenProvesNothing(t *testing.T) {
	a, b := randomLocalToken(), randomLocalToken()
	if a == b {
		t.Error("two tokens are equal")
	}
	if _, ok := readLocalToken([]byte(a)); ok {
		t.Error("a random token can be read")
	}
}

func FuzzReadLocalToken(f *testing.F) {
	const key = "key-0123456789abcdefghij"
	good := newLocalToken("web-shop", testProof(f, key), time.Now().Add(time.Hour))
	f.Add(good)
	f.Add(localTokenPrefix)
	f.Add(good + "A")
	f.Add(good[:len(good)-1])
	f.Add(localTokenPrefix + strings.Repeat("A", 400))
	proofs := []*keyProof{testProof(f, key)}
	f.Fuzz(func(t *testing.T, text string) {
		if !strings.HasPrefix(text, localTokenPrefix) {
			return // nothing else is read
		}
		if token, ok := readLocalToken([]byte(text)); ok && token.verify(proofs, time.Now()) && text != good {
			t.Errorf("%q is accepted", text)
		}
	})
}
