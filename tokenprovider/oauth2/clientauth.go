package oauth2

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// authMethod is how a client authenticates: a value of auth_method.
type authMethod struct {
	needs  string   // the option that holds the secret; empty: none
	allows []string // options that go with it, of those that do not go with all

	// authenticate adds identifier and proof to r, or returns why there is none.
	authenticate func(p *Provider, r *tokenprovider.Request, id string) error
}

const (
	defaultAuthMethod = "client_secret_basic"
	tlsClientAuth     = "tls_client_auth"
)

// authMethods are the values of auth_method.
var authMethods = map[string]authMethod{
	defaultAuthMethod:         {needs: "client_secret", authenticate: withSecret(tokenprovider.ClientSecretBasic)},
	"client_secret_basic_raw": {needs: "client_secret", authenticate: withSecret(tokenprovider.ClientSecretBasicRaw)},
	"client_secret_post":      {needs: "client_secret", authenticate: withSecret(tokenprovider.ClientSecretPost)},
	"private_key_jwt": {
		needs:        "private_key",
		allows:       []string{"key_id", "signing_algorithm", "assertion_audience"},
		authenticate: withSignature,
	},
	"client_assertion": {needs: "client_assertion", authenticate: withAssertion},
	tlsClientAuth:      {authenticate: withCertificate},
}

const (
	adviceKey         = "check that private_key and key_id are those whose public key is registered for the client at the authorization server, client_id, and assertion_audience"
	adviceAssertion   = "check client_id, and that the authorization server trusts whoever issues client_assertion, with its issuer, subject and audience"
	adviceCertificate = "check that the certificate of token_cert is the one that is registered for the client at the authorization server, and has not expired, and client_id"
)

// withSecret sends the client secret as send does.
func withSecret(send tokenprovider.ClientAuth) func(*Provider, *tokenprovider.Request, string) error {
	return func(p *Provider, r *tokenprovider.Request, id string) error {
		secret, err := option.ResolveSecret("client_secret", first(p.ClientSecret))
		if err == nil {
			send(r, id, secret)
		}
		return err
	}
}

// withSignature sends an assertion that is signed for this request.
func withSignature(p *Provider, r *tokenprovider.Request, id string) error {
	key, err := p.signingKey()
	if err != nil {
		return err
	}
	assertion := tokenprovider.Assertion{
		ClientID:  id,
		Audience:  cmp.Or(p.AssertionAudience, p.TokenURL),
		Algorithm: p.SigningAlgorithm,
	}
	if id := first(p.KeyID); id != "" {
		if assertion.KeyID, err = option.Resolve("key_id", id); err != nil {
			return err
		}
	}
	signed, err := key.Sign(assertion)
	if err != nil {
		return option.Errorf("private_key", "%w", err)
	}
	tokenprovider.ClientAssertion(r, id, signed)
	r.ClientAdvice = adviceKey
	return nil
}

// signingKey reads the private key as it is now.
func (p *Provider) signingKey() (*tokenprovider.SigningKey, error) {
	secret, err := option.ResolveSecret("private_key", first(p.PrivateKey))
	if err != nil {
		return nil, err
	}
	key, err := tokenprovider.ParseSigningKey(secret)
	if err != nil {
		return nil, option.Errorf("private_key", "%w", err)
	}
	if _, err := key.Algorithm(p.SigningAlgorithm); err != nil {
		return nil, option.Errorf("signing_algorithm", "%w", err)
	}
	return key, nil
}

// withAssertion sends an assertion that somebody else has signed, whatever its
// times: it is the server's clock that counts.
func withAssertion(p *Provider, r *tokenprovider.Request, id string) error {
	assertion, err := p.assertion()
	if err != nil {
		return err
	}
	tokenprovider.ClientAssertion(r, id, assertion)
	r.ClientAdvice = adviceAssertion
	return nil
}

// assertion reads the client assertion as it is now.
func (p *Provider) assertion() (tokenprovider.Secret, error) {
	assertion, err := option.ResolveSecret("client_assertion", p.ClientAssertion)
	if err != nil {
		return assertion, err
	}
	if err := tokenprovider.CheckAssertion(assertion); err != nil {
		return assertion, option.Errorf("client_assertion", "%w", err)
	}
	return assertion, nil
}

// withCertificate leaves it to the certificate of the connection.
func withCertificate(_ *Provider, r *tokenprovider.Request, id string) error {
	tokenprovider.ClientIDOnly(r, id, tokenprovider.Secret{})
	r.ClientAdvice = adviceCertificate
	return nil
}

func (p *Provider) authMethod() string { return cmp.Or(p.AuthMethod, defaultAuthMethod) }

// validateAuth returns an error about the first option of client authentication that
// is missing, wrong, or does not go with auth_method.
func (p *Provider) validateAuth() error {
	name := p.authMethod()
	if err := option.OneOf("auth_method", name, slices.Sorted(maps.Keys(authMethods))...); err != nil {
		return err
	}
	method := authMethods[name]
	given := map[string]bool{
		"client_secret":      len(p.ClientSecret) > 0,
		"private_key":        len(p.PrivateKey) > 0,
		"key_id":             len(p.KeyID) > 0,
		"signing_algorithm":  p.SigningAlgorithm != "",
		"assertion_audience": p.AssertionAudience != "",
		"client_assertion":   p.ClientAssertion != "",
	}
	for _, of := range slices.Sorted(maps.Keys(given)) {
		if given[of] && of != method.needs && !slices.Contains(method.allows, of) {
			return option.Errorf(of, "does not go with auth_method %s; it belongs to %s", name, methodsWith(of))
		}
	}
	switch {
	case method.needs == "" || given[method.needs]:
	case p.AuthMethod == "":
		return fmt.Errorf("%s is required", method.needs)
	default:
		return fmt.Errorf("%s is required with auth_method %s", method.needs, name)
	}
	if p.SigningAlgorithm != "" {
		if err := option.OneOf("signing_algorithm", p.SigningAlgorithm, tokenprovider.SigningAlgorithms...); err != nil {
			return err
		}
	}
	return p.validateValues()
}

// methodsWith lists the methods that an option goes with.
func methodsWith(option string) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(authMethods)) {
		if m := authMethods[name]; m.needs == option || slices.Contains(m.allows, option) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// validateScheme returns an error where an endpoint could not see the certificate
// that the client authenticates by.
func (p *Provider) validateScheme(endpoint tokenprovider.Endpoint) error {
	if u, err := url.Parse(endpoint.URL); err == nil && u.Scheme != "https" && p.authMethod() == tlsClientAuth {
		return option.Errorf(endpoint.Option, "auth_method %s needs https", tlsClientAuth)
	}
	return nil
}
