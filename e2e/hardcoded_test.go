package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// Clients with the API's host built in, as docs/guides/clients.md brings them to
// the gateway: by its Caddyfile, another address for the name of the API, and the
// certificate authority in the setting of each runtime.

// hardCoded is a gateway that serves the names of the APIs, over TLS.
type hardCoded struct {
	t      *testing.T
	api    *egresstest.Recorder // Voucherify's
	addr   string               // of the gateway
	root   string               // the file of its certificate authority
	log    string               // the file of all logs
	caller string               // the key of the caller web-shop
}

// startHardCoded runs the first Caddyfile of the guide in front of imitations of the APIs.
func startHardCoded(t *testing.T) *hardCoded {
	t.Helper()
	block := regexp.MustCompile("(?s)```caddy\n(.*?)```").FindStringSubmatch(egresstest.ReadText(t, "../docs/guides/clients.md"))
	if block == nil {
		t.Fatal("the guide has no Caddyfile")
	}
	path := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(path, []byte(block[1]), 0o600); err != nil {
		t.Fatal(err)
	}

	voucherify, _ := egresstest.NewSandboxFor(t, "voucherify", egresstest.Secret, egresstest.Secret)
	_, understory := egresstest.NewSandboxFor(t, "understory", egresstest.Secret, egresstest.Secret)
	storage := egresstest.StorageDir(t)
	h := &hardCoded{
		t: t, api: egresstest.NewRecorder(t), addr: egresstest.FreeAddr(t), caller: egresstest.Secret + "web-shop",
		root: filepath.Join(storage, "pki/authorities/local/root.crt"), log: filepath.Join(t.TempDir(), "log"),
	}
	h.api.Handler = voucherify.ServeHTTP
	runExample(t, path,
		"skip_install_trust", fmt.Sprintf("skip_install_trust\ndefault_bind 127.0.0.1\nhttps_port %s\nhttp_port %s\nstorage file_system %s\n",
			egresstest.Port(h.addr), egresstest.Port(egresstest.FreeAddr(t)), storage),
		"format filter", "output file "+h.log+"\nformat filter",
		"credential promo voucherify {", "credential promo voucherify "+h.api.URL+" {",
		"credential bookings understory {", "credential bookings understory "+understory.URL+" {\ntoken_url "+understory.URL+"/oauth2/token")
	egresstest.Eventually(t, "the gateway's certificates", func() bool {
		resp, err := h.client().Get("https://api.understory.io/")
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil
	})
	return h
}

// client returns a client to which every name is the gateway.
func (h *hardCoded) client() *http.Client {
	roots := x509.NewCertPool()
	if pem, err := os.ReadFile(h.root); err == nil {
		roots.AppendCertsFromPEM(pem)
	}
	return clientOfAnyName(h.addr, roots)
}

// run runs a client that has nothing but its key and environment, and returns what
// it prints.
func (h *hardCoded) run(environment []string, program string, args ...string) (string, error) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + h.t.TempDir(), "KEY=" + h.caller, "GATEWAY=" + h.addr, "PYTHONDONTWRITEBYTECODE=1"}, environment...)
	cmd.WaitDelay = 5 * time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, &stderr)
	}
	return strings.TrimSpace(string(stdout)), err
}

func TestHardCodedHosts(t *testing.T) {
	h := startHardCoded(t)
	anywhere := func(string) error { return nil }
	getVoucher := h.curl("https://api.voucherify.io/v1/vouchers/BLCKFRDY", "--header", "X-App-Id: web-shop", "--header", "X-App-Token: "+h.caller,
		"--output", os.DevNull, "--write-out", "%{http_code}")
	const python = "/usr/bin/python3" // for which Debian has requests
	for name, test := range map[string]struct {
		program, remedy string
		usable          func(path string) error
		trust           func(t *testing.T) string // returns the setting that has it trust the gateway
		environment     []string
		args            []string
		want            string // default: the status, and the code of a voucher
	}{
		"curl": {
			program: "curl", remedy: "install curl", usable: anywhere,
			trust: h.setting("CURL_CA_BUNDLE="), args: getVoucher, want: "200",
		},
		"curl by OpenSSL's variable": {
			program: "curl", remedy: "install curl with OpenSSL", usable: func(path string) error {
				version, err := exec.CommandContext(t.Context(), path, "--version").Output()
				if err == nil && !bytes.Contains(version, []byte("OpenSSL/")) {
					err = fmt.Errorf("it is built with another library: %s", version)
				}
				return err
			},
			trust: h.setting("SSL_CERT_FILE="), args: getVoucher, want: "200",
		},
		"Node.js": {
			program: "node", remedy: "install Node.js", usable: anywhere, trust: h.setting("NODE_EXTRA_CA_CERTS="),
			args: []string{"--require", "../testdata/hardcoded/resolve.cjs", "../testdata/hardcoded/client.mjs"},
		},
		"Python, requests": {
			program: python, remedy: pythonRemedy, trust: h.setting("REQUESTS_CA_BUNDLE="),
			usable:      func(path string) error { return exec.CommandContext(t.Context(), path, "-c", "import requests").Run() },
			environment: []string{"PYTHONPATH=../testdata/hardcoded/resolve"}, args: []string{"../testdata/hardcoded/client.py", "requests"},
		},
		"Python, urllib": {
			program: python, remedy: "install Python", usable: anywhere, trust: h.setting("SSL_CERT_FILE="),
			environment: []string{"PYTHONPATH=../testdata/hardcoded/resolve"}, args: []string{"../testdata/hardcoded/client.py", "urllib"},
		},
		"Java": {
			program: "java", remedy: "install a JDK, such as Debian's default-jdk-headless",
			usable: func(string) error { _, err := exec.LookPath("javac"); return err }, // a JRE cannot launch a source file
			trust:  h.trustStore,
			args:   []string{"-XX:TieredStopAtLevel=1", "-Djdk.net.hosts.file=" + h.hostsFile(), "../testdata/hardcoded/Client.java", egresstest.Port(h.addr)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			program := requireClient(t, test.program, test.remedy, test.usable)
			if out, err := h.run(append(test.environment, test.trust(t)), program, test.args...); err != nil || out != cmp.Or(test.want, "200 BLCKFRDY") {
				t.Errorf("it printed %q, error %v", out, err)
			}
			out, err := h.run(test.environment, program, test.args...)
			if err == nil || !strings.Contains(strings.ToLower(err.Error()), "certif") {
				t.Errorf("without %s it printed %q, error %v", test.trust(t), out, err)
			}
		})
	}

	t.Run("Voucherify's SDK", func(t *testing.T) {
		out, err := h.run([]string{"NODE_OPTIONS=--require ../testdata/hardcoded/resolve.cjs", "NODE_EXTRA_CA_CERTS=" + h.root}, sdkNode(t), sdkDir+"/hardcoded.mjs")
		if err != nil || out != "200 BLCKFRDY" {
			t.Errorf("it printed %q, error %v", out, err)
		}
	})

	// this very program, with nothing set but its environment
	t.Run("Go", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Skip("Go looks at SSL_CERT_FILE on some systems only")
		}
		args := []string{"-test.run=^TestGoClientOfAHardCodedHost$", "-test.v"}
		if out, err := h.run([]string{"SSL_CERT_FILE=" + h.root}, os.Args[0], args...); err != nil || !strings.Contains(out, "200 BLCKFRDY") {
			t.Errorf("it printed %q, error %v", out, err)
		}
		if out, err := h.run(nil, os.Args[0], args...); err == nil || !strings.Contains(out, "x509: certificate signed by unknown authority") {
			t.Errorf("without SSL_CERT_FILE it printed %q, error %v", out, err)
		}
		h.checkCaller(t, "web-shop")
	})

	t.Run("a client that asks for tokens", func(t *testing.T) {
		curl := requireClient(t, "curl", "install curl", anywhere)
		trust := "CURL_CA_BUNDLE=" + h.root
		out, err := h.run([]string{trust}, curl, h.curl("https://api.auth.understory.io/oauth2/token",
			"--data", "grant_type=client_credentials", "--data-urlencode", "audience=https://api.understory.io", "--data", "client_id=planner",
			"--data-urlencode", "client_secret="+egresstest.Secret+"planner")...)
		var token struct {
			AccessToken string `json:"access_token"`
		}
		if err != nil || json.Unmarshal([]byte(out), &token) != nil || token.AccessToken == "" {
			t.Fatalf("it was answered %q, error %v", out, err)
		}
		out, err = h.run([]string{trust}, curl, h.curl("https://api.understory.io/v1/me",
			"--header", "Authorization: Bearer "+token.AccessToken)...)
		if err != nil || !strings.Contains(out, `"company_id"`) {
			t.Errorf("with its token it was answered %q, error %v", out, err)
		}
		h.checkCaller(t, "planner")
	})

	h.checkKeys()
}

// setting returns a function that returns an environment variable with the file of the
// certificate authority.
func (h *hardCoded) setting(variable string) func(*testing.T) string {
	return func(*testing.T) string { return variable + h.root }
}

// trustStore returns the environment variable of Java with a store that has the
// certificate authority.
func (h *hardCoded) trustStore(t *testing.T) string {
	store := filepath.Join(t.TempDir(), "trust.p12")
	keytool := requireClient(t, "keytool", "install a JDK", func(string) error { return nil })
	out, err := exec.CommandContext(t.Context(), keytool, "-importcert", "-noprompt", "-alias", "egress", "-file", h.root,
		"-keystore", store, "-storetype", "PKCS12", "-storepass", "changeit").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return "JAVA_TOOL_OPTIONS=-Djavax.net.ssl.trustStore=" + store + " -Djavax.net.ssl.trustStorePassword=changeit"
}

// hostsFile returns the path of a hosts file for the JDK.
func (h *hardCoded) hostsFile() string {
	path := filepath.Join(h.t.TempDir(), "hosts")
	if err := os.WriteFile(path, []byte("127.0.0.1 api.voucherify.io\n"), 0o600); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// curl returns the arguments that have curl call url at the gateway.
func (h *hardCoded) curl(url string, args ...string) []string {
	host := strings.Split(url, "/")[2]
	return append([]string{"--silent", "--show-error", "--noproxy", "*", "--max-time", "15", "--connect-to", host + ":443:" + h.addr, url}, args...)
}

// checkCaller checks that the access log names a caller.
func (h *hardCoded) checkCaller(t *testing.T, name string) {
	t.Helper()
	egresstest.Eventually(t, "the access log to name "+name, func() bool {
		return strings.Contains(egresstest.ReadText(t, h.log), `"egress_caller":"`+name+`"`)
	})
}

// checkKeys checks that keys are neither in the log nor at the API.
func (h *hardCoded) checkKeys() {
	h.t.Helper()
	if strings.Contains(egresstest.ReadText(h.t, h.log), egresstest.Secret) {
		h.t.Error("the log shows a key")
	}
	for _, got := range h.api.All() {
		text := fmt.Sprint(got.Header)
		if !strings.HasPrefix(got.Target, "/v1/oauth/") && (strings.Contains(text, h.caller) || !strings.Contains(text, "Bearer ")) {
			h.t.Errorf("%s has reached the API with %s", got.Target, text)
		}
	}
}

// clientOfAnyName returns a client to which every name is addr, with roots or, if that is nil,
// the authorities of its environment.
func clientOfAnyName(addr string, roots *x509.CertPool) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	transport.TLSClientConfig.RootCAs = roots
	transport.DisableKeepAlives = true
	transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}
	return &http.Client{Transport: transport, Timeout: 15 * time.Second}
}

// TestGoClientOfAHardCodedHost is a client that TestHardCodedHosts runs in a process of
// its own, whose environment Go reads once.
func TestGoClientOfAHardCodedHost(t *testing.T) {
	gateway, key := os.Getenv("GATEWAY"), os.Getenv("KEY")
	if gateway == "" || key == "" {
		t.Skip("TestHardCodedHosts runs it")
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://api.voucherify.io/v1/vouchers/BLCKFRDY", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-App-Token", key)
	resp, err := clientOfAnyName(gateway, nil).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	var voucher struct{ Code string }
	if err := json.Unmarshal(body, &voucher); err != nil {
		t.Fatal(err)
	}
	fmt.Println(resp.StatusCode, voucher.Code)
}
