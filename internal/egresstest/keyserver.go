package egresstest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// KeyServer is an authorization server whose clients have keys that come and go, and
// an API for its tokens.
type KeyServer struct {
	*httptest.Server

	mu       sync.Mutex
	lifetime time.Duration
	keys     map[string]bool // id and secret, and whether the key is active
	tokens   map[string]issuedToken
	issued   int
	refused  []string // keys, by id and secret
}

// issuedToken is a token of an [KeyServer].
type issuedToken struct {
	key     string
	expires time.Time
}

// NewKeyServer starts one whose tokens have a lifetime in whole seconds.
func NewKeyServer(t testing.TB, lifetime time.Duration) *KeyServer {
	t.Helper()
	a := &KeyServer{lifetime: lifetime, keys: make(map[string]bool), tokens: make(map[string]issuedToken)}
	a.Server = httptest.NewServer(a)
	t.Cleanup(a.Close)
	return a
}

// Activate has a key accepted.
func (a *KeyServer) Activate(id, secret string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.keys[id+" "+secret] = true
}

// Delete has a key no longer accepted, and its tokens neither, unless they live on.
func (a *KeyServer) Delete(id, secret string, tokensLiveOn bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.keys, id+" "+secret)
	for value, token := range a.tokens {
		if token.key == id+" "+secret && !tokensLiveOn {
			delete(a.tokens, value)
		}
	}
}

// Refused returns how often a key was refused, by its identifier and secret.
func (a *KeyServer) Refused(id, secret string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, key := range a.refused {
		if key == id+" "+secret {
			n++
		}
	}
	return n
}

// Issued returns how many tokens there were so far.
func (a *KeyServer) Issued() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.issued
}

// ServeHTTP implements http.Handler.
func (a *KeyServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	a.mu.Lock()
	defer a.mu.Unlock()
	if strings.HasSuffix(r.URL.Path, "/oauth/token") {
		a.issue(w, r)
		return
	}
	token, known := a.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")]
	if !known || time.Now().After(token.expires) {
		w.WriteHeader(http.StatusUnauthorized)
	}
	fmt.Fprint(w, "{}")
}

// issue answers a token request, wherever its credential is. mu is held.
func (a *KeyServer) issue(w http.ResponseWriter, r *http.Request) {
	id, secret := r.PostFormValue("client_id"), r.PostFormValue("client_secret")
	if id == "" {
		id, secret = r.Header.Get("X-App-Id"), r.Header.Get("X-App-Token")
	}
	if id == "" {
		id, secret, _ = r.BasicAuth()
		id, _ = url.QueryUnescape(id) // RFC 6749 §2.3.1
		secret, _ = url.QueryUnescape(secret)
	}
	if key := id + " " + secret; !a.keys[key] {
		a.refused = append(a.refused, key)
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprintf(w, `{"error":"invalid_client","error_description":%q}`, Marker)
		return
	}
	a.issued++
	value := Token(a.issued)
	a.tokens[value] = issuedToken{key: id + " " + secret, expires: time.Now().Add(a.lifetime)}
	fmt.Fprintf(w, `{"access_token":%q,"token_type":"bearer","expires_in":%d}`, value, int(a.lifetime.Seconds()))
}
