package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// The lifetimes of tokens that the two APIs document.
const (
	understoryLifetime = 3599 * time.Second
	voucherifyLifetime = 15 * time.Minute
)

// sharingMayTake is how much longer than for a token request of its own a client
// may wait where tokens are shared: 250 ms, and an operation or two on the storage.
const sharingMayTake = 300 * time.Millisecond

// fullSimulation is for the tables of docs/scaling.md. It takes a minute or two.
var fullSimulation = flag.Bool("full", false, "simulate large fleets for long")

// TestFleetSimulation runs fleets in synthetic time, with and without shared
// tokens. With -v it prints what docs/scaling.md has.
func TestFleetSimulation(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	var sizes, events results
	t.Run("sizes", func(t *testing.T) {
		for _, n := range fleetSizes {
			for _, lifetime := range []time.Duration{understoryLifetime, voucherifyLifetime} {
				simulateBoth(t, &sizes, "", n, lifetime, steady)
			}
		}
	})
	t.Run("events", func(t *testing.T) {
		for _, e := range fleetEvents {
			for _, n := range e.sizes {
				simulateBoth(t, &events, e.name, n, voucherifyLifetime, e.run)
			}
		}
	})
	if !t.Failed() {
		t.Log("\n" + sizesTable(&sizes) + "\n" + eventsTable(&events))
	}
}

// The guide has a row for each simulation.
func TestScalingGuideHasTheSimulations(t *testing.T) {
	guide, err := os.ReadFile("../docs/scaling.md")
	if err != nil {
		t.Fatal(err)
	}
	var none results
	for line := range strings.Lines(sizesTable(&none) + eventsTable(&none)) {
		row, _, _ := strings.Cut(line, "| –")
		if !strings.Contains(string(guide), strings.TrimSpace(row)) {
			t.Errorf("docs/scaling.md lacks the row %s", row)
		}
	}
}

// simulateBoth simulates with and without shared tokens.
func simulateBoth(t *testing.T, r *results, name string, n int, lifetime time.Duration, run func(t *testing.T, f *fleet, n int) outcome) {
	for _, shared := range []bool{false, true} {
		what := fmt.Sprintf("%d instances/%v/shared %v", n, lifetime, shared)
		if name != "" {
			what = name + "/" + what
		}
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			o := run(t, newFleet(n, lifetime, shared), n)
			if o.failed > 0 {
				t.Errorf("%d of %d requests of clients failed", o.failed, o.requests)
			}
			r.add(simulation{name, n, lifetime, shared}, o)
		})
	}
}

// newFleet returns a fleet whose clients make a request a minute at each instance,
// or fewer where there are many.
func newFleet(n int, lifetime time.Duration, shared bool) *fleet {
	f := &fleet{
		server: &simServer{latency: 150 * time.Millisecond, lifetime: lifetime, live: make(map[string]time.Time)},
		every:  time.Minute,
	}
	switch {
	case n > 100:
		f.every = 10 * time.Minute
	case n > 10:
		f.every = 5 * time.Minute
	}
	if shared {
		f.storage = &simStorage{
			latency: 2 * time.Millisecond, lockTTL: 5 * time.Second,
			entries: make(map[string][]byte), locks: make(map[string]simLock),
		}
	}
	return f
}

// fleetSizes are the numbers of instances of the table.
var fleetSizes = []int{1, 10, 100, 1000}

// steady lets a fleet be, for some time, and returns what happens in it.
func steady(t *testing.T, f *fleet, n int) (o outcome) {
	long := map[int]time.Duration{1: 24 * time.Hour, 10: 4 * time.Hour, 100: time.Hour, 1000: 12 * time.Minute}[n]
	if *fullSimulation {
		long = 24 * time.Hour
	} else if n == 1000 && f.server.lifetime > long {
		t.Skip("nothing is refreshed in a time that is short enough")
	}
	simulate(t, f, func() {
		f.startAll(n)
		time.Sleep(time.Minute)
		o = f.during(func() { time.Sleep(long) })
	})
	sources := n // of token requests
	if f.storage != nil {
		sources = 1
	}
	want := refreshes(long, f.server.lifetime, sources)
	if o.tokens < want.least || o.tokens > want.most {
		t.Errorf("%d token requests, want %d to %d", o.tokens, want.least, want.most)
	}
	if o.mostLive > 2*sources { // one before it is replaced, and the one that replaces it
		t.Errorf("%d live tokens at a time, want %d at most", o.mostLive, 2*sources)
	}
	if o.slowest > 0 {
		t.Errorf("a client has waited for %v", o.slowest)
	}
	return o
}

// bounds are what a number has to be between.
type bounds struct{ least, most int }

// refreshes returns how many token requests keep n tokens fresh for that long: a
// token is replaced once two thirds of its lifetime are over, or up to a tenth of
// the rest later.
func refreshes(long, lifetime time.Duration, n int) bounds {
	soonest, latest := lifetime*2/3, lifetime*7/10+time.Second
	return bounds{n * int(long/latest), n * (1 + int(long/soonest))}
}
