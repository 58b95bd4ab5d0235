package egress

import (
	"fmt"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// checkScopes returns an error if a token would be asked for without scopes where
// the API needs some: by a route whose scopes, or else those of the credential, are
// own, or by one of its grants. what names the credential.
func checkScopes(what string, provider tokenprovider.Provider, own []string, grants []Grant) error {
	_, missing := provider.WithScopes(nil)
	switch {
	case missing == nil:
		return nil
	case grants == nil && len(own) == 0:
		return fmt.Errorf("%w; neither the route nor %s has any", missing, what)
	}
	for _, g := range grants {
		if len(effectiveScopes(g, own)) == 0 {
			return &tokenprovider.OptionError{
				Option: "grant",
				Arg:    strings.Join(g.Callers[:min(len(g.Callers), 1)], ""), // by which its line is found
				Err:    fmt.Errorf("%w; neither the grant nor its route nor %s has any", missing, what),
			}
		}
	}
	return nil
}

// ownToken returns the name and the provider of the token that is the route's own:
// that of health probes, whatever its grants say. Where only the grants name scopes
// it is that of the first.
func (t *Transport) ownToken(name string, provider tokenprovider.Provider) (string, tokenprovider.Provider, error) {
	own := provider.Grant().Scopes
	if err := checkScopes("credential "+name, provider, own, t.Grants); err != nil {
		return "", nil, err
	}
	if _, err := provider.WithScopes(nil); err != nil && len(own) == 0 && len(t.Grants) > 0 {
		return withScopes(name, provider, t.Grants[0].Scopes)
	}
	return name, provider, nil
}

// warnOfProvider gives the warnings of a provider, once of each credential, and those of
// its secrets.
func (a *App) warnOfProvider(logger *zap.Logger, name string, provider tokenprovider.Provider) {
	warnOfSecrets(logger.With(zap.String("credential", name)), provider)
	if warner, ok := provider.(tokenprovider.Warner); ok {
		for _, warning := range warner.Warnings() {
			a.warnOnce(logger, warning, zap.String("credential", name))
		}
	}
}

// warnOfOwnScopes is warnOfScopes for the token that is the route's own. One without
// scopes is lent to nobody where all grants name some.
func (t *Transport) warnOfOwnScopes(name string, provider tokenprovider.Provider) {
	lent := t.Grants == nil || slices.ContainsFunc(t.Grants, func(g Grant) bool { return g.Scopes == nil })
	if lent || len(provider.Grant().Scopes) > 0 {
		t.app.warnOfScopes(name, provider)
	}
}

// warnOfScopes warns of the scopes of a token that the API does not document, or that
// there are none where it needs some: once of each token, however many routes send it.
func (a *App) warnOfScopes(name string, provider tokenprovider.Provider) {
	checker, ok := provider.(tokenprovider.ScopeChecker)
	if !ok {
		return
	}
	scopes := provider.Grant().Scopes
	for _, warning := range checker.UnknownScopes() {
		a.warnOnce(a.logger, warning, zap.String("credential", name), zap.Strings("scopes", scopes))
	}
}

// warnOfRoute gives warnings about the route, which uses the credential name.
func (t *Transport) warnOfRoute(name string, warnings []routeWarning) {
	for _, w := range warnings {
		t.app.warnOnce(t.logger, w.message, append(w.fields, zap.String("credential", name))...)
	}
}

// warnOnce logs a warning, unless it has done so already: a site on several ports
// has each of its routes several times.
func (a *App) warnOnce(logger *zap.Logger, message string, fields ...zap.Field) {
	if _, warned := a.warned.LoadOrStore(fmt.Sprint(message, fields), true); !warned {
		logger.Warn(message, fields...)
	}
}
