package egress

import (
	"crypto/sha256"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

// sent are the tokens that this process has sent to APIs, whatever the config,
// until they expire: a request that comes with one of them has been here before.
var sent tokensSent

// tokensSent is a set of tokens, by their SHA-256, so that looking one up tells
// nobody how near a guess was.
type tokensSent struct {
	mu      sync.RWMutex
	expires map[[sha256.Size]byte]time.Time
	pruneAt int // how many there are when those that have expired are removed next

	loops atomic.Int64 // requests that have been here before
}

// add notes that t is about to be sent.
func (s *tokensSent) add(t *tokensource.Token) {
	key := sha256.Sum256([]byte(t.Value.Reveal()))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expires == nil {
		s.expires = make(map[[sha256.Size]byte]time.Time)
	}
	if len(s.expires) >= s.pruneAt {
		now := time.Now()
		for key, expires := range s.expires {
			if now.After(expires) {
				delete(s.expires, key)
			}
		}
		s.pruneAt = 2*len(s.expires) + 64
	}
	s.expires[key] = t.Expires
}

// has reports whether the value of an Authorization header holds one of them.
func (s *tokensSent) has(authorization string) bool {
	scheme, token, _ := strings.Cut(authorization, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return false
	}
	key := sha256.Sum256([]byte(token))
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.expires[key]
	return ok
}

// checkLoop refuses a request that the gateway itself has sent, on this route or
// on another: something leads the API's address back here.
func (s *tokensSent) checkLoop(repl *caddy.Replacer) *refusal {
	if repl == nil {
		return nil
	}
	authorization, _ := repl.GetString("http.request.header.Authorization")
	if authorization == "" || !s.has(authorization) {
		return nil
	}
	s.loops.Add(1)
	return loopRefusal()
}

// cameBack reports whether resp is the answer of checkLoop, of which there were
// so many before the request was sent.
func (s *tokensSent) cameBack(resp *http.Response, before int64) bool {
	return resp.StatusCode == http.StatusLoopDetected && s.loops.Load() != before &&
		strings.HasPrefix(resp.Header.Get("Proxy-Status"), proxyName+"; error="+proxyLoopDetected+";")
}
