package e2e_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// The transcripts of the documentation are true: what stands in a ```console block
// after a comment
//
//	<!-- transcript: <scene> -->
//
// is run in bash, in order, and each command prints what the block says. A comment of
// several lines holds a script that is run before, which readers do not see:
//
//	<!-- transcript: <scene>
//	curl -X PUT http://127.0.0.1:9001/sandbox/faults -d '{"token":{"status":503}}'
//	-->
//
// The blocks of one page with the same scene are one session in one directory, unless
// the comment says `<scene>, anew`.
//
// In what is printed, `…` stands for anything within a line, a line of `…` for any
// number of lines; times, dates and durations match any other, and so do the runs of
// blanks between columns. A command that ends in a backslash goes on in the next line.
//
// The directory of a session has a copy of examples/, and testdata/. In it and in the
// commands `caddy` and `go run ./cmd/caddy` are the program under test, and the ports
// of [transcriptPorts] are replaced by free ones, which the output does not show.

// scene is what a transcript begins with.
type scene struct {
	caddyfile string // is run, and is the file Caddyfile in the directory
	setup     string // a script that is run before
	ready     string // a script that ends once all is up
	needs     []string
}

const (
	sandboxesReady = `
until curl -s http://127.0.0.1:9001/sandbox/stats | grep -q '"live_tokens":1' &&
	curl -s http://127.0.0.1:9002/sandbox/stats | grep -q '"live_tokens":1'; do sleep 0.05; done`
	makeCallers = `
export CALLERS=$PWD/callers TENANTS=$PWD/tenants
`
	vouchersReady = `
until curl -s -f http://127.0.0.1:8080/v1/vouchers/BLCKFRDY -o /dev/null -H 'X-Tenant: acme' -u "any:$(cat "$CALLERS/%s")"; do sleep 0.05; done`
)

var scenes = map[string]scene{
	// only the directory, with no Caddy running
	"none":    {},
	"sandbox": {caddyfile: "examples/sandbox/Caddyfile", ready: sandboxesReady},
	"observability": {
		caddyfile: "examples/observability/Caddyfile",
		setup:     "export SANDBOX_SECRET=anything",
		ready:     sandboxesReady,
	},
	"callers": {
		caddyfile: "examples/callers/Caddyfile",
		setup:     makeCallers + "examples/callers/setup.sh",
		ready:     fmt.Sprintf(vouchersReady, "shop"),
		needs:     []string{"openssl"},
	},
	"tenants": {
		caddyfile: "examples/tenants/Caddyfile",
		setup:     makeCallers + "examples/tenants/setup.sh",
		ready:     fmt.Sprintf(vouchersReady, "desk"),
	},
	"agents": {
		caddyfile: "examples/agents/Caddyfile",
		setup:     makeCallers + "mkdir callers; caddy egress key >callers/agent; export MCP_SECRET=anything",
		ready:     fmt.Sprintf(vouchersReady, "agent"),
	},
	"fleet": {
		setup: "examples/fleet/run.sh >run.log 2>&1 &",
		ready: `
until KEY=$(sed -n "s/.*Bearer \([^']*\)'.*/\1/p" run.log) && [ -n "$KEY" ] &&
	curl -s -f http://127.0.0.1:8080/v1/me -o /dev/null -H "Authorization: Bearer $KEY"; do sleep 0.05; done
for admin in 2021 2022 2023; do
	until caddy egress status --address localhost:$admin | grep -q fresh; do sleep 0.1; done
done`,
	},
}

// transcriptPorts are the ports of the examples, and of Caddy's admin API.
var transcriptPorts = []string{
	"2019", "2021", "2022", "2023", "8080", "8081", "8082", "8083", "8084", "8443", "9001", "9002", "9003", "9090",
}

// checkedElsewhere are the blocks without a scene, by page and first line, with the
// test that looks at each. A page alone stands for all blocks in it.
var checkedElsewhere = map[string]string{
	"xcaddy.md":       ".ci/run builds",
	"docs/scaling.md": "TestFleetExample",

	// the order of its rows depends on the ports
	"docs/guides/callers.md $ CALLERS=/run/callers caddy egress access --config examples/callers/Caddyfile": "TestGuideShowsWhoMayDoWhat",
}

func TestTranscripts(t *testing.T) {
	t.Parallel()
	for _, page := range documents(t) {
		blocks := transcripts(t, page)
		if len(blocks) == 0 {
			continue
		}
		t.Run(page, func(t *testing.T) {
			t.Parallel()
			var current *session
			for _, block := range blocks {
				if current == nil || current.scene != block.scene || block.anew {
					current.end()
					current = startSession(t, block.scene)
				}
				current.script(block.hidden)
				for _, step := range block.steps {
					got, status := current.execute(step.command)
					// a token request may just be under way, or a line of the log
					passes := strings.HasPrefix(step.command, "caddy egress status") || strings.Contains(step.command, "access.log")
					for end := time.Now().Add(20 * time.Second); passes && !step.matches(got) && time.Now().Before(end); {
						got, status = current.execute(step.command)
					}
					if !step.matches(got) {
						t.Errorf("%s:%d: $ %s\nprints\n%s\nThe page says\n%s", page, step.line, step.command, indent(got), indent(step.output))
					}
					if failed := strings.HasPrefix(got, "Error: ") || strings.Contains(got, "\nError: "); failed != (status != "0") && !strings.Contains(step.command, "2>/dev/null") {
						t.Errorf("%s:%d: $ %s\nends with status %s, and prints\n%s", page, step.line, step.command, status, indent(got))
					}
				}
			}
			current.end()
		})
	}
}

// documents returns the paths of all pages, from the root of the repository.
func documents(t *testing.T) (pages []string) {
	t.Helper()
	root := os.DirFS("..")
	err := fs.WalkDir(root, ".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") && path != "." || slices.Contains([]string{"node_modules", "testdata"}, entry.Name())):
			return fs.SkipDir
		case !entry.IsDir() && strings.HasSuffix(path, ".md"):
			pages = append(pages, path)
		}
		return nil
	})
	if err != nil || len(pages) == 0 {
		t.Fatalf("pages: %q, error %v", pages, err)
	}
	return pages
}

// transcript is a ```console block.
type transcript struct {
	scene  string
	anew   bool
	hidden string // the script before
	steps  []transcriptStep
}

type transcriptStep struct {
	line    int
	command string
	output  string
}

// transcripts returns the blocks of a page that have a scene. The others have to be
// in checkedElsewhere.
func transcripts(t *testing.T, page string) (blocks []transcript) {
	t.Helper()
	lines := strings.Split(egresstest.ReadText(t, "../"+page), "\n")
	var next *transcript // what a comment has announced
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSpace(lines[i])
		if comment, found := strings.CutPrefix(line, "<!-- transcript:"); found {
			next = &transcript{}
			head, _, closed := strings.Cut(comment, "-->")
			for !closed {
				if i++; i == len(lines) {
					t.Fatalf("%s: the comment of a transcript has no end", page)
				}
				var script string
				script, _, closed = strings.Cut(lines[i], "-->")
				next.hidden += script + "\n"
			}
			next.scene, next.anew = strings.CutSuffix(strings.TrimSpace(head), ", anew")
			if _, known := scenes[next.scene]; !known {
				t.Errorf("%s:%d: no scene is named %q", page, i+1, next.scene)
				next = nil
			}
			continue
		}
		if line != "```console" {
			if line != "" && next != nil {
				t.Errorf("%s:%d: the comment before is not followed by a transcript", page, i+1)
				next = nil
			}
			continue
		}
		margin := lines[i][:strings.Index(lines[i], "`")]
		first := i + 1
		var text []string
		for i++; i < len(lines) && strings.TrimSpace(lines[i]) != "```"; i++ {
			text = append(text, strings.TrimPrefix(lines[i], margin))
		}
		switch {
		case next != nil:
			next.steps = transcriptSteps(text, first+1)
			if len(next.steps) == 0 {
				t.Errorf("%s:%d: the transcript has no command", page, first)
			}
			blocks = append(blocks, *next)
			next = nil
		case len(text) > 0 && checkedElsewhere[page] == "" && checkedElsewhere[page+" "+text[0]] == "":
			t.Errorf("%s:%d: nobody checks this transcript: mark it with a scene, or name its test in checkedElsewhere", page, first)
		}
	}
	return blocks
}

// transcriptSteps returns the commands of a block, whose first line is given, each with
// what it prints.
func transcriptSteps(text []string, line int) (steps []transcriptStep) {
	goesOn := false
	for i, content := range text {
		command, starts := strings.CutPrefix(content, "$ ")
		switch {
		case starts:
			steps = append(steps, transcriptStep{line: line + i, command: command})
		case len(steps) == 0: // before any command
			continue
		case goesOn:
			command = content
			steps[len(steps)-1].command += "\n" + content
		default:
			steps[len(steps)-1].output += content + "\n"
		}
		goesOn = (starts || goesOn) && strings.HasSuffix(command, `\`)
	}
	return steps
}

// matches reports whether a command may have printed got.
func (s transcriptStep) matches(got string) bool {
	var pattern strings.Builder
	pattern.WriteString(`^`)
	for line := range strings.Lines(likeAnyOther(s.output)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "…" {
			pattern.WriteString(`(?:.*\n)*?`)
			continue
		}
		parts := strings.Split(line, "…")
		for i := range parts {
			parts[i] = regexp.QuoteMeta(parts[i])
		}
		pattern.WriteString(strings.Join(parts, `.*?`) + `\n`)
	}
	pattern.WriteString(`$`)
	return regexp.MustCompile(pattern.String()).MatchString(likeAnyOther(got))
}

// passing are texts that are others each time, and what stands for them.
var passing = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`), "<time>"},
	{regexp.MustCompile(`\b\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(\.\d+)?`), "<time>"},
	{regexp.MustCompile(`\b\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT`), "<time>"},
	{regexp.MustCompile(`\b\d\d:\d\d:\d\d\b`), "<clock>"},
	{regexp.MustCompile(`\b1[6-9]\d{8}(\.\d+)?(e9)?\b`), "<time>"},                        // in seconds since 1970
	{regexp.MustCompile(`\b(\d+h)?(\d+m)?\d+(\.\d+)?(ms|µs|s)\b|\b\d+h\b`), "<duration>"}, // not 5m, which may be an option
	{regexp.MustCompile(`\bin \d+m\b`), "in <duration>"},
	{regexp.MustCompile(`"(duration|ts)":( ?)[\d.e+-]+`), `"$1":$2<number>`},
	{regexp.MustCompile(`(\S) {2,}`), "$1  "}, // between columns, whose width depends on all that
}

// likeAnyOther returns text with what differs each time replaced.
func likeAnyOther(text string) string {
	text = regexp.MustCompile(`[ \t\r]+\n`).ReplaceAllString(strings.TrimRight(text, " \r\n")+"\n", "\n")
	for _, p := range passing {
		text = p.pattern.ReplaceAllString(text, p.with)
	}
	return text
}

func indent(text string) string {
	return "\t" + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n\t")
}

// session is a shell in the directory of a scene.
type session struct {
	t        *testing.T
	scene    string
	dir      string
	bash     *exec.Cmd
	stdin    io.WriteCloser
	stdout   *bufio.Reader
	forth    []portPattern // to the ports of this session
	back     []portPattern
	commands int
}

type portPattern struct {
	pattern *regexp.Regexp
	with    string
}

// startSession starts what a scene consists of. It ends with the test.
func startSession(t *testing.T, name string) *session {
	t.Helper()
	scene := scenes[name]
	for _, program := range append([]string{"bash", "curl", "jq", "sed", "grep"}, scene.needs...) {
		requireClient(t, program, "install it", func(string) error { return nil })
	}
	s := &session{t: t, scene: name, dir: t.TempDir()}
	for _, port := range transcriptPorts {
		free := egresstest.Port(egresstest.FreeAddr(t))
		s.forth = append(s.forth, portPattern{regexp.MustCompile(`\b` + port + `\b`), free})
		s.back = append(s.back, portPattern{regexp.MustCompile(`\b` + free + `\b`), port})
	}
	s.furnish(scene)

	s.bash = exec.Command("bash", "--noprofile", "--norc")
	s.bash.Dir = s.dir
	s.bash.Env = []string{
		"PATH=" + filepath.Join(s.dir, "bin") + ":" + os.Getenv("PATH"), "CADDY=" + filepath.Join(s.dir, "bin/caddy"),
		"CADDY_ADMIN=" + s.at("localhost:2019"), "HOME=" + s.dir, "XDG_CONFIG_HOME=" + s.dir, "XDG_DATA_HOME=" + s.dir,
		"TMPDIR=" + s.dir, "LC_ALL=C.UTF-8", "TZ=UTC", "GORACE=" + os.Getenv("GORACE"),
	}
	stdin, err := s.bash.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := s.bash.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.stdin, s.stdout = stdin, bufio.NewReader(stdout)
	if err := s.bash.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	// the shell ends with its input, so also if this process is killed
	s.script(`trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT; umask 077`)
	s.script(scene.setup)
	if scene.caddyfile != "" {
		s.script("caddy run --config Caddyfile --adapter caddyfile >caddy.log 2>&1 &")
	}
	s.script(scene.ready)
	return s
}

// caddyWrapper is the program caddy. What a command logs beside what it prints is left
// out unless it is a warning: a terminal shows it in another form.
const caddyWrapper = `#!/usr/bin/env bash
export %s=1
program='%s'
case $1 in run | start) exec -a caddy "$program" "$@" ;; esac
log=$(mktemp)
"$program" "$@" 2>"$log"
status=$?
grep -v '^{"level":"info"' "$log" >&2
rm "$log"
exit $status
`

// furnish fills the directory.
func (s *session) furnish(scene scene) {
	s.t.Helper()
	write := func(name, content string, mode os.FileMode) {
		path := filepath.Join(s.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), mode)); err != nil {
			s.t.Fatal(err)
		}
	}
	program, err := filepath.Abs(os.Args[0])
	if err != nil {
		s.t.Fatal(err)
	}
	write("bin/caddy", fmt.Sprintf(caddyWrapper, egresstest.AsCaddy, program), 0o700)
	write(".curlrc", "silent\nshow-error\nnoproxy = *\nmax-time = 30\n", 0o600)
	examples := os.DirFS("../examples")
	err = fs.WalkDir(examples, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().IsRegular() {
			write("examples/"+path, s.at(egresstest.ReadText(s.t, "../examples/"+path)), info.Mode().Perm()|0o200)
		}
		return err
	})
	testdata, absErr := filepath.Abs("../testdata")
	if err = errors.Join(err, absErr, os.Symlink(testdata, filepath.Join(s.dir, "testdata")), os.Symlink("caddy.log", filepath.Join(s.dir, "access.log"))); err != nil {
		s.t.Fatal(err)
	}
	if scene.caddyfile != "" {
		write("Caddyfile", s.at(egresstest.ReadText(s.t, "../"+scene.caddyfile)), 0o600)
	}
}

// at returns text with the ports of this session.
func (s *session) at(text string) string {
	for _, port := range s.forth {
		text = port.pattern.ReplaceAllString(text, port.with)
	}
	return text
}

// script runs a script that has to succeed.
func (s *session) script(script string) {
	s.t.Helper()
	if strings.TrimSpace(script) == "" {
		return
	}
	if output, status := s.execute(script); status != "0" {
		s.t.Fatalf("%s\nends with status %s and prints\n%s", script, status, indent(output))
	}
}

// execute runs a script, and returns what it prints and its exit status.
func (s *session) execute(script string) (output, status string) {
	s.t.Helper()
	s.commands++
	file := fmt.Sprintf("command-%d", s.commands)
	script = s.at(strings.ReplaceAll(script, "go run ./cmd/caddy", "caddy"))
	if err := os.WriteFile(filepath.Join(s.dir, "bin", file), []byte(script+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	fmt.Fprintf(s.stdin, ". bin/%s </dev/null 2>&1; printf '\\n%s ends %%d\\n' $?\n", file, file)
	timeout := time.AfterFunc(time.Minute, func() { _ = s.bash.Process.Kill() })
	defer timeout.Stop()
	for {
		line, err := s.stdout.ReadString('\n')
		if err != nil {
			log, _ := os.ReadFile(filepath.Join(s.dir, "caddy.log"))
			s.t.Fatalf("%s\ndoes not end, or ends the shell, and has printed\n%s\nCaddy's log is\n%s", script, indent(output), indent(string(log)))
		}
		if ended, found := strings.CutPrefix(line, file+" ends "); found {
			output = strings.TrimSuffix(output, "\n")
			for _, port := range s.back {
				output = port.pattern.ReplaceAllString(output, port.with)
			}
			return output, strings.TrimSpace(ended)
		}
		output += line
	}
}

// end ends the shell, and all that it has started.
func (s *session) end() {
	if s == nil || s.bash == nil {
		return
	}
	_ = s.stdin.Close()
	kill := time.AfterFunc(20*time.Second, func() { _ = s.bash.Process.Kill() })
	defer kill.Stop()
	_ = s.bash.Wait() // with the status of its last command
	s.bash = nil
}

// The runner itself: what it reads, and what it takes for the same.
func TestTranscriptsAreCompared(t *testing.T) {
	for name, test := range map[string]struct {
		want, got string
		matches   bool
	}{
		"the same":                {"a\nb\n", "a\nb", true},
		"another line":            {"a\n", "a\nb", false},
		"less":                    {"a\nb\n", "a", false},
		"times":                   {"fresh  in 9m50s  since 02:10:48 (2s)\n", "fresh   in 10m0s since 18:46:17 (1.5s)\n", false},
		"times and columns":       {"fresh  in 9m50s  since 02:10:48 (2s)\n", "fresh   in 10m0s    since 18:46:17 (1.5s)\n", true},
		"a date":                  {"Date: Sat, 28 Nov 2026 21:17:13 GMT\n", "Date: Sun, 29 Nov 2026 01:02:03 GMT\r\n", true},
		"a limit is not a time":   {"5/m\n", "6/m\n", false},
		"anything in a line":      {"{\"a\":1,…}\n", "{\"a\":1,\"b\":2}", true},
		"not beyond it":           {"{\"a\":1,…}\n", "{\"a\":1,\n}", false},
		"any lines":               {"a\n…\nz\n", "a\nb\nc\nz", true},
		"no line":                 {"a\n…\nz\n", "a\nz", true},
		"nothing":                 {"\n", "", true},
		"something for nothing":   {"\n", "a", false},
		"seconds since 1970":      {`{"expires_at":1795534770}` + "\n", `{"expires_at":1764364633}`, true},
		"another number":          {`{"expires_in":3600}` + "\n", `{"expires_in":3599}`, false},
		"special characters":      {"a.c (d)\n", "abc (d)", false},
		"an answer with a header": {"HTTP/1.1 200 OK\n\nbody\n", "HTTP/1.1 200 OK\r\n\r\nbody", true},
	} {
		if got := (transcriptStep{output: test.want}).matches(test.got); got != test.matches {
			t.Errorf("%s: %q for %q: %v, want %v", name, test.got, test.want, got, test.matches)
		}
	}
	steps := transcriptSteps([]string{"$ a \\", "  b", "c", "", "$ d"}, 7)
	if fmt.Sprint(steps) != fmt.Sprint([]transcriptStep{{7, "a \\\n  b", "c\n\n"}, {11, "d", ""}}) {
		t.Errorf("steps are %v", steps)
	}
}
