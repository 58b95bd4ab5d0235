// Package e2e_test tests the whole gateway, from Caddyfile to sockets, by
// subject. The harness is internal/egresstest.
package e2e_test

import (
	"flag"
	"os"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// raceDetector says that this is a build with it, which is several times slower.
var raceDetector bool

func TestMain(m *testing.M) {
	// tests that are parallel have their Caddys in processes of their own, and wait
	// most of the time
	parallel := "40"
	if raceDetector {
		parallel = "8"
	}
	_ = flag.Set("test.parallel", parallel)
	// Those that tests start of this program, as Caddy's command, end at once. With
	// -race they would sleep for a second first, in case that something still runs.
	os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	egresstest.Main(m)
}
