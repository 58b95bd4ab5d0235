// Command bench measures what the gateway costs: CPU time per request beside
// other proxies, latency across token refreshes, and growth with the number of
// credentials. docs/performance.md says how to run it and how to read it.
//
// It needs Linux (it reads /proc), nginx and h2load. All that it starts listens
// on loopback addresses and is ended with it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// settings are what the command line comes to.
type settings struct {
	scenarios    []scenario
	requests     int // of 1 KiB at most, in one round
	rounds       int
	latency      time.Duration // how long the load across refreshes lasts
	rate         int           // its requests per second
	credentials  []int
	idle         time.Duration // how long idle CPU is measured
	tokenLatency time.Duration
	caddy        string
	parts        []string
	write        bool
}

// parts of the measurement, in the order in which they run.
var allParts = []string{"load", "latency", "growth"}

func parseFlags(args []string) (settings, error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	quick := flags.Bool("quick", false, "a short run, to try it")
	full := flags.Bool("full", false, "also the whole matrix of protocols, bodies and connections")
	only := flags.String("only", strings.Join(allParts, ","), "parts to measure")
	rounds := flags.Int("rounds", 0, "interleaved rounds (default 7; 3 with -quick)")
	credentials := flags.String("credentials", "", "numbers of credentials (default 1,10,100,1000,10000; 1,10,100 with -quick)")
	s := settings{requests: 25_000, latency: 24 * time.Second, rate: 1000, idle: 30 * time.Second}
	flags.DurationVar(&s.tokenLatency, "token-latency", 50*time.Millisecond, "how long the token endpoint takes to answer")
	flags.StringVar(&s.caddy, "caddy", "", "Caddy with the plugin (default: built from ./cmd/caddy)")
	flags.BoolVar(&s.write, "write", false, "write the results into docs/performance.md and docs/performance/")
	if err := flags.Parse(args); err != nil {
		return s, err
	}

	defaultRounds, defaultCredentials := 7, "1,10,100,1000,10000"
	s.scenarios = acceptance
	if *full {
		s.scenarios = append(slices.Clone(acceptance), matrix()...)
	}
	if *quick {
		defaultRounds, defaultCredentials = 3, "1,10,100"
		s.requests, s.latency, s.rate, s.idle = 5_000, 9*time.Second, 300, 6*time.Second
	}
	if s.rounds = *rounds; s.rounds <= 0 {
		s.rounds = defaultRounds
	}
	if *credentials == "" {
		*credentials = defaultCredentials
	}
	for field := range strings.SplitSeq(*credentials, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 {
			return s, fmt.Errorf("-credentials: %q is not a number of credentials", field)
		}
		s.credentials = append(s.credentials, n)
	}
	s.parts = strings.Split(*only, ",")
	for _, part := range s.parts {
		if !slices.Contains(allParts, part) {
			return s, fmt.Errorf("-only: %q is not one of %s", part, strings.Join(allParts, ", "))
		}
	}
	return s, nil
}

func run(ctx context.Context, args []string) error {
	s, err := parseFlags(args)
	if err != nil {
		return err
	}
	if s.write { // rather now than after all is measured
		if err := checkPage("docs"); err != nil {
			return err
		}
	}
	l, err := newLab(ctx, s)
	if err != nil {
		return err
	}
	defer l.close()

	measure := map[string]func(context.Context, *lab, settings) (section, error){
		"load": measureLoad, "latency": measureLatency, "growth": measureGrowth,
	}
	about, err := l.describe(ctx, args)
	if err != nil {
		return err
	}
	for _, part := range allParts {
		if !slices.Contains(s.parts, part) {
			continue
		}
		result, err := measure[part](ctx, l, s)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("measuring %s: %w", part, err)
		}
		result.name = part
		result.text = about + "\n" + result.text
		fmt.Println(result.text)
		if !s.write {
			continue
		}
		if err := result.save("docs"); err != nil {
			return err
		}
	}
	return nil
}

// lab is the place of a measurement: its programs and its directory of files
// that do not outlive it.
type lab struct {
	dir                  string
	caddy, nginx, h2load string
	processes            []*process
}

func newLab(ctx context.Context, s settings) (*lab, error) {
	l := &lab{caddy: s.caddy}
	var err error
	if l.nginx, err = lookPath("nginx"); err != nil {
		return nil, err
	}
	if l.h2load, err = lookPath("h2load"); err != nil {
		return nil, err
	}
	if l.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return nil, err
	}
	if err := l.prepare(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// lookPath finds a program, also where the PATH of a user has no administrator's
// programs.
func lookPath(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	path, err := exec.LookPath("/usr/sbin/" + name)
	if err != nil {
		return "", fmt.Errorf("%s is missing: on Debian, install the packages nginx and nghttp2-client", name)
	}
	return path, nil
}

// prepare makes what all measurements need: the binary, bodies, a certificate.
func (l *lab) prepare(ctx context.Context) error {
	if l.caddy == "" {
		l.caddy = filepath.Join(l.dir, "caddy")
		progress("building ./cmd/caddy")
		if out, err := l.output(ctx, "go", "build", "-o", l.caddy, "./cmd/caddy"); err != nil {
			return fmt.Errorf("building Caddy; run this in the root of the repository: %w\n%s", err, out)
		}
	}
	for name, size := range map[string]int{"0": 0, "1k": 1 << 10, "1m": 1 << 20} {
		if _, err := l.write(name, strings.Repeat("x", size)); err != nil {
			return err
		}
	}
	return writeCertificate(l.file("cert.pem"), l.file("key.pem"))
}

func (l *lab) file(name string) string { return filepath.Join(l.dir, name) }

// write writes a file of the lab and returns its path.
func (l *lab) write(name, text string) (string, error) {
	path := l.file(name)
	return path, os.WriteFile(path, []byte(text), 0o600) //nolint:gosec // G703: the names are those of this program
}

// output runs a program that ends by itself and returns what it printed.
func (l *lab) output(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // G204: the programs that are measured are named by who runs this
	cmd.Env = l.environment()
	return cmd.CombinedOutput()
}

// close ends what still runs and removes all files.
func (l *lab) close() {
	for _, p := range l.processes {
		p.stop()
	}
	if err := os.RemoveAll(l.dir); err != nil { //nolint:gosec // G703: MkdirTemp made it
		progress("removing files: %v", err)
	}
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
