package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// tokenLifetime is short, so that several refreshes fall into one measurement.
const tokenLifetime = 4 * time.Second

// timeline holds what one candidate answered under a constant rate.
type timeline struct {
	name          string
	start         time.Time
	with, without []time.Duration // in the seconds with and without a token request
	during        []time.Duration // under way at the same time as one
	seconds       [][]time.Duration
	refreshes     []span
}

func measureLatency(ctx context.Context, l *lab, s settings) (section, error) {
	u, err := l.startUpstream(ctx)
	if err != nil {
		return section{}, err
	}
	defer u.stop()
	tokens, err := startTokens(ctx, s.tokenLatency, tokenLifetime, 2)
	if err != nil {
		return section{}, err
	}
	defer tokens.close()

	var all []timeline
	for _, name := range []string{egress, plain} {
		progress("latency of %s: %d requests/s for %s", name, s.rate, s.latency)
		c, err := l.startCandidate(ctx, name, u, tokens.url)
		if err != nil {
			return section{}, err
		}
		if err := c.ready(ctx, c.urls[variant{}]+"/1k"); err != nil {
			return section{}, err
		}
		samples, err := l.constantRate(ctx, c, s)
		if err != nil {
			return section{}, err
		}
		var refreshes []span
		if name == egress {
			refreshes = tokens.requests("bench")
		}
		all = append(all, newTimeline(name, samples, refreshes))
		c.stop()
	}
	return reportLatency(all, s), nil
}

// constantRate spreads the requests over connections, so that a slow answer
// delays few others.
func (l *lab) constantRate(ctx context.Context, c *candidate, s settings) ([]sample, error) {
	const connections = 50
	n := int(float64(s.rate) * s.latency.Seconds())
	_, samples, err := l.load(ctx, n, c.urls[variant{}]+"/1k",
		"--h1", "-c", strconv.Itoa(connections), "--rps", strconv.Itoa(max(1, s.rate/connections)))
	return samples, err
}

// newTimeline sorts samples into the seconds in which they began, those with a
// token request apart from the others.
func newTimeline(name string, samples []sample, refreshes []span) timeline {
	t := timeline{name: name}
	if len(samples) == 0 {
		return t
	}
	t.start = slices.MinFunc(samples, func(a, b sample) int { return a.start.Compare(b.start) }).start
	second := func(at time.Time) int { return int(at.Sub(t.start) / time.Second) }
	busy := make(map[int]bool)
	for _, r := range refreshes {
		if r.end.Before(t.start) {
			continue
		}
		t.refreshes = append(t.refreshes, r)
		for i := second(r.start); i <= second(r.end); i++ {
			busy[i] = true
		}
	}
	for _, s := range samples {
		i := second(s.start)
		for len(t.seconds) <= i {
			t.seconds = append(t.seconds, nil)
		}
		t.seconds[i] = append(t.seconds[i], s.took)
		if slices.ContainsFunc(t.refreshes, s.overlaps) {
			t.during = append(t.during, s.took)
		}
		if busy[i] {
			t.with = append(t.with, s.took)
		} else {
			t.without = append(t.without, s.took)
		}
	}
	return t
}

// overlaps reports whether the request was under way during r.
func (s sample) overlaps(r span) bool {
	return s.start.Before(r.end) && s.start.Add(s.took).After(r.start)
}

func reportLatency(all []timeline, s settings) section {
	rows := [][]string{}
	plot := chart{
		title: "99th percentile of each second; bars mark token requests",
		x:     "second", y: "ms",
	}
	row := func(name string, times []time.Duration) {
		if len(times) > 0 {
			rows = append(rows, []string{name, strconv.Itoa(len(times)), ms(percentile(times, 50)), ms(percentile(times, 99)), ms(slices.Max(times))})
		}
	}
	for _, t := range all {
		if len(t.refreshes) > 0 {
			row(fmt.Sprintf("%s, seconds with one of %d refreshes", t.name, len(t.refreshes)), t.with)
			row(t.name+", of these the requests during a refresh", t.during)
			row(t.name+", other seconds", t.without)
		} else {
			row(t.name, t.without)
		}
		line := series{name: t.name}
		for i, times := range t.seconds {
			line.points = append(line.points, point{float64(i) + 0.5, percentile(times, 99).Seconds() * 1000})
		}
		plot.series = append(plot.series, line)
		for _, r := range t.refreshes {
			plot.marks = append(plot.marks, r.start.Sub(t.start).Seconds())
		}
	}
	text := fmt.Sprintf("%d requests a second for %s over HTTP/1.1, 50 connections, answers of 1 KiB. Tokens live for %s, and the token endpoint takes %s.\n\n",
		s.rate, s.latency, tokenLifetime, s.tokenLatency) +
		table([]string{"Candidate", "Requests", "p50 (ms)", "p99 (ms)", "max (ms)"}, rows) +
		"\n" + image("latency.svg", plot.title)
	return section{text: text, plots: map[string]string{"latency.svg": plot.svg()}}
}
