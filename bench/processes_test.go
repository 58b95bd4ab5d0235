package main

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// TestProcesses sends a few requests of each kind through each candidate, and
// lets one grow to three credentials. It needs nginx and h2load, and is skipped
// without.
func TestProcesses(t *testing.T) {
	if testing.Short() {
		t.Skip("builds Caddy")
	}
	for _, name := range []string{"nginx", "h2load"} {
		if _, err := lookPath(name); err != nil {
			if os.Getenv("EGRESS_REQUIRE_BENCH") == "1" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	t.Chdir("..")
	ctx := t.Context()
	l, err := newLab(ctx, settings{})
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	u, err := l.startUpstream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := get(ctx, http.DefaultClient, u.http+"/1k"); err == nil || err.Error() != "401 Unauthorized" {
		t.Errorf("the upstream without Authorization: got %v, want a 401", err)
	}
	tokens, err := startTokens(ctx, time.Millisecond, time.Hour, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer tokens.close()
	candidates, err := l.startCandidates(ctx, u, tokens.url)
	if err != nil {
		t.Fatal(err)
	}

	for _, sc := range append(matrix(), acceptance...) {
		if sc.connections != 16 && sc.limit == 0 {
			continue
		}
		for _, c := range candidates {
			if _, err := l.oneRound(ctx, sc, c, sc.connections); err != nil {
				t.Errorf("%s: %s: %v", c.name, sc, err)
			}
		}
	}

	g, err := l.grow(ctx, egress, 3, u, settings{idle: 50 * time.Millisecond, tokenLatency: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if g.adapt == 0 || g.start == 0 || g.tokens == 0 || g.atOnce < 1 || g.atOnce > 3 || g.metrics == 0 || g.goroutines == 0 || g.heap == 0 || g.resident < g.heap || g.reload == 0 {
		t.Errorf("not all was measured: %+v", g)
	}

	l.close()
	for _, p := range l.processes {
		if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(p.pid))); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s still runs", p.name)
		}
	}
	if _, err := os.Stat(l.dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("files are left")
	}
}
