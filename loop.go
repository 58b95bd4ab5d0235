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

	"github.com/caddy-egress/caddy-egress/tokenprovider"
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
	pruned  time.Time // when those that have expired were removed last
	pruneAt int       // how many there are when that is done at the latest

	loops atomic.Int64 // requests that have been here before

	// places are those in which tokens are sent otherwise than as Bearer in
	// Authorization. They are not many; nil: none.
	places atomic.Pointer[[]tokenPlace]
}

// tokenPlace is a header with a token, as the replacer calls it, and what stands
// before the token.
type tokenPlace struct{ header, prefix string }

// lookIn has tokens looked for where api wants them, too.
func (s *tokensSent) lookIn(api tokenprovider.API) {
	if api.TokenHeader == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var places []tokenPlace
	if before := s.places.Load(); before != nil {
		places = slices.Clone(*before)
	}
	if place := (tokenPlace{"http.request.header." + api.TokenHeader, api.TokenPrefix}); !slices.Contains(places, place) {
		places = append(places, place)
		s.places.Store(&places)
	}
}

// add notes that t is about to be sent.
func (s *tokensSent) add(t *tokensource.Token) {
	key := sha256.Sum256([]byte(t.Value.Reveal()))
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); len(s.expires) >= s.pruneAt || now.Sub(s.pruned) >= pruneEvery {
		s.prune(now)
	}
	s.expires[key] = t.Expires
}

// pruneEvery is how long tokens that have expired are kept, while others are sent.
const pruneEvery = time.Minute

// prune removes the tokens that have expired. s.mu is held.
func (s *tokensSent) prune(now time.Time) {
	left := make(map[[sha256.Size]byte]time.Time) // anew, since a map does not shrink
	for key, expires := range s.expires {
		if !now.After(expires) {
			left[key] = expires
		}
	}
	s.expires, s.pruned, s.pruneAt = left, now, 2*len(left)+64
}

// has reports whether token is one of them.
func (s *tokensSent) has(token string) bool {
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
	scheme, token, _ := strings.Cut(authorization, " ")
	back := strings.EqualFold(scheme, "Bearer") && s.has(token)
	if places := s.places.Load(); places != nil && !back {
		back = slices.ContainsFunc(*places, func(p tokenPlace) bool {
			value, _ := repl.GetString(p.header)
			token, ok := strings.CutPrefix(value, p.prefix)
			return ok && token != "" && s.has(token)
		})
	}
	if !back {
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
