package egress

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// goldenConfigs returns the configs of the Caddyfile goldens, by file, that are
// not refused when they are loaded.
func goldenConfigs(t *testing.T) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob("testdata/caddyfile_adapt/*.caddyfiletest")
	if err != nil {
		t.Fatal(err)
	}
	configs := make(map[string][]byte)
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		parts := strings.Split(strings.ReplaceAll(string(content), "\r\n", "\n"), "\n----------\n")
		if len(parts) == 2 {
			configs[filepath.Base(path)] = []byte(parts[1])
		}
	}
	if len(configs) < 50 {
		t.Fatalf("%d configs, want those of the goldens", len(configs))
	}
	return configs
}

// No egress transport of a config is left out, and no credential.
func TestAccessLeavesNoRouteOut(t *testing.T) {
	withRoutes := 0
	for name, config := range goldenConfigs(t) {
		_, routes, err := routesOf(config)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if want := strings.Count(string(config), `"protocol": "egress"`); len(routes) != want {
			t.Errorf("%s: found %d egress transports of %d", name, len(routes), want)
		}
		rows, err := accessOf(config)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		credentials := make(map[string]bool)
		for _, row := range rows {
			credentials[row.Credential] = true
		}
		for _, route := range routes {
			withRoutes++
			var transport configTransport
			if err := json.Unmarshal(route.transport, &transport); err != nil {
				t.Fatal(err)
			}
			if transport.Grants == nil && transport.Scopes == nil && transport.CredentialName != "" && !credentials[transport.CredentialName] {
				t.Errorf("%s: %s is not in the matrix", name, transport.CredentialName)
			}
		}
		if _, err := credentialsOf(config); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if withRoutes < 50 {
		t.Errorf("%d routes, so the test shows little", withRoutes)
	}
}
