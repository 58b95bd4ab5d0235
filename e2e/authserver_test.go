package e2e_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// authServerDir holds oidc-provider, pinned, and a script that runs it.
const authServerDir = "../testdata/oidc-provider"

// authServer is a real authorization server, in a process of its own that can be
// killed, stopped and started again at the same address.
type authServer struct {
	t        *testing.T
	node     string
	address  string
	lifetime time.Duration // of its tokens
	config   string        // file of what else it has; empty: one client with a secret
	cmd      *exec.Cmd     // nil while it does not run
	stdin    io.Closer     // it ends with that
}

// startAuthServer starts an authorization server that issues tokens of lifetime.
func startAuthServer(t *testing.T, lifetime time.Duration) *authServer {
	t.Helper()
	s := newAuthServer(t, lifetime)
	s.start()
	return s
}

// newAuthServer returns an authorization server that does not run yet.
func newAuthServer(t *testing.T, lifetime time.Duration) *authServer {
	t.Helper()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	node := requireClient(t, "node", "install Node.js and run: npm ci --prefix "+authServerDir, func(string) error {
		_, err := os.Stat(filepath.Join(authServerDir, "node_modules", "oidc-provider", "package.json"))
		return err
	})
	s := &authServer{t: t, node: node, address: egresstest.UnreservedAddr(t), lifetime: lifetime}
	t.Cleanup(func() {
		if s.cmd != nil {
			s.kill()
		}
	})
	return s
}

// start starts the server and waits until it listens. Somebody's outgoing
// connection may have its port meanwhile, for a moment.
func (s *authServer) start() {
	s.t.Helper()
	egresstest.Eventually(s.t, "the authorization server", s.tryStart)
}

func (s *authServer) tryStart() bool {
	s.t.Helper()
	cmd := exec.CommandContext(s.t.Context(), s.node, "server.mjs", egresstest.Port(s.address), fmt.Sprint(s.lifetime.Seconds()))
	cmd.Dir = authServerDir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.t.TempDir(), "CLIENT_SECRET=" + egresstest.Secret, "CONFIG=" + s.config}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd, s.stdin = cmd, stdin
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if line == "listening\n" {
		return true
	}
	s.kill()
	s.t.Logf("the authorization server does not start: %q, %v\n%s", line, err, &stderr)
	return false
}

// kill ends the server as kill -9 does.
func (s *authServer) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.stdin.Close()
	s.cmd = nil
}

// signal stops the server, or has it go on.
func (s *authServer) signal(signal syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(signal); err != nil {
		s.t.Fatal(err)
	}
}

// authServerGateway is a gateway that takes its tokens from an authServer.
type authServerGateway struct {
	*egresstest.Gateway
	t     *testing.T
	api   *egresstest.Recorder
	admin egresstest.Admin
}

// startGateway starts a gateway that takes its tokens from s, which has so long to
// answer it.
func (s *authServer) startGateway(timeout time.Duration) *authServerGateway {
	s.t.Helper()
	admin, option := egresstest.NewAdmin(s.t)
	g := &authServerGateway{t: s.t, api: egresstest.NewRecorder(s.t), admin: admin}
	g.Gateway = egresstest.StartWatched(s.t, "egress real", egresstest.WithGlobal(option+fmt.Sprintf(`egress {
		credential real oauth2 %s {
			token_url %[2]s/token
			revocation_url %[2]s/token/revocation
			introspection_url %[2]s/token/introspection
			client_id gateway
			client_secret {env.%[3]s}
			scopes orders.read
			token_timeout %[4]s
		}
	}`, g.api.URL, "http://"+s.address, egresstest.SecretVariable, timeout)))
	g.waitForAPI()
	return g
}

// waitForAPI waits for an answer of the API and returns how long that took.
func (g *authServerGateway) waitForAPI() time.Duration {
	g.t.Helper()
	start := time.Now()
	egresstest.Eventually(g.t, "an answer of the API", func() bool {
		resp, _ := g.Get("/v1/x")
		return resp.StatusCode == http.StatusOK
	})
	return time.Since(start)
}

// refresh asks for another token through the admin API, and returns the status
// of the answer.
func (g *authServerGateway) refresh() int {
	g.t.Helper()
	resp, _ := g.admin.Ask(g.t, http.MethodPost, "/egress/tokens/real/refresh")
	return resp.StatusCode
}

// refreshed refreshes the token of a server that is back, which may still take its
// time.
func (g *authServerGateway) refreshed() {
	g.t.Helper()
	egresstest.Eventually(g.t, "a refresh from the server that is back", func() bool { return g.refresh() == http.StatusOK })
}

// checkServed checks that every request was served that was answered before
// until or sent after back, and that the others were told why not.
func checkServed(t *testing.T, samples []sample, until, back time.Time) {
	t.Helper()
	served := 0
	for _, s := range samples {
		switch {
		case s.resp.StatusCode == http.StatusOK:
			served++
		case s.answered().Before(until), s.sent.After(back):
			t.Fatalf("answered %d %s, %v before the token expired and %v after there was another", s.resp.StatusCode, s.body, until.Sub(s.answered()), s.sent.Sub(back))
		default:
			if egresstest.CheckNoToken(t, s.resp, s.body, http.StatusServiceUnavailable); t.Failed() {
				return
			}
		}
	}
	t.Logf("%d of %d requests were served", served, len(samples))
}

func TestAuthorizationServer(t *testing.T) {
	s := startAuthServer(t, time.Minute)
	g := s.startGateway(10 * time.Second)

	resp, body := g.admin.Ask(t, http.MethodPost, "/egress/tokens/real/introspect")
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"active":true`) || !strings.Contains(body, `"scope":"orders.read"`) {
		t.Errorf("introspection answered %d %s", resp.StatusCode, body)
	}
	if resp, body := g.admin.Ask(t, http.MethodPost, "/egress/tokens/real/revoke"); resp.StatusCode != http.StatusOK {
		t.Errorf("revocation answered %d %s", resp.StatusCode, body)
	}
	g.waitForAPI()
	var tokens []string
	for _, got := range g.api.All() {
		if token := got.Header.Get("Authorization"); !slices.Contains(tokens, token) {
			tokens = append(tokens, token)
		}
	}
	if len(tokens) != 2 || !strings.HasPrefix(tokens[0], "Bearer ") {
		t.Errorf("the API got %d tokens, want one before and one after the revocation", len(tokens))
	}
}

// Nobody notices that the authorization server is gone as long as a token lives.
func TestAuthorizationServerFailsWhileATokenLives(t *testing.T) {
	s := startAuthServer(t, time.Minute)
	g := s.startGateway(time.Second)
	f := startTraffic(t, g.Gateway)
	for range 3 {
		s.kill()
		if got := g.refresh(); got != http.StatusBadGateway {
			t.Errorf("a refresh while the server is down answered %d, want 502", got)
		}
		s.start()
		g.refreshed()
	}
	for range 2 {
		s.signal(syscall.SIGSTOP)
		if got := g.refresh(); got != http.StatusBadGateway { // after token_timeout
			t.Errorf("a refresh while the server is stopped answered %d, want 502", got)
		}
		s.signal(syscall.SIGCONT)
		g.refreshed()
	}
	checkServed(t, f.stop(), time.Now(), time.Now())
}

// Nor does it take long until they are served again where none lives any more.
func TestAuthorizationServerFailsForLongerThanATokenLives(t *testing.T) {
	for name, c := range map[string]struct{ fail, mend func(*authServer) }{
		"killed": {(*authServer).kill, (*authServer).start},
		"stopped": {
			func(s *authServer) { s.signal(syscall.SIGSTOP) },
			func(s *authServer) { s.signal(syscall.SIGCONT) },
		},
		"killed again and again": {(*authServer).kill, func(s *authServer) {
			for range 3 {
				s.start()
				s.kill()
			}
			s.start()
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := startAuthServer(t, 2*time.Second)
			g := s.startGateway(time.Second)
			f := startTraffic(t, g.Gateway)
			c.fail(s)
			expires := g.admin.Status(t, "real").Expires
			egresstest.Eventually(t, "requests that are refused", func() bool { return f.refused.Load() > 100 })
			c.mend(s)
			took := g.waitForAPI()
			back := time.Now()
			t.Logf("served again %v after the server was back", took.Round(time.Millisecond))
			if took > 10*time.Second { // the next token request is due after 4.8 s at most
				t.Errorf("served again after %v only", took)
			}
			checkServed(t, f.stop(), expires, back)
		})
	}
}
