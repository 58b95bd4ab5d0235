package tokenprovider

import (
	"fmt"
	"slices"
)

// ScopeChecker is a Provider of an API whose scopes are known.
type ScopeChecker interface {
	// UnknownScopes returns a warning for each scope the provider asks for that the
	// API does not document, without the name of the credential.
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
		for _, c := range []byte(scope) {
			if c <= ' ' || c > '~' || c == '"' || c == '\\' {
				return wrong("%q holds a character that a scope cannot have (RFC 6749 §3.3); separate scopes by spaces", scope)
			}
		}
		if slices.Contains(scopes[:i], scope) {
			return wrong("%q is given twice", scope)
		}
	}
	return nil
}
