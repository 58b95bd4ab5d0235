package egress

import (
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// routeWarning is about a route, or a grant of it, that permits less than it says.
type routeWarning struct {
	message string
	fields  []zap.Field
}

// checkGrants returns what is surely a mistake in the grants of a route to api:
// what can never apply, and operations that are refused here or by the API all
// the same. The route permits allow, or everything where that is empty, and asks
// for scopes. Of what it cannot tell it says nothing.
func checkGrants(grants []Grant, allow []Operation, api tokenprovider.API, scopes []string) []routeWarning {
	var warnings []routeWarning
	var named []string // by the grants before
	for _, g := range grants {
		warn := func(message string, fields ...zap.Field) {
			fields = append([]zap.Field{zap.Strings("grant", g.Callers)}, fields...)
			warnings = append(warnings, routeWarning{message, fields})
		}
		taken := slices.DeleteFunc(slices.Clone(g.Callers), func(caller string) bool {
			return !slices.Contains(named, caller) && !slices.Contains(named, anyCaller)
		})
		if len(taken) == len(g.Callers) {
			warn("a grant has no effect: earlier ones name all of its callers; merge them, or put it first")
			continue
		}
		if len(taken) > 0 {
			warn("a grant has no effect for callers that an earlier one names; merge the two, or put it first", zap.Strings("callers", taken))
		}
		named = append(named, g.Callers...)

		g.Scopes = effectiveScopes(g, scopes)
		for _, operation := range g.Allow {
			for _, path := range operation.Paths {
				one := Operation{Methods: operation.Methods, Paths: []string{path}}
				said := zap.Stringer("operation", one)
				switch needs := g.needs(one, api); {
				case isCredentialEndpoint(path, api):
					warn("a grant allows a credential endpoint of the API, which is refused all the same; remove it", said)
				case len(allow) > 0 && !slices.ContainsFunc(allow, one.mayMeet):
					warn("a grant allows an operation that allow of the route does not permit; add it there, or remove it here", said)
				case needs != nil:
					warn("a grant allows an operation that its scopes do not reach; add one that it needs, or remove the operation",
						said, zap.Strings("scopes", g.Scopes), zap.Strings("needs_one_of", needs))
				}
			}
		}
		if needs := g.needsForAll(allow, api); g.Allow == nil && needs != nil {
			warn("the scopes of a grant reach no operation that the route permits; add one that is needed",
				zap.Strings("scopes", g.Scopes), zap.Strings("needs_one_of", needs))
		}
	}
	return warnings
}

// checkRoute is checkGrants for a route without grants. What it permits by the
// global option's defaults is not its own mistake, unless its scopes reach nothing.
func checkRoute(allow, defaults []Operation, api tokenprovider.API, scopes []string) []routeWarning {
	route := Grant{Scopes: scopes}
	if slices.Equal(operationTexts(allow), operationTexts(defaults)) {
		if needs := route.needsForAll(allow, api); needs != nil {
			return []routeWarning{{"the scopes of a route reach no operation that it permits; add one that is needed",
				[]zap.Field{zap.Strings("scopes", scopes), zap.Strings("needs_one_of", needs)}}}
		}
		return nil
	}
	var warnings []routeWarning
	for _, operation := range allow {
		for _, path := range operation.Paths {
			one := Operation{Methods: operation.Methods, Paths: []string{path}}
			if needs := route.needs(one, api); needs != nil {
				warnings = append(warnings, routeWarning{"a route allows an operation that its scopes do not reach; add one that it needs, or remove the operation",
					[]zap.Field{zap.Stringer("operation", one), zap.Strings("scopes", scopes), zap.Strings("needs_one_of", needs)}})
			}
		}
	}
	return warnings
}

// effectiveScopes returns the scopes of the token that the callers of g get, on
// a route that asks for scopes.
func effectiveScopes(g Grant, scopes []string) []string {
	if g.Scopes != nil {
		return g.Scopes
	}
	return scopes
}

// needs returns the scopes of which one is needed for every request that is such
// an operation, if the grant has none of them; nil where that is not known.
func (g Grant) needs(operation Operation, api tokenprovider.API) []string {
	return g.needsForAll([]Operation{operation}, api)
}

// needsForAll returns the scopes of which one is needed for any of the
// operations, if the grant's scopes reach none; nil where that is not known.
func (g Grant) needsForAll(operations []Operation, api tokenprovider.API) []string {
	if api.ScopesFor == nil || len(g.Scopes) == 0 { // without, the authorization server chooses
		return nil
	}
	var needs []string
	for _, operation := range operations {
		for _, path := range operation.Paths {
			prefix, exact, ok := literalPrefix(path)
			if !exact { // a segment that is not whole could be any that begins so
				prefix = prefix[:strings.LastIndex(prefix, "/")+1]
			}
			scopes := api.ScopesFor(prefix)
			if !ok || scopes == nil || slices.ContainsFunc(scopes, func(s string) bool { return slices.Contains(g.Scopes, s) }) {
				return nil
			}
			needs = append(needs, scopes...)
		}
	}
	slices.Sort(needs)
	return slices.Compact(needs)
}

// isCredentialEndpoint reports whether all that a path of an operation stands for
// is below a credential endpoint of the API.
func isCredentialEndpoint(path string, api tokenprovider.API) bool {
	prefix, exact, ok := literalPrefix(path)
	if !ok || !api.IgnoresCase { // the operation does ignore case
		return false
	}
	if exact {
		return (&guard{denied: api.CredentialPaths, ignoresCase: true}).isDenied(prefix)
	}
	return slices.ContainsFunc(api.CredentialPaths, func(denied string) bool {
		return denied != "/" && strings.HasPrefix(prefix, denied)
	})
}

// mayMeet reports whether a request can be both operations. It errs on the side
// that it can.
func (o Operation) mayMeet(other Operation) bool {
	if len(o.Methods) > 0 && len(other.Methods) > 0 &&
		!slices.ContainsFunc(o.Methods, func(method string) bool { return slices.Contains(other.Methods, method) }) {
		return false
	}
	return slices.ContainsFunc(o.Paths, func(a string) bool {
		return slices.ContainsFunc(other.Paths, func(b string) bool { return pathsMayMeet(a, b) })
	})
}

// pathsMayMeet reports whether a path can match both patterns.
func pathsMayMeet(a, b string) bool {
	prefixA, exactA, okA := literalPrefix(a)
	prefixB, exactB, okB := literalPrefix(b)
	switch {
	case !okA || !okB:
		return true
	case exactA && exactB:
		return prefixA == prefixB
	case exactA:
		return strings.HasPrefix(prefixA, prefixB)
	case exactB:
		return strings.HasPrefix(prefixB, prefixA)
	}
	return strings.HasPrefix(prefixA, prefixB) || strings.HasPrefix(prefixB, prefixA)
}

// literalPrefix returns what each path that matches the pattern begins with, in
// lower case, as the matcher compares, and whether that is all of it. It is not
// ok for patterns whose meaning depends on more than the path.
func literalPrefix(pattern string) (prefix string, exact, ok bool) {
	if strings.ContainsAny(pattern, "{}%") || strings.Contains(pattern, "//") {
		return "", false, false
	}
	pattern = strings.ToLower(pattern)
	if i := strings.IndexAny(pattern, `*?[\`); i >= 0 {
		return pattern[:i], false, true
	}
	return pattern, true, true
}
