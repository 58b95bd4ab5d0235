package oauth2

import (
	"fmt"
	"maps"
	"slices"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// secrets returns the values of the secret, of methods that may have several.
func (p *Provider) secrets() tokenprovider.Values {
	return slices.Concat(p.ClientSecret, p.PrivateKey) // one of them is empty
}

// validateValues returns an error unless identifiers and secrets go together.
func (p *Provider) validateValues() error {
	secrets, name := p.secrets(), authMethods[p.authMethod()].needs
	if len(secrets) == 0 {
		if len(p.ClientID) > 1 {
			return option.Errorf("client_id", "takes one value with auth_method %s", p.authMethod())
		}
		secrets, name = tokenprovider.Values{p.authMethod()}, "auth_method"
	}
	if err := tokenprovider.CheckPaired("client_id", p.ClientID, name, secrets); err != nil {
		return err
	}
	return tokenprovider.CheckPaired("key_id", p.KeyID, name, secrets)
}

// Alternatives implements tokenprovider.Rotating. There are none with one value: a
// provider that embeds this one stands for itself then.
func (p *Provider) Alternatives() []tokenprovider.Provider {
	if len(p.secrets()) < 2 {
		return nil
	}
	var all []tokenprovider.Provider
	for _, alternative := range p.alternatives() {
		all = append(all, alternative)
	}
	return all
}

// alternatives returns a provider for each value of the secret; p itself if it does
// not have several.
func (p *Provider) alternatives() []*Provider {
	n := len(p.secrets())
	if n < 2 {
		return []*Provider{p}
	}
	at := func(values tokenprovider.Values, i int) tokenprovider.Values {
		if value := values.At(i); value != "" {
			return tokenprovider.Values{value}
		}
		return nil
	}
	var all []*Provider
	for i := range n {
		one := *p
		one.ClientID, one.ClientSecret = at(p.ClientID, i), at(p.ClientSecret, i)
		one.PrivateKey, one.KeyID = at(p.PrivateKey, i), at(p.KeyID, i)
		one.clientIDs, one.keyIDs = at(p.clientIDs, i), at(p.keyIDs, i)
		all = append(all, &one)
	}
	return all
}

// each calls f with one alternative after the other until it succeeds. It returns
// the first error if it never does.
func (p *Provider) each(f func(*Provider) error) error {
	var first error
	for _, alternative := range p.alternatives() {
		err := f(alternative)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// Secrets implements tokenprovider.Provider. Header values are among them: some
// servers want a key there, or tell tenants apart by one. So is a client assertion,
// which somebody else renews. The first is the client's own, and zero where that does
// not last.
func (p *Provider) Secrets() ([]tokenprovider.Secret, error) {
	var secret, assertion tokenprovider.Secret
	err := p.each(func(p *Provider) (err error) {
		// a value whose identifier cannot be read is as good as none
		if _, err := option.Resolve("client_id", first(p.ClientID)); err != nil {
			return err
		}
		if id := first(p.KeyID); id != "" {
			if _, err := option.Resolve("key_id", id); err != nil {
				return err
			}
		}
		switch authMethods[p.authMethod()].needs {
		case "client_secret":
			secret, err = option.ResolveSecret("client_secret", first(p.ClientSecret))
		case "private_key":
			secret, err = option.ResolveSecret("private_key", first(p.PrivateKey))
			if err == nil { // a file that is half-written has no value yet
				_, err = p.signingKey()
			}
		case "client_assertion":
			assertion, err = p.assertion()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	rest, err := p.headerValues()
	if !assertion.IsZero() {
		rest = append(rest, assertion)
	}
	if err != nil || secret.IsZero() && len(rest) == 0 {
		return nil, err
	}
	return append([]tokenprovider.Secret{secret}, rest...), nil
}

// SecretOptions implements tokenprovider.Provider. Of the further parameters and
// headers it returns those whose name looks like that of a secret.
func (p *Provider) SecretOptions() map[string]string {
	options := make(map[string]string)
	for name, values := range map[string]tokenprovider.Values{"client_secret": p.ClientSecret, "private_key": p.PrivateKey} {
		for i, value := range values {
			if i > 0 {
				options[fmt.Sprint(name, " ", i+1)] = value
			} else {
				options[name] = value
			}
		}
	}
	if p.ClientAssertion != "" {
		options["client_assertion"] = p.ClientAssertion
	}
	for option, values := range map[string]map[string]string{"param": p.Params, "header": p.Headers} {
		for name, value := range values {
			if looksSecret(name) {
				options[option+" "+name] = value
			}
		}
	}
	return options
}

// headerValues returns the values of the further headers, sorted by name.
func (p *Provider) headerValues() ([]tokenprovider.Secret, error) {
	var values []tokenprovider.Secret
	for _, name := range slices.Sorted(maps.Keys(p.Headers)) {
		value, err := p.headerValue(name)
		if err != nil {
			return nil, err
		}
		values = append(values, value)
	}
	return values, nil
}

// resolveIDs returns what identifiers stand for. That of a key which is still to
// come may have no value yet, if another has one.
func resolveIDs(name string, ids tokenprovider.Values) (tokenprovider.Values, error) {
	var resolved tokenprovider.Values
	var failed error
	for _, id := range ids {
		value, err := option.Resolve(name, id)
		if err != nil && failed == nil {
			failed = err
		}
		resolved = append(resolved, value)
	}
	if first(resolved) == "" {
		return nil, failed
	}
	return resolved, nil
}

// first returns the first value that is not empty.
func first(values tokenprovider.Values) string {
	for _, value := range values {
		if value != "" {
			return value
		}
	}
	return ""
}
