// Package apipath finds every way in which an API could read the path of a
// request, so that a rule about paths can be held against all of them.
package apipath

import (
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxReadings bounds in how many ways a path can be read; honest ones have few.
const maxReadings = 32

// Readings returns every way in which an API could read the escaped path:
// decoded once or repeatedly, as a whole or segment by segment, with doubled
// slashes merged, with path parameters (;a=1) removed, with what follows two
// slashes taken for an authority, and any combination of these. In the first
// one, only the escapes of characters that need none are decoded.
//
// Dot segments, backslashes, control characters and invalid UTF-8 are errors:
// no honest client sends them, and APIs disagree about what they mean. The
// error completes a sentence that begins with "the path".
func Readings(escaped string) ([]string, error) {
	var readings []string
	add := func(path string) {
		if !slices.Contains(readings, path) {
			readings = append(readings, path)
		}
	}
	add(unescape(escaped, func(c byte) bool { return c == '/' || isUnreserved(c) }))
	add(unescapeSegments(escaped))
	decoded := unescape(escaped, nil)
	add(decoded)
	if !utf8.ValidString(decoded) {
		return nil, errors.New("is not UTF-8")
	}
	for i := 0; i < len(readings); i++ { //nolint:intrange // it grows meanwhile
		path := readings[i]
		switch err := checkReading(path); {
		case err != nil:
			return nil, err
		case i == maxReadings:
			return nil, errors.New("can be read in too many ways")
		}
		add(unescape(path, nil))
		add(unescapeSegments(path))
		add(mergeSlashes(path))
		add(withoutParams(path))
		add(withoutAuthority(path))
	}
	return readings, nil
}

// unescape decodes the escapes in path once, except those of characters that
// keep reports true for. A percent sign that does not begin an escape stays.
func unescape(path string, keep func(c byte) bool) string {
	if !strings.Contains(path, "%") {
		return path
	}
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] == '%' && i+2 < len(path) {
			c, err := hex.DecodeString(path[i+1 : i+3])
			if err == nil && (keep == nil || !keep(c[0])) {
				b.WriteByte(c[0])
				i += 2
				continue
			}
		}
		b.WriteByte(path[i])
	}
	return b.String()
}

// unescapeSegments is unescape for each segment: an escaped slash stays.
func unescapeSegments(path string) string {
	return unescape(path, func(c byte) bool { return c == '/' })
}

// isUnreserved reports whether c never needs to be escaped (RFC 3986 §2.3).
func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.ContainsRune("-._~", rune(c))
}

func checkReading(path string) error {
	for i := range len(path) {
		switch c := path[i]; {
		case c < ' ', c == 0x7f, c == '\\':
			return errors.New("holds a control character or backslash")
		case c == 0xc0, c == 0xc1, i+1 < len(path) && (c == 0xe0 && path[i+1] < 0xa0 || c == 0xf0 && path[i+1] < 0x90):
			return errors.New("is not UTF-8") // an overlong encoding of another character
		}
	}
	for segment := range strings.SplitSeq(path, "/") {
		name, _, _ := strings.Cut(segment, ";")
		if name == "." || name == ".." {
			return errors.New("holds a dot segment")
		}
	}
	return nil
}

func mergeSlashes(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path
}

// withoutParams cuts the parameters off each segment of path.
func withoutParams(path string) string {
	if !strings.Contains(path, ";") {
		return path
	}
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		segments[i], _, _ = strings.Cut(segment, ";")
	}
	return strings.Join(segments, "/")
}

// withoutAuthority cuts off what a parser of URLs takes for the host in a path
// that begins with two slashes.
func withoutAuthority(path string) string {
	rest, ok := strings.CutPrefix(path, "//")
	if !ok {
		return path
	}
	_, rest, _ = strings.Cut(rest, "/")
	return "/" + rest
}
