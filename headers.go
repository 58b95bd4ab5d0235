package egress

import (
	"net/http"
	"slices"
	"strings"
)

// strippedHeaders are removed from every request, before header_up, which can
// bring each of them back but Authorization: credentials and sessions of the
// client, its address and the way it came, what makes a request mean another
// operation than the one that was judged, and what identity proxies in front
// add. A * at the end stands for any rest. The API's own credential headers
// are removed, too.
var strippedHeaders = []string{
	"Authorization", "Proxy-Authorization", "Cookie",

	"Forwarded", "X-Forwarded-*", "X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "X-Original-Forwarded-For",
	"True-Client-Ip", "Cf-Connecting-Ip", "Via",

	"X-Http-Method-Override", "X-Http-Method", "X-Method-Override",
	"X-Original-Url", "X-Rewrite-Url",

	"Baggage",

	"X-Auth-Request-*", "X-Amzn-Oidc-*", "Cf-Access-*", "X-Goog-Iap-*", "X-Goog-Authenticated-User-*",
	"X-Ms-Client-Principal*", "X-Ms-Token-*", "X-Authentik-*", "X-Pomerium-*", "X-Vouch-*", "X-Webauth-*",
	"X-Remote-User", "Remote-User", "Remote-Groups", "Remote-Name", "Remote-Email", "Tailscale-User-*",
}

// stripTrailers removes from trailers what is removed from headers.
func stripTrailers(trailers http.Header, credentialHeaders []string) {
	for name := range trailers {
		canonical := http.CanonicalHeaderKey(name)
		if slices.Contains(credentialHeaders, canonical) || slices.ContainsFunc(strippedHeaders, func(stripped string) bool {
			prefix, wildcard := strings.CutSuffix(stripped, "*")
			return canonical == stripped || wildcard && strings.HasPrefix(canonical, prefix)
		}) {
			delete(trailers, name)
		}
	}
}
