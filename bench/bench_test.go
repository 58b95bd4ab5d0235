package main

import (
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestParseStat(t *testing.T) {
	const stat = "4711 (a (b) c) S 1 4711 4711 0 -1 4194560 9 8 7 6 123 45 3 2 20 0 9 0 55 99 88"
	got, err := parseStat(stat)
	if want := 1680 * time.Millisecond; err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"", "1 (a) S 1 2", "1 (a) S 1 2 3 0 -1 4 9 8 7 6 x 45 3 2"} {
		if got, err := parseStat(bad); err == nil {
			t.Errorf("%q: got %v, want an error", bad, got)
		}
	}
}

func TestParseStatus(t *testing.T) {
	got, err := parseStatus("Name:\tcaddy\nVmHWM:\t   90000 kB\nVmRSS:\t   54321 kB\nThreads:\t9\n")
	if want := int64(54321 << 10); err != nil || got != want {
		t.Errorf("got %d, %v, want %d", got, err, want)
	}
	if got, err := parseStatus("Name:\tcaddy\n"); err == nil {
		t.Errorf("without VmRSS: got %d, want an error", got)
	}
}

const h2loadSummary = `starting benchmark...
Application protocol: http/1.1
progress: 100% done

finished in 100.63ms, 19875.58 req/s, 2.82MB/s
requests: 2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 291.02KB (298000) total, 210.94KB (216000) headers (space savings 0.00%), 3.91KB (4000) data
`

func TestParseSummary(t *testing.T) {
	got, err := parseSummary(h2loadSummary, 2000)
	if err != nil || got != 19875.58 {
		t.Errorf("got %v, %v, want 19875.58", got, err)
	}
	for name, bad := range map[string]string{
		"one request refused": strings.Replace(h2loadSummary, "2000 2xx, 0 3xx, 0 4xx", "1999 2xx, 0 3xx, 1 4xx", 1),
		"one without answer":  strings.Replace(h2loadSummary, "2000 2xx", "1999 2xx", 1),
		"something else":      "h2load: command line error",
	} {
		if got, err := parseSummary(bad, 2000); err == nil {
			t.Errorf("%s: got %v, want an error", name, got)
		}
	}
}

func TestParseLog(t *testing.T) {
	got, err := parseLog("1764000000000123\t200\t1500\n1764000000000999\t200\t70\n")
	want := []sample{
		{time.UnixMicro(1764000000000123), 1500 * time.Microsecond},
		{time.UnixMicro(1764000000000999), 70 * time.Microsecond},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, bad := range []string{"1764000000000123\t200\n", "x\t200\t1\n", "1\t200\tx\n"} {
		if got, err := parseLog(bad); err == nil {
			t.Errorf("%q: got %v, want an error", bad, got)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{9, 1, 4}, 4},
		{[]float64{9, 1, 4, 2}, 3},
	} {
		if got := median(tt.values); got != tt.want {
			t.Errorf("median of %v: got %v, want %v", tt.values, got, tt.want)
		}
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = 100 - i
	}
	for p, want := range map[float64]int{0: 1, 50: 50, 99: 99, 99.5: 100, 100: 100} {
		if got := percentile(hundred, p); got != want {
			t.Errorf("percentile %v: got %d, want %d", p, got, want)
		}
	}
	if got := percentile([]int(nil), 99); got != 0 {
		t.Errorf("of nothing: got %d", got)
	}
}

// Rounds are compared one by one: the ratio of the medians would be 2 here, for
// which a single round stands.
func TestPairedRatio(t *testing.T) {
	ours := []time.Duration{110, 220, 330}
	theirs := []time.Duration{100, 110, 300}
	got := pairedRatio(ours, theirs)
	if want := (ratio{1.1, 1.1, 2}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := pairedRatio(ours, nil); got != (ratio{}) {
		t.Errorf("without rounds: got %v", got)
	}
}

func TestTimelineTellsSecondsWithARefresh(t *testing.T) {
	start := time.Unix(1000, 500_000_000)
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	samples := []sample{{at(1100), 2}, {at(0), 1}, {at(2000), 5}, {at(2999), 3}, {at(3000), 4}}
	refreshes := []span{{"bench", at(-900), at(-800)}, {"bench", at(1990), at(2040)}}

	got := newTimeline("egress", samples, refreshes)
	if want := []time.Duration{2, 5, 3}; !slices.Equal(got.with, want) {
		t.Errorf("in seconds with a refresh: got %d, want %d", got.with, want)
	}
	if want := []time.Duration{1, 4}; !slices.Equal(got.without, want) {
		t.Errorf("in other seconds: got %d, want %d", got.without, want)
	}
	if want := []time.Duration{5}; !slices.Equal(got.during, want) {
		t.Errorf("during a refresh: got %d, want %d", got.during, want)
	}
	if len(got.refreshes) != 1 {
		t.Errorf("got %d refreshes, want the one that was not before the load", len(got.refreshes))
	}
}

func TestReplaceSection(t *testing.T) {
	const page = "a\n<!-- begin load -->\nold\n<!-- end load -->\nb\n<!-- begin growth -->\n<!-- end growth -->\n"
	got, err := replaceSection(page, "load", "\nnew\n")
	want := "a\n<!-- begin load -->\n\nnew\n\n<!-- end load -->\nb\n<!-- begin growth -->\n<!-- end growth -->\n"
	if err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	if again, err := replaceSection(got, "load", "new"); err != nil || again != want {
		t.Errorf("a second time: got %q, %v", again, err)
	}
	if _, err := replaceSection(page, "latency", "new"); err == nil {
		t.Error("a section without markers was replaced")
	}
}

// The page in the repository is one that the command can write into.
func TestPageHasMarkers(t *testing.T) {
	if err := checkPage("../docs"); err != nil {
		t.Error(err)
	}
}

func TestTokenEndpointCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := newTokenEndpoint(50*time.Millisecond, time.Hour, 2)
		ask := func(client string) {
			r := httptest.NewRequest(http.MethodPost, "/token", nil)
			r.SetBasicAuth(client, "secret")
			e.ServeHTTP(httptest.NewRecorder(), r)
		}
		start := time.Now()
		ask("a")
		ask("a")
		select {
		case <-e.complete:
			t.Error("complete with one of two clients")
		default:
		}
		go ask("b")
		ask("a")
		<-e.complete
		if took := time.Since(start); took != 150*time.Millisecond {
			t.Errorf("three requests of 50ms, one after the other, took %s", took)
		}
		ask("a")
		if got := e.most(); got != 2 {
			t.Errorf("%d requests at a time, want 2", got)
		}
		if got := len(e.requests("a")); got != 4 {
			t.Errorf("%d requests of a, want 4", got)
		}
	})
}

func TestScale(t *testing.T) {
	linear := newScale([]float64{3, 70, 41}, false)
	if linear.at(0) != 0 || linear.at(70) > 1 || linear.at(70) < 0.8 {
		t.Errorf("0 and 70 of 70 are at %v and %v", linear.at(0), linear.at(70))
	}
	log := newScale([]float64{1, 10, 10_000}, true)
	if log.at(1) != 0 || log.at(100) != 0.5 || log.at(10_000) != 1 {
		t.Errorf("1, 100, 10000 are at %v, %v, %v", log.at(1), log.at(100), log.at(10_000))
	}
	for name, s := range map[string]scale{"no values": newScale(nil, false), "none above zero": newScale([]float64{0}, true)} {
		if at := s.at(0); at != 0 || len(s.ticks) < 2 || len(s.ticks) > 20 {
			t.Errorf("%s: 0 is at %v, ticks %v", name, at, s.ticks)
		}
	}
}

func TestPlotsAreXML(t *testing.T) {
	for name, svg := range map[string]string{
		"lines":   chart{title: "a < b", series: []series{{"x & y", []point{{1, 2}, {10, 0}}}}, marks: []float64{5}}.svg(),
		"log":     chart{log: true, series: []series{{"x", []point{{1, 2}, {10, 0}}}}}.svg(),
		"bars":    barChart{title: "a", groups: []string{"g"}, names: []string{"x", "y"}, values: [][]float64{{1, 2}}}.svg(),
		"nothing": chart{}.svg() + barChart{}.svg(),
	} {
		if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
			t.Errorf("%s: not a number in %s", name, svg)
		}
		decoder := xml.NewDecoder(strings.NewReader(svg))
		for {
			if _, err := decoder.Token(); err != nil {
				if !errors.Is(err, io.EOF) {
					t.Errorf("%s: %v in %s", name, err, svg)
				}
				break
			}
		}
	}
}

func TestParseFlags(t *testing.T) {
	s, err := parseFlags(nil)
	if err != nil || s.rounds < 7 || len(s.scenarios) != len(acceptance) || slices.Max(s.credentials) != 10_000 {
		t.Errorf("defaults: got %+v, %v", s, err)
	}
	s, err = parseFlags([]string{"-full", "-only", "growth", "-credentials", "1,300"})
	if err != nil || len(s.scenarios) != len(acceptance)+80 || !slices.Equal(s.parts, []string{"growth"}) || !slices.Equal(s.credentials, []int{1, 300}) {
		t.Errorf("flags: got %+v, %v", s, err)
	}
	for _, bad := range [][]string{{"-only", "all"}, {"-credentials", "0"}, {"-credentials", "1,x"}} {
		if _, err := parseFlags(bad); err == nil {
			t.Errorf("%q: want an error", bad)
		}
	}
}
