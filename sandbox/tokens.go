package sandbox

// This file keeps the access tokens that were issued.

import (
	"crypto/rand"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"
)

// token is an access token and what it is good for.
type token struct {
	value, project  string // the project is Voucherify's, and of v2 only
	scopes          []string
	audience        []string // Understory's
	issued, expires time.Time
}

func (t token) live() bool { return time.Now().Before(t.expires) }

// values are the placeholders of answers about t. Times are rounded up: a token
// that works must not look expired.
func (t token) values() values {
	const almost = time.Second - time.Nanosecond
	return values{
		"token":      t.value,
		"scope":      strings.Join(t.scopes, " "),
		"audience":   append([]string{}, t.audience...), // [] rather than null
		"issued_at":  t.issued.Unix(),
		"expires_at": t.expires.Add(almost).Unix(),
		"expires_in": int64((time.Until(t.expires) + almost) / time.Second),
	}
}

// tokens are those that were issued, were not revoked and may still be alive.
type tokens struct {
	mu      sync.Mutex
	byValue map[string]token
}

// issue makes t live for lifetime. It returns false where t's project has limit
// live tokens already; a limit of 0 is none.
func (ts *tokens) issue(t token, lifetime time.Duration, limit int) (token, bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.sweep()
	ofProject := 0
	for _, other := range ts.byValue {
		if other.project == t.project {
			ofProject++
		}
	}
	if limit > 0 && ofProject >= limit {
		return token{}, false
	}
	t.issued = time.Now()
	t.expires = t.issued.Add(lifetime)
	ts.byValue[t.value] = t
	return t, true
}

// find returns the live token of that value.
func (ts *tokens) find(value string) (token, bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t, ok := ts.byValue[value]
	return t, ok && t.live()
}

// bearer returns the live token that r carries. Two Authorization values are
// as good as none: it is not defined which of them counts.
func (ts *tokens) bearer(r *http.Request) (token, bool) {
	scheme, value, _ := strings.Cut(strings.Join(r.Header.Values("Authorization"), ", "), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return token{}, false
	}
	return ts.find(strings.TrimLeft(value, " "))
}

// revoke ends the life of a token and reports whether it had one.
func (ts *tokens) revoke(value string) bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t, ok := ts.byValue[value]
	delete(ts.byValue, value)
	return ok && t.live()
}

func (ts *tokens) revokeAll() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	clear(ts.byValue)
}

func (ts *tokens) count() int {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.sweep()
	return len(ts.byValue)
}

// sweep forgets expired tokens. The caller holds the lock.
func (ts *tokens) sweep() {
	maps.DeleteFunc(ts.byValue, func(_ string, t token) bool { return !t.live() })
}

// alphanumerics returns n random letters and digits.
func alphanumerics(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return lettersAndDigits(b)
}

// lettersAndDigits returns one for each of b, which it overwrites. The slight
// bias does not matter in a sandbox.
func lettersAndDigits(b []byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	for i := range b {
		b[i] = alphabet[int(b[i])%len(alphabet)]
	}
	return string(b)
}
