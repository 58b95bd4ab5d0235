package egress

import (
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

// sweepEvery is how often expired tokens of lapsed tenants are removed.
const sweepEvery = 30 * time.Second

// lapsedTenants keep the tokens of tenants that are not live until they expire, so
// that a tenant which returns costs no token request, nor does a reload. They also
// keep a token request under way, and a failure while it is remembered: where more
// tenants are used at a time than can be live, each return would cost another. They
// outlive a config.
type lapsedTenants struct {
	mu    sync.Mutex
	kept  map[string]lapsedTenant // by identity
	timer *time.Timer             // of the next sweep; nil: nothing is kept
	gone  bool                    // no config uses it
}

// lapsedTenant is what is kept of a tenant, and what gives it up.
type lapsedTenant struct {
	state     *tokensource.State
	rateLimit *rateLimit
	giveUp    []func() error
}

func newLapsedTenants() *lapsedTenants {
	return &lapsedTenants{kept: make(map[string]lapsedTenant)}
}

// keep takes over what is left of a tenant, and gives it up once nobody needs it.
func (l *lapsedTenants) keep(identity string, t lapsedTenant) {
	before, replaced := l.put(identity, t)
	if replaced {
		before.end()
	}
}

// put puts t in the place of before, which may be t itself.
func (l *lapsedTenants) put(identity string, t lapsedTenant) (before lapsedTenant, replaced bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.gone || t.isIdle() {
		return t, true
	}
	before, replaced = l.kept[identity]
	l.kept[identity] = t
	if l.timer == nil {
		l.timer = time.AfterFunc(sweepEvery, l.sweep)
	}
	return before, replaced
}

// sweep gives up what nobody needs any more.
func (l *lapsedTenants) sweep() {
	var idle []lapsedTenant
	defer func() {
		for _, t := range idle {
			t.end()
		}
	}()
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := make(map[string]lapsedTenant) // anew, since a map does not shrink
	for identity, t := range l.kept {
		if t.isIdle() {
			idle = append(idle, t)
		} else {
			kept[identity] = t
		}
	}
	l.kept = kept
	if l.timer = nil; len(l.kept) > 0 {
		l.timer = time.AfterFunc(sweepEvery, l.sweep)
	}
}

// isIdle reports whether nothing of t matters any more.
func (t lapsedTenant) isIdle() bool { return t.state.Idle() && t.rateLimit.limitedFor(0) == 0 }

// end gives t up.
func (t lapsedTenant) end() {
	for _, giveUp := range t.giveUp {
		_ = giveUp()
	}
}

// Destruct implements caddy.Destructor: it gives up all.
func (l *lapsedTenants) Destruct() error {
	l.mu.Lock()
	kept := l.kept
	l.kept, l.gone = nil, true
	if l.timer != nil {
		l.timer.Stop()
	}
	l.mu.Unlock()

	// at the same time, since each may wait for its token to be revoked
	var wg sync.WaitGroup
	for _, t := range kept {
		wg.Go(t.end)
	}
	wg.Wait()
	return nil
}

// lapsed are the lapsed tenants, by name and identity of their credential.
var lapsed = caddy.NewUsagePool()

// acquireLapsed returns the lapsed tenants of a credential, and what gives them up.
func acquireLapsed(name, identity string) (*lapsedTenants, func() error) {
	key := name + " " + identity
	pooled, _ := lapsed.LoadOrStore(key, newLapsedTenants())
	return pooled.(*lapsedTenants), func() error {
		_, err := lapsed.Delete(key)
		return err
	}
}

// Interface guard
var _ caddy.Destructor = (*lapsedTenants)(nil)
