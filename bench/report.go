package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// section is what one part of the measurement came to, in Markdown, with its
// plots by file name.
type section struct {
	name, text string
	plots      map[string]string
}

// save writes the section into docs/performance.md, between its markers, and
// its plots beside that.
func (s section) save(docs string) error {
	page := filepath.Join(docs, "performance.md")
	old, err := os.ReadFile(page)
	if err != nil {
		return err
	}
	text, err := replaceSection(string(old), s.name, s.text)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(docs, "performance"), 0o750); err != nil {
		return err
	}
	for name, svg := range s.plots {
		if err := os.WriteFile(filepath.Join(docs, "performance", name), []byte(svg), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(page, []byte(text), 0o600) //nolint:gosec // G703: it is always docs/performance.md
}

// checkPage reports why docs cannot take the results.
func checkPage(docs string) error {
	page, err := os.ReadFile(filepath.Join(docs, "performance.md"))
	if err != nil {
		return err
	}
	for _, part := range allParts {
		if _, err := replaceSection(string(page), part, ""); err != nil {
			return err
		}
	}
	return nil
}

// replaceSection replaces what stands between the markers of a section.
func replaceSection(page, name, text string) (string, error) {
	begin, end := "<!-- begin "+name+" -->", "<!-- end "+name+" -->"
	before, rest, found := strings.Cut(page, begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		return "", fmt.Errorf("performance.md: the markers %s and %s are missing", begin, end)
	}
	return before + begin + "\n\n" + strings.TrimSpace(text) + "\n\n" + end + after, nil
}

// describe says where, with what and how this was measured.
func (l *lab) describe(ctx context.Context, args []string) (string, error) {
	info, err := buildinfo.ReadFile(l.caddy)
	if err != nil {
		return "", err
	}
	caddy := "unknown"
	for _, dep := range info.Deps {
		if dep.Path == "github.com/caddyserver/caddy/v2" {
			caddy = dep.Version
		}
	}
	nginx, err := l.output(ctx, l.nginx, "-v")
	if err != nil {
		return "", fmt.Errorf("nginx -v: %w", err)
	}
	h2load, err := l.output(ctx, l.h2load, "--version")
	if err != nil {
		return "", fmt.Errorf("h2load --version: %w", err)
	}
	_, nginxVersion, _ := strings.Cut(string(bytes.TrimSpace(nginx)), "/")
	_, h2loadVersion, _ := strings.Cut(string(bytes.TrimSpace(h2load)), "/")
	command := strings.Join(append([]string{"go run ./bench"}, args...), " ")
	return fmt.Sprintf("`%s` on %s: %d cores (%s), %s, Caddy %s, nginx %s, h2load %s.\n",
		command, time.Now().Format(time.DateOnly), runtime.NumCPU(), cpuModel(),
		strings.Replace(info.GoVersion, "go", "Go ", 1), caddy, nginxVersion, h2loadVersion), nil
}

func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func reportLoad(all []comparison) section {
	var verdicts []string
	var costs, rates [][]string
	plot := barChart{title: "CPU time per request (µs)", names: candidateNames}
	for _, c := range all {
		r := pairedRatio(c.cpu(egress), c.cpu(plain))
		cost, rate := []string{c.String()}, []string{c.String()}
		var bars []float64
		for _, name := range candidateNames {
			micros := float64(median(c.cpu(name))) / 1000
			cost = append(cost, fmt.Sprintf("%.1f", micros))
			bars = append(bars, micros)
			rate = append(rate, throughput(c.rounds[name]))
		}
		costs = append(costs, append(cost, fmt.Sprintf("%.2f (%.2f–%.2f)", r.median, r.min, r.max)))
		rates = append(rates, rate)
		if c.limit > 0 {
			verdicts = append(verdicts, verdict(r.median <= c.limit, "%s: CPU per request %.3f × plain in %d rounds, at most %.2f", c, r.median, len(c.rounds[egress]), c.limit))
			plot.groups = append(plot.groups, fmt.Sprintf("%s, %d", c.request.name, c.connections))
			plot.values = append(plot.values, bars)
		}
	}
	head := append([]string{"Client, upstream, request, at a time"}, candidateNames...)
	text := strings.Join(verdicts, "") +
		"\nCPU time per request in µs, and `egress` as a multiple of plain `reverse_proxy`: the median of the rounds, and from the least to the most.\n\n" +
		table(append(head, "egress / plain"), costs) +
		"\n" + image("cpu.svg", plot.title) +
		"\nRequests per second, and the median and 99th percentile of the latency in ms.\n\n" +
		table(head, rates)
	return section{text: text, plots: map[string]string{"cpu.svg": plot.svg()}}
}

func throughput(rounds []round) string {
	var rates []float64
	var p50s, p99s []time.Duration
	for _, r := range rounds {
		rates = append(rates, r.rate)
		p50s = append(p50s, r.p50)
		p99s = append(p99s, r.p99)
	}
	return fmt.Sprintf("%.0f; %s, %s", median(rates), ms(median(p50s)), ms(median(p99s)))
}

func reportGrowth(all []growth, s settings) section {
	var rows, perCredential [][]string
	plots := map[string]*chart{
		"adapt.svg":      {title: "caddy adapt", y: "s"},
		"memory.svg":     {title: "Resident memory", y: "MiB"},
		"goroutines.svg": {title: "Goroutines", y: "goroutines"},
		"reload.svg":     {title: "Reload", y: "ms"},
	}
	for i := 0; i+1 < len(all); i += 2 {
		ours, theirs := all[i], all[i+1]
		rows = append(rows, ours.row(), theirs.row())
		per := func(a, b float64) float64 { return (a - b) / float64(ours.n) }
		perCredential = append(perCredential, []string{
			strconv.Itoa(ours.n),
			fmt.Sprintf("%.2f", per(ms64(ours.adapt), ms64(theirs.adapt))),
			fmt.Sprintf("%.1f", per(kib(ours.resident), kib(theirs.resident))),
			fmt.Sprintf("%.1f", per(kib(ours.heap), kib(theirs.heap))),
			fmt.Sprintf("%.2f", per(float64(ours.goroutines), float64(theirs.goroutines))),
			fmt.Sprintf("%.2f", per(kib(ours.metrics), kib(theirs.metrics))),
			fmt.Sprintf("%.2f", per(ms64(ours.reload), ms64(theirs.reload))),
		})
	}
	for i, name := range []string{egress, plain} {
		lines := map[string]series{}
		for j := i; j < len(all); j += 2 {
			g := all[j]
			for file, y := range map[string]float64{
				"adapt.svg": g.adapt.Seconds(), "memory.svg": kib(g.resident) / 1024,
				"goroutines.svg": float64(g.goroutines), "reload.svg": ms64(g.reload),
			} {
				lines[file] = series{name, append(lines[file].points, point{float64(g.n), y})}
			}
		}
		for file, line := range lines {
			plots[file].series = append(plots[file].series, line)
		}
	}

	text := growthVerdicts(all, s) + "\n" +
		table([]string{"Credentials", "Candidate", "adapt (s)", "start (s)", "all tokens (s)", "token requests at a time", "resident (MiB)", "live heap (MiB)", "goroutines", "idle CPU (% of a core)", "reload (ms)", "/metrics (KiB)", "/metrics (ms)"}, rows) +
		"\nWhat one credential adds to plain `reverse_proxy` with one more route. Few credentials say little: the constant part is in it, too.\n\n" +
		table([]string{"Credentials", "adapt (ms)", "resident (KiB)", "live heap (KiB)", "goroutines", "/metrics (KiB)", "reload (ms)"}, perCredential) + "\n"
	var images strings.Builder
	svgs := make(map[string]string)
	for _, file := range []string{"memory.svg", "adapt.svg", "reload.svg", "goroutines.svg"} {
		plot := plots[file]
		plot.x, plot.log = "credentials", true
		svgs[file] = plot.svg()
		images.WriteString(image(file, plot.title))
	}
	return section{text: text + images.String(), plots: svgs}
}

func (g growth) row() []string {
	tokens, atOnce := "–", "–"
	if g.name == egress {
		tokens, atOnce = seconds(g.tokens), strconv.Itoa(g.atOnce)
	}
	return []string{
		strconv.Itoa(g.n), g.name, seconds(g.adapt), seconds(g.start), tokens, atOnce,
		fmt.Sprintf("%.0f", kib(g.resident)/1024), fmt.Sprintf("%.1f", kib(g.heap)/1024), strconv.Itoa(g.goroutines),
		fmt.Sprintf("%.2f", g.idle*100), ms(g.reload), fmt.Sprintf("%.0f", kib(g.metrics)), ms(g.scrape),
	}
}

// growthVerdicts judges the largest number of credentials.
func growthVerdicts(all []growth, s settings) string {
	if len(all) < 2 {
		return ""
	}
	ours, theirs := all[len(all)-2], all[len(all)-1]
	each := (kib(ours.resident) - kib(theirs.resident)) / float64(ours.n)
	adapt, reload := float64(ours.adapt)/float64(theirs.adapt), float64(ours.reload)/float64(theirs.reload)
	return fmt.Sprintf("With %d credentials:\n\n", ours.n) +
		verdict(adapt <= 3 && ours.adapt < 5*time.Second, "`caddy adapt` takes %.1f × plain, at most 3, and %s s, below 5", adapt, seconds(ours.adapt)) +
		verdict(each <= 16, "resident memory: %.1f KiB each above plain, at most 16", each) +
		verdict(ours.goroutines-theirs.goroutines < max(20, ours.n/100), "goroutines: %d more than plain, not one each", ours.goroutines-theirs.goroutines) +
		verdict(ours.tokens <= 90*time.Second && ours.atOnce <= 16, "all tokens after %s s, at most 90, with up to %d token requests of %s at a time, at most 16", seconds(ours.tokens), ours.atOnce, s.tokenLatency) +
		verdict(ours.idle < 0.01, "idle CPU: %.2f %% of a core, below 1", ours.idle*100) +
		verdict(reload <= 1.5, "reload takes %.2f × plain, at most 1.5", reload) +
		verdict(ours.metrics < 10<<20, "/metrics: %.1f MiB after start, below 10", kib(ours.metrics)/1024)
}

func verdict(met bool, format string, args ...any) string {
	word := "**missed**"
	if met {
		word = "met"
	}
	return "- " + word + ": " + fmt.Sprintf(format, args...) + "\n"
}

func table(head []string, rows [][]string) string {
	var b strings.Builder
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(head)
	b.WriteString(strings.Repeat("|---", len(head)) + "|\n")
	for _, row := range rows {
		line(row)
	}
	return b.String()
}

func image(file, title string) string { return "![" + title + "](performance/" + file + ")\n" }

func ms64(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", ms64(d)) }

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()) }

func kib(bytes int64) float64 { return float64(bytes) / 1024 }
