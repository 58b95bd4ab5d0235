package oauth2

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// secretWords are what the names of parameters and headers contain that hold a secret.
var secretWords = []string{"secret", "token", "key", "password", "auth", "credential", "assertion"}

// ownParams are the form parameters that options of their own set.
var ownParams = []string{"grant_type", "client_id", "client_secret", "scope", "audience", "resource", "token"}

// assertionParams are those that the methods with an assertion set.
var assertionParams = []string{"client_assertion", "client_assertion_type"}

// ownHeaders are the request headers that are not an operator's to set.
var ownHeaders = []string{"Authorization", "Content-Type", "Content-Length", "Host", "Transfer-Encoding", "Connection"}

// validateParams returns an error about the first further parameter that is wrong.
func (p *Provider) validateParams() error {
	secret := authMethods[p.authMethod()].needs
	asserts := secret == "private_key" || secret == "client_assertion"
	for name := range p.Params {
		if name == "" {
			return option.Errorf("param", "the name is empty")
		}
		if slices.Contains(ownParams, name) || asserts && slices.Contains(assertionParams, name) {
			return wrong("param", name, "has an option of its own")
		}
	}
	return nil
}

// validateHeaders returns an error about the first further header that is wrong.
func validateHeaders(headers map[string]string) error {
	names := make(map[string]bool, len(headers))
	for name := range headers {
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

// resolveParams returns the further parameters with their values, sorted by name.
func resolveParams(params map[string]string) ([]tokenprovider.Param, error) {
	var resolved []tokenprovider.Param
	for _, name := range slices.Sorted(maps.Keys(params)) {
		value, err := option.Resolve("param "+name, params[name])
		if err != nil {
			return nil, err
		}
		resolved = append(resolved, tokenprovider.Param{Name: name, Value: value})
	}
	return resolved, nil
}

// headerValue returns the value of a further header as it is now.
func (p *Provider) headerValue(name string) (tokenprovider.Secret, error) {
	value, err := option.ResolveHeader("header "+name, p.Headers[name])
	return tokenprovider.NewSecret(value), err
}

func looksSecret(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc(secretWords, func(word string) bool { return strings.Contains(name, word) })
}
