package option

import (
	"iter"
	"maps"
	"slices"
	"strings"
)

// OneOf returns an error unless value is one of values.
func OneOf(name, value string, values ...string) error {
	if slices.Contains(values, value) {
		return nil
	}
	return Errorf(name, "%q is not one of %s%s", value, strings.Join(values, ", "), DidYouMean(value, slices.Values(values)))
}

// sameAs has the names that some providers have for what others call otherwise.
var sameAs = map[string]string{
	"client_id": "app_id", "client_secret": "app_token",
	"app_id": "client_id", "app_token": "client_secret",
}

// DidYouMean returns the end of an error about name, which is not known: a
// question about the known name that means the same, or looks most like it, or
// nothing.
func DidYouMean(name string, known iter.Seq[string]) string {
	names := slices.Sorted(known)
	near := sameAs[name]
	if near == "" || !slices.Contains(names, near) {
		near = Nearest(name, names)
	}
	if near == "" {
		return ""
	}
	return "; did you mean " + near + "?"
}

// Suggest returns the end of an error about the option name, which is not known:
// a question about the one that looks most like it, or all that there are.
func Suggest(name string, table Table) string {
	if near := DidYouMean(name, maps.Keys(table)); near != "" {
		return near
	}
	return "; there are " + strings.Join(slices.Sorted(maps.Keys(table)), ", ")
}

// Nearest returns the known name that looks most like name, or nothing where
// none is near: few letters differ, and fewer than half of those known.
func Nearest(name string, known []string) string {
	best, least := "", 1+len(name)/3
	for _, candidate := range known {
		if d := distance(strings.ToLower(name), candidate); d <= least && 2*d < len(candidate) {
			best, least = candidate, d-1
		}
	}
	return best
}

// distance is the edit distance between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = slices.Min([]int{cost, row[j] + 1, diagonal + 1})
		}
	}
	return row[len(b)]
}
