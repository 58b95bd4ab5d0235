// Package oauth2 issues tokens from any authorization server that offers the
// client credentials grant of RFC 6749 §4.4.
package oauth2

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// authMethods are the values of auth_method.
var authMethods = map[string]tokenprovider.ClientAuth{
	defaultAuthMethod:         tokenprovider.ClientSecretBasic,
	"client_secret_basic_raw": tokenprovider.ClientSecretBasicRaw,
	"client_secret_post":      tokenprovider.ClientSecretPost,
}

const defaultAuthMethod = "client_secret_basic"

// secretWords are what the names of parameters and headers contain that hold a secret.
var secretWords = []string{"secret", "token", "key", "password", "auth", "credential", "assertion"}

// ownParams are the form parameters that options of their own set.
var ownParams = []string{"grant_type", "client_id", "client_secret", "scope", "audience", "resource", "token"}

// ownHeaders are the request headers that are not an operator's to set.
var ownHeaders = []string{"Authorization", "Content-Type", "Content-Length", "Host", "Transfer-Encoding", "Connection"}

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

	// Client identifier. May be a placeholder such as `{env.CLIENT_ID}`. Required.
	ClientID string `json:"client_id,omitempty"`

	// Client secret, as a placeholder: `{env.CLIENT_SECRET}` or
	// `{file./run/secrets/client_secret}`. It stays a placeholder in the stored
	// config and is read again at each token request. Required.
	ClientSecret string `json:"client_secret,omitempty"`

	// How the client authenticates: `client_secret_basic` sends identifier and
	// secret form-encoded in the Authorization header, as RFC 6749 §2.3.1 says;
	// `client_secret_basic_raw` sends them there as they are, for servers that
	// do not decode them; `client_secret_post` sends them in the form.
	// Default: `client_secret_basic`.
	AuthMethod string `json:"auth_method,omitempty"`

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

	clientID string                // resolved at load
	params   []tokenprovider.Param // resolved at load, sorted by name
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
	if p.clientID, err = option.Resolve("client_id", p.ClientID); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(p.Params)) {
		value, err := option.Resolve("param "+name, p.Params[name])
		if err != nil {
			return err
		}
		p.params = append(p.params, tokenprovider.Param{Name: name, Value: value})
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
	case p.ClientID == "":
		return errors.New("client_id is required")
	case p.ClientSecret == "":
		return errors.New("client_secret is required")
	}
	if err := option.OneOf("auth_method", p.authMethod(), slices.Sorted(maps.Keys(authMethods))...); err != nil {
		return err
	}
	if err := option.Origin("api_url", p.APIURL); err != nil {
		return err
	}
	for _, endpoint := range p.endpoints() {
		if err := option.Endpoint(endpoint.Option, endpoint.URL); err != nil {
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
	for name := range p.Params {
		if name == "" {
			return option.Errorf("param", "the name is empty")
		}
		if slices.Contains(ownParams, name) {
			return wrong("param", name, "has an option of its own")
		}
	}
	names := make(map[string]bool, len(p.Headers))
	for name := range p.Headers {
		canonical := http.CanonicalHeaderKey(name)
		switch {
		case !httpguts.ValidHeaderFieldName(name):
			return wrong("header", name, "is not a header name")
		case slices.Contains(ownHeaders, canonical):
			return wrong("header", name, "cannot be set")
		case names[canonical]:
			return wrong("header", canonical, "is given twice")
		}
		names[canonical] = true
	}
	return nil
}

// wrong returns an error about a parameter or header.
func wrong(option, name, what string) error {
	return &tokenprovider.OptionError{Option: option, Arg: name, Err: errors.New(what)}
}

// API implements tokenprovider.Provider.
func (p *Provider) API() tokenprovider.API {
	paths := tokenprovider.CredentialPaths(p.APIURL, p.endpoints()) // in any case, which is the safe reading
	return tokenprovider.API{URL: p.APIURL, Endpoints: p.endpoints(), CredentialPaths: paths, IgnoresCase: true, RemainingHeaders: tokenprovider.UsualRemainingHeaders, LimitHeaders: tokenprovider.UsualLimitHeaders, Error: errorBody}
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
		ClientID:   p.clientID,
		AuthMethod: p.authMethod(),
		Scopes:     p.Scopes,
		Audience:   p.Audience,
		Resource:   p.Resource,
		Params:     p.params,
		Headers:    slices.Sorted(maps.Keys(p.Headers)),
	}
}

// WithScopes implements tokenprovider.Provider.
func (p *Provider) WithScopes(scopes []string) (tokenprovider.Provider, error) {
	other := *p
	other.Scopes = scopes
	return &other, other.Validate()
}

// Secrets implements tokenprovider.Provider. Header values are among them:
// some servers want a key there.
func (p *Provider) Secrets() ([]tokenprovider.Secret, error) {
	secret, err := option.ResolveSecret("client_secret", p.ClientSecret)
	if err != nil {
		return nil, err
	}
	secrets := []tokenprovider.Secret{secret}
	for _, name := range slices.Sorted(maps.Keys(p.Headers)) {
		value, err := p.headerValue(name)
		if err != nil {
			return nil, err
		}
		secrets = append(secrets, value)
	}
	return secrets, nil
}

// SecretOptions implements tokenprovider.Provider. Of the further parameters and
// headers it returns those whose name looks like that of a secret.
func (p *Provider) SecretOptions() map[string]string {
	secrets := map[string]string{"client_secret": p.ClientSecret}
	for option, values := range map[string]map[string]string{"param": p.Params, "header": p.Headers} {
		for name, value := range values {
			if looksSecret(name) {
				secrets[option+" "+name] = value
			}
		}
	}
	return secrets
}

func looksSecret(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc(secretWords, func(word string) bool { return strings.Contains(name, word) })
}

// Token implements tokenprovider.Provider.
func (p *Provider) Token(ctx context.Context, client *http.Client) (*tokenprovider.Token, error) {
	form := url.Values{"grant_type": {"client_credentials"}}
	if len(p.Scopes) > 0 {
		form.Set("scope", strings.Join(p.Scopes, " "))
	}
	if len(p.Audience) > 0 {
		form["audience"] = p.Audience
	}
	if len(p.Resource) > 0 {
		form["resource"] = p.Resource
	}
	for _, param := range p.params {
		form.Set(param.Name, param.Value)
	}
	request, err := p.request(p.TokenURL, form)
	if err != nil {
		return nil, err
	}
	return tokenprovider.RequestToken(ctx, client, request)
}

// Revoke implements tokenprovider.Revoker.
func (p *Provider) Revoke(ctx context.Context, client *http.Client, token tokenprovider.Secret) error {
	request, err := p.request(p.RevocationURL, tokenForm(token))
	if err != nil {
		return err
	}
	return tokenprovider.RequestRevocation(ctx, client, request)
}

// CanRevoke implements tokenprovider.Revoker.
func (p *Provider) CanRevoke() bool { return p.RevocationURL != "" }

// Introspect implements tokenprovider.Introspector.
func (p *Provider) Introspect(ctx context.Context, client *http.Client, token tokenprovider.Secret) (*tokenprovider.Introspection, error) {
	request, err := p.request(p.IntrospectionURL, tokenForm(token))
	if err != nil {
		return nil, err
	}
	return tokenprovider.RequestIntrospection(ctx, client, request)
}

// CanIntrospect implements tokenprovider.Introspector.
func (p *Provider) CanIntrospect() bool { return p.IntrospectionURL != "" }

func tokenForm(token tokenprovider.Secret) url.Values {
	return url.Values{"token": {token.Reveal()}, "token_type_hint": {"access_token"}}
}

// request authenticates form with the credential, id and secret read together.
func (p *Provider) request(endpoint string, form url.Values) (tokenprovider.Request, error) {
	id, err := option.Resolve("client_id", p.ClientID)
	if err != nil {
		return tokenprovider.Request{}, err
	}
	secret, err := option.ResolveSecret("client_secret", p.ClientSecret)
	if err != nil {
		return tokenprovider.Request{}, err
	}
	request := tokenprovider.Request{URL: endpoint, Header: make(http.Header), Form: form}
	for name := range p.Headers {
		value, err := p.headerValue(name)
		if err != nil {
			return tokenprovider.Request{}, err
		}
		request.Header.Set(name, value.Reveal())
	}
	authMethods[p.authMethod()](&request, id, secret)
	return request, nil
}

// headerValue returns the value of a further header as it is now.
func (p *Provider) headerValue(name string) (tokenprovider.Secret, error) {
	value, err := option.ResolveHeader("header "+name, p.Headers[name])
	return tokenprovider.NewSecret(value), err
}

func (p *Provider) authMethod() string { return cmp.Or(p.AuthMethod, defaultAuthMethod) }

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
//	    token_url         <url>
//	    client_id         <id>
//	    client_secret     <secret>
//	    auth_method       client_secret_basic|client_secret_basic_raw|client_secret_post
//	    scopes            <scope...>
//	    audience          <audience...>
//	    resource          <uri...>
//	    param             <name> <value>
//	    header            <name> <value>
//	    revocation_url    <url>
//	    introspection_url <url>
//	}
func (p *Provider) Options() option.Table {
	return option.Table{
		"api_url":           func(d *caddyfile.Dispenser) error { return option.String(d, &p.APIURL) },
		"token_url":         func(d *caddyfile.Dispenser) error { return option.String(d, &p.TokenURL) },
		"client_id":         func(d *caddyfile.Dispenser) error { return option.String(d, &p.ClientID) },
		"client_secret":     func(d *caddyfile.Dispenser) error { return option.String(d, &p.ClientSecret) },
		"auth_method":       func(d *caddyfile.Dispenser) error { return option.String(d, &p.AuthMethod) },
		"scopes":            func(d *caddyfile.Dispenser) error { return option.Strings(d, &p.Scopes) },
		"audience":          func(d *caddyfile.Dispenser) error { return option.Strings(d, &p.Audience) },
		"resource":          func(d *caddyfile.Dispenser) error { return option.Strings(d, &p.Resource) },
		"param":             func(d *caddyfile.Dispenser) error { return option.Pair(d, &p.Params) },
		"header":            func(d *caddyfile.Dispenser) error { return option.Pair(d, &p.Headers) },
		"revocation_url":    func(d *caddyfile.Dispenser) error { return option.String(d, &p.RevocationURL) },
		"introspection_url": func(d *caddyfile.Dispenser) error { return option.String(d, &p.IntrospectionURL) },
	}
}

// Interface guards
var (
	_ tokenprovider.Provider     = (*Provider)(nil)
	_ tokenprovider.Revoker      = (*Provider)(nil)
	_ tokenprovider.Introspector = (*Provider)(nil)
	_ caddy.Provisioner          = (*Provider)(nil)
	_ caddy.Validator            = (*Provider)(nil)
	_ option.Provider            = (*Provider)(nil)
)
