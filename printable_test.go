package egress

import (
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// Commands print what authorization servers, storages and configs say, and the terminal
// of an operator obeys what it is printed.
func TestCommandsPrintNothingThatATerminalObeys(t *testing.T) {
	const hostile = "a\x1b]0;title\x07\x1b[2J\r\n\tb\u009b31m\u202ec\x7f"
	now := time.Now()
	var out strings.Builder
	for name, write := range map[string]func() error{
		"introspect": func() error {
			return writeIntrospection(&out, tokenprovider.Introspection{ClientID: hostile, Scope: hostile}, now)
		},
		"status": func() error {
			return writeStatus(&out, []CredentialStatus{{
				Credential: hostile, Provider: hostile, State: hostile, TokenFrom: hostile, SecretValues: 2,
				LastError: &CredentialError{Message: hostile, Advice: hostile},
				Store:     &StoreStatus{Storage: hostile, State: storeFailing, Error: hostile},
			}}, now)
		},
		"check": func() error {
			client := &checkedClient{name: hostile, secrets: []checkedSecret{{Number: 1, Error: hostile}, {Number: 2}}}
			return writeChecks(&out, []checkResult{
				{Credential: hostile, Provider: hostile, Endpoint: hostile, Result: hostile, Scopes: []string{hostile}, Missing: []string{hostile}},
				{Credential: hostile, Note: hostile},
				{Credential: hostile, Error: hostile, Advice: hostile, Secrets: client.secrets, client: client},
				{Credential: hostile + "2", Error: hostile, Result: checkNotTried},
			})
		},
		"access": func() error {
			return writeAccess(&out, []accessRow{{
				Caller: hostile, Credential: hostile, Sites: []string{hostile}, Route: []string{hostile}, Scopes: []string{hostile},
				RouteAllow: []string{hostile}, Tenants: []string{hostile}, Proof: []string{hostile}, Clients: []string{hostile},
			}})
		},
		"the warning of logs": func() error {
			return warnOfLogsWithKeys(&out, []byte(`{
				"logging":{"logs":{"a\u001b[2J\u009b31m":{}}},
				"apps":{
					"egress":{"callers":{"shop":{"key":["x"]}}},
					"http":{"servers":{"s":{"logs":{},"routes":[{"handle":[{"handler":"reverse_proxy","transport":{"protocol":"egress","credential":"x"}}]}]}}}
				}
			}`))
		},
	} {
		out.Reset()
		if err := write(); err != nil || out.Len() == 0 {
			t.Errorf("%s: printed %q, %v", name, out.String(), err)
		}
		for _, c := range out.String() {
			if c != '\n' && !unicode.IsPrint(c) {
				t.Errorf("%s: printed %q, in %q", name, c, out.String())
				break
			}
		}
		if strings.Contains(out.String(), "\nb") || strings.Contains(out.String(), "\n b") {
			t.Errorf("%s: a text goes on in another line: %q", name, out.String())
		}
	}
}
