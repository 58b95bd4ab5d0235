package tokensource

import "time"

const (
	holdFirst = 30 * time.Second
	holdMax   = 10 * time.Minute

	// enough401 in a row on a token that worked before look like a revoked
	// token rather than like one endpoint that always says 401.
	enough401 = 5
)

// hold keeps 401 answers from asking for tokens again and again, where a fresh
// token does not help: an API that always says 401, or one endpoint that does.
type hold struct {
	until time.Time
	level int // times the hold was renewed without a replay that succeeded
	early int // times it was broken since, for 401 in a row
}

// renew starts the hold, or doubles it.
func (h *hold) renew(now time.Time) {
	h.until = now.Add(min(holdFirst<<min(h.level, 10), holdMax))
	h.level++
}

// allows reports whether a 401 on t may ask for another token.
func (h *hold) allows(t *Token, now time.Time) bool {
	if !now.Before(h.until) {
		return true
	}
	// each time this proves wrong it takes twice as many: a busy endpoint that
	// always says 401 beside a quiet one that does not also sends runs of them
	if !t.worked.Load() || int(t.streak.Load()) < enough401<<min(h.early, 16) {
		return false
	}
	h.early++
	return true
}
