package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// Some clients offer HTTP/2 over plain http, by an Upgrade to h2c. A server may
// ignore that (RFC 9110 §7.8). The offer is not for the API, which must not see it.

func TestJavaHTTPClient(t *testing.T) {
	// a JRE has no javac, and cannot launch a source file
	java := requireClient(t, "java", "install a JDK, such as Debian's default-jdk-headless", func(string) error {
		_, err := exec.LookPath("javac")
		return err
	})
	checkOfferOfHTTP2(t, func(url string) []string {
		out := runClient(t, java, "-XX:TieredStopAtLevel=1", "../testdata/java/Calls.java", url)
		return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	})
}

func TestCurlWithHTTP2(t *testing.T) {
	curl := requireClient(t, "curl", "install curl", func(curl string) error {
		version, err := exec.CommandContext(t.Context(), curl, "--version").Output()
		if err == nil && !bytes.Contains(version, []byte(" HTTP2 ")) {
			err = errors.New("it is built without HTTP/2")
		}
		return err
	})
	checkOfferOfHTTP2(t, func(url string) (lines []string) {
		common := []string{"--silent", "--show-error", "--http2", "--noproxy", "*", "--max-time", "15", "--write-out", " %{method} %{http_code}", url}
		for _, data := range [][]string{nil, {"--data-binary", "of the POST"}, nil} {
			lines = append(lines, runClient(t, curl, append(common, data...)...))
		}
		return lines
	})
}

// checkOfferOfHTTP2 checks what becomes of the calls of a client that offers
// HTTP/2: a GET, a POST and another GET. It calls the API at url, and returns
// the body, method and status of each.
func checkOfferOfHTTP2(t *testing.T, calls func(url string) []string) {
	t.Helper()
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "body %q", body)
	}
	g := egresstest.StartWatched(t, egresstest.Egress(api.URL, endpoint.URL, ""))

	egresstest.CheckLines(t, "the calls", calls(g.URL+"/v1/x"), []string{
		`body "" GET 200`,
		`body "of the POST" POST 200`,
		`body "" GET 200`,
	})
	if !strings.Contains(g.Log(), `"Upgrade":["h2c"]`) || !strings.Contains(g.Log(), `"Http2-Settings":[`) {
		t.Error("the client has not offered HTTP/2, the test shows nothing")
	}
	if api.Count() != 3 {
		t.Errorf("%d requests have reached the API, want 3", api.Count())
	}
	for _, got := range api.All() {
		if values := got.Header["Authorization"]; len(values) != 1 || values[0] != "Bearer "+egresstest.Token(1) {
			t.Errorf("%s has reached the API with Authorization %q", got.Method, values)
		}
		for _, name := range []string{"Upgrade", "Http2-Settings", "Connection"} {
			if values := got.Header.Values(name); len(values) > 0 {
				t.Errorf("%s has reached the API with %s %q", got.Method, name, values)
			}
		}
	}
}

// requireClient returns the path of a program, if it is there and usable says
// so. If not, it skips the test, or fails it where EGRESS_REQUIRE_CLIENTS=1.
func requireClient(t *testing.T, program, remedy string, usable func(path string) error) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		err = usable(path)
	}
	if err != nil {
		reason := fmt.Sprintf("%s cannot be used: %v; %s", program, err, remedy)
		if os.Getenv("EGRESS_REQUIRE_CLIENTS") == "1" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	return path
}

// runClient runs a program that knows no secret, and returns what it prints.
func runClient(t *testing.T, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()} // and no HTTP_PROXY
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s ended with %v (%v):\n%s%s", program, err, ctx.Err(), stdout, &stderr)
	}
	return string(stdout)
}
