package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// The examples whose comments say what each of their commands is answered.

func TestCallersExample(t *testing.T) {
	e := startCallersExample(t, "callers", "shop", "8080", "8081", "8443", "9002")
	e.checkCommands()

	// the guide shows what is answered
	guide := egresstest.ReadText(t, "../docs/guides/callers.md")
	for key, body := range e.bodies {
		if !strings.Contains(guide, "\n"+body+"\n") {
			t.Errorf("docs/guides/callers.md does not show the answer %s: %s", key, body)
		}
	}

	var callers []string
	for _, line := range e.accessLog() {
		caller, _ := line["egress_caller"].(string)
		callers = append(callers, caller)
	}
	slices.Sort(callers)
	egresstest.CheckLines(t, "the callers in the access log", slices.Compact(callers), []string{"", "agent", "back-office", "nightly", "reports", "shop"})
}

// A key is replaced by the commands of the example, without a reload.
func TestCallersExampleRotatesAKey(t *testing.T) {
	e := startCallersExample(t, "callers", "shop", "8080", "8081", "8443", "9002")
	_, rotate, found := strings.Cut(e.text, "# Rotate:")
	if !found {
		t.Fatal("the example does not say how to replace a key")
	}
	rotate, _, _ = strings.Cut(rotate, "# More:")
	commands := regexp.MustCompile(`(?m)^# +((?:cp|\(umask|rm) .*)$`).FindAllStringSubmatch(rotate, -1)
	if len(commands) != 3 {
		t.Fatalf("%d commands replace a key, want three: %q", len(commands), commands)
	}
	status := func(key string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, e.at("http://127.0.0.1:8080/v1/vouchers/BLCKFRDY"), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := egresstest.Client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}

	before := e.key("shop")
	e.bash(commands[0][1])
	e.bash(commands[1][1])
	after := e.key("shop")
	egresstest.Eventually(t, "both keys", func() bool {
		return before != after && status(before) == http.StatusOK && status(after) == http.StatusOK
	})
	e.bash(commands[2][1])
	egresstest.Eventually(t, "the end of the key before", func() bool {
		return status(before) == http.StatusUnauthorized && status(after) == http.StatusOK
	})
}

func TestAgentsExample(t *testing.T) {
	e := startCallersExample(t, "agents", "agent", "8080", "9002")
	e.checkCommands()
	for _, line := range e.accessLog() {
		if line["egress_caller"] != "agent" {
			t.Errorf("the access log names %v", line["egress_caller"])
		}
	}
}

func TestAgentsExampleWithMCP(t *testing.T) {
	server := startMCPServer(t)
	e := startCallersExample(t, "agents", "agent", "8080", "9002", "9003="+egresstest.Port(server.address))
	for name, env := range map[string][]string{
		"with a key":   {"KEY=" + e.key("agent")},
		"with a token": {"KEY=" + e.key("agent"), "CLIENT_ID=agent"},
	} {
		egresstest.CheckLines(t, "the calls "+name, server.calls(t, e.at("http://127.0.0.1:8080/mcp"), env...), mcpCalls)
	}
}

// The guide has what `caddy egress access` prints, as it is.
func TestGuideShowsWhoMayDoWhat(t *testing.T) {
	t.Setenv("CALLERS", "/run/callers")
	result := runCaddy(t, "egress", "access", "--config", "../examples/callers/Caddyfile")
	if strings.Contains(result.stderr, "in which callers may send keys") {
		t.Errorf("logs with keys are warned about, although they are filtered:\n%s", result.stderr)
	}
	lines := strings.Split(strings.TrimRight(result.stdout, "\n"), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	_, shown, found := strings.Cut(egresstest.ReadText(t, "../docs/guides/callers.md"), "$ CALLERS=/run/callers caddy egress access --config examples/callers/Caddyfile\n")
	if !found {
		t.Fatal("docs/guides/callers.md does not show the command")
	}
	shown, _, _ = strings.Cut(shown, "\n```")
	egresstest.CheckLines(t, "what docs/guides/callers.md shows of the command", strings.Split(shown, "\n"), lines)
}

// callersExample is an example that runs, with keys and certificates of its own.
type callersExample struct {
	t       *testing.T
	text    string
	ports   *strings.Replacer
	keys    string            // the directory of the keys
	log     string            // the file of all logs
	bodies  map[string]string // of the gateway's own answers, by key
	scratch string
}

// startCallersExample runs an example, with its ports replaced, by others that may be
// given as <port>=<other port>, and waits until it serves a caller that has a key.
func startCallersExample(t *testing.T, name, caller string, ports ...string) *callersExample {
	t.Helper()
	e := &callersExample{
		t: t, text: egresstest.ReadText(t, "../examples/"+name+"/Caddyfile"),
		keys: setUpExample(t, name), bodies: make(map[string]string), scratch: t.TempDir(),
	}
	e.log = filepath.Join(e.scratch, "log")
	var replace []string
	for _, port := range ports {
		port, other, found := strings.Cut(port, "=")
		if !found {
			other = egresstest.Port(egresstest.FreeAddr(t))
		}
		replace = append(replace, ":"+port, ":"+other)
	}
	e.ports = strings.NewReplacer(replace...)
	replace = append(replace,
		"format filter", "output file "+e.log+"\nformat filter",
		"limit 20/s", "limit 2000/s", // which a test that waits uses up
		"limit 5/m", "limit 5/h") // one more comes back after 12 seconds, which a slow machine may take
	runExample(t, "../examples/"+name+"/Caddyfile", replace...)

	// its token endpoint is in the same Caddy, and may have come up last
	egresstest.Eventually(t, "the API", func() bool {
		return strings.HasPrefix(e.bash(e.curl(`-H 'X-Tenant: acme' -u any:$(cat $CALLERS/`+caller+`) http://127.0.0.1:8080/v1/vouchers/BLCKFRDY`)), "200 ")
	})
	return e
}

// setUpExample makes keys and what else an example reads, by its setup.sh or that of
// callers, and returns the directory of the keys, which is in the environment, too.
func setUpExample(t *testing.T, name string) string {
	t.Helper()
	requireClient(t, "openssl", "install openssl 3", func(openssl string) error { return exec.CommandContext(t.Context(), openssl, "version").Run() })
	requireClient(t, "curl", "install curl", func(string) error { return nil })
	directory := t.TempDir()
	t.Setenv("CALLERS", directory)
	t.Setenv("TENANTS", filepath.Join(t.TempDir(), "tenants"))
	t.Setenv("CADDY", os.Args[0])
	script := "../examples/" + name + "/setup.sh"
	if _, err := os.Stat(script); err != nil {
		script = "../examples/callers/setup.sh"
	}
	cmd := exec.CommandContext(t.Context(), script)
	cmd.Env = append(os.Environ(), egresstest.AsCaddy+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return directory
}

// at returns a text of the example with the ports that it has here.
func (e *callersExample) at(text string) string { return e.ports.Replace(text) }

// key returns the key of a caller.
func (e *callersExample) key(name string) string {
	return strings.TrimSpace(egresstest.ReadText(e.t, filepath.Join(e.keys, name)))
}

// curl returns a command that prints the status of each answer, and leaves the
// last headers and body in files.
func (e *callersExample) curl(args string) string {
	return "curl --silent --show-error --noproxy '*' --max-time 20 --dump-header " + e.scratch + "/header --output " + e.scratch + "/body --write-out '%{http_code} ' " + e.at(args)
}

// bash runs a command in the directory of the repository.
func (e *callersExample) bash(command string) string {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), time.Minute)
	defer cancel()
	command = strings.ReplaceAll(command, "go run ./cmd/caddy", egresstest.AsCaddy+"=1 "+os.Args[0])
	cmd := exec.CommandContext(ctx, "bash", "-c", command)
	cmd.Dir = ".."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		e.t.Fatalf("%s: %v\n%s%s", command, err, out, &stderr)
	}
	return string(out)
}

// checkCommands runs the commands in the comments of the example, each of which is
// followed by what is answered: the statuses, and the key of the gateway's own answer.
func (e *callersExample) checkCommands() {
	e.t.Helper()
	commands := regexp.MustCompile(`(?m)^# +curl (.*)\n# +([2-5]\d\d.*)$`).FindAllStringSubmatch(e.text, -1)
	if all := regexp.MustCompile(`(?m)^# +curl `).FindAllString(e.text, -1); len(commands) == 0 || len(commands) != len(all) {
		e.t.Fatalf("%d of %d commands say what is answered", len(commands), len(all))
	}
	for _, command := range commands {
		got := strings.TrimSpace(e.bash(e.curl(command[1])))
		header := egresstest.ReadText(e.t, filepath.Join(e.scratch, "header"))
		if own := regexp.MustCompile(`caddy-egress; error=\w+; details="(\w+)"`).FindAllStringSubmatch(header, -1); own != nil {
			key := own[len(own)-1][1]
			got += " " + key
			if e.bodies[key] == "" {
				e.bodies[key] = egresstest.ReadText(e.t, filepath.Join(e.scratch, "body"))
			}
		}
		if got != command[2] {
			e.t.Errorf("curl %s is answered %s, the example says %s", command[1], got, command[2])
		}
	}
}

// accessLog returns the lines of the access log. No log may show a key.
func (e *callersExample) accessLog() (lines []map[string]any) {
	e.t.Helper()
	content := egresstest.ReadText(e.t, e.log)
	entries, err := os.ReadDir(e.keys)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, entry := range entries {
		if name := entry.Name(); !strings.Contains(name, ".") && strings.Contains(content, e.key(name)) {
			e.t.Errorf("the log shows the key of %s", name)
		}
	}
	for line := range strings.Lines(content) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			e.t.Fatal(err)
		}
		if fields["egress_outcome"] != nil {
			lines = append(lines, fields)
		}
	}
	if len(lines) == 0 {
		e.t.Error("the access log has no request of the gateway")
	}
	return lines
}
