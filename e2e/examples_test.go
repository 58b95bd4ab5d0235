package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestExamplesLoad(t *testing.T) {
	paths, err := filepath.Glob("../examples/*/Caddyfile")
	if err != nil || len(paths) == 0 {
		t.Fatalf("examples: %v, error %v", paths, err)
	}
	for _, path := range paths {
		t.Run(path, func(t *testing.T) {
			text := egresstest.ReadText(t, path)
			if strings.Contains(text, "{$CALLERS}") {
				setUpExample(t, filepath.Base(filepath.Dir(path)))
			}
			if strings.Contains(text, "{$SECRETS}") {
				setUpDeployment(t)
			}
			egresstest.CheckCaddyfile(t, text)
		})
	}
}

func TestSandboxExample(t *testing.T) {
	var replace []string
	addrs := make(map[string]string)
	for _, port := range []string{"8080", "9001", "9002"} {
		addrs[port] = egresstest.FreeAddr(t)
		replace = append(replace, ":"+port, ":"+egresstest.Port(addrs[port]))
	}
	runExample(t, "../examples/sandbox/Caddyfile", replace...)
	base := "http://localhost:" + egresstest.Port(addrs["8080"])

	// the token endpoints are in the same Caddy, and may have come up last
	egresstest.Eventually(t, "both APIs", func() bool {
		understory, _ := getFrom(t, base+"/understory/v1/me")
		voucherify, _ := getFrom(t, base+"/voucherify/v1/vouchers")
		return understory == http.StatusOK && voucherify == http.StatusOK
	})
	if status, body := getFrom(t, base+"/v1/me"); status != http.StatusNotFound || body == "" {
		t.Errorf("a path without a route is answered %d %q, want 404 and a hint", status, body)
	}

	if status, body := getFrom(t, base+"/voucherify/v1/vouchers/a%2Fb%20c"); status != http.StatusOK || !strings.Contains(body, `"code":"a/b c"`) {
		t.Errorf("an escaped path is answered %d %s", status, body)
	}

	// what the documents show
	readme, answers := egresstest.ReadText(t, "../README.md"), egresstest.ReadText(t, "../docs/reference/answers.md")
	for _, url := range []string{base + "/understory/v1/me", "http://" + addrs["9001"] + "/v1/me"} {
		if _, body := getFrom(t, url); !strings.Contains(readme, "\n"+body+"\n") {
			t.Errorf("the README does not show the answer of %s: %s", url, body)
		}
	}
	resp, err := egresstest.Client.Post(base+"/voucherify/v1/oauth/token", "application/x-www-form-urlencoded", strings.NewReader("grant_type=client_credentials"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	for _, line := range []string{"HTTP/1.1 " + resp.Status, "Proxy-Status: " + resp.Header.Get("Proxy-Status"), string(body)} {
		if !strings.Contains(answers, "\n"+line+"\n") {
			t.Errorf("docs/reference/answers.md does not show the gateway's answer: %s", line)
		}
	}
}

// Who tries the quick start sees no warnings that are not about anything.
func TestSandboxExampleWarnsOfNothing(t *testing.T) {
	text := egresstest.ReadText(t, "../examples/sandbox/Caddyfile")
	gateway := egresstest.FreeAddr(t)
	for port, addr := range map[string]string{"8080": gateway, "9001": egresstest.FreeAddr(t), "9002": egresstest.FreeAddr(t)} {
		text = strings.ReplaceAll(text, ":"+port, ":"+egresstest.Port(addr))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := egresstest.CaddyCommand(ctx, t.TempDir(), "run", "--config", writeConfig(t, "Caddyfile", strings.Replace(text, "auto_https off", "auto_https off\n\tadmin "+egresstest.FreeAddr(t), 1)))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines, tokens := bufio.NewScanner(stderr), 0
	for lines.Scan() {
		var line struct{ Level, Msg, Logger string }
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			t.Errorf("logged %s: %v", lines.Text(), err)
		}
		if line.Level == "warn" && !strings.HasPrefix(line.Msg, "exiting") || line.Level == "error" {
			t.Errorf("logged %s", lines.Text())
		}
		if line.Msg != "serving initial configuration" {
			continue
		}
		for _, path := range []string{"/understory/v1/me", "/voucherify/v1/vouchers"} { // so that both have a token
			egresstest.Eventually(t, path, func() bool {
				status, _ := getFrom(t, "http://"+gateway+path)
				return status == http.StatusOK
			})
			tokens++
		}
		cancel()
	}
	_ = cmd.Wait()
	if tokens != 2 {
		t.Errorf("%d APIs were called, want 2", tokens)
	}
}

// Where the API cannot be reached, examples answer with a body of their own.
func TestExamplesSayThatTheAPIIsDown(t *testing.T) {
	_, tokens := egresstest.NewSandboxFor(t, "understory", egresstest.Secret, egresstest.Secret)
	_, api := egresstest.NewSandboxFor(t, "voucherify", egresstest.Secret, egresstest.Secret)
	nowhere := egresstest.FreeAddr(t)
	for name, test := range map[string]struct {
		path    string
		want    string
		replace []string
	}{
		"understory": {
			"/understory/v1/me",
			`{"code":"api_unreachable","message":"the gateway could not connect to the API"}`,
			[]string{"egress understory {", "egress understory http://" + nowhere + " {\ntoken_url " + tokens.URL + "/oauth2/token"},
		},
		"voucherify": {
			"/v1/vouchers",
			`{"code":502,"key":"api_unreachable","message":"the gateway could not connect to the API"}`,
			[]string{
				"egress voucherify {", "egress voucherify " + api.URL + " {\nto " + nowhere + "\napi_hosts " + nowhere,
				"region eu", "# region eu",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, port, _ := net.SplitHostPort(egresstest.FreeAddr(t))
			runExample(t, "../examples/"+name+"/Caddyfile", append(test.replace, ":8080", ":"+port, "[::1]", "")...)
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
	text := strings.NewReplacer(replace...).Replace(egresstest.ReadText(t, path))
	options := "{\n\tadmin off\n\tpersist_config off\n"
	if !strings.Contains(text, "format filter") { // else it has a log of its own
		options += "\tlog {\n\t\toutput discard\n\t}\n"
	}
	if rest, found := strings.CutPrefix(withoutComments(text), "{\n"); found {
		text = options + rest
	} else {
		text = options + "}\n" + text
	}
	config := egresstest.AdaptCaddyfile(t, string(caddyfile.Format([]byte(egresstest.Provide(t, text)))))
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
	resp, err := egresstest.Client.Get(url)
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
