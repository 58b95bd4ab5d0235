package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// mcpDir holds the official SDK of MCP, pinned, a server that wants an access
// token, and calls of a client that has none.
const mcpDir = "../testdata/mcp"

const (
	agentKey = "K3y-of-the-agent~0123456789"
	otherKey = "K3y-of-another~0123456789ab"
)

// mcpCalls is what the client prints if all is well.
var mcpCalls = []string{
	"connected to test in a session",
	"tools: add announce revoke",
	"add: 5",
	"told: hello in the answer, hello in the stream",
	"add: 7",
	"told: hello again in the answer, hello again in the stream",
	"session ended",
}

// An agent uses a remote MCP server that is behind OAuth, with nothing but its
// key of the gateway: sessions, streams in both ways, and a token that ends in
// the middle.
func TestMCPClient(t *testing.T) {
	server, g := startMCPGateway(t)

	egresstest.CheckLines(t, "the calls", server.calls(t, g.URL+"/mcp", "KEY="+agentKey), mcpCalls)

	egresstest.Eventually(t, "the end of the session at the server", func() bool { // which prints it after it has answered
		requests := server.requests(t)
		return !slices.ContainsFunc([]string{http.MethodDelete, http.MethodGet}, func(method string) bool { // and the end of its stream
			return !slices.ContainsFunc(requests, func(r mcpRequest) bool { return r.Method == method })
		})
	})
	var methods = make(map[string]int)
	rejected := 0
	for _, got := range server.requests(t) {
		methods[got.Method+" "+got.Call]++
		if got.Status == http.StatusUnauthorized {
			rejected++
		}
		for name, value := range got.Headers {
			if strings.Contains(value, agentKey) || strings.HasPrefix(name, "x-forwarded") {
				t.Errorf("%s %s has reached the server with %s", got.Method, got.Call, name)
			}
		}
		if id := got.Headers["mcp-session-id"]; (id == "") != (got.Call == "initialize") {
			t.Errorf("%s %s has reached the server with the session %q", got.Method, got.Call, id)
		}
	}
	for _, want := range []string{"POST initialize", "POST tools/list", "POST tools/call", "GET ", "DELETE "} {
		if methods[want] == 0 {
			t.Errorf("the server has seen no %q", want)
		}
	}
	if rejected != 1 {
		t.Errorf("the server has answered 401 %d times, want once, after the tokens were revoked", rejected)
	}

	lines := g.LogLines("handled request")
	replayed := 0
	for _, line := range lines {
		if line["egress_caller"] != "agent" || line["egress_credential"] != "tools" {
			t.Errorf("the access log names caller %v and credential %v", line["egress_caller"], line["egress_credential"])
		}
		if line["egress_outcome"] == "replayed" {
			replayed++
		}
	}
	if len(lines) == 0 || replayed != 1 {
		t.Errorf("the access log has %d requests, %d of them replayed, want one of those", len(lines), replayed)
	}
}

// A client that insists on OAuth looks for an authorization server where it is
// refused, and finds the gateway's own.
func TestMCPClientWithAnExchange(t *testing.T) {
	server, g := startMCPGateway(t)

	egresstest.CheckLines(t, "the calls", server.calls(t, g.URL+"/mcp", "KEY="+agentKey, "CLIENT_ID=agent"), mcpCalls)
	for _, line := range g.LogLines("handled request") {
		if line["egress_outcome"] == "forwarded" && line["egress_caller"] != "agent" {
			t.Errorf("the access log names caller %v", line["egress_caller"])
		}
	}
	if lines := server.calls(t, g.URL+"/mcp", "KEY="+otherKey, "CLIENT_ID=agent"); len(lines) != 1 || !strings.Contains(lines[0], "error: ") {
		t.Errorf("with the key of another, the client printed %q, want an error", lines)
	}
}

// A client that is not known, or has no grant, learns it from the SDK's error.
func TestMCPClientWithoutAGrant(t *testing.T) {
	server, g := startMCPGateway(t)

	for name, test := range map[string]struct{ key, status, want string }{
		"without a key":    {"", "401", "caller_unknown"},
		"with a wrong key": {agentKey + "x", "401", "caller_unknown"},
		"of another":       {otherKey, "403", "caller_not_granted"},
	} {
		lines := server.calls(t, g.URL+"/mcp", "KEY="+test.key)
		if len(lines) != 1 || !strings.HasPrefix(lines[0], "error: "+test.status+" ") || !strings.Contains(lines[0], test.want) {
			t.Errorf("%s, the client printed %q, want the error %s %s", name, lines, test.status, test.want)
		}
	}
	if got := server.requests(t); len(got) > 0 {
		t.Errorf("%d requests have reached the server", len(got))
	}
}

// startMCPGateway starts an MCP server, and a gateway to it that the agent may use.
func startMCPGateway(t *testing.T) (*mcpServer, *egresstest.Gateway) {
	t.Helper()
	server := startMCPServer(t)
	t.Setenv("AGENT_KEY", agentKey)
	t.Setenv("OTHER_KEY", otherKey)
	g := egresstest.StartWatched(t, `egress_token /oauth2/token
	handle /mcp {
		egress tools {
			grant agent
		}
	}
	respond 404`, egresstest.WithGlobal(fmt.Sprintf(`egress {
		credential tools oauth2 %[1]s {
			token_url %[1]s/token
			client_id gateway
			client_secret {env.%[2]s}
			resource %[1]s/mcp
		}
		caller agent {
			key {env.AGENT_KEY}
		}
		caller other {
			key {env.OTHER_KEY}
		}
	}`, "http://"+server.address, egresstest.SecretVariable)))
	return server, g
}

// mcpServer is an MCP server in a process of its own.
type mcpServer struct {
	node, address string

	mu  sync.Mutex
	log bytes.Buffer // what it has printed
}

// startMCPServer starts an MCP server, if Node.js and the SDK are there.
func startMCPServer(t *testing.T) *mcpServer {
	t.Helper()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	node := requireClient(t, "node", "install Node.js and run: npm ci --prefix "+mcpDir, func(string) error {
		_, err := os.Stat(filepath.Join(mcpDir, "node_modules", "@modelcontextprotocol", "sdk", "package.json"))
		return err
	})
	s := &mcpServer{node: node}
	// somebody's outgoing connection may have the port meanwhile
	egresstest.Eventually(t, "the MCP server", func() bool {
		s.address = egresstest.UnreservedAddr(t)
		return s.start(t)
	})
	return s
}

// start reports whether the server listens.
func (s *mcpServer) start(t *testing.T) bool {
	cmd := exec.CommandContext(t.Context(), s.node, "server.mjs", egresstest.Port(s.address))
	cmd.Dir = mcpDir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "CLIENT_SECRET=" + egresstest.Secret}
	stdin, err := cmd.StdinPipe() // it ends with that
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stdout)
	if line, err := lines.ReadString('\n'); line != "listening\n" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Logf("the MCP server does not start: %q, %v\n%s", line, err, &stderr)
		return false
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(s, lines)
	}()
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
	})
	return true
}

// Write implements io.Writer, for what the server prints.
func (s *mcpServer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

// mcpRequest is what the server prints of a request.
type mcpRequest struct {
	Method, Call string
	Status       int
	Headers      map[string]string
}

// requests returns what the server has been asked.
func (s *mcpServer) requests(t *testing.T) (requests []mcpRequest) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range strings.Lines(s.log.String()) {
		if !strings.HasSuffix(line, "\n") {
			break // the rest of it is still to come
		}
		var got mcpRequest
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatalf("the MCP server printed %q: %v", line, err)
		}
		requests = append(requests, got)
	}
	return requests
}

// calls runs the client with variables of its environment, and returns what it
// prints.
func (s *mcpServer) calls(t *testing.T, url string, env ...string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.node, "client.mjs", url)
	cmd.Dir = mcpDir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...)
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, _ := cmd.Output() // it prints an error of its own, and ends with 1
	if ctx.Err() != nil || stderr.Len() > 0 {
		t.Fatalf("the client ended with %v:\n%s%s", ctx.Err(), stdout, &stderr)
	}
	return strings.Split(strings.TrimSuffix(string(stdout), "\n"), "\n")
}
