package e2e_test

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// The example runs as its comments say: three gateways have one token, also when
// one of them is killed and started anew.
func TestFleetExample(t *testing.T) {
	e := startFleetExample(t)
	egresstest.Eventually(t, "a token at each gateway", func() bool {
		return e.from("2021") != "" && e.from("2022") != "" && e.from("2023") != ""
	})
	egresstest.Eventually(t, "requests at each gateway", func() bool { return e.get() == http.StatusOK && len(e.gateways) == 3 })
	requests := e.tokenRequests()
	// one more if the first takes longer than a second, as it may on a slow machine; with
	// the race detector, each gateway may be that slow
	if requests > 2 && !raceDetector {
		t.Errorf("%d token requests, want one", requests)
	} else if requests > 3 {
		t.Errorf("%d token requests of 3 gateways", requests)
	}

	killed := e.process("8081")
	if err := syscall.Kill(killed, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	egresstest.Eventually(t, "the next run of the gateway", func() bool {
		if status := e.get(); status != http.StatusOK {
			t.Errorf("while a gateway starts anew, a request is answered %d", status)
		}
		return e.process("8081") != killed && e.from("2021") != ""
	})
	if from := e.from("2021"); from != "shared" && !raceDetector {
		t.Errorf("a gateway that was started anew has a token that is %q", from)
	}
	if again := e.tokenRequests(); again > requests+1 { // a token lives for a minute
		t.Errorf("%d token requests after a gateway was started anew, want %d", again, requests)
	}
}

func TestFleetExampleIsFormatted(t *testing.T) {
	paths, err := filepath.Glob("../examples/fleet/*.caddyfile")
	if err != nil || len(paths) != 2 {
		t.Fatalf("%v, error %v", paths, err)
	}
	for _, path := range paths {
		if line, different := caddyfile.FormattingDifference(path, []byte(egresstest.ReadText(t, path))); different {
			t.Errorf("%s, line %d is not as `caddy fmt` has it", path, line.Line)
		}
	}
}

// fleetExample is the example with other ports.
type fleetExample struct {
	t        *testing.T
	ports    map[string]string // by those in its files
	key      string
	gateways map[string]bool // those that have answered, by port

	mu        sync.Mutex
	processes map[string]int // of the gateways, by port
}

// startFleetExample runs examples/fleet/run.sh until the test ends.
func startFleetExample(t *testing.T) *fleetExample {
	t.Helper()
	requireClient(t, "bash", "install bash", func(string) error { return nil })
	e := &fleetExample{t: t, ports: make(map[string]string), gateways: make(map[string]bool), processes: make(map[string]int)}
	var replace []string
	for _, port := range []string{"8080", "8081", "8082", "8083", "2021", "2022", "2023", "9001"} {
		e.ports[port] = egresstest.Port(egresstest.FreeAddr(t))
		replace = append(replace, port, e.ports[port])
	}
	root := t.TempDir()
	directory := filepath.Join(root, "examples", "fleet")
	if err := os.MkdirAll(directory, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Caddyfile", "balancer.caddyfile", "api.caddyfile", "run.sh"} {
		text := strings.NewReplacer(replace...).Replace(egresstest.ReadText(t, "../examples/fleet/"+name))
		if err := os.WriteFile(filepath.Join(directory, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	cmd := exec.CommandContext(t.Context(), "bash", filepath.Join(directory, "run.sh"))
	cmd.Env = append(os.Environ(), egresstest.AsCaddy+"=1", "CADDY="+os.Args[0], "HOME="+root, "XDG_DATA_HOME="+root, "XDG_CONFIG_HOME="+root, "TMPDIR="+root)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // it ends what it has started
	cmd.WaitDelay = 20 * time.Second
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	key := make(chan string, 1)
	var reading sync.WaitGroup
	reading.Go(func() {
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			if m := fleetGateway.FindStringSubmatch(lines.Text()); m != nil {
				e.note(m[1], m[2])
			}
			if m := fleetKey.FindStringSubmatch(lines.Text()); m != nil {
				key <- m[1]
			}
		}
	})
	t.Cleanup(func() {
		_ = cmd.Cancel()
		reading.Wait()
		_ = cmd.Wait()
	})
	select {
	case e.key = <-key:
	case <-time.After(time.Minute):
		t.Fatal("run.sh does not print the key")
	}
	return e
}

var (
	fleetGateway = regexp.MustCompile(`^gateway at port (\d+), .*: process (\d+)$`)
	fleetKey     = regexp.MustCompile(`Authorization: Bearer ([\w-]+)'`)
)

func (e *fleetExample) note(port, process string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.processes[port], _ = strconv.Atoi(process)
}

// process returns the process ID of the gateway at a port.
func (e *fleetExample) process(port string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.processes[e.ports[port]]
}

// get calls the API through the load balancer, and returns the status; 0: there is
// no answer.
func (e *fleetExample) get() (status int) {
	req, err := http.NewRequestWithContext(e.t.Context(), http.MethodGet, "http://127.0.0.1:"+e.ports["8080"]+"/v1/me", nil)
	if err != nil {
		e.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+e.key)
	resp, err := egresstest.Client.Do(req)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	if gateway := resp.Header.Get("X-Gateway"); gateway != "" {
		e.gateways[gateway] = true
	}
	return resp.StatusCode
}

// tokenRequests returns how many there were at the API.
func (e *fleetExample) tokenRequests() int {
	_, body := getFrom(e.t, "http://127.0.0.1:"+e.ports["9001"]+"/sandbox/stats")
	var stats struct {
		TokenRequests int `json:"token_requests"`
	}
	if err := json.Unmarshal([]byte(body), &stats); err != nil {
		e.t.Fatal(err)
	}
	return stats.TokenRequests
}

// from returns who has obtained the token of a gateway, by its admin API; empty
// while it does not answer.
func (e *fleetExample) from(adminPort string) string {
	resp, err := egresstest.Client.Get("http://localhost:" + e.ports[adminPort] + "/egress/tokens")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var all []struct {
		TokenFrom string `json:"token_from"`
	}
	if json.NewDecoder(resp.Body).Decode(&all) != nil || len(all) != 1 {
		return ""
	}
	return all[0].TokenFrom
}
