package egress

import (
	"encoding/json"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(Ready{})
	httpcaddyfile.RegisterHandlerDirective("egress_ready", parseReady)
	httpcaddyfile.RegisterDirectiveOrder("egress_ready", httpcaddyfile.Before, "respond")
}

// Ready answers probes of load balancers and of Kubernetes: 200 once every
// credential in use has had its first token, and 503 before. The names of those
// that have none yet are for peers in the global option clients only, by default
// this machine. It does not turn back when a token endpoint fails later: an
// instance that can still serve would be taken out with all others.
type Ready struct {
	app   *App
	guard *guard // of the peers that are told names
}

// CaddyModule returns the Caddy module information.
func (Ready) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.egress_ready",
		New: func() caddy.Module { return new(Ready) },
	}
}

// Provision finds the egress app.
func (h *Ready) Provision(ctx caddy.Context) error {
	app, err := ctx.App("egress")
	if err != nil {
		return err
	}
	h.app = app.(*App)
	clients, err := parseClients(h.app.Clients)
	h.guard = &guard{clients: clients}
	return err
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Ready) ServeHTTP(w http.ResponseWriter, req *http.Request, _ caddyhttp.Handler) error {
	answer := struct {
		Ready   bool     `json:"ready"`
		Waiting []string `json:"waiting,omitempty"` // credentials without a token yet
	}{}
	for _, c := range h.app.credentials() {
		if !c.isFamily() && !c.source.Status().Ready { // tenants get theirs when they are first used
			answer.Waiting = append(answer.Waiting, c.name())
		}
	}
	answer.Ready = len(answer.Waiting) == 0
	if h.guard.checkClient(req) != nil {
		answer.Waiting = nil
	}

	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if !answer.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	return json.NewEncoder(w).Encode(answer)
}

// parseReady sets up the handler from Caddyfile tokens. Syntax:
//
//	egress_ready [<matcher>]
func parseReady(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	r := new(Ready)
	return r, r.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens.
func (h *Ready) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	if d.NextArg() {
		return d.Errf("egress_ready: unexpected argument %q", d.Val())
	}
	if d.NextBlock(0) {
		return d.Err("egress_ready: takes no block")
	}
	return nil
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Ready)(nil)
	_ caddyhttp.MiddlewareHandler = (*Ready)(nil)
	_ caddyfile.Unmarshaler       = (*Ready)(nil)
)
