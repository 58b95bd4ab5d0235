package egress

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// checkResult is what came of one token.
type checkResult struct {
	Credential  string          `json:"credential"`
	Provider    string          `json:"provider"`
	Endpoint    string          `json:"token_endpoint,omitempty"`
	Result      string          `json:"result"` // ok, refused, transient, malformed, misconfigured or not_tried
	Lifetime    float64         `json:"lifetime_seconds,omitempty"`
	Scopes      []string        `json:"scopes_granted,omitempty"`
	Missing     []string        `json:"scopes_missing,omitempty"`
	Refused     []string        `json:"scopes_refused,omitempty"`
	Error       string          `json:"error,omitempty"`
	Advice      string          `json:"advice,omitempty"`
	SameCauseAs string          `json:"same_cause_as,omitempty"` // the first that failed for this reason
	Note        string          `json:"note,omitempty"`          // what to know though nothing has failed
	Secrets     []checkedSecret `json:"secrets,omitempty"`       // of a secret with several values

	client *checkedClient
	cause  string // with Error, says whether two have failed for one reason
}

// failed returns the result with the failure.
func (r checkResult) failed(f *checkFailure) checkResult {
	r.Result, r.Error, r.Advice = f.result, f.err.Error(), f.advice
	return r
}

// hasCauseOf reports whether both have failed for one reason.
func (r checkResult) hasCauseOf(other checkResult) bool {
	return r.Error != "" && r.Error == other.Error && r.cause == other.cause
}

// noteCauses notes what results have in common, once all are known.
func noteCauses(results []checkResult) {
	for i := range results {
		r := &results[i]
		if first := slices.IndexFunc(results, r.hasCauseOf); first >= 0 && first < i {
			r.SameCauseAs = results[first].Credential
		}
		if r.client != nil && len(r.client.secrets) > 1 {
			r.Secrets = r.client.secrets
		}
	}
}

// writeChecks writes a line for each token, and a paragraph for each reason why
// there is none.
func writeChecks(w io.Writer, results []checkResult) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	writeRow(table, "CREDENTIAL", "PROVIDER", "ENDPOINT", "RESULT", "LIFETIME", "SCOPES GRANTED")
	for _, r := range results {
		lifetime := "-"
		if r.Lifetime > 0 {
			lifetime = (time.Duration(r.Lifetime * float64(time.Second))).Round(time.Second).String()
		}
		result := strings.ReplaceAll(r.Result, "_", " ")
		writeRow(table, r.Credential, r.Provider, dash(r.Endpoint), result, lifetime, dash(strings.Join(r.Scopes, " ")))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for i, r := range results {
		if r.Secrets != nil && slices.IndexFunc(results, func(o checkResult) bool { return o.client == r.client }) == i {
			fmt.Fprintln(w)
			writeSecrets(w, r.client)
		}
	}
	for i, r := range results {
		switch {
		case r.Error != "":
			if slices.IndexFunc(results, r.hasCauseOf) == i {
				writeFailure(w, r, results[i:])
			}
		case len(r.Missing) > 0:
			fmt.Fprintf(w, "\n%s: not granted: %s\n  → requests that need it will be refused; check the rights of the key\n", forTerminal(r.Credential), forTerminal(strings.Join(r.Missing, " ")))
		case r.Note != "":
			fmt.Fprintf(w, "\n%s: %s\n", forTerminal(r.Credential), forTerminal(r.Note))
		}
	}
	return nil
}

// writeSecrets writes which values of a client's secret work.
func writeSecrets(w io.Writer, client *checkedClient) {
	for _, s := range client.secrets {
		said := map[string]string{
			checkOK:                       "works",
			string(tokenprovider.Refused): "is refused",
			checkMisconfigured:            "cannot be read",
			checkUnclear:                  "could not be judged",
			checkNotTried:                 "was not tried",
		}[s.Result]
		if s.Error != "" {
			said += ": " + s.Error
		}
		fmt.Fprintf(w, "%s: secret %d of %d %s\n", forTerminal(client.name), s.Number, len(client.secrets), forTerminal(said))
	}
}

// writeFailure writes why there is no token for r, and for those of results that
// have failed for the same reason.
func writeFailure(w io.Writer, r checkResult, results []checkResult) {
	var failed, spared []string
	for _, other := range results {
		names := &failed
		if other.Result == checkNotTried && r.Result != checkNotTried {
			names = &spared
		}
		if other.hasCauseOf(r) && !slices.Contains(*names, other.Credential) {
			*names = append(*names, other.Credential)
		}
	}
	fmt.Fprintf(w, "\n%s: %s\n", forTerminal(strings.Join(failed, ", ")), forTerminal(r.Error))
	if len(spared) > 0 {
		fmt.Fprintf(w, "  not tried, since the secret is the same: %s\n", forTerminal(strings.Join(spared, ", ")))
	}
	fmt.Fprintf(w, "  → %s\n", forTerminal(r.Advice))
}
