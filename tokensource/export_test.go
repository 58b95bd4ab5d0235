package tokensource

import "context"

// Unuse has the next request count as the first that uses t.
func (s *Source) Unuse(t *Token) { t.used.Store(false) }

// Len returns the number of sources that are scheduled.
func (r *Refresher) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.due)
}

// RefreshIfDue is what a Refresher calls.
func (s *Source) RefreshIfDue() { s.refresh() }

// Wait is what Token does where it found no live token.
func (s *Source) Wait(ctx context.Context) (*Token, error) { return s.wait(ctx) }
