package egress

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

func init() {
	caddy.RegisterModule(Unreachable{})
}

// Unreachable answers in place of an API that did not: with the status of the
// error that reverse_proxy returned, the key `api_unreachable`, and a body in the
// shape of the API's own errors. Caddy's own answer has none. The directive egress
// puts it in front of its reverse_proxy.
//
// It sees the error last, so retries and health checks work as they do without
// it, and it passes the error on, so Caddy logs and counts it. On a server with
// error routes, which `handle_errors` adds for all sites of a listener, it leaves
// the answer to those.
type Unreachable struct {
	// Name of the provider of the API, whose errors the body looks like.
	// Default: problem details (RFC 9457), as `oauth2` has them.
	Provider string `json:"provider,omitempty"`

	// Origins of web pages that may read the answer, as of the route. Default:
	// those of the global option.
	Origins []string `json:"origins,omitempty"`

	render renderer
	cors   cors
}

// CaddyModule returns the Caddy module information.
func (Unreachable) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.egress_unreachable",
		New: func() caddy.Module { return new(Unreachable) },
	}
}

// Provision finds out how errors of the API look.
func (h *Unreachable) Provision(ctx caddy.Context) error {
	app, err := ctx.App("egress")
	if err != nil {
		return err
	}
	if h.Provider == "" {
		h.Provider = "oauth2"
	}
	module, err := caddy.GetModule(providerNamespace + "." + h.Provider)
	if err != nil {
		return option.Errorf("provider", "%q is not a provider", h.Provider)
	}
	provider, ok := module.New().(tokenprovider.Provider)
	if !ok {
		return option.Errorf("provider", "%s does not issue tokens", h.Provider)
	}
	api := provider.API()
	h.render = api.Error
	options := RouteOptions{Origins: h.Origins}.withDefaults(RouteOptions{Origins: app.(*App).Origins})
	h.cors = newCORS(options, api)
	return options.validate()
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Unreachable) ServeHTTP(w http.ResponseWriter, req *http.Request, next caddyhttp.Handler) error {
	err := next.ServeHTTP(w, req)
	failure, ok := errors.AsType[caddyhttp.HandlerError](err)
	if !ok {
		return err
	}
	server, _ := req.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if server == nil || server.Errors != nil && len(server.Errors.Routes) > 0 {
		return err
	}
	vars, _ := req.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	last, _ := vars[reportVar].(*report)
	r := unreachable(failure, last)
	if r == nil {
		return err
	}
	if last != nil { // not the variables, which a connection that is still being dialed reads
		if last.answered {
			return err
		}
		last.answered = true
	}
	repl, _ := req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	h.cors.expose(w.Header(), repl, false)
	_ = r.write(w, req, h.render) // the client may have left
	return err
}

// unreachable returns what a client is told of a failure of reverse_proxy, or nil
// if it is not about the API. last is what became of the last try, nil if there was
// none. The cause, with names and addresses, is for the log.
func unreachable(failure caddyhttp.HandlerError, last *report) *refusal {
	r := &refusal{status: failure.StatusCode, key: keyAPIUnreachable, proxyError: "destination_unavailable"}
	noUpstream := failure.StatusCode == http.StatusServiceUnavailable
	switch {
	case strings.Contains(failure.Error(), "matched retry_match"): // whatever the status
		r.message = fmt.Sprintf("the last attempt was answered with %d", r.status)
		return r
	case noUpstream && last == nil:
	case last == nil || last.failure == nil || r.status < 500: // another handler has failed, or the client
		return nil
	}
	switch {
	case last != nil && last.reached && r.status == http.StatusGatewayTimeout:
		r.message, r.proxyError = "the API did not answer in time; whether it has performed the request is not known", "http_response_timeout"
	case last != nil && last.reached:
		r.message, r.proxyError = "the gateway got no answer from the API; whether the API has performed the request is not known", "connection_terminated"
	case noUpstream:
		r.message = "no upstream of the API is available"
	case failedVerification(last.failure):
		r.message, r.proxyError = "the gateway could not verify the certificate of the API", "tls_certificate_error"
	case failedTLS(last.failure):
		r.message, r.proxyError = "the gateway could not set up TLS with the API", "tls_protocol_error"
	default:
		r.message = "the gateway could not connect to the API"
	}
	return r
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Unreachable)(nil)
	_ caddyhttp.MiddlewareHandler = (*Unreachable)(nil)
)
