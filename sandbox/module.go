package sandbox

// This file is the Caddy module and its Caddyfile grammar.

import (
	"errors"
	"net/http"
	"os"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-egress/caddy-egress/internal/option"
)

// secretVariable has the secret that a sandbox expects where it is not configured.
// Where it is not set, it is set here, so that a gateway in the same process can
// read it as it would read a real one.
const secretVariable = "SANDBOX_SECRET"

func init() {
	if os.Getenv(secretVariable) == "" {
		_ = os.Setenv(secretVariable, defaultSecret) // nothing to be done; the config that needs it says so
	}
	caddy.RegisterModule(Handler{})
	httpcaddyfile.RegisterHandlerDirective("sandbox", parseCaddyfile)
	httpcaddyfile.RegisterDirectiveOrder("sandbox", httpcaddyfile.Before, "respond")
}

// Handler imitates the Understory or the Voucherify API and the OAuth 2.0
// token endpoint in front of it, so that a gateway can be tried without
// credentials. It issues tokens that live for as long as the real ones and
// answers only those who hold one. What it serves is sample data in memory;
// each client ID sees a company of its own.
//
// Below `/sandbox/` it can be made to misbehave, by anyone who reaches it:
// `GET /sandbox/stats` counts what it was asked, `POST /sandbox/tokens/revoke`
// and `POST /sandbox/tokens/expire` end all live tokens, and
// `PUT /sandbox/faults` delays or replaces the answers of the token endpoint or
// of the API.
//
// Handlers of the same API and client share tokens, counters, faults and data,
// which survive config reloads. In IDs and secrets, placeholders are replaced
// when the config loads.
type Handler struct {
	// The API to imitate: `understory` or `voucherify`. Required.
	API string `json:"api,omitempty"`

	// The ID of Understory's only client. Default: `sandbox`.
	ClientID string `json:"client_id,omitempty"`

	// The secret that goes with it. Default: the environment variable
	// SANDBOX_SECRET, which the sandbox sets to `sandbox-secret` if it is not set.
	ClientSecret string `json:"client_secret,omitempty"`

	// The application ID of Voucherify's only app. Default: `sandbox`.
	AppID string `json:"app_id,omitempty"`

	// The application token that goes with it. Default: as client_secret.
	AppToken string `json:"app_token,omitempty"`

	// How long a token lives. A new value holds for new tokens.
	// Default: `3599s` for Understory, `900s` for Voucherify.
	Lifetime caddy.Duration `json:"lifetime,omitempty"`

	server *Server
	key    *stateKey // of the state in use, to release
}

// stateKey is what handlers have in common that share a state.
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
	st, _, err := states.LoadOrNew(key, func() (caddy.Destructor, error) { return newState(o) })
	if err != nil {
		return err
	}
	h.key = &key
	h.server = newServer(o, st.(*state))
	return nil
}

// options returns what h was configured to, with placeholders replaced.
func (h *Handler) options() (o Options, err error) {
	if err := checkAPI(h.API); err != nil {
		return o, err
	}
	if h.API == apiUnderstory && h.AppID+h.AppToken != "" || h.API == apiVoucherify && h.ClientID+h.ClientSecret != "" {
		return o, errors.New("client_id and client_secret are options of understory, app_id and app_token of voucherify")
	}
	o.API, o.Lifetime, o.ClientSecret = h.API, time.Duration(h.Lifetime), os.Getenv(secretVariable)
	id, secret := &o.ClientID, &o.ClientSecret
	resolved := map[string]*string{"client_id": id, "client_secret": secret, "app_id": id, "app_token": secret}
	for name, value := range h.texts() {
		if *value == "" {
			continue
		}
		if *resolved[name], err = option.Resolve(name, *value); err != nil {
			return o, err
		}
	}
	return o.withDefaults()
}

// texts are the options of h.API but the lifetime.
func (h *Handler) texts() map[string]*string {
	if h.API == apiVoucherify {
		return map[string]*string{"app_id": &h.AppID, "app_token": &h.AppToken}
	}
	return map[string]*string{"client_id": &h.ClientID, "client_secret": &h.ClientSecret}
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
//	sandbox [<matcher>] understory|voucherify {
//	    client_id     <id>          # of understory
//	    client_secret <secret>
//	    app_id        <id>          # of voucherify
//	    app_token     <secret>
//	    lifetime      <duration>
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume directive name
	args := d.RemainingArgs()
	if len(args) != 1 || checkAPI(args[0]) != nil {
		return d.Errf("sandbox takes the name of one API: %s or %s", apiUnderstory, apiVoucherify)
	}
	h.API = args[0]
	readers := h.readers()
	_, err := option.Block(d, readers, option.Unknown("sandbox "+h.API, readers))
	return err
}

// readers returns what reads the options of h.API.
func (h *Handler) readers() option.Table {
	readers := option.Table{
		"lifetime": func(d *caddyfile.Dispenser) error { return option.Duration(d, &h.Lifetime) },
	}
	for name, value := range h.texts() {
		readers[name] = func(d *caddyfile.Dispenser) error { return option.String(d, value) }
	}
	return readers
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyfile.Unmarshaler       = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
