package egress_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// goFiles calls visit with each Go file of the repository.
func goFiles(t *testing.T, visit func(path string, source []byte)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "node_modules" || entry.Name() == ".git"):
			return fs.SkipDir
		case filepath.Ext(path) != ".go":
			return nil
		}
		source, err := os.ReadFile(path)
		visit(filepath.ToSlash(path), source)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What judges requests and answers must not reach into the transport or the app:
// it can be read, and tested, by itself.
func TestJudgesKnowNeitherTransportNorApp(t *testing.T) {
	for _, path := range []string{"guard.go", "destination.go", "headers.go", "answer.go", "cors.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if name, ok := n.(*ast.Ident); ok && (name.Name == "Transport" || name.Name == "App") {
				t.Errorf("%s mentions %s", path, name.Name)
			}
			return true
		})
	}
}

// A file that grows beyond these has more than one concern.
func TestFilesAreShort(t *testing.T) {
	sandbox := 0
	goFiles(t, func(path string, source []byte) {
		lines, most := bytes.Count(source, []byte("\n")), 400
		if strings.HasSuffix(path, "_test.go") {
			most = 700
		} else if strings.HasPrefix(path, "sandbox/") {
			sandbox += lines
		}
		if lines > most {
			t.Errorf("%s has %d lines, want at most %d", path, lines, most)
		}
	})
	if sandbox == 0 || sandbox > 1400 {
		t.Errorf("the sandbox has %d lines, want at most 1400", sandbox)
	}
}

// The map in CONTRIBUTING.md names every file and folder at the top level, and
// nothing that is not there.
func TestContributingMap(t *testing.T) {
	text, err := os.ReadFile("CONTRIBUTING.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## Where things are")
	table, _, _ = strings.Cut(table, "\n## ")
	var named []string
	for row := range strings.SplitSeq(table, "\n") {
		cells := strings.Split(row, "|")
		if len(cells) < 3 {
			continue
		}
		for _, quoted := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			named = append(named, strings.TrimSuffix(quoted[1], "/"))
		}
	}
	for _, path := range named {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("CONTRIBUTING.md names %s, which is not there", path)
		}
	}

	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".") || !entry.IsDir() && filepath.Ext(name) != ".go" || strings.HasSuffix(name, "_test.go") {
			continue
		}
		known := slices.ContainsFunc(named, func(path string) bool { return path == name || strings.HasPrefix(path, name+"/") })
		if !known {
			t.Errorf("CONTRIBUTING.md does not say what %s is", name)
		}
	}
}
