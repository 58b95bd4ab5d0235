package e2e_test

import (
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/sandbox"
)

// docs/sandbox.md has every option of the sandbox, and every request that controls it.
func TestSandboxGuideIsComplete(t *testing.T) {
	guide := egresstest.ReadText(t, "../docs/sandbox.md")

	var options []string
	for field := range reflect.TypeFor[sandbox.Handler]().Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" && name != "api" {
			options = append(options, name)
		}
	}
	egresstest.CheckLines(t, "the options", inFirstColumn(t, guide, "## Options"), slices.Sorted(slices.Values(options)))

	_, server := egresstest.NewSandbox(t, "understory")
	_, body := getFrom(t, server.URL+"/sandbox/")
	requests := regexp.MustCompile(`[A-Z]+ /sandbox/[a-z/]+`).FindAllString(body, -1)
	egresstest.CheckLines(t, "the requests", inFirstColumn(t, guide, "## Control"), slices.Sorted(slices.Values(requests)))

	var keys []string
	for field := range reflect.TypeFor[sandbox.Fault]().Fields() {
		keys = append(keys, strings.ToLower(regexp.MustCompile(`(.)([A-Z])`).ReplaceAllString(field.Name, "${1}_$2")))
	}
	egresstest.CheckLines(t, "the keys of a fault", inFirstColumn(t, guide, "### Faults"), slices.Sorted(slices.Values(keys)))
	if fault := `{"api":{"status":503,"latency":"1ms","retry_after":"7","body":"{}"}}`; !setFaults(t, server.URL, fault) {
		t.Errorf("a fault with the keys of the guide, %s, is refused", fault)
	}
}

// setFaults reports whether the sandbox at address takes faults.
func setFaults(t *testing.T, address, faults string) bool {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, address+"/sandbox/faults", strings.NewReader(faults))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := egresstest.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusNoContent
}

// inFirstColumn returns the texts in backquotes in the first column of the first table
// under a heading, sorted.
func inFirstColumn(t *testing.T, text, heading string) []string {
	t.Helper()
	_, section, found := strings.Cut(text, "\n"+heading+"\n")
	_, table, isTable := strings.Cut(section, "\n|---")
	if !found || !isTable {
		t.Fatalf("there is no table under %s", heading)
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var names []string
	for row := range strings.Lines(table) {
		if cells := strings.Split(row, "|"); len(cells) > 2 && strings.HasPrefix(row, "|") {
			for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
				names = append(names, name[1])
			}
		}
	}
	slices.Sort(names)
	return names
}
