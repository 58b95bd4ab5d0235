// Package egresstest is the harness of the tests: a whole Caddy from Caddyfile
// to sockets, APIs that record what reaches them, token endpoints that answer as
// a test wants, and the checks that most tests share.
//
// One Caddy runs in a process at a time, so tests that use a [Gateway] are not
// parallel. A package of such tests has a TestMain that calls [Main].
//
// It is for tests only: no production package imports it.
package egresstest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	_ "github.com/caddyserver/caddy/v2/modules/standard" // a Caddy as it is built

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

const (
	// Secret is the client secret of the tests. [SecretVariable] holds it.
	Secret = "S3cret~of+the%tests&="

	// SecretVariable is the environment variable that [Main] sets to [Secret].
	SecretVariable = "EGRESS_TEST_SECRET"

	// TokenPrefix is what every token of a [Tokens] begins with; see [Token].
	TokenPrefix = "T0ken-of-the-tests-"

	// Marker is in all that a failing token endpoint says beyond its error code.
	Marker = "M4rker~of+the%token&endpoint"
)

// Token returns the n-th token that a [Tokens] issues, beginning with 1.
func Token(n int) string { return fmt.Sprintf("%s%d", TokenPrefix, n) }

// leaks are what no answer, no log and no config may show: beginnings that no
// encoding changes.
var leaks = []string{
	Secret[:6], TokenPrefix[:5], Marker[:6],
	strings.TrimPrefix(tokenprovider.BasicAuth("gateway", tokenprovider.NewSecret(Secret)), "Basic "),
}

// CheckLeaks fails the test if text, which what names, shows a secret, a token,
// or what a token endpoint said beyond its error code.
func CheckLeaks(t *testing.T, what, text string) {
	t.Helper()
	checkFor(t, what, text, leaks)
}

// CheckSecrets is [CheckLeaks] for texts that may show what a token endpoint said.
func CheckSecrets(t *testing.T, what, text string) {
	t.Helper()
	checkFor(t, what, text, leaks[:2])
}

func checkFor(t *testing.T, what, text string, leaks []string) {
	t.Helper()
	for _, leak := range leaks {
		if i := strings.Index(text, leak); i >= 0 {
			t.Errorf("%s shows %q: …%s…", what, leak, text[max(0, i-200):min(len(text), i+200)])
		}
	}
}

// CheckLines compares what there is with what there should be, line by line.
func CheckLines(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s are\n\t%s\nwant\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// Main is the TestMain of packages that use a [Gateway]. Goroutines that are
// left over when all tests are done are a failure.
func Main(m *testing.M) {
	os.Setenv(SecretVariable, Secret)
	// what Caddy leaves behind: the file writers of its logs, its admin endpoint
	// and what cleans up dynamic upstreams, both of which end with the process,
	// and the locks of its storage, for a while
	goleak.VerifyTestMain(closing{m},
		goleak.IgnoreTopFunction("github.com/DeRuina/timberjack.(*Logger).millRun"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/caddy/v2.replaceLocalAdminServer.func2"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy.(*Upstream).fillDynamicHost.func1.1"))
}

// closing closes the idle connections of [Client] once the tests are done.
type closing struct{ m *testing.M }

func (c closing) Run() int {
	defer Client.CloseIdleConnections()
	return c.m.Run()
}
