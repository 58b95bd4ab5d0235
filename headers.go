package egress

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// removedHeaders do not reach the API, whoever has set them: credentials and
// sessions of the client, its address and the way the request came, and what
// makes a request mean another operation than the one that was judged. So do
// the API's own credential headers. keep_headers can keep all but Authorization.
var removedHeaders = []string{
	"Authorization", "Proxy-Authorization", "Cookie",

	"Forwarded", "X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "X-Original-Forwarded-For",
	"True-Client-Ip", "Cf-Connecting-Ip", "Via",

	"X-Http-Method-Override", "X-Http-Method", "X-Method-Override",
	"X-Original-Url", "X-Rewrite-Url",

	"Baggage",

	"X-Remote-User", "Remote-User", "Remote-Groups", "Remote-Name", "Remote-Email",
}

// removedFamilies are the beginnings of names that do not reach the API, ever:
// addresses, and what identity proxies in front of the gateway add.
var removedFamilies = []string{
	"X-Forwarded-",
	"X-Auth-Request-", "X-Amzn-Oidc-", "Cf-Access-", "X-Goog-Iap-", "X-Goog-Authenticated-User-",
	"X-Ms-Client-Principal", "X-Ms-Token-", "X-Authentik-", "X-Pomerium-", "X-Vouch-", "X-Webauth-",
	"Tailscale-User-",
}

// isRemoved is removedHeaders to look up.
var isRemoved = func() map[string]bool {
	set := make(map[string]bool, len(removedHeaders))
	for _, name := range removedHeaders {
		set[name] = true
	}
	return set
}()

// inRemovedFamily reports whether name, in canonical form, is of a family that
// does not reach the API.
func inRemovedFamily(name string) bool {
	if name == "" || !strings.Contains("XCT", name[:1]) { // the first letters of all families
		return false
	}
	return slices.ContainsFunc(removedFamilies, func(family string) bool { return strings.HasPrefix(name, family) })
}

// headerFilter decides what of a request's headers and trailers reaches the API.
type headerFilter struct {
	credentials []string // the API's own credential headers, in canonical form
	keep        []string // in canonical form
	userAgent   string   // where the client sent none; empty: none is sent
}

// newHeaderFilter returns the filter of a route to api that keeps the headers
// named in keep.
func newHeaderFilter(api tokenprovider.API, keep []string) (headerFilter, error) {
	f := headerFilter{credentials: api.CredentialHeaders, userAgent: api.UserAgent}
	for _, name := range keep {
		canonical := http.CanonicalHeaderKey(name)
		switch {
		case !httpguts.ValidHeaderFieldName(name):
			return f, fmt.Errorf("keep_headers: %q is not a header name", name)
		case canonical == "Authorization", inRemovedFamily(canonical):
			return f, fmt.Errorf("keep_headers: %s cannot be kept", canonical)
		case canonical != "Host" && !f.removes(canonical):
			return f, fmt.Errorf("keep_headers: %s reaches the API anyway; leave it out", canonical)
		}
		f.keep = append(f.keep, canonical)
	}
	return f, nil
}

// removes reports whether a header or trailer, by its canonical name, does not
// reach the API unless it is kept.
func (f *headerFilter) removes(name string) bool {
	return isRemoved[name] || inRemovedFamily(name) || slices.Contains(f.credentials, name)
}

// outgoing returns the headers as they are sent: a copy of those that may reach
// the API, and Authorization, set last. The values are shared with header: they
// must not be changed in place.
func (f *headerFilter) outgoing(header http.Header, authorization []string) http.Header {
	// Caddy has added four headers that are removed, and Authorization is added
	out := make(http.Header, max(len(header)-4, 0)+1)
	for name, values := range header {
		if canonical := http.CanonicalHeaderKey(name); !f.removes(canonical) || slices.Contains(f.keep, canonical) {
			out[name] = values
		}
	}
	out["Authorization"] = authorization
	if f.userAgent != "" && cmp.Or(out["User-Agent"]...) == "" {
		out["User-Agent"] = []string{f.userAgent}
	}
	return out
}

// strip removes from trailers what does not reach the API.
func (f *headerFilter) strip(trailers http.Header) {
	for name := range trailers {
		if f.removes(http.CanonicalHeaderKey(name)) {
			delete(trailers, name)
		}
	}
}

// ops returns what is done to the client's headers before header_up, nil for
// nothing: a header that is kept is header_up's to set, not the client's.
func (f *headerFilter) ops(apiHost string) *headers.HeaderOps {
	if len(f.keep) == 0 {
		return nil
	}
	ops := new(headers.HeaderOps)
	for _, name := range f.keep {
		if name == "Host" {
			ops.Set = http.Header{"Host": {apiHost}}
			continue
		}
		ops.Delete = append(ops.Delete, name)
	}
	return ops
}

// keepsHost reports whether header_up may set Host.
func (f *headerFilter) keepsHost() bool { return slices.Contains(f.keep, "Host") }

// headersSetBy returns the names of headers that header_up sets although they do
// not reach the API by default: those that keep_headers can keep, and those that
// nothing can.
func headersSetBy(headerUp *headers.HeaderOps, credentials []string) (kept, lost []string) {
	if headerUp == nil {
		return nil, nil
	}
	filter := headerFilter{credentials: credentials}
	names := slices.Concat(slices.Collect(maps.Keys(headerUp.Set)), slices.Collect(maps.Keys(headerUp.Add)), slices.Collect(maps.Keys(headerUp.Replace)))
	for i, name := range names {
		names[i] = http.CanonicalHeaderKey(name)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		switch {
		case name == "Authorization", inRemovedFamily(name):
			lost = append(lost, name)
		case name == "Host", filter.removes(name):
			kept = append(kept, name)
		}
	}
	return kept, lost
}
