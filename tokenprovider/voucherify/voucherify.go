// Package voucherify issues tokens for the Voucherify API.
package voucherify

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// regions are the shared clusters of Voucherify. A project lives in one of them.
var regions = map[string]string{
	"eu": "https://api.voucherify.io",
	"us": "https://us1.api.voucherify.io",
	"as": "https://as1.api.voucherify.io",
}

// credentialHeaders carry Voucherify's own credentials: keys of the server
// side, of the client side and of the management API.
var credentialHeaders = []string{
	"X-App-Id", "X-App-Token",
	"X-Client-Application-Id", "X-Client-Token",
	"X-Management-Id", "X-Management-Token",
}

// credentialPaths issue, describe and revoke credentials. They do not accept tokens.
var credentialPaths = []string{"/v1/oauth/", "/v2/oauth/", "/management/"}

// errorFormat is that of all errors of Voucherify: {"code":400,"key":"…","message":"…"}.
var errorFormat = tokenprovider.ErrorFormat{
	Fields: []string{"code", "message"},
	Code:   "key",
	Final: map[string]string{
		"unauthorized":                "", // with 401, which says enough
		"missing_required_permission": "check the permissions of the key in Voucherify",
		"invalid_grant_type":          "",
	},
}

// retryHeaders say when the rate limit ends.
var retryHeaders = []string{"X-Rate-Limit-Retry"}

// version is what differs between the versions of Voucherify's OAuth.
type version struct {
	name         string // of the option oauth, and in the path of the token endpoint
	authMethod   string
	authenticate tokenprovider.ClientAuth
	resolve      func(option, value string) (string, error) // the key's id and secret

	// scopes are those that are documented, and scopesFor tells which of them a
	// path needs; nil where none are.
	scopes    []string
	scopesFor func(path string) []string

	endsTokens bool // it revokes and introspects them

	check     func(*Provider) error                 // options that are its own
	provision func(*Provider) error                 // nil: there is nothing more to do
	params    func(*Provider) []tokenprovider.Param // of token requests; nil: none
}

// v1 is the version of an application's key.
var v1 = version{
	name:         "v1",
	authMethod:   "x_app_token",
	authenticate: tokenprovider.ClientHeaders("X-App-Id", "X-App-Token"),
	resolve:      option.ResolveHeader,
	scopes:       scopesV1,
	scopesFor:    scopesFor,
	endsTokens:   true,
	check: func(p *Provider) error {
		if p.ProjectID != "" {
			return option.Errorf("project_id", "needs oauth v2")
		}
		return nil
	},
}

// version returns the version that is configured.
func (p *Provider) version() version {
	if p.OAuth == v2.name {
		return v2
	}
	return v1
}

func init() {
	caddy.RegisterModule(Provider{})
}

// Provider issues tokens for the [Voucherify](https://www.voucherify.io) API by
// [OAuth 2.0](https://docs.voucherify.io/api-reference/oauth/generate-oauth-20-token).
//
// With OAuth v1, the keys of an application go to `POST /v1/oauth/token` in the
// headers `X-App-Id` and `X-App-Token`. Tokens live 15 minutes, inherit the
// key's permissions and IP allow-list, and can be revoked and introspected. A
// project has at most 1000 of them.
//
// OAuth v2 is EXPERIMENTAL here: an OAuth Service key goes to `POST
// /v2/oauth/token` in the Authorization header (Basic), with a project.
// Voucherify documents neither its answers nor revocation and introspection.
type Provider struct {
	// Application ID of the key. May be a placeholder such as
	// `{env.VOUCHERIFY_APP_ID}`. An array, if each value of app_token has one of
	// its own: in the same order. Required.
	AppID tokenprovider.Values `json:"app_id,omitempty"`

	// Secret of the key, as a placeholder: `{env.VOUCHERIFY_APP_TOKEN}` or
	// `{file./run/secrets/voucherify}`. It stays a placeholder in the stored
	// config and is read again at each token request. An array while the key is
	// rotated: the new one first, and the others for as long as Voucherify does not
	// know it. Required.
	AppToken tokenprovider.Values `json:"app_token,omitempty"`

	// Scopes to ask for, such as `api` for all of the server side, or
	// `vouchers` and `validations`. A scope that is not documented for v1 is
	// warned about and sent as it is. With v2, permissions of roles such as
	// `vouchers.read`. Required, unless each route or grant that uses the credential
	// names scopes of its own.
	Scopes []string `json:"scopes,omitempty"`

	// Region that the project lives in: `eu` (https://api.voucherify.io), `us`
	// (https://us1.api.voucherify.io) or `as` (https://as1.api.voucherify.io).
	// Calling another than the project's is an error. Default: `eu`.
	Region string `json:"region,omitempty"`

	// URL of a dedicated cluster, as scheme://host[:port], instead of a region.
	// The token endpoint is always on the same host. Default: the region's.
	APIURL string `json:"api_url,omitempty"`

	// Version of Voucherify's OAuth: `v1`, or the experimental `v2`.
	// Default: `v1`.
	OAuth string `json:"oauth,omitempty"`

	// Project to get tokens for. May be a placeholder. With v2 only, and
	// required there.
	ProjectID string `json:"project_id,omitempty"`

	appIDs    tokenprovider.Values // resolved at load; empty for one without a value
	projectID string               // resolved at load
}

// CaddyModule returns the Caddy module information.
func (Provider) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "egress.providers.voucherify",
		New: func() caddy.Module { return new(Provider) },
	}
}

// Provision resolves the placeholders, so that a credential without a value
// fails when the config is loaded.
func (p *Provider) Provision(caddy.Context) error {
	if err := p.Validate(); err != nil {
		return err
	}
	p.appIDs = p.key().ResolveIDs()
	if err := tokenprovider.CheckSecrets(p); err != nil {
		return err
	}
	if provision := p.version().provision; provision != nil {
		if err := provision(p); err != nil {
			return err
		}
	}
	return nil
}

// Validate returns an error that names the first option that is missing or wrong.
func (p *Provider) Validate() error {
	if err := p.key().Validate(); err != nil {
		return err
	}
	for _, scope := range p.Scopes {
		if strings.Contains(scope, ",") {
			return option.Errorf("scopes", "%q holds a comma; separate scopes by spaces", scope)
		}
	}
	if err := tokenprovider.CheckScopes(p.Scopes); err != nil {
		return err
	}
	if err := option.OneOf("region", p.region(), "eu", "us", "as"); err != nil {
		return err
	}
	if p.Region != "" && p.APIURL != "" {
		return option.Errorf("region", "a dedicated cluster, given by api_url, has none")
	}
	if err := option.OneOf("oauth", cmp.Or(p.OAuth, v1.name), v1.name, v2.name); err != nil {
		return err
	}
	if err := p.version().check(p); err != nil {
		return err
	}
	return option.Origin("api_url", p.apiURL())
}

// API implements tokenprovider.Provider.
func (p *Provider) API() tokenprovider.API {
	return tokenprovider.API{
		URL:               p.apiURL(),
		Endpoints:         []tokenprovider.Endpoint{{Option: "api_url", URL: p.tokenURL()}},
		CredentialHeaders: credentialHeaders,
		KeyHeaders:        []string{"X-App-Token", "X-Client-Token"},
		CredentialPaths:   credentialPaths,
		RetryHeaders:      retryHeaders,
		RemainingHeaders:  []string{"X-Rate-Limit-Remaining"},
		LimitHeaders:      []string{"X-Rate-Limit-Limit"},
		IgnoresCase:       true, // not documented; the safe reading of its paths
		ScopesFor:         p.version().scopesFor,
		Error:             errorBody,
	}
}

// Grant implements tokenprovider.Provider.
func (p *Provider) Grant() tokenprovider.Grant {
	return tokenprovider.Grant{
		Provider:   "voucherify",
		TokenURL:   p.tokenURL(),
		ClientID:   cmp.Or(p.appIDs...),
		AuthMethod: p.version().authMethod,
		Scopes:     p.Scopes,
		Params:     p.params(),
	}
}

// errNoScopes says that a token would have no rights. It is for Token and
// WithScopes to say: a credential may leave its scopes to routes and grants.
var errNoScopes = errors.New("scopes is required; api stands for the whole server side")

// WithScopes implements tokenprovider.Provider.
func (p *Provider) WithScopes(scopes []string) (tokenprovider.Provider, error) {
	if len(scopes) == 0 {
		return nil, errNoScopes
	}
	other := *p
	other.Scopes = scopes
	return &other, other.Validate()
}

// Secrets implements tokenprovider.Provider.
func (p *Provider) Secrets() ([]tokenprovider.Secret, error) {
	_, secret, err := p.key().Read()
	return []tokenprovider.Secret{secret}, err
}

// SecretOptions implements tokenprovider.Provider.
func (p *Provider) SecretOptions() map[string]string { return p.key().SecretOptions() }

// Alternatives implements tokenprovider.Rotating.
func (p *Provider) Alternatives() []tokenprovider.Provider {
	if len(p.AppToken) < 2 {
		return nil
	}
	all := make([]tokenprovider.Provider, len(p.AppToken))
	for i, secret := range p.AppToken {
		other := *p
		other.AppID, other.AppToken = tokenprovider.Values{p.AppID.At(i)}, tokenprovider.Values{secret}
		other.appIDs = tokenprovider.Values{p.appIDs.At(i)}
		all[i] = &other
	}
	return all
}

// Token implements tokenprovider.Provider.
func (p *Provider) Token(ctx context.Context, client *http.Client) (*tokenprovider.Token, error) {
	if len(p.Scopes) == 0 {
		return nil, errNoScopes
	}
	form := url.Values{
		"grant_type": {"client_credentials"},
		"scope":      {strings.Join(p.Scopes, " ")},
	}
	for _, param := range p.params() {
		form.Set(param.Name, param.Value)
	}
	request, err := p.request(p.tokenURL(), form)
	if err != nil {
		return nil, err
	}
	return tokenprovider.RequestToken(ctx, client, request)
}

// Revoke implements tokenprovider.Revoker. 404 says that the token is not
// known or no longer active, so there is nothing left to revoke.
func (p *Provider) Revoke(ctx context.Context, client *http.Client, token tokenprovider.Secret) error {
	request, err := p.request(p.apiURL()+"/v1/oauth/token/revoke", url.Values{"access_token": {token.Reveal()}})
	if err != nil {
		return err
	}
	return tokenprovider.RequestRevocation(ctx, client, request, http.StatusNotFound)
}

// CanRevoke implements tokenprovider.Revoker.
func (p *Provider) CanRevoke() bool { return p.version().endsTokens }

// Introspect implements tokenprovider.Introspector.
func (p *Provider) Introspect(ctx context.Context, client *http.Client, token tokenprovider.Secret) (*tokenprovider.Introspection, error) {
	request, err := p.request(p.apiURL()+"/v1/oauth/introspect", url.Values{"access_token": {token.Reveal()}})
	if err != nil {
		return nil, err
	}
	return tokenprovider.RequestIntrospection(ctx, client, request)
}

// CanIntrospect implements tokenprovider.Introspector.
func (p *Provider) CanIntrospect() bool { return p.version().endsTokens }

// key is what authenticates requests.
func (p *Provider) key() option.Key {
	return option.Key{IDName: "app_id", IDs: p.AppID, SecretName: "app_token", Secrets: p.AppToken, Resolve: p.version().resolve}
}

// request authenticates form with the key.
func (p *Provider) request(endpoint string, form url.Values) (tokenprovider.Request, error) {
	id, secret, err := p.key().Read()
	if err != nil {
		return tokenprovider.Request{}, err
	}
	request := tokenprovider.Request{URL: endpoint, Form: form, Errors: errorFormat, RetryHeaders: retryHeaders}
	p.version().authenticate(&request, id, secret)
	return request, nil
}

// params returns the parameters of token requests that are the version's own.
func (p *Provider) params() []tokenprovider.Param {
	if params := p.version().params; params != nil {
		return params(p)
	}
	return nil
}

func (p *Provider) region() string { return cmp.Or(p.Region, "eu") }
func (p *Provider) apiURL() string { return cmp.Or(p.APIURL, regions[p.region()]) }
func (p *Provider) tokenURL() string {
	return p.apiURL() + "/" + p.version().name + "/oauth/token"
}

// errorBody renders an error as the Voucherify API does.
func errorBody(status int, key, message string) (string, []byte) {
	body, _ := json.Marshal(struct {
		Code    int    `json:"code"`
		Key     string `json:"key"`
		Message string `json:"message"`
	}{status, key, message})
	return "application/json", body
}

// Options returns the options of the provider in a Caddyfile. Syntax:
//
//	voucherify [<api_url>] {
//	    app_id     <ids...>
//	    app_token  <secrets...>
//	    scopes     <scope...>
//	    region     eu|us|as
//	    oauth      v1|v2
//	    project_id <id>
//	}
func (p *Provider) Options() option.Table {
	return option.Table{
		"api_url":    func(d *caddyfile.Dispenser) error { return option.String(d, &p.APIURL) },
		"app_id":     func(d *caddyfile.Dispenser) error { return option.Values(d, &p.AppID) },
		"app_token":  func(d *caddyfile.Dispenser) error { return option.Values(d, &p.AppToken) },
		"scopes":     func(d *caddyfile.Dispenser) error { return option.Strings(d, &p.Scopes) },
		"region":     func(d *caddyfile.Dispenser) error { return option.String(d, &p.Region) },
		"oauth":      func(d *caddyfile.Dispenser) error { return option.String(d, &p.OAuth) },
		"project_id": func(d *caddyfile.Dispenser) error { return option.String(d, &p.ProjectID) },
	}
}

// Interface guards
var (
	_ tokenprovider.Provider     = (*Provider)(nil)
	_ tokenprovider.Rotating     = (*Provider)(nil)
	_ tokenprovider.ScopeChecker = (*Provider)(nil)
	_ tokenprovider.Warner       = (*Provider)(nil)
	_ tokenprovider.Revoker      = (*Provider)(nil)
	_ tokenprovider.Introspector = (*Provider)(nil)
	_ caddy.Provisioner          = (*Provider)(nil)
	_ caddy.Validator            = (*Provider)(nil)
	_ option.Provider            = (*Provider)(nil)
)
