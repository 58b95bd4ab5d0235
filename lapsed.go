package egress

import (
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

// sweepEvery is how often it is looked for tokens of lapsed tenants that have
// expired.
const sweepEvery = 30 * time.Second

// lapsedTenants keep the tokens of tenants that are not live until they expire, so
// that a tenant which returns costs no token request, nor does a reload. So they do
// a token request under way, and a failure while it is remembered: where more tenants
// are used at a time than can be live, each return would cost another. It outlives a
// config.
type lapsedTenants struct {
	mu    sync.Mutex
	kept  map[string]lapsedTenant // by identity
	swept time.Time
	gone  bool // no config uses it
}

// lapsedTenant is the token of a tenant, and what gives it up.
type lapsedTenant struct {
	state  *tokensource.State
	giveUp func() error
}

func newLapsedTenants() *lapsedTenants {
	return &lapsedTenants{kept: make(map[string]lapsedTenant), swept: time.Now()}
}

// keep takes over the token of a tenant, and gives it up once it has expired.
func (l *lapsedTenants) keep(identity string, t lapsedTenant) {
	l.mu.Lock()
	expired := l.sweep(time.Now())
	if l.gone || t.state.Idle() {
		expired = append(expired, t)
	} else {
		if before, ok := l.kept[identity]; ok {
			expired = append(expired, before)
		}
		l.kept[identity] = t
	}
	l.mu.Unlock()
	for _, t := range expired {
		_ = t.giveUp()
	}
}

// sweep returns those whose token has expired, from time to time. mu is held.
func (l *lapsedTenants) sweep(now time.Time) (expired []lapsedTenant) {
	if now.Sub(l.swept) < sweepEvery {
		return nil
	}
	l.swept = now
	for identity, t := range l.kept {
		if t.state.Idle() {
			expired = append(expired, t)
			delete(l.kept, identity)
		}
	}
	return expired
}

// Destruct implements caddy.Destructor: it gives up all.
func (l *lapsedTenants) Destruct() error {
	l.mu.Lock()
	kept := l.kept
	l.kept, l.gone = nil, true
	l.mu.Unlock()

	// at the same time, since each may wait for its token to be revoked
	var wg sync.WaitGroup
	for _, t := range kept {
		wg.Go(func() { _ = t.giveUp() })
	}
	wg.Wait()
	return nil
}

// lapsed are the lapsed tenants, by the name of their credential.
var lapsed = caddy.NewUsagePool()

// acquireLapsed returns the lapsed tenants of a credential, and what gives them up.
func acquireLapsed(name string) (*lapsedTenants, func() error) {
	pooled, _ := lapsed.LoadOrStore(name, newLapsedTenants())
	return pooled.(*lapsedTenants), func() error {
		_, err := lapsed.Delete(name)
		return err
	}
}

// Interface guard
var _ caddy.Destructor = (*lapsedTenants)(nil)
