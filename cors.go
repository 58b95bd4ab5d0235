package egress

import (
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

const (
	// usualMethods are the methods that pass the gateway where nothing is said.
	usualMethods = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"

	// preflightMaxAge is for how many seconds a browser may remember a preflight.
	preflightMaxAge = "600"
)

// exposedHeaders are those of an answer that pages may read beside what the
// provider names: what clients need to react to refusals and rate limits.
var exposedHeaders = []string{
	"Proxy-Status", "Retry-After", "X-Rate-Limit-Limit", "X-Rate-Limit-Remaining", "X-Rate-Limit-Reset", "X-Rate-Limit-Retry",
}

// cors lets web pages of the origins that a route serves use the gateway: it
// answers their preflights, and has browsers show them the answers. Cookies and
// other credentials of the browser are not permitted: nothing here reads them.
//
// Like the guard it judges what the client sent, which the replacer knows.
type cors struct {
	origins []string // lower case
	methods string   // the value of Access-Control-Allow-Methods
	exposed string   // the value of Access-Control-Expose-Headers
}

// newCORS returns the cors of a route to api.
func newCORS(options RouteOptions, api tokenprovider.API) cors {
	c := cors{methods: allowedMethods(options.Allow)}
	for _, origin := range options.Origins {
		c.origins = append(c.origins, strings.ToLower(origin))
	}
	var exposed []string
	for _, name := range slices.Concat(exposedHeaders, api.RemainingHeaders, api.RetryHeaders) {
		if name = http.CanonicalHeaderKey(name); !slices.Contains(exposed, name) {
			exposed = append(exposed, name)
		}
	}
	c.exposed = strings.Join(exposed, ", ")
	return c
}

// allowedMethods returns the methods of the operations that are permitted, as a
// list in a header.
func allowedMethods(allow []Operation) string {
	var methods []string
	for _, operation := range allow {
		if len(operation.Methods) == 0 {
			return usualMethods
		}
		for _, method := range operation.Methods {
			if !slices.Contains(methods, method) {
				methods = append(methods, method)
			}
		}
	}
	if len(methods) == 0 {
		return usualMethods
	}
	return strings.Join(methods, ", ")
}

// origin returns the origin of the page that sent the request, as the client
// wrote it, if it is one of those that are listed.
func (c *cors) origin(repl *caddy.Replacer) string {
	if len(c.origins) == 0 || repl == nil {
		return ""
	}
	origin, _ := repl.GetString("http.request.header.Origin")
	if origin == "" || !slices.Contains(c.origins, strings.ToLower(origin)) {
		return ""
	}
	return origin
}

// isPreflight reports whether a browser asks for a page of a listed origin what
// it may send.
func (c *cors) isPreflight(repl *caddy.Replacer) bool {
	if c.origin(repl) == "" {
		return false
	}
	method, _ := repl.GetString("http.request.method")
	requested, _ := repl.GetString("http.request.header.Access-Control-Request-Method")
	return method == http.MethodOptions && requested != ""
}

// preflight is the answer to a preflight. The request that follows it is judged
// by itself.
var preflight = &refusal{status: http.StatusNoContent, outcome: outcomePreflight}

// allowPreflight completes the header of the answer to a preflight: methods that
// are permitted, and any header, since those that must not reach the API are
// removed.
func (c *cors) allowPreflight(header http.Header, repl *caddy.Replacer) {
	header.Set("Access-Control-Allow-Methods", c.methods)
	header.Set("Access-Control-Max-Age", preflightMaxAge)
	if names, _ := repl.GetString("http.request.header.Access-Control-Request-Headers"); names != "" {
		header.Set("Access-Control-Allow-Headers", names)
	}
	// Chromium asked this before it had users permit local networks instead
	if private, _ := repl.GetString("http.request.header.Access-Control-Request-Private-Network"); private == "true" {
		header.Set("Access-Control-Allow-Private-Network", "true")
	}
	header.Set("Vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network")
}

// expose completes the header of an answer: a page of a listed origin may read
// it. Of others the header says no more than that it depends on the origin, and
// that only where the API answers: answers of the gateway's own are not stored.
func (c *cors) expose(header http.Header, repl *caddy.Replacer, ofAPI bool) {
	if len(c.origins) == 0 {
		return
	}
	origin := c.origin(repl)
	if origin != "" || ofAPI {
		addVary(header, "Origin")
	}
	if origin != "" {
		header["Access-Control-Allow-Origin"] = []string{origin}
		header["Access-Control-Expose-Headers"] = []string{c.exposed}
	}
}

// refused completes the header of a refusal, of which some are answers to preflights.
func (c *cors) refused(header http.Header, repl *caddy.Replacer, r *refusal) {
	c.expose(header, repl, false)
	if r.outcome == outcomePreflight {
		c.allowPreflight(header, repl)
	}
}

// addVary adds name to the Vary of an answer.
func addVary(header http.Header, name string) {
	vary := header["Vary"]
	for _, value := range vary {
		for member := range strings.SplitSeq(value, ",") {
			if member = strings.TrimSpace(member); member == "*" || strings.EqualFold(member, name) {
				return
			}
		}
	}
	header["Vary"] = append(slices.Clip(vary), name)
}
