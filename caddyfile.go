package egress

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// providerModule is what a module in egress.providers is made of.
type providerModule interface {
	caddy.Module
	caddy.Validator
	tokenprovider.Provider
	caddyfile.Unmarshaler
	option.Unmarshaler
}

// parseGlobalOption sets up the egress app from the global option. Syntax:
//
//	egress {
//	    credential <name> <provider> [<api_url>] {
//	        <provider's options...>
//	        refresh_before <duration>
//	        token_timeout  <duration>
//	        token_ca       <pem_files...>
//	        revoke_on_stop
//	    }
//	    replay_memory <size>
//
//	    # defaults for every route
//	    replay_buffer <size>
//	    clients       <ranges...>|any
//	    hosts         <names...>|any
//	    origins       <origins...>
//	    allow         [<methods>] <paths...>
//	    api_hosts     <host[:port]...>
//	    allow_http
//	    respect_rate_limit
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
	for d.NextBlock(0) {
		switch name := d.Val(); name {
		case "credential":
			if err := a.unmarshalCredential(d); err != nil {
				return err
			}
		case "replay_memory":
			if err := option.Size(d, &a.ReplayMemory); err != nil {
				return err
			}
		default:
			known, err := a.RouteOptions.UnmarshalOption(d)
			if err != nil {
				return err
			}
			if !known {
				return d.Errf("egress: unknown option %q", name)
			}
		}
	}
	return nil
}

// unmarshalCredential reads `credential <name> <provider> [<api_url>] { … }`.
func (a *App) unmarshalCredential(d *caddyfile.Dispenser) error {
	start := option.At(d)
	if !d.NextArg() {
		return d.Errf("credential: needs a name and a provider (%s)", strings.Join(providerNames(), ", "))
	}
	name := d.Val()
	if err := checkCredentialName(name); err != nil {
		return d.WrapErr(err)
	}
	if _, ok := a.Credentials[name]; ok {
		return d.Errf("credential %s: is already defined", name)
	}
	if !d.NextArg() {
		return d.Errf("credential %s: needs a provider (%s)", name, strings.Join(providerNames(), ", "))
	}
	provider, ok := newProvider(d.Val())
	if !ok {
		return d.Errf("credential %s: %q is no provider; there are %s", name, d.Val(), strings.Join(providerNames(), ", "))
	}
	providerName := d.Val()
	if err := apiURLArg(d, provider, "credential "+name); err != nil {
		return err
	}

	credential := new(Credential)
	lines := make(option.Lines)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		subdirective := d.Val()
		lines.Add(d)
		known, err := firstOf(d, provider, credential)
		if err != nil {
			return err
		}
		if !known {
			return d.Errf("credential %s: unknown option %q", name, subdirective)
		}
	}
	if err := provider.Validate(); err != nil {
		return lines.Of(err, start).Errf("credential %s: %w", name, err)
	}
	credential.ProviderRaw = caddyconfig.JSONModuleObject(provider, "name", providerName, nil)
	if a.Credentials == nil {
		a.Credentials = make(map[string]*Credential)
	}
	a.Credentials[name] = credential
	return nil
}

// parseDirective sets up a reverse_proxy with the egress transport. Syntax:
//
//	egress [<matcher>] <credential>|<provider> [<api_url>] {
//	    # with a provider: its options, and those of its token requests
//	    <provider's options...>
//	    refresh_before <duration>
//	    token_timeout  <duration>
//	    token_ca       <pem_files...>
//	    revoke_on_stop
//
//	    # with a credential
//	    scopes <scopes...>
//
//	    replay_buffer <size>
//	    clients       <ranges...>|any
//	    hosts         <names...>|any
//	    origins       <origins...>
//	    allow         [<methods>] <paths...>
//	    api_hosts     <host[:port]...>
//	    allow_http
//	    respect_rate_limit
//
//	    # any other is one of reverse_proxy
//	    <reverse_proxy's subdirectives...>
//	}
//
// It is a shortcut for
//
//	reverse_proxy <api_url> {
//	    transport egress {
//	        credential <credential>   # or: provider <provider> { … }
//	        <route options...>
//	        <options of transport http...>
//	    }
//	    <reverse_proxy's subdirectives...>
//	}
//
// Upstreams given by `to` take the place of api_url.
func parseDirective(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	d := h.Dispenser
	d.Next() // the directive's name
	start := option.At(d)
	if !d.NextArg() {
		return nil, d.Errf("egress: needs a credential or a provider (%s)", strings.Join(providerNames(), ", "))
	}
	name := d.Val()

	t := new(Transport)
	provider, inline := newProvider(name)
	if inline {
		if err := apiURLArg(d, provider, "egress "+name); err != nil {
			return nil, err
		}
	} else {
		var err error
		if provider, err = namedProvider(h, name); err != nil {
			return nil, d.WrapErr(err)
		}
		t.CredentialName = name
		if d.NextArg() {
			return nil, d.Errf("egress %s: unexpected argument %q; the api_url of a credential belongs where it is defined", name, d.Val())
		}
	}

	owners := []option.Unmarshaler{&t.RouteOptions}
	if inline {
		owners = append(owners, provider, &t.Credential)
	}
	var rest []caddyfile.Token
	lines := make(option.Lines)
	upstreams, transport := false, false
	for d.NextBlock(0) {
		at := option.At(d)
		lines.Add(d)
		if !inline && d.Val() == "scopes" {
			if err := option.Strings(d, &t.Scopes); err != nil {
				return nil, err
			}
			continue
		}
		known, err := firstOf(d, owners...)
		if err != nil {
			return nil, err
		}
		if known {
			continue
		}
		if !inline && isOption(d, provider) {
			return nil, d.Errf("egress %s: %s belongs where the credential is defined, in the global option", name, d.Val())
		}
		segment := d.NextSegment()
		switch segment[0].Text {
		case "to":
			upstreams = true
		case "transport":
			switch {
			case transport:
				return nil, at.Errf("egress %s: transport is already given", name)
			case len(segment) > 1 && segment[1].Text != "http":
				return nil, at.Errf("egress %s: transport %s: only http can be given here, for its options", name, segment[1].Text)
			}
			transport = true
		}
		rest = append(rest, segment...)
	}

	scoped := tokenprovider.Provider(provider)
	if inline {
		if err := provider.Validate(); err != nil {
			return nil, lines.Of(err, start).Errf("egress %s: %w", name, err)
		}
		t.ProviderRaw = caddyconfig.JSONModuleObject(provider, "name", name, nil)
	} else if t.Scopes != nil {
		var err error
		if scoped, err = provider.WithScopes(t.Scopes); err != nil {
			return nil, lines.Of(err, start).Errf("egress %s: %w", name, err)
		}
	}

	var args []string
	if !upstreams {
		args = []string{scoped.API().URL}
	}
	return proxy(h, t, scoped.API(), delegate(start, "reverse_proxy", args, rest, d.Token()))
}

// proxy returns the reverse_proxy that d describes, with t for its transport.
// The transport is wrapped after parsing: for an https upstream reverse_proxy
// makes one of its own.
func proxy(h httpcaddyfile.Helper, t *Transport, api tokenprovider.API, d *caddyfile.Dispenser) (caddyhttp.MiddlewareHandler, error) {
	handler := new(reverseproxy.Handler)
	if err := handler.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	if err := handler.FinalizeUnmarshalCaddyfile(h); err != nil {
		return nil, err
	}
	if handler.TransportRaw != nil {
		if err := json.Unmarshal(handler.TransportRaw, &t.HTTPTransport); err != nil {
			return nil, err
		}
	}
	if handler.Headers != nil {
		kept, lost := headersSetBy(handler.Headers.Request, api.CredentialHeaders)
		t.KeepHeaders = kept
		for _, name := range lost {
			caddy.Log().Named("caddyfile").Warn("header_up has no effect: the header never reaches the API", zap.String("header", name))
		}
	}
	handler.TransportRaw = caddyconfig.JSONModuleObject(t, "protocol", "egress", nil)

	if checks := handler.HealthChecks; checks != nil && checks.Active != nil && len(handler.Upstreams) == 1 {
		caddy.Log().Named("caddyfile").Warn("active health checks of the only upstream: while they fail, no request gets through, not even one that would succeed",
			zap.String("upstream", handler.Upstreams[0].Dial))
	}
	return handler, nil
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
//	    revoke_on_stop
//	    keep_headers   <names...>
//
//	    replay_buffer <size>
//	    clients       <ranges...>|any
//	    hosts         <names...>|any
//	    origins       <origins...>
//	    allow         [<methods>] <paths...>
//	    api_hosts     <host[:port]...>
//	    allow_http
//	    respect_rate_limit
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
	var rest []caddyfile.Token
	var scopes, tokenOption *caddyfile.Dispenser // where they stand
	for d.NextBlock(0) {
		at := option.At(d)
		var err error
		known := true
		switch d.Val() {
		case "credential":
			err = option.String(d, &t.CredentialName)
		case "scopes":
			scopes = at
			err = option.Strings(d, &t.Scopes)
		case "keep_headers":
			err = option.Strings(d, &t.KeepHeaders)
		case "provider":
			err = t.unmarshalProvider(d)
		default:
			if known, err = t.RouteOptions.UnmarshalOption(d); known {
				break
			}
			if known, err = t.Credential.UnmarshalOption(d); known {
				tokenOption = at
			}
		}
		if err != nil {
			return err
		}
		if !known {
			rest = append(rest, d.NextSegment()...)
		}
	}
	switch {
	case t.CredentialName == "" && t.ProviderRaw == nil:
		return start.Errf("transport egress: credential or provider is required")
	case t.CredentialName != "" && t.ProviderRaw != nil:
		return start.Errf("transport egress: credential and provider exclude each other")
	case t.Scopes != nil && t.ProviderRaw != nil:
		return scopes.Errf("transport egress: scopes belong to the provider")
	case t.CredentialName != "" && tokenOption != nil:
		return tokenOption.Errf("transport egress: %s belongs where the credential is defined, in the global option", tokenOption.Val())
	}
	return t.HTTPTransport.UnmarshalCaddyfile(delegate(start, "http", nil, rest, d.Token()))
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
	provider, ok := newProvider(name)
	if !ok {
		return d.Errf("provider: %q is none of %s", name, strings.Join(providerNames(), ", "))
	}
	if err := provider.UnmarshalCaddyfile(d.NewFromNextSegment()); err != nil {
		return err
	}
	t.ProviderRaw = caddyconfig.JSONModuleObject(provider, "name", name, nil)
	return nil
}

// UnmarshalOption reads the current subdirective if it is a route option.
func (o *RouteOptions) UnmarshalOption(d *caddyfile.Dispenser) (known bool, err error) {
	name := d.Val()
	switch name {
	case "replay_buffer":
		err = option.Size(d, &o.ReplayBuffer)
	case "clients":
		err = option.Strings(d, &o.Clients)
		o.Clients = expandPrivateRanges(o.Clients)
	case "hosts":
		err = option.Strings(d, &o.Hosts)
	case "origins":
		err = option.Strings(d, &o.Origins)
	case "allow":
		err = o.unmarshalAllow(d)
	case "api_hosts":
		err = option.Strings(d, &o.APIHosts)
	case "allow_http":
		err = option.Flag(d, &o.AllowHTTP)
	case "respect_rate_limit":
		err = option.Flag(d, &o.RespectRateLimit)
	default:
		return false, nil
	}
	if err != nil {
		return true, err
	}
	if err := o.validate(); err != nil {
		return true, d.WrapErr(err)
	}
	return true, nil
}

// unmarshalAllow reads `allow [<methods>] <paths...>`.
func (o *RouteOptions) unmarshalAllow(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	var operation Operation
	if len(args) > 0 && !strings.ContainsAny(args[0], "/*") {
		operation.Methods = strings.Split(args[0], ",")
		args = args[1:]
	}
	operation.Paths = args
	if err := operation.validate(); err != nil {
		return d.WrapErr(err)
	}
	o.Allow = append(o.Allow, operation)
	return option.End(d, "allow")
}

// expandPrivateRanges replaces `private_ranges` by what it stands for.
func expandPrivateRanges(ranges []string) []string {
	i := slices.Index(ranges, "private_ranges")
	if i < 0 {
		return ranges
	}
	return slices.Concat(ranges[:i], caddyhttp.PrivateRangesCIDR(), ranges[i+1:])
}

// UnmarshalOption reads the current subdirective if it is an option of token requests.
func (c *Credential) UnmarshalOption(d *caddyfile.Dispenser) (bool, error) {
	switch d.Val() {
	case "refresh_before":
		return true, option.Duration(d, &c.RefreshBefore)
	case "token_timeout":
		return true, option.Duration(d, &c.TokenTimeout)
	case "token_ca":
		return true, option.Strings(d, &c.TokenCA)
	case "revoke_on_stop":
		return true, option.Flag(d, &c.RevokeOnStop)
	}
	return false, nil
}

// newProvider returns a provider without configuration, by its name.
func newProvider(name string) (providerModule, bool) {
	info, err := caddy.GetModule("egress.providers." + name)
	if err != nil {
		return nil, false
	}
	provider, ok := info.New().(providerModule)
	return provider, ok
}

// namedProvider returns the provider of a credential in the global option.
func namedProvider(h httpcaddyfile.Helper, name string) (providerModule, error) {
	app := new(App)
	if configured, ok := h.Option("egress").(httpcaddyfile.App); ok {
		if err := json.Unmarshal(configured.Value, app); err != nil {
			return nil, err
		}
	}
	credential, ok := app.Credentials[name]
	if !ok {
		return nil, unknownCredential(name, app.Credentials)
	}
	var module struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(credential.ProviderRaw, &module); err != nil {
		return nil, err
	}
	provider, ok := newProvider(module.Name)
	if !ok {
		return nil, fmt.Errorf("credential %s: %q is no provider", name, module.Name)
	}
	return provider, json.Unmarshal(credential.ProviderRaw, provider)
}

// unknownCredential lists what there is instead of the credential name.
func unknownCredential(name string, credentials map[string]*Credential) error {
	if len(credentials) == 0 {
		return fmt.Errorf("%q is neither a provider (%s) nor a credential; the global option egress defines none",
			name, strings.Join(providerNames(), ", "))
	}
	return fmt.Errorf("%q is neither a provider (%s) nor a credential; there are %s",
		name, strings.Join(providerNames(), ", "), strings.Join(slices.Sorted(maps.Keys(credentials)), ", "))
}

// isOption reports whether the current subdirective is an option of such a
// provider, or one of token requests.
func isOption(d *caddyfile.Dispenser, provider providerModule) bool {
	another := provider.CaddyModule().New().(option.Unmarshaler)
	known, _ := firstOf(option.At(d), another, new(Credential))
	return known
}

// apiURLArg reads an optional last argument as the provider's api_url. Errors
// are about what.
func apiURLArg(d *caddyfile.Dispenser, provider option.Unmarshaler, what string) error {
	if !d.NextArg() {
		return nil
	}
	if err := option.Set(d, provider, "api_url"); err != nil {
		return err
	}
	if err := option.Origin("api_url", d.Val()); err != nil {
		return d.Errf("%s: %w", what, err)
	}
	if d.NextArg() {
		return d.Errf("%s: unexpected argument %q", what, d.Val())
	}
	return nil
}

// firstOf lets the first of owners that knows the current subdirective read it.
func firstOf(d *caddyfile.Dispenser, owners ...option.Unmarshaler) (bool, error) {
	for _, owner := range owners {
		if known, err := owner.UnmarshalOption(d); known || err != nil {
			return true, err
		}
	}
	return false, nil
}

// delegate returns the tokens of `<name> <args...> { <rest...> }`, on the line
// of start. Those of rest keep their lines, for errors; end is the brace that
// closes their block.
func delegate(start *caddyfile.Dispenser, name string, args []string, rest []caddyfile.Token, end caddyfile.Token) *caddyfile.Dispenser {
	// made afresh: a copy of a quoted token would be no brace
	token := func(text string) caddyfile.Token {
		return caddyfile.Token{File: start.File(), Line: start.Line(), Text: text}
	}
	tokens := []caddyfile.Token{token(name)}
	for _, arg := range args {
		tokens = append(tokens, token(arg))
	}
	if len(rest) > 0 {
		tokens = append(tokens, token("{"))
		tokens = append(tokens, rest...)
		tokens = append(tokens, end)
	}
	return caddyfile.NewDispenser(tokens)
}

// Interface guards
var (
	_ caddyfile.Unmarshaler = (*App)(nil)
	_ caddyfile.Unmarshaler = (*Transport)(nil)
	_ option.Unmarshaler    = (*RouteOptions)(nil)
	_ option.Unmarshaler    = (*Credential)(nil)
)
