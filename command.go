package egress

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "egress",
		Usage: "access|check|key|status|refresh|revoke|introspect",
		Short: "Checks credentials and access, and reports how tokens are doing",
		Long: `
Checks the credentials of a config and tells who may do what by it, without
starting a server; and asks a running Caddy how its tokens are doing or has it act
on them.

No command shows a secret or a token of a config. key makes a new key.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.Args = cobra.ArbitraryArgs // else cobra prints the usage, and reports success
			cmd.SilenceUsage = true
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				switch {
				case len(args) == 0:
					return cmd.Help()
				case args[0] == "help":
					return helpFor(cmd, args[1:])
				}
				return unknownCommand(cmd, args[0])
			}
			cmd.AddCommand(accessCommand(), checkCommand(), keyCommand(), statusCommand())
			cmd.AddCommand(
				actionCommand("refresh", "Replaces the token of a credential now", refreshHelp),
				actionCommand("revoke", "Revokes the token of a credential; another is obtained at once", revokeHelp),
				actionCommand("introspect", "Asks the authorization server about the token of a credential", introspectHelp),
			)
		},
	})
}

// helpFor prints the help of cmd, or of the subcommand that args name.
func helpFor(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	for _, sub := range cmd.Commands() {
		if sub.Name() == args[0] {
			return sub.Help()
		}
	}
	return unknownCommand(cmd, args[0])
}

// unknownCommand lists what there is instead of the subcommand name.
func unknownCommand(cmd *cobra.Command, name string) error {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return fmt.Errorf("egress: %q is not a command; there are %s%s", name, strings.Join(names, ", "), option.DidYouMean(name, slices.Values(names)))
}

// configFlags are those of commands that read a config, and need no running Caddy.
type configFlags struct {
	config, adapter string
	json            bool
}

func (f *configFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.config, "config", "c", "", "Configuration file; if not given, the Caddyfile in the current directory")
	cmd.Flags().StringVarP(&f.adapter, "adapter", "a", "", "Name of config adapter to apply")
	cmd.Flags().BoolVar(&f.json, "json", false, "Print JSON instead of a table")
	cmd.SilenceUsage = true
}

// load returns the config as JSON.
func (f *configFlags) load() ([]byte, error) {
	adapted, file, err := loadConfig(f.config, f.adapter)
	if err == nil && file == "" {
		err = errors.New("no config file; name one with --config")
	}
	return adapted, err
}

// loadConfig returns a config as JSON, and its file. Of what Caddy logs of that, a
// command that prints something else shows the warnings only.
func loadConfig(config, adapter string) (adapted []byte, file string, err error) {
	_, logger, logged := caddy.BufferedLog()
	defer caddy.UnbufferDefaultLogger(logger)
	adapted, file, _, err = caddycmd.LoadConfig(config, adapter)
	logged.FlushTo(logger.WithOptions(zap.IncreaseLevel(zap.WarnLevel)))
	return adapted, file, err
}

// newKeySize is the number of random bytes in a new key.
const newKeySize = 32

func keyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "key",
		Short: "Makes a key for a caller",
		Long: `
Prints a new random key for a caller, of 256 bits, and keeps it nowhere. Write it
to a file that only the gateway may read, which the config names, and give it to
the application as a secret:

	(umask 077; caddy egress key > /run/secrets/callers/web-shop)

	caller web-shop {
		key {file./run/secrets/callers/web-shop}
	}

The application sends it where it would send a credential of the API: as
Authorization: Bearer, as the password of Basic, in X-Api-Key, or in the header in
which the API's SDK sends its own.`,
		Args:         cobra.NoArgs,
		SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key := make([]byte, newKeySize)
			_, _ = rand.Read(key) // never fails
			_, err := fmt.Fprintln(cmd.OutOrStdout(), base64.RawURLEncoding.EncodeToString(key))
			return err
		},
	}
}

func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [<credential>]",
		Short: "Reports how the tokens of a running Caddy are doing",
		Long:  statusHelp,
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

// noneInUse is said where no token is listed.
const noneInUse = "no credential is in use; a credential with {tenant} is in use once a request names a tenant"

func writeStatus(w io.Writer, all []CredentialStatus, now time.Time) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, noneInUse)
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	store := all[0].Store
	rotated := slices.ContainsFunc(all, func(c CredentialStatus) bool { return c.SecretValues > 0 })
	row := func(credential, provider, state, expires, from, secret, details string) {
		cells := []string{credential, provider, state, expires}
		if store != nil {
			cells = append(cells, from)
		}
		if rotated {
			cells = append(cells, secret)
		}
		writeRow(table, append(cells, details)...)
	}
	row("CREDENTIAL", "PROVIDER", "STATE", "EXPIRES", "FROM", "SECRET", "DETAILS")
	for _, c := range all {
		row(c.Credential, c.Provider, c.State, until(c.Expires, now), dash(c.TokenFrom), c.secret(), c.details(now))
	}
	if err := table.Flush(); err != nil || store == nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nTokens are shared in %s: %s\n", forTerminal(store.Storage), forTerminal(store.details(now)))
	return err
}

// secret says which value of the secret is in use.
func (c CredentialStatus) secret() string {
	if c.SecretInUse == 0 {
		return "-"
	}
	return fmt.Sprintf("%d of %d", c.SecretInUse, c.SecretValues)
}

// details says how the storage is doing, and since when.
func (s *StoreStatus) details(now time.Time) string {
	since := fmt.Sprintf("since %s (%s)", s.Since.Local().Format(time.TimeOnly), now.Sub(s.Since).Round(time.Second))
	if s.State == storeOK {
		return "ok " + since
	}
	return s.State + " " + since + ", each instance uses tokens of its own meanwhile; " + s.Error
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
	if c.Rejected {
		parts = append(parts, "the API has answered 401 to the token")
	}
	if e := c.LastError; e != nil {
		parts = append(parts, e.Message, fmt.Sprintf("failing since %s (%s, %s)",
			e.Since.Local().Format(time.TimeOnly), now.Sub(e.Since).Round(time.Second), plural(e.Attempts, "attempt", "attempts")))
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
func actionCommand(name, short, long string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name + " <credential>",
		Short: short,
		Long:  long,
		Args:  cobra.MaximumNArgs(1),
	}
	var flags adminFlags
	flags.register(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			names, err := flags.names()
			if err != nil {
				return fmt.Errorf("%s: name a credential; those in use could not be listed: %w", name, err)
			}
			return fmt.Errorf("%s: name a credential; %s", name, names)
		}
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
		if name == "revoke" {
			fmt.Fprintf(cmd.OutOrStdout(), "The token of %s is revoked. The status of the next one:\n\n", forTerminal(status.Credential))
		}
		return writeStatus(cmd.OutOrStdout(), []CredentialStatus{status}, time.Now())
	}
	return cmd
}

func writeIntrospection(w io.Writer, in tokenprovider.Introspection, now time.Time) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	writeRow(table, "ACTIVE", "CLIENT", "EXPIRES", "SCOPES")
	writeRow(table, strconv.FormatBool(in.Active), dash(in.ClientID), until(in.Expires, now), dash(in.Scope))
	return table.Flush()
}
