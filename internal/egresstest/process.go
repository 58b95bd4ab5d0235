package egresstest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	egress "github.com/caddy-egress/caddy-egress"
)

const (
	// AsCaddy is the environment variable that has [Main] be Caddy's command: the
	// test binary has all that cmd/caddy has, and what else the tests are built with.
	AsCaddy = "EGRESS_TEST_AS_CADDY"

	// attached is its value for a Caddy that ends with its standard input, so that
	// none is left over when the tests are killed.
	attached = "attached"
)

// runAsCaddy runs Caddy's command, and does not return, if this process is one that
// CaddyCommand has started.
func runAsCaddy() {
	switch os.Getenv(AsCaddy) {
	case "":
		return
	case attached:
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(1)
		}()
	}
	caddycmd.Main()
	os.Exit(0)
}

// CaddyCommand returns the command `caddy <args...>`, whose files are below home.
func CaddyCommand(ctx context.Context, home string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append(os.Environ(), AsCaddy+"=1", "HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_DATA_HOME="+home)
	return cmd
}

// Process is a Caddy in a process of its own. It listens at unix sockets, so that
// many can run at a time and none finds its address taken after a restart.
type Process struct {
	// Name tells it from others.
	Name string

	// AdminAddr is the address of its admin API, as Caddy's commands take it.
	AdminAddr string

	t      testing.TB
	dir    string
	client *http.Client // of the site
	admin  *http.Client

	mu       sync.Mutex
	run      *processRun // nil while it does not run
	serving  bool
	inFlight sync.WaitGroup // requests of Try
}

// processRun is one run of a [Process].
type processRun struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed once err is set
	err   error
}

// NewProcess returns a process with a site of routes, and global options. It runs
// once it is started, until the test ends at most.
func NewProcess(t testing.TB, name, global, routes string) *Process {
	t.Helper()
	dir := shortDir(t)
	p := &Process{Name: name, AdminAddr: "unix/" + filepath.Join(dir, "admin"), t: t, dir: dir}
	p.client, p.admin = unixClient(filepath.Join(dir, "site")), unixClient(filepath.Join(dir, "admin"))
	p.Configure(global, routes)
	t.Cleanup(p.end)
	return p
}

// Configure changes what it runs when it is started the next time.
func (p *Process) Configure(global, routes string) {
	p.t.Helper()
	caddyfile := fmt.Sprintf(`{
	admin %s
	persist_config off
	auto_https off
	grace_period 5s
	log {
		output file %s/log
		format json
	}
	%s
}
http:// {
	bind unix/%s/site
	%s
}
`, p.AdminAddr, p.dir, global, p.dir, routes)
	if err := os.WriteFile(filepath.Join(p.dir, "Caddyfile"), []byte(caddyfile), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// unixClient returns a client that connects to a unix socket, whatever the host.
func unixClient(socket string) *http.Client {
	client := newClient()
	client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	return client
}

// Start starts it. It does not wait until it serves; see [Process.WaitFor].
func (p *Process) Start() {
	p.t.Helper()
	cmd := CaddyCommand(context.Background(), p.dir, "run", "--config", filepath.Join(p.dir, "Caddyfile"), "--adapter", "caddyfile")
	cmd.Env = append(cmd.Env, AsCaddy+"="+attached, processVariable+"="+p.Name)
	output, err := os.OpenFile(filepath.Join(p.dir, "output"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	defer output.Close()
	cmd.Stdout, cmd.Stderr = output, output
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	run := &processRun{cmd: cmd, ended: make(chan struct{})}
	go func() {
		defer stdin.Close()
		run.err = cmd.Wait()
		close(run.ended)
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.run = run
}

// WaitFor waits until path is answered with 200. From then on it serves requests
// of [Process.Try].
func (p *Process) WaitFor(path string) {
	p.t.Helper()
	p.mu.Lock()
	run := p.run
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, body, err := get(p.client, path)
		if err == nil && resp.StatusCode == http.StatusOK {
			break
		}
		select {
		case <-tick.C:
		case <-run.ended:
			p.t.Fatalf("%s ended early: %v", p.Name, run.err)
		case <-ctx.Done():
			p.t.Fatalf("%s of %s is answered %q, error %v", path, p.Name, body, err)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serving = true
}

// Kill ends it at once, whatever it does.
func (p *Process) Kill() {
	p.t.Helper()
	_ = p.exit(syscall.SIGKILL)
}

// Stop ends it gracefully, as behind a load balancer that sends it nothing more.
func (p *Process) Stop() {
	p.t.Helper()
	p.mu.Lock()
	p.serving = false
	p.mu.Unlock()
	p.inFlight.Wait()
	if err := p.exit(syscall.SIGTERM); err != nil {
		p.t.Errorf("%s: %v", p.Name, err)
	}
}

// exit sends a signal, and waits for the end of the process.
func (p *Process) exit(signal os.Signal) error {
	p.mu.Lock()
	run := p.run
	p.run, p.serving = nil, false
	p.mu.Unlock()
	if run == nil {
		return errors.New("it does not run")
	}
	_ = run.cmd.Process.Signal(signal) // that it has ended before shows in how it did
	<-run.ended
	p.client.CloseIdleConnections()
	p.admin.CloseIdleConnections()
	return run.err
}

// end ends it with the test, and looks for what it has printed that it should not.
func (p *Process) end() {
	p.mu.Lock()
	runs := p.run != nil
	p.mu.Unlock()
	if runs {
		p.Stop()
	}
	output, _ := os.ReadFile(filepath.Join(p.dir, "output"))
	log := p.Log()
	CheckLeaks(p.t, "the log of "+p.Name, log)
	CheckLeaks(p.t, "what "+p.Name+" prints", string(output))
	if bytes.Contains(output, []byte("DATA RACE")) || bytes.Contains(output, []byte("panic")) || strings.Contains(log, "panic") {
		p.t.Errorf("%s has found a data race, or panicked", p.Name)
	}
	if p.t.Failed() {
		p.t.Logf("%s has printed\n%s\nand logged\n%s", p.Name, output, log)
	}
}

// errDown says that a process has not been asked, or has been killed meanwhile.
var errDown = errors.New("the process does not serve")

// Try sends a GET with the name of the process, and pairs of further headers. The error
// is errDown if that is not a failure of the process.
func (p *Process) Try(path string, header ...string) (*http.Response, string, error) {
	p.mu.Lock()
	run, serving := p.run, p.serving
	if serving {
		p.inFlight.Add(1)
	}
	p.mu.Unlock()
	if !serving {
		return nil, "", errDown
	}
	defer p.inFlight.Done()
	resp, body, err := get(p.client, path, append(header, processHeader, p.Name)...)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil && p.run != run {
		return nil, "", errDown
	}
	return resp, body, err
}

// Get is [Process.Try] where the answer has to be 200.
func (p *Process) Get(path string) string {
	p.t.Helper()
	resp, body, err := p.Try(path)
	if err != nil || resp.StatusCode != http.StatusOK {
		p.t.Fatalf("%s of %s: %v %v %s", path, p.Name, err, resp, body)
	}
	return body
}

func get(client *http.Client, path string, header ...string) (*http.Response, string, error) {
	req, err := http.NewRequest(http.MethodGet, "http://127.0.0.1"+path, nil)
	if err != nil {
		return nil, "", err
	}
	req.Header.Set(sentHeader, time.Now().Format(time.RFC3339Nano))
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// Status returns the status of a credential, by the admin API.
func (p *Process) Status(credential string) (status egress.CredentialStatus) {
	p.t.Helper()
	resp, body, err := get(p.admin, "/egress/tokens/"+credential)
	if err == nil && resp.StatusCode == http.StatusOK {
		err = json.Unmarshal([]byte(body), &status)
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		p.t.Fatalf("status of %s at %s: %v %v %s", credential, p.Name, err, resp, body)
	}
	CheckLeaks(p.t, "the status", body)
	return status
}

// Command runs `caddy egress <args...>` for it and returns what that prints.
func (p *Process) Command(args ...string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	args = append(append([]string{"egress"}, args...), "--address", p.AdminAddr)
	output, err := CaddyCommand(ctx, p.dir, args...).CombinedOutput()
	CheckLeaks(p.t, "caddy "+strings.Join(args, " "), string(output))
	if err != nil {
		p.t.Fatalf("caddy %s: %v\n%s", strings.Join(args, " "), err, output)
	}
	return string(output)
}

// Log returns what it has logged, in all its runs.
func (p *Process) Log() string {
	log, err := os.ReadFile(filepath.Join(p.dir, "log"))
	if err != nil {
		return err.Error()
	}
	return string(log)
}

// LogLines returns the lines of the log with a message, as JSON objects.
func (p *Process) LogLines(message string) []map[string]any { return logLines(p.Log(), message) }
