package egress

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

const (
	// unknownFor is how long a tenant is remembered that cannot be set up, so that
	// strangers do not have files read with each request.
	unknownFor = 5 * time.Second

	// maxUnknown is how many of them are remembered; with more, all are forgotten.
	maxUnknown = 4096

	// maxSettingUp is how many tenants are set up at a time: each may read files,
	// and a file can hang.
	maxSettingUp = 64
)

// errTenantUnknown says that what a tenant's placeholders stand for is not there.
var errTenantUnknown = errors.New("the tenant has no credential here")

// tenants are the tenants of one credential that are live, which means that their
// tokens are kept fresh: those that were used last. One is set up when a request
// first names it, and costs no goroutine.
type tenants struct {
	app        *App
	family     *activeCredential // what they have in common
	credential Credential        // with {tenant} in it
	scopes     []string          // with {tenant} in them
	files      []string          // values with {tenant} in them that name files
	base       string            // name of the credential, whatever the scopes
	lapsed     *lapsedTenants
	reserves   atomic.Bool   // a grant reserves a part of their quotas
	logged     logLimiter    // log lines about those that cannot be set up
	warned     sync.Map      // a *logLimiter for each warning about those that are
	settingUp  chan struct{} // has a value for each that is being set up

	mu         sync.Mutex
	live       map[string]*list.Element // by name; each is a *tenant
	recent     *list.List               // the same, those used last first
	pending    map[string]*tenant       // they are being set up
	failed     map[string]*tenant       // they could not be set up
	refreshing bool                     // tokens are kept fresh: from Start to Stop
	closed     bool                     // what is pooled is given up
}

// tenant is one of them. What follows done is set once that is closed.
type tenant struct {
	name       string
	done       chan struct{}
	credential *activeCredential
	kept       []func() error // give up what outlives it: its token, and what the API has said of its rate limit
	rest       []func() error // give up what else is pooled
	err        error          // it could not be set up
	forget     time.Time      // until then; mu is held
}

func newTenants(app *App, family *activeCredential, credential Credential, scopes []string, lapsed *lapsedTenants) *tenants {
	return &tenants{
		app: app, family: family, credential: credential, scopes: scopes, files: credential.tenantValues(), lapsed: lapsed,
		settingUp: make(chan struct{}, maxSettingUp),
		live:      make(map[string]*list.Element),
		recent:    list.New(),
		pending:   make(map[string]*tenant),
		failed:    make(map[string]*tenant),
	}
}

// get returns the credential of the tenant of that name, which is set up if it is
// not live. The error is errTenantUnknown, a *tokensource.Error, or that of ctx.
func (ts *tenants) get(ctx context.Context, name string) (*activeCredential, error) {
	t := ts.find(name)
	if t == nil {
		select {
		case ts.settingUp <- struct{}{}:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for tenant %s: %w", name, context.Cause(ctx))
		}
		t = ts.findOrSetUp(name)
		<-ts.settingUp
	}
	select {
	case <-t.done:
		return t.credential, t.err
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for tenant %s: %w", name, context.Cause(ctx))
	}
}

// find returns the tenant if it is live, is being set up, or could not be set up a
// moment ago, and else nil.
func (ts *tenants) find(name string) *tenant {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.known(name)
}

// known is find. mu is held.
func (ts *tenants) known(name string) *tenant {
	if element := ts.live[name]; element != nil {
		ts.recent.MoveToFront(element)
		return element.Value.(*tenant)
	}
	if t := ts.pending[name]; t != nil {
		return t
	}
	if t := ts.failed[name]; t != nil && tokensource.Until(t.forget, time.Now()) > 0 {
		return t
	}
	return nil
}

// findOrSetUp is find, and sets up a tenant that is not found.
func (ts *tenants) findOrSetUp(name string) *tenant {
	ts.mu.Lock()
	t := ts.known(name)
	if t != nil {
		ts.mu.Unlock()
		return t
	}
	t = &tenant{name: name, done: make(chan struct{})}
	ts.pending[name] = t
	ts.mu.Unlock()
	ts.setUp(t)
	return t
}

// peek returns the credential of a live tenant, or nil, and is not a use of it.
func (ts *tenants) peek(name string) *activeCredential {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if element := ts.live[name]; element != nil {
		return element.Value.(*tenant).credential
	}
	return nil
}

// all returns the credentials of the live tenants, by name.
func (ts *tenants) all() []*activeCredential {
	ts.mu.Lock()
	var all []*activeCredential
	for element := ts.recent.Front(); element != nil; element = element.Next() {
		all = append(all, element.Value.(*tenant).credential)
	}
	ts.mu.Unlock() // which requests wait for
	slices.SortFunc(all, func(a, b *activeCredential) int { return strings.Compare(a.tenant, b.tenant) })
	return all
}

// setUp sets t up, and has it live if that succeeds.
func (ts *tenants) setUp(t *tenant) {
	defer close(t.done)
	end := option.ReadInGroup("tenants of "+ts.base, valuesForTenant(ts.files, t.name))
	err := ts.activate(t)
	if err != nil {
		end()
	} else {
		t.rest = append(t.rest, func() error { end(); return nil })
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	delete(ts.pending, t.name)
	if err != nil {
		ts.remember(t, err)
		return
	}
	delete(ts.failed, t.name)
	if ts.closed { // a request of a config that has ended
		go ts.release(t)
		return
	}
	ts.live[t.name] = ts.recent.PushFront(t)
	if ts.refreshing {
		t.credential.source.Start()
	}
	for most := ts.credential.maxTenants(); ts.recent.Len() > most; {
		ts.lapse(ts.recent.Back())
	}
}

// nameOf returns the name of t's credential.
func (ts *tenants) nameOf(t *tenant) string { return ts.family.name() + "/" + t.name }

// activate gives t its provider and its token source. The token that it had when
// it lapsed, or in the config before, is in use again.
func (ts *tenants) activate(t *tenant) (err error) {
	defer func() { // others wait for t, and the next request would panic as well
		if p := recover(); p != nil {
			err = errors.New("internal error, see the log")
			ts.app.logger.Error("setting up a tenant panicked", zap.String("credential", ts.nameOf(t)), zap.Stack("stack"))
		}
	}()
	credential := ts.credential.forTenant(t.name)
	provider, err := credential.setUp(ts.app.ctx)
	if err != nil {
		return err
	}
	if scopes := valuesForTenant(ts.scopes, t.name); !sameSet(scopes, provider.Grant().Scopes) {
		if provider, err = provider.WithScopes(scopes); err != nil {
			return err
		}
	}
	fingerprints, err := tokensource.Fingerprints(provider)
	if err != nil {
		return err
	}
	c := &activeCredential{tenant: t.name, tenants: ts, options: credential, store: ts.family.store, metrics: ts.family.metrics, tokenURL: ts.family.tokenURL}
	name := ts.nameOf(t)
	c.identity, c.fingerprints = c.identityOf(provider.Grant()), fingerprints
	if t.kept, t.rest, err = ts.app.activate(c, name, provider); err != nil {
		return err
	}
	if ts.reserves.Load() { // else another grant may, of the same quota
		c.reserve()
	}
	warn := func(message string, fields ...zap.Field) { ts.warnOfTenant(name, message, fields...) }
	warnOfFiles(warn, provider)
	t.credential = c
	return nil
}

// warnEvery bounds how often one warning is logged about tenants: those that are set up
// by turns, more than may be live, would have it logged with each request.
const warnEvery = time.Minute

// warnOfTenant logs a warning about the tenant whose credential has that name.
func (ts *tenants) warnOfTenant(name, message string, fields ...zap.Field) {
	limiter, _ := ts.warned.LoadOrStore(message, new(logLimiter))
	if leftOut, ok := limiter.(*logLimiter).oneIn(warnEvery, time.Now()); ok {
		ts.app.logger.Warn(message, append(fields, zap.String("credential", name), zap.Int64("left_out", leftOut))...)
	}
}

// remember has t, which could not be set up for the reason err, refused for a
// while. mu is held.
func (ts *tenants) remember(t *tenant, err error) {
	now := time.Now()
	t.forget = now.Add(unknownFor)
	if errors.Is(err, option.ErrNoValue) || errors.Is(err, fs.ErrNotExist) { // the latter of token_cert or token_ca
		t.err = fmt.Errorf("%w: %w", errTenantUnknown, err)
	} else {
		name := ts.nameOf(t)
		t.err = &tokensource.Error{Credential: name, RetryAfter: unknownFor, Err: err}
		if leftOut, ok := ts.logged.next(now); ok {
			ts.app.logger.Error("cannot set up a tenant", zap.String("credential", name), zap.Error(err), zap.Int64("left_out", leftOut))
		}
	}
	if len(ts.failed) >= maxUnknown {
		maps.DeleteFunc(ts.failed, func(_ string, t *tenant) bool { return tokensource.Until(t.forget, now) <= 0 })
	}
	if len(ts.failed) >= maxUnknown {
		clear(ts.failed)
	}
	ts.failed[t.name] = t
}

// forget has the tenant set up anew by the next request that names it, if it still
// has the credential c.
func (ts *tenants) forget(name string, c *activeCredential) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if element := ts.live[name]; element != nil && element.Value.(*tenant).credential == c {
		ts.lapse(element)
	}
}

// lapse ends a live tenant. Its token is kept until it expires. mu is held.
func (ts *tenants) lapse(element *list.Element) {
	t := element.Value.(*tenant)
	ts.recent.Remove(element)
	delete(ts.live, t.name)
	go func() { // it may have to tell others
		t.credential.source.Stop()
		ts.release(t)
	}()
}

// release leaves what outlives t to those that have lapsed, and gives up the rest.
func (ts *tenants) release(t *tenant) {
	ts.lapsed.keep(t.credential.identity, lapsedTenant{t.credential.state, t.credential.rateLimit, t.kept})
	for _, giveUp := range t.rest {
		_ = giveUp()
	}
}

// start has the tokens of live tenants kept fresh.
func (ts *tenants) start() {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.refreshing = true
	for element := ts.recent.Front(); element != nil; element = element.Next() {
		element.Value.(*tenant).credential.source.Start()
	}
}

// stop ends that.
func (ts *tenants) stop() {
	ts.mu.Lock()
	ts.refreshing = false
	ts.mu.Unlock()
	var wg sync.WaitGroup
	for _, c := range ts.all() {
		wg.Go(c.source.Stop)
	}
	wg.Wait()
}

// close leaves what is pooled of all tenants to those that have lapsed: the next
// config may use it.
func (ts *tenants) close() {
	ts.mu.Lock()
	ts.closed = true
	var live []*tenant
	for element := ts.recent.Front(); element != nil; element = element.Next() {
		live = append(live, element.Value.(*tenant))
	}
	ts.recent.Init()
	clear(ts.live)
	ts.mu.Unlock()
	for _, t := range live {
		ts.release(t)
	}
}
