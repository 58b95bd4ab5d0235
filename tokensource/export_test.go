package tokensource

// Unuse has the next request count as the first that uses t.
func (s *Source) Unuse(t *Token) { t.used.Store(false) }
