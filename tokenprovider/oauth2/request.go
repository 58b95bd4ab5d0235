package oauth2

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

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

// request authenticates form with the credential, id and secret read together: with
// the first value of the secret that can be read.
func (p *Provider) request(endpoint string, form url.Values) (tokenprovider.Request, error) {
	request := tokenprovider.Request{URL: endpoint, Header: make(http.Header), Form: form}
	err := p.each(func(p *Provider) error {
		id, err := option.Resolve("client_id", first(p.ClientID))
		if err != nil {
			return err
		}
		return authMethods[p.authMethod()].authenticate(p, &request, id)
	})
	if err != nil {
		return tokenprovider.Request{}, err
	}
	for name := range p.Headers {
		value, err := p.headerValue(name)
		if err != nil {
			return tokenprovider.Request{}, err
		}
		request.Header.Set(name, value.Reveal())
	}
	return request, nil
}
