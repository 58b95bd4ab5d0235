package main

import (
	"fmt"
	"strconv"
	"sync"
	"time"
)

// simulation is one that was run.
type simulation struct {
	event     string
	instances int
	lifetime  time.Duration
	shared    bool
}

// results are what simulations came to, which run at the same time.
type results struct {
	mu       sync.Mutex
	outcomes map[simulation]outcome
}

func (r *results) add(s simulation, o outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.outcomes == nil {
		r.outcomes = make(map[simulation]outcome)
	}
	r.outcomes[s] = o
}

// cell returns a part of what s came to, if it was run.
func (r *results) cell(s simulation, part func(outcome) string) string {
	o, ran := r.outcomes[s]
	if !ran {
		return "–"
	}
	return part(o)
}

// What the tables have of an outcome.

func tokensPerHour(o outcome) string { return fmt.Sprintf("%.1f", o.perHour(o.tokens)) }
func mostLive(o outcome) string      { return strconv.Itoa(o.mostLive) }
func tokens(o outcome) string        { return strconv.Itoa(o.tokens) }
func slowest(o outcome) string       { return fmt.Sprintf("%d ms", o.slowest.Milliseconds()) }

// compare returns the cells of each part: without shared tokens, and with them.
func (r *results) compare(event string, n int, lifetime time.Duration, parts ...func(outcome) string) (cells []string) {
	for _, part := range parts {
		for _, shared := range []bool{false, true} {
			cells = append(cells, r.cell(simulation{event, n, lifetime, shared}, part))
		}
	}
	return cells
}

func sizesTable(r *results) string {
	var rows [][]string
	for _, lifetime := range []time.Duration{understoryLifetime, voucherifyLifetime} {
		for _, n := range fleetSizes {
			row := []string{strconv.Itoa(n), fmt.Sprintf("%.0f min", lifetime.Minutes())}
			rows = append(rows, append(row, r.compare("", n, lifetime, tokensPerHour, mostLive)...))
		}
	}
	return table([]string{"Instances", "Lifetime", "Token requests an hour", "shared", "Live tokens at a time", "shared"}, rows)
}

func eventsTable(r *results) string {
	var rows [][]string
	for _, e := range fleetEvents {
		for _, n := range e.sizes {
			row := []string{e.name, strconv.Itoa(n)}
			rows = append(rows, append(row, r.compare(e.name, n, voucherifyLifetime, tokens, slowest)...))
		}
	}
	return table([]string{"What happens", "Instances", "Token requests", "shared", "Longest wait of a client", "shared"}, rows)
}
