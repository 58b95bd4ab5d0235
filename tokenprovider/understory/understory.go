// Package understory issues tokens for the Understory API.
package understory

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

const (
	defaultAPIURL   = "https://api.understory.io"
	defaultTokenURL = "https://api.auth.understory.io/oauth2/token"
	defaultAudience = "https://api.understory.io"

	// rateLimitWait is what Understory's documentation asks for after a 429, as
	// no header does: "back off for at least one minute".
	rateLimitWait = time.Minute
)

// errorFormat is that of the API, {"code":"UNAUTHORIZED","message":"…"}. The token
// endpoint answers as RFC 6749 §5.2 says; something of the API may answer for it.
var errorFormat = tokenprovider.ErrorFormat{Fields: []string{"code", "message"}, Code: "code"}

// scopesByResource are the scopes of which one is needed for what is below
// /v1/<resource>, as far as Understory publishes it.
var scopesByResource = map[string][]string{
	"bookings":              {"booking.read", "booking.write"},
	"event-availabilities":  {"event.read"},
	"events":                {"event.read"},
	"experiences":           {"experience.read"},
	"marketing-consents":    {"marketing.read"},
	"orders":                {"order.read"},
	"webhook-subscriptions": {"webhook.read", "webhook.write"},
}

func scopesFor(path string) []string {
	rest, ok := strings.CutPrefix(path, "/v1/")
	if !ok {
		return nil
	}
	resource, _, _ := strings.Cut(rest, "/")
	return scopesByResource[resource]
}

func init() {
	caddy.RegisterModule(Provider{})
}

// Provider issues tokens for the [Understory](https://understory.io) API by the
// client credentials grant, with the credentials in the form
// (`client_secret_post`), the one method Understory registers for its
// integration keys. Make a key in Backoffice: Company settings → Integrations →
// Create your own integration → Create new key, with at least one permission.
//
// Understory documents no revocation and no introspection of tokens.
type Provider struct {
	// Client ID of the integration key. May be a placeholder such as
	// `{env.UNDERSTORY_CLIENT_ID}`. An array, if each value of client_secret has
	// one of its own: in the same order. Required.
	ClientID tokenprovider.Values `json:"client_id,omitempty"`

	// Secret key of the integration key, as a placeholder:
	// `{env.UNDERSTORY_CLIENT_SECRET}` or `{file./run/secrets/understory}`. It
	// stays a placeholder in the stored config and is read again at each token
	// request. An array while the key is rotated: the new one first, and the others
	// for as long as Understory does not know it. Required.
	ClientSecret tokenprovider.Values `json:"client_secret,omitempty"`

	// Scopes to ask for, such as `openid` and `marketing.read`. Without any,
	// Understory issues a token without rights. Default: none.
	Scopes []string `json:"scopes,omitempty"`

	// Audience of the token. Default: `https://api.understory.io`.
	Audience string `json:"audience,omitempty"`

	// URL of the token endpoint.
	// Default: `https://api.auth.understory.io/oauth2/token`.
	TokenURL string `json:"token_url,omitempty"`

	// URL of the API, as scheme://host[:port].
	// Default: `https://api.understory.io`.
	APIURL string `json:"api_url,omitempty"`

	// Product that names your application to Understory, such as
	// `My-Company/Marketing-Automation-App`. Sent as User-Agent with token
	// requests, and with API requests whose client sent none.
	// Default: `caddy-egress`, with token requests only.
	UserAgent string `json:"user_agent,omitempty"`

	clientIDs tokenprovider.Values // resolved at load; empty for one without a value
}

// CaddyModule returns the Caddy module information.
func (Provider) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "egress.providers.understory",
		New: func() caddy.Module { return new(Provider) },
	}
}

// Provision resolves the placeholders, so that a credential without a value
// fails when the config is loaded.
func (p *Provider) Provision(caddy.Context) error {
	if err := p.Validate(); err != nil {
		return err
	}
	p.clientIDs = p.key().ResolveIDs()
	return tokenprovider.CheckSecrets(p)
}

// Validate returns an error that names the first option that is missing or wrong.
func (p *Provider) Validate() error {
	if err := p.key().Validate(); err != nil {
		return err
	}
	if err := tokenprovider.CheckScopes(p.Scopes); err != nil {
		return err
	}
	if err := option.Origin("api_url", p.apiURL()); err != nil {
		return err
	}
	if err := option.Endpoint("token_url", p.tokenURL()); err != nil {
		return err
	}
	return option.Header("user_agent", p.UserAgent)
}

// API implements tokenprovider.Provider.
func (p *Provider) API() tokenprovider.API {
	endpoints := []tokenprovider.Endpoint{{Option: "token_url", URL: p.tokenURL()}}
	return tokenprovider.API{
		URL:              p.apiURL(),
		Endpoints:        endpoints,
		CredentialPaths:  tokenprovider.CredentialPaths(p.apiURL(), endpoints),
		IgnoresCase:      true, // not documented; the safe reading of its paths
		UserAgent:        p.UserAgent,
		RateLimitWait:    rateLimitWait,
		RemainingHeaders: tokenprovider.UsualRemainingHeaders,
		LimitHeaders:     tokenprovider.UsualLimitHeaders,
		ScopesFor:        scopesFor,
		Error:            errorBody,
	}
}

// Grant implements tokenprovider.Provider.
func (p *Provider) Grant() tokenprovider.Grant {
	return tokenprovider.Grant{
		Provider:   "understory",
		TokenURL:   p.tokenURL(),
		ClientID:   cmp.Or(p.clientIDs...),
		AuthMethod: "client_secret_post",
		Scopes:     p.Scopes,
		Audience:   []string{p.audience()},
	}
}

// WithScopes implements tokenprovider.Provider.
func (p *Provider) WithScopes(scopes []string) (tokenprovider.Provider, error) {
	other := *p
	other.Scopes = scopes
	return &other, other.Validate()
}

// UnknownScopes implements tokenprovider.ScopeChecker. Which scopes there are is not
// documented as a whole.
func (p *Provider) UnknownScopes() []string {
	if len(p.Scopes) > 0 {
		return nil
	}
	return []string{"understory issues a token without rights where no scopes are asked for; name those that are needed"}
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
	if len(p.ClientSecret) < 2 {
		return nil
	}
	all := make([]tokenprovider.Provider, len(p.ClientSecret))
	for i, secret := range p.ClientSecret {
		other := *p
		other.ClientID, other.ClientSecret = tokenprovider.Values{p.ClientID.At(i)}, tokenprovider.Values{secret}
		other.clientIDs = tokenprovider.Values{p.clientIDs.At(i)}
		all[i] = &other
	}
	return all
}

// key is what authenticates token requests.
func (p *Provider) key() option.Key {
	return option.Key{IDName: "client_id", IDs: p.ClientID, SecretName: "client_secret", Secrets: p.ClientSecret, Resolve: option.Resolve}
}

// Token implements tokenprovider.Provider.
func (p *Provider) Token(ctx context.Context, client *http.Client) (*tokenprovider.Token, error) {
	id, secret, err := p.key().Read()
	if err != nil {
		return nil, err
	}
	request := tokenprovider.Request{
		URL:    p.tokenURL(),
		Header: make(http.Header),
		Form:   url.Values{"grant_type": {"client_credentials"}, "audience": {p.audience()}},
		Errors: errorFormat,
	}
	if len(p.Scopes) > 0 {
		request.Form.Set("scope", strings.Join(p.Scopes, " "))
	}
	if p.UserAgent != "" {
		request.Header.Set("User-Agent", p.UserAgent)
	}
	tokenprovider.ClientSecretPost(&request, id, secret)
	return tokenprovider.RequestToken(ctx, client, request)
}

func (p *Provider) apiURL() string   { return cmp.Or(p.APIURL, defaultAPIURL) }
func (p *Provider) tokenURL() string { return cmp.Or(p.TokenURL, defaultTokenURL) }
func (p *Provider) audience() string { return cmp.Or(p.Audience, defaultAudience) }

// errorBody renders an error as the Understory API does.
func errorBody(_ int, key, message string) (string, []byte) {
	body, _ := json.Marshal(struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}{key, message})
	return "application/json", body
}

// Options returns the options of the provider in a Caddyfile. Syntax:
//
//	understory [<api_url>] {
//	    client_id     <ids...>
//	    client_secret <secrets...>
//	    scopes        <scope...>
//	    audience      <audience>
//	    token_url     <url>
//	    user_agent    <product>
//	}
func (p *Provider) Options() option.Table {
	return option.Table{
		"api_url":       func(d *caddyfile.Dispenser) error { return option.String(d, &p.APIURL) },
		"client_id":     func(d *caddyfile.Dispenser) error { return option.Values(d, &p.ClientID) },
		"client_secret": func(d *caddyfile.Dispenser) error { return option.Values(d, &p.ClientSecret) },
		"scopes":        func(d *caddyfile.Dispenser) error { return option.Strings(d, &p.Scopes) },
		"audience":      func(d *caddyfile.Dispenser) error { return option.String(d, &p.Audience) },
		"token_url":     func(d *caddyfile.Dispenser) error { return option.String(d, &p.TokenURL) },
		"user_agent":    func(d *caddyfile.Dispenser) error { return option.String(d, &p.UserAgent) },
	}
}

// Interface guards
var (
	_ tokenprovider.Provider     = (*Provider)(nil)
	_ tokenprovider.Rotating     = (*Provider)(nil)
	_ tokenprovider.ScopeChecker = (*Provider)(nil)
	_ caddy.Provisioner          = (*Provider)(nil)
	_ caddy.Validator            = (*Provider)(nil)
	_ option.Provider            = (*Provider)(nil)
)
