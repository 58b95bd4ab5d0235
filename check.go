package egress

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"github.com/caddy-egress/caddy-egress/internal/option"
)

// errCheckFailed ends `caddy egress check` where the table has said all.
var errCheckFailed = errors.New("at least one credential gets no token")

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [--config <path>] [--adapter <name>] [--tenant <name>] [<credential>...]",
		Short: "Obtains a token for each credential of a config, without starting a server",
		Long: `
Obtains one token for each credential of a config, or for those that are named,
and shows what came of it and what to do about a failure. No server is started,
and no other app. What can be revoked is revoked afterwards; a server that hands
out one token again and again would thereby end that of a running gateway.

Where a secret has several values, each is tried once. One that was refused is not
tried again for the other tokens of the credential.

A credential with {tenant} in it is checked for each tenant that --tenant names.

Exits with status 1 if a credential gets no token.`,
	}
	var flags configFlags
	flags.register(cmd)
	tenants := cmd.Flags().StringSlice("tenant", nil, "Tenant to check credentials with {tenant} for; several are separated by commas")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		adapted, err := flags.load()
		if err != nil {
			return err
		}
		results, err := check(cmd.Context(), adapted, names, *tenants)
		if err != nil {
			return err
		}
		if flags.json {
			err = json.NewEncoder(cmd.OutOrStdout()).Encode(results)
		} else {
			err = writeChecks(cmd.OutOrStdout(), results)
		}
		if err == nil && slices.ContainsFunc(results, func(r checkResult) bool { return r.Error != "" }) {
			err = errCheckFailed
		}
		return err
	}
	return cmd
}

// check obtains a token for each credential in a config, or for those named, and
// where it has {tenant} in it for each of the tenants.
func check(ctx context.Context, config []byte, names, tenants []string) ([]checkResult, error) {
	credentials, err := credentialsOf(config)
	if err != nil {
		return nil, err
	}
	for _, tenant := range tenants {
		if !isTenantName(tenant) {
			return nil, fmt.Errorf("--tenant: %q cannot be the name of a tenant", tenant)
		}
	}
	if len(tenants) > 0 && !slices.ContainsFunc(credentials, func(c foundCredential) bool { return c.hasTenants() }) {
		return nil, fmt.Errorf("--tenant: no credential of the config has %s in it", option.Tenant)
	}
	if len(credentials) == 0 {
		return nil, errors.New("the config has no credential")
	}
	var known []string
	for _, c := range credentials {
		if c.name != "" && !slices.Contains(known, c.name) {
			known = append(known, c.name)
		}
	}
	for _, name := range names {
		switch {
		case slices.Contains(known, name):
		case known == nil:
			return nil, fmt.Errorf("the config has no credential %q, and none with a name: leave it out to check all", name)
		default:
			return nil, fmt.Errorf("the config has no credential %q; %s", name, thereAre(name, known))
		}
	}
	var results []checkResult
	clients := make(checkedClients)
	for _, c := range credentials {
		if len(names) > 0 && !slices.Contains(names, c.name) {
			continue
		}
		for _, c := range c.forTenants(tenants) {
			results = append(results, c.check(ctx, clients))
		}
	}
	noteCauses(results)
	return results, nil
}

// foundCredential is a credential as a config holds it.
type foundCredential struct {
	name string // empty for one that a route holds inline
	Credential
	tenant    string   // whose it is, if it has {tenant} in it
	family    string   // what it is called for all tenants, then
	scopes    []string // of a route, instead of its own
	idle      bool     // no token is asked for: it has no scopes, and no route uses it
	allowHTTP bool     // a route that uses it has allow_http
}

// forTenants returns the credential of each of the tenants if it has {tenant} in it,
// and else the credential itself.
func (c foundCredential) forTenants(tenants []string) []foundCredential {
	if !c.hasTenants() || len(tenants) == 0 {
		return []foundCredential{c}
	}
	var all []foundCredential
	for _, tenant := range tenants {
		one := c
		one.family = c.familyName()
		one.tenant, one.Credential, one.scopes = tenant, c.forTenant(tenant), valuesForTenant(c.scopes, tenant)
		all = append(all, one)
	}
	return all
}

// familyName returns what logs call a credential with {tenant} in it; empty if it is
// not right, which check says.
func (c foundCredential) familyName() string {
	provider, err := unprovisioned(c.ProviderRaw)
	if err != nil {
		return ""
	}
	name, _, err := withScopes(cmp.Or(c.name, inlineName(c.Credential, provider)), provider, c.scopes)
	if err != nil {
		return ""
	}
	return name
}

// ofTenant returns the name of a credential, or of one of its tenants.
func (c foundCredential) ofTenant(name string) string {
	if c.tenant == "" {
		return name
	}
	return name + "/" + c.tenant
}

// credentialsOf finds the credentials of a config: those with a name, those
// that routes hold inline, and those of routes and grants with scopes of their
// own. One that routes share is found once.
func credentialsOf(config []byte) ([]foundCredential, error) {
	app, routes, err := routesOf(config)
	if err != nil {
		return nil, err
	}
	var found []foundCredential
	for _, name := range slices.Sorted(maps.Keys(app.Credentials)) {
		c := foundCredential{name: name, allowHTTP: app.AllowHTTP}
		if credential := app.Credentials[name]; credential != nil {
			c.Credential = *credential
			c.idle = c.lacksScopes()
		}
		found = append(found, c)
	}
	for _, route := range routes {
		var t configTransport
		if err := json.Unmarshal(route.transport, &t); err != nil {
			return nil, fmt.Errorf("reading an egress transport: %w", err)
		}
		if credential, ok := app.Credentials[t.CredentialName]; ok && credential != nil {
			t.Credential = *credential
		} else if t.CredentialName != "" { // loading says what is wrong
			continue
		}
		for _, scopes := range t.scopesInUse() {
			used := foundCredential{name: t.CredentialName, Credential: t.Credential, scopes: scopes, allowHTTP: t.AllowHTTP || app.AllowHTTP}
			if i := slices.IndexFunc(found, used.same); i < 0 {
				found = append(found, used)
			}
			for i, c := range found { // of a credential that no route uses, others decide
				if c.same(used) {
					found[i].idle = false
				}
				if c.same(used) || c.name != "" && c.name == used.name && c.scopes == nil {
					found[i].allowHTTP = c.allowHTTP || used.allowHTTP
				}
			}
		}
	}
	all := slices.Clone(found)
	return slices.DeleteFunc(found, func(c foundCredential) bool { // others ask for its tokens
		return c.idle && slices.ContainsFunc(all, func(used foundCredential) bool { return used.name == c.name && !used.idle })
	}), nil
}

// scopesInUse returns the scopes of the tokens that a route sends; nil stands for
// those of its credential.
func (t *configTransport) scopesInUse() [][]string {
	if t.Grants == nil {
		return [][]string{t.Scopes}
	}
	var all [][]string
	for _, g := range t.Grants {
		all = append(all, effectiveScopes(g, t.Scopes))
	}
	return all
}

// same reports whether both get the same token, under the same name.
func (c foundCredential) same(other foundCredential) bool {
	if c.name != other.name || c.name == "" && !bytes.Equal(c.ProviderRaw, other.ProviderRaw) {
		return false
	}
	name, scopes := c.token()
	otherName, otherScopes := other.token()
	return name == otherName && sameSet(scopes, otherScopes)
}

// token returns the name of the token, as far as it can be told from the config,
// and the scopes that are asked for.
func (c foundCredential) token() (name string, scopes []string) {
	provider, err := unprovisioned(c.ProviderRaw)
	if err == nil {
		name, scopes, err = tokenOf(c.name, provider, c.scopes)
	}
	if err != nil { // check says so
		return c.name, c.scopes
	}
	return name, scopes
}

// lacksScopes reports whether the credential leaves its scopes to routes and grants.
func (c foundCredential) lacksScopes() bool {
	provider, err := unprovisioned(c.ProviderRaw)
	if err != nil || len(provider.Grant().Scopes) > 0 || len(c.scopes) > 0 {
		return false // check says what is wrong
	}
	return checkScopes("credential "+c.name, provider, nil, nil) != nil
}
