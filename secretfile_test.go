package egress

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// withSecrets is a provider that has nothing but options that hold a secret.
type withSecrets struct {
	tokenprovider.Provider
	options map[string]string
}

func (p withSecrets) SecretOptions() map[string]string { return p.options }

func TestReadableSecretFiles(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for name, mode := range map[string]os.FileMode{"mine": 0o600, "group": 0o640, "all": 0o644, "other": 0o604, "write": 0o602} {
		if err := os.WriteFile(path(name), []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path(name), mode); err != nil {
			t.Fatal(err)
		}
	}
	// as Kubernetes mounts secrets
	for _, name := range []string{"mine", "all"} {
		if err := os.Symlink(path(name), path("link to "+name)); err != nil {
			t.Fatal(err)
		}
	}
	core, logs := observer.New(zap.DebugLevel)
	warnOfSecrets(zap.New(core), withSecrets{options: map[string]string{
		"a": "{file." + path("mine") + "}",
		"b": "{file." + path("group") + "}",
		"c": "{file." + path("all") + "}",
		"d": "{file." + path("other") + "}",
		"e": "{file." + path("write") + "}",
		"f": "{file." + path("link to mine") + "}",
		"g": "{file." + path("link to all") + "}",
		"h": "{file." + path("missing") + "}",
		"i": "{env.EGRESS_TEST_SECRET}",
		"j": path("all"),
		"k": "Bearer {file." + path("all") + "}",
		"l": "{file." + path("all") + "}{env.X}",
		"m": "",
	}})
	var written []any // in the config itself
	got := make(map[any]any)
	for _, entry := range logs.All() {
		if entry.Level != zap.WarnLevel {
			t.Errorf("logged at %v", entry.Level)
		}
		fields := entry.ContextMap()
		if strings.HasPrefix(entry.Message, "a secret is written in the config itself") {
			written = append(written, fields["option"])
			continue
		}
		got[fields["option"]] = fields["file"]
	}
	if want := map[any]any{"c": path("all"), "d": path("other"), "g": path("link to all")}; !reflect.DeepEqual(got, want) {
		t.Errorf("warned of the files %v, want %v", got, want)
	}
	if want := []any{"j", "k", "l"}; !slices.Equal(written, want) {
		t.Errorf("warned of values in the config in %v, want %v", written, want)
	}
}
