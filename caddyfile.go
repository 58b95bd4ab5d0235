package egress

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// providerModule is what a module in egress.providers is made of.
type providerModule interface {
	caddy.Module
	tokenprovider.Provider
	option.Provider
}

// parseGlobalOption sets up the egress app from the global option. Syntax:
//
//	egress {
//	    credential <name> <provider> [<api_url>] {
//	        <provider's options...>
//	        refresh_before <duration>
//	        token_timeout  <duration>
//	        token_ca       <pem_files...>
//	        token_cert     <cert> <key>
//	        revoke_on_stop
//	        max_tenants    <n>
//	    }
//	    caller <name> {
//	        key         <key> [<previous>]
//	        client_cert <names...>
//	        user        <users...>
//	        clients     <ranges...>
//	    }
//	    share_tokens {
//	        storage <module> ...
//	    }
//	    replay_memory <size>
//
//	    # defaults for every route
//	    replay_buffer <size>
//	    replay        all|idempotent|off
//	    clients       <ranges...>|any
//	    hosts         <names...>|any
//	    origins       <origins...>
//	    allow         [<methods>] <paths...>
//	    api_hosts     <host[:port]...>
//	    allow_http
//	    respect_rate_limit [<max>]
//	}
//
// Given more than once, the options add up; each may be set in one of them.
func parseGlobalOption(d *caddyfile.Dispenser, existing any) (any, error) {
	app := new(App)
	if existing != nil {
		if err := json.Unmarshal(existing.(httpcaddyfile.App).Value, app); err != nil {
			return nil, err
		}
	}
	if err := app.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "egress", Value: caddyconfig.JSON(app, nil)}, nil
}

// UnmarshalCaddyfile sets up the app from Caddyfile tokens; for the syntax see
// the global option.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	if d.NextArg() {
		return d.Errf("egress: unexpected argument %q", d.Val())
	}
	table := option.Join(a.RouteOptions.Options(), option.Table{
		"credential":    a.unmarshalCredential,
		"caller":        a.unmarshalCaller,
		"share_tokens":  a.unmarshalShareTokens,
		"replay_memory": func(d *caddyfile.Dispenser) error { return option.Size(d, &a.ReplayMemory) },
	})
	lines, err := option.Block(d, table, func(d *caddyfile.Dispenser) error {
		if d.Val() == "grant" {
			return d.Err("egress: grant belongs in a route")
		}
		return option.Unknown("egress", table)(d)
	})
	if err != nil {
		return err
	}
	return lines.Wrap(a.RouteOptions.validate())
}

// unmarshalCredential reads `credential <name> <provider> [<api_url>] { … }`.
func (a *App) unmarshalCredential(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Errf("credential: needs a name and a provider (%s)", strings.Join(providerNames(), ", "))
	}
	name := d.Val()
	if err := checkCredentialName(name); err != nil {
		return d.WrapErr(err)
	}
	what := "credential " + name
	if _, ok := a.Credentials[name]; ok {
		return d.Errf("%s: is already defined", what)
	}
	if !d.NextArg() {
		return d.Errf("%s: needs a provider (%s)", what, strings.Join(providerNames(), ", "))
	}
	provider, err := newProvider(d.Val())
	if err != nil {
		return d.Errf("%s: %w", what, err)
	}
	credential, providerName := new(Credential), d.Val()
	if _, err := option.ReadProvider(d, what, provider, credential.Options(), nil); err != nil {
		return err
	}
	credential.ProviderRaw = caddyconfig.JSONModuleObject(provider, "name", providerName, nil)
	if a.Credentials == nil {
		a.Credentials = make(map[string]*Credential)
	}
	a.Credentials[name] = credential
	return nil
}

// unmarshalCaller reads `caller <name> { … }`. What is as long as a key may be one
// in a wrong place, so that errors do not quote it.
func (a *App) unmarshalCaller(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.Err("caller: needs a name")
	}
	name := d.Val()
	if err := checkCallerName(name); err != nil {
		return d.WrapErr(err)
	}
	what := "caller " + name
	if _, ok := a.Callers[name]; ok {
		return d.Errf("%s: is already defined", what)
	}
	if d.NextArg() {
		return d.Errf("%s: unexpected argument %s", what, unlessKey(d.Val()))
	}
	caller := new(Caller)
	table, ofGrant := caller.Options(), new(Grant).Options()
	lines, err := option.Block(d, table, func(d *caddyfile.Dispenser) error {
		if _, ok := ofGrant[d.Val()]; ok {
			return d.Errf("%s: %s belongs in a grant, in a route", what, d.Val())
		}
		return d.Errf("%s: unknown option %s%s", what, unlessKey(d.Val()), option.Suggest(d.Val(), table))
	})
	if err != nil {
		return err
	}
	if err := caller.validate(); err != nil {
		return lines.Wrap(fmt.Errorf("%s: %w", what, err))
	}
	if a.Callers == nil {
		a.Callers = make(map[string]*Caller)
	}
	a.Callers[name] = caller
	return nil
}

// UnmarshalCaddyfile sets up the transport from Caddyfile tokens. Syntax:
//
//	transport egress {
//	    credential <name>
//	    scopes     <scopes...>
//	    # or
//	    provider <provider> [<api_url>] {
//	        <provider's options...>
//	    }
//	    refresh_before <duration>
//	    token_timeout  <duration>
//	    token_ca       <pem_files...>
//	    token_cert     <cert> <key>
//	    revoke_on_stop
//	    max_tenants    <n>
//	    tenant         <placeholder>
//	    keep_headers   <names...>
//
//	    grant <callers...> {
//	        scopes  <scopes...>
//	        allow   [<methods>] <paths...>
//	        tenants <names...>
//	        limit   <n>/s|<n>/m|<n>/h
//	        reserve <n>%
//	    }
//
//	    replay_buffer <size>
//	    replay        all|idempotent|off
//	    clients       <ranges...>|any
//	    hosts         <names...>|any
//	    origins       <origins...>
//	    allow         [<methods>] <paths...>
//	    api_hosts     <host[:port]...>
//	    allow_http
//	    respect_rate_limit [<max>]
//
//	    # any other is one of transport http
//	    <options of transport http...>
//	}
func (t *Transport) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the transport's name
	start := option.At(d)
	if d.NextArg() {
		return d.Errf("transport egress: unexpected argument %q", d.Val())
	}
	credentialOptions := t.Credential.Options()
	table := option.Join(t.RouteOptions.Options(), credentialOptions, option.Table{
		"credential":   func(d *caddyfile.Dispenser) error { return option.String(d, &t.CredentialName) },
		"scopes":       stringsOf(&t.Scopes),
		"provider":     t.unmarshalProvider,
		"tenant":       func(d *caddyfile.Dispenser) error { return option.String(d, &t.Tenant) },
		"keep_headers": stringsOf(&t.KeepHeaders),
		"grant":        func(d *caddyfile.Dispenser) error { return unmarshalGrant(d, &t.Grants) },
	})
	rest := others{what: "transport egress", table: table, of: "transport http", parse: new(reverseproxy.HTTPTransport).UnmarshalCaddyfile}
	lines, err := option.Block(d, table, rest.add)
	if err != nil {
		return err
	}
	switch {
	case t.CredentialName == "" && t.ProviderRaw == nil:
		return start.Errf("transport egress: credential or provider is required")
	case t.CredentialName != "" && t.ProviderRaw != nil:
		return start.Errf("transport egress: credential and provider exclude each other")
	case t.Scopes != nil && t.ProviderRaw != nil:
		return lines.At("scopes").Errf("transport egress: scopes belong to the provider")
	}
	for _, name := range slices.Sorted(maps.Keys(credentialOptions)) {
		if lines.Has(name) && t.CredentialName != "" {
			return lines.At(name).Errf("transport egress: %s belongs where the credential is defined, in the global option", name)
		}
	}
	if err := t.RouteOptions.validate(); err != nil {
		return lines.Wrap(err)
	}
	return rest.explain(t.HTTPTransport.UnmarshalCaddyfile(delegate(start, "http", nil, rest.tokens, d.Token())))
}

// unmarshalProvider reads `provider <provider> [<api_url>] { … }`.
func (t *Transport) unmarshalProvider(d *caddyfile.Dispenser) error {
	if t.ProviderRaw != nil {
		return d.Err("provider is already given")
	}
	if !d.NextArg() {
		return d.Errf("provider: needs a name (%s)", strings.Join(providerNames(), ", "))
	}
	name := d.Val()
	provider, err := newProvider(name)
	if err != nil {
		return d.Errf("provider: %w", err)
	}
	if _, err := option.ReadProvider(d, "provider "+name, provider, nil, nil); err != nil {
		return err
	}
	t.ProviderRaw = caddyconfig.JSONModuleObject(provider, "name", name, nil)
	return nil
}

// Options returns the options of token requests in a Caddyfile.
func (c *Credential) Options() option.Table {
	return option.Table{
		"refresh_before": func(d *caddyfile.Dispenser) error { return option.Duration(d, &c.RefreshBefore) },
		"token_timeout":  func(d *caddyfile.Dispenser) error { return option.Duration(d, &c.TokenTimeout) },
		"token_ca":       func(d *caddyfile.Dispenser) error { return option.Strings(d, &c.TokenCA) },
		"token_cert":     c.unmarshalTokenCert,
		"revoke_on_stop": func(d *caddyfile.Dispenser) error { return option.Flag(d, &c.RevokeOnStop) },
		"max_tenants":    func(d *caddyfile.Dispenser) error { return option.Count(d, &c.MaxTenants) },
	}
}

// others are subdirectives of a block that are left to somebody else.
type others struct {
	what   string       // what errors are about
	table  option.Table // the subdirectives that are not left
	of     string       // whose the rest are
	parse  func(*caddyfile.Dispenser) error
	starts []*caddyfile.Dispenser // of each
	tokens []caddyfile.Token
}

// add notes the current subdirective. One that neither we nor the other knows is
// an error at once if it looks like one of ours: what is wrong without it is not
// what is to be mended.
func (o *others) add(d *caddyfile.Dispenser) error {
	at := option.At(d)
	near := option.DidYouMean(at.Val(), maps.Keys(o.table))
	if where := belongs(at.Val()); where != "" {
		return at.Errf("%s: %s %s%s", o.what, at.Val(), where, near)
	}
	segment := d.NextSegment()
	o.starts = append(o.starts, at)
	o.tokens = append(o.tokens, segment...)
	if near == "" || !isUnknownTo(o.parse(delegate(at, "", nil, segment, caddyfile.Token{Text: "}"})), at) {
		return nil
	}
	return at.Errf("%s: unknown option %q%s", o.what, at.Val(), near)
}

// explain returns err, which the other has said of all of them. If that is about one
// which is known to nobody, it lists what there is.
func (o *others) explain(err error) error {
	for _, at := range o.starts {
		if isUnknownTo(err, at) {
			return at.Errf("%s: unknown option %q%s, and those of %s", o.what, at.Val(), option.Suggest(at.Val(), o.table), o.of)
		}
	}
	return err
}

// isUnknownTo reports whether err is what Caddy says of a subdirective at that place
// which it does not know.
func isUnknownTo(err error, at *caddyfile.Dispenser) bool {
	return err != nil && err.Error() == at.Err("unrecognized subdirective "+at.Val()).Error()
}

// delegate returns the tokens of `<name> <args...> { <block...> }`, on the line
// of start. Those of the block keep their lines, for errors; end is the brace
// that closes it.
func delegate(start *caddyfile.Dispenser, name string, args []string, block []caddyfile.Token, end caddyfile.Token) *caddyfile.Dispenser {
	// made afresh: a copy of a quoted token would not be a brace
	token := func(text string) caddyfile.Token {
		return caddyfile.Token{File: start.File(), Line: start.Line(), Text: text}
	}
	tokens := []caddyfile.Token{token(name)}
	for _, arg := range args {
		tokens = append(tokens, token(arg))
	}
	if len(block) > 0 {
		tokens = append(tokens, token("{"))
		tokens = append(tokens, block...)
		tokens = append(tokens, end)
	}
	return caddyfile.NewDispenser(tokens)
}

const providerNamespace = "egress.providers"

// providerNames returns the providers that are built in.
func providerNames() []string {
	var names []string
	for _, info := range caddy.GetModules(providerNamespace) {
		names = append(names, info.ID.Name())
	}
	return names
}

// isProvider reports whether a provider of that name is built in.
func isProvider(name string) bool {
	_, err := caddy.GetModule(providerNamespace + "." + name)
	return err == nil
}

// newProvider returns a provider without configuration, by its name.
func newProvider(name string) (providerModule, error) {
	if info, err := caddy.GetModule(providerNamespace + "." + name); err == nil {
		if provider, ok := info.New().(providerModule); ok {
			return provider, nil
		}
	}
	if isProvider(name) {
		return nil, fmt.Errorf("provider %s has no options for a Caddyfile", name)
	}
	names := providerNames()
	return nil, fmt.Errorf("%q is not a provider; there are %s%s", name, strings.Join(names, ", "), option.DidYouMean(name, slices.Values(names)))
}

// unknownCredential lists what there is instead of the credential name.
func unknownCredential[C any](name string, credentials map[string]C) error {
	providers := providerNames()
	known := "the global option egress defines none"
	if len(credentials) > 0 {
		known = "there are " + strings.Join(slices.Sorted(maps.Keys(credentials)), ", ")
	}
	names := slices.AppendSeq(slices.Clone(providers), maps.Keys(credentials))
	return fmt.Errorf("%q is neither a provider (%s) nor a credential; %s%s",
		name, strings.Join(providers, ", "), known, option.DidYouMean(name, slices.Values(names)))
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*App)(nil)
	_ caddyfile.Unmarshaler = (*Transport)(nil)
)
