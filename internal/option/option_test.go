package option

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// line returns a dispenser whose current token is the first of the line.
func line(text string) *caddyfile.Dispenser {
	d := caddyfile.NewTestDispenser(text)
	d.Next()
	return d
}

// check fails the test unless err contains want, or is nil where want is
// empty. Every error has to name the option and where it stands.
func check(t *testing.T, input string, err error, want string) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("%s: %v", input, err)
		}
		return
	}
	name, _, _ := strings.Cut(input, " ")
	if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), ", at Testfile:") {
		t.Errorf("%s: got %v, want %s: %s", input, err, name, want)
	}
}

func TestString(t *testing.T) {
	for _, test := range []struct{ input, before, want, err string }{
		{"opt a", "", "a", ""},
		{`opt "a b"`, "", "a b", ""},
		{"opt {env.X}", "", "{env.X}", ""},
		{"opt a", "b", "b", "already given"},
		{"opt", "", "", "needs a value"},
		{`opt ""`, "", "", "is empty"},
		{"opt a b", "", "a", `has an argument too many; quote a value that holds spaces`},
		{"opt a {\n b\n}", "", "a", "takes no block"},
	} {
		v := test.before
		check(t, test.input, String(line(test.input), &v), test.err)
		if v != test.want {
			t.Errorf("%s: got %q", test.input, v)
		}
	}
}

func TestStrings(t *testing.T) {
	for _, test := range []struct {
		input  string
		before []string
		want   []string
		err    string
	}{
		{"opt a", nil, []string{"a"}, ""},
		{"opt a b", nil, []string{"a", "b"}, ""},
		{"opt a", []string{"b"}, []string{"b"}, "already given"},
		{"opt", nil, nil, "needs at least one value"},
		{`opt a ""`, nil, nil, "a value is empty"},
		{"opt a {\n b\n}", nil, []string{"a"}, "takes no block"},
	} {
		v := test.before
		check(t, test.input, Strings(line(test.input), &v), test.err)
		if !reflect.DeepEqual(v, test.want) {
			t.Errorf("%s: got %q", test.input, v)
		}
	}
}

func TestPair(t *testing.T) {
	var v map[string]string
	for _, test := range []struct{ input, err string }{
		{"opt a b", ""},
		{"opt c d", ""},
		{"opt a e", "opt a is already given"},
		{"opt", "needs a name and a value"},
		{"opt f", "needs a name and a value"},
		{`opt g ""`, "opt g: is empty"},
		{`opt "" g`, "needs a name and a value"},
		{"opt g h i", `has an argument too many; quote a value that holds spaces`},
	} {
		check(t, test.input, Pair(line(test.input), &v), test.err)
	}
	if v["a"] != "b" || v["c"] != "d" {
		t.Errorf("got %v", v)
	}
}

func TestDuration(t *testing.T) {
	for _, test := range []struct {
		input, err string
		before     time.Duration
		want       time.Duration
	}{
		{"opt 10s", "", 0, 10 * time.Second},
		{"opt 1m30s", "", 0, 90 * time.Second},
		{"opt 1d", "", 0, 24 * time.Hour},
		{"opt 1s", "already given", 2, 2},
		{"opt", "needs a duration", 0, 0},
		{"opt 10", `"10" is not a duration`, 0, 0},
		{"opt soon", `"soon" is not a duration`, 0, 0},
		{"opt 0s", "above zero", 0, 0},
		{"opt -1s", "above zero", 0, 0},
		{"opt 1s 2s", `has an argument too many; quote a value that holds spaces`, 0, time.Second},
	} {
		v := caddy.Duration(test.before)
		check(t, test.input, Duration(line(test.input), &v), test.err)
		if time.Duration(v) != test.want {
			t.Errorf("%s: got %v", test.input, time.Duration(v))
		}
	}
}

func TestSize(t *testing.T) {
	const none = -1
	for _, test := range []struct {
		input, err string
		want       int64
	}{
		{"opt 0", "", 0},
		{"opt 1", "", 1},
		{"opt 1MiB", "", 1 << 20},
		{"opt 1mib", "", 1 << 20},
		{"opt 1MB", "", 1_000_000},
		{"opt 1.5KiB", "", 1536},
		{"opt 1TiB", "", 1 << 40},
		{"opt 2TiB", `"2TiB" is not a size`, none},
		{"opt 99999999999999999999EiB", "is not a size", none},
		{"opt -1", `"-1" is not a size`, none},
		{"opt big", `"big" is not a size`, none},
		{"opt", "needs a size", none},
		{"opt 1KiB 2", `has an argument too many; quote a value that holds spaces`, 1024},
	} {
		var v *int64
		check(t, test.input, Size(line(test.input), &v), test.err)
		if (v == nil) != (test.want == none) || v != nil && *v != test.want {
			t.Errorf("%s: got %v", test.input, v)
		}
	}
	zero := new(int64)
	check(t, "opt 1", Size(line("opt 1"), &zero), "already given")
}

func TestFlag(t *testing.T) {
	v := false
	check(t, "opt", Flag(line("opt"), &v), "")
	if !v {
		t.Error("not set")
	}
	check(t, "opt", Flag(line("opt"), &v), "already given")
	v = false
	check(t, "opt on", Flag(line("opt on"), &v), `has an argument too many; quote a value that holds spaces`)
}

func TestResolve(t *testing.T) {
	t.Setenv("TEST_SET", "valu3 {env.TEST_EMPTY}")
	t.Setenv("TEST_EMPTY", "")
	dir := t.TempDir()
	full, empty := filepath.Join(dir, "full"), filepath.Join(dir, "empty")
	for file, content := range map[string]string{full: "valu3 +%\r\n", empty: "\n"} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for value, want := range map[string]string{
		"valu3":                "valu3",
		"{env.TEST_SET}":       "valu3 {env.TEST_EMPTY}", // what is resolved is not resolved again
		"id-{env.TEST_SET}":    "id-valu3 {env.TEST_EMPTY}",
		"{file." + full + "}":  "valu3 +%",
		"valu3{unclosed":       "valu3{unclosed",
		`valu3\{not-resolved}`: "valu3{not-resolved}",
	} {
		got, err := Resolve("opt", value)
		if err != nil || got != want {
			t.Errorf("%s: got %q, %v", value, got, err)
		}
		secret, err := ResolveSecret("opt", value)
		if err != nil || secret.Reveal() != want {
			t.Errorf("%s: as a secret: %v", value, err)
		}
	}
	for value, source := range map[string]string{
		"{env.TEST_EMPTY}":            "{env.TEST_EMPTY}",
		"{env.TEST_UNSET}":            "{env.TEST_UNSET}",
		"{no.such.placeholder}":       "{no.such.placeholder}",
		"{file." + empty + "}":        "{file." + empty + "}",
		"{file." + dir + "/none}":     "{file." + dir + "/none}",
		"valu3{env.TEST_UNSET}":       "a placeholder in it",
		"{env.TEST_UNSET}valu3":       "a placeholder in it",
		"{env.TEST_SET}{env.TEST_NO}": "a placeholder in it",
		"":                            "a placeholder in it",
	} {
		for name, resolve := range map[string]func(string, string) (string, error){"plain": Resolve, "header": ResolveHeader} {
			got, err := resolve("opt", value)
			if err == nil || got != "" || !strings.HasPrefix(err.Error(), "opt: "+source+" has no value") || strings.Contains(err.Error(), "valu3") {
				t.Errorf("%s %s: got %q, %v", name, value, got, err)
			}
		}
		if secret, err := ResolveSecret("opt", value); err == nil || !secret.IsZero() {
			t.Errorf("%s: as a secret: %v", value, err)
		}
	}
}

func TestResolveOfAFileThatHangs(t *testing.T) {
	defer func(before time.Duration) { readTimeout = before }(readTimeout)
	readTimeout = 20 * time.Millisecond
	path := filepath.Join(t.TempDir(), "fifo")
	if err := exec.Command("mkfifo", path).Run(); err != nil {
		t.Skipf("no named pipe: %v", err)
	}
	before := runtime.NumGoroutine()
	for range 50 {
		_, err := Resolve("secret", "{file."+path+"}")
		if want := "secret: reading {file." + path + "} takes too long"; err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Fatalf("got %v, want %s", err, want)
		}
	}
	if got := runtime.NumGoroutine(); got > before+10 { // 50 × 20 ms, in waits that double
		t.Errorf("%d goroutines, %d before: each read that hangs has one", got, before)
	}
	// it is replaced, and read anew
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("a secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		if got, err := Resolve("secret", "{file."+path+"}"); err == nil && got == "a secret" {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("got %q, %v; want the file that has taken its place", got, err)
		}
	}
	path += ".old"
	if err := os.WriteFile(path, []byte("at last"), 0o600); err != nil { // those that wait for a writer get it
		t.Fatal(err)
	}
}

func TestHeader(t *testing.T) {
	for _, value := range []string{"", "a b\t~", "ä€", `"'\`} {
		if err := Header("opt", value); err != nil {
			t.Errorf("%q: %v", value, err)
		}
	}
	for _, value := range []string{"valu3\n", "valu3\r\nX: y", "\x00valu3", "valu3\x7f"} {
		if err := Header("opt", value); err == nil || !strings.HasPrefix(err.Error(), "opt: ") || strings.Contains(err.Error(), "valu3") {
			t.Errorf("%q: %v", value, err)
		}
	}
}

func TestIsPlaceholder(t *testing.T) {
	for value, want := range map[string]bool{
		"{env.X}":            true,
		"{file./run/secret}": true,
		"":                   false,
		"secret":             false,
		"{env.X}{env.Y}":     false,
		"secret{env.X}":      false,
		"{env.X}secret":      false,
		"{secret":            false,
		"secret}":            false,
		"{":                  false,
		"{$X}":               true, // it is replaced before a module sees it
	} {
		if got := IsPlaceholder(value); got != want {
			t.Errorf("%q: got %t", value, got)
		}
	}
}

func TestURLs(t *testing.T) {
	const (
		both     = iota // an origin, and so an endpoint
		endpoint        // an endpoint only
		neither
	)
	for value, want := range map[string]int{
		"https://api.example.com":         both,
		"http://127.0.0.1:8080":           both,
		"https://[::1]:8443":              both,
		"HTTPS://api.example.com":         both,
		"https://api.example.com/":        endpoint,
		"https://api.example.com/v1":      endpoint,
		"https://api.example.com?a=b":     endpoint,
		"https://api.example.com?":        endpoint,
		"":                                neither,
		"api.example.com":                 neither,
		"api.example.com:443":             neither,
		"//api.example.com":               neither,
		"/path":                           neither,
		"https://":                        neither,
		"https://:443":                    neither,
		"https:api.example.com":           neither,
		"ftp://api.example.com":           neither,
		"unix//run/api.sock":              neither,
		"https://u:passw0rd@api.x":        neither,
		"ftp://u:passw0rd@api.x":          neither,
		"https://u:pa/passw0rd@api.x":     neither,
		"https://u@api.x":                 neither,
		"https://api.example.com#frag":    neither,
		"https://api.example.com#":        neither,
		"https://{env.HOST}":              neither,
		"https://api.example.com/a b\x7f": neither,
		"https://api.example.com:port":    neither,
	} {
		for name, got := range map[string]struct {
			err error
			ok  bool
		}{
			"origin":   {Origin("opt", value), want == both},
			"endpoint": {Endpoint("opt", value), want != neither},
		} {
			switch {
			case got.ok && got.err != nil, !got.ok && got.err == nil:
				t.Errorf("%q as %s: %v", value, name, got.err)
			case got.err != nil && (!strings.HasPrefix(got.err.Error(), "opt: ") || strings.Contains(got.err.Error(), "passw0rd")):
				t.Errorf("%q as %s: %v", value, name, got.err)
			}
		}
	}
}

func TestIsPlainHTTP(t *testing.T) {
	for value, want := range map[string]bool{
		"http://api.example.com":           true,
		"HTTP://api.example.com":           true,
		"http://10.0.0.1:8080":             true,
		"http://0.0.0.0":                   true,
		"http://localhost.example.com":     true,
		"http://127.0.0.1.example.com":     true,
		"http://localhost@api.example.com": true,
		"https://api.example.com":          false,
		"http://localhost:8080":            false,
		"http://127.0.0.1:8080/token":      false,
		"http://[::1]:8080":                false,
	} {
		if got := IsPlainHTTP(value); got != want {
			t.Errorf("%s: got %t", value, got)
		}
	}
}

func TestIsLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost":           true,
		"LocalHost":           false,
		"localhost.":          false,
		"api.localhost":       false,
		"127.0.0.1":           true,
		"127.1.2.3":           true,
		"::1":                 true,
		"::ffff:127.0.0.1":    true,
		"":                    false,
		"0.0.0.0":             false,
		"::":                  false,
		"10.0.0.1":            false,
		"128.0.0.1":           false,
		"localhost.evil":      false,
		"notlocalhost":        false,
		"127.0.0.1.nip.io":    false,
		"::ffff:10.0.0.1":     false,
		"localhost.localhost": false,
	} {
		if got := IsLoopback(host); got != want {
			t.Errorf("%s: got %t", host, got)
		}
	}
}
