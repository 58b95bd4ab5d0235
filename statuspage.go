package egress

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokenprovider/oauth2"
)

func init() {
	caddy.RegisterModule(StatusPage{})
	httpcaddyfile.RegisterHandlerDirective("egress_status", parseStatusPage)
	httpcaddyfile.RegisterDirectiveOrder("egress_status", httpcaddyfile.Before, "respond")
}

// StatusPage serves a page for people who would rather look than run a command:
// what fails, since when and what to do, the credentials with their tokens, the
// callers with their requests. It only shows, and refreshes by itself. It shows
// names and states, and no secret, no token and no client identifier.
//
// The page is one document, which loads nothing else and works without JavaScript.
// With the query `format=json` the same is answered as JSON.
//
// The guards are those of routes. Whoever may see the page sees the names of all
// credentials, tenants and callers. Refused requests are answered with problem
// details (RFC 9457).
type StatusPage struct {
	// Peers that are served, as of a route. Default: the global option's, and where
	// that says nothing, this machine.
	Clients []string `json:"clients,omitempty"`

	// Hosts that may stand in a request's Host, as of a route. Default: the global
	// option's, and where that says nothing, as of a route.
	Hosts []string `json:"hosts,omitempty"`

	// Origins of other web pages that may read the JSON, as of a route. Default:
	// none, whatever the global option says: its origins are for the API.
	Origins []string `json:"origins,omitempty"`

	app      *App
	guard    *guard
	refusals *[outcomeCount]logLimiter
	logger   *zap.Logger
}

// CaddyModule returns the Caddy module information.
func (StatusPage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.egress_status",
		New: func() caddy.Module { return new(StatusPage) },
	}
}

var (
	statusMethods = []string{http.MethodGet, http.MethodHead}
	statusAllow   = strings.Join(statusMethods, ", ")

	// problem renders refusals: there is no API whose errors they could resemble.
	problem = new(oauth2.Provider).API().Error
)

// Provision finds the egress app and sets up the guard.
func (h *StatusPage) Provision(ctx caddy.Context) error {
	h.logger = ctx.Logger()
	h.refusals = new([outcomeCount]logLimiter)
	loaded, err := ctx.App("egress")
	if err != nil {
		return err
	}
	h.app = loaded.(*App)
	options := h.guards().withDefaults(RouteOptions{Clients: h.app.Clients, Hosts: h.app.Hosts})
	if err := options.validate(); err != nil {
		return err
	}
	// who calls does not matter: a grant lends the API, not the page
	if h.guard, err = newGuard(ctx, options, tokenprovider.API{}, nil); err != nil {
		return err
	}
	h.guard.cors.methods = statusAllow
	return nil
}

// guards returns the options as those of a route.
func (h *StatusPage) guards() RouteOptions {
	return RouteOptions{Clients: h.Clients, Hosts: h.Hosts, Origins: h.Origins}
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *StatusPage) ServeHTTP(w http.ResponseWriter, req *http.Request, _ caddyhttp.Handler) error {
	repl, _ := req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	_, r := h.guard.check(req, repl)
	if r == nil && !slices.Contains(statusMethods, req.Method) || r != nil && r.status == http.StatusMethodNotAllowed {
		r = &refusal{
			status: http.StatusMethodNotAllowed, outcome: outcomeBadRequest, key: keyMethodNotAllowed, proxyError: "http_request_error",
			message: "the status page takes " + statusAllow, allow: statusAllow,
		}
	}
	if r != nil {
		return h.refuse(w, req, repl, r)
	}

	report := h.app.statusReport(time.Now())
	var body bytes.Buffer
	header := w.Header()
	// the query, since it needs no header that a cache or a person would have to know of
	if req.URL.Query().Get("format") == "json" {
		header.Set("Content-Type", "application/json")
		if err := json.NewEncoder(&body).Encode(report); err != nil {
			return err
		}
	} else {
		header.Set("Content-Type", "text/html; charset=utf-8")
		header.Set("Content-Security-Policy", statusPolicy)
		if err := statusTemplate.Execute(&body, report); err != nil {
			return err
		}
	}
	header.Set("Content-Length", strconv.Itoa(body.Len()))
	header.Set("Proxy-Status", proxyName+`; details="status"`)
	completeStatus(header)
	h.guard.cors.expose(header, repl, false)
	_, err := body.WriteTo(w)
	return err
}

// completeStatus completes the header of an answer: it is for this client, now.
func completeStatus(header http.Header) {
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
}

// refuse answers in place of the page.
func (h *StatusPage) refuse(w http.ResponseWriter, req *http.Request, repl *caddy.Replacer, r *refusal) error {
	if r.logged() {
		h.logRefusal(req, r)
	}
	completeStatus(w.Header())
	h.guard.cors.refused(w.Header(), repl, r)
	return r.write(w, req, problem)
}

// logRefusal logs one refusal of a kind a second, with the number of those that
// were left out before it.
func (h *StatusPage) logRefusal(req *http.Request, r *refusal) {
	leftOut, ok := h.refusals[r.outcome].next(time.Now())
	if !ok {
		return
	}
	h.logger.Warn("refused a request", r.fields(req, leftOut, zap.String("outcome", r.name()))...)
}

//go:embed statuspage.html
var statusHTML string

var statusTemplate = template.Must(template.New("status").Funcs(template.FuncMap{
	"ago":      func(at, now time.Time) string { return span(now.Sub(at)) },
	"clock":    clock,
	"number":   func(n any) string { return number(reflect.Indirect(reflect.ValueOf(n)).Int()) },
	"sentence": func(text string) string { return strings.ToUpper(text[:1]) + text[1:] + "." },
	"symbol":   func(h health) string { return healthSymbols[h] },
	"until":    func(at, now time.Time) string { return inSpan(at.Sub(now)) },

	// what the templates of parts are given
	"problem": func(p problemReport, now time.Time) any {
		return struct {
			Problem problemReport
			Now     time.Time
		}{p, now}
	},
	"rows": func(group credentialGroup, report *statusReport) any {
		return struct {
			Group credentialGroup
			Now   time.Time
			Store *StoreStatus
		}{group, report.Time, report.Store}
	},
}).Parse(statusHTML))

// statusPolicy is the Content-Security-Policy of the page: it runs its own script
// and style, and asks for itself again. The icon is in the page. A nonce would not
// do: the page that is asked for is read under the policy of the one that asks.
var statusPolicy = fmt.Sprintf("default-src 'none'; script-src %s; style-src %s; img-src data:; connect-src 'self'; "+
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'", policyHash("script"), policyHash("style"))

// policyHash returns the hash of an element of the page, as a policy has it.
func policyHash(element string) string {
	var page strings.Builder
	if err := statusTemplate.Execute(&page, new(statusReport)); err != nil {
		panic(err)
	}
	_, content, _ := strings.Cut(page.String(), "<"+element+">")
	content, _, _ = strings.Cut(content, "</"+element+">")
	hash := sha256.Sum256([]byte(content))
	return "'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'"
}

// span returns a duration as people say it, in at most two units.
func span(d time.Duration) string {
	seconds := int64(max(d, 0).Round(time.Second) / time.Second)
	minutes, hours, days := seconds/60, seconds/3600, seconds/86400
	switch {
	case days > 0:
		return fmt.Sprintf("%dd %dh", days, hours%24)
	case hours > 0:
		return fmt.Sprintf("%dh %dm", hours, minutes%60)
	case minutes > 0:
		return fmt.Sprintf("%dm %ds", minutes, seconds%60)
	}
	return fmt.Sprintf("%ds", seconds)
}

// inSpan says when something is that is due in d.
func inSpan(d time.Duration) string {
	if d <= 0 {
		return "now"
	}
	return "in " + span(d)
}

// clock returns the time of day, with the date unless that is today's.
func clock(at, now time.Time) string {
	at, now = at.Local(), now.Local()
	if at.YearDay() == now.YearDay() && at.Year() == now.Year() {
		return at.Format(time.TimeOnly)
	}
	return at.Format(time.DateTime)
}

// number returns n in groups of three digits.
func number(n int64) string {
	digits := strconv.FormatInt(n, 10)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + "\u202f" + digits[i:] // a narrow space, which does not break
	}
	return digits
}

// parseStatusPage sets up the handler from Caddyfile tokens. Syntax:
//
//	egress_status [<matcher>] {
//	    clients <ranges...>|any
//	    hosts   <names...>|any
//	    origins <origins...>
//	}
//
// The block is optional.
func parseStatusPage(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	page := new(StatusPage)
	return page, page.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens; for the syntax see
// the directive.
func (h *StatusPage) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return unmarshalGuards(d, "egress_status", &h.Clients, &h.Hosts, &h.Origins)
}

// Interface guards
var (
	_ caddy.Provisioner           = (*StatusPage)(nil)
	_ caddyhttp.MiddlewareHandler = (*StatusPage)(nil)
	_ caddyfile.Unmarshaler       = (*StatusPage)(nil)
)
