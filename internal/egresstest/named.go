package egresstest

import (
	"context"
	"net/http"
	"os"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokenprovider/oauth2"
)

func init() {
	if os.Getenv(processVariable) != "" { // tests themselves have the providers that users have
		caddy.RegisterModule(new(namedProvider))
	}
}

const (
	// processVariable is the environment variable with the name of a [Process].
	processVariable = "EGRESS_TEST_PROCESS"

	// processHeader has it in requests to an API and to a token endpoint.
	processHeader = "X-Process"
)

// namedProvider is the provider oauth2, whose token requests say which process has
// made them. That is not an option, since processes with other options do not share tokens.
type namedProvider struct{ oauth2.Provider }

// CaddyModule returns the Caddy module information.
func (*namedProvider) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "egress.providers.test_named", New: func() caddy.Module { return new(namedProvider) }}
}

// Token implements tokenprovider.Provider.
func (p *namedProvider) Token(ctx context.Context, client *http.Client) (*tokenprovider.Token, error) {
	named := p.Provider
	named.Headers = map[string]string{processHeader: os.Getenv(processVariable)}
	return named.Token(ctx, client)
}

// Alternatives implements tokenprovider.Rotating: those of the provider make requests
// that say the same.
func (p *namedProvider) Alternatives() (all []tokenprovider.Provider) {
	for _, alternative := range tokenprovider.Alternatives(&p.Provider) {
		all = append(all, &namedProvider{*alternative.(*oauth2.Provider)})
	}
	return all
}
