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
// it while one replaces another. Once they are stopped, it holds nothing that
// belongs to a config but what it takes to revoke the token.
type State struct {
	// current is the token in use, or nil. The hot path reads nothing else.
	current atomic.Pointer[Token]

	mu          sync.Mutex
	request     *tokenRequest // the token request under way, or nil
	failure     *failure      // of the last token request; nil once one succeeded
	rejected    *Token        // taken out of use by a 401, put back if no other can be had
	refreshHold refreshHold   // bounds the token requests that 401 answers cause
	budget      budget        // bounds all token requests
	lastUse     time.Time     // about when a request last wanted a token
	lifetime    time.Duration // of the last token; 0 before the first
	requests    int64         // token requests so far
	failures    int64         // of them failed
	started     []*Source     // those that keep the token fresh: more than one during a reload
	revoke      revokeFunc    // as the last of them had it, once all are stopped

	// replayed: a request that was answered 401 succeeded with a fresh token
	// since the last 401. The hot path sets it, so it needs no lock.
	replayed atomic.Bool
}

// NewState returns the state of a credential that has no token yet.
func NewState() *State {
	return &State{budget: budget{left: budgetSize}}
}

// revokeFunc revokes a token; nil: it is left to expire.
type revokeFunc func(context.Context, tokenprovider.Secret) error

// Retire revokes the token, if the source that was started last has
// RevokeOnStop: once no token request is under way and no request carries the
// token any more, or when ctx ends. Requests that still drain can go on using
// the state: if they need another token, they get one.
func (st *State) Retire(ctx context.Context) error {
	st.mu.Lock()
	revoke := st.revoke
	if n := len(st.started); n > 0 {
		revoke = st.started[n-1].revoke()
	}
	for revoke != nil && st.request != nil && ctx.Err() == nil {
		done := st.request.done
		st.mu.Unlock()
		select {
		case <-done:
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
	st.mu.Unlock()

	if err := t.waitUnused(ctx); err != nil {
		return err
	}
	return revoke(ctx, t.Value)
}

// revoke returns what is to be done with the token once the state is retired.
func (s *Source) revoke() revokeFunc {
	revoker, ok := s.opts.Provider.(tokenprovider.Revoker)
	if !ok || !s.opts.RevokeOnStop {
		return nil
	}
	client := s.opts.Client // and no more: the state outlives the config
	return func(ctx context.Context, token tokenprovider.Secret) error {
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

// String keeps a token out of whatever prints a state.
func (st *State) String() string { return "tokensource.State" }

// GoString implements fmt.GoStringer, for the same reason.
func (st *State) GoString() string { return st.String() }

// Token is a token in use.
type Token struct {
	tokenprovider.Token

	header []string // the value of Authorization
	jitter float64  // of the refresh, in [0,1)

	after401 bool // a 401 caused the token request
	held     bool // it was answered 401 all the same; mu of the state is held

	used   atomic.Bool  // a request has carried it
	inUse  atomic.Int64 // how many requests carry it, if the source has RevokeOnStop
	worked atomic.Bool  // something other than 401 came back for it
	streak atomic.Int32 // 401 answers in a row
}

// Authorization returns the header's value, to be set as it is. It is shared:
// the caller must not change it.
func (t *Token) Authorization() []string { return t.header }

// waitUnused waits until no request carries t. It polls: no client waits for
// it, and a signal would cost every request.
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
