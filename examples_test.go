package egress_test

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	plugin "github.com/caddy-egress/caddy-egress"
	"github.com/caddy-egress/caddy-egress/sandbox"
	"github.com/caddy-egress/caddy-egress/tokenprovider/oauth2"
	"github.com/caddy-egress/caddy-egress/tokenprovider/understory"
	"github.com/caddy-egress/caddy-egress/tokenprovider/voucherify"
)

func TestExamplesLoad(t *testing.T) {
	paths, err := filepath.Glob("examples/*/Caddyfile")
	if err != nil || len(paths) == 0 {
		t.Fatalf("examples: %v, error %v", paths, err)
	}
	for _, path := range paths {
		t.Run(path, func(t *testing.T) { checkCaddyfile(t, readText(t, path)) })
	}
}

func TestReadmeCaddyfilesLoad(t *testing.T) {
	blocks := regexp.MustCompile("(?s)```caddy( fragment)?\n(.*?)```").FindAllStringSubmatch(readText(t, "README.md"), -1)
	if len(blocks) == 0 {
		t.Fatal("the README holds no Caddyfile")
	}
	for i, block := range blocks {
		fragment, text := block[1] != "", block[2]
		t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			if fragment { // of a site
				text = ":8080 {\n\t" + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n\t") + "\n}\n"
			}
			checkCaddyfile(t, text)
		})
	}
}

// The README says what egress stands for by a directive and its expansion.
func TestReadmeExpansion(t *testing.T) {
	fragments := regexp.MustCompile("(?s)```caddy fragment\n(.*?)```").FindAllStringSubmatch(readText(t, "README.md"), -1)
	prepareGoldens(t)
	if len(fragments) != 2 {
		t.Fatalf("%d fragments, want the directive and what it stands for", len(fragments))
	}
	var configs []string
	for _, fragment := range fragments {
		config, err := adaptCaddyfile(t, string(caddyfile.Format([]byte(":8080 {\n"+fragment[1]+"}\n"))))
		if err != nil {
			t.Fatal(err)
		}
		configs = append(configs, indentJSON(t, config))
	}
	if configs[0] != configs[1] {
		t.Errorf("the directive adapts to\n%s\nits expansion to\n%s", configs[0], configs[1])
	}
}

// checkCaddyfile checks that text is formatted and loads, in an environment
// that has all it refers to.
func checkCaddyfile(t *testing.T, text string) {
	t.Helper()
	if line, different := caddyfile.FormattingDifference("Caddyfile", []byte(text)); different {
		t.Errorf("line %d is not as `caddy fmt` has it", line.Line)
	}
	config, err := adaptCaddyfile(t, provide(t, text))
	if err != nil {
		t.Fatal(err)
	}
	if err := validateConfig(t, config); err != nil {
		t.Errorf("loading it: %v", err)
	}
}

// provide sets the environment variables that text refers to, makes the files,
// and returns text with the files' paths.
func provide(t *testing.T, text string) string {
	t.Helper()
	directory := t.TempDir()
	t.Setenv("XDG_DATA_HOME", directory)
	t.Setenv("XDG_CONFIG_HOME", directory)
	for _, variable := range regexp.MustCompile(`\{env\.(\w+)\}`).FindAllStringSubmatch(text, -1) {
		t.Setenv(variable[1], testSecret)
	}
	for _, file := range regexp.MustCompile(`\{file\.(/run/secrets/[^}]+)\}`).FindAllStringSubmatch(text, -1) {
		path := filepath.Join(directory, file[1])
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(testSecret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		text = strings.ReplaceAll(text, file[0], "{file."+path+"}")
	}
	return text
}

func TestSandboxExample(t *testing.T) {
	var replace []string
	addrs := make(map[string]string)
	for _, port := range []string{"8080", "9001", "9002"} {
		addrs[port] = freeAddr(t)
		replace = append(replace, "127.0.0.1:"+port, addrs[port])
	}
	runExample(t, "examples/sandbox/Caddyfile", replace...)
	base := "http://" + addrs["8080"]

	// the token endpoints are in the same Caddy, and may have come up last
	eventually(t, "both APIs", func() bool {
		understory, _ := getFrom(t, base+"/understory/v1/me")
		voucherify, _ := getFrom(t, base+"/voucherify/v1/vouchers")
		return understory == http.StatusOK && voucherify == http.StatusOK
	})
	if status, body := getFrom(t, base+"/v1/me"); status != http.StatusNotFound || body == "" {
		t.Errorf("a path without a route is answered %d %q, want 404 and a hint", status, body)
	}

	// what the README shows
	readme := readText(t, "README.md")
	for _, url := range []string{base + "/understory/v1/me", "http://" + addrs["9001"] + "/v1/me", base + "/voucherify/v1/vouchers/a%2Fb%20c"} {
		if _, body := getFrom(t, url); !strings.Contains(readme, "\n"+body+"\n") {
			t.Errorf("the README does not show the answer of %s: %s", url, body)
		}
	}
	resp, err := plainClient.Post(base+"/voucherify/v1/oauth/token", "application/x-www-form-urlencoded", strings.NewReader("grant_type=client_credentials"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	for _, line := range []string{"HTTP/1.1 " + resp.Status, "Proxy-Status: " + resp.Header.Get("Proxy-Status"), string(body)} {
		if !strings.Contains(readme, "\n"+line+"\n") {
			t.Errorf("the README does not show the gateway's answer: %s", line)
		}
	}
}

// Where the API cannot be reached, examples answer with a body of their own.
func TestExamplesSayThatTheAPIIsDown(t *testing.T) {
	_, tokens := newSandbox(t, sandbox.Options{API: "understory", ClientID: testSecret, ClientSecret: testSecret})
	_, api := newSandbox(t, sandbox.Options{API: "voucherify", ClientID: testSecret, ClientSecret: testSecret})
	nowhere := freeAddr(t)
	for name, test := range map[string]struct {
		path    string
		want    string
		replace []string
	}{
		"understory": {
			"/understory/v1/me",
			`{"code":"api_unreachable","message":"the gateway could not reach the Understory API"}`,
			[]string{"egress understory {", "egress understory http://" + nowhere + " {\ntoken_url " + tokens.URL + "/oauth2/token"},
		},
		"voucherify": {
			"/v1/vouchers",
			`{"code":502,"key":"api_unreachable","message":"the gateway could not reach the Voucherify API"}`,
			[]string{
				"egress voucherify {", "egress voucherify " + api.URL + " {\nto " + nowhere + "\napi_hosts " + nowhere,
				"region eu", "# region eu",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, port, _ := net.SplitHostPort(freeAddr(t))
			runExample(t, "examples/"+name+"/Caddyfile", append(test.replace, ":8080", ":"+port, "[::1]", "")...)
			status, body := getFrom(t, "http://localhost:"+port+test.path)
			if status != http.StatusBadGateway || body != test.want || !json.Valid([]byte(body)) {
				t.Errorf("answered %d %s, want 502 %s", status, body, test.want)
			}
		})
	}
}

// runExample runs the Caddyfile at path until the test ends, with pairs of
// texts replaced, and without an admin API.
func runExample(t *testing.T, path string, replace ...string) {
	t.Helper()
	text := strings.NewReplacer(replace...).Replace(readText(t, path))
	options := "{\n\tadmin off\n\tpersist_config off\n\tlog {\n\t\toutput discard\n\t}\n"
	if rest, found := strings.CutPrefix(withoutComments(text), "{\n"); found {
		text = options + rest
	} else {
		text = options + "}\n" + text
	}
	config, err := adaptCaddyfile(t, string(caddyfile.Format([]byte(provide(t, text)))))
	if err != nil {
		t.Fatal(err)
	}
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
}

// withoutComments drops the comments at the beginning of text.
func withoutComments(text string) string {
	for strings.HasPrefix(text, "#") {
		_, text, _ = strings.Cut(text, "\n")
	}
	return text
}

func getFrom(t *testing.T, url string) (status int, body string) {
	t.Helper()
	resp, err := plainClient.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(content)
}

// optionTables are the tables of options in the README, by their headings, and
// the types that hold the options. Names in a Caddyfile and in JSON are the same.
var optionTables = map[string]any{
	"Global option":             plugin.App{},
	"Options of token requests": plugin.Credential{},
	"Route options":             plugin.RouteOptions{},
	"Provider understory":       understory.Provider{},
	"Provider voucherify":       voucherify.Provider{},
	"Provider oauth2":           oauth2.Provider{},
}

func TestReadmeNamesEveryOption(t *testing.T) {
	for heading, holder := range optionTables {
		var want []string
		for field := range reflect.TypeOf(holder).Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			switch name {
			case "", "provider": // not an option; the provider has a table of its own
			case "credentials":
				want = append(want, "credential")
			default:
				want = append(want, name)
			}
		}
		got := slices.Collect(maps.Keys(tableRows(t, "### "+heading, 0)))
		slices.Sort(got)
		slices.Sort(want)
		diff(t, "the options under "+heading, got, want)
	}
}

func TestReadmeNamesEveryAnswerOfTheGateway(t *testing.T) {
	keys := regexp.MustCompile(`\b(?:key|outcome)\w+\s*[:=] +"(\w+)"`).FindAllStringSubmatch(readText(t, "answer.go"), -1)
	if len(keys) == 0 {
		t.Fatal("answer.go has no keys")
	}
	var want []string
	for _, key := range keys {
		if !slices.Contains([]string{"forwarded", "replayed", "client_gone", "bad_request"}, key[1]) { // no answers of their own
			want = append(want, key[1])
		}
	}
	got := slices.Collect(maps.Keys(tableRows(t, "## The gateway's own answers", 1)))
	slices.Sort(got)
	slices.Sort(want)
	diff(t, "the gateway's answers in the README", got, want)
}

// The messages that the README explains are those of the code, where they may
// be put together from parts; … stands for what differs from one to the next.
func TestReadmeQuotesMessages(t *testing.T) {
	sources := productionSources(t)
	sources += strings.ReplaceAll(sources, `", "`, ": ") // option.Errorf("name", "what is wrong")
	for heading, column := range map[string]int{
		"### A config that does not load": 0,
		"### A request that fails":        0,
		"## Logs":                         1,
	} {
		for message, row := range tableRows(t, heading, column) {
			if strings.Contains(row, "(Caddy's)") {
				continue
			}
			for _, part := range regexp.MustCompile("…|; ").Split(message, -1) {
				if part = strings.Trim(part, " ():,"); !strings.Contains(sources, part) && !assembled(part) {
					t.Errorf("%q of %q is not in the code", part, message)
				}
			}
		}
	}
}

// assembled reports whether part is what the code makes of an answer's status
// and error code; TestNoSecretAndNoTokenIsShown and others see the result.
func assembled(part string) bool {
	return regexp.MustCompile(`^token endpoint answered \d+ [\w ]+ \(\w+$`).MatchString(part)
}

// tableRows returns the rows of the table that follows heading in the README, by
// the first text in backquotes in the given column.
func tableRows(t *testing.T, heading string, column int) map[string]string {
	t.Helper()
	_, section, found := strings.Cut(readText(t, "README.md"), "\n"+heading+"\n")
	if !found {
		t.Fatalf("the README has no heading %q", heading)
	}
	_, table, found := strings.Cut(section, "\n|---")
	if !found {
		t.Fatalf("nothing under %q is a table", heading)
	}
	_, table, _ = strings.Cut(table, "\n") // the rest of the line below the headings
	rows := make(map[string]string)
	for line := range strings.SplitSeq(table, "\n") {
		if !strings.HasPrefix(line, "| ") {
			break
		}
		name := strings.Split(strings.Split(line, "|")[column+1], "`")
		if len(name) < 3 {
			t.Errorf("%s: no name in %s", heading, line)
			continue
		}
		rows[name[1]] = line
	}
	if len(rows) == 0 {
		t.Errorf("the table under %q is empty", heading)
	}
	return rows
}

// productionSources returns the code that is not for tests.
func productionSources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "sandbox" || entry.Name() == "testdata" || entry.Name() == ".git"):
			return fs.SkipDir
		case strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go"):
			content, err := os.ReadFile(path)
			all.Write(content)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

func readText(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}
