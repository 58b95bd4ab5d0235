package e2e_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	egress "github.com/caddy-egress/caddy-egress"
	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/tokenprovider/oauth2"
	"github.com/caddy-egress/caddy-egress/tokenprovider/understory"
	"github.com/caddy-egress/caddy-egress/tokenprovider/voucherify"
)

const (
	optionsPage  = "docs/reference/options.md"
	answersPage  = "docs/reference/answers.md"
	requestsPage = "docs/reference/requests.md"
)

// optionTables are the tables of options in the reference, by the headings that they
// are under, and the types that hold the options. Names in a Caddyfile and in JSON
// are the same, with the exceptions that renamed has.
var optionTables = []struct {
	headings []string
	holders  []any
	renamed  map[string]string // to "": no option, or one of another table
}{
	{[]string{"## Global option"}, []any{egress.App{}}, map[string]string{"credentials": "credential", "callers": "caller"}},
	{[]string{"## Credential"}, []any{egress.Credential{}}, map[string]string{"provider": ""}},
	{[]string{"## Provider understory"}, []any{understory.Provider{}}, nil},
	{[]string{"## Provider voucherify"}, []any{voucherify.Provider{}}, nil},
	{[]string{"## Provider oauth2"}, []any{oauth2.Provider{}}, nil},
	{[]string{"## Caller"}, []any{egress.Caller{}}, nil},
	{
		[]string{"### Who may use it", "### What is permitted", "### Replays and rate limits", "### By hand"},
		[]any{egress.RouteOptions{}, egress.Transport{}},
		map[string]string{"credential": "", "scopes": "", "grant": ""}, // told under `egress`
	},
	{[]string{"## Grant"}, []any{egress.Grant{}}, map[string]string{"callers": ""}},
	{[]string{"## `egress_token`"}, []any{egress.TokenEndpoint{}}, nil},
	{[]string{"## `egress_status`"}, []any{egress.StatusPage{}}, nil},
	{[]string{"## `egress_unreachable`"}, []any{egress.Unreachable{}}, nil},
}

func TestDocsNameEveryOption(t *testing.T) {
	for _, table := range optionTables {
		var got, want []string
		for _, heading := range table.headings {
			got = append(got, names(t, optionsPage, heading, 0)...)
			for _, row := range tables(t, optionsPage, heading) {
				if len(row) != 3 || row[1] == "" || row[2] == "" {
					t.Errorf("%s: no meaning or no default in %q", heading, row)
				}
			}
		}
		for _, holder := range table.holders {
			keys, _ := jsonKeys(holder)
			for _, key := range keys {
				if name, other := table.renamed[key]; other {
					key = name
				}
				if key != "" {
					want = append(want, key)
				}
			}
		}
		checkNames(t, "the options under "+strings.Join(table.headings, ", "), got, want)
	}
}

// Methods of client authentication have a table of their own.
func TestDocsNameEveryAuthMethod(t *testing.T) {
	var want []string
	for _, method := range regexp.MustCompile(`"(client_secret_\w+|private_key_jwt|client_assertion|tls_client_auth)"`).FindAllStringSubmatch(productionSources(t), -1) {
		want = append(want, method[1])
	}
	slices.Sort(want)
	checkNames(t, "the methods of client authentication", names(t, optionsPage, "### Client authentication", 0), slices.Compact(want))
}

// Errors of egress_token are those of RFC 6749 that the code has.
func TestDocsNameEveryErrorOfTheTokenEndpoint(t *testing.T) {
	want := constants(t, "..", func(name string) bool {
		return strings.HasPrefix(name, "oauth") && !strings.HasPrefix(name, "oauthGrant")
	})
	checkNames(t, "the errors of egress_token", names(t, optionsPage, "### Errors of `egress_token`", 1), want)
}

func TestDocsNameEveryAnswerOfTheGateway(t *testing.T) {
	source := egresstest.ReadText(t, "../answer.go")
	var want []string
	for _, key := range regexp.MustCompile(`\b(?:key|outcome)\w+\s*[:=] +"(\w+)"`).FindAllStringSubmatch(source, -1) {
		if !slices.Contains([]string{"forwarded", "replayed", "client_gone", "bad_request"}, key[1]) { // not answers of their own
			want = append(want, key[1])
		}
	}
	headings := []string{"## Keys", "## The API cannot be reached"}
	var got, gotErrors []string
	for _, heading := range headings {
		for _, row := range tables(t, answersPage, heading) {
			got = append(got, spans(row[1])...)
			gotErrors = append(gotErrors, spans(row[2])...)
		}
	}
	slices.Sort(got)
	checkNames(t, "the gateway's answers", slices.Compact(got), want)

	var wantErrors []string
	for _, name := range []string{"answer.go", "callerkeys.go", "destination.go", "guard.go", "loop.go", "unreachable.go"} {
		source := egresstest.ReadText(t, "../"+name)
		for _, literal := range regexp.MustCompile(`(?m)proxy(?:Error|LoopDetected)\b.*$`).FindAllString(source, -1) {
			for _, value := range regexp.MustCompile(`"([a-z]+(?:_[a-z]+)+)"`).FindAllStringSubmatch(literal, -1) {
				if !slices.Contains(want, value[1]) && value[1] != "unauthorized_client" {
					wantErrors = append(wantErrors, value[1])
				}
			}
		}
	}
	slices.Sort(gotErrors)
	slices.Sort(wantErrors)
	checkNames(t, "the errors in Proxy-Status", slices.Compact(gotErrors), slices.Compact(wantErrors))
}

// TestDocsNameRemovedHeaders compares the list of the reference with removedHeaders.
func TestDocsNameRemovedHeaders(t *testing.T) {
	var listed []string
	for _, line := range section(t, requestsPage, "## Headers") {
		if strings.HasPrefix(line.text, "All other headers") {
			break
		}
		for _, name := range spans(line.text) {
			if name != "voucherify" { // whose own headers they are
				listed = append(listed, name)
			}
		}
	}
	egresstest.CheckLines(t, "the headers in "+requestsPage, listed, removedHeaders)
}
