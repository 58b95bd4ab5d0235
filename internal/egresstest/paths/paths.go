// Package paths knows in how many ways an API could read the path of a request.
// It is the judge of the tests, written apart from the code that it judges.
package paths

import (
	"encoding/hex"
	"path"
	"strings"
)

// Interpretations returns the paths, in lower case, that some API might take
// the path of a request for: as it is, or after any of the transformations
// below, as often and in whatever order they are applied.
func Interpretations(escaped string) []string {
	decodings := []func(string) string{
		func(p string) string { return decode(p, false) },
		func(p string) string { return decode(p, true) },
		func(p string) string {
			return strings.NewReplacer("\xc0\xaf", "/", "\xc0\xae", ".", "\xe0\x80\xaf", "/").Replace(p)
		},
		func(p string) string { return strings.ReplaceAll(p, `\`, "/") },
		func(p string) string { return path.Clean("/" + p) },
		func(p string) string { // path parameters
			segments := strings.Split(p, "/")
			for i := range segments {
				segments[i], _, _ = strings.Cut(segments[i], ";")
			}
			return strings.Join(segments, "/")
		},
		func(p string) string { p, _, _ = strings.Cut(p, "\x00"); return p },
		func(p string) string { // an authority
			if !strings.HasPrefix(p, "//") {
				return p
			}
			_, rest, _ := strings.Cut(p[2:], "/")
			return "/" + rest
		},
		func(p string) string { p, _, _ = strings.Cut(p, "?"); return p },
		func(p string) string { p, _, _ = strings.Cut(p, "#"); return p },
		func(p string) string { p, _, _ = strings.Cut(p, ";"); return p },
		func(p string) string { // as Windows does
			segments := strings.Split(p, "/")
			for i, segment := range segments {
				if trimmed := strings.TrimRight(segment, " "); trimmed == "." || trimmed == ".." {
					segments[i] = trimmed
				} else {
					segments[i] = strings.TrimRight(segment, ". ")
				}
			}
			return strings.Join(segments, "/")
		},
		lookalikes.Replace,
	}
	found, seen := []string{escaped}, map[string]bool{escaped: true}
	for i := 0; i < len(found) && len(found) < 1000; i++ {
		for _, decoding := range decodings {
			if p := decoding(found[i]); !seen[p] {
				found = append(found, p)
				seen[p] = true
			}
		}
	}
	for i := range found {
		found[i] = strings.ToLower(found[i])
	}
	return found
}

// lookalikes replaces what some servers take for ASCII, and what nobody sees.
var lookalikes = func() *strings.Replacer {
	pairs := []string{
		"\u2024", ".", "\u2025", "..", "\u2044", "/", "\u2215", "/", "\u2216", `\`,
		"\u00ad", "", "\u200b", "", "\u200c", "", "\u200d", "", "\u2060", "", "\ufeff", "",
	}
	for c := rune('!'); c <= '~'; c++ { // fullwidth forms
		pairs = append(pairs, string(c-'!'+'\uff01'), string(c))
	}
	return strings.NewReplacer(pairs...)
}()

// decode undoes percent-encoding once and leaves what is not encoded, as lenient
// decoders do; escaped slashes stay if a segment at a time is decoded.
func decode(p string, bySegment bool) string {
	var b strings.Builder
	for i := 0; i < len(p); i++ {
		if p[i] == '%' && i+2 < len(p) {
			if c, err := hex.DecodeString(p[i+1 : i+3]); err == nil && (!bySegment || c[0] != '/') {
				b.WriteByte(c[0])
				i += 2
				continue
			}
		}
		b.WriteByte(p[i])
	}
	return b.String()
}

// IsUnder reports whether p is prefix, which ends in a slash, or below it.
func IsUnder(p, prefix string) bool { return strings.HasPrefix(p+"/", prefix) }
