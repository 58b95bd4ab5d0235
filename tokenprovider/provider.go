// Package tokenprovider knows how access tokens are issued: the contract of a
// provider, the token, and the exchange with a token endpoint over HTTP
// (RFC 6749 §4.4, the client credentials grant). Each folder below it is one API.
//
// It imports nothing of Caddy; the providers below it do, since each is a Caddy
// module in the namespace egress.providers.
package tokenprovider

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// Provider obtains access tokens with one credential at one authorization server.
//
// It is a Caddy module in the namespace egress.providers. To be used in a
// Caddyfile it has two more methods:
//
//	Options() map[string]func(*caddyfile.Dispenser) error // each reads an option
//	Validate() error                                      // returns an *OptionError where it can
//
// The example shows a whole one. Where the API can, it is also a [Revoker] and an
// [Introspector].
//
// A provider is configured once and then used by many goroutines; its methods
// must not change it. It does not keep tokens: package tokensource does.
type Provider interface {
	// API describes the API that the tokens are for.
	API() API

	// Grant describes what is asked of the authorization server. It holds no secret.
	Grant() Grant

	// WithScopes returns a provider that differs in the scopes it asks for only,
	// or an error that names the scope this API cannot have. Without any it is an
	// error where the API needs one: the scopes of the configuration may be left
	// out there all the same, if others are given before a token is asked for.
	WithScopes(scopes []string) (Provider, error)

	// Secrets returns the secrets of the credential as they are now. They may
	// live in files that change, so every token request reads them anew. The
	// error names the option that has no value, never a value. The first is that of
	// the client, which lasts: without one there are none, or an empty one is first.
	Secrets() ([]Secret, error)

	// SecretOptions returns the options that hold a secret, by name, with their
	// values as configured: each should be a placeholder, so that the secret
	// itself is not in the configuration.
	SecretOptions() map[string]string

	// Token makes exactly one token request. The client carries the timeouts,
	// the certificate authorities and the refusal of redirects. A failure of the
	// exchange is an *Error.
	Token(ctx context.Context, client *http.Client) (*Token, error)
}

// Revoker is a Provider whose authorization server can revoke a token.
type Revoker interface {
	// Revoke makes token unusable. A token that is unknown or no longer active
	// is a success: there is nothing left to revoke.
	Revoke(ctx context.Context, client *http.Client, token Secret) error

	// CanRevoke reports whether this configuration of the provider can revoke.
	CanRevoke() bool
}

// Introspector is a Provider whose authorization server describes tokens.
type Introspector interface {
	// Introspect asks what the authorization server knows of token.
	Introspect(ctx context.Context, client *http.Client, token Secret) (*Introspection, error)

	// CanIntrospect reports whether this configuration of the provider can introspect.
	CanIntrospect() bool
}

// Rotating is a Provider whose secret may have several values while it is rotated.
type Rotating interface {
	// Alternatives returns a provider for each value, in the order in which they
	// are configured: each makes its requests with that value alone, and its
	// Secrets are that value. A token request goes to the next one if the
	// authorization server does not know the client by this one, or if its value
	// cannot be read. nil means that there is one value.
	Alternatives() []Provider
}

// Warner is a Provider that may warn of its configuration. It does not log that itself:
// where each tenant has a provider, one is set up again and again.
type Warner interface {
	// Warnings returns what is logged once of a credential, without its name. The
	// provider may not have been provisioned.
	Warnings() []string
}

// API describes a protected API as far as a gateway has to know it.
type API struct {
	// URL is scheme://host[:port] of the API: the upstream, and the only host
	// that receives the token.
	URL string

	// Endpoints are those that receive the secret: the token endpoint, and
	// others there may be.
	Endpoints []Endpoint

	// NeedsCertificate says that the client authenticates to the Endpoints by its
	// certificate alone (RFC 8705).
	NeedsCertificate bool

	// UserAgent is sent where the client sent none. Empty: none is sent.
	UserAgent string

	// CredentialHeaders are the API's own credentials in request headers, in
	// canonical form. They are never taken from a client.
	CredentialHeaders []string

	// KeyHeaders are the request headers in which the API's SDKs send their secret,
	// in canonical form: there, a client may send the key that the gateway knows it
	// by. They are among the CredentialHeaders.
	KeyHeaders []string

	// TokenHeader is the request header in which the API wants the token, in
	// canonical form, and TokenPrefix what stands before the token there, with the
	// space that follows it. Empty: Authorization, and "Bearer ".
	TokenHeader, TokenPrefix string

	// RejectedStatus are the statuses, beside 401, by which the API may say that
	// it does not accept the token.
	RejectedStatus []int

	// CredentialPaths are the API's own credential endpoints, as path prefixes
	// that end in a slash, in lower case: a client must not reach them. A lone
	// slash stands for the root only. The function of that name makes them of
	// the Endpoints.
	CredentialPaths []string

	// IgnoresCase says that the API reads paths without regard to case.
	IgnoresCase bool

	// RateLimitWait is how long to wait after a 429 that does not say.
	RateLimitWait time.Duration

	// RetryHeaders are the response headers in which the API says when it may be
	// called again, as Unix seconds, where it sends no Retry-After. The first
	// that is present counts.
	RetryHeaders []string

	// RemainingHeaders are the response headers in which the API says how many
	// calls are left, in canonical form. The first that is present counts.
	RemainingHeaders []string

	// LimitHeaders are those that say how many calls there are in all, in canonical
	// form. The first that is present counts.
	LimitHeaders []string

	// ScopesFor returns the scopes of which one is needed for whatever is at path,
	// which is decoded and in lower case, and below it; nil where that is not
	// documented. It serves warnings: nil means that nothing is known.
	ScopesFor func(path string) []string

	// Error renders an error of the gateway as this API's SDKs decode one:
	// the body and its media type.
	Error func(status int, key, message string) (contentType string, body []byte)
}

// The usual headers that say how many calls are left, and how many there are in
// all, for APIs that document none.
var (
	UsualRemainingHeaders = []string{"X-Rate-Limit-Remaining", "X-Ratelimit-Remaining", "Ratelimit-Remaining"}
	UsualLimitHeaders     = []string{"X-Rate-Limit-Limit", "X-Ratelimit-Limit", "Ratelimit-Limit"}
)

// Endpoint is a URL of the authorization server, and the option that sets it.
type Endpoint struct{ Option, URL string }

// Grant is what a provider asks an authorization server for. All of it but the
// names in Provider and AuthMethod comes from the configuration.
type Grant struct {
	Provider   string   // name of the provider, such as understory
	TokenURL   string   // the token endpoint
	ClientID   string   // the client identifier as resolved at load
	AuthMethod string   // how the client authenticates, such as client_secret_post
	Scopes     []string // in the order they are sent
	Audience   []string
	Resource   []string // RFC 8707
	Params     []Param  // further form parameters
	Headers    []string // names of further request headers; their values may be secret
	KeyID      string   // of the key that signs client assertions (RFC 7515 §4.1.4)
}

// Param is a form parameter of a token request.
type Param struct{ Name, Value string }

// Identity names the credential in logs, metrics and storage: a SHA-256 of all
// that distinguishes its tokens from others, secrets aside, in hexadecimal.
func (g Grant) Identity() string {
	h := sha256.New()
	// each value goes in with its length, so that no two lists look alike
	field := func(name string, values ...string) {
		h.Write([]byte(name + strconv.Itoa(len(values)) + ";"))
		for _, v := range values {
			h.Write([]byte(strconv.Itoa(len(v)) + ":" + v))
		}
	}
	field("provider", g.Provider)
	field("token_url", g.TokenURL)
	field("client_id", g.ClientID)
	field("auth_method", g.AuthMethod)
	scopes := slices.Sorted(slices.Values(g.Scopes)) // a set (RFC 6749 §3.3)
	field("scopes", slices.Compact(scopes)...)
	field("audience", g.Audience...)
	field("resource", g.Resource...)
	for _, p := range g.Params {
		field("param", p.Name, p.Value)
	}
	field("headers", g.Headers...)
	if g.KeyID != "" {
		field("key_id", g.KeyID)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// Token is an access token as it was issued.
type Token struct {
	// Value goes into the Authorization header: visible ASCII, never empty.
	Value Secret

	// Issued is when the token request was sent.
	Issued time.Time

	// Expires is when the token is no longer to be used. It is measured from
	// Issued, so it errs on the early side.
	Expires time.Time

	// ExpiryAssumed says that the answer had no usable lifetime.
	ExpiryAssumed bool

	// Scopes are the scopes granted; nil where the answer did not say, which
	// means those that were asked for (RFC 6749 §5.1).
	Scopes []string
}

// Introspection describes a token (RFC 7662 §2.2).
type Introspection struct {
	Active   bool      `json:"active"`
	ClientID string    `json:"client_id,omitempty"`
	Scope    string    `json:"scope,omitempty"`
	Expires  time.Time `json:"expires,omitzero"`
}
