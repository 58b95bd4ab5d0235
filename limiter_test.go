package egress

import (
	"math"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	for _, test := range []struct {
		n   int64
		per time.Duration
	}{{1, time.Second}, {20, time.Second}, {3, time.Minute}, {7, time.Hour}, {1_000_000, time.Second}} {
		l := newLimiter(test.n, test.per)
		const start = time.Hour
		for i := range test.n {
			if wait := l.takeAt(start); wait != 0 {
				t.Fatalf("%d in %v: the %dth at once has to wait for %v", test.n, test.per, i+1, wait)
			}
		}
		wait := l.takeAt(start)
		if want := test.per / time.Duration(test.n); wait != want {
			t.Errorf("%d in %v: one more has to wait for %v, want %v", test.n, test.per, wait, want)
		}
		if left := l.takeAt(start + wait - 1); left != 1 {
			t.Errorf("%d in %v: just before its time, one more has to wait for %v", test.n, test.per, left)
		}
		if left := l.takeAt(start + wait); left != 0 {
			t.Errorf("%d in %v: at its time, one more has to wait for %v", test.n, test.per, left)
		}
		// what is not used is not saved beyond what may be used at once
		later, served := start+100*test.per, int64(0)
		for l.takeAt(later) == 0 {
			served++
		}
		if served != test.n {
			t.Errorf("%d in %v: after a long rest, %d at once are served", test.n, test.per, served)
		}
	}
}

// Under load, by many at once, it lets pass what it should: n at once, and n in
// each unit of time.
func TestLimiterUnderLoad(t *testing.T) {
	const n, seconds = 200, 30
	l := newLimiter(n, time.Second)
	var served atomic.Int64
	for step := range seconds * 1000 {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if l.takeAt(time.Duration(step)*time.Millisecond) == 0 {
					served.Add(1)
				}
			})
		}
		wg.Wait()
	}
	if got, want := float64(served.Load()), float64(n+n*seconds); math.Abs(got-want) > 0.01*want {
		t.Errorf("%v of %d requests were served, want %v", got, 4000*seconds, want)
	}
}
