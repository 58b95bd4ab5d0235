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
	"encoding/base64"
	"fmt"
	"os"
	"regexp"
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

	// KeyPrefix is what every key of a caller begins with; see [Key].
	KeyPrefix = "K3y~of+the%caller-"

	// Marker is in all that a failing token endpoint says beyond its error code.
	Marker = "M4rker~of+the%token&endpoint"
)

// Token returns the n-th token that a [Tokens] issues, beginning with 1.
func Token(n int) string { return fmt.Sprintf("%s%d", TokenPrefix, n) }

// Key returns the key of a caller of the tests.
func Key(caller string) string { return KeyPrefix + caller }

// Caller returns a caller in the global option egress that is known by its key,
// Key(name), which is in the environment, and by options.
func Caller(t testing.TB, name string, options ...string) string {
	t.Helper()
	variable := "EGRESS_TEST_KEY_" + name
	t.Setenv(variable, Key(name))
	return fmt.Sprintf("caller %s {\n key {env.%s}\n %s\n}\n", name, variable, strings.Join(options, "\n "))
}

// leaks are what no answer, no log and no config may show: beginnings that no
// encoding changes.
var leaks = []string{
	Secret[:6], TokenPrefix[:5], Marker[:6],
	strings.TrimPrefix(tokenprovider.BasicAuth("gateway", tokenprovider.NewSecret(Secret)), "Basic "),
}

// CheckLeaks fails the test if text, which what names, shows a secret, a token, a
// key, or what a token endpoint said beyond its error code.
func CheckLeaks(t testing.TB, what, text string) {
	t.Helper()
	checkFor(t, what, text, leaks)
	checkFor(t, what, text, keyLeaks)
}

// keyLeaks are what nothing but a request to the gateway may show of a key: its
// beginning, also as `Authorization: Basic` has it, whatever the length of the
// user name before it.
var keyLeaks = func() []string {
	all := []string{KeyPrefix[:5]}
	for shift := range 3 {
		encoded := base64.StdEncoding.EncodeToString([]byte("   "[:shift] + KeyPrefix))
		all = append(all, encoded[shift+1:len(encoded)-4]) // without what depends on the neighbours
	}
	return all
}()

// localToken matches what the directive egress_token issues.
var localToken = regexp.MustCompile(`egress_AQAA[A-Za-z0-9_-]{50}`)

// CheckKeys fails the test if text, which what names, shows the key of a caller
// or what egress_token has issued for it.
func CheckKeys(t testing.TB, what, text string) {
	t.Helper()
	checkFor(t, what, text, append(localToken.FindAllString(text, 1), keyLeaks...))
}

// CheckSecrets is [CheckLeaks] for texts that may show what a token endpoint said.
func CheckSecrets(t testing.TB, what, text string) {
	t.Helper()
	checkFor(t, what, text, leaks[:2])
	checkFor(t, what, text, keyLeaks)
}

func checkFor(t testing.TB, what, text string, leaks []string) {
	t.Helper()
	for _, leak := range leaks {
		if i := strings.Index(text, leak); i >= 0 {
			t.Errorf("%s shows %q: …%s…", what, leak, text[max(0, i-200):min(len(text), i+200)])
		}
	}
}

// CheckLines compares what there is with what there should be, line by line.
func CheckLines(t testing.TB, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s are\n\t%s\nwant\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// Main is the TestMain of packages that use a [Gateway] or a [Process]. Goroutines
// that are left over when all tests are done are a failure.
func Main(m *testing.M) {
	runAsCaddy()
	os.Setenv(SecretVariable, Secret)
	// what Caddy leaves behind: the file writers of its logs, its admin endpoint
	// and what cleans up dynamic upstreams, both of which end with the process,
	// and the locks of its storage, for a while
	leftBehind := []goleak.Option{
		goleak.IgnoreTopFunction("github.com/DeRuina/timberjack.(*Logger).millRun"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/caddy/v2.replaceLocalAdminServer.func2"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"),
		goleak.IgnoreAnyFunction("github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy.(*Upstream).fillDynamicHost.func1.1"),
	}
	goleak.VerifyTestMain(closing{m, leftBehind}, leftBehind...)
}

// closing closes the idle connections of [Client] once the tests are done, and
// gives what ends by itself the time to: a token request waits for its turn for as
// long as token_timeout, and the last test is another in each process.
type closing struct {
	m          *testing.M
	leftBehind []goleak.Option
}

func (c closing) Run() int {
	code := c.m.Run()
	Client.CloseIdleConnections()
	for range 30 { // of half a second
		if code != 0 || goleak.Find(c.leftBehind...) == nil {
			break
		}
	}
	return code
}
