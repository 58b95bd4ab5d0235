package tokensource

import "time"

// Until returns how long it is from now until t, by the clock that has less
// left: the monotonic clock stands still while the machine is suspended, and the
// wall clock can be set back. Both times have to come from [time.Now].
func Until(t, now time.Time) time.Duration {
	return min(t.Sub(now), t.Round(0).Sub(now.Round(0)))
}
