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
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/internal/replaybody"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"

	// every API is one of these
	_ "github.com/caddy-egress/caddy-egress/tokenprovider/oauth2"
	_ "github.com/caddy-egress/caddy-egress/tokenprovider/understory"
	_ "github.com/caddy-egress/caddy-egress/tokenprovider/voucherify"
)

func init() {
	caddy.RegisterModule(new(App))
	caddy.RegisterModule(Transport{})
	httpcaddyfile.RegisterGlobalOption("egress", parseGlobalOption)
	httpcaddyfile.RegisterHandlerDirective("egress", parseDirective)
	httpcaddyfile.RegisterDirectiveOrder("egress", httpcaddyfile.Before, "reverse_proxy")
}

// App holds the credentials of a config and keeps one live token for each that
// is in use. It needs no configuration where routes hold their credentials inline.
type App struct {
	// Credentials by name, for routes to refer to. A name is made of letters,
	// digits, dots, underscores and hyphens, and is not the name of a provider.
	// A token is requested only if a route uses the credential.
	Credentials map[string]*Credential `json:"credentials,omitempty"`

	// Bound on the memory of all request bodies kept for a replay, in bytes. A
	// request whose body does not fit is sent all the same and not replayed.
	// Each body counts in steps of 32 KiB. Default: `67108864` (64 MiB).
	ReplayMemory *int64 `json:"replay_memory,omitempty"`

	// Defaults for the options of every route.
	RouteOptions

	ctx       caddy.Context
	logger    *zap.Logger
	events    *caddyevents.App
	memory    *replaybody.Memory
	refresher *tokensource.Refresher
	named     map[string]tokenprovider.Provider
	started   chan struct{} // closed by Start

	mu         sync.Mutex
	inUse      map[string]*activeCredential // by name
	byIdentity map[string]*activeCredential // one of each identity
	clients    map[string]*http.Client      // of token endpoints, by the authorities that they trust
	acquired   []func() error               // give up what is pooled
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
	events, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("getting events app: %w", err)
	}
	a.events = events.(*caddyevents.App)
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
		warnOfSecretsInConfig(a.logger.With(zap.String("credential", name)), provider)
	}
	return nil
}

// Start begins to fetch the first tokens and to keep them fresh.
func (a *App) Start() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.started)
	for _, c := range a.inUse {
		c.source.Start()
	}
	return nil
}

// Stop ends the refreshing. Requests that still drain get tokens all the same.
func (a *App) Stop() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.inUse {
		c.source.Stop()
	}
	return nil
}

// Cleanup gives up the states of this config's tokens. Those that no other
// config uses are freed. Caddy calls it after a failed Provision, too: only
// what was acquired is given up.
func (a *App) Cleanup() error {
	a.mu.Lock()
	defer a.mu.Unlock()
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
	options.ProviderRaw = nil
	secrets, err := provider.Secrets()
	if err != nil {
		return nil, err
	}
	identity := provider.Grant().Identity()
	fingerprint := tokensource.Fingerprint(secrets)

	a.mu.Lock()
	defer a.mu.Unlock()
	used, ok := a.inUse[name]
	switch {
	case ok && used.identity != identity:
		return nil, fmt.Errorf("credential %s: the name stands for two credentials; give each its own", name)
	case ok && used.fingerprint != fingerprint:
		return nil, fmt.Errorf("credential %s: is given twice with different secrets", name)
	}
	// all of one identity have the same options, so any of them will do
	if same := a.byIdentity[identity]; same != nil && !reflect.DeepEqual(same.options, options) {
		return nil, fmt.Errorf("credential %s: is also given as %s, with another refresh_before, token_timeout, token_ca or revoke_on_stop; name it once and refer to it", name, same.name())
	}
	if ok {
		return used, nil
	}

	c := &activeCredential{identity: identity, fingerprint: fingerprint, options: options}
	if err := a.activate(c, name, provider); err != nil {
		return nil, err
	}
	a.inUse[name], a.byIdentity[identity] = c, c
	select {
	case <-a.started:
		c.source.Start()
	default:
	}
	return c, nil
}

// activate gives c its token source and its metrics, which outlive the config.
// mu is held.
func (a *App) activate(c *activeCredential, name string, provider tokenprovider.Provider) error {
	client, err := a.client(c.options.TokenCA)
	if err != nil {
		return err
	}
	state, release, err := acquireState(name, c.identity, c.fingerprint)
	if err != nil {
		return err
	}
	a.acquired = append(a.acquired, release)
	grant := provider.Grant()
	c.metrics, release = acquireMetrics(name, grant.Provider)
	a.acquired = append(a.acquired, release)
	endpoint, release := acquireEndpoint(grant.TokenURL)
	a.acquired = append(a.acquired, release)

	c.source = tokensource.New(tokensource.Options{
		Name:          name,
		Provider:      provider,
		Client:        client,
		State:         state,
		Refresher:     a.refresher,
		Endpoint:      endpoint,
		RefreshBefore: time.Duration(c.options.RefreshBefore),
		TokenTimeout:  time.Duration(c.options.TokenTimeout),
		RevokeOnStop:  c.options.RevokeOnStop,
		OnOutcome: func(r tokensource.Outcome) {
			c.metrics.tokenRequest(grant.TokenURL, r)
			a.emitOutcome(c.source, r)
		},
		Logger: a.logger,
	})
	return nil
}

// client returns the client of token endpoints that trusts the authorities in
// files, the same for all that do. mu is held.
func (a *App) client(files []string) (*http.Client, error) {
	key := strings.Join(files, "\x00")
	if client, ok := a.clients[key]; ok {
		return client, nil
	}
	client, err := tokenClient(files)
	if err == nil {
		a.clients[key] = client
	}
	return client, err
}

// credentials returns the credentials in use, by name.
func (a *App) credentials() []*activeCredential {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]*activeCredential, 0, len(a.inUse))
	for _, name := range slices.Sorted(maps.Keys(a.inUse)) {
		all = append(all, a.inUse[name])
	}
	return all
}

// credential returns the credential in use of that name; nil if there is none.
func (a *App) credential(name string) *activeCredential {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.inUse[name]
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

// warnOfSecretsInConfig warns where a secret is written in the config itself,
// where the admin API, config backups and `caddy adapt` show it.
func warnOfSecretsInConfig(logger *zap.Logger, provider tokenprovider.Provider) {
	secrets := provider.SecretOptions()
	for _, name := range slices.Sorted(maps.Keys(secrets)) {
		if value := secrets[name]; value != "" && !option.IsPlaceholder(value) {
			logger.Warn("a secret is written in the config itself; give it as {env.NAME} or {file./path}", zap.String("option", name))
		}
	}
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
