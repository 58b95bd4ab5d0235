package tokensource

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"math"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// State is what outlives a config: the token of one credential, the token
// request under way, and what failed before. Sources of several configs share
// it while one replaces another. Once they are stopped, it holds nothing that
// belongs to a config but what it takes to revoke the token.
type State struct {
	// current is the token in use, or nil. The hot path reads nothing else.
	current atomic.Pointer[Token]

	mu          sync.Mutex
	request     *tokenRequest          // the token request under way, or nil
	failure     *failure               // of the last token request; nil once one succeeded
	rejections  rejections             // bound the token requests that 401 answers cause
	budget      bucket                 // bounds all others
	fingerprint [32]byte               // of the value of the secret that the last token was obtained with
	inUse       int                    // its number, as the config has it that was loaded last; 0: it is not one of those
	told        secretInUse            // what was logged of that
	refusals    map[[32]byte]time.Time // when values of the secret were refused, by fingerprint
	renew       *Source                // has other secrets than those: a token request is due
	lastUse     time.Time              // about when a request last wanted a token
	lifetime    time.Duration          // of the last token; 0 before the first
	tokens      int64                  // how many there were so far
	requests    int64                  // token requests so far
	failures    int64                  // of them failed
	started     []*Source              // by config: more than one during a reload; the last keeps the token fresh
	revoke      revokeFunc             // as the last of them had it, once all are stopped
	left        *Token                 // the token then, if others may use it and none does

	// Where tokens are shared:
	looking bool              // the stored token is being looked at, or was a moment ago
	revoked [sha256.Size]byte // digest of the token that was revoked last
	untold  *Token            // others have not been told of it
	telling chan struct{}     // has a value while they are

	reading map[int]int // how many reads of each value of the secret are under way, by its number
}

// NewState returns the state of a credential that has no token yet.
func NewState() *State {
	return &State{budget: newBucket(budgetSize, budgetEvery), rejections: newRejections(), telling: make(chan struct{}, 1)}
}

// revokeFunc revokes a token; nil: it is left to expire.
type revokeFunc func(context.Context, tokenprovider.Secret) error

// Retire revokes the token, if the source that was started last has
// RevokeOnStop: once no token request is under way and no request carries the
// token any more, or after patience all the same. Requests that still drain can
// go on using the state: if they need another token, they get one.
func (st *State) Retire(patience, timeout time.Duration) error {
	waiting, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	st.mu.Lock()
	revoke := st.revoke
	if s := st.newest(nil); s != nil {
		revoke = s.revoke()
	}
	for revoke != nil && st.request != nil && waiting.Err() == nil {
		done := st.request.done
		st.mu.Unlock()
		select {
		case <-done:
		case <-waiting.Done():
		}
		st.mu.Lock()
	}
	t := st.current.Load()
	if revoke == nil || !t.live() || t.place != "" && t != st.left { // others may use it
		st.mu.Unlock()
		return nil
	}
	st.current.Store(nil)
	st.mu.Unlock()

	t.retire(waiting)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return revoke(ctx, t.Value)
}

// revoke returns what is to be done with the token once the state is retired.
func (s *Source) revoke() revokeFunc {
	if _, ok := s.opts.Provider.(tokenprovider.Revoker); !ok || !s.opts.RevokeOnStop {
		return nil
	}
	st, client, providers := s.state, s.opts.Client, s.providers // and no more: the state outlives the config
	return func(ctx context.Context, token tokenprovider.Secret) error {
		return st.withSecret(providers, revoking(ctx, client, token))
	}
}

// revoking returns what revokes token at a provider.
func revoking(ctx context.Context, client *http.Client, token tokenprovider.Secret) func(tokenprovider.Provider) error {
	return func(p tokenprovider.Provider) error {
		revoker, ok := p.(tokenprovider.Revoker)
		if !ok {
			return ErrNotSupported
		}
		return revoker.Revoke(ctx, client, token)
	}
}

// Current returns the live token, or nil.
func (st *State) Current() *Token {
	if t := st.current.Load(); t.live() {
		return t
	}
	return nil
}

// Idle reports whether nothing is lost with st: there is no live token, no token
// request is under way, and the next one need not wait for its time.
func (st *State) Idle() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return !st.current.Load().live() && st.request == nil &&
		(st.failure == nil || Until(st.failure.until, time.Now()) <= 0)
}

// String keeps a token out of whatever prints a state.
func (st *State) String() string { return "tokensource.State" }

// GoString implements fmt.GoStringer, for the same reason.
func (st *State) GoString() string { return st.String() }

// Token is a token in use.
type Token struct {
	tokenprovider.Token

	number int64    // those that came later have greater ones
	header []string // the value of Authorization
	jitter float64  // of the refresh, in [0,1)

	fingerprint [32]byte // of the value of the secret that it was obtained with

	shared bool          // another instance has obtained it
	place  string        // where others may find it; empty: they cannot. mu of the state is held
	told   chan struct{} // closed once it is stored there, and others know that this instance uses it; set with place

	used  atomic.Bool  // a request has carried it, lately where tokens are shared
	inUse atomic.Int64 // how many requests carry it, if the source has RevokeOnStop; below zero once it is retired
}

// Authorization returns the header's value, to be set as it is. It is shared:
// the caller must not change it.
func (t *Token) Authorization() []string { return t.header }

// retired is added to inUse of a token that no further request may carry.
const retired = math.MinInt64 / 2

// retire waits until no request carries t, or ctx ends, and has none carry it
// from then on. It polls: no client waits for it, and a signal would cost every
// request.
func (t *Token) retire(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !t.inUse.CompareAndSwap(0, retired) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.inUse.Add(retired)
			return
		}
	}
}

func (t *Token) live() bool { return t != nil && Until(t.Expires, time.Now()) > 0 }

func newToken(issued *tokenprovider.Token, number int64, jitter float64) *Token {
	t := &Token{Token: *issued, number: number, jitter: jitter}
	// always "Bearer": servers that say "bearer" mean the same, and some APIs
	// compare case-sensitively. Capacity 1: an append cannot reach the next user.
	t.header = []string{"Bearer " + issued.Value.Reveal()}[:1:1]
	return t
}

// fingerprintKey makes fingerprints useless outside this process.
var fingerprintKey = sync.OnceValue(func() []byte {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	return key
})

// Fingerprint returns the same for the same secrets only, and reveals none of
// them: an HMAC under a key of this process.
func Fingerprint(secrets []tokenprovider.Secret) [32]byte {
	mac := hmac.New(sha256.New, fingerprintKey())
	for _, s := range secrets {
		digest := sha256.Sum256([]byte(s.Reveal())) // fixed width: no two lists look alike
		mac.Write(digest[:])
	}
	return [32]byte(mac.Sum(nil))
}

// narrower returns the scopes that were asked for and not granted.
func narrower(asked, granted []string) []string {
	if granted == nil { // not said means as asked, RFC 6749 §5.1
		return nil
	}
	var missing []string
	for _, scope := range asked {
		if !slices.Contains(granted, scope) {
			missing = append(missing, scope)
		}
	}
	return missing
}
