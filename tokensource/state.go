package tokensource

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// State is what outlives a config: the token of one credential, the token
// request under way, and what failed before. Sources of several configs share
// it while one replaces another. It holds nothing that belongs to a config.
type State struct {
	// current is the token in use, or nil. The hot path reads nothing else.
	current atomic.Pointer[Token]

	mu          sync.Mutex
	request     *tokenRequest     // the token request under way, or nil
	failure     *failure          // of the last token request; nil once one succeeded
	rejected    *Token            // taken out of use by a 401, put back if no other can be had
	refreshHold refreshHold       // keeps 401 from asking for tokens again and again
	budget      budget            // keeps anything from doing so
	lastUse     time.Time         // about when a request last wanted a token
	lifetime    time.Duration     // of the last token; 0 before the first
	requests    int64             // token requests so far
	failures    int64             // of them failed
	changed     chan struct{}     // closed and replaced whenever any of this changes
	retirements []*revokeOnRetire // of those that keep the token fresh, and of the last that did
}

// NewState returns the state of a credential that has no token yet.
func NewState() *State {
	return &State{budget: budget{left: budgetSize}, changed: make(chan struct{})}
}

// Retire revokes the token, where a source was started that asks for it: once
// no token request is under way and no request carries the token any more, or
// when ctx ends. Requests that still drain can go on using the state; what
// they need another token for, they get.
func (st *State) Retire(ctx context.Context) error {
	st.mu.Lock()
	var revoke func(context.Context, tokenprovider.Secret) error
	if n := len(st.retirements); n > 0 {
		revoke = st.retirements[n-1].revoke
	}
	for revoke != nil && st.request != nil && ctx.Err() == nil {
		changed := st.changed
		st.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		st.mu.Lock()
	}
	t := st.current.Load()
	if revoke == nil || !t.live() {
		st.mu.Unlock()
		return nil
	}
	st.current.Store(nil)
	st.wake()
	st.mu.Unlock()

	if err := t.waitUnused(ctx); err != nil {
		return err
	}
	return revoke(ctx, t.Value)
}

// revokeOnRetire is what a source wants done with the token in the end.
type revokeOnRetire struct {
	revoke func(context.Context, tokenprovider.Secret) error // nil: it is left to expire
}

// Current returns the live token, or nil.
func (st *State) Current() *Token {
	if t := st.current.Load(); t.live() {
		return t
	}
	return nil
}

// String keeps a token out of whatever prints a state.
func (st *State) String() string { return "tokensource.State" }

// GoString implements fmt.GoStringer, for the same reason.
func (st *State) GoString() string { return st.String() }

// wake tells everyone who waits for a change to look again. mu is held.
func (st *State) wake() {
	close(st.changed)
	st.changed = make(chan struct{})
}

// Token is a token in use.
type Token struct {
	tokenprovider.Token

	header []string // the value of Authorization
	jitter float64  // of the refresh, in [0,1)

	// after401 says that a 401 made us ask for this token.
	after401 bool
	// held says that the API rejected it all the same. mu of the state is held.
	held bool

	used   atomic.Bool  // a request has carried it
	inUse  atomic.Int64 // by how many requests it is at the moment, where that matters
	worked atomic.Bool  // something but 401 came back for it
	streak atomic.Int32 // 401 in a row
}

// Authorization returns the header's value, to be set as it is. It is shared:
// the caller must not change it.
func (t *Token) Authorization() []string { return t.header }

// waitUnused waits until no request carries t. It looks now and again: nobody
// waits for it, and a signal would cost every request.
func (t *Token) waitUnused(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for t.inUse.Load() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("requests still carry the token")
		}
	}
	return nil
}

func (t *Token) live() bool { return t != nil && time.Until(t.Expires) > 0 }

func newToken(issued *tokenprovider.Token, jitter float64, after401 bool) *Token {
	t := &Token{Token: *issued, jitter: jitter, after401: after401}
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

// Fingerprint tells one set of secrets from another without revealing either:
// an HMAC under a key of this process.
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
