package egress

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// errCheckFailed ends `caddy egress check` where the table has said all.
var errCheckFailed = errors.New("at least one credential gets no token")

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [--config <path>] [--adapter <name>] [<credential>...]",
		Short: "Obtains a token for each credential of a config, without starting a server",
		Long: `
Obtains one token for each credential of a config, or for those that are named,
and shows what came of it and what to do about a failure. No server is started,
and no other app. What can be revoked is revoked afterwards; a server that hands
out one token again and again would thereby end that of a running gateway.

Exits with status 1 if a credential gets no token.`,
	}
	var flags configFlags
	flags.register(cmd)
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		adapted, err := flags.load()
		if err != nil {
			return err
		}
		results, err := check(cmd.Context(), adapted, names)
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

// checkResult is what came of one credential.
type checkResult struct {
	Credential string   `json:"credential"`
	Provider   string   `json:"provider"`
	Endpoint   string   `json:"token_endpoint,omitempty"`
	Result     string   `json:"result"` // ok, refused, transient, malformed or misconfigured
	Lifetime   float64  `json:"lifetime_seconds,omitempty"`
	Scopes     []string `json:"scopes_granted,omitempty"`
	Missing    []string `json:"scopes_missing,omitempty"`
	Error      string   `json:"error,omitempty"`
	Advice     string   `json:"advice,omitempty"`
}

// check obtains a token for each credential in a config, or for those named.
func check(ctx context.Context, config []byte, names []string) ([]checkResult, error) {
	credentials, err := credentialsOf(config)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if !slices.ContainsFunc(credentials, func(c foundCredential) bool { return c.name == name }) {
			return nil, fmt.Errorf("the config has no credential %q", name)
		}
	}
	if len(credentials) == 0 {
		return nil, errors.New("the config has no credential")
	}
	var results []checkResult
	for _, c := range credentials {
		if len(names) == 0 || slices.Contains(names, c.name) {
			results = append(results, c.check(ctx))
		}
	}
	return results, nil
}

// foundCredential is a credential as a config holds it.
type foundCredential struct {
	name string // empty for one that a route holds inline
	Credential
	scopes    []string // of a route, instead of its own
	allowHTTP bool     // a route that uses it has allow_http
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
				if c.same(used) || c.name != "" && c.name == used.name && c.scopes == nil {
					found[i].allowHTTP = c.allowHTTP || used.allowHTTP
				}
			}
		}
	}
	return found, nil
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

// check obtains a token.
func (c foundCredential) check(ctx context.Context) checkResult {
	var module struct {
		Name string `json:"name"`
	}
	_ = json.Unmarshal(c.ProviderRaw, &module) // load says what is wrong with it
	result := checkResult{Credential: c.name, Provider: module.Name}
	if c.name == "" {
		result.Credential = module.Name // its identity may not be known
	}
	fail := func(kind string, err error, advice string) checkResult {
		result.Result, result.Error, result.Advice = kind, err.Error(), advice
		return result
	}
	const misconfigured, mend = "misconfigured", "correct the config or what its placeholders stand for"

	caddyCtx, cancel := caddy.NewContext(caddy.Context{Context: ctx})
	defer cancel()
	provider, err := c.load(caddyCtx)
	if err == nil {
		result.Credential = cmp.Or(c.name, inlineName(c.Credential, provider))
		var name string
		if name, provider, err = withScopes(result.Credential, provider, c.scopes); err == nil {
			result.Credential = name
		}
	}
	if err == nil && !c.allowHTTP {
		err = checkEndpoints(provider) // what loading refuses gets no secret here
	}
	if err != nil {
		return fail(misconfigured, err, mend)
	}
	grant := provider.Grant()
	result.Endpoint = grant.TokenURL
	client, err := tokenClient(c.TokenCA)
	if err != nil {
		return fail(misconfigured, err, mend)
	}

	timeout := time.Duration(c.TokenTimeout)
	if timeout == 0 {
		timeout = tokensource.DefaultTokenTimeout
	}
	ctx, stop := context.WithTimeout(ctx, timeout)
	defer stop()
	token, err := provider.Token(ctx, client)
	if failure, ok := errors.AsType[*tokenprovider.Error](err); ok {
		return fail(string(failure.Class), failure, failure.Advice())
	}
	if err != nil {
		return fail(misconfigured, err, mend)
	}
	result.Result = "ok"
	result.Lifetime = token.Expires.Sub(token.Issued).Seconds()
	result.Scopes = token.Scopes
	if token.Scopes == nil {
		result.Scopes = grant.Scopes
	}
	for _, scope := range grant.Scopes {
		if !slices.Contains(result.Scopes, scope) {
			result.Missing = append(result.Missing, scope)
		}
	}
	if revoker, ok := provider.(tokenprovider.Revoker); ok && revoker.CanRevoke() {
		_ = revoker.Revoke(ctx, client, token.Value) // it expires all the same
	}
	return result
}

func writeChecks(w io.Writer, results []checkResult) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CREDENTIAL\tPROVIDER\tENDPOINT\tRESULT\tLIFETIME\tSCOPES GRANTED")
	for _, r := range results {
		lifetime := "-"
		if r.Lifetime > 0 {
			lifetime = (time.Duration(r.Lifetime * float64(time.Second))).Round(time.Second).String()
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Credential, r.Provider, dash(r.Endpoint), r.Result, lifetime, dash(strings.Join(r.Scopes, " ")))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		switch {
		case r.Error != "":
			fmt.Fprintf(w, "\n%s: %s\n  → %s\n", r.Credential, r.Error, r.Advice)
		case len(r.Missing) > 0:
			fmt.Fprintf(w, "\n%s: not granted: %s\n  → requests that need it will be refused; check the rights of the key\n", r.Credential, strings.Join(r.Missing, " "))
		}
	}
	return nil
}
