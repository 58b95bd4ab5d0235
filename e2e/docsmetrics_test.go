package e2e_test

import (
	"go/ast"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	egress "github.com/caddy-egress/caddy-egress"
	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

const (
	metricsPage  = "docs/reference/metrics.md"
	commandsPage = "docs/reference/commands.md"
	adminPage    = "docs/reference/admin-api.md"
)

// metricOf returns the name, type and labels of a collector that call makes.
func metricOf(t *testing.T, call *ast.CallExpr, lists map[string][]string) (metric [3]string, ok bool) {
	t.Helper()
	found := regexp.MustCompile(`^New(\w+)Vec$`).FindStringSubmatch(calledName(call))
	if found == nil || len(call.Args) != 2 {
		return metric, false
	}
	opts, ok := call.Args[0].(*ast.CompositeLit)
	if !ok {
		return metric, false
	}
	var name []string
	for _, part := range []string{"Namespace", "Subsystem", "Name"} {
		for _, element := range opts.Elts {
			field := element.(*ast.KeyValueExpr)
			if field.Key.(*ast.Ident).Name == part {
				text, _ := stringOf(field.Value)
				name = append(name, text)
			}
		}
	}
	return [3]string{strings.Join(name, "_"), strings.ToLower(found[1]), strings.Join(labelsOf(t, call.Args[1], lists), ", ")}, true
}

// labelsOf returns the strings of a list, or of one that others are appended to.
func labelsOf(t *testing.T, e ast.Expr, lists map[string][]string) (labels []string) {
	t.Helper()
	switch e := e.(type) {
	case *ast.Ident:
		return lists[e.Name]
	case *ast.CompositeLit:
		for _, element := range e.Elts {
			text, _ := stringOf(element)
			labels = append(labels, text)
		}
		return labels
	case *ast.CallExpr:
		labels = slices.Clone(labelsOf(t, e.Args[0], lists))
		for _, argument := range e.Args[1:] {
			text, _ := stringOf(argument)
			labels = append(labels, text)
		}
		return labels
	}
	t.Fatalf("labels are neither a list nor appended to one: %T", e)
	return nil
}

// metrics returns the metrics that the code makes.
func metrics(t *testing.T) (all [][3]string) {
	t.Helper()
	lists := make(map[string][]string)
	for range 2 { // lists first
		all = nil
		for _, name := range productionFiles(t) {
			ast.Inspect(parseFile(t, name), func(node ast.Node) bool {
				switch node := node.(type) {
				case *ast.ValueSpec:
					for i, value := range node.Values {
						if list, ok := value.(*ast.CompositeLit); ok {
							if _, isList := list.Type.(*ast.ArrayType); isList {
								lists[node.Names[i].Name] = labelsOf(t, list, nil)
							}
						}
					}
				case *ast.CallExpr:
					if metric, ok := metricOf(t, node, lists); ok {
						all = append(all, metric)
					}
				}
				return true
			})
		}
	}
	return all
}

func TestDocsNameEveryMetric(t *testing.T) {
	var got, want []string
	for _, metric := range metrics(t) {
		want = append(want, strings.Join(metric[:], " | "))
	}
	for _, row := range tables(t, metricsPage, "## All metrics") {
		if len(row) != 4 || row[3] == "" {
			t.Errorf("%q is not a metric, its type, labels and meaning", row)
		}
		got = append(got, strings.Join([]string{strings.Trim(row[0], "`"), row[1], strings.Join(spans(row[2]), ", ")}, " | "))
	}
	checkNames(t, "the metrics", got, want)
}

// Metrics that documents, alerts and the dashboard name exist.
func TestDocsNameMetricsThatExist(t *testing.T) {
	exists := make(map[string]bool)
	for _, metric := range metrics(t) {
		exists[metric[0]] = true
		if metric[1] == "histogram" {
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				exists[metric[0]+suffix] = true
			}
		}
	}
	for _, name := range repositoryFiles(t) {
		if !slices.Contains([]string{".md", ".yml", ".yaml", ".json", ".sh"}, path.Ext(name)) || name == "CHANGELOG.md" {
			continue
		}
		for _, found := range regexp.MustCompile(`caddy_egress_\w+`).FindAllString(egresstest.ReadText(t, "../"+name), -1) {
			if !exists[found] {
				t.Errorf("%s: there is no metric %s", name, found)
			}
		}
	}
}

func TestDocsNameEveryValueOfALabel(t *testing.T) {
	var outcomes []string
	names := make(map[string]bool)
	for _, name := range regexp.MustCompile(`(?m)^\toutcome\w+: +"(\w+)"`).FindAllStringSubmatch(egresstest.ReadText(t, "../answer.go"), -1) {
		outcomes = append(outcomes, name[1])
		names[name[1]] = true
	}
	with := func(prefix string) func(string) bool {
		return func(name string) bool { return regexp.MustCompile(`^` + prefix + `[A-Z]`).MatchString(name) }
	}
	classes := constants(t, "../tokenprovider", func(name string) bool {
		return slices.Contains([]string{"Transient", "Refused", "Malformed"}, name)
	})
	for _, table := range []struct {
		heading string
		want    []string
	}{
		{"## `outcome` of requests", outcomes},
		{"## `trigger`", constants(t, "../tokensource", with("trigger"))},
		{"## `outcome` of token requests", append(classes, constants(t, "..", with("tokenOutcome"))...)},
		{"## `result` of a 401", constants(t, "..", with("unauthorized"))},
		{"## `operation` and `outcome` of the storage", append(constants(t, "../tokenstore", with("Operation")), constants(t, "../tokenstore", with("Outcome"))...)},
	} {
		checkNames(t, table.heading, docNames(t, metricsPage, table.heading), table.want)
	}

	// of local tokens, in the row of the metric
	for _, value := range regexp.MustCompile(`localTokensTotal\.WithLabelValues\(\w+, "(\w+)"\)`).FindAllStringSubmatch(productionSources(t), -1) {
		names[value[1]] = true
		if !strings.Contains(egresstest.ReadText(t, "../"+metricsPage), "`"+value[1]+"`") {
			t.Errorf("%s does not name the outcome %s", metricsPage, value[1])
		}
	}
}

// docNames returns the names in the first column of the tables below a heading.
func docNames(t *testing.T, name, heading string) []string {
	t.Helper()
	return names(t, name, heading, 0)
}

// commands returns `caddy egress` and its subcommands.
func commands(t *testing.T) *cobra.Command {
	t.Helper()
	registered, ok := caddycmd.Commands()["egress"]
	if !ok {
		t.Fatal("caddy has no command egress")
	}
	root := &cobra.Command{Use: "egress"}
	registered.CobraFunc(root)
	return root
}

func TestDocsNameEveryCommand(t *testing.T) {
	type flag struct{ name, short string }
	uses := make(map[flag][]string)
	var all, withConfig []string
	for _, command := range commands(t).Commands() {
		all = append(all, command.Name())
		for _, f := range regexp.MustCompile(`(?m)^ +(?:-(\w), +)?--([\w-]+)`).FindAllStringSubmatch(command.Flags().FlagUsages(), -1) {
			uses[flag{f[2], f[1]}] = append(uses[flag{f[2], f[1]}], command.Name())
			if f[2] == "config" {
				withConfig = append(withConfig, command.Name())
			}
		}
		shown := false
		for _, block := range readPage(t, commandsPage).blocks {
			shown = shown || block.language == "text" && block.text == "caddy egress "+command.Use+"\n"
		}
		if !shown {
			t.Errorf("%s does not show the usage: caddy egress %s", commandsPage, command.Use)
		}
		section(t, commandsPage, "## "+command.Name())
	}
	if len(withConfig) != len(all)-1 {
		t.Fatalf("%q have --config, of %q", withConfig, all)
	}

	var got, flags, want []string
	for _, row := range tables(t, commandsPage, "## In common") {
		first := spans(row[0])
		if !strings.HasPrefix(first[0], "--") {
			got = append(got, first[0])
			continue
		}
		of := spans(row[1])
		if strings.HasPrefix(row[1], "all but ") {
			of = slices.DeleteFunc(slices.Clone(all), func(name string) bool { return name == of[0] })
		}
		slices.Sort(of)
		flags = append(flags, strings.Join(first, " ")+" of "+strings.Join(of, " "))
	}
	for f, of := range uses {
		slices.Sort(of)
		said := "--" + f.name
		if f.short != "" {
			said += " -" + f.short
		}
		want = append(want, said+" of "+strings.Join(of, " "))
	}
	checkNames(t, "the commands", got, slices.Clone(all))
	checkNames(t, "the flags", flags, want)
}

// jsonTags returns the JSON keys of a struct that is not exported.
func jsonTags(t *testing.T, file, name string) (keys []string) {
	t.Helper()
	ast.Inspect(parseFile(t, file), func(node ast.Node) bool {
		spec, ok := node.(*ast.TypeSpec)
		if !ok || spec.Name.Name != name {
			return true
		}
		for _, field := range spec.Type.(*ast.StructType).Fields.List {
			if field.Tag != nil {
				if tag := regexp.MustCompile(`json:"(\w+)`).FindStringSubmatch(field.Tag.Value); tag != nil {
					keys = append(keys, tag[1])
				}
			}
		}
		return false
	})
	return keys
}

func TestDocsNameEveryKeyOfCommands(t *testing.T) {
	var ofAccess, ofCheck []string
	for _, row := range tables(t, commandsPage, "## access") {
		if strings.HasPrefix(row[0], "`") {
			ofAccess = append(ofAccess, spans(row[0])...)
		}
	}
	checkNames(t, "the keys of access", ofAccess, jsonTags(t, "../access.go", "accessRow"))

	var results []string
	for _, row := range tables(t, commandsPage, "## check") {
		keys := spans(row[0])
		if slices.Contains(keys, "ok") || len(results) > 0 && results[len(results)-1] != "not tried" {
			results = append(results, keys...)
			continue
		}
		if keys[0] == "secrets" {
			for _, key := range jsonTags(t, "../checktoken.go", "checkedSecret") {
				if !slices.Contains(spans(row[1]), key) {
					t.Errorf("the row of secrets does not name %s", key)
				}
			}
		}
		ofCheck = append(ofCheck, keys...)
	}
	checkNames(t, "the keys of check", ofCheck, jsonTags(t, "../checkreport.go", "checkResult"))
	classes := constants(t, "../tokenprovider", func(name string) bool {
		return slices.Contains([]string{"Transient", "Refused", "Malformed"}, name)
	})
	for _, result := range constants(t, "..", func(name string) bool {
		return regexp.MustCompile(`^check(OK|Misconfigured|NotTried)$`).MatchString(name)
	}) {
		classes = append(classes, strings.ReplaceAll(result, "_", " "))
	}
	checkNames(t, "the results of check", results, classes)
}

func TestDocsNameEveryKeyOfTheStatusPage(t *testing.T) {
	const name, heading, source = "docs/guides/status-page.md", "## As JSON", "../statusreport.go"
	checkNames(t, "the keys of the report", names(t, name, heading, 0), append(jsonTags(t, source, "statusReport"), "left_out"))
	var said []string
	for _, line := range section(t, name, heading) {
		said = append(said, spans(line.text)...)
	}
	for _, part := range []string{"problemReport", "credentialGroup", "credentialReport", "callerReport", "requestCount"} {
		keys := jsonTags(t, source, part)
		if len(keys) < 2 {
			t.Errorf("%s has the keys %q", part, keys)
		}
		for _, key := range keys {
			if !slices.Contains(said, key) {
				t.Errorf("%s does not name %s of %s", name, key, part)
			}
		}
	}
}

func TestDocsNameEveryStateOfACredential(t *testing.T) {
	want := constants(t, "../tokensource", func(name string) bool { return strings.HasPrefix(name, "Phase") })
	checkNames(t, "the states", names(t, commandsPage, "### States", 0), want)
}

func TestDocsNameTheAdminAPI(t *testing.T) {
	prefix := "/egress/tokens"
	if !strings.Contains(egresstest.ReadText(t, "../admin.go"), `const adminPath = "`+prefix+`"`) {
		t.Fatal("the admin API is elsewhere")
	}
	want := []string{"GET " + prefix}
	for _, action := range regexp.MustCompile(`(?m)^\t"(\w*)": +\{http\.Method(\w+),`).FindAllStringSubmatch(egresstest.ReadText(t, "../admin.go"), -1) {
		want = append(want, strings.TrimSuffix(strings.ToUpper(action[2])+" "+prefix+"/<name>/"+action[1], "/"))
	}
	var got []string
	for _, row := range tables(t, adminPage, "# Admin API") {
		got = append(got, spans(row[0])...)
	}
	checkNames(t, "the requests of the admin API", got, want)

	for heading, holder := range map[string]any{
		"## Status of a credential": egress.CredentialStatus{},
		"### `last_error`":          egress.CredentialError{},
		"### `store`":               egress.StoreStatus{},
		"## Introspection":          tokenprovider.Introspection{},
	} {
		keys, optional := jsonKeys(holder)
		checkNames(t, "the keys under "+heading, names(t, adminPage, heading, 0), keys)
		for _, row := range tables(t, adminPage, heading) {
			key := spans(row[0])[0]
			if row[2] == "never" && slices.Contains(optional, key) || row[2] != "never" && !slices.Contains(optional, key) {
				t.Errorf("%s: %s is absent %q, but optional are %q", heading, key, row[2], optional)
			}
		}
	}
}
