// Package egress makes Caddy an authenticating egress gateway: applications
// call it with no credentials, and it calls an API with an OAuth 2.0 access
// token that it obtained by the client credentials grant (RFC 6749 §4.4) and
// keeps fresh.
//
// Every authenticated request leaves through one type, [Transport]. It asks a
// token source (package tokensource) for the token, which asks a provider
// (package tokenprovider) when it needs another. [App] holds the token sources
// of one config.
package egress

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"

	"github.com/caddy-egress/caddy-egress/internal/replaybody"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
	"github.com/caddy-egress/caddy-egress/tokenstore"

	// every API is one of these
	_ "github.com/caddy-egress/caddy-egress/tokenprovider/oauth2"
	_ "github.com/caddy-egress/caddy-egress/tokenprovider/understory"
	_ "github.com/caddy-egress/caddy-egress/tokenprovider/voucherify"
)

func init() {
	caddy.RegisterModule(new(App))
	caddy.RegisterModule(Transport{})
	httpcaddyfile.RegisterGlobalOption("egress", parseGlobalOption)
	httpcaddyfile.RegisterDirective("egress", parseDirective)
	httpcaddyfile.RegisterDirectiveOrder("egress", httpcaddyfile.Before, "reverse_proxy")
}

// App holds the credentials of a config and keeps one live token for each that
// is in use. It needs no configuration where routes hold their credentials inline.
type App struct {
	// Credentials by name, for routes to refer to. A name is made of letters,
	// digits, dots, underscores and hyphens, and is not the name of a provider.
	// A token is requested only if a route uses the credential.
	Credentials map[string]*Credential `json:"credentials,omitempty"`

	// Applications that the gateway knows, by name, for grants of routes to refer
	// to. A name is made as that of a credential.
	Callers map[string]*Caller `json:"callers,omitempty"`

	// Has tokens shared with other instances of the gateway, and with its next runs.
	// Default: each run of each instance has tokens of its own.
	ShareTokens *ShareTokens `json:"share_tokens,omitempty"`

	// Bound on the memory of all request bodies kept for a replay, in bytes; one
	// client, by its address or IPv6 /64, has a quarter of it at most. A request
	// whose body does not fit is sent all the same and not replayed. A body counts
	// as what it takes: chunks of 1, 2, 4, 8 and 16 KiB, and then 32 KiB each.
	// Default: `67108864` (64 MiB).
	ReplayMemory *int64 `json:"replay_memory,omitempty"`

	// Defaults for the options of every route.
	RouteOptions

	ctx       caddy.Context
	logger    *zap.Logger
	events    *caddyevents.App
	memory    *replaybody.Memory
	refresher *tokensource.Refresher
	callers   *callers
	store     *tokenstore.Store // nil: tokens are not shared
	named     map[string]tokenprovider.Provider
	started   chan struct{} // closed by Start
	warned    sync.Map      // what has been warned of

	stopCleaning context.CancelFunc // of store; nil if it does not run

	mu         sync.Mutex
	inUse      map[string]*activeCredential // by name
	byIdentity map[string]*activeCredential // one of each identity
	acquired   []func() error               // give up what is pooled

	clientsMu sync.Mutex
	clients   map[string]*http.Client // of token endpoints, by the authorities that they trust
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "egress",
		New: func() caddy.Module { return new(App) },
	}
}

const defaultReplayMemory = 64 << 20

// Provision sets up the providers of the named credentials. It makes no token
// request: those begin with Start, so that validating a config makes none.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx = ctx
	a.logger = ctx.Logger()
	a.named = make(map[string]tokenprovider.Provider)
	a.inUse = make(map[string]*activeCredential)
	a.byIdentity = make(map[string]*activeCredential)
	a.clients = make(map[string]*http.Client)
	a.refresher = tokensource.NewRefresher()
	a.started = make(chan struct{})
	a.memory = replaybody.NewMemory(defaultReplayMemory)
	if a.ReplayMemory != nil {
		if *a.ReplayMemory < 0 {
			return errors.New("replay_memory: is below zero")
		}
		a.memory = replaybody.NewMemory(*a.ReplayMemory)
	}
	if err := a.RouteOptions.validate(); err != nil {
		return err
	}
	if err := registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	if a.ShareTokens != nil {
		store, err := a.ShareTokens.provision(ctx)
		if err != nil {
			return err
		}
		a.store = store
	}
	events, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("getting events app: %w", err)
	}
	a.events = events.(*caddyevents.App)
	if a.callers, err = newCallers(a.Callers, a.logger); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(a.Callers)) {
		for _, key := range a.Callers[name].Key {
			warnOfSecret(a.logger.With(zap.String("caller", name)), "key", key)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.Credentials)) {
		if err := checkCredentialName(name); err != nil {
			return err
		}
		credential := a.Credentials[name]
		if credential == nil {
			return fmt.Errorf("credential %s: has no provider", name)
		}
		provider, err := credential.load(ctx)
		if err != nil {
			return fmt.Errorf("credential %s: %w", name, err)
		}
		a.named[name] = provider
		a.warnOfProvider(a.logger, name, provider)
		if len(provider.Grant().Scopes) > 0 { // else routes and grants may name some
			a.warnOfScopes(name, provider)
		}
	}
	return nil
}

// Start begins to fetch the first tokens and to keep them fresh.
func (a *App) Start() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.started)
	for _, c := range a.inUse {
		c.start()
	}
	a.callers.watch()
	a.cleanUpStore()
	return nil
}

// Stop ends the refreshing. Requests that still drain get tokens all the same.
func (a *App) Stop() error {
	if a.store != nil {
		defer a.store.CloseSoon() // with mu given up: a module that is being set up is waited for
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var wg sync.WaitGroup // at the same time, since each may have to tell others
	for _, c := range a.inUse {
		wg.Go(c.stop)
	}
	wg.Wait()
	a.callers.stopWatching()
	if a.stopCleaning != nil {
		a.stopCleaning()
	}
	return nil
}

// Cleanup gives up the states of this config's tokens. Those that no other
// config uses are freed. Caddy calls it after a failed Provision, too: only
// what was acquired is given up.
func (a *App) Cleanup() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.store != nil {
		a.store.Close() // its storage may be closed by now
	}
	acquired := a.acquired
	a.acquired = nil
	errs := make([]error, len(acquired))
	if !caddy.Exiting() {
		for i, giveUp := range acquired {
			errs[i] = giveUp()
		}
		return errors.Join(errs...)
	}
	// at the same time, since each may wait for its token to be revoked
	var wg sync.WaitGroup
	for i, giveUp := range acquired {
		wg.Go(func() { errs[i] = giveUp() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// use returns the credential in use of that name, the same for every route that
// uses it. Two credentials under one name, and one credential with different
// options, are errors: which of them applies would be chance.
func (a *App) use(name string, provider tokenprovider.Provider, options Credential) (*activeCredential, error) {
	if options.hasTenants() {
		return a.useTenants(name, provider, options)
	}
	options.ProviderRaw = nil
	fingerprints, err := tokensource.Fingerprints(provider)
	if err != nil {
		return nil, err
	}
	identity := provider.Grant().Identity()

	a.mu.Lock()
	defer a.mu.Unlock()
	used, ok := a.inUse[name]
	switch {
	case ok && used.identity != identity:
		return nil, fmt.Errorf("credential %s: the name stands for two credentials; give each its own", name)
	case ok && !slices.Equal(used.fingerprints, fingerprints):
		return nil, fmt.Errorf("credential %s: is given twice with different secrets", name)
	}
	// all of one identity have the same options and secrets, so any of them will do
	switch same := a.byIdentity[identity]; {
	case same == nil:
	case !reflect.DeepEqual(same.options, options):
		return nil, fmt.Errorf("credential %s: is also given as %s, with another refresh_before, token_timeout, token_ca, token_cert or revoke_on_stop; name it once and refer to it", name, same.name())
	case !slices.Equal(same.fingerprints, fingerprints):
		return nil, fmt.Errorf("credential %s: is also given as %s, with another secret or header; name it once and refer to it", name, same.name())
	}
	if ok {
		return used, nil
	}

	c := &activeCredential{identity: identity, fingerprints: fingerprints, options: options, store: a.store}
	c.tokenURL = provider.Grant().TokenURL
	var release func() error
	c.metrics, release = acquireMetrics(name, provider.Grant().Provider, false)
	a.acquired = append(a.acquired, release)
	kept, rest, err := a.activate(c, name, provider)
	if err != nil {
		return nil, err
	}
	a.acquired = slices.Concat(a.acquired, kept, rest)
	a.inUse[name], a.byIdentity[identity] = c, c
	return c, nil
}

// send notes that a route sends the tokens of c: they are fetched before they are
// needed, and kept fresh.
func (a *App) send(c *activeCredential) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.sends {
		return
	}
	c.sends = true
	select {
	case <-a.started:
		c.start()
	default:
	}
}

// activate gives c its token source. What is pooled of it outlives the config: kept
// gives up its token and what the API has said of its rate limit, rest all else.
func (a *App) activate(c *activeCredential, name string, provider tokenprovider.Provider) (kept, rest []func() error, err error) {
	client, err := a.client(c, name)
	if err != nil {
		return nil, nil, err
	}
	grant, ofAll := provider.Grant(), provider.Grant()
	ofAll.Scopes = nil // tokens of different scopes use up the same quota
	kept, rest = make([]func() error, 2), make([]func() error, 2)
	c.state, kept[0] = acquireState(name, c.identity)
	c.rateLimit, kept[1] = acquireRateLimit(c.identity)
	c.quota, rest[0] = acquireQuota(c.identityOf(ofAll))
	endpoint, release := acquireEndpoint(grant.TokenURL)
	rest[1] = release

	c.called = name
	c.source = tokensource.New(tokensource.Options{
		Name:          name,
		Provider:      provider,
		Client:        client,
		State:         c.state,
		Shared:        a.shared(c, name, provider),
		Fingerprints:  c.fingerprints,
		Refresher:     a.refresher,
		Endpoint:      endpoint,
		RefreshBefore: time.Duration(c.options.RefreshBefore),
		TokenTimeout:  time.Duration(c.options.TokenTimeout),
		RevokeOnStop:  c.options.RevokeOnStop,
		OnOutcome: func(r tokensource.Outcome) {
			c.metrics.tokenRequest(c.tokenURL, r)
			if r.Token != nil {
				c.metrics.noteSecretInUse(c.source)
			}
			a.emitOutcome(c, r)
		},
		Logger: a.logger,
	})
	return kept, rest, nil
}

// credentials returns the credentials whose tokens routes send, by name. One with
// tenants stands for all of them.
func (a *App) credentials() []*activeCredential {
	return a.credentialsThat(func(c *activeCredential) bool { return c.sends })
}

func (a *App) credentialsThat(match func(*activeCredential) bool) []*activeCredential {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]*activeCredential, 0, len(a.inUse))
	for _, name := range slices.Sorted(maps.Keys(a.inUse)) {
		if c := a.inUse[name]; match(c) {
			all = append(all, c)
		}
	}
	return all
}

// credential returns one of credentials by its name; nil if there is none.
func (a *App) credential(name string) *activeCredential {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.inUse[name]; c != nil && c.sends {
		return c
	}
	return nil
}

// waitUntilStarted waits until the app has started or ctx ends.
func (a *App) waitUntilStarted(ctx context.Context) error {
	select {
	case <-a.started:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the egress app to start: %w", context.Cause(ctx))
	}
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
