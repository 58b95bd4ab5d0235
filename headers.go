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
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// removedHeaders do not reach the API, whoever has set them: credentials and
// sessions of the client, its address and the way the request came, and what
// makes a request mean another operation than the one that was judged. So do
// the API's own credential headers, and the one that it wants the token in.
// keep_headers can keep all but that and Authorization.
var removedHeaders = []string{
	"Authorization", "Proxy-Authorization", "Cookie",
	"X-Api-Key", "Api-Key", "X-Auth-Token", "X-Access-Token",

	"Forwarded", "X-Forwarded", "X-Real-Ip", "X-Client-Ip", "Client-Ip", "X-Cluster-Client-Ip", "X-Original-Forwarded-For",
	"True-Client-Ip", "Cf-Connecting-Ip", "Fly-Client-Ip", "X-Azure-Clientip", "X-Envoy-External-Address", "Via",

	"X-Http-Method-Override", "X-Http-Method", "X-Method-Override",
	"X-Original-Url", "X-Rewrite-Url",

	"Baggage",

	"X-Remote-User", "Remote-User", "Remote-Groups", "Remote-Name", "Remote-Email",
}

// removedFamilies are the beginnings of names that do not reach the API, ever:
// addresses, and what identity proxies in front of the gateway add.
var removedFamilies = []string{
	"X-Forwarded-", "X-Ssl-Client-",
	"X-Auth-Request-", "X-Amzn-Oidc-", "Cf-Access-", "X-Goog-Iap-", "X-Goog-Authenticated-User-",
	"X-Ms-Client-Principal", "X-Ms-Token-", "X-Authentik-", "X-Pomerium-", "X-Vouch-", "X-Webauth-",
	"Tailscale-User-",
}

// trailers are those of a request that reach the API: digests and checksums of
// the body, which can be known at its end only. A name that ends in a hyphen
// stands for all that begin with it. Nothing else has to wait for the end, and
// servers that merge trailers into the headers would take them for those.
var trailers = []string{"Content-Digest", "Repr-Digest", "Digest", "Content-Md5", "X-Checksum", "X-Checksum-", "X-Amz-Checksum-"}

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

// headerFilter decides what of a request's headers reaches the API.
type headerFilter struct {
	credentials []string // the API's own credential headers, in canonical form
	keep        []string // in canonical form
	keys        []string // headers in which a caller may send its key
	userAgent   string   // where the client sent none; empty: none is sent
	tokenHeader string   // where the token is, in canonical form; empty: Authorization
	tokenPrefix string   // what stands before it there; not for Authorization by default
}

// newHeaderFilter returns the filter of a route to api that keeps the headers
// named in keep.
func newHeaderFilter(api tokenprovider.API, keep []string) (headerFilter, error) {
	f := headerFilter{credentials: api.CredentialHeaders, userAgent: api.UserAgent, tokenHeader: api.TokenHeader, tokenPrefix: api.TokenPrefix}
	for _, name := range keep {
		canonical := http.CanonicalHeaderKey(name)
		switch {
		case !httpguts.ValidHeaderFieldName(name):
			return f, fmt.Errorf("keep_headers: %q is not a header name", name)
		case f.neverKeeps(canonical):
			return f, fmt.Errorf("keep_headers: %s cannot be kept", canonical)
		case canonical != "Host" && !f.removes(canonical):
			return f, fmt.Errorf("keep_headers: %s reaches the API anyway; leave it out", canonical)
		}
		f.keep = append(f.keep, canonical)
	}
	return f, nil
}

// removes reports whether a header, by its canonical name, does not reach the
// API unless it is kept.
func (f *headerFilter) removes(name string) bool {
	name = hyphenated(name)
	return isRemoved[name] || inRemovedFamily(name) || slices.Contains(f.credentials, name) || f.tokenHeader != "" && name == hyphenated(f.tokenHeader)
}

// neverKeeps reports whether a header, by its canonical name, cannot be kept.
func (f *headerFilter) neverKeeps(name string) bool {
	name = hyphenated(name)
	return name == "Authorization" || inRemovedFamily(name) || f.tokenHeader != "" && name == hyphenated(f.tokenHeader)
}

// token returns the value of the header in which the API wants t.
func (f *headerFilter) token(t *tokensource.Token) []string {
	if f.tokenHeader == "" {
		return t.Authorization()
	}
	return []string{f.tokenPrefix + t.Value.Reveal()}
}

// hyphenated returns the canonical name that many servers (CGI, PHP) cannot tell
// from name: to them, underscores and dots are hyphens.
func hyphenated(name string) string {
	if strings.IndexByte(name, '_') < 0 && strings.IndexByte(name, '.') < 0 {
		return name
	}
	return http.CanonicalHeaderKey(hyphens.Replace(name))
}

var hyphens = strings.NewReplacer("_", "-", ".", "-")

// outgoing returns the headers as they are sent: a copy of those that may reach
// the API, and that of the token, set last. The values are shared with header: they
// must not be changed in place.
func (f *headerFilter) outgoing(header http.Header, token []string) http.Header {
	// Caddy has added four headers that are removed, and Authorization is added
	out := make(http.Header, max(len(header)-4, 0)+1)
	for name, values := range header {
		if canonical := http.CanonicalHeaderKey(name); !f.removes(canonical) || slices.Contains(f.keep, canonical) {
			out[name] = values
		}
	}
	if upgrade, ok := out["Upgrade"]; ok && !isWebsocket(upgrade) {
		dropUpgrade(out)
	}
	out[cmp.Or(f.tokenHeader, "Authorization")] = token
	if f.userAgent != "" && cmp.Or(out["User-Agent"]...) == "" {
		out["User-Agent"] = []string{f.userAgent}
	}
	return out
}

// isWebsocket reports whether the values of Upgrade offer a websocket and nothing
// else.
func isWebsocket(upgrade []string) bool {
	return len(upgrade) == 1 && strings.EqualFold(upgrade[0], "websocket")
}

// dropUpgrade ignores an offer to upgrade, as RFC 9110 §7.8 permits: what is
// offered is between the client and the gateway.
func dropUpgrade(header http.Header) {
	delete(header, "Upgrade")
	delete(header, "Http2-Settings")
	var connection []string
	for token := range strings.SplitSeq(strings.Join(header["Connection"], ","), ",") {
		if token = strings.TrimSpace(token); token != "" && !strings.EqualFold(token, "Upgrade") && !strings.EqualFold(token, "HTTP2-Settings") {
			connection = append(connection, token)
		}
	}
	delete(header, "Connection")
	if connection != nil {
		header["Connection"] = connection
	}
}

// stripTrailers removes from a request's trailers what does not reach the API.
func stripTrailers(header http.Header) {
	for name := range header {
		if !isTrailer(http.CanonicalHeaderKey(name)) {
			delete(header, name)
		}
	}
}

// isTrailer reports whether a trailer, by its canonical name, reaches the API.
func isTrailer(name string) bool {
	return slices.ContainsFunc(trailers, func(t string) bool { return name == t || strings.HasSuffix(t, "-") && strings.HasPrefix(name, t) })
}

// dropsKeys sets the headers that dropKeys removes, nil for none. One that is kept
// is header_up's, which has it removed before.
func (f *headerFilter) dropsKeys(names []string) {
	if names == nil {
		return
	}
	for _, name := range append(names, "Authorization") {
		if !slices.Contains(f.keep, name) {
			f.keys = append(f.keys, name)
		}
	}
}

// dropKeys removes headers in which a caller may have sent its key: reverse_proxy
// shows the headers in its debug log, after the round trip. To have it remove them
// would have it copy all headers of every request.
func (f *headerFilter) dropKeys(header http.Header) {
	for _, name := range f.keys {
		delete(header, name)
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
func headersSetBy(headerUp *headers.HeaderOps, api tokenprovider.API) (kept, lost []string) {
	if headerUp == nil {
		return nil, nil
	}
	filter := headerFilter{credentials: api.CredentialHeaders, tokenHeader: api.TokenHeader}
	names := slices.Concat(slices.Collect(maps.Keys(headerUp.Set)), slices.Collect(maps.Keys(headerUp.Add)), slices.Collect(maps.Keys(headerUp.Replace)))
	for i, name := range names {
		names[i] = http.CanonicalHeaderKey(name)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		switch {
		case filter.neverKeeps(name):
			lost = append(lost, name)
		case name == "Host", filter.removes(name):
			kept = append(kept, name)
		}
	}
	return kept, lost
}
