package egress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "egress",
		Usage: "check|status|refresh|revoke|introspect",
		Short: "Checks credentials, and tells how tokens are doing",
		Long: `
Checks the credentials of a config without starting a server, and asks a running
Caddy how its tokens are doing or has it act on them.

No command shows a secret or a token.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.AddCommand(checkCommand(), statusCommand())
			cmd.AddCommand(
				actionCommand("refresh", "Replaces the token of a credential now"),
				actionCommand("revoke", "Revokes the token of a credential; another is obtained at once"),
				actionCommand("introspect", "Asks the authorization server about the token of a credential"),
			)
		},
	})
}

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
		SilenceUsage: true,
	}
	config := cmd.Flags().StringP("config", "c", "", "Configuration file")
	adapter := cmd.Flags().StringP("adapter", "a", "", "Name of config adapter to apply")
	asJSON := cmd.Flags().Bool("json", false, "Print JSON instead of a table")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		adapted, file, _, err := caddycmd.LoadConfig(*config, *adapter)
		if err != nil {
			return err
		}
		if file == "" {
			return errors.New("no config file; name one with --config")
		}
		results, err := check(cmd.Context(), adapted, names)
		if err != nil {
			return err
		}
		if *asJSON {
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
// that routes hold inline, and those of routes with scopes of their own.
func credentialsOf(config []byte) ([]foundCredential, error) {
	var parsed struct {
		Apps map[string]json.RawMessage `json:"apps"`
	}
	if err := json.Unmarshal(config, &parsed); err != nil {
		return nil, fmt.Errorf("reading the config: %w", err)
	}
	var app App
	if raw, ok := parsed.Apps["egress"]; ok {
		if err := json.Unmarshal(raw, &app); err != nil {
			return nil, fmt.Errorf("reading the egress app: %w", err)
		}
	}
	var found []foundCredential
	for _, name := range slices.Sorted(maps.Keys(app.Credentials)) {
		c := foundCredential{name: name, allowHTTP: app.AllowHTTP}
		if credential := app.Credentials[name]; credential != nil {
			c.Credential = *credential
		}
		found = append(found, c)
	}
	seen := make(map[string]bool)
	for _, name := range slices.Sorted(maps.Keys(parsed.Apps)) {
		if name == "egress" {
			continue
		}
		err := transportsIn(parsed.Apps[name], func(raw json.RawMessage) error {
			var t struct {
				Name string `json:"credential"`
				Credential
				Scopes    []string `json:"scopes"`
				AllowHTTP bool     `json:"allow_http"`
			}
			if err := json.Unmarshal(raw, &t); err != nil {
				return fmt.Errorf("reading an egress transport: %w", err)
			}
			t.AllowHTTP = t.AllowHTTP || app.AllowHTTP
			if i := slices.IndexFunc(found, func(c foundCredential) bool { return t.Name != "" && c.name == t.Name }); i >= 0 {
				found[i].allowHTTP = found[i].allowHTTP || t.AllowHTTP
			}
			key := t.Name + string(t.ProviderRaw) + strings.Join(t.Scopes, " ")
			if seen[key] || t.Name != "" && t.Scopes == nil {
				return nil
			}
			seen[key] = true
			if t.Name == "" {
				found = append(found, foundCredential{Credential: t.Credential, allowHTTP: t.AllowHTTP})
			} else if credential := app.Credentials[t.Name]; credential != nil {
				found = append(found, foundCredential{name: t.Name, Credential: *credential, scopes: t.Scopes, allowHTTP: t.AllowHTTP})
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// transportsIn calls f with each egress transport in raw, in order.
func transportsIn(raw json.RawMessage, f func(json.RawMessage) error) error {
	switch trimmed := bytes.TrimSpace(raw); {
	case bytes.HasPrefix(trimmed, []byte("{")):
		var object map[string]json.RawMessage
		if err := json.Unmarshal(raw, &object); err != nil {
			return err
		}
		if string(object["protocol"]) == `"egress"` {
			return f(raw)
		}
		for _, name := range slices.Sorted(maps.Keys(object)) {
			if err := transportsIn(object[name], f); err != nil {
				return err
			}
		}
	case bytes.HasPrefix(trimmed, []byte("[")):
		var array []json.RawMessage
		if err := json.Unmarshal(raw, &array); err != nil {
			return err
		}
		for _, element := range array {
			if err := transportsIn(element, f); err != nil {
				return err
			}
		}
	}
	return nil
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
	if err == nil && c.scopes != nil {
		provider, err = provider.WithScopes(c.scopes)
	}
	if err == nil && !c.allowHTTP {
		err = checkEndpoints(provider) // what loading refuses gets no secret here
	}
	if err != nil {
		return fail(misconfigured, err, mend)
	}
	grant := provider.Grant()
	result.Endpoint = grant.TokenURL
	switch {
	case c.name == "":
		result.Credential = inlineName(provider)
	case c.scopes != nil:
		result.Credential += "-" + grant.Identity()[:8]
	}
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

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// adminFlags are those of Caddy's own commands that talk to a running Caddy.
type adminFlags struct {
	config, adapter, address string
	json                     bool
}

func (f *adminFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "Configuration file to use to parse the admin address, if --address is not used")
	cmd.Flags().StringVarP(&f.adapter, "adapter", "a", "", "Name of config adapter to apply to the configuration (if --config is used)")
	cmd.Flags().StringVarP(&f.address, "address", "", "", "The address to use to reach the admin API endpoint, if not the default")
	cmd.Flags().BoolVar(&f.json, "json", false, "Print JSON instead of a table")
	cmd.SilenceUsage = true
}

// request asks a running Caddy, and returns the body of its answer.
func (f *adminFlags) request(method, uri string) ([]byte, error) {
	address, err := caddycmd.DetermineAdminAPIAddress(f.address, nil, f.config, f.adapter)
	if err != nil {
		return nil, fmt.Errorf("couldn't determine admin API address: %w", err)
	}
	resp, err := caddycmd.AdminAPIRequest(address, method, uri, nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [<credential>]",
		Short: "Tells how the tokens of a running Caddy are doing",
		Args:  cobra.MaximumNArgs(1),
	}
	var flags adminFlags
	flags.register(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		uri := adminPath
		if len(args) > 0 {
			uri += "/" + url.PathEscape(args[0])
		}
		answer, err := flags.request(http.MethodGet, uri)
		if err != nil || flags.json {
			return errors.Join(err, printRaw(cmd, answer))
		}
		if len(args) > 0 {
			answer = slices.Concat([]byte("["), answer, []byte("]"))
		}
		var all []CredentialStatus
		if err := json.Unmarshal(answer, &all); err != nil {
			return fmt.Errorf("reading the answer: %w", err)
		}
		return writeStatus(cmd.OutOrStdout(), all, time.Now())
	}
	return cmd
}

func printRaw(cmd *cobra.Command, answer []byte) error {
	_, err := cmd.OutOrStdout().Write(answer)
	return err
}

func writeStatus(w io.Writer, all []CredentialStatus, now time.Time) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "no credential is in use")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CREDENTIAL\tPROVIDER\tSTATE\tEXPIRES\tDETAILS")
	for _, c := range all {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", c.Credential, c.Provider, c.State, until(c.Expires, now), c.details(now))
	}
	return table.Flush()
}

// until says when at is, seen from now.
func until(at, now time.Time) string {
	switch {
	case at.IsZero():
		return "-"
	case at.Before(now):
		return "now"
	}
	return "in " + at.Sub(now).Round(time.Second).String()
}

// details says in one line what is wrong, since when, and what happens next.
func (c CredentialStatus) details(now time.Time) string {
	var parts []string
	if e := c.LastError; e != nil {
		parts = append(parts, e.Message, fmt.Sprintf("failing since %s (%s, %d attempts)",
			e.Since.Local().Format(time.TimeOnly), now.Sub(e.Since).Round(time.Second), e.Attempts))
	}
	switch {
	case c.State == string(tokensource.PhaseRefreshing):
		parts = append(parts, "a token request is under way")
	case c.State == string(tokensource.PhaseIdle):
		parts = append(parts, "no request has needed a token lately")
	case c.LastError != nil:
		parts = append(parts, "next attempt "+until(c.NextAttempt, now))
	case !c.NextAttempt.IsZero():
		parts = append(parts, "next refresh "+until(c.NextAttempt, now))
	}
	if e := c.LastError; e != nil && e.Advice != "" {
		parts = append(parts, e.Advice)
	}
	if !c.LimitedUntil.IsZero() {
		parts = append(parts, "rate limited by the API, over "+until(c.LimitedUntil, now))
	}
	return strings.Join(parts, "; ")
}

// actionCommand is a command that has a running Caddy act on a credential.
func actionCommand(name, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name + " <credential>",
		Short: short,
		Args:  cobra.ExactArgs(1),
	}
	var flags adminFlags
	flags.register(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		answer, err := flags.request(http.MethodPost, adminPath+"/"+url.PathEscape(args[0])+"/"+name)
		if err != nil || flags.json {
			return errors.Join(err, printRaw(cmd, answer))
		}
		if name == "introspect" {
			var in tokenprovider.Introspection
			if err := json.Unmarshal(answer, &in); err != nil {
				return fmt.Errorf("reading the answer: %w", err)
			}
			return writeIntrospection(cmd.OutOrStdout(), in, time.Now())
		}
		var status CredentialStatus
		if err := json.Unmarshal(answer, &status); err != nil {
			return fmt.Errorf("reading the answer: %w", err)
		}
		return writeStatus(cmd.OutOrStdout(), []CredentialStatus{status}, time.Now())
	}
	return cmd
}

func writeIntrospection(w io.Writer, in tokenprovider.Introspection, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ACTIVE\tCLIENT\tEXPIRES\tSCOPES")
	fmt.Fprintf(table, "%t\t%s\t%s\t%s\n", in.Active, dash(in.ClientID), until(in.Expires, now), dash(in.Scope))
	return table.Flush()
}
