package egresstest

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// Control is a path that every process of a [Traffic] has to answer with 200, without
// a token.
const Control = "/control"

// Traffic is requests to processes, at a steady rate to each that serves.
type Traffic struct {
	stop func()

	mu     sync.Mutex
	report TrafficReport
	took   []time.Duration
}

// TrafficReport is what became of requests.
type TrafficReport struct {
	Requests int
	Failures []string
	P99      time.Duration
	Slowest  time.Duration

	// Delay is by how much a request took longer, at most, than one of [Control] to
	// the same process at the same time. It says what the gateway had to wait for
	// where the machine is busy.
	Delay time.Duration
}

// StartTraffic sends GETs of path to each of the processes that serve, one per
// interval, whether or not the last is answered, until it is stopped.
func StartTraffic(t testing.TB, interval time.Duration, path string, processes ...*Process) *Traffic {
	traffic := new(Traffic)
	stopped := make(chan struct{})
	var wg sync.WaitGroup
	for _, p := range processes {
		wg.Go(func() {
			tick := time.NewTicker(interval)
			defer tick.Stop()
			for {
				select {
				case <-tick.C:
					wg.Go(func() { traffic.send(p, path) })
				case <-stopped:
					return
				}
			}
		})
	}
	traffic.stop = sync.OnceFunc(func() {
		close(stopped)
		wg.Wait()
	})
	t.Cleanup(traffic.stop)
	return traffic
}

// send sends a request, and at the same time one of Control.
func (f *Traffic) send(p *Process, path string) {
	start := time.Now()
	control := make(chan time.Duration, 1)
	go func() {
		_, _, _ = p.Try(Control)
		control <- time.Since(start)
	}()
	resp, body, err := p.Try(path)
	took := time.Since(start)
	delay := took - <-control
	if errors.Is(err, errDown) {
		return
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	f.took = append(f.took, took)
	f.report.Delay = max(f.report.Delay, delay)
	if err != nil {
		f.report.Failures = append(f.report.Failures, fmt.Sprintf("%s after %s: %v", p.Name, took, err))
	} else if resp.StatusCode != http.StatusOK {
		f.report.Failures = append(f.report.Failures, fmt.Sprintf("%s after %s: %d %s", p.Name, took, resp.StatusCode, body))
	}
}

// Stop stops it, and returns what became of the requests.
func (f *Traffic) Stop() TrafficReport {
	f.stop()
	slices.Sort(f.took)
	n := len(f.took)
	f.report.Requests = n
	if n > 0 {
		f.report.P99, f.report.Slowest = f.took[n*99/100], f.took[n-1]
	}
	return f.report
}
