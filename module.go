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
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"

	"github.com/caddy-egress/caddy-egress/internal/option"
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
	// digits, dots, underscores and hyphens, and is no provider's name. A token
	// is asked for only if a route uses the credential.
	Credentials map[string]*Credential `json:"credentials,omitempty"`

	// Bound on the memory of all request bodies kept for a replay, in bytes. A
	// request whose body does not fit is sent all the same and not replayed.
	// Each body counts in steps of 32 KiB. Default: `67108864` (64 MiB).
	ReplayMemory *int64 `json:"replay_memory,omitempty"`

	// Defaults for the options of every route.
	RouteOptions

	ctx      caddy.Context
	logger   *zap.Logger
	memory   *memory
	named    map[string]tokenprovider.Provider
	mu       sync.Mutex
	sources  map[string]*registration // by name
	acquired []func() error           // give up what is pooled
	events   *caddyevents.App
	started  chan struct{} // closed by Start
}

// Credential is how tokens are obtained: a provider, with the options of the
// token requests.
type Credential struct {
	// The API and its credential.
	ProviderRaw json.RawMessage `json:"provider,omitempty" caddy:"namespace=egress.providers inline_key=name"`

	// How long before its expiry a token is replaced, in the background; at
	// most half of its lifetime, and up to a tenth later at random.
	// Default: a third of the lifetime.
	RefreshBefore caddy.Duration `json:"refresh_before,omitempty"`

	// How long one token request may take, all of it. Default: `10s`.
	TokenTimeout caddy.Duration `json:"token_timeout,omitempty"`

	// PEM files of the certificate authorities that the token endpoint is
	// verified against, instead of the system's.
	TokenCA []string `json:"token_ca,omitempty"`

	// Revokes the token once it is of no more use here: when Caddy stops, or a
	// config without the credential is loaded, and no request carries the token
	// any more, which is waited for 10 seconds, or 2 when Caddy stops. With
	// Voucherify's OAuth v1, and oauth2 with a revocation_url.
	// Default: the token is left to expire.
	RevokeOnStop bool `json:"revoke_on_stop,omitempty"`
}

// registration is a token source with what it was made from.
type registration struct {
	app         *App
	source      *tokensource.Source
	meter       *meter
	identity    string
	fingerprint [32]byte
	options     Credential // the provider aside
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "egress",
		New: func() caddy.Module { return new(App) },
	}
}

const defaultReplayMemory = 64 << 20

// credentialName is what a credential may be called: it appears in URLs, in
// metrics and on command lines.
var credentialName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// Provision sets up the providers of the named credentials. It makes no token
// request: those begin with Start, so that validating a config makes none.
func (a *App) Provision(ctx caddy.Context) error {
	a.ctx = ctx
	a.logger = ctx.Logger()
	a.named = make(map[string]tokenprovider.Provider)
	a.sources = make(map[string]*registration)
	a.started = make(chan struct{})
	a.memory = newMemory(defaultReplayMemory)
	if a.ReplayMemory != nil {
		if *a.ReplayMemory < 0 {
			return errors.New("replay_memory: is below zero")
		}
		a.memory = newMemory(*a.ReplayMemory)
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
	for _, r := range a.sources {
		r.source.Start()
	}
	return nil
}

// Stop ends the refreshing. Requests that still drain get tokens all the same.
func (a *App) Stop() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.sources {
		r.source.Stop()
	}
	return nil
}

// Cleanup gives up the states of this config's tokens. Those that no other
// config uses are freed. Caddy calls it after a failed Provision, too: only
// what was acquired is given up.
func (a *App) Cleanup() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	// at the end of the process each may wait for its token to be revoked
	errs := make([]error, len(a.acquired))
	var wg sync.WaitGroup
	for i, giveUp := range a.acquired {
		wg.Go(func() { errs[i] = giveUp() })
	}
	wg.Wait()
	a.acquired = nil
	return errors.Join(errs...)
}

// load loads and checks the provider, and the options beside it.
func (c *Credential) load(ctx caddy.Context) (tokenprovider.Provider, error) {
	if len(c.ProviderRaw) == 0 {
		return nil, errors.New("has no provider")
	}
	if c.RefreshBefore < 0 || c.TokenTimeout < 0 {
		return nil, errors.New("refresh_before and token_timeout must be above zero")
	}
	module, err := ctx.LoadModule(c, "ProviderRaw")
	if err != nil {
		return nil, err
	}
	provider, ok := module.(tokenprovider.Provider)
	if !ok {
		return nil, fmt.Errorf("%T is no token provider", module)
	}
	if revoker, ok := provider.(tokenprovider.Revoker); c.RevokeOnStop && (!ok || !revoker.CanRevoke()) {
		return nil, errors.New("revoke_on_stop: the provider, as it is configured, cannot revoke tokens")
	}
	return provider, nil
}

// source returns the token source of a credential, the same for every route
// that uses it. Two credentials under one name, and one credential with
// different options, are errors: which of them applies would be chance.
func (a *App) source(name string, provider tokenprovider.Provider, c Credential) (*tokensource.Source, *meter, error) {
	c.ProviderRaw = nil
	secrets, err := provider.Secrets()
	if err != nil {
		return nil, nil, err
	}
	identity := provider.Grant().Identity()
	fingerprint := tokensource.Fingerprint(secrets)

	a.mu.Lock()
	defer a.mu.Unlock()
	if r, ok := a.sources[name]; ok {
		switch {
		case r.identity != identity:
			return nil, nil, fmt.Errorf("credential %s: the name stands for two credentials; give each its own", name)
		case r.fingerprint != fingerprint:
			return nil, nil, fmt.Errorf("credential %s: is given twice with different secrets", name)
		}
	}
	for _, r := range a.sources {
		if r.identity == identity && !reflect.DeepEqual(r.options, c) {
			return nil, nil, fmt.Errorf("credential %s: is also given as %s, with another refresh_before, token_timeout, token_ca or revoke_on_stop; name it once and refer to it", name, r.source.Name())
		}
	}
	if r, ok := a.sources[name]; ok {
		return r.source, r.meter, nil
	}

	client, err := tokenClient(c.TokenCA)
	if err != nil {
		return nil, nil, err
	}
	key := identity + string(fingerprint[:])
	state, _, err := states.LoadOrNew(key, func() (caddy.Destructor, error) {
		return pooledState{tokensource.NewState(), name}, nil
	})
	if err != nil {
		return nil, nil, err
	}
	a.acquired = append(a.acquired, func() error {
		_, err := states.Delete(key)
		return err
	})
	grant := provider.Grant()
	meterKey := name + " " + grant.Provider
	pooled, _ := meters.LoadOrStore(meterKey, newMeter(name, grant.Provider))
	measured := pooled.(*meter)
	a.acquired = append(a.acquired, func() error {
		_, err := meters.Delete(meterKey)
		return err
	})

	var source *tokensource.Source
	source = tokensource.New(tokensource.Options{
		Name:          name,
		Provider:      provider,
		Client:        client,
		State:         state.(pooledState).State,
		RefreshBefore: time.Duration(c.RefreshBefore),
		TokenTimeout:  time.Duration(c.TokenTimeout),
		RevokeOnStop:  c.RevokeOnStop,
		OnRequest: func(r tokensource.Request) {
			measured.tokenRequest(r)
			a.emitRequest(source, r)
		},
		Logger: a.logger,
	})
	a.sources[name] = &registration{app: a, source: source, meter: measured, identity: identity, fingerprint: fingerprint, options: c}
	select {
	case <-a.started:
		source.Start()
	default:
	}
	return source, measured, nil
}

// states are the tokens in use, by identity of the credential and fingerprint
// of its secrets: they survive reloads, and a config with a wrong secret never
// gets the token of the right one.
var states = caddy.NewUsagePool()

// meters are what is measured, by credential, so that it survives reloads.
var meters = caddy.NewUsagePool()

// pooledState is freed with the last config that uses it.
type pooledState struct {
	*tokensource.State
	name string // of the credential that it was made for
}

const (
	retireTimeout     = 10 * time.Second
	retireTimeoutExit = 2 * time.Second
)

// Destruct implements caddy.Destructor. A reload does not wait for the token to
// be revoked; the end of the process does, for a while.
func (s pooledState) Destruct() error {
	if caddy.Exiting() {
		s.retire(retireTimeoutExit)
	} else {
		go s.retire(retireTimeout)
	}
	return nil
}

func (s pooledState) retire(timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if err := s.Retire(ctx); err != nil {
		// the config's logger is gone by now
		caddy.Log().Named("egress").Warn("could not revoke the token; it is left to expire",
			zap.String("credential", s.name), zap.Error(err))
	}
}

// inlineName names the credential that a route holds inline.
func inlineName(provider tokenprovider.Provider) string {
	grant := provider.Grant()
	return grant.Provider + "-" + grant.Identity()[:8]
}

// checkCredentialName returns an error if name cannot name a credential.
func checkCredentialName(name string) error {
	if !credentialName.MatchString(name) {
		return fmt.Errorf("credential %q: a name has up to 63 letters, digits, dots, underscores and hyphens", name)
	}
	if slices.Contains(providerNames(), name) {
		return fmt.Errorf("credential %s: is the name of a provider; choose another", name)
	}
	return nil
}

// providerNames returns the providers that are built in.
func providerNames() []string {
	const namespace = "egress.providers"
	var names []string
	for _, info := range caddy.GetModules(namespace) {
		names = append(names, strings.TrimPrefix(string(info.ID), namespace+"."))
	}
	return names
}

// secretOptions are the options whose value is a secret.
var secretOptions = []string{"client_secret", "app_token"}

// warnOfSecretsInConfig warns where a secret is written in the config itself,
// where the admin API, config backups and `caddy adapt` show it.
func warnOfSecretsInConfig(logger *zap.Logger, provider tokenprovider.Provider) {
	encoded, err := json.Marshal(provider)
	if err != nil {
		return
	}
	var options map[string]json.RawMessage
	if json.Unmarshal(encoded, &options) != nil {
		return
	}
	for _, name := range secretOptions {
		var value string
		if json.Unmarshal(options[name], &value) == nil && value != "" && !option.IsPlaceholder(value) {
			logger.Warn("a secret is written in the config itself; give it as {env.NAME} or {file./path}", zap.String("option", name))
		}
	}
}

// tokenClient returns the client of a token endpoint. It trusts the
// authorities in the PEM files, or those of the system if there are none.
func tokenClient(files []string) (*http.Client, error) {
	if len(files) == 0 {
		return tokenprovider.NewClient(nil), nil
	}
	roots := x509.NewCertPool()
	for _, file := range files {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("token_ca: %w", err)
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("token_ca: %s holds no PEM certificate", file)
		}
	}
	return tokenprovider.NewClient(roots), nil
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
