// Package oauth2 issues tokens from any authorization server that offers the
// client credentials grant of RFC 6749 §4.4.
package oauth2

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

func init() {
	caddy.RegisterModule(Provider{})
}

// Provider issues tokens from any authorization server that offers the client
// credentials grant of [RFC 6749 §4.4](https://www.rfc-editor.org/rfc/rfc6749#section-4.4).
type Provider struct {
	// URL of the API, as scheme://host[:port]. Required.
	APIURL string `json:"api_url,omitempty"`

	// URL of the token endpoint. Required.
	TokenURL string `json:"token_url,omitempty"`

	// Client identifier. May be a placeholder such as `{env.CLIENT_ID}`. Where a new
	// secret has an identifier of its own, as many as there are secrets. Required.
	ClientID tokenprovider.Values `json:"client_id,omitempty"`

	// Client secret, as a placeholder: `{env.CLIENT_SECRET}` or
	// `{file./run/secrets/client_secret}`. It stays a placeholder in the stored
	// config and is read again at each token request. While it is rotated, an array
	// of the new one and the one before: what the server does not accept is followed
	// by the next. Required with the methods `client_secret_…`, and only there.
	ClientSecret tokenprovider.Values `json:"client_secret,omitempty"`

	// How the client authenticates: `client_secret_basic` sends identifier and
	// secret form-encoded in the Authorization header, as RFC 6749 §2.3.1 says;
	// `client_secret_basic_raw` sends them there as they are, for servers that
	// do not decode them; `client_secret_post` sends them in the form.
	// `private_key_jwt` sends a JWT that it signs with `private_key` for each request
	// (RFC 7523), `client_assertion` one that somebody else has signed.
	// `tls_client_auth` leaves it to the credential's `token_cert` (RFC 8705),
	// whether an authority has issued the certificate or it is self-signed.
	// Default: `client_secret_basic`.
	AuthMethod string `json:"auth_method,omitempty"`

	// Private key of `private_key_jwt`, as a placeholder, read again at each
	// request: PEM (PKCS#8, PKCS#1, SEC1) or a JWK; RSA of 2048 bits or more, EC of
	// curve P-256, P-384 or P-521, or Ed25519. Several while it is rotated, as of
	// client_secret.
	PrivateKey tokenprovider.Values `json:"private_key,omitempty"`

	// Identifier of the private key at the server, the header `kid` of what it signs;
	// one for each key, or one for all. Default: that of a JWK, else none.
	KeyID tokenprovider.Values `json:"key_id,omitempty"`

	// Algorithm of the signature: `RS256`, `RS384`, `RS512`, `PS256`, `PS384`,
	// `PS512`, `ES256`, `ES384`, `ES512` or `EdDSA`.
	// Default: that of a JWK, else `RS256` for RSA, and the one that there is for the
	// curve of others.
	SigningAlgorithm string `json:"signing_algorithm,omitempty"`

	// Audience of what is signed: how the server wants to be called.
	// Default: token_url.
	AssertionAudience string `json:"assertion_audience,omitempty"`

	// Signed JWT of the method `client_assertion`, as a placeholder, which somebody
	// else renews: `{file./var/run/secrets/tokens/gateway}`. It is read again at
	// each request.
	ClientAssertion string `json:"client_assertion,omitempty"`

	// Scopes to ask for. Default: none, which leaves them to the server.
	Scopes []string `json:"scopes,omitempty"`

	// Audiences of the token, each sent as a parameter `audience`.
	Audience []string `json:"audience,omitempty"`

	// Resources the token is for, absolute URIs, each sent as a parameter
	// `resource` (RFC 8707).
	Resource []string `json:"resource,omitempty"`

	// Further parameters of the token request. The values may be placeholders.
	Params map[string]string `json:"param,omitempty"`

	// Further headers of the token request. The values may be placeholders.
	Headers map[string]string `json:"header,omitempty"`

	// URL of the revocation endpoint (RFC 7009). Default: none, tokens cannot
	// be revoked.
	RevocationURL string `json:"revocation_url,omitempty"`

	// URL of the introspection endpoint (RFC 7662). Default: none, tokens
	// cannot be introspected.
	IntrospectionURL string `json:"introspection_url,omitempty"`

	// Header in which the API wants the token. Default: `Authorization`, and
	// `Bearer` before the token.
	TokenHeader *TokenHeader `json:"token_header,omitempty"`

	// Statuses, beside 401, by which the API says that it does not accept the token:
	// 400 to 599 without 401, 407, 408 and 429. Each is followed by another token, and the
	// request is sent a second time if its method is safe (GET, HEAD, OPTIONS, TRACE).
	RejectedStatus []int `json:"rejected_status,omitempty"`

	clientIDs tokenprovider.Values  // resolved at load; empty where there was no value
	keyIDs    tokenprovider.Values  // the same
	params    []tokenprovider.Param // resolved at load, sorted by name
}

// CaddyModule returns the Caddy module information.
func (Provider) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "egress.providers.oauth2",
		New: func() caddy.Module { return new(Provider) },
	}
}

// Provision resolves the placeholders, so that a credential without a value
// fails when the config is loaded.
func (p *Provider) Provision(caddy.Context) error {
	if err := p.Validate(); err != nil {
		return err
	}
	var err error
	if p.clientIDs, err = resolveIDs("client_id", p.ClientID); err != nil {
		return err
	}
	if p.keyIDs, err = resolveIDs("key_id", p.KeyID); err != nil {
		return err
	}
	if p.params, err = resolveParams(p.Params); err != nil {
		return err
	}
	_, err = p.Secrets()
	return err
}

// Validate returns an error that names the first option that is missing or wrong.
func (p *Provider) Validate() error {
	switch {
	case p.APIURL == "":
		return errors.New("api_url is required: the oauth2 provider stands for no API of its own")
	case p.TokenURL == "":
		return errors.New("token_url is required")
	case len(p.ClientID) == 0:
		return errors.New("client_id is required")
	}
	if err := p.validateAuth(); err != nil {
		return err
	}
	if err := option.Origin("api_url", p.APIURL); err != nil {
		return err
	}
	for _, endpoint := range p.endpoints() {
		if err := option.Endpoint(endpoint.Option, endpoint.URL); err != nil {
			return err
		}
		if err := p.validateScheme(endpoint); err != nil {
			return err
		}
	}
	if err := tokenprovider.CheckScopes(p.Scopes); err != nil {
		return err
	}
	for _, resource := range p.Resource {
		// RFC 8707 §2: an absolute URI without a fragment
		if u, err := url.Parse(resource); err != nil || !u.IsAbs() || u.Fragment != "" {
			return option.Errorf("resource", "%q is not an absolute URI without fragment (RFC 8707)", resource)
		}
	}
	if err := p.validateParams(); err != nil {
		return err
	}
	if err := validateHeaders(p.Headers); err != nil {
		return err
	}
	if err := p.TokenHeader.validate(); err != nil {
		return err
	}
	return validateRejectedStatus(p.RejectedStatus)
}

// API implements tokenprovider.Provider.
func (p *Provider) API() tokenprovider.API {
	api := tokenprovider.API{
		URL:              p.APIURL,
		Endpoints:        p.endpoints(),
		NeedsCertificate: p.authMethod() == tlsClientAuth,
		CredentialPaths:  tokenprovider.CredentialPaths(p.APIURL, p.endpoints()),
		IgnoresCase:      true, // the safe reading
		RejectedStatus:   p.RejectedStatus,
		RemainingHeaders: tokenprovider.UsualRemainingHeaders,
		LimitHeaders:     tokenprovider.UsualLimitHeaders,
		Error:            errorBody,
	}
	api.TokenHeader, api.TokenPrefix = p.TokenHeader.parts()
	return api
}

// endpoints returns the endpoints that are configured.
func (p *Provider) endpoints() []tokenprovider.Endpoint {
	endpoints := []tokenprovider.Endpoint{
		{Option: "token_url", URL: p.TokenURL},
		{Option: "revocation_url", URL: p.RevocationURL},
		{Option: "introspection_url", URL: p.IntrospectionURL},
	}
	return slices.DeleteFunc(endpoints, func(e tokenprovider.Endpoint) bool { return e.URL == "" })
}

// Grant implements tokenprovider.Provider.
func (p *Provider) Grant() tokenprovider.Grant {
	return tokenprovider.Grant{
		Provider:   "oauth2",
		TokenURL:   p.TokenURL,
		ClientID:   first(p.clientIDs),
		AuthMethod: p.authMethod(),
		Scopes:     p.Scopes,
		Audience:   p.Audience,
		Resource:   p.Resource,
		Params:     p.params,
		Headers:    slices.Sorted(maps.Keys(p.Headers)),
		KeyID:      first(p.keyIDs),
	}
}

// WithScopes implements tokenprovider.Provider.
func (p *Provider) WithScopes(scopes []string) (tokenprovider.Provider, error) {
	other := *p
	other.Scopes = scopes
	return &other, other.Validate()
}

// errorBody renders an error as problem details (RFC 9457). The status's own
// text is the title, as its type about:blank asks for.
func errorBody(status int, key, message string) (string, []byte) {
	body, _ := json.Marshal(struct {
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
		Code   string `json:"code"`
	}{http.StatusText(status), status, message, key})
	return "application/problem+json", body
}

// Options returns the options of the provider in a Caddyfile. Syntax:
//
//	oauth2 <api_url> {
//	    token_url          <url>
//	    client_id          <id> [<ids...>]
//	    auth_method        client_secret_basic|client_secret_basic_raw|client_secret_post|private_key_jwt|client_assertion|tls_client_auth
//	    client_secret      <secret> [<previous...>]
//	    private_key        <key> [<previous...>]
//	    key_id             <id> [<ids...>]
//	    signing_algorithm  <algorithm>
//	    assertion_audience <audience>
//	    client_assertion   <jwt>
//	    scopes             <scope...>
//	    audience           <audience...>
//	    resource           <uri...>
//	    param              <name> <value>
//	    header             <name> <value>
//	    revocation_url     <url>
//	    introspection_url  <url>
//	    token_header       <name> [<prefix>]
//	    rejected_status    <codes...>
//	}
func (p *Provider) Options() option.Table {
	return option.Table{
		"api_url":            func(d *caddyfile.Dispenser) error { return option.String(d, &p.APIURL) },
		"token_url":          func(d *caddyfile.Dispenser) error { return option.String(d, &p.TokenURL) },
		"client_id":          func(d *caddyfile.Dispenser) error { return option.Values(d, &p.ClientID) },
		"auth_method":        func(d *caddyfile.Dispenser) error { return option.String(d, &p.AuthMethod) },
		"client_secret":      func(d *caddyfile.Dispenser) error { return option.Values(d, &p.ClientSecret) },
		"private_key":        func(d *caddyfile.Dispenser) error { return option.Values(d, &p.PrivateKey) },
		"key_id":             func(d *caddyfile.Dispenser) error { return option.Values(d, &p.KeyID) },
		"signing_algorithm":  func(d *caddyfile.Dispenser) error { return option.String(d, &p.SigningAlgorithm) },
		"assertion_audience": func(d *caddyfile.Dispenser) error { return option.String(d, &p.AssertionAudience) },
		"client_assertion":   func(d *caddyfile.Dispenser) error { return option.String(d, &p.ClientAssertion) },
		"scopes":             func(d *caddyfile.Dispenser) error { return option.Strings(d, &p.Scopes) },
		"audience":           func(d *caddyfile.Dispenser) error { return option.Strings(d, &p.Audience) },
		"resource":           func(d *caddyfile.Dispenser) error { return option.Strings(d, &p.Resource) },
		"param":              func(d *caddyfile.Dispenser) error { return option.Pair(d, &p.Params) },
		"header":             func(d *caddyfile.Dispenser) error { return option.Pair(d, &p.Headers) },
		"revocation_url":     func(d *caddyfile.Dispenser) error { return option.String(d, &p.RevocationURL) },
		"introspection_url":  func(d *caddyfile.Dispenser) error { return option.String(d, &p.IntrospectionURL) },
		"token_header":       p.unmarshalTokenHeader,
		"rejected_status":    p.unmarshalRejectedStatus,
	}
}

// Interface guards
var (
	_ tokenprovider.Provider     = (*Provider)(nil)
	_ tokenprovider.Rotating     = (*Provider)(nil)
	_ tokenprovider.Revoker      = (*Provider)(nil)
	_ tokenprovider.Introspector = (*Provider)(nil)
	_ caddy.Provisioner          = (*Provider)(nil)
	_ caddy.Validator            = (*Provider)(nil)
	_ option.Provider            = (*Provider)(nil)
)
