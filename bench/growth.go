package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// growth is what one candidate needs for n credentials, each with a route.
type growth struct {
	name       string
	n          int
	adapt      time.Duration // `caddy adapt`
	start      time.Duration // until the site answers
	tokens     time.Duration // until all tokens are there
	atOnce     int           // token requests
	scrape     time.Duration // GET /metrics
	metrics    int64         // its size
	goroutines int
	idle       float64 // share of a core
	heap       int64   // live, after a collection
	resident   int64
	reload     time.Duration
}

func measureGrowth(ctx context.Context, l *lab, s settings) (section, error) {
	u, err := l.startUpstream(ctx)
	if err != nil {
		return section{}, err
	}
	defer u.stop()
	var all []growth
	for _, n := range s.credentials {
		for _, name := range []string{egress, plain} {
			progress("growth: %s with %d routes", name, n)
			g, err := l.grow(ctx, name, n, u, s)
			if err != nil {
				return section{}, fmt.Errorf("%s with %d routes: %w", name, n, err)
			}
			all = append(all, g)
		}
	}
	return reportGrowth(all, s), nil
}

// grow measures one candidate with n routes.
func (l *lab) grow(ctx context.Context, name string, n int, u *upstream, s settings) (growth, error) {
	g := growth{name: name, n: n}
	tokens, err := startTokens(ctx, s.tokenLatency, time.Hour, n)
	if err != nil {
		return g, err
	}
	defer tokens.close()
	ports, err := freePorts(ctx, 1)
	if err != nil {
		return g, err
	}
	file, err := l.write("growth.caddyfile", growthConfig(name, n, ports[0], l.file("admin.sock"), u.http, tokens.url))
	if err != nil {
		return g, err
	}
	config, err := l.adapt(ctx, file, &g)
	if err != nil {
		return g, err
	}

	began := time.Now()
	p, err := l.start(ctx, l.caddy, "run", "--config", l.file("growth.json"))
	if err != nil {
		return g, err
	}
	defer p.stop()
	if err := p.ready(ctx, fmt.Sprintf("http://127.0.0.1:%d/", ports[0])); err != nil {
		return g, err
	}
	g.start = time.Since(began)
	if name == egress {
		if err := waitForTokens(ctx, tokens, p); err != nil {
			return g, err
		}
		g.tokens, g.atOnce = time.Since(began), tokens.most()
	}
	if err := g.settle(ctx, p, l.admin(), s.idle); err != nil {
		return g, err
	}
	g.reload, err = l.admin().reload(ctx, config)
	return g, err
}

// growthConfig returns a Caddyfile of one site with n routes.
func growthConfig(name string, n, port int, socket, api, tokenURL string) string {
	var b strings.Builder
	b.WriteString("{\n\tadmin unix/" + socket + "\n\tpersist_config off\n\tauto_https off\n\tlog {\n\t\tlevel ERROR\n\t}\n")
	if name == egress {
		b.WriteString("\tegress {\n")
		for i := range n {
			fmt.Fprintf(&b, "\t\tcredential c%d oauth2 %s {\n\t\t\ttoken_url %s\n\t\t\tclient_id c%d\n\t\t\tclient_secret {env.BENCH_SECRET}\n\t\t}\n", i, api, tokenURL, i)
		}
		b.WriteString("\t}\n")
	}
	fmt.Fprintf(&b, "}\nhttp://:%d {\n\tbind 127.0.0.1\n", port)
	for i := range n {
		handler := fmt.Sprintf("egress c%d", i)
		if name != egress {
			handler = fmt.Sprintf("reverse_proxy %s {\n\t\t\theader_up Authorization \"Bearer c%d\"\n\t\t\ttransport http {\n%s}\n\t\t}", api, i, equalSettings)
		}
		fmt.Fprintf(&b, "\thandle /c%d/* {\n\t\t%s\n\t}\n", i, handler)
	}
	b.WriteString("\trespond \"version 0\"\n}\n")
	return b.String()
}

// adapt measures `caddy adapt` of file and returns the JSON that it makes.
func (l *lab) adapt(ctx context.Context, file string, g *growth) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	var out, failure bytes.Buffer
	cmd := exec.CommandContext(ctx, l.caddy, "adapt", "--adapter", "caddyfile", "--config", file) //nolint:gosec // G204: the binary that is measured is named by who runs this
	cmd.Env, cmd.Stdout, cmd.Stderr = l.environment(), &out, &failure
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("caddy adapt: %w: %s", err, lastLines(failure.String(), 3))
	}
	g.adapt = time.Since(start)
	_, err := l.write("growth.json", out.String())
	return out.Bytes(), err
}

func waitForTokens(ctx context.Context, tokens *tokenEndpoint, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	select {
	case <-tokens.complete:
		return nil
	case <-p.done:
		return fmt.Errorf("it ended early: %s", lastLines(p.output.String(), 5))
	case <-ctx.Done():
		return fmt.Errorf("waiting for all tokens: %w", context.Cause(ctx))
	}
}

// settle measures what is needed while nothing happens.
func (g *growth) settle(ctx context.Context, p *process, admin admin, idle time.Duration) error {
	if err := sleep(ctx, idle/3); err != nil {
		return err
	}
	before, err := p.cpu()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := sleep(ctx, idle); err != nil {
		return err
	}
	after, err := p.cpu()
	if err != nil {
		return err
	}
	g.idle = float64(after-before) / float64(time.Since(start))

	goroutines, err := admin.number(ctx, "/debug/pprof/goroutine?debug=1", `^goroutine profile: total (\d+)`)
	if err != nil {
		return err
	}
	g.goroutines = int(goroutines)
	start = time.Now()
	metrics, err := admin.do(ctx, http.MethodGet, "/metrics", nil)
	if err != nil {
		return err
	}
	g.scrape, g.metrics = time.Since(start), int64(len(metrics))
	if g.heap, err = admin.number(ctx, "/debug/pprof/heap?gc=1&debug=1", `(?m)^# HeapAlloc = (\d+)`); err != nil {
		return err
	}
	if err := sleep(ctx, idle/6); err != nil { // what the collection freed goes back to the system
		return err
	}
	g.resident, err = p.resident()
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// admin is the admin endpoint of the Caddy that is measured.
type admin struct{ client *http.Client }

func (l *lab) admin() admin {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.file("admin.sock"))
	}
	return admin{&http.Client{
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true, DisableCompression: true},
		Timeout:   2 * time.Minute,
	}}
}

func (a admin) do(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://127.0.0.1"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := a.client.Do(req) //nolint:gosec // G704: it dials nothing but the socket
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, lastLines(string(answer), 1))
	}
	return answer, err
}

// number finds a number in the answer to GET path.
func (a admin) number(ctx context.Context, path, pattern string) (int64, error) {
	answer, err := a.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return 0, err
	}
	match := regexp.MustCompile(pattern).FindSubmatch(answer)
	if match == nil {
		return 0, errors.New(path + ": does not have what is looked for")
	}
	return strconv.ParseInt(string(match[1]), 10, 64)
}

// reload returns how long a config takes to load in which one answer differs.
func (a admin) reload(ctx context.Context, config []byte) (time.Duration, error) {
	var times []time.Duration
	for i := range 3 {
		changed := bytes.Replace(config, []byte("version 0"), fmt.Appendf(nil, "version %d", i+1), 1)
		start := time.Now()
		if _, err := a.do(ctx, http.MethodPost, "/load", changed); err != nil {
			return 0, err
		}
		times = append(times, time.Since(start))
	}
	return median(times), nil
}
