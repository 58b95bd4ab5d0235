package egresstest

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// AdaptCaddyfile returns the JSON that a whole Caddyfile adapts to. Warnings
// fail the test.
func AdaptCaddyfile(t *testing.T, text string) []byte {
	t.Helper()
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	for _, warning := range warnings {
		t.Errorf("warning: %s", warning)
	}
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// Validate loads config without starting it.
func Validate(t *testing.T, config []byte) error {
	t.Helper()
	decoded := new(caddy.Config)
	if err := caddy.StrictUnmarshalJSON(config, decoded); err != nil {
		t.Fatal(err)
	}
	return caddy.Validate(decoded)
}

// CheckCaddyfile checks that text is formatted and loads, in an environment that
// has all it refers to; see [Provide].
func CheckCaddyfile(t *testing.T, text string) {
	t.Helper()
	if line, different := caddyfile.FormattingDifference("Caddyfile", []byte(text)); different {
		t.Errorf("line %d is not as `caddy fmt` has it", line.Line)
	}
	if err := Validate(t, AdaptCaddyfile(t, Provide(t, text))); err != nil {
		t.Errorf("loading it: %v", err)
	}
}

// Provide sets the environment variables that text refers to, makes the files
// below /run/secrets elsewhere, and returns text with their paths. All hold
// [Secret], to which those of callers, who need a key each, add their name; those
// in PEM hold a private key.
// Certificate authorities below /etc are elsewhere, too.
func Provide(t *testing.T, text string) string {
	t.Helper()
	directory := t.TempDir()
	t.Setenv("XDG_DATA_HOME", directory)
	t.Setenv("XDG_CONFIG_HOME", directory)
	for _, variable := range regexp.MustCompile(`\{env\.(\w+)\}`).FindAllStringSubmatch(text, -1) {
		t.Setenv(variable[1], Secret)
	}
	for _, file := range regexp.MustCompile(`\{file\.(/run/secrets/[^}]+)\}`).FindAllStringSubmatch(text, -1) {
		path := filepath.Join(directory, file[1])
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		content := Secret
		if strings.HasPrefix(file[1], "/run/secrets/callers/") {
			content += filepath.Base(path)
		}
		if filepath.Ext(path) == ".pem" {
			_, key := KeyPair(t)
			content = ReadText(t, key)
		}
		if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		text = strings.ReplaceAll(text, file[0], "{file."+path+"}")
	}
	for _, file := range regexp.MustCompile(`trust_pool file (/etc/\S+)`).FindAllStringSubmatch(text, -1) {
		certificate, _ := KeyPair(t)
		text = strings.ReplaceAll(text, file[1], certificate)
	}
	return text
}

// IndentJSON returns config indented.
func IndentJSON(t *testing.T, config []byte) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, config, "", "\t"); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// ReadText returns the content of a file.
func ReadText(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// Trust writes the certificate of a TLS server to a file and returns its path.
func Trust(t *testing.T, server *httptest.Server) string {
	t.Helper()
	return writePEM(t, "ca.pem", &pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
}

// KeyPair writes a certificate for 127.0.0.1 and its key to files.
func KeyPair(t *testing.T) (cert, key string) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	defer server.Close()
	der, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return Trust(t, server), writePEM(t, "key.pem", &pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func writePEM(t *testing.T, name string, block *pem.Block) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
