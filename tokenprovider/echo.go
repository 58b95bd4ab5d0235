package tokenprovider

import (
	"encoding/base64"
	"net/url"
	"slices"
	"strings"
)

// What is not secret of a request: parameters and headers, by name.
var (
	openParams  = []string{"grant_type", "client_id", "scope", "audience", "resource", "token_type_hint", "client_assertion_type"}
	openHeaders = []string{"Accept", "User-Agent", "X-App-Id"}
)

const (
	// minEcho is the length from which on a part of a text shows something of it.
	minEcho = 4

	// minTokenEcho is minEcho for tokens, and for identifiers: the former may have
	// names of scopes in them, the latter may be what a secret begins with.
	minTokenEcho = 16
)

// isEchoed reports whether code, of the answer to r, shows something of the
// secrets that r has: it is one of them, contains one or is a part of one,
// whatever the case. What has a part of a secret beside other text is not found.
func (r Request) isEchoed(code string) bool {
	return slices.ContainsFunc(r.secrets(), func(secret string) bool { return shows(code, secret, minEcho) })
}

// shows reports whether text is secret, contains it, or is a part of it of at least
// that length, whatever the case.
func shows(text, secret string, length int) bool {
	text, secret = strings.ToLower(text), strings.ToLower(secret)
	return secret == text ||
		len(secret) >= minEcho && strings.Contains(text, secret) ||
		len(text) >= length && strings.Contains(secret, text)
}

// secrets returns all that r has in places where a secret may be.
func (r Request) secrets() []string {
	var secrets []string
	for name, values := range r.Form {
		if !slices.Contains(openParams, name) {
			secrets = append(secrets, values...)
		}
	}
	for name, values := range r.Header {
		if slices.Contains(openHeaders, name) {
			continue
		}
		for _, value := range values {
			if scheme, rest, ok := strings.Cut(value, " "); ok && name == "Authorization" {
				value = rest
				if decoded, err := base64.StdEncoding.DecodeString(rest); err == nil && strings.EqualFold(scheme, "Basic") {
					id, secret, ok := strings.Cut(string(decoded), ":")
					if !ok {
						secret = id
					}
					secrets = append(secrets, secret)
					if plain, err := url.QueryUnescape(secret); err == nil { // as most methods have it
						secrets = append(secrets, plain)
					}
				}
			}
			secrets = append(secrets, strings.Fields(value)...)
		}
	}
	return secrets
}
