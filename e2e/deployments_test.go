package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// These run the Caddyfiles of the deployments in examples. What is around them is
// checked by examples/check.sh.

// setUpDeployment writes what the Caddyfiles of deployments read: the secrets below
// $SECRETS, and certificates below $CERTIFICATES. It returns that directory and the
// authority of the certificates.
func setUpDeployment(t *testing.T) (directory string, authority *egresstest.Authority) {
	t.Helper()
	directory, authority = t.TempDir(), egresstest.NewAuthority(t)
	t.Setenv("SECRETS", directory)
	t.Setenv("CERTIFICATES", directory)
	certificate, key := authority.ServerFiles(t, "localhost", "gateway.example.com", "127.0.0.1")
	for name, content := range map[string]string{
		"app_id": egresstest.Secret, "app_token": egresstest.Secret, "web-shop": egresstest.Key("web-shop"),
		"gateway.pem": egresstest.ReadText(t, certificate), "gateway.key": egresstest.ReadText(t, key),
		"callers-ca.pem": egresstest.ReadText(t, authority.File),
	} {
		if err := os.WriteFile(filepath.Join(directory, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return directory, authority
}

// deployment is a Caddy in a process of its own, with the Caddyfile of an example.
type deployment struct {
	t         *testing.T
	dir       string
	caddyfile string
	cmd       *exec.Cmd
}

// newDeployment returns one with the Caddyfile at path, in which pairs of texts are
// replaced, each of which has to be there.
func newDeployment(t *testing.T, path string, replace ...string) *deployment {
	t.Helper()
	text := egresstest.ReadText(t, path)
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(text, replace[i]) {
			t.Fatalf("%s has no %q", path, replace[i])
		}
		text = strings.ReplaceAll(text, replace[i], replace[i+1])
	}
	d := &deployment{t: t, dir: t.TempDir()}
	d.caddyfile = filepath.Join(d.dir, "Caddyfile")
	d.write(text)
	return d
}

// write replaces the Caddyfile at once: one that is watched may be read at any time.
func (d *deployment) write(text string) {
	d.t.Helper()
	if err := errors.Join(os.WriteFile(d.caddyfile+".new", []byte(text), 0o600), os.Rename(d.caddyfile+".new", d.caddyfile)); err != nil {
		d.t.Fatal(err)
	}
}

// start runs it until the test ends, with files from descriptor 3 on.
func (d *deployment) start(environment []string, files ...*os.File) {
	d.t.Helper()
	d.startWith(environment, nil, files...)
}

func (d *deployment) startWith(environment, args []string, files ...*os.File) {
	d.t.Helper()
	cmd := egresstest.CaddyCommand(context.Background(), d.dir, append([]string{"run", "--config", d.caddyfile}, args...)...)
	cmd.Env = append(cmd.Env, environment...)
	cmd.ExtraFiles = files
	output, err := os.OpenFile(filepath.Join(d.dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer output.Close()
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.cmd = cmd
	d.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		egresstest.CheckLeaks(d.t, "the log", d.log())
		egresstest.CheckKeys(d.t, "the log", d.log())
		if d.t.Failed() {
			d.t.Logf("%s", d.log())
		}
	})
}

// stop ends it as systemd and engines do.
func (d *deployment) stop() {
	d.t.Helper()
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	if err := d.cmd.Wait(); err != nil {
		d.t.Errorf("it ends with %v", err)
	}
}

func (d *deployment) log() string {
	log, _ := os.ReadFile(filepath.Join(d.dir, "log"))
	return string(log)
}

// fetch returns the status and the body of an answer; a status of 0 stands for none.
func (d *deployment) fetch(client *http.Client, url string, header ...string) (int, string) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodGet, url, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(body)
}

func (d *deployment) want(status int, url string, header ...string) string {
	d.t.Helper()
	got, body := d.fetch(egresstest.Client, url, header...)
	if got != status {
		d.t.Fatalf("%s is answered %d %s, want %d", url, got, body, status)
	}
	return body
}

func (d *deployment) waitFor(url string) {
	d.t.Helper()
	egresstest.Eventually(d.t, url, func() bool {
		status, _ := d.fetch(egresstest.Client, url)
		return status == http.StatusOK
	})
}

// A service of systemd has a socket that outlives it. A restart refuses no
// connection and costs no token request, and a reload works with the environment of
// the service.
func TestSystemdDeployment(t *testing.T) {
	setUpDeployment(t)
	api, server := egresstest.NewSandboxFor(t, "voucherify", egresstest.Secret, egresstest.Secret)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + listener.Addr().String()
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	listener.Close() // what is left is the copy, as systemd has it
	defer socket.Close()
	admin := "unix/" + filepath.Join(t.TempDir(), "admin.sock")
	d := newDeployment(t, "../examples/systemd/Caddyfile", "promo voucherify {", "promo voucherify "+server.URL+" {", "unix//run/caddy-egress/admin.sock", admin)
	d.start(nil, socket)
	d.waitFor(url + "/ready")
	key := bearer("web-shop")
	d.want(http.StatusOK, url+"/v1/vouchers", key...)
	d.want(http.StatusUnauthorized, url+"/v1/vouchers")
	d.want(http.StatusNotFound, url+"/")

	reload := func() ([]byte, error) {
		return egresstest.CaddyCommand(t.Context(), d.dir, "reload", "--config", d.caddyfile, "--address", admin).CombinedOutput()
	}
	d.write(strings.Replace(egresstest.ReadText(t, d.caddyfile), "use /v1/", "use /v1/ only", 1))
	if out, err := reload(); err != nil {
		t.Fatalf("reload: %v\n%s", err, out)
	}
	egresstest.Eventually(t, "the new config", func() bool {
		_, body := d.fetch(egresstest.Client, url+"/")
		return body == "not found: use /v1/ only"
	})
	egresstest.Eventually(t, "the token in the storage", func() bool { // requests do not wait for that
		return storedTokens(filepath.Join(d.dir, "caddy")) == 1
	})
	requests := api.Stats().TokenRequests
	d.stop()
	d.start(nil, socket)
	d.waitFor(url + "/ready")
	if got := api.Stats().TokenRequests; got != requests {
		t.Errorf("%d token requests after a restart, want %d", got, requests)
	}

	// With traffic, some connections are cut off that the old process has just accepted;
	// see TestHandOverEndsConnections. None is refused.
	const restarts = 3
	traffic := startConnections(t, url+"/v1/vouchers", key...)
	for range restarts {
		sent := traffic.sent.Load()
		egresstest.Eventually(t, "traffic between the restarts", func() bool { return traffic.sent.Load() > sent+40 })
		d.stop()
		d.start(nil, socket)
		d.waitFor(url + "/ready")
	}
	sent, cut := traffic.end()
	t.Logf("%d requests over %d restarts, %d cut off", sent, restarts, cut)
	if cut > restarts*concurrent {
		t.Errorf("%d of %d connections ended without an answer", cut, sent)
	}
	d.stop()
	if strings.Contains(d.log(), "panic") {
		t.Error("it has panicked")
	}
}

// connections sends requests, each over a connection of its own, until it is ended.
type connections struct {
	t         *testing.T
	stop      chan struct{}
	done      sync.WaitGroup
	sent, cut atomic.Int64
}

// concurrent is how many connections there are at a time.
const concurrent = 4

func startConnections(t *testing.T, url string, header ...string) *connections {
	c := &connections{t: t, stop: make(chan struct{})}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	for range concurrent {
		c.done.Go(func() {
			for {
				select {
				case <-c.stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				c.sent.Add(1)
				req, _ := http.NewRequestWithContext(context.Background(), http.MethodGet, url, nil)
				req.Header.Set(header[0], header[1])
				resp, err := client.Do(req)
				switch {
				case err == nil && resp.StatusCode == http.StatusOK:
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				case err == nil:
					t.Errorf("answered %d", resp.StatusCode)
					resp.Body.Close()
				case errors.Is(err, syscall.ECONNREFUSED) || !connectionEnded(err):
					t.Error(err)
				default:
					c.cut.Add(1)
				}
			}
		})
	}
	return c
}

func (c *connections) end() (sent, cut int64) {
	close(c.stop)
	c.done.Wait()
	return c.sent.Load(), c.cut.Load()
}

// Containers get secrets as files, and serve other containers.
func TestContainerDeployment(t *testing.T) {
	directory, _ := setUpDeployment(t)
	_, server := egresstest.NewSandboxFor(t, "voucherify", egresstest.Secret, egresstest.Secret)
	addr, admin := egresstest.FreeAddr(t), egresstest.FreeAddr(t)
	d := newDeployment(t, "../examples/container/Caddyfile",
		"promo voucherify {", "promo voucherify "+server.URL+" {", "/run/secrets", directory,
		"http://:8080", "http://:"+egresstest.Port(addr), "persist_config off", "persist_config off\n\tadmin "+admin)
	d.start(nil)
	url := "http://localhost:" + egresstest.Port(addr)
	d.waitFor(url + "/ready")
	d.want(http.StatusOK, url+"/v1/vouchers", bearer("web-shop")...)
	d.want(http.StatusUnauthorized, url+"/v1/vouchers")
	if out, err := egresstest.CaddyCommand(t.Context(), d.dir, "egress", "status", "--address", admin).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("fresh")) {
		t.Errorf("the health check: %v\n%s", err, out)
	}
	d.stop()
}

// Probes and metrics are on a port that callers do not reach, and nothing else is.
func TestKubernetesDeployment(t *testing.T) {
	directory, _ := setUpDeployment(t)
	_, server := egresstest.NewSandboxFor(t, "voucherify", egresstest.Secret, egresstest.Secret)
	addr, ops, admin := egresstest.FreeAddr(t), egresstest.FreeAddr(t), egresstest.FreeAddr(t)
	d := newDeployment(t, "../examples/kubernetes/Caddyfile",
		"promo voucherify {", "promo voucherify "+server.URL+" {",
		"/run/secrets/voucherify", directory, "/run/secrets/callers", directory,
		"http://:8080", "http://:"+egresstest.Port(addr), "http://:8081", "http://:"+egresstest.Port(ops),
		"persist_config off", "persist_config off\n\tadmin "+admin)
	d.start(nil)
	url, opsURL := "http://localhost:"+egresstest.Port(addr), "http://localhost:"+egresstest.Port(ops)
	d.waitFor(opsURL + "/ready")
	d.want(http.StatusOK, opsURL+"/live")
	d.want(http.StatusOK, url+"/v1/vouchers", bearer("web-shop")...)
	d.want(http.StatusOK, url+"/v1/vouchers", "X-App-Token", egresstest.Key("web-shop"), "Host", "gateway.egress.svc:8080")
	d.want(http.StatusUnauthorized, url+"/v1/vouchers")
	for _, path := range []string{"/ready", "/live", "/metrics"} {
		d.want(http.StatusNotFound, url+path)
	}
	d.want(http.StatusNotFound, opsURL+"/v1/vouchers", bearer("web-shop")...)
	if metrics := d.want(http.StatusOK, opsURL+"/metrics"); !strings.Contains(metrics, "caddy_egress_requests_total{") {
		t.Error("no metrics of the gateway")
	}
	d.stop()
}

// What docs/deploy/kubernetes.md says of --watch: a Caddyfile that does not load is
// not used, and the next one is; after one that cannot be adapted, none is.
func TestWatchEndsWithASyntaxError(t *testing.T) {
	addr, admin := egresstest.FreeAddr(t), egresstest.FreeAddr(t)
	text := func(answer, more string) string {
		return fmt.Sprintf("{\n\tpersist_config off\n\tadmin %s\n}\nhttp://%s {\n\trespond %s\n\t%s\n}\n", admin, addr, answer, more)
	}
	d := &deployment{t: t, dir: t.TempDir()}
	d.caddyfile = filepath.Join(d.dir, "Caddyfile")
	d.write(text("one", ""))
	d.startWith(nil, []string{"--watch"})
	answers := func(answer string) func() bool {
		return func() bool {
			_, body := d.fetch(egresstest.Client, "http://"+addr)
			return body == answer
		}
	}
	egresstest.Eventually(t, "one", answers("one"))
	egresstest.Eventually(t, "watching", func() bool { return strings.Contains(d.log(), "watching config file for changes") })
	d.write(text("lost", "egress understory {\n\t\tclient_id {env.NOT_SET}\n\t\tclient_secret {env.NOT_SET}\n\t}"))
	egresstest.Eventually(t, "the refusal", func() bool { return strings.Contains(d.log(), "applying latest config") })
	d.write(text("two", ""))
	egresstest.Eventually(t, "two", answers("two"))
	d.write(text("lost", "nonsense"))
	egresstest.Eventually(t, "the syntax error", func() bool { return strings.Contains(d.log(), "unable to load latest config") })
	egresstest.Eventually(t, "the end of watching; if Caddy goes on now, correct docs/deploy/kubernetes.md", func() bool {
		_, stacks := d.fetch(egresstest.Client, "http://"+admin+"/debug/pprof/goroutine?debug=2")
		return stacks != "" && !strings.Contains(stacks, "watchConfigFile")
	})
	if !answers("two")() {
		t.Error("the config before is not in use any more")
	}
}

// Behind nginx and HAProxy: what the gateway sees of its clients.
func TestProxiesDeployment(t *testing.T) {
	nginx, haproxy := proxyProgram(t, "nginx"), proxyProgram(t, "haproxy")
	if _, err := os.Stat("/usr/lib/nginx/modules/ngx_stream_module.so"); err != nil {
		requireClient(t, "true", "install libnginx-mod-stream", func(string) error { return err })
	}
	directory, authority := setUpDeployment(t)
	_, server := egresstest.NewSandboxFor(t, "voucherify", egresstest.Secret, egresstest.Secret)
	addrs := make(map[string]string)
	for _, port := range []string{"8080", "8443", "443", "9443", "9444"} {
		addrs[port] = egresstest.Port(egresstest.FreeAddr(t))
	}
	at := strings.NewReplacer(":8080", ":"+addrs["8080"], ":8443", ":"+addrs["8443"], "listen 443", "listen 127.0.0.1:"+addrs["443"]+" reuseport",
		"listen 9443", "listen 127.0.0.1:"+addrs["9443"]+" reuseport", "bind :9443", "bind 127.0.0.1:"+addrs["9444"],
		"/etc/caddy-egress", directory, "/run/nginx-egress.pid", filepath.Join(directory, "pid"), "access_log off;", "access_log off;\n"+temporary(directory))
	d := newDeployment(t, "../examples/proxies/Caddyfile", "promo voucherify {", "promo voucherify "+server.URL+" {", "persist_config off", "persist_config off\n\tadmin off")
	d.write(at.Replace(egresstest.ReadText(t, d.caddyfile)))
	d.start(nil)
	for _, program := range [][]string{{nginx, "nginx.conf", "-e", "stderr", "-g", "daemon off;", "-c"}, {haproxy, "haproxy.cfg", "-f"}} {
		file := filepath.Join(directory, program[1])
		if err := os.WriteFile(file, []byte(at.Replace(egresstest.ReadText(t, "../examples/proxies/"+program[1]))), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(context.Background(), program[0], append(program[2:], file)...) // ends by a signal, with its workers
		cmd.WaitDelay = 5 * time.Second
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			_ = cmd.Wait()
			if t.Failed() {
				t.Logf("%s: %s", program[0], stderr.String())
			}
		})
	}

	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(egresstest.ReadText(t, authority.File)))
	anonymous := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
	nightly := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{authority.Issue([]string{"nightly.jobs.internal"})}}, DisableKeepAlives: true}}
	key := bearer("web-shop")
	urls := map[string]string{"nginx, HTTP": "https://localhost:" + addrs["443"], "nginx, TCP": "https://localhost:" + addrs["9443"], "HAProxy, TCP": "https://localhost:" + addrs["9444"]}
	for name, url := range urls {
		egresstest.Eventually(t, name, func() bool {
			status, _ := d.fetch(anonymous, url+"/v1/vouchers", key...)
			return status == http.StatusOK
		})
		if status, body := d.fetch(anonymous, url+"/v1/vouchers/a%2Fb%20c", key...); status != http.StatusOK || !strings.Contains(body, `"code":"a/b c"`) {
			t.Errorf("%s: the path of a voucher a/b c is answered %d %s", name, status, body)
		}
		if status, body := d.fetch(anonymous, url+"/v1/vouchers"); status != http.StatusUnauthorized {
			t.Errorf("%s: without a key, answered %d %s", name, status, body)
		}
		want := http.StatusOK
		if name == "nginx, HTTP" { // which ends TLS
			want = http.StatusUnauthorized
		}
		if status, body := d.fetch(nightly, url+"/v1/vouchers"); status != want {
			t.Errorf("%s: with a client certificate, answered %d %s, want %d", name, status, body, want)
		}
	}
	// a client that is not this machine, as the PROXY protocol says
	for peer, want := range map[string]string{"10.1.2.3": "HTTP/1.1 200 OK", "192.0.2.1": "HTTP/1.1 401 Unauthorized"} {
		conn, err := net.Dial("tcp", "127.0.0.1:"+addrs["8443"])
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "PROXY TCP4 %s 127.0.0.1 4711 443\r\n", peer)
		secure := tls.Client(conn, &tls.Config{RootCAs: pool, ServerName: "localhost", NextProtos: []string{"http/1.1"}, Certificates: nightly.Transport.(*http.Transport).TLSClientConfig.Certificates})
		fmt.Fprintf(secure, "GET /v1/vouchers HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
		answer, err := io.ReadAll(secure)
		if got, _, _ := strings.Cut(string(answer), "\r\n"); got != want {
			t.Errorf("a client at %s is answered %q, error %v; want %q", peer, got, err, want)
		}
		conn.Close()
	}
}

// temporary has nginx keep its temporary files in a directory.
func temporary(directory string) (options string) {
	for _, name := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		options += fmt.Sprintf("\t%s_temp_path %s;\n", name, filepath.Join(directory, name))
	}
	return options
}

func proxyProgram(t *testing.T, name string) string {
	t.Helper()
	if path := "/usr/sbin/" + name; exec.CommandContext(t.Context(), path, "-v").Run() == nil {
		return path
	}
	return requireClient(t, name, "install "+name, func(path string) error { return exec.CommandContext(t.Context(), path, "-v").Run() })
}

// forwardProxy tunnels by CONNECT, to where it is told that hosts are.
type forwardProxy struct {
	hosts map[string]string

	mu   sync.Mutex
	seen map[string]bool
}

func (p *forwardProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.seen[r.Method+" "+r.Host] = true
	p.mu.Unlock()
	upstream, err := net.Dial("tcp", p.hosts[r.Host])
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer upstream.Close()
	w.WriteHeader(http.StatusOK)
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer client.Close()
	go func() { _, _ = io.Copy(upstream, client) }()
	_, _ = io.Copy(client, upstream)
}

// Out through a proxy: HTTPS_PROXY is for token requests and for requests to the API;
// network_proxy of the transport is for the latter only. The proxy sees host names.
func TestOutboundProxy(t *testing.T) {
	authority := egresstest.NewAuthority(t)
	serve := func(handler http.Handler, name string) string {
		s := httptest.NewUnstartedServer(handler)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{authority.Issue([]string{name, "127.0.0.1"})}}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.Listener.Addr().String()
	}
	endpoint, api := egresstest.NewTokens(t), egresstest.NewRecorder(t)
	login := serve(endpoint, "login.example.com")
	hosts := map[string]string{"login.example.com:443": login, "api.example.com:443": serve(api, "api.example.com")}
	for name, test := range map[string]struct {
		tokenURL, transport, environment string // {proxy} is its URL
		want                             string
	}{
		"HTTPS_PROXY":   {"https://login.example.com/oauth2/token", "", "HTTPS_PROXY={proxy}", "map[CONNECT api.example.com:443:true CONNECT login.example.com:443:true]"},
		"network_proxy": {"https://" + login + "/oauth2/token", "network_proxy url {proxy}", "HTTPS_PROXY=", "map[CONNECT api.example.com:443:true]"},
	} {
		t.Run(name, func(t *testing.T) {
			proxy := &forwardProxy{hosts: hosts, seen: make(map[string]bool)} // its own: another's requests may end late
			proxyServer := httptest.NewServer(proxy)
			t.Cleanup(proxyServer.Close)
			at := strings.NewReplacer("{proxy}", proxyServer.URL)
			addr := egresstest.FreeAddr(t)
			d := &deployment{t: t, dir: t.TempDir()}
			d.caddyfile = filepath.Join(d.dir, "Caddyfile")
			d.write(fmt.Sprintf(`{
				admin off
				persist_config off
			}
			http://%s {
				egress oauth2 https://api.example.com {
					token_url %s
					token_ca %s
					client_id gateway
					client_secret {env.%s}
					transport http {
						tls_trust_pool file %s
						%s
					}
				}
			}`, addr, test.tokenURL, authority.File, egresstest.SecretVariable, authority.File, at.Replace(test.transport)))
			d.start([]string{at.Replace(test.environment), "NO_PROXY=", "https_proxy=", "no_proxy="})
			d.waitFor("http://" + addr + "/v1/orders")
			proxy.mu.Lock()
			defer proxy.mu.Unlock()
			if got := fmt.Sprint(proxy.seen); got != test.want {
				t.Errorf("the proxy saw %s, want %s", got, test.want)
			}
			if got := api.Last(t).Header.Get("Authorization"); !strings.HasPrefix(got, "Bearer "+egresstest.TokenPrefix) {
				t.Errorf("the API got the Authorization %q", got)
			}
		})
	}
}
