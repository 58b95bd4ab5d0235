package e2e_test

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	egress "github.com/caddy-egress/caddy-egress"
	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider/oauth2"
	"github.com/caddy-egress/caddy-egress/tokenprovider/understory"
	"github.com/caddy-egress/caddy-egress/tokenprovider/voucherify"
)

func TestReadmeCaddyfilesLoad(t *testing.T) {
	documents, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	loaded := 0
	for _, document := range append(documents, "../README.md") {
		blocks := regexp.MustCompile("(?s)```caddy( fragment)?\n(.*?)```").FindAllStringSubmatch(egresstest.ReadText(t, document), -1)
		for i, block := range blocks {
			fragment, text := block[1] != "", block[2]
			t.Run(fmt.Sprint(filepath.Base(document), " ", i+1), func(t *testing.T) {
				if fragment { // of a site
					text = ":8080 {\n\t" + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n\t") + "\n}\n"
				}
				egresstest.CheckCaddyfile(t, text)
			})
			loaded++
		}
	}
	if loaded == 0 {
		t.Error("the README holds no Caddyfile")
	}
}

// The README says what egress stands for by a directive and its expansion.
func TestReadmeExpansion(t *testing.T) {
	fragments := regexp.MustCompile("(?s)```caddy fragment\n(.*?)```").FindAllStringSubmatch(egresstest.ReadText(t, "../README.md"), -1)
	if len(fragments) != 2 {
		t.Fatalf("%d fragments, want the directive and what it stands for", len(fragments))
	}
	var configs []string
	for _, fragment := range fragments {
		config := egresstest.AdaptCaddyfile(t, string(caddyfile.Format([]byte(":8080 {\n"+fragment[1]+"}\n"))))
		configs = append(configs, egresstest.IndentJSON(t, config))
	}
	if configs[0] != configs[1] {
		t.Errorf("the directive adapts to\n%s\nits expansion to\n%s", configs[0], configs[1])
	}
}

// optionTables are the tables of options in the README, by their headings, and
// the types that hold the options. Names in a Caddyfile and in JSON are the same.
var optionTables = map[string]any{
	"Global option":             egress.App{},
	"Caller":                    egress.Caller{},
	"Grant":                     egress.Grant{},
	"Options of token requests": egress.Credential{},
	"Route options":             egress.RouteOptions{},
	"Provider understory":       understory.Provider{},
	"Provider voucherify":       voucherify.Provider{},
	"Provider oauth2":           oauth2.Provider{},
	"egress_token":              egress.TokenEndpoint{},
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
			case "callers":
				if heading != "Grant" { // whose arguments they are
					want = append(want, "caller")
				}
			default:
				want = append(want, name)
			}
		}
		got := slices.Collect(maps.Keys(tableRows(t, "### "+heading, 0)))
		slices.Sort(got)
		slices.Sort(want)
		egresstest.CheckLines(t, "the options under "+heading, got, want)
	}
}

func TestReadmeNamesEveryAnswerOfTheGateway(t *testing.T) {
	keys := regexp.MustCompile(`\b(?:key|outcome)\w+\s*[:=] +"(\w+)"`).FindAllStringSubmatch(egresstest.ReadText(t, "../answer.go"), -1)
	if len(keys) == 0 {
		t.Fatal("answer.go has no keys")
	}
	var want []string
	for _, key := range keys {
		if !slices.Contains([]string{"forwarded", "replayed", "client_gone", "bad_request"}, key[1]) { // not answers of their own
			want = append(want, key[1])
		}
	}
	got := slices.Collect(maps.Keys(tableRows(t, "## The gateway's own answers", 1)))
	slices.Sort(got)
	slices.Sort(want)
	egresstest.CheckLines(t, "the gateway's answers in the README", got, want)
}

// The messages that the README explains are those of the code, where they may
// be put together from parts; … stands for what differs from one to the next.
func TestReadmeQuotesMessages(t *testing.T) {
	sources := productionSources(t)
	sources += strings.ReplaceAll(sources, `", "`, ": ") // option.Errorf("name", "what is wrong")
	sources += strings.ReplaceAll(sources, "%s", option.Tenant)
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
	_, section, found := strings.Cut(egresstest.ReadText(t, "../README.md"), "\n"+heading+"\n")
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
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains([]string{".git", "egresstest", "sandbox", "testdata"}, entry.Name()):
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
