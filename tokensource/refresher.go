package tokensource

import (
	"container/heap"
	"sync"
	"time"
)

// Refresher starts the refreshes of all sources that share it, in one goroutine
// that waits for the next one that is due. A source costs a place in a heap; the
// goroutine exists only while there is a source in it.
type Refresher struct {
	mu      sync.Mutex
	due     dueHeap
	running bool
	changed chan struct{} // has a value once another source is due first, or none is
}

// lookAgain bounds how long a refresher waits: its timer stands still while the
// machine is suspended.
const lookAgain = time.Minute

// NewRefresher returns a refresher without sources.
func NewRefresher() *Refresher { return &Refresher{changed: make(chan struct{}, 1)} }

// schedule is when a source is due next. mu of its refresher is held.
type schedule struct {
	due   time.Time
	index int // in the heap, or unscheduled
}

const unscheduled = -1

// set has s refreshed at due, whatever was set before.
func (r *Refresher) set(s *Source, due time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.schedule.due = due
	if s.schedule.index == unscheduled {
		heap.Push(&r.due, s)
	} else {
		heap.Fix(&r.due, s.schedule.index)
	}
	switch {
	case !r.running:
		r.running = true
		go r.run()
	case r.due[0] == s:
		r.wake()
	}
}

// remove has s not refreshed until set is called again.
func (r *Refresher) remove(s *Source) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.schedule.index != unscheduled {
		heap.Remove(&r.due, s.schedule.index)
	}
	if len(r.due) == 0 {
		r.wake()
	}
}

// wake has run look again. mu is held.
func (r *Refresher) wake() {
	select {
	case r.changed <- struct{}{}:
	default: // it will
	}
}

// run refreshes what is due, until no source is left.
func (r *Refresher) run() {
	for {
		s, wait := r.next()
		switch {
		case s == nil:
			return
		case wait <= 0:
			s.refresh()
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-r.changed:
			timer.Stop()
		}
	}
}

// next returns the source that is due next, and how long until then. One that is
// due now is taken out of the heap. Without any it ends run, and returns nil.
func (r *Refresher) next() (s *Source, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.due) == 0 {
		r.running = false
		return nil, 0
	}
	s = r.due[0]
	wait = min(Until(s.schedule.due, time.Now()), lookAgain)
	if wait <= 0 {
		heap.Pop(&r.due)
	}
	return s, wait
}

// dueHeap implements heap.Interface: the source that is due first is at 0.
type dueHeap []*Source

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].schedule.due.Before(h[j].schedule.due) }

func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].schedule.index, h[j].schedule.index = i, j
}

func (h *dueHeap) Push(x any) {
	s := x.(*Source)
	s.schedule.index = len(*h)
	*h = append(*h, s)
}

func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	s := (*h)[last]
	(*h)[last] = nil // the array outlives it
	*h = (*h)[:last]
	s.schedule.index = unscheduled
	return s
}
