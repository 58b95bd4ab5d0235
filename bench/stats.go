package main

import (
	"cmp"
	"math"
	"slices"
)

type number interface{ ~int | ~int64 | ~float64 }

// median returns the value in the middle of values, or the mean of the two that
// are.
func median[T number](values []T) T {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	half := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[half]
	}
	return (sorted[half-1] + sorted[half]) / 2
}

// percentile returns the smallest value that is not exceeded by p percent of
// values.
func percentile[T cmp.Ordered](values []T, p float64) T {
	var zero T
	if len(values) == 0 {
		return zero
	}
	sorted := slices.Sorted(slices.Values(values))
	rank := int(math.Ceil(p/100*float64(len(sorted)))) - 1
	return sorted[min(max(rank, 0), len(sorted)-1)]
}

// ratio compares two candidates by their rounds: those of one round ran next to
// each other, so what disturbed one has likely disturbed the other.
type ratio struct{ median, min, max float64 }

func pairedRatio[T number](ours, theirs []T) ratio {
	n := min(len(ours), len(theirs))
	if n == 0 {
		return ratio{}
	}
	ratios := make([]float64, n)
	for i := range ratios {
		ratios[i] = float64(ours[i]) / float64(theirs[i])
	}
	return ratio{median(ratios), slices.Min(ratios), slices.Max(ratios)}
}
