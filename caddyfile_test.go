package egress_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-egress/caddy-egress"
)

var updateGoldens = flag.Bool("update", false, "rewrite what the files in testdata/caddyfile_adapt expect")

// golden is a Caddyfile with what becomes of it. It is either a file in
// testdata/caddyfile_adapt: the Caddyfile, a separator, the JSON it adapts to,
// and where that is refused when it is loaded, another separator and the error;
// or a section of errors.txt there: its name, the Caddyfile, a separator, and
// the error.
type golden struct {
	name      string
	caddyfile string
	adapted   string // JSON or error
	refused   string
}

const (
	goldenDirectory = "testdata/caddyfile_adapt/"
	goldenExtension = ".caddyfiletest"
	goldenErrors    = goldenDirectory + "errors.txt"
	goldenSeparator = "\n----------\n"
)

// goldenEnvironment is what the placeholders of the goldens stand for.
var goldenEnvironment = map[string]string{
	"UNDERSTORY_CLIENT_ID":     "understory-id",
	"UNDERSTORY_CLIENT_SECRET": "understory-value-of-the-secret",
	"VOUCHERIFY_APP_ID":        "voucherify-id",
	"VOUCHERIFY_APP_TOKEN":     "voucherify-value-of-the-secret",
	"VOUCHERIFY_PROJECT_ID":    "voucherify-project",
	"OAUTH2_CLIENT_ID":         "oauth2-id",
	"OAUTH2_CLIENT_SECRET":     "oauth2-value-of-the-secret",
	"OAUTH2_TENANT":            "oauth2-tenant",
	"OAUTH2_API_KEY":           "oauth2-value-of-the-key",
	"CALLER_KEY":               "caller-value-of-the-key",
	"CALLER_KEY_2":             "caller-value-of-the-second-key",
	"CALLER_PREVIOUS_KEY":      "caller-value-of-the-key-before",
}

func TestGoldenCaddyfiles(t *testing.T) {
	all := goldens(t)
	for i, g := range all {
		t.Run(g.name, func(t *testing.T) {
			prepareGoldens(t)
			got := adaptGolden(t, g)
			if *updateGoldens {
				all[i] = got
				return
			}
			if got.adapted != g.adapted {
				t.Errorf("adapted to\n%s\nwant\n%s", got.adapted, g.adapted)
			}
			if got.refused != g.refused {
				t.Errorf("loading it: error %q, want %q", got.refused, g.refused)
			}
			if line, different := caddyfile.FormattingDifference("Caddyfile", []byte(g.caddyfile)); different {
				t.Errorf("line %d is not as `caddy fmt` has it", line.Line)
			}
		})
	}
	if *updateGoldens {
		writeGoldens(t, all)
	}
}

// adaptGolden returns g with what becomes of its Caddyfile now.
func adaptGolden(t *testing.T, g golden) golden {
	t.Helper()
	g.refused = ""
	config, err := adaptCaddyfile(t, g.caddyfile)
	if err != nil {
		g.adapted = err.Error()
		return g
	}
	g.adapted = indentJSON(t, config)
	if err := validateConfig(t, config); err != nil {
		// whether Caddy loads the egress app by itself or for a transport is
		// chance; what the app says is not
		g.refused = err.Error()
		if i := strings.Index(g.refused, "loading egress app module"); i > 0 {
			g.refused = g.refused[i:]
		}
	}
	return g
}

// However Caddy sorts the routes of a site, each proxy stays behind its handler.
func TestCaddyfileDirectiveIsOneRoute(t *testing.T) {
	prepareGoldens(t)
	var site strings.Builder
	const routes = 40
	for i := range routes {
		matcher := []string{fmt.Sprintf("/a%d/*", i), fmt.Sprintf("@m%d", i), fmt.Sprintf("/%s%d", strings.Repeat("b", i), i)}[i%3]
		if i%3 == 1 {
			fmt.Fprintf(&site, "@m%d header X-M %d\n", i, i)
		}
		fmt.Fprintf(&site, "egress %s understory {\nclient_id id-%d\nclient_secret {env.UNDERSTORY_CLIENT_SECRET}\n}\n", matcher, i)
	}
	config, err := adaptCaddyfile(t, string(caddyfile.Format([]byte(":8080 {\n"+site.String()+"}\n"))))
	if err != nil {
		t.Fatal(err)
	}
	withoutUnreachable(t, config, routes)
	if got := strings.Count(string(config), `"handle":[{"handler":"egress_unreachable"`); got != routes {
		t.Errorf("%d routes begin with the handler, want %d", got, routes)
	}
}

// unreachableHandler is the handler that the directive egress puts in front of its
// reverse_proxy.
var unreachableHandler = regexp.MustCompile(`\{"handler":"egress_unreachable"[^{}]*\},`)

// withoutUnreachable returns config without such handlers, of which there have to
// be as many as there are routes.
func withoutUnreachable(t *testing.T, config []byte, routes int) []byte {
	t.Helper()
	if got := len(unreachableHandler.FindAll(config, -1)); got != routes {
		t.Errorf("%d handlers that answer where the API cannot be reached, want %d:\n%s", got, routes, config)
	}
	return unreachableHandler.ReplaceAll(config, nil)
}

// A Caddyfile beside which another lies whose name ends in _expanded is
// shorthand for that one, but for the handlers that answer where the API cannot be
// reached.
func TestCaddyfileDirectiveIsShorthand(t *testing.T) {
	const suffix = "_expanded"
	caddyfiles := make(map[string]string)
	for _, g := range goldens(t) {
		caddyfiles[g.name] = g.caddyfile
	}
	pairs := 0
	for _, name := range slices.Sorted(maps.Keys(caddyfiles)) {
		shorthand, isExpansion := strings.CutSuffix(name, suffix)
		if !isExpansion {
			continue
		}
		pairs++
		t.Run(shorthand, func(t *testing.T) {
			prepareGoldens(t)
			short, err := adaptCaddyfile(t, caddyfiles[shorthand])
			if err != nil {
				t.Fatal(err)
			}
			long, err := adaptCaddyfile(t, caddyfiles[name])
			if err != nil {
				t.Fatal(err)
			}
			if short = withoutUnreachable(t, short, strings.Count(string(long), `"protocol":"egress"`)); !bytes.Equal(short, long) {
				t.Errorf("the directive adapts to\n%s\nits expansion to\n%s", short, long)
			}
		})
	}
	if pairs == 0 {
		t.Fatal("no golden ends in ", suffix)
	}
}

// misplacedKey is a key in the Caddyfiles of errors.txt.
const misplacedKey = "key-in-a-wrong-place"

// The value of a secret given by a placeholder never gets into the config, and no
// error quotes a key, wherever in the Caddyfile it is.
func TestCaddyfileSecretsStayPlaceholders(t *testing.T) {
	files := goldens(t)
	prepareGoldens(t)
	for _, g := range files {
		config, err := adaptCaddyfile(t, g.caddyfile)
		if err != nil {
			config = []byte(err.Error())
			if bytes.Contains(config, []byte(misplacedKey)) {
				t.Errorf("%s: the error quotes a key: %s", g.name, config)
			}
		}
		for _, value := range goldenEnvironment {
			if bytes.Contains(config, []byte(value)) {
				t.Errorf("%s: the config contains the value %q of a placeholder", g.name, value)
			}
		}
	}

	config, err := adaptCaddyfile(t, `:80 {
	egress understory {
		client_id {env.UNDERSTORY_CLIENT_ID}
		client_secret {env.UNDERSTORY_CLIENT_SECRET}
	}
}
`)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(config, []byte(`"client_secret":"{env.UNDERSTORY_CLIENT_SECRET}"`)) {
		t.Errorf("the placeholder is not in the config: %s", config)
	}
}

// A secret that is written in the Caddyfile itself causes a warning that names
// the option, wherever a provider takes secrets, and never shows the secret.
func TestCaddyfileSecretInConfigIsWarnedAbout(t *testing.T) {
	prepareGoldens(t)
	logFile := filepath.Join(t.TempDir(), "caddy.log")
	config, err := adaptCaddyfile(t, `{
	admin off
	log {
		output file `+logFile+`
	}
	egress {
		credential plain understory {
			client_id plain-id
			client_secret literal-of-understory
		}
		credential keys voucherify {
			app_id plain-id
			app_token literal-of-voucherify literal-of-voucherify-before
			scopes api
		}
		credential any oauth2 https://api.example {
			token_url https://auth.example/token
			client_id plain-id
			client_secret literal-of-oauth2
			param client_assertion literal-of-param
			param tenant plain
			param password {env.OAUTH2_API_KEY}
			header X-Api-Key literal-of-header
			header X-Tenant plain
			header X-Auth-Token {env.OAUTH2_API_KEY}
		}
		caller shop {
			key {env.CALLER_KEY} literal-of-the-previous-key
		}
		caller nightly {
			key literal-of-nightly-job
		}
	}
}
`)
	if err != nil {
		t.Fatal(err)
	}
	if err := validateConfig(t, config); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(logFile)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(content, []byte("literal-of")) {
		t.Errorf("the log shows a secret:\n%s", content)
	}
	var got []string
	for line := range bytes.Lines(content) {
		var entry struct{ Level, Msg, Credential, Caller, Option string }
		if err := json.Unmarshal(line, &entry); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(entry.Msg, "a secret is written in the config itself") && entry.Level == "warn" {
			got = append(got, entry.Credential+entry.Caller+" "+entry.Option)
		}
	}
	slices.Sort(got)
	want := []string{"any client_secret", "any header X-Api-Key", "any param client_assertion", "keys app_token", "keys app_token 2", "nightly key", "plain client_secret", "shop key"}
	if !slices.Equal(got, want) {
		t.Errorf("warnings about %q, want %q\n%s", got, want, content)
	}
}

// Twice the credentials take twice the work to adapt, not four times.
func TestCaddyfileAdaptsInLinearTime(t *testing.T) {
	allocations := func(credentials int) float64 {
		var global, routes strings.Builder
		for i := range credentials {
			fmt.Fprintf(&global, "credential c%d voucherify {\napp_id id\napp_token {env.X}\nscopes api\n}\n", i)
			fmt.Fprintf(&routes, "handle /c%d/* {\negress c%d\n}\n", i, i)
		}
		input := []byte("{\negress {\n" + global.String() + "}\n}\n:80 {\n" + routes.String() + "}\n")
		return testing.AllocsPerRun(1, func() {
			if _, _, err := caddyconfig.GetAdapter("caddyfile").Adapt(input, nil); err != nil {
				t.Fatal(err)
			}
		})
	}
	if few, many := allocations(200), allocations(400); many > 2.2*few {
		t.Errorf("%v allocations for 200 credentials, %v for 400", few, many)
	}
}

// Whatever a Caddyfile says, adapting it ends with JSON or an error.
func FuzzCaddyfile(f *testing.F) {
	for _, g := range goldens(f) {
		f.Add(g.caddyfile)
	}
	for name, value := range goldenEnvironment {
		f.Setenv(name, value)
	}
	adapter := caddyconfig.GetAdapter("caddyfile")
	f.Fuzz(func(t *testing.T, input string) {
		config, _, err := adapter.Adapt([]byte(input), map[string]any{"filename": "Caddyfile"})
		if err != nil {
			return
		}
		again, _, err := adapter.Adapt([]byte(input), map[string]any{"filename": "Caddyfile"})
		if err != nil || !bytes.Equal(config, again) {
			t.Errorf("adapted again: %v\n%s\nat first\n%s", err, again, config)
		}
	})
}

// prepareGoldens makes what the goldens refer to: goldenEnvironment variables, and files in
// the working directory.
func prepareGoldens(t *testing.T) {
	t.Helper()
	directory := t.TempDir()
	t.Setenv("XDG_DATA_HOME", directory)
	t.Setenv("XDG_CONFIG_HOME", directory)
	for name, value := range goldenEnvironment {
		t.Setenv(name, value)
	}
	t.Chdir(directory)
	server := httptest.NewTLSServer(nil)
	server.Close()
	key, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	keyPEM := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
	t.Setenv("OAUTH2_PRIVATE_KEY", keyPEM)
	t.Setenv("OAUTH2_ASSERTION", "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl")
	files := map[string]string{
		"key.pem":           keyPEM,
		"secrets/app_id":    "voucherify-id",
		"secrets/app_token": "voucherify-value-of-the-secret",
		"ca.pem":            string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})),
	}
	for name, content := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func adaptCaddyfile(t *testing.T, input string) ([]byte, error) {
	t.Helper()
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(input), map[string]any{"filename": "Caddyfile"})
	for _, warning := range warnings {
		t.Errorf("warning: %s", warning)
	}
	return config, err
}

// validateConfig loads config without starting it.
func validateConfig(t *testing.T, config []byte) error {
	t.Helper()
	decoded := new(caddy.Config)
	if err := json.Unmarshal(config, decoded); err != nil {
		t.Fatal(err)
	}
	return caddy.Validate(decoded)
}

func indentJSON(t *testing.T, config []byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, config, "", "\t"); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func goldens(t testing.TB) []golden {
	t.Helper()
	paths, err := filepath.Glob(goldenDirectory + "*" + goldenExtension)
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 {
		t.Fatal("no golden files")
	}
	var all []golden
	for _, path := range paths {
		all = append(all, parseGolden(t, strings.TrimSuffix(filepath.Base(path), goldenExtension), readGolden(t, path)))
	}
	name, text := "", ""
	for line := range strings.Lines(readGolden(t, goldenErrors) + "-- --\n") {
		if !strings.HasPrefix(line, "-- ") {
			text += line
			continue
		}
		if name != "" {
			all = append(all, parseGolden(t, name, text))
		}
		name, text = strings.Trim(line, "- \n"), ""
	}
	return all
}

func readGolden(t testing.TB, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(string(content), "\r\n", "\n")
}

func parseGolden(t testing.TB, name, text string) golden {
	t.Helper()
	parts := strings.Split(text, goldenSeparator)
	g := golden{name: name, caddyfile: strings.TrimSpace(parts[0]) + "\n"}
	switch {
	case len(parts) > 3:
		t.Fatalf("%s has more than three parts", name)
	case len(parts) == 1 && !*updateGoldens:
		t.Fatalf("%s has no expectation; run the test with -update", name)
	}
	if len(parts) > 1 {
		g.adapted = strings.TrimSpace(parts[1])
	}
	if len(parts) > 2 {
		g.refused = strings.TrimSpace(parts[2])
	}
	return g
}

// writeGoldens writes Caddyfiles that do not adapt to errors.txt, and each other
// to its file.
func writeGoldens(t *testing.T, all []golden) {
	t.Helper()
	var errors []string
	for _, g := range all {
		content := strings.TrimSuffix(g.caddyfile, "\n") + goldenSeparator + g.adapted + "\n"
		if !strings.HasPrefix(g.adapted, "{") {
			errors = append(errors, "-- "+g.name+" --\n"+content)
			continue
		}
		if g.refused != "" {
			content = strings.TrimSuffix(content, "\n") + goldenSeparator + g.refused + "\n"
		}
		writeGolden(t, goldenDirectory+g.name+goldenExtension, content)
	}
	slices.Sort(errors)
	writeGolden(t, goldenErrors, strings.Join(errors, "\n"))
}

func writeGolden(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
