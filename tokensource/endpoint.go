package tokensource

import "sync"

// MaxConcurrent is how many token requests are made at a time to one token
// endpoint.
const MaxConcurrent = 16

// Endpoint bounds the token requests to one token endpoint. Those above
// MaxConcurrent queue: first those that a client waits for, then the rest, each
// in order. A queued request has no goroutine and uses none of its timeout.
type Endpoint struct {
	mu      sync.Mutex
	running int

	// Requests that were withdrawn, or promoted from rest to first, stay where
	// they were in the queue and are skipped.
	first []*tokenRequest
	rest  []*tokenRequest
}

// NewEndpoint returns a token endpoint without token requests.
func NewEndpoint() *Endpoint { return new(Endpoint) }

// enqueue sends r as soon as there is a place for it.
func (e *Endpoint) enqueue(r *tokenRequest) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case !r.unsent: // it was withdrawn
	case e.running < MaxConcurrent:
		e.running++
		r.unsent = false
		go r.source.run(r)
	case r.waited:
		r.queued = true
		e.first = append(e.first, r)
	default:
		r.queued = true
		e.rest = append(e.rest, r)
	}
}

// promote has r sent before those that no client waits for.
func (e *Endpoint) promote(r *tokenRequest) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !r.waited && r.queued && r.unsent {
		e.first = append(e.first, r)
	}
	if !r.waited {
		close(r.wanted)
	}
	r.waited = true
}

// enter takes another place for r, which a client waits for and which has been
// sent, and reports whether there was one.
func (e *Endpoint) enter(r *tokenRequest) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !r.waited || e.running >= MaxConcurrent {
		return false
	}
	e.running++
	return true
}

// withdraw keeps r from being sent, unless it has been sent or a client waits
// for it, and reports whether it did.
func (e *Endpoint) withdraw(r *tokenRequest) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !r.unsent || r.waited {
		return false
	}
	r.unsent = false
	return true
}

// release gives the place of an attempt that has ended to the next request.
func (e *Endpoint) release() {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := next(&e.first)
	if r == nil {
		r = next(&e.rest)
	}
	if r == nil {
		e.running--
		return
	}
	go r.source.run(r)
}

// next takes the first request that is still to be sent out of the queue.
func next(queue *[]*tokenRequest) *tokenRequest {
	for len(*queue) > 0 {
		r := (*queue)[0]
		(*queue)[0] = nil // the array outlives it
		*queue = (*queue)[1:]
		if r.unsent {
			r.unsent = false
			return r
		}
	}
	return nil
}
