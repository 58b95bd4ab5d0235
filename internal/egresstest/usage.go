package egresstest

import (
	"net/http"
	"regexp"
	"runtime"
	"strconv"
)

// Usage is what a process takes.
type Usage struct {
	Heap       int64 // bytes in use after a garbage collection
	Goroutines int
}

var (
	heapLine       = regexp.MustCompile(`(?m)^# HeapAlloc = (\d+)$`)
	goroutinesLine = regexp.MustCompile(`^goroutine profile: total (\d+)`)
)

// Usage collects the garbage of the process and returns what is left, by the profiles
// of its admin API.
func (p *Process) Usage() Usage {
	p.t.Helper()
	number := func(path string, line *regexp.Regexp) int64 {
		resp, body, err := get(p.admin, path)
		if err != nil || resp.StatusCode != http.StatusOK {
			p.t.Fatalf("%s of %s: %v %v", path, p.Name, err, resp)
		}
		match := line.FindStringSubmatch(body)
		if match == nil {
			p.t.Fatalf("%s of %s has no %s", path, p.Name, line)
		}
		n, err := strconv.ParseInt(match[1], 10, 64)
		if err != nil {
			p.t.Fatal(err)
		}
		return n
	}
	for range 2 { // what has a finalizer takes two collections, and pools take two as well
		number("/debug/pprof/heap?gc=1&debug=1", heapLine)
	}
	return Usage{
		Goroutines: int(number("/debug/pprof/goroutine?debug=1", goroutinesLine)),
		Heap:       number("/debug/pprof/heap?gc=1&debug=1", heapLine),
	}
}

// OwnUsage is [Process.Usage] of this process.
func OwnUsage() Usage {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return Usage{Heap: int64(m.HeapAlloc), Goroutines: runtime.NumGoroutine()}
}
