package egress

import (
	"encoding/json"
	"fmt"
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

// parseDirective sets up a reverse_proxy with the egress transport, and in front of
// it a handler that answers where the API cannot be reached. Syntax:
//
//	egress [<matcher>] <credential>|<provider> [<api_url>] {
//	    # with a provider: its options, and those of its token requests
//	    <provider's options...>
//	    refresh_before <duration>
//	    token_timeout  <duration>
//	    token_ca       <pem_files...>
//	    token_cert     <cert> <key>
//	    revoke_on_stop
//	    max_tenants    <n>
//
//	    # with a credential
//	    scopes <scopes...>
//
//	    tenant <placeholder>
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
// but for the handler. Upstreams given by `to` take the place of api_url.
func parseDirective(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	d := h.Dispenser
	d.Next() // the directive's name
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	d.Next() // the directive's name again
	e := directive{start: option.At(d), transport: new(Transport)}
	if !d.NextArg() {
		return nil, d.Errf("egress: needs a credential or a provider (%s)", strings.Join(providerNames(), ", "))
	}
	e.rest = others{what: "egress " + d.Val(), of: "reverse_proxy", parse: new(reverseproxy.Handler).UnmarshalCaddyfile}

	read := e.readNamed
	if isProvider(d.Val()) {
		read = e.readInline
	}
	if err := read(h); err != nil {
		return nil, err
	}
	handler, err := e.handler(h)
	if err != nil {
		return nil, err
	}
	values := h.NewRoute(matcher, &Unreachable{Provider: e.provider, Origins: e.transport.Origins})
	route := values[0].Value.(caddyhttp.Route)
	proxy := h.NewRoute(nil, handler)[0].Value.(caddyhttp.Route)
	if h.IsNamedRoute() { // of which Caddy takes one handler
		both := caddyhttp.RouteList{{HandlersRaw: slices.Concat(route.HandlersRaw, proxy.HandlersRaw)}}
		return h.NewRoute(matcher, &caddyhttp.Subroute{Routes: both}), nil
	}
	// one route, since Caddy sorts routes, and would not keep two together
	route.HandlersRaw = append(route.HandlersRaw, proxy.HandlersRaw...)
	values[0].Value = route
	return values, nil
}

// directive is an egress directive as it is read.
type directive struct {
	start     *caddyfile.Dispenser
	transport *Transport
	provider  string // its name
	api       tokenprovider.API

	rest         others // for reverse_proxy
	hasUpstreams bool
	hasTransport bool
}

// readInline reads a directive with a provider.
func (e *directive) readInline(h httpcaddyfile.Helper) error {
	name, t := h.Val(), e.transport
	provider, err := newProvider(name)
	if err != nil {
		return h.WrapErr(err)
	}
	more := option.Join(t.RouteOptions.Options(), t.Credential.Options(), e.grants(h, nil), e.tenant())
	e.rest.table = option.Join(provider.Options(), more)
	lines, err := option.ReadProvider(h.Dispenser, e.rest.what, provider, more, e.readOther)
	if err != nil {
		return err
	}
	if err := checkScopes("the provider", provider, provider.Grant().Scopes, t.Grants); err != nil {
		return lines.Wrap(fmt.Errorf("%s: %w", e.rest.what, err))
	}
	t.ProviderRaw = caddyconfig.JSONModuleObject(provider, "name", name, nil)
	e.provider, e.api = name, provider.API()
	return lines.Wrap(t.RouteOptions.validate())
}

// readNamed reads a directive with the name of a credential.
func (e *directive) readNamed(h httpcaddyfile.Helper) error {
	name, t := h.Val(), e.transport
	provider, providerName, err := namedProvider(h, name)
	if err != nil {
		return h.WrapErr(err)
	}
	if h.NextArg() {
		return h.Errf("%s: unexpected argument %q; the api_url of a credential belongs where it is defined", e.rest.what, h.Val())
	}
	t.CredentialName = name
	e.rest.table = option.Join(t.RouteOptions.Options(), e.grants(h, provider), e.tenant(), option.Table{"scopes": stringsOf(&t.Scopes)})
	elsewhere := option.Join(provider.Options(), new(Credential).Options())
	lines, err := option.Block(h.Dispenser, e.rest.table, func(d *caddyfile.Dispenser) error {
		if _, ok := elsewhere[d.Val()]; ok {
			return d.Errf("%s: %s belongs where the credential is defined, in the global option", e.rest.what, d.Val())
		}
		return e.readOther(d)
	})
	if err != nil {
		return err
	}
	if t.Scopes != nil {
		if _, err := provider.WithScopes(t.Scopes); err != nil {
			return lines.Wrap(fmt.Errorf("%s: %w", e.rest.what, err))
		}
	}
	own := t.Scopes
	if own == nil {
		own = provider.Grant().Scopes
	}
	if err := checkScopes("credential "+name, provider, own, t.Grants); err != nil {
		return lines.Wrap(fmt.Errorf("%s: %w", e.rest.what, err))
	}
	e.provider, e.api = providerName, provider.API()
	return lines.Wrap(t.RouteOptions.validate())
}

// tenant returns the reader of tenant.
func (e *directive) tenant() option.Table {
	return option.Table{"tenant": func(d *caddyfile.Dispenser) error { return option.String(d, &e.transport.Tenant) }}
}

// grants returns the reader of grants. It refuses callers that the global option
// does not define, and scopes that the provider, if it is given, cannot have.
func (e *directive) grants(h httpcaddyfile.Helper, provider tokenprovider.Provider) option.Table {
	return option.Table{"grant": func(d *caddyfile.Dispenser) error {
		at := option.At(d)
		if err := unmarshalGrant(d, &e.transport.Grants); err != nil {
			return err
		}
		g := &e.transport.Grants[len(e.transport.Grants)-1]
		app, err := configuredApp(h)
		if err == nil {
			err = app.checkCallers(g.Callers)
		}
		if err == nil && g.Scopes != nil && provider != nil {
			_, err = provider.WithScopes(g.Scopes)
		}
		if err != nil {
			return at.WrapErr(fmt.Errorf("%s: %w", g, err))
		}
		return nil
	}}
}

// readOther notes a subdirective of reverse_proxy.
func (e *directive) readOther(d *caddyfile.Dispenser) error {
	switch d.Val() {
	case "caller":
		return d.Errf("%s: a caller is defined in the global option; a grant lends it the route", e.rest.what)
	case "to":
		e.hasUpstreams = true
	case "transport":
		if e.hasTransport {
			return d.Errf("%s: transport is already given", e.rest.what)
		}
		e.hasTransport = true
		if d.NextArg() {
			if d.Val() != "http" {
				return d.Errf("%s: transport %s: only http can be given here, for its options", e.rest.what, d.Val())
			}
			d.Prev()
		}
	}
	return e.rest.add(d)
}

// handler returns the reverse_proxy that was read, with the egress transport.
// The transport is wrapped after parsing: for an https upstream reverse_proxy
// makes one of its own.
func (e *directive) handler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	var args []string
	if !e.hasUpstreams {
		args = []string{e.api.URL}
	}
	handler := new(reverseproxy.Handler)
	if err := e.rest.explain(handler.UnmarshalCaddyfile(delegate(e.start, "reverse_proxy", args, e.rest.tokens, h.Token()))); err != nil {
		return nil, err
	}
	if err := handler.FinalizeUnmarshalCaddyfile(h); err != nil {
		return nil, err
	}
	t := e.transport
	if handler.TransportRaw != nil {
		if err := json.Unmarshal(handler.TransportRaw, &t.HTTPTransport); err != nil {
			return nil, err
		}
	}
	if handler.Headers != nil {
		kept, lost := headersSetBy(handler.Headers.Request, e.api)
		t.KeepHeaders = kept
		for _, name := range lost {
			caddy.Log().Named("caddyfile").Warn("header_up has no effect: the header never reaches the API", zap.String("header", name))
		}
	}
	handler.TransportRaw = caddyconfig.JSONModuleObject(t, "protocol", "egress", nil)

	checks := handler.HealthChecks
	if checks != nil && checks.Active != nil && t.Tenant != "" {
		return nil, e.start.Errf("%s: active health checks cannot name a tenant, and without one there is no token for them; remove them", e.rest.what)
	}
	if checks != nil && checks.Active != nil && len(handler.Upstreams) == 1 {
		caddy.Log().Named("caddyfile").Warn("active health checks of the only upstream: while they fail, no request gets through, not even one that would succeed",
			zap.String("upstream", handler.Upstreams[0].Dial))
	}
	return handler, nil
}

// namedProvider returns the provider of a credential in the global option, and the
// provider's own name.
func namedProvider(h httpcaddyfile.Helper, credential string) (provider providerModule, name string, err error) {
	app, err := configuredApp(h)
	if err != nil {
		return nil, "", err
	}
	configured, ok := app.Credentials[credential]
	if !ok {
		return nil, "", unknownCredential(credential, app.Credentials)
	}
	raw := configured.ProviderRaw
	var module struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(raw, &module); err != nil {
		return nil, "", err
	}
	if provider, err = newProvider(module.Name); err != nil {
		return nil, "", fmt.Errorf("credential %s: %w", credential, err)
	}
	return provider, module.Name, json.Unmarshal(raw, provider)
}

// configuredApp returns the app of the global option, or an empty one. It is
// decoded once for all routes.
func configuredApp(h httpcaddyfile.Helper) (*App, error) {
	const key = "egress_app"
	if app, ok := h.State[key].(*App); ok {
		return app, nil
	}
	app := new(App)
	if configured, ok := h.Option("egress").(httpcaddyfile.App); ok {
		if err := json.Unmarshal(configured.Value, app); err != nil {
			return nil, err
		}
	}
	h.State[key] = app
	return app, nil
}
