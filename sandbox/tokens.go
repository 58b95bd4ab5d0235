package sandbox

import (
	"crypto/rand"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// token is an access token and what it is good for.
type token struct {
	value    string
	scopes   []string
	audience []string // Understory
	project  string   // Voucherify v2
	issued   time.Time
	expires  time.Time
}

func (t token) live() bool { return time.Now().Before(t.expires) }

// has tells whether t was granted one of scopes.
func (t token) has(scopes ...string) bool {
	return slices.ContainsFunc(scopes, func(s string) bool { return slices.Contains(t.scopes, s) })
}

func (t token) scope() string { return strings.Join(t.scopes, " ") }

// expiresIn is what remains of t's life in whole seconds. Rounded up, as
// expiresAt is: a token that works must not look dead.
func (t token) expiresIn() int64 { return ceilSeconds(time.Until(t.expires)) }

func (t token) expiresAt() int64 {
	return t.expires.Add(time.Second - time.Nanosecond).Unix()
}

func ceilSeconds(d time.Duration) int64 {
	return int64((d + time.Second - time.Nanosecond) / time.Second)
}

// tokens are those that were issued, were not revoked and may still be alive.
// The zero value is ready to use.
type tokens struct {
	mu      sync.Mutex
	byValue map[string]token
}

// issue makes t live for lifetime. It refuses, by returning false, where
// t's project has limit live tokens already; a limit of 0 is none.
func (ts *tokens) issue(t token, lifetime time.Duration, limit int) (token, bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.sweep()
	if limit > 0 && ts.of(t.project) >= limit {
		return token{}, false
	}
	t.issued = time.Now()
	t.expires = t.issued.Add(lifetime)
	if ts.byValue == nil {
		ts.byValue = make(map[string]token)
	}
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
// as good as none: which of them counts is anybody's guess.
func (ts *tokens) bearer(r *http.Request) (token, bool) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return token{}, false
	}
	scheme, value, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return token{}, false
	}
	return ts.find(strings.TrimLeft(value, " "))
}

// revoke ends the life of a token and tells whether it had one.
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

// of counts the tokens of a project. The caller holds the lock.
func (ts *tokens) of(project string) int {
	n := 0
	for _, t := range ts.byValue {
		if t.project == project {
			n++
		}
	}
	return n
}

// sweep forgets expired tokens. The caller holds the lock.
func (ts *tokens) sweep() {
	for value, t := range ts.byValue {
		if !t.live() {
			delete(ts.byValue, value)
		}
	}
}

// alphanumerics returns n random letters and digits.
func alphanumerics(n int) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	for i := range b {
		b[i] = alphabet[int(b[i])%len(alphabet)] // the slight bias does not matter in a sandbox
	}
	return string(b)
}
