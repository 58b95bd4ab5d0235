package egresstest

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// Eventually waits until condition holds.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	if !await(20*time.Second, condition) {
		t.Fatalf("waited in vain for %s", what)
	}
}

// await waits until condition holds, for so long at most, and reports whether it does.
func await(most time.Duration, condition func() bool) bool {
	end := time.NewTimer(most)
	defer end.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-end.C:
			return false
		}
	}
	return true
}

// SettledGoroutines returns the number of goroutines once it is at most most,
// or no longer changes.
func SettledGoroutines(t *testing.T, most int) int {
	t.Helper()
	n, same := runtime.NumGoroutine(), 0
	Eventually(t, "goroutines to end", func() bool {
		if now := runtime.NumGoroutine(); now != n {
			n, same = now, 0
		}
		same++
		return n <= most || same > 300
	})
	return n
}

// Stacks returns the stacks of all goroutines.
func Stacks() string {
	stacks := make([]byte, 1<<20)
	for {
		n := runtime.Stack(stacks, true)
		if n < len(stacks) {
			return string(stacks[:n])
		}
		stacks = make([]byte, 2*len(stacks))
	}
}

// HeapGrowth returns by how much the heap grows at most while f runs.
func HeapGrowth(f func()) int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, most := int64(m.HeapInuse), int64(0)

	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			runtime.ReadMemStats(&m)
			most = max(most, int64(m.HeapInuse)-before)
			select {
			case <-tick.C:
			case <-done:
				return
			}
		}
	})
	f()
	close(done)
	wg.Wait()
	return most
}
