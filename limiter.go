package egress

import (
	"sync/atomic"
	"time"
)

// limiter is a token bucket: n requests at once, and n in each unit of time from
// then on. What is left in it is kept as the time at which it will be full again
// (the generic cell rate algorithm), so that one word holds all of it.
type limiter struct {
	interval time.Duration // between two requests, evenly
	burst    time.Duration // what n requests take, evenly
	full     atomic.Int64  // since limiterEpoch
}

// limiterEpoch is what limiters count from, by the monotonic clock.
var limiterEpoch = time.Now()

func newLimiter(n int64, per time.Duration) *limiter {
	interval := per / time.Duration(n)
	return &limiter{interval: interval, burst: interval * time.Duration(n)}
}

// take takes a request out of the bucket. Where none is left, it returns how long
// it takes until there is one.
func (l *limiter) take() (wait time.Duration) { return l.takeAt(time.Since(limiterEpoch)) }

// takeAt is take at a time after limiterEpoch.
func (l *limiter) takeAt(at time.Duration) (wait time.Duration) {
	now := int64(at)
	for {
		before := l.full.Load()
		full := max(before, now) + int64(l.interval)
		if over := full - now - int64(l.burst); over > 0 {
			return time.Duration(over)
		}
		if l.full.CompareAndSwap(before, full) {
			return 0
		}
	}
}
