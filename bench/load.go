package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// request is what clients send.
type request struct {
	name string
	path string
	body string // the file that is posted
	mebi bool   // a MiB goes over the wire
}

var (
	get0   = request{name: "GET, empty answer", path: "/0"}
	get1k  = request{name: "GET, 1 KiB", path: "/1k"}
	get1m  = request{name: "GET, 1 MiB", path: "/1m", mebi: true}
	post1k = request{name: "POST, 1 KiB", path: "/post", body: "1k"}
	post1m = request{name: "POST, 1 MiB", path: "/post", body: "1m", mebi: true}
)

// scenario is a load that all candidates are put under.
type scenario struct {
	variant
	request
	connections int
	limit       float64 // what egress may cost at most, as a multiple of plain reverse_proxy
}

// acceptance are the loads that egress has promised something for.
var acceptance = []scenario{
	{request: get1k, connections: 16, limit: 1.03},
	{request: get1k, connections: 64, limit: 1.03},
	{request: get1k, connections: 256, limit: 1.03},
	{variant: variant{allow: true}, request: post1k, connections: 64, limit: 1.06},
}

// matrix returns all other loads.
func matrix() []scenario {
	var all []scenario
	for _, http2 := range []bool{false, true} {
		for _, https := range []bool{false, true} {
			for _, r := range []request{get0, get1k, post1k, get1m, post1m} {
				for _, n := range []int{1, 16, 64, 256} {
					all = append(all, scenario{variant: variant{http2: http2, https: https}, request: r, connections: n})
				}
			}
		}
	}
	return all
}

func (s scenario) String() string {
	client, upstream, allow := "HTTP/1.1", "http", ""
	if s.http2 {
		client = "HTTP/2"
	}
	if s.https {
		upstream = "https"
	}
	if s.allow {
		allow = ", `allow`"
	}
	return fmt.Sprintf("%s, %s, %s%s, %d", client, upstream, s.name, allow, s.connections)
}

// requests returns how many make a round: fewer where each takes longer.
func (s scenario) requests(most int) int {
	switch {
	case s.mebi:
		most /= 30
	case s.connections == 1:
		most /= 4
	}
	return max(most, s.connections)
}

// round is one candidate's share of a round.
type round struct {
	cpu      time.Duration // of the candidate, per request
	rate     float64       // requests per second
	p50, p99 time.Duration
}

// comparison holds the rounds of one scenario by candidate.
type comparison struct {
	scenario
	rounds map[string][]round
}

func (c comparison) cpu(candidate string) []time.Duration {
	var all []time.Duration
	for _, r := range c.rounds[candidate] {
		all = append(all, r.cpu)
	}
	return all
}

func measureLoad(ctx context.Context, l *lab, s settings) (section, error) {
	u, err := l.startUpstream(ctx)
	if err != nil {
		return section{}, err
	}
	defer u.stop()
	tokens, err := startTokens(ctx, s.tokenLatency, time.Hour, 2)
	if err != nil {
		return section{}, err
	}
	defer tokens.close()
	candidates, err := l.startCandidates(ctx, u, tokens.url)
	if err != nil {
		return section{}, err
	}
	defer stopAll(candidates)

	var all []comparison
	for i, sc := range s.scenarios {
		progress("load %d of %d: %s", i+1, len(s.scenarios), sc)
		c, err := l.compare(ctx, sc, candidates, s)
		if err != nil {
			return section{}, fmt.Errorf("%s: %w", sc, err)
		}
		all = append(all, c)
	}
	return reportLoad(all), nil
}

func stopAll(candidates []*candidate) {
	for _, c := range candidates {
		c.stop()
	}
}

// compare puts the candidates under one load, in turns. Each second round runs
// in reverse, so that none always follows the same.
func (l *lab) compare(ctx context.Context, sc scenario, candidates []*candidate, s settings) (comparison, error) {
	result := comparison{scenario: sc, rounds: make(map[string][]round)}
	n, rounds := sc.requests(s.requests), s.rounds
	if sc.limit == 0 {
		rounds = min(rounds, 3) // nothing is promised for it
	}
	for _, c := range candidates { // connections, buffers and heaps grow
		if _, err := l.oneRound(ctx, sc, c, max(n/10, sc.connections)); err != nil {
			return result, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	order := slices.Clone(candidates)
	for range rounds {
		for _, c := range order {
			r, err := l.oneRound(ctx, sc, c, n)
			if err != nil {
				return result, fmt.Errorf("%s: %w", c.name, err)
			}
			result.rounds[c.name] = append(result.rounds[c.name], r)
		}
		slices.Reverse(order)
	}
	return result, nil
}

// oneRound sends n requests to c.
func (l *lab) oneRound(ctx context.Context, sc scenario, c *candidate, n int) (round, error) {
	args := []string{"--h1", "-c", strconv.Itoa(sc.connections)}
	if sc.http2 {
		// as many requests at a time, 16 to a connection at most
		streams := min(sc.connections, 16)
		args = []string{"-p", "h2c", "-c", strconv.Itoa(sc.connections / streams), "-m", strconv.Itoa(streams)}
	}
	if sc.body != "" {
		args = append(args, "-d", l.file(sc.body))
	}
	before, err := c.cpu()
	if err != nil {
		return round{}, err
	}
	rate, samples, err := l.load(ctx, n, c.urls[sc.variant]+sc.path, args...)
	if err != nil {
		return round{}, err
	}
	after, err := c.cpu()
	if err != nil {
		return round{}, err
	}
	times := durations(samples)
	return round{
		cpu:  (after - before) / time.Duration(n),
		rate: rate,
		p50:  percentile(times, 50),
		p99:  percentile(times, 99),
	}, nil
}

// clientHeaders are 7, as a client sends them.
var clientHeaders = []string{
	"user-agent: shop-backend/4.2 (linux; x86_64)",
	"accept: application/json",
	"accept-encoding: gzip",
	"accept-language: en-GB,en;q=0.8",
	"content-type: application/json",
	"x-request-id: 0f8fad5b-d9cb-469f-a165-70867728950e",
	"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}

// load sends n requests with h2load, all of which must succeed.
func (l *lab) load(ctx context.Context, n int, url string, args ...string) (rate float64, samples []sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	log := l.file("h2load.log")
	defer os.Remove(log)
	args = append(args, "-n", strconv.Itoa(n), "-t", "1", "--log-file", log)
	for _, h := range clientHeaders {
		args = append(args, "-H", h)
	}
	out, err := l.output(ctx, l.h2load, append(args, url)...)
	if err != nil {
		return 0, nil, fmt.Errorf("h2load: %w: %s", errors.Join(context.Cause(ctx), err), lastLines(string(out), 3))
	}
	rate, err = parseSummary(string(out), n)
	if err != nil {
		return 0, nil, fmt.Errorf("h2load: %w", err)
	}
	text, err := os.ReadFile(log) //nolint:gosec // G703: it is in the lab
	if err != nil {
		return 0, nil, err
	}
	samples, err = parseLog(string(text))
	return rate, samples, err
}

var (
	finished    = regexp.MustCompile(`finished in [^,]+, ([0-9.]+) req/s`)
	statusCodes = regexp.MustCompile(`status codes: (\d+) 2xx, \d+ 3xx, \d+ 4xx, \d+ 5xx`)
)

// parseSummary returns the requests per second from what h2load prints. All n
// must have been answered with 2xx: others cost something else.
func parseSummary(out string, n int) (float64, error) {
	rate, codes := finished.FindStringSubmatch(out), statusCodes.FindStringSubmatch(out)
	if rate == nil || codes == nil {
		return 0, errors.New("cannot read its summary: " + lastLines(out, 10))
	}
	if codes[1] != strconv.Itoa(n) {
		return 0, fmt.Errorf("not all of %d requests succeeded: %s", n, codes[0])
	}
	return strconv.ParseFloat(rate[1], 64)
}

// sample is one request in the log of h2load.
type sample struct {
	start time.Time
	took  time.Duration
}

// parseLog reads the log of h2load: start in microseconds since 1970, status,
// and duration in microseconds.
func parseLog(text string) ([]sample, error) {
	var all []sample
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 3 {
			return nil, fmt.Errorf("log of h2load: %d fields", len(fields))
		}
		start, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("log of h2load: start: %w", err)
		}
		took, err := strconv.ParseInt(fields[2], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("log of h2load: duration: %w", err)
		}
		all = append(all, sample{time.UnixMicro(start), time.Duration(took) * time.Microsecond})
	}
	return all, nil
}

func durations(samples []sample) []time.Duration {
	all := make([]time.Duration, len(samples))
	for i, s := range samples {
		all[i] = s.took
	}
	return all
}
