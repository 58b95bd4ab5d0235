package egress

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

func init() {
	caddy.RegisterModule(Unreachable{})
}

// Unreachable answers in place of an API that did not: with the status of the
// error that reverse_proxy returned (502, 503 or 504), the key `api_unreachable`,
// and a body in the shape of the API's own errors. Caddy's own answer has none.
// The directive egress puts it in front of its reverse_proxy.
//
// It sees the error last, so retries and health checks work as they do without
// it. On a server with error routes, which `handle_errors` adds for all sites of a
// listener, it leaves the error to those.
type Unreachable struct {
	// Name of the provider of the API, whose errors the body looks like.
	// Default: problem details (RFC 9457), as `oauth2` has them.
	Provider string `json:"provider,omitempty"`

	// Origins of web pages that may read the answer, as of the route. Default:
	// those of the global option.
	Origins []string `json:"origins,omitempty"`

	render func(status int, key, message string) (contentType string, body []byte)
	cors   cors
	logs   *logLimiter
	logger *zap.Logger
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
	h.logger, h.logs = ctx.Logger(), new(logLimiter)
	app, err := ctx.App("egress")
	if err != nil {
		return err
	}
	if h.Provider == "" {
		h.Provider = "oauth2"
	}
	if !isProvider(h.Provider) {
		return option.Errorf("provider", "%q is not a provider", h.Provider)
	}
	module, err := caddy.GetModule(providerNamespace + "." + h.Provider)
	if err != nil {
		return err
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
	if err == nil {
		return nil
	}
	failure, ok := errors.AsType[caddyhttp.HandlerError](err)
	if !ok || !isWithoutAnswer(failure) {
		return err
	}
	server, _ := req.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if server == nil || server.Errors != nil && len(server.Errors.Routes) > 0 {
		return err
	}
	repl, _ := req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	h.log(req, repl, failure)

	resp := unreachable(failure).answer(req, h.render)
	h.cors.expose(resp.Header, repl, false)
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	_, err = io.Copy(w, resp.Body)
	return err
}

// isWithoutAnswer reports whether reverse_proxy failed for want of an answer. An
// error of a handler in its handle_response can have the same status; the trace
// says whose it is.
func isWithoutAnswer(failure caddyhttp.HandlerError) bool {
	switch failure.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return strings.HasPrefix(failure.Trace, "reverseproxy.")
	}
	return false
}

// log logs one failure a second, with the number of those that were left out
// before it.
func (h *Unreachable) log(req *http.Request, repl *caddy.Replacer, failure caddyhttp.HandlerError) {
	leftOut, ok := h.logs.next(time.Now())
	if !ok {
		return
	}
	fields := []zap.Field{
		zap.Int("status", failure.StatusCode), zap.Error(failure.Err),
		zap.String("method", req.Method), zap.String("path", req.URL.Path), zap.String("remote_addr", req.RemoteAddr),
	}
	if repl != nil {
		if name, ok := repl.GetString("http.reverse_proxy.egress.credential"); ok {
			fields = append(fields, zap.String("credential", name))
		}
	}
	if leftOut > 0 {
		fields = append(fields, zap.Int64("left_out", leftOut))
	}
	h.logger.Error("could not reach the API", fields...)
}

// unreachable returns what a client is told of a failure. The cause, with names
// and addresses, is for the log.
func unreachable(failure caddyhttp.HandlerError) *refusal {
	r := &refusal{
		status: failure.StatusCode, outcome: outcomeForwarded, key: keyAPIUnreachable, proxyError: "connection_terminated",
		message: "the gateway got no answer from the API; whether the API has performed the request is not known",
	}
	_, notDialed := errors.AsType[reverseproxy.DialError](failure.Err)
	_, notVerified := errors.AsType[*tls.CertificateVerificationError](failure.Err)
	switch {
	case strings.Contains(failure.Err.Error(), "matched retry_match"):
		r.message, r.proxyError = fmt.Sprintf("every attempt was answered with %d", r.status), "destination_unavailable"
	case r.status == http.StatusServiceUnavailable:
		r.message, r.proxyError = "no upstream of the API is available", "destination_unavailable"
	case r.status == http.StatusGatewayTimeout:
		r.message, r.proxyError = "the API did not answer in time; whether it has performed the request is not known", "http_response_timeout"
	case notDialed:
		r.message, r.proxyError = "the gateway could not connect to the API", "destination_unavailable"
	case notVerified:
		r.message, r.proxyError = "the gateway could not verify the certificate of the API", "tls_certificate_error"
	}
	return r
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Unreachable)(nil)
	_ caddyhttp.MiddlewareHandler = (*Unreachable)(nil)
)
