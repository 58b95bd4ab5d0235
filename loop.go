package egress

import (
	"crypto/sha256"
	"net/http"
	"slices"
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

	// headers are those in which tokens are sent, Authorization aside, as the
	// replacer calls them. They are not many; nil: there are none.
	headers atomic.Pointer[[]string]
}

// lookIn has tokens looked for in the header of that name, too.
func (s *tokensSent) lookIn(name string) {
	if name == "" || name == "Authorization" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var headers []string
	if before := s.headers.Load(); before != nil {
		headers = slices.Clone(*before)
	}
	if key := "http.request.header." + name; !slices.Contains(headers, key) {
		headers = append(headers, key)
		s.headers.Store(&headers)
	}
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

// has reports whether the value of a header is one of them, with or without
// something before it.
func (s *tokensSent) has(value string) bool {
	token := value[strings.LastIndexByte(value, ' ')+1:]
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
	back := s.isIn("http.request.header.Authorization", repl)
	if headers := s.headers.Load(); headers != nil && !back {
		back = slices.ContainsFunc(*headers, func(header string) bool { return s.isIn(header, repl) })
	}
	if !back {
		return nil
	}
	s.loops.Add(1)
	return loopRefusal()
}

// isIn reports whether one of them is in a header of the request of repl.
func (s *tokensSent) isIn(header string, repl *caddy.Replacer) bool {
	value, _ := repl.GetString(header)
	return value != "" && s.has(value)
}

// cameBack reports whether resp is the answer of checkLoop, of which there were
// so many before the request was sent.
func (s *tokensSent) cameBack(resp *http.Response, before int64) bool {
	return resp.StatusCode == http.StatusLoopDetected && s.loops.Load() != before &&
		strings.HasPrefix(resp.Header.Get("Proxy-Status"), proxyName+"; error="+proxyLoopDetected+";")
}
