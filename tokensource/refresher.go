package tokensource

import (
	"container/heap"
	"sync"
	"time"
)

// Refresher starts the refreshes of all sources that share it, with one timer
// for the next one that is due. A source costs a place in a heap and no
// goroutine; the refresher has one only while a source is due.
type Refresher struct {
	mu    sync.Mutex
	due   dueHeap
	timer *time.Timer
}

// NewRefresher returns a refresher without sources.
func NewRefresher() *Refresher { return new(Refresher) }

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
	if r.due[0] == s {
		r.startTimer(due)
	}
}

// remove has s not refreshed until set is called again.
func (r *Refresher) remove(s *Source) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.schedule.index != unscheduled {
		heap.Remove(&r.due, s.schedule.index)
	}
}

// startTimer starts the timer, which may be running. mu is held.
func (r *Refresher) startTimer(due time.Time) {
	if r.timer == nil {
		r.timer = time.AfterFunc(time.Until(due), r.run)
		return
	}
	r.timer.Reset(time.Until(due))
}

// run refreshes what is due, which may be nothing: a source may have been set
// to a later time since the timer was started.
func (r *Refresher) run() {
	for s := r.next(); s != nil; s = r.next() {
		s.refresh()
	}
}

// next takes the next source that is due out of the heap. Without one it
// starts the timer again, and returns nil.
func (r *Refresher) next() *Source {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.due) == 0 {
		return nil
	}
	s := r.due[0]
	if due := s.schedule.due; time.Until(due) > 0 {
		r.startTimer(due)
		return nil
	}
	heap.Pop(&r.due)
	return s
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
