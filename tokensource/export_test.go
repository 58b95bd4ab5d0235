package tokensource

import (
	"context"
	"time"
	"unsafe"
)

// Suspend returns t as it looks after the machine was suspended for d, in whole
// seconds: the wall clock is nearer to it by d, the monotonic clock is not. It
// relies on the layout of time.Time, in which 33 bits above 30 are the seconds.
func Suspend(t time.Time, d time.Duration) time.Time {
	*(*uint64)(unsafe.Pointer(&t)) -= uint64(d/time.Second) << 30
	return t
}

// Suspend has the machine suspended for d while r waits.
func (r *Refresher) Suspend(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.due {
		s.schedule.due = Suspend(s.schedule.due, d)
		s.state.mu.Lock()
		s.state.current.Load().Expires = Suspend(s.state.current.Load().Expires, d)
		s.state.mu.Unlock()
	}
}

// Unuse has the next request count as the first that uses t.
func (s *Source) Unuse(t *Token) { t.used.Store(false) }

// Len returns the number of sources that are scheduled.
func (r *Refresher) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.due)
}

// Due returns how long it is until a source is due.
func (r *Refresher) Due() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Until(r.due[0].schedule.due, time.Now())
}

// Wait returns how long r waits until it looks again.
func (r *Refresher) Wait() time.Duration {
	_, wait := r.next()
	return wait
}

// RefreshIfDue is what a Refresher calls.
func (s *Source) RefreshIfDue() { s.refresh() }

// Wait is what Token does where it found no live token.
func (s *Source) Wait(ctx context.Context) (*Token, error) { return s.wait(ctx) }

// Refusals returns how many refusals of values of the secret are remembered.
func (s *Source) Refusals() int {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	return len(s.state.refusals)
}

// Remembered returns how many clients are remembered for their 401 answers, and
// how many operations are held back.
func (s *Source) Remembered() (clients, holds int) {
	s.state.mu.Lock()
	defer s.state.mu.Unlock()
	for _, c := range s.state.rejections.clients {
		holds += len(c.holds)
	}
	return len(s.state.rejections.clients), holds
}
