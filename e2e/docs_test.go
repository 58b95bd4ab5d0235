package e2e_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// page is a document, by its path from the root of the repository.
type page struct {
	path   string
	prose  []docLine // without blocks of code and comments
	blocks []docBlock
}

// docLine is a line of a document, as it stands there.
type docLine struct {
	number int
	text   string
}

// docBlock is a block of code of a document.
type docBlock struct {
	number   int // of its first line
	language string
	text     string // without the indentation of the block
}

// docPages returns all documents. Those of dependencies are not ours.
func docPages(t *testing.T) (all []page) {
	t.Helper()
	for _, name := range repositoryFiles(t) {
		if path.Ext(name) == ".md" {
			all = append(all, readPage(t, name))
		}
	}
	if len(all) < 10 {
		t.Fatalf("%d documents", len(all))
	}
	return all
}

// repositoryFiles returns the paths of all files, from the root of the repository.
func repositoryFiles(t *testing.T) (files []string) {
	t.Helper()
	err := fs.WalkDir(os.DirFS(".."), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains([]string{".git", "node_modules", "testdata"}, entry.Name()):
			return fs.SkipDir
		case entry.Type().IsRegular():
			files = append(files, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func readPage(t *testing.T, name string) page {
	t.Helper()
	p := page{path: name}
	fence, comment := "", false
	var block *docBlock
	var margin string
	for i, line := range strings.Split(egresstest.ReadText(t, "../"+name), "\n") {
		bare := strings.TrimSpace(line)
		switch {
		case block != nil && bare == fence:
			p.blocks = append(p.blocks, *block)
			block = nil
		case block != nil:
			block.text += strings.TrimPrefix(line, margin) + "\n"
		case comment || strings.HasPrefix(bare, "<!--"):
			comment = !strings.Contains(line, "-->")
		case strings.HasPrefix(bare, "```"):
			fence = bare[:len(bare)-len(strings.TrimLeft(bare, "`"))]
			margin = line[:strings.Index(line, "`")]
			block = &docBlock{number: i + 2, language: strings.TrimPrefix(bare, fence)}
		default:
			p.prose = append(p.prose, docLine{i + 1, line})
		}
	}
	if block != nil || comment {
		t.Fatalf("%s: a block of code or a comment has no end", name)
	}
	return p
}

// section returns the lines below a heading of a page, up to the next heading.
func section(t *testing.T, name, heading string) (lines []docLine) {
	t.Helper()
	found := false
	for _, line := range readPage(t, name).prose {
		switch {
		case line.text == heading:
			found = true
		case found && strings.HasPrefix(line.text, "#"):
			return lines
		case found:
			lines = append(lines, line)
		}
	}
	if !found {
		t.Fatalf("%s has no heading %q", name, heading)
	}
	return lines
}

// cells returns the cells of a row of a table.
func cells(line string) (row []string) {
	row = strings.Split(strings.ReplaceAll(line, `\|`, "\x00"), "|")
	for i, cell := range row {
		row[i] = strings.TrimSpace(strings.ReplaceAll(cell, "\x00", "|"))
	}
	return row[1 : len(row)-1]
}

// tables returns the rows of all tables below a heading, without those that head
// them. All have at least one row.
func tables(t *testing.T, name, heading string) (rows [][]string) {
	t.Helper()
	inTable := false
	for _, line := range section(t, name, heading) {
		switch {
		case strings.HasPrefix(line.text, "|--"):
			inTable = true
		case !strings.HasPrefix(line.text, "|"):
			inTable = false
		case inTable:
			rows = append(rows, cells(line.text))
		}
	}
	if len(rows) == 0 {
		t.Fatalf("%s: nothing under %q is a table", name, heading)
	}
	return rows
}

var codeSpan = regexp.MustCompile("`([^`]+)`")

// spans returns what stands in backquotes in a cell.
func spans(cell string) (all []string) {
	for _, span := range codeSpan.FindAllStringSubmatch(cell, -1) {
		all = append(all, span[1])
	}
	return all
}

// names returns what stands in backquotes in a column of the tables below a heading:
// of each row all, sorted.
func names(t *testing.T, name, heading string, column int) (all []string) {
	t.Helper()
	for _, row := range tables(t, name, heading) {
		found := spans(row[column])
		if len(found) == 0 {
			t.Errorf("%s: %s: no name in %q", name, heading, row[column])
		}
		all = append(all, found...)
	}
	slices.Sort(all)
	return all
}

// checkNames checks that two sets of names are the same, each once.
func checkNames(t *testing.T, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if len(want) == 0 {
		t.Errorf("%s: the code has none", what)
	}
	egresstest.CheckLines(t, what, got, want)
}

func TestDocsCaddyfilesLoad(t *testing.T) {
	loaded := 0
	for _, p := range docPages(t) {
		for _, block := range p.blocks {
			language, kind, _ := strings.Cut(block.language, " ")
			if language != "caddy" {
				continue
			}
			loaded++
			t.Run(fmt.Sprint(p.path, " ", block.number), func(t *testing.T) {
				text := block.text
				switch kind {
				case "":
				case "fragment": // of a site
					text = ":8080 {\n\t" + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n\t") + "\n}\n"
				default:
					t.Fatalf("a Caddyfile is `caddy` or `caddy fragment`, not %q", block.language)
				}
				egresstest.CheckCaddyfile(t, text)
			})
		}
	}
	if loaded < 5 {
		t.Errorf("%d Caddyfiles in all documents", loaded)
	}
}

// The reference says what egress stands for by a directive and its expansion. What
// the directive puts in front beside that is told in prose.
func TestDocsExpansion(t *testing.T) {
	var configs []string
	for _, block := range readPage(t, "docs/reference/options.md").blocks {
		if block.language != "caddy fragment" || len(configs) == 2 {
			continue
		}
		var config any
		if err := json.Unmarshal(egresstest.AdaptCaddyfile(t, string(caddyfile.Format([]byte(":8080 {\n"+block.text+"}\n")))), &config); err != nil {
			t.Fatal(err)
		}
		indented, err := json.MarshalIndent(withoutUnreachable(config), "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		configs = append(configs, string(indented))
	}
	if len(configs) != 2 {
		t.Fatalf("%d fragments, want the directive and what it stands for", len(configs))
	}
	if configs[0] != configs[1] {
		t.Errorf("the directive adapts to\n%s\nits expansion to\n%s", configs[0], configs[1])
	}
}

// withoutUnreachable returns decoded JSON without the handlers egress_unreachable.
func withoutUnreachable(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key := range v {
			v[key] = withoutUnreachable(v[key])
		}
		return v
	case []any:
		v = slices.DeleteFunc(v, func(element any) bool {
			handler, ok := element.(map[string]any)
			return ok && handler["handler"] == "egress_unreachable"
		})
		for i := range v {
			v[i] = withoutUnreachable(v[i])
		}
		return v
	}
	return v
}

var (
	inlineLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headingOf  = regexp.MustCompile(`^#{1,6} +(.*?) *#*$`)
)

// anchors returns the anchors that GitHub gives the headings of a page.
func anchors(p page) map[string]bool {
	found := make(map[string]bool)
	for _, line := range p.prose {
		heading := headingOf.FindStringSubmatch(line.text)
		if heading == nil {
			continue
		}
		text := regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`).ReplaceAllString(heading[1], "$1")
		base := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, text)
		slug := base
		for i := 1; found[slug]; i++ {
			slug = fmt.Sprint(base, "-", i)
		}
		found[slug] = true
	}
	return found
}

func TestDocsLinksResolve(t *testing.T) {
	byPath := make(map[string]map[string]bool)
	for _, p := range docPages(t) {
		byPath[p.path] = anchors(p)
	}
	check := func(from string, line int, target string) {
		name, anchor, hasAnchor := strings.Cut(target, "#")
		if name == "" {
			name = path.Base(from)
		}
		name = path.Join(path.Dir(from), name)
		if _, err := os.Stat("../" + name); err != nil {
			t.Errorf("%s:%d: %s does not exist", from, line, target)
			return
		}
		if hasAnchor && path.Ext(name) == ".md" && !byPath[name][anchor] {
			t.Errorf("%s:%d: %s has no heading #%s", from, line, name, anchor)
		}
	}
	links := 0
	for _, p := range docPages(t) {
		for _, line := range p.prose {
			for _, link := range inlineLink.FindAllStringSubmatch(codeSpan.ReplaceAllString(line.text, "code"), -1) {
				if strings.HasPrefix(link[1], "https://") || strings.HasPrefix(link[1], "mailto:") {
					continue
				}
				links++
				check(p.path, line.number, link[1])
			}
		}
	}
	if links < 100 {
		t.Errorf("%d links in all documents", links)
	}

	// what configs, scripts and code refer to, and the links of alerts
	mention := regexp.MustCompile(`\bdocs/[\w./-]*\w\.md(#[\w-]+)?`)
	for _, name := range repositoryFiles(t) {
		switch path.Ext(name) {
		case ".go", ".yml", ".yaml", ".json", ".sh", ".html", ".service", "":
			for i, line := range strings.Split(egresstest.ReadText(t, "../"+name), "\n") {
				for _, target := range mention.FindAllString(line, -1) {
					up := strings.Repeat("../", strings.Count(name, "/"))
					check(name, i+1, up+target)
				}
			}
		}
	}
}

// Nothing is told twice: no sentence of some length stands in two documents.
func TestDocsTellOnce(t *testing.T) {
	told := make(map[string]string)
	for _, p := range docPages(t) {
		if p.path != "README.md" {
			checkToldOnce(t, p, told)
		}
	}
	if len(told) < 500 {
		t.Errorf("%d sentences in all documents", len(told))
	}
}

func TestReadmeTellsNothingAgain(t *testing.T) {
	told := make(map[string]string)
	var readme page
	for _, p := range docPages(t) {
		if p.path == "README.md" {
			readme = p
			continue
		}
		for _, sentence := range sentences(p) {
			told[sentence] = p.path
		}
	}
	checkToldOnce(t, readme, told)
}

// checkToldOnce checks that nothing of a page is in told, and adds it there.
func checkToldOnce(t *testing.T, p page, told map[string]string) {
	t.Helper()
	for _, sentence := range sentences(p) {
		if before := told[sentence]; before != "" && before != p.path {
			t.Errorf("%s says again what %s says: %s", p.path, before, sentence)
		}
		told[sentence] = p.path
	}
}

const (
	longSentence = 60 // from so many characters on, a sentence has to be told once
	longName     = 40 // from so many on, what stands in backquotes is a message
)

var sentenceEnd = regexp.MustCompile(`[.:;!?…]['")]* |[.:;!?]$|\x00`)

// sentences returns what a page says, normalised: its sentences, cells of tables and
// lines of code, if they are long, and whole blocks of code. Messages of the code, by
// which several pages may refer to it, single commands and transcripts are not what is
// meant.
func sentences(p page) (all []string) {
	add := func(text string) {
		if len([]rune(text)) >= longSentence {
			all = append(all, text)
		}
	}
	var text strings.Builder
	for _, line := range p.prose {
		bare := strings.TrimSpace(line.text)
		switch {
		case strings.HasPrefix(bare, "|"):
			text.WriteString("\x00" + strings.Join(cells(bare), "\x00") + "\x00")
		case bare == "" || strings.HasPrefix(bare, "#"):
			text.WriteString("\x00")
		case regexp.MustCompile(`^([-*+]|\d+\.) `).MatchString(bare):
			text.WriteString("\x00" + bare[strings.Index(bare, " "):] + " ")
		default:
			text.WriteString(bare + " ")
		}
	}
	bare := codeSpan.ReplaceAllStringFunc(text.String(), func(span string) string {
		if len(span) > longName {
			return "`…`"
		}
		return span
	})
	for _, sentence := range sentenceEnd.Split(bare, -1) {
		sentence = regexp.MustCompile(`\]\([^)]*\)`).ReplaceAllString(sentence, "")
		sentence = strings.Map(func(r rune) rune {
			if strings.ContainsRune("*`[]", r) {
				return -1
			}
			return unicode.ToLower(r)
		}, sentence)
		add(strings.Join(strings.Fields(sentence), " "))
	}
	for _, block := range p.blocks {
		lines := strings.Split(strings.TrimSpace(block.text), "\n")
		if block.language == "console" || block.language == "sh" && len(lines) == 1 {
			continue
		}
		add(strings.Join(strings.Fields(block.text), " "))
		for _, line := range lines {
			if block.language != "sh" {
				add(strings.Join(strings.Fields(line), " "))
			}
		}
	}
	return all
}

// The README is read in a few minutes, or not at all.
func TestReadmeIsShort(t *testing.T) {
	const most = 8500
	if size := len(egresstest.ReadText(t, "../README.md")); size > most {
		t.Errorf("the README has %d bytes, want at most %d: reference belongs in docs/", size, most)
	}
}

// Long pages say what is in them.
func TestDocsHaveContents(t *testing.T) {
	const long = 8 << 10
	for _, p := range docPages(t) {
		text := egresstest.ReadText(t, "../"+p.path)
		if strings.HasPrefix(p.path, "docs/") && len(text) > long && !strings.Contains(text, "\n**Contents:** ") {
			t.Errorf("%s has %d bytes and no line **Contents:**", p.path, len(text))
		}
	}
}

// What docs/security.md promises is shown by tests that are there.
func TestDocsSecurityNamesTests(t *testing.T) {
	tests := make(map[string]bool)
	for _, name := range repositoryFiles(t) {
		if strings.HasSuffix(name, "_test.go") {
			tests[name] = true
			for _, function := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllStringSubmatch(egresstest.ReadText(t, "../"+name), -1) {
				tests[function[1]] = true
			}
		}
	}
	for _, row := range tables(t, "docs/security.md", "## What is guaranteed, and what shows it") {
		named := spans(row[1])
		if len(named) == 0 {
			t.Errorf("no test shows %q", row[0])
		}
		for _, name := range named {
			if name != "Fuzz*" && !tests[name] && !isPackage(name) {
				t.Errorf("there is no test %s", name)
			}
		}
	}
}

func isPackage(name string) bool {
	info, err := os.Stat("../" + name)
	return err == nil && info.IsDir()
}

// jsonKeys returns the keys of a struct in JSON, without those of embedded structs,
// and those of them that can be left out.
func jsonKeys(holder any) (keys, optional []string) {
	for field := range reflect.TypeOf(holder).Fields() {
		key, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		if key == "" {
			continue
		}
		keys = append(keys, key)
		if strings.Contains(options, "omit") {
			optional = append(optional, key)
		}
	}
	return keys, optional
}
