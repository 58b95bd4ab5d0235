package tokenprovider

import (
	"fmt"
	"slices"
	"strings"
)

// ScopeChecker is a Provider of an API whose scopes are known, or that gives a token
// without any no rights.
type ScopeChecker interface {
	// UnknownScopes returns a warning for each scope the provider asks for that the
	// API does not document, or one that it asks for none, without the name of the
	// credential.
	UnknownScopes() []string
}

// CheckScopes returns an *OptionError that names the first scope which RFC 6749 §3.3
// does not allow: a scope is visible ASCII without spaces, quotes and backslashes.
func CheckScopes(scopes []string) error {
	wrong := func(format string, args ...any) error {
		return &OptionError{Option: "scopes", Err: fmt.Errorf(format, args...)}
	}
	for i, scope := range scopes {
		if scope == "" {
			return wrong("a scope is empty")
		}
		if !isScope(scope) {
			return wrong("%q holds a character that a scope cannot have (RFC 6749 §3.3); separate scopes by spaces", scope)
		}
		if slices.Contains(scopes[:i], scope) {
			return wrong("%q is given twice", scope)
		}
	}
	return nil
}

// isScope reports whether scope has no character that a scope cannot have.
func isScope(scope string) bool { return visibleASCII(scope) && !strings.ContainsAny(scope, `"\`) }

// What a server says of scopes beyond these is left out.
const (
	maxScopes      = 256 // more than APIs have
	maxScopeLength = 256
)

// scopesIn returns the scopes that the answer to r says token has, without those that
// show something of it or of a secret: operators are shown what is left. Those that r
// asks for show nothing.
func (r Request) scopesIn(answered, token string) []string {
	asked := strings.Fields(r.Form.Get("scope"))
	scopes := []string{}
	all := strings.Fields(answered)
	for _, scope := range all[:min(len(all), maxScopes)] {
		hidden := len(scope) > maxScopeLength || !isScope(scope) || r.isEchoed(scope) || shows(scope, token, minTokenEcho)
		if (!hidden || slices.Contains(asked, scope)) && !slices.Contains(scopes, scope) {
			scopes = append(scopes, scope)
		}
	}
	return scopes
}
