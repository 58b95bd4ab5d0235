package e2e_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// What the guard lets pass is held against what real servers take it for: nginx,
// Node.js, Python and Go, each reading paths in the ways that are common. They
// say in X-Operation which operation it is to them.
//
// A server that is not installed is skipped, or with EGRESS_REQUIRE_DIFFERENTIAL=1
// a failure. EGRESS_DIFFERENTIAL_TIME=10m has each server tried for as long:
//
//	EGRESS_DIFFERENTIAL_TIME=10m go test -run TestAllowDifferential/nginx -timeout 1h -v ./e2e
const (
	requireDifferential = "EGRESS_REQUIRE_DIFFERENTIAL"
	differentialTime    = "EGRESS_DIFFERENTIAL_TIME"

	// differentialVariants is how many paths each server is sent by default.
	differentialVariants = 1200
)

// differentialServers start the servers: each returns the addresses of its ways
// to read a path, by name.
var differentialServers = map[string]func(testing.TB) map[string]string{
	"nginx":  startNginx,
	"node":   func(t testing.TB) map[string]string { return startProgram(t, "node", "server.mjs") },
	"python": func(t testing.TB) map[string]string { return startProgram(t, "python3", "server.py") },
	"go":     startGo,
}

// differentialAllow is what the gateway permits, and permittedOperations what it
// comes to at the servers. The revocation endpoint is denied without an allow, too.
const differentialAllow = `
	allow GET /v1/vouchers/*
	allow POST /v1/vouchers/*/validate
	allow PUT /v1/campaigns
	allow DELETE /v1/vouchers/*/redemption`

var permittedOperations = map[string][]string{
	"GET":    {"vouchers", "voucher", "validate", "redemption", "below-voucher"}, // vouchers: the rest of the path is empty
	"POST":   {"validate"},
	"PUT":    {"campaigns"},
	"DELETE": {"redemption"},
}

// differential is a gateway in front of the ways of one server.
type differential struct {
	wire   *egresstest.Wire
	ways   []string // names
	passed int      // requests that a server has taken for an operation
	total  int
}

func startDifferential(t testing.TB, name string) *differential {
	d := new(differential)
	tokens := egresstest.NewTokens(t)
	routes := ""
	for way, addr := range differentialServers[name](t) {
		d.ways = append(d.ways, way)
		for mode, options := range map[string]string{"restricted": differentialAllow, "open": ""} {
			id := fmt.Sprintf("%s-%d", mode, len(d.ways)-1)
			routes += fmt.Sprintf("@%s header X-Way %s\nhandle @%s {\n%s\n}\n", id, id, id,
				egresstest.Egress("http://"+addr, tokens.URL, "revocation_url http://"+addr+"/v1/oauth/revoke"+options))
		}
	}
	d.wire = egresstest.StartGateway(t, routes, egresstest.WithoutLog()).Wire()
	return d
}

// try sends target to the way of a server and fails the test if it takes it for
// what is not permitted.
func (d *differential) try(t testing.TB, method, target string, way int, open bool) {
	t.Helper()
	mode := "restricted"
	if open {
		mode = "open"
	}
	d.total++
	resp, body, err := d.wire.TrySend(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nX-Way: %s-%d\r\nContent-Length: 0\r\n\r\n", method, target, mode, way))
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	operation := resp.Header.Get("X-Operation")
	if operation == "" && resp.StatusCode == http.StatusOK {
		operation = body // of a file
	}
	if operation == "" {
		return // refused by the gateway, or nothing to the server
	}
	d.passed++
	if permitted := slices.Contains(permittedOperations[method], operation); operation == "revoke" || !open && !permitted {
		t.Errorf("%s %s is let pass (%s), and %q takes it for %s: %q", method, target, mode, d.ways[way], operation, body)
	}
}

// differentialTargets are honest and forbidden; hostile makes variants of them.
var differentialTargets = []string{
	"GET /v1/vouchers/SUMMER", "GET /v1/vouchers/a/b", "POST /v1/vouchers/SUMMER/validate", "PUT /v1/campaigns", "DELETE /v1/vouchers/SUMMER/redemption",
	"GET /v1/campaigns", "GET /v1/campaigns/1", "POST /v1/vouchers/SUMMER", "POST /v1/vouchers/SUMMER/redemption", "POST /v1/vouchers", "PUT /v1/vouchers/SUMMER", "PUT /v1/campaigns/1",
	"DELETE /v1/vouchers/SUMMER", "GET /v1/oauth/revoke", "POST /v1/oauth/revoke", "GET /v1/vouchers/../campaigns", "GET /v1/vouchers/../oauth/revoke", "POST /v1/vouchers/SUMMER/../redemption/validate",
}

// differentialTokens are what some server does not take for what it looks like.
var differentialTokens = []string{
	"/", "//", "/./", "/../", "..", ".", ";", ";a=1", "/;/", "/..;/", "?", "?x=1", "??", "*", "+", "~", ":", "@", "&", "=", ",", "|", "\\", "\"", "<", "^", "`", "{",
	"%2f", "%2F", "%252f", "%2e", "%252e", "%2e%2e", "..%2f", "%2f..", "%2f..%2f", "%3f", "%3F", "%253f", "%23", "%2523", "%3b", "%253b", "%5c", "%255c", "%25", "%2525", "%00", "%20", "%2520", "%09", "%0a", "%0d%0a", "%7f", "%85",
	"..%20", "%20..", "..+", ".%20.", "...", "....", "..%3f", "..%23", "..%3b", "..%00", "..%09", ".%09.", "..%0a", "%3a%2f%2f", "%40", "%2b",
	"%c0%ae", "%c0%af", "%e0%80%af", "%ff", "%c2%85", "%c2%a0", "%c2%ad", "%e2%80%8b", "%e2%80%8d", "%ef%bb%bf", "%e2%81%a0", "%e2%80%a4", "%e2%80%a5", "%e2%80%a6", "%e2%81%84", "%e2%88%95", "%ef%bc%8e", "%ef%bc%8f", "%ef%bc%bc", "%ef%bc%85", "%ef%bc%9f", "%ef%bc%83", "%ef%bc%9b", "%e3%80%82", "%e2%80%a8",
	"%u002e", "%25u002e", "%25u002f", "%c3%9f", "%e2%84%aa", "%c4%b0", "%c5%bf", "%c2%bd", "%e2%84%80", "%f0%9f%8e%81", "%cc%81",
	"/v1", "/v1/vouchers", "/v1/vouchers/", "/campaigns", "/oauth/revoke", "/validate", "/redemption", "http://localhost", "//localhost", "//user@localhost", "/index.html",
}

// hostile returns a variant of target.
func hostile(random *rand.Rand, target string) string {
	for range random.IntN(4) {
		i := random.IntN(len(target) + 1)
		switch kind := random.IntN(8); {
		case kind < 3: // insert
			target = target[:i] + differentialTokens[random.IntN(len(differentialTokens))] + target[i:]
		case kind == 3 && i < len(target): // replace
			target = target[:i] + differentialTokens[random.IntN(len(differentialTokens))] + target[i+1:]
		case kind == 4 && i < len(target): // escape, once or more often
			escaped := fmt.Sprintf("%%%02x", target[i])
			for range random.IntN(3) {
				escaped = strings.ReplaceAll(escaped, "%", "%25")
			}
			target = target[:i] + escaped + target[i+1:]
		case kind == 5: // a character beyond ASCII that is like one in it, or any
			r := rune(0x80 + random.IntN(0x2000))
			if random.IntN(2) == 0 {
				r = []rune{0xff01, 0x2000, 0x2100, 0xfe50, 0x1d400}[random.IntN(5)] + rune(random.IntN(0x5e))
			}
			target = target[:i] + url.PathEscape(string(r)) + target[i:]
		case kind == 6: // any byte
			target = target[:i] + fmt.Sprintf("%%%02X", random.IntN(256)) + target[i:]
		default: // end
			target += differentialTokens[random.IntN(len(differentialTokens))]
		}
	}
	if !strings.HasPrefix(target, "/") && random.IntN(2) == 0 {
		target = "/" + target
	}
	return target
}

func TestAllowDifferential(t *testing.T) {
	for name := range differentialServers {
		t.Run(name, func(t *testing.T) {
			d := startDifferential(t, name)
			for _, seed := range differentialSeeds {
				method, target, _ := strings.Cut(seed, " ")
				for way := range d.ways {
					d.try(t, method, target, way, false)
					d.try(t, method, target, way, true)
				}
			}
			duration, _ := time.ParseDuration(os.Getenv(differentialTime))
			seed := uint64(9)
			if duration > 0 {
				seed = rand.Uint64()
			}
			random, end := rand.New(rand.NewPCG(seed, 9)), time.Now().Add(duration)
			for n := 0; n < differentialVariants || time.Now().Before(end); n++ {
				method, target, _ := strings.Cut(differentialTargets[random.IntN(len(differentialTargets))], " ")
				d.try(t, method, hostile(random, target), random.IntN(len(d.ways)), random.IntN(8) == 0)
				if t.Failed() && n > 100_000 {
					break
				}
			}
			t.Logf("%d of %d requests were taken for an operation; seed %d", d.passed, d.total, seed)
			if d.passed < d.total/20 {
				t.Errorf("the server has taken %d of %d requests for an operation; the test says little", d.passed, d.total)
			}
		})
	}
}

// differentialSeeds are what has passed once, or nearly.
var differentialSeeds = []string{
	"GET /v1/vouchers/SUMMER", "POST /v1/vouchers/SUMMER/validate", "PUT /v1/campaigns", "DELETE /v1/vouchers/SUMMER/redemption", "GET /v1/vouchers/a%2Fb%20c", "POST /v1/vouchers/a.b+c%40example.com/validate",
	"POST /v1/vouchers/X%3F/validate", "POST /v1/vouchers/X%23/validate", "POST /v1/vouchers/X%253F/validate", "DELETE /v1/vouchers/X%3B/redemption", "POST /v1/vouchers/SUMMER%2F/validate", "DELETE /v1/vouchers/SUMME%3a%2f%2f/redemption", "DELETE /v1/vouchers/%2FSUMMER/redemption", "GET /v1/vouchers/..%3F", "GET /v1/vouchers/..%20", "GET /v1/vouchers/..%20/campaigns/1",
	"GET /v1/vouchers/%EF%BC%8E%EF%BC%8E/campaigns", "GET /v1/vouchers/%E2%80%A5/campaigns", "POST /v1/vouchers/X%EF%BC%8Fredemption%EF%BC%9F/validate", "GET /v1/vouchers/..+/campaigns/1", "GET /v1/vouchers/%25u002e%25u002e/campaigns",
	"POST /v1/oauth%2Frevoke", "POST /v1/oauth/revoke%3F", "POST /v1/oauth%EF%BC%8Frevoke", "POST /v1/%6fauth/revoke", "POST //x/v1/oauth/revoke", "POST /v1/oauth%20/revoke", "POST /v1/oauth/revoke%20",
}

// FuzzAllowDifferential is TestAllowDifferential with paths that the fuzzer
// makes, for all servers of EGRESS_DIFFERENTIAL_SERVER, by default Go's. The
// gateway runs in the process that is fuzzed, so -parallel=1 is enough.
func FuzzAllowDifferential(f *testing.F) {
	for _, seed := range slices.Concat(differentialTargets, differentialSeeds) {
		method, target, _ := strings.Cut(seed, " ")
		f.Add(byte(slices.Index(differentialMethods, method)), target)
	}
	name := os.Getenv("EGRESS_DIFFERENTIAL_SERVER")
	if name == "" {
		name = "go"
	}
	d := startDifferential(f, name)
	f.Fuzz(func(t *testing.T, method byte, target string) {
		if !strings.HasPrefix(target, "/") || len(target) > 300 || strings.ContainsFunc(target, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			return
		}
		for way := range d.ways {
			d.try(t, differentialMethods[int(method)%len(differentialMethods)], target, way, false)
			d.try(t, differentialMethods[int(method)%len(differentialMethods)], target, way, true)
		}
	})
}

var differentialMethods = []string{"GET", "POST", "PUT", "DELETE"}

// differentialProgram returns the path of a program, or skips the test.
func differentialProgram(t testing.TB, name string) string {
	t.Helper()
	for _, candidate := range []string{name, "/usr/sbin/" + name} {
		if found, err := exec.LookPath(candidate); err == nil {
			return found
		}
	}
	if os.Getenv(requireDifferential) == "1" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// startProgram runs a program of testdata/differential that prints its ports.
func startProgram(t testing.TB, interpreter, file string) map[string]string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), differentialProgram(t, interpreter), filepath.Join("../testdata/differential", file))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // at its end the program ends
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	var ports map[string]int
	if err := json.Unmarshal(line, &ports); err != nil {
		t.Fatal(err)
	}
	ways := make(map[string]string)
	for way, port := range ports {
		ways[way] = fmt.Sprintf("127.0.0.1:%d", port)
	}
	return ways
}

// nginxWays are the servers of nginx.conf.
var nginxWays = []string{"locations", "merge_slashes_off", "uri", "uri_twice", "capture", "rewrite", "rewrite_prefix", "prefix", "alias", "alias_without_slash"}

// startNginx runs nginx with testdata/differential/nginx.conf. Files below
// files say by their content which operation they are.
func startNginx(t testing.TB) map[string]string {
	t.Helper()
	program := differentialProgram(t, "nginx")
	dir := t.TempDir()
	config, err := os.ReadFile("../testdata/differential/nginx.conf")
	if err != nil {
		t.Fatal(err)
	}
	text, ways := strings.ReplaceAll(string(config), "{{dir}}", dir), make(map[string]string)
	for _, way := range nginxWays {
		ways[way] = egresstest.FreeAddr(t)
		text = strings.ReplaceAll(text, "{{"+way+"}}", ways[way])
	}
	routes, err := os.ReadFile("../testdata/differential/routes.conf")
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("nginx.conf", text)
	write("routes.conf", string(routes))
	for name, operation := range map[string]string{
		"files/vouchers/SUMMER": "voucher", "files/vouchers/a/b": "below-voucher", "files/campaigns/1": "campaign", "files/oauth/revoke": "revoke", "files/redemption": "redemption", "secret/x": "outside", "files-secret/x": "outside",
	} {
		write(name, operation)
	}
	cmd := exec.CommandContext(t.Context(), program, "-c", filepath.Join(dir, "nginx.conf"), "-p", dir, "-e", "stderr")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	egresstest.Eventually(t, "nginx", func() bool {
		conn, err := net.Dial("tcp", ways["alias"])
		if err != nil {
			return false
		}
		conn.Close()
		return true
	})
	return ways
}

// startGo serves in this process: Go's mux, and handlers that read the path
// themselves before they ask one.
func startGo(t testing.TB) map[string]string {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, operation := range map[string]string{
		"/v1/vouchers": "vouchers", "/v1/vouchers/{$}": "vouchers", "/v1/vouchers/{code}": "voucher", "/v1/vouchers/{rest...}": "below-voucher", "/v1/vouchers/{code}/validate": "validate",
		"/v1/vouchers/{code}/redemption": "redemption", "/v1/campaigns": "campaigns", "/v1/campaigns/": "campaign", "/v1/oauth/revoke": "revoke", "/v1/oauth/revoke/": "revoke",
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Operation", operation)
			fmt.Fprint(w, r.URL.Path)
		})
	}
	reading := func(read func(*url.URL) (string, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			p, err := read(r.URL)
			if err != nil {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			r.URL = &url.URL{Path: p}
			mux.ServeHTTP(w, r)
		}
	}
	ways := make(map[string]string)
	for way, handler := range map[string]http.Handler{
		"mux":    mux,
		"clean":  reading(func(u *url.URL) (string, error) { return path.Clean("/" + u.Path), nil }),
		"decode": reading(func(u *url.URL) (string, error) { return url.PathUnescape(u.Path) }),
		"decode query": reading(func(u *url.URL) (string, error) {
			p, err := url.QueryUnescape(u.EscapedPath())
			return path.Clean(p), err
		}),
		"parse decoded": reading(func(u *url.URL) (string, error) {
			d, err := url.Parse(u.Path)
			return path.Clean("/" + orEmpty(d).Path), err
		}),
		"escaped": reading(func(u *url.URL) (string, error) { return u.EscapedPath(), nil }),
		"resolve": reading(func(u *url.URL) (string, error) { d, err := new(url.URL).Parse(u.Path); return orEmpty(d).Path, err }),
	} {
		server := httptest.NewServer(handler)
		t.Cleanup(server.Close)
		ways[way] = strings.TrimPrefix(server.URL, "http://")
	}
	return ways
}

func orEmpty(u *url.URL) *url.URL {
	if u == nil {
		return new(url.URL)
	}
	return u
}
