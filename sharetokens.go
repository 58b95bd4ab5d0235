package egress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
	"github.com/caddy-egress/caddy-egress/tokenstore"
)

// ShareTokens has tokens kept in a storage, so that instances of the gateway, and
// its next runs, share them: while the token endpoint issues tokens, all of them
// together make the token requests of one.
//
// Tokens are sealed there under a key that is derived from the credential's
// secrets. An instance that cannot use the storage, or what it finds there, uses
// tokens of its own meanwhile; no request waits more than 250 ms for that.
type ShareTokens struct {
	// The storage, such as `redis` with a module for it.
	// Default: Caddy's own, which is the global option `storage`.
	StorageRaw json.RawMessage `json:"storage,omitempty" caddy:"namespace=caddy.storage inline_key=module"`
}

// unmarshalShareTokens reads `share_tokens [{ storage <module> … }]`.
func (a *App) unmarshalShareTokens(d *caddyfile.Dispenser) error {
	if a.ShareTokens != nil {
		return d.Err("share_tokens is already given")
	}
	if d.NextArg() {
		return d.Errf("share_tokens: unexpected argument %q", d.Val())
	}
	a.ShareTokens = new(ShareTokens)
	table := option.Table{"storage": a.ShareTokens.unmarshalStorage}
	_, err := option.Block(d, table, option.Unknown("share_tokens", table))
	return err
}

// unmarshalStorage reads `storage <module> …`, as the global option of that name.
func (s *ShareTokens) unmarshalStorage(d *caddyfile.Dispenser) error {
	if len(s.StorageRaw) > 0 {
		return d.Err("storage is already given")
	}
	if !d.NextArg() {
		return d.Err("storage: needs a storage module, such as file_system")
	}
	name := d.Val()
	if _, err := caddy.GetModule(storageNamespace + name); err != nil {
		return d.Errf("storage: this Caddy has no storage module %q; build one in with xcaddy", name)
	}
	module, err := caddyfile.UnmarshalModule(d, storageNamespace+name)
	if err != nil {
		return err
	}
	s.StorageRaw = caddyconfig.JSONModuleObject(module, "module", name, nil)
	return nil
}

// provision returns the store of tokens. A storage that cannot be reached, which
// some find out at once, keeps no config from being loaded.
func (s *ShareTokens) provision(ctx caddy.Context) (*tokenstore.Store, error) {
	opts := tokenstore.Options{OnOperation: storeOperation, Logger: ctx.Logger()}
	if len(s.StorageRaw) == 0 {
		opts.Storage = ctx.Storage()
		opts.Name = storageName(opts.Storage)
		opts.Place = opts.Name
		if files, ok := opts.Storage.(*certmagic.FileStorage); ok {
			opts.Place += " " + files.Path
		}
		return tokenstore.New(opts), nil
	}
	opts.Name, opts.Place = s.moduleName(), string(s.StorageRaw)
	raw := slices.Clone(s.StorageRaw) // loading a module clears it
	opts.Open = func() (certmagic.Storage, error) {
		return (&ShareTokens{StorageRaw: slices.Clone(raw)}).load(ctx)
	}
	var err error
	if opts.Storage, err = opts.Open(); err != nil && !isUnreachable(err) {
		return nil, err
	}
	return tokenstore.New(opts), nil
}

// load sets up the storage.
func (s *ShareTokens) load(ctx caddy.Context) (certmagic.Storage, error) {
	module, err := ctx.LoadModule(s, "StorageRaw")
	if err != nil {
		return nil, fmt.Errorf("share_tokens: storage: %w", err)
	}
	storage, ok := module.(caddy.StorageConverter)
	if !ok {
		return nil, fmt.Errorf("share_tokens: storage: %T is not a storage module", module)
	}
	opened, err := storage.CertMagicStorage()
	if err != nil {
		return nil, fmt.Errorf("share_tokens: storage: %w", unreachableError{err})
	}
	return opened, nil
}

// unreachableError is why a storage cannot be opened.
type unreachableError struct{ error }

// isUnreachable reports whether a storage may work later: its module is configured
// well, and fails as it is set up.
func isUnreachable(err error) bool {
	_, ok := errors.AsType[unreachableError](err)
	return ok || strings.Contains(err.Error(), "provision "+storageNamespace) // as Caddy says it
}

const storageNamespace = "caddy.storage."

// moduleName returns the name of the storage's module.
func (s *ShareTokens) moduleName() string {
	var module struct {
		Module string `json:"module"`
	}
	_ = json.Unmarshal(s.StorageRaw, &module) // who loads the module says what is wrong
	return storageNamespace + module.Module
}

// storageName names a storage of which only the value is known.
func storageName(storage certmagic.Storage) string {
	switch s := storage.(type) {
	case caddy.Module:
		return string(s.CaddyModule().ID)
	case *certmagic.FileStorage:
		return storageNamespace + "file_system"
	}
	return fmt.Sprintf("%T", storage)
}

// shared returns what shares the token of a credential; nil if tokens are not
// shared, or if there is no secret that lasts, under which it could be sealed.
func (a *App) shared(c *activeCredential, name string, provider tokenprovider.Provider) tokensource.Shared {
	if a.store == nil {
		return nil
	}
	if lacksLasting(provider) {
		c.store = nil
		credential := name
		if c.tenant != "" { // once for all of them
			credential = c.tenants.family.name()
		}
		a.warnOnce(a.logger, "the token of a credential without a lasting secret cannot be shared; each instance has one of its own", zap.String("credential", credential))
		return nil
	}
	return a.store.Credential(name, c.identity)
}

// lacksLasting reports whether a value of the secret, of those that are at hand, has
// nothing that lasts.
func lacksLasting(provider tokenprovider.Provider) bool {
	return slices.ContainsFunc(tokenprovider.Alternatives(provider), func(p tokenprovider.Provider) bool {
		secrets, err := p.Secrets()
		return err == nil && !tokenprovider.HasLasting(secrets)
	})
}

// cleanUpStore deletes what nobody needs any more from the store until the app
// stops.
func (a *App) cleanUpStore() {
	if a.store == nil {
		return
	}
	ctx, cancel := context.WithCancel(a.ctx)
	a.stopCleaning = cancel
	go a.store.CleanUp(ctx, func(identity string) bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.byIdentity[identity] != nil
	})
}
