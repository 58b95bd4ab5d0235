package tokenprovider

import (
	"encoding/base64"
	"slices"
	"strings"
)

// What is not secret of a request: parameters and headers, by name.
var (
	openParams  = []string{"grant_type", "client_id", "scope", "audience", "resource", "token_type_hint", "client_assertion_type"}
	openHeaders = []string{"Accept", "User-Agent", "X-App-Id"}
)

// minEcho is the length from which on a part of a text shows something of it.
const minEcho = 4

// isEchoed reports whether code, of the answer to r, shows something of the
// secrets that r has: it is one of them, contains one or is a part of one,
// whatever the case. What has a part of a secret beside other text is not found.
func (r Request) isEchoed(code string) bool {
	code = strings.ToLower(code)
	return slices.ContainsFunc(r.secrets(), func(secret string) bool {
		secret = strings.ToLower(secret)
		return secret == code ||
			len(secret) >= minEcho && strings.Contains(code, secret) ||
			len(code) >= minEcho && strings.Contains(secret, code)
	})
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
				// form-encoding, in Basic, leaves what an error code may have as it is
				if decoded, err := base64.StdEncoding.DecodeString(rest); err == nil && strings.EqualFold(scheme, "Basic") {
					id, secret, ok := strings.Cut(string(decoded), ":")
					if !ok {
						secret = id
					}
					secrets = append(secrets, secret)
				}
			}
			secrets = append(secrets, strings.Fields(value)...)
		}
	}
	return secrets
}
