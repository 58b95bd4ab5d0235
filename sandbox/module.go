package sandbox

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(Handler{})
	httpcaddyfile.RegisterHandlerDirective("sandbox", parseCaddyfile)
	httpcaddyfile.RegisterDirectiveOrder("sandbox", httpcaddyfile.Before, "respond")
}

// Handler imitates the Understory or the Voucherify API and the OAuth 2.0
// token endpoint in front of it, so that a gateway can be tried without
// credentials. It issues tokens that live for as long as the real ones and
// answers only those who hold one. What it serves is sample data in memory.
//
// Below `/sandbox/` it can be made to misbehave, by anyone who reaches it:
// `GET /sandbox/stats` tells what it was asked, `POST /sandbox/tokens/revoke`
// revokes all live tokens, and `PUT /sandbox/faults` delays or replaces the
// answers of the token endpoint or of the API.
//
// Handlers of the same API and client share tokens, counters, faults and data,
// which survive config reloads.
type Handler struct {
	// The API to imitate: `understory` or `voucherify`. Required.
	API string `json:"api,omitempty"`

	// The client ID of Understory's only client. Placeholders are replaced
	// when the config loads. Default: `sandbox`.
	ClientID string `json:"client_id,omitempty"`

	// The client secret that goes with it. Placeholders are replaced when
	// the config loads. Default: `sandbox-secret`.
	ClientSecret string `json:"client_secret,omitempty"`

	// The application ID of Voucherify's only app. Placeholders are replaced
	// when the config loads. Default: `sandbox`.
	AppID string `json:"app_id,omitempty"`

	// The application token that goes with it. Placeholders are replaced
	// when the config loads. Default: `sandbox-secret`.
	AppToken string `json:"app_token,omitempty"`

	// How long a token lives. A new value holds for new tokens.
	// Default: `3599s` for Understory, `900s` for Voucherify.
	Lifetime caddy.Duration `json:"lifetime,omitempty"`

	server *Server
	key    *stateKey // of the state in use, to release
}

// stateKey tells apart what handlers share.
type stateKey struct{ api, clientID string }

// states holds what outlives configs.
var states = caddy.NewUsagePool()

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.sandbox",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Provision sets up the handler with the state that others like it use.
func (h *Handler) Provision(caddy.Context) error {
	o, err := h.options()
	if err != nil {
		return err
	}
	key := stateKey{o.API, o.ClientID}
	st, _, err := states.LoadOrNew(key, func() (caddy.Destructor, error) { return newState(o.API) })
	if err != nil {
		return err
	}
	h.key = &key
	h.server = newServer(o, st.(*state))
	return nil
}

// options returns what h was configured to, with placeholders replaced.
func (h *Handler) options() (Options, error) {
	o := Options{API: h.API, Lifetime: time.Duration(h.Lifetime)}
	if err := checkAPI(h.API); err != nil {
		return o, err
	}
	repl := caddy.NewReplacer()
	for _, opt := range h.texts() {
		if *opt.value == "" {
			continue
		}
		if opt.api != h.API {
			return o, fmt.Errorf("%s is an option of %s, not of %s", opt.name, opt.api, h.API)
		}
		value, err := repl.ReplaceOrErr(*opt.value, true, true)
		if err != nil || value == "" { // err could quote a secret that holds braces
			return o, fmt.Errorf("%s holds a placeholder that is unknown or empty", opt.name)
		}
		if opt.secret {
			o.ClientSecret = value
			continue
		}
		o.ClientID = value
	}
	return o.withDefaults()
}

// text is an option of one API that takes one value.
type text struct {
	name, api string
	value     *string
	secret    bool
}

func (h *Handler) texts() []text {
	return []text{
		{"client_id", apiUnderstory, &h.ClientID, false},
		{"client_secret", apiUnderstory, &h.ClientSecret, true},
		{"app_id", apiVoucherify, &h.AppID, false},
		{"app_token", apiVoucherify, &h.AppToken, true},
	}
}

// Cleanup lets go of the state. It runs after a failed Provision as well.
func (h *Handler) Cleanup() error {
	if h.key == nil {
		return nil
	}
	_, err := states.Delete(*h.key)
	h.key = nil
	return err
}

// ServeHTTP answers every request; there is nothing behind a sandbox.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	h.server.ServeHTTP(w, r)
	return nil
}

func parseCaddyfile(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	return handler, handler.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	sandbox [<matcher>] understory {
//	    client_id     <id>
//	    client_secret <secret>
//	    lifetime      <duration>
//	}
//
//	sandbox [<matcher>] voucherify {
//	    app_id    <id>
//	    app_token <secret>
//	    lifetime  <duration>
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume directive name
	args := d.RemainingArgs()
	if len(args) != 1 {
		return d.Errf("sandbox takes the name of one API: %s or %s", apiUnderstory, apiVoucherify)
	}
	h.API = args[0]
	if err := checkAPI(h.API); err != nil {
		return d.Errf("sandbox: %v", err)
	}

	seen := make(map[string]bool)
	for d.NextBlock(0) {
		name := d.Val()
		set := h.setter(name)
		if set == nil {
			return d.Errf("sandbox %s: unknown option %q; there are: %s", h.API, name, h.optionNames())
		}
		if seen[name] {
			return d.Errf("sandbox %s: %s is given twice", h.API, name)
		}
		seen[name] = true
		values := d.RemainingArgs()
		if len(values) != 1 || values[0] == "" {
			return d.Errf("sandbox %s: %s takes one value", h.API, name)
		}
		if err := set(values[0]); err != nil {
			return d.Errf("sandbox %s: %s: %v", h.API, name, err)
		}
	}
	return nil
}

// setter returns what sets the option of that name, or nil if h.API has none.
func (h *Handler) setter(name string) func(string) error {
	if name == "lifetime" {
		return h.setLifetime
	}
	for _, opt := range h.texts() {
		if opt.name == name && opt.api == h.API {
			return func(value string) error { *opt.value = value; return nil }
		}
	}
	return nil
}

func (h *Handler) setLifetime(value string) error {
	d, err := caddy.ParseDuration(value)
	if err != nil {
		return err
	}
	if d <= 0 {
		return fmt.Errorf("%s is no time to live", value)
	}
	h.Lifetime = caddy.Duration(d)
	return nil
}

// optionNames lists the options of h.API.
func (h *Handler) optionNames() string {
	var names strings.Builder
	for _, opt := range h.texts() {
		if opt.api == h.API {
			names.WriteString(opt.name + ", ")
		}
	}
	return names.String() + "lifetime"
}

// Interface guards
var (
	_ http.Handler                = (*Server)(nil)
	_ caddy.Module                = (*Handler)(nil)
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddy.Destructor            = (*state)(nil)
	_ caddyfile.Unmarshaler       = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
