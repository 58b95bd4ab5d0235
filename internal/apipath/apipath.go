// Package apipath finds every way in which an API could read the path of a
// request, so that a rule about paths can be held against all of them.
package apipath

import (
	"encoding/hex"
	"errors"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// maxReadings bounds in how many ways a path can be read; honest ones have few.
const maxReadings = 64

// Readings returns every way in which an API could read the escaped path, as
// [url.URL.EscapedPath] returns it: decoded once or repeatedly, as a whole or
// segment by segment; with doubled slashes merged; with path parameters (;a=1)
// removed, and the slash before them; with what follows two slashes taken for an
// authority; ended by a ?, # or ; that was escaped; with spaces and dots at the ends of segments removed;
// with characters beyond ASCII replaced by those that they stand for; and any
// combination of these. In the first one, the escapes of characters that need
// none, and of slashes, stay.
//
// Dot segments, backslashes, control characters and invalid UTF-8 are errors:
// no honest client sends them, and APIs disagree about what they mean. The
// error completes a sentence that begins with "the path".
func Readings(escaped string) ([]string, error) {
	if isPlain(escaped) {
		return []string{escaped}, nil
	}
	return readings(escaped)
}

// isPlain reports whether there is nothing in path that could be read in another
// way, as in most paths there is not.
func isPlain(path string) bool {
	for i := range len(path) {
		switch c := path[i]; {
		case c == '.', c == '/':
			if i > 0 && (path[i-1] == '/' || path[i-1] == '.') || c == '.' && (i == 0 || i == len(path)-1) {
				return false
			}
		case !isUnreserved(c):
			return false
		}
	}
	return true
}

// readings is Readings of any path.
func readings(escaped string) ([]string, error) {
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
		for _, end := range []string{"?", "#", ";"} {
			before, _, _ := strings.Cut(path, end)
			add(before)
		}
		if before, _, found := strings.Cut(path, "/;"); found && before != "" { // the slash may not count either
			add(before)
		}
		add(trimSegments(path))
		add(unescapeUnicode(path))
		add(fold(path))
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
		case c == 0xc2 && i+1 < len(path) && path[i+1] >= 0x80 && path[i+1] < 0xa0: // U+0080 to U+009F
			return errors.New("holds a control character or backslash")
		case c == 0xc0, c == 0xc1, i+1 < len(path) && (c == 0xe0 && path[i+1] < 0xa0 || c == 0xf0 && path[i+1] < 0x90):
			return errors.New("is not UTF-8") // an overlong encoding of another character
		}
	}
	for segment := range strings.SplitSeq(path, "/") {
		if name, _, _ := strings.Cut(segment, ";"); isDotSegment(name) {
			return errors.New("holds a dot segment")
		}
	}
	return nil
}

// isDotSegment reports whether a segment is . or .., or dots and spaces that a
// server could make it of.
func isDotSegment(segment string) bool {
	if segment == "" || strings.Trim(segment, ".") == "" {
		return segment == "." || segment == ".."
	}
	dots := strings.Map(func(r rune) rune {
		if isSpace(r) {
			return -1
		}
		return r
	}, segment)
	return dots != "" && strings.Trim(dots, ".") == ""
}

// isSpace reports whether r is a space, or a plus sign, which stands for one in
// forms.
func isSpace(r rune) bool { return r == '+' || unicode.IsSpace(r) }

// trimSegments cuts spaces off both ends of each segment, and dots off its end,
// as file systems of Windows do.
func trimSegments(path string) string {
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		segment = strings.TrimLeftFunc(segment, isSpace)
		segments[i] = strings.TrimRightFunc(segment, func(r rune) bool { return r == '.' || isSpace(r) })
	}
	return strings.Join(segments, "/")
}

// unescapeUnicode decodes the escapes %uXXXX, which JavaScript's unescape and
// IIS know.
func unescapeUnicode(path string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(path, "%u")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		path = after
		if len(after) >= 4 {
			if r, err := strconv.ParseUint(after[:4], 16, 16); err == nil {
				b.WriteRune(rune(r))
				path = after[4:]
				continue
			}
		}
		b.WriteString("%u")
	}
}

// fold replaces characters beyond ASCII by those that a server could take them
// for: compatibility forms (Unicode's NFKC), such as fullwidth letters, by what
// they are forms of, others that look like slashes by slashes; and removes those
// that are not visible.
func fold(path string) string {
	if !strings.ContainsFunc(path, func(r rune) bool { return r >= utf8.RuneSelf }) {
		return path
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r < utf8.RuneSelf:
			return r
		case r == 0x2044, r == 0x2215, r == 0x29f8: // fraction slash, division slash, big solidus
			return '/'
		case r == 0x2216, r == 0x29f5, r == 0x29f9: // set minus, reverse solidus operator, big reverse solidus
			return '\\'
		case unicode.In(r, unicode.Cf, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point):
			return -1
		}
		return r
	}, norm.NFKC.String(path))
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
