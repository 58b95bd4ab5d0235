package tokensource

import "time"

// bucket bounds how often something is done: size times at once, and then once
// every so often.
type bucket struct {
	size  float64
	every time.Duration
	left  float64
	at    time.Time // when left was right
}

func newBucket(size int, every time.Duration) bucket {
	return bucket{size: float64(size), every: every, left: float64(size)}
}

// take takes one out of the bucket and returns how long it has to be waited for.
func (b *bucket) take(now time.Time) time.Duration {
	b.fill(now)
	b.left--
	return max(0, time.Duration(-b.left*float64(b.every)))
}

// has reports whether one can be taken without a wait.
func (b *bucket) has(now time.Time) bool {
	b.fill(now)
	return b.left >= 1
}

// refund puts back one that was taken.
func (b *bucket) refund() { b.left = min(b.size, b.left+1) }

func (b *bucket) fill(now time.Time) {
	if !b.at.IsZero() {
		b.left = min(b.size, b.left+float64(now.Sub(b.at))/float64(b.every))
	}
	b.at = now
}
