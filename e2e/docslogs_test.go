package e2e_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/internal/option"
)

const logsPage = "docs/reference/logs.md"

// productionFiles returns the paths of the code that is not for tests.
func productionFiles(t *testing.T) (files []string) {
	t.Helper()
	for _, name := range repositoryFiles(t) {
		if path.Ext(name) == ".go" && !strings.HasSuffix(name, "_test.go") &&
			!regexp.MustCompile(`^(bench|cmd|e2e|sandbox|internal/egresstest|tokenprovider/internal)/`).MatchString(name) {
			files = append(files, "../"+name)
		}
	}
	if len(files) < 50 {
		t.Fatalf("%d files of code", len(files))
	}
	return files
}

// productionSources returns the code that is not for tests.
func productionSources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, name := range productionFiles(t) {
		all.WriteString(egresstest.ReadText(t, name))
	}
	return all.String()
}

func parseFile(t *testing.T, name string) *ast.File {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// constants returns the values of the constants of a package that are strings and
// whose name is one that is wanted.
func constants(t *testing.T, directory string, wanted func(name string) bool) (values []string) {
	t.Helper()
	files, err := filepath.Glob(directory + "/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		for _, declaration := range parseFile(t, name).Decls {
			group, ok := declaration.(*ast.GenDecl)
			if !ok || group.Tok != token.CONST {
				continue
			}
			for _, spec := range group.Specs {
				spec := spec.(*ast.ValueSpec)
				for i, value := range spec.Values {
					if text, ok := stringOf(value); ok && wanted(spec.Names[i].Name) {
						values = append(values, text)
					}
				}
			}
		}
	}
	return values
}

// stringOf returns the value of a string literal.
func stringOf(e ast.Expr) (string, bool) {
	literal, ok := e.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return "", false
	}
	text, err := strconv.Unquote(literal.Value)
	return text, err == nil
}

// logged is a message of the log, and the levels that it is logged at, as far as the
// code says them where it is logged.
type logged map[string][]string

// logCalls finds what a package logs: the messages that stand in calls of zap, and in
// calls of functions that pass a parameter on as the message. It fails where it cannot
// tell what the message is.
type logCalls struct {
	t        *testing.T
	strings  map[string]string // constants by name
	wrappers map[string]wrapper
	found    logged
	grew     bool
}

// wrapper is a function that logs its parameters.
type wrapper struct {
	parameters int    // how many there are, a last `…` aside: it tells methods of one name apart
	message    int    // the index of the one that is the message
	level      string // "": one of the arguments says it
	variadic   bool
}

var zapLevels = map[string]string{"Debug": "debug", "Info": "info", "Warn": "warn", "Error": "error", "DPanic": "error", "Panic": "error", "Fatal": "error"}

// elsewhere are messages that the code takes from a value, and where the test finds
// their texts.
var elsewhere = map[string]string{
	"w.message": "literals of routeWarning",
	"warning":   "UnknownScopes and Warnings of providers",
}

// body looks at a function with these parameters.
func (c *logCalls) body(name string, parameters *ast.FieldList, body *ast.BlockStmt) {
	index := make(map[string]int)
	n, variadic := 0, false
	for _, field := range parameters.List {
		if _, variadic = field.Type.(*ast.Ellipsis); variadic {
			break
		}
		for _, parameter := range field.Names {
			index[parameter.Name] = n
			n++
		}
	}
	note := func(message ast.Expr, level string) {
		text, isLiteral := stringOf(message)
		identifier, isIdentifier := message.(*ast.Ident)
		switch {
		case isLiteral:
		case isIdentifier && c.strings[identifier.Name] != "":
			text = c.strings[identifier.Name]
		case isIdentifier && name != "":
			if i, isParameter := index[identifier.Name]; isParameter {
				if _, known := c.wrappers[name]; !known {
					c.wrappers[name] = wrapper{n, i, level, variadic}
					c.grew = true
				}
				return
			}
		}
		if text != "" {
			if levels := c.found[text]; level != "" && !slices.Contains(levels, level) {
				c.found[text] = append(levels, level)
			} else if levels == nil {
				c.found[text] = []string{}
			}
			return
		}
		if said := sourceOf(message); elsewhere[said] == "" {
			c.t.Errorf("%s logs %s: the test cannot tell what that is", name, said)
		}
	}
	ast.Inspect(body, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.AssignStmt: // of a closure to a name
			for i, value := range node.Rhs {
				if closure, ok := value.(*ast.FuncLit); ok && i < len(node.Lhs) {
					if name, ok := node.Lhs[i].(*ast.Ident); ok {
						c.body(name.Name, closure.Type.Params, closure.Body)
						return false
					}
				}
			}
		case *ast.CompositeLit:
			list, isList := node.Type.(*ast.ArrayType)
			if isList && sourceOf(list.Elt) == "routeWarning" {
				for _, element := range node.Elts {
					note(element.(*ast.CompositeLit).Elts[0], "warn")
				}
			} else if kind, ok := node.Type.(*ast.Ident); ok && kind.Name == "routeWarning" {
				note(node.Elts[0], "warn")
			}
		case *ast.CallExpr:
			c.call(node, note)
		}
		return true
	})
	if name == "Warnings" {
		ast.Inspect(body, func(node ast.Node) bool {
			if literal, ok := node.(ast.Expr); ok {
				if text, ok := stringOf(literal); ok {
					c.found[text] = []string{"warn"}
				}
			}
			return true
		})
	}
	if name == "UnknownScopes" {
		ast.Inspect(body, func(node ast.Node) bool {
			if call, ok := node.(*ast.CallExpr); ok && calledName(call) == "Sprintf" {
				if format, ok := stringOf(call.Args[0]); ok && !strings.HasPrefix(format, ";") {
					text, _, _ := strings.Cut(format, "%")
					c.found[text+"…"] = []string{"warn"}
				}
			}
			if list, ok := node.(*ast.CompositeLit); ok {
				for _, element := range list.Elts {
					if text, ok := stringOf(element); ok {
						c.found[text] = []string{"warn"}
					}
				}
			}
			return true
		})
	}
}

func (c *logCalls) call(call *ast.CallExpr, note func(message ast.Expr, level string)) {
	level := ""
	for _, argument := range call.Args {
		if selector, ok := argument.(*ast.SelectorExpr); ok && strings.HasSuffix(selector.Sel.Name, "Level") {
			level = zapLevels[strings.TrimSuffix(selector.Sel.Name, "Level")]
		}
	}
	name := calledName(call)
	if known, ok := c.wrappers[name]; ok && (len(call.Args) == known.parameters || known.variadic && len(call.Args) > known.parameters) {
		if known.level != "" {
			level = known.level
		}
		note(call.Args[known.message], level)
		return
	}
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return
	}
	isLogger := regexp.MustCompile(`(?i)log(ger)?(\(\))?(\.Named\(\))?$|named\(\)$`).MatchString(sourceOf(selector.X))
	for i, argument := range call.Args { // whatever it is called
		_, isText := stringOf(argument)
		field, isCall := argument.(*ast.CallExpr)
		isLogger = isLogger || i == 0 && isText || isCall && strings.HasPrefix(sourceOf(field.Fun), "zap.")
	}
	switch {
	case !isLogger:
	case zapLevels[name] != "" && len(call.Args) > 0:
		note(call.Args[0], zapLevels[name])
	case (name == "Log" || name == "Check") && len(call.Args) > 1:
		note(call.Args[1], level)
	}
}

// calledName returns the name of the function or method that is called.
func calledName(call *ast.CallExpr) string {
	switch function := call.Fun.(type) {
	case *ast.Ident:
		return function.Name
	case *ast.SelectorExpr:
		return function.Sel.Name
	}
	return ""
}

// sourceOf returns an expression as code, without arguments.
func sourceOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return sourceOf(e.X) + "." + e.Sel.Name
	case *ast.CallExpr:
		return sourceOf(e.Fun) + "()"
	}
	return "an expression"
}

// logMessages returns all that the production code logs.
func logMessages(t *testing.T) logged {
	t.Helper()
	all := make(logged)
	byPackage := make(map[string][]string)
	for _, name := range productionFiles(t) {
		byPackage[path.Dir(name)] = append(byPackage[path.Dir(name)], name)
	}
	for _, files := range byPackage {
		c := &logCalls{t: t, strings: make(map[string]string), wrappers: make(map[string]wrapper), found: all}
		var parsed []*ast.File
		for _, name := range files {
			file := parseFile(t, name)
			parsed = append(parsed, file)
			ast.Inspect(file, func(node ast.Node) bool {
				if spec, ok := node.(*ast.ValueSpec); ok {
					for i, value := range spec.Values {
						if text, ok := stringOf(value); ok && i < len(spec.Names) {
							c.strings[spec.Names[i].Name] = text
						}
					}
				}
				return true
			})
		}
		for c.grew = true; c.grew; {
			c.grew = false
			for _, file := range parsed {
				for _, declaration := range file.Decls {
					if function, ok := declaration.(*ast.FuncDecl); ok {
						c.body(function.Name.Name, function.Type.Params, function.Body)
						continue
					}
					ast.Inspect(declaration, func(node ast.Node) bool { // functions in variables
						if literal, ok := node.(*ast.FuncLit); ok {
							c.body("", literal.Type.Params, literal.Body)
						}
						return true
					})
				}
			}
		}
	}
	return all
}

func TestDocsNameEveryLogMessage(t *testing.T) {
	want := logMessages(t)
	var got, all []string
	sources := productionSources(t)
	for _, row := range tables(t, logsPage, "## Messages") {
		if strings.HasPrefix(row[2], "Caddy's own") {
			continue
		}
		message := spans(row[1])
		if len(message) != 1 || len(row) != 4 || row[3] == "" {
			t.Errorf("%q is not a level, a message, its fields and what to do", row)
			continue
		}
		got = append(got, message[0])
		for _, level := range want[message[0]] {
			if !slices.Contains(strings.Split(row[0], ", "), level) {
				t.Errorf("%q is logged at %s, not at %s", message[0], level, row[0])
			}
		}
		for _, field := range spans(row[2]) {
			if strings.Contains(field, ".") || slices.Contains([]string{"caddyfile", "param", "header"}, field) { // loggers, and an option
				continue
			}
			if !regexp.MustCompile(`zap\.\w+\("`+field+`"`).MatchString(sources) && !slices.Contains([]string{"error", "provider"}, field) {
				t.Errorf("%q: nothing is logged with a field %s", message[0], field)
			}
		}
	}
	for message := range want {
		all = append(all, message)
	}
	checkNames(t, "the messages in "+logsPage, got, all)
}

// Loggers are those of modules, of Caddy itself, or egress.
func TestDocsNameLoggers(t *testing.T) {
	sources := productionSources(t)
	for _, row := range tables(t, logsPage, "## Messages") {
		for _, logger := range spans(row[2]) {
			if strings.Contains(logger, ".") && !strings.Contains(sources, `"`+logger+`"`) && !strings.HasPrefix(logger, "egress.providers.") {
				t.Errorf("no module is named %s", logger)
			}
		}
	}
}

func TestDocsNameFieldsOfLogs(t *testing.T) {
	var want []string
	for _, field := range regexp.MustCompile(`enc\.AddString\("(\w+)"`).FindAllStringSubmatch(egresstest.ReadText(t, "../report.go"), -1) {
		want = append(want, field[1])
	}
	checkNames(t, "the fields of the access log", names(t, logsPage, "## Access log", 0), want)

	source := egresstest.ReadText(t, "../tokensource/log.go")
	_, failed, _ := strings.Cut(source, "func (l *logger) failed(")
	failed, _, _ = strings.Cut(failed, "\nfunc ")
	want = []string{"error"}
	for _, field := range regexp.MustCompile(`zap\.\w+\("(\w+)"`).FindAllStringSubmatch(failed, -1) {
		want = append(want, field[1])
	}
	checkNames(t, "the fields of failures", names(t, logsPage, "## Fields of failures", 0), want)
}

func TestDocsNameEveryPlaceholder(t *testing.T) {
	var want []string
	for _, key := range regexp.MustCompile(`case "(http\.reverse_proxy\.egress\.\w+)"`).FindAllStringSubmatch(egresstest.ReadText(t, "../report.go"), -1) {
		want = append(want, "{"+key[1]+"}")
	}
	var got []string
	for _, row := range tables(t, logsPage, "## Placeholders") {
		got = append(got, spans(row[0])...)
	}
	checkNames(t, "the placeholders", got, want)
}

func TestDocsNameEveryEvent(t *testing.T) {
	want := constants(t, "..", func(name string) bool { return strings.HasPrefix(name, "event") })
	checkNames(t, "the events", names(t, logsPage, "## Events", 0), want)
	emitted := egresstest.ReadText(t, "../events.go") + egresstest.ReadText(t, "../call.go")
	for _, row := range tables(t, logsPage, "## Events") {
		for _, datum := range spans(row[2]) {
			if !strings.Contains(emitted, `"`+datum+`":`) {
				t.Errorf("%s: no event has the data %s", row[0], datum)
			}
		}
	}
}

// The messages that the documents explain are those of the code, where they may
// be put together from parts; … stands for what differs from one to the next.
func TestDocsQuoteMessages(t *testing.T) {
	sources := productionSources(t)
	sources += strings.ReplaceAll(sources, `", "`, ": ") // option.Errorf("name", "what is wrong")
	sources += strings.ReplaceAll(sources, "%s", option.Tenant)
	for _, heading := range []string{"## A config that does not load", "## A request that fails"} {
		for _, row := range tables(t, "docs/troubleshooting.md", heading) {
			messages := spans(row[0])
			if len(messages) != 1 {
				t.Errorf("%q is not one message", row[0])
			}
			if strings.Contains(row[0], "(Caddy's)") {
				continue
			}
			for _, message := range messages {
				for _, part := range regexp.MustCompile("…|; ").Split(message, -1) {
					if part = strings.Trim(part, " ():,"); !strings.Contains(sources, part) && !assembled(part) {
						t.Errorf("%q of %q is not in the code", part, message)
					}
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

// The runbook has a section for each alert, and none for another.
func TestDocsRunbook(t *testing.T) {
	rules, err := os.ReadFile("../examples/observability/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, alert := range regexp.MustCompile(`- alert: (\w+)`).FindAllSubmatch(rules, -1) {
		want = append(want, string(alert[1]))
	}
	for _, line := range readPage(t, "docs/operations.md").prose {
		if alert, found := strings.CutPrefix(line.text, "### "); found {
			got = append(got, alert)
		}
	}
	checkNames(t, "the alerts in the runbook", got, want)
}
