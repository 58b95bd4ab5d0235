package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a server that runs until it is stopped.
type process struct {
	name   string
	pid    int
	cancel context.CancelFunc
	done   chan struct{} // closed once it has ended
	output bytes.Buffer  // read only once it has ended
}

// start starts a server. It ends with ctx, or by stop.
func (l *lab) start(ctx context.Context, name string, args ...string) (*process, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &process{name: name, cancel: cancel, done: make(chan struct{})}
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // G204: the programs that are measured are named by who runs this
	cmd.Env = l.environment()
	cmd.Stdout, cmd.Stderr = &p.output, &p.output
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second // then it is killed
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	p.pid = cmd.Process.Pid
	l.processes = append(l.processes, p)
	go func() {
		_ = cmd.Wait() // how it ended shows in its output
		close(p.done)
	}()
	return p, nil
}

// stop ends the process and waits until it is gone.
func (p *process) stop() {
	p.cancel()
	<-p.done
}

// environment has the secret of all credentials, and keeps Caddy's files in the
// lab.
func (l *lab) environment() []string {
	return append(os.Environ(), "XDG_DATA_HOME="+l.dir, "BENCH_SECRET=secret")
}

// ready waits until url is answered with 200.
func (p *process) ready(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	for {
		last := get(ctx, client, url)
		if last == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended early: %s", p.name, lastLines(p.output.String(), 5))
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", p.name, errors.Join(context.Cause(ctx), last))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// get reports why url is not answered with 200.
func get(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

var proc = os.DirFS("/proc")

// cpu returns the CPU time that the process has used.
func (p *process) cpu() (time.Duration, error) {
	stat, err := fs.ReadFile(proc, strconv.Itoa(p.pid)+"/stat")
	if err != nil {
		return 0, err
	}
	return parseStat(string(stat))
}

// tick is the unit of /proc/<pid>/stat: Linux shows 100 in a second to programs
// whatever its own clock does.
const tick = time.Second / 100

// parseStat returns user and system time from the text of /proc/<pid>/stat. The
// second field, the name of the program, may hold blanks and parentheses.
func parseStat(stat string) (time.Duration, error) {
	_, rest, ok := cutLast(stat, ")")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, fmt.Errorf("/proc/<pid>/stat: %d fields", len(fields))
	}
	user, err := strconv.ParseInt(fields[11], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/<pid>/stat: utime: %w", err)
	}
	system, err := strconv.ParseInt(fields[12], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/<pid>/stat: stime: %w", err)
	}
	return time.Duration(user+system) * tick, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// resident returns the resident memory of the process in bytes.
func (p *process) resident() (int64, error) {
	status, err := fs.ReadFile(proc, strconv.Itoa(p.pid)+"/status")
	if err != nil {
		return 0, err
	}
	return parseStatus(string(status))
}

func parseStatus(status string) (int64, error) {
	for line := range strings.Lines(status) {
		if value, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/<pid>/status has no VmRSS")
}

// freePorts returns n ports that are free, and not among those that the kernel picks,
// for connections and for others' servers: so one is seldom taken before it is used.
// Then a server fails to start, and says so.
func freePorts(ctx context.Context, n int) (ports []int, err error) {
	const least, most = 10_000, 32_000 // the kernel picks from 32,768 on, unless configured otherwise
	var lc net.ListenConfig
	for tries := 0; len(ports) < n && tries < 100*n; tries++ {
		port := least + mathrand.IntN(most-least) //nolint:gosec // no secret
		var listener net.Listener
		if listener, err = lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err != nil {
			continue
		}
		defer listener.Close() // only at the end, so that all differ
		ports = append(ports, port)
	}
	if len(ports) < n {
		return nil, err
	}
	return ports, nil
}

// writeCertificate writes a self-signed certificate for 127.0.0.1 and localhost.
func writeCertificate(certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "bench"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600)
}
