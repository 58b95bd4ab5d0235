package tokenprovider_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-egress/caddy-egress"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

func init() {
	caddy.RegisterModule(Acme{})
}

// Acme issues tokens for the API of Acme, which wants the client in headers of
// its own and has errors of its own: {"reason":"key_expired","hint":"…"}.
type Acme struct {
	ClientID string   `json:"client_id,omitempty"`
	APIKey   string   `json:"api_key,omitempty"`
	Scopes   []string `json:"scopes,omitempty"`
	Cluster  string   `json:"cluster,omitempty"`
}

// CaddyModule makes Acme a provider: its namespace is egress.providers, and its
// name the one to use in a Caddyfile.
func (Acme) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "egress.providers.acme", New: func() caddy.Module { return new(Acme) }}
}

// Options returns the options in a Caddyfile. Each function reads what follows
// its option.
func (a *Acme) Options() map[string]func(*caddyfile.Dispenser) error {
	one := func(value *string) func(*caddyfile.Dispenser) error {
		return func(d *caddyfile.Dispenser) error {
			if *value != "" || !d.AllArgs(value) {
				return d.ArgErr()
			}
			return nil
		}
	}
	return map[string]func(*caddyfile.Dispenser) error{
		"client_id": one(&a.ClientID),
		"api_key":   one(&a.APIKey),
		"cluster":   one(&a.Cluster),
		"scopes": func(d *caddyfile.Dispenser) error {
			a.Scopes = append(a.Scopes, d.RemainingArgs()...)
			return nil
		},
	}
}

// Validate returns what is missing or wrong. An *OptionError points to the
// option's line.
func (a *Acme) Validate() error {
	if a.ClientID == "" || a.APIKey == "" {
		return errors.New("client_id and api_key are required")
	}
	if strings.ContainsAny(a.Cluster, "/.:") {
		return &tokenprovider.OptionError{Option: "cluster", Err: errors.New("is a name, not a URL")}
	}
	return tokenprovider.CheckScopes(a.Scopes)
}

// API implements tokenprovider.Provider.
func (a *Acme) API() tokenprovider.API {
	return tokenprovider.API{
		URL:               "https://" + cmp.Or(a.Cluster, "api") + ".acme.example",
		Endpoints:         []tokenprovider.Endpoint{{Option: "cluster", URL: a.tokenURL()}},
		CredentialHeaders: []string{"X-Acme-Client", "X-Acme-Key"}, // never taken from a client
		CredentialPaths:   []string{"/oauth/"},                     // never called by one
		Error: func(_ int, key, message string) (contentType string, body []byte) {
			body, _ = json.Marshal(map[string]string{"reason": key, "hint": message})
			return "application/json", body
		},
	}
}

func (a *Acme) tokenURL() string {
	return "https://" + cmp.Or(a.Cluster, "api") + ".acme.example/oauth/token"
}

// Grant implements tokenprovider.Provider.
func (a *Acme) Grant() tokenprovider.Grant {
	return tokenprovider.Grant{Provider: "acme", TokenURL: a.tokenURL(), ClientID: a.ClientID, AuthMethod: "x_acme_key", Scopes: a.Scopes}
}

// WithScopes implements tokenprovider.Provider.
func (a *Acme) WithScopes(scopes []string) (tokenprovider.Provider, error) {
	other := *a
	other.Scopes = scopes
	return &other, other.Validate()
}

// SecretOptions implements tokenprovider.Provider.
func (a *Acme) SecretOptions() map[string]string { return map[string]string{"api_key": a.APIKey} }

// Secrets implements tokenprovider.Provider. What the placeholder stands for is
// read again each time: a file may have changed.
func (a *Acme) Secrets() ([]tokenprovider.Secret, error) {
	key, err := caddy.NewReplacer().ReplaceOrErr(a.APIKey, true, true)
	if err != nil || key == "" {
		return nil, errors.New("api_key: the placeholder has no value")
	}
	return []tokenprovider.Secret{tokenprovider.NewSecret(key)}, nil
}

// Token implements tokenprovider.Provider.
func (a *Acme) Token(ctx context.Context, client *http.Client) (*tokenprovider.Token, error) {
	secrets, err := a.Secrets()
	if err != nil {
		return nil, err
	}
	request := tokenprovider.Request{
		URL:  a.tokenURL(),
		Form: url.Values{"grant_type": {"client_credentials"}, "scope": {strings.Join(a.Scopes, " ")}},
		Errors: tokenprovider.ErrorFormat{
			Fields: []string{"reason"},
			Code:   "reason",
			Final:  map[string]string{"key_expired": "make a new key in Acme's console"},
		},
	}
	tokenprovider.ClientHeaders("X-Acme-Client", "X-Acme-Key")(&request, a.ClientID, secrets[0])
	return tokenprovider.RequestToken(ctx, client, request)
}

// A provider for an API of one's own is a Caddy module in the namespace
// egress.providers. It is built in with xcaddy and needs no other change.
func Example() {
	adapt := func(options string) {
		config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte("{\nlog {\noutput discard\n}\n}\n:8080 {\negress acme {\n"+options+"\n}\n}\n"), nil)
		if err != nil {
			fmt.Println(err)
			return
		}
		_, provider, _ := strings.Cut(string(config), `"provider":{`)
		provider, _, _ = strings.Cut(provider, `,"tls"`)
		fmt.Println("{" + provider)

		// load the config without starting it
		os.Setenv("ACME_KEY", "an API key")
		defer os.Unsetenv("ACME_KEY")
		var loaded caddy.Config
		if err := json.Unmarshal(config, &loaded); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("errors:", caddy.Validate(&loaded))
	}
	adapt("client_id shop\napi_key {env.ACME_KEY}\nscopes orders stock")
	adapt("client_id shop\napi_key {env.ACME_KEY}\ncluster https://eu.acme.example")
	adapt("client_id shop\napi_kye {env.ACME_KEY}")

	// Output:
	// {"api_key":"{env.ACME_KEY}","client_id":"shop","name":"acme","scopes":["orders","stock"]}
	// errors: <nil>
	// parsing caddyfile tokens for 'egress': egress acme: cluster: is a name, not a URL, at Caddyfile:10
	// parsing caddyfile tokens for 'egress': egress acme: unknown option "api_kye"; did you mean api_key?, at Caddyfile:9
}
