package egress

import (
	"strings"
)

const (
	redacted = "REDACTED"

	// minRedacted is the length of the shortest token that is looked for:
	// shorter ones would be found by chance.
	minRedacted = 8
)

// sentTokens are the tokens that a request was sent with, which its answer must
// not show: one, or two after a replay.
type sentTokens [2]string

// redact returns value with the tokens replaced, as they are or percent-encoded.
func (s *sentTokens) redact(value string) string {
	for _, token := range s {
		if len(token) < minRedacted || len(value) < len(token) {
			continue
		}
		if strings.Contains(value, token) {
			value = strings.ReplaceAll(value, token, redacted)
		}
		if strings.Contains(value, "%") {
			value = redactEscaped(value, token)
		}
	}
	return value
}

// redactEscaped is redact for a token of which some characters, or all, are
// percent-encoded.
func redactEscaped(value, token string) string {
	decoded := make([]byte, 0, len(value))
	starts := make([]int, 0, len(value)+1) // where each byte of decoded begins in value
	for i := 0; i < len(value); i++ {
		starts = append(starts, i)
		if value[i] == '%' && i+2 < len(value) {
			high, ok := unhex(value[i+1])
			low, ok2 := unhex(value[i+2])
			if ok && ok2 {
				decoded = append(decoded, high<<4|low)
				i += 2
				continue
			}
		}
		decoded = append(decoded, value[i])
	}
	starts = append(starts, len(value))

	var clean strings.Builder
	rest, begin := string(decoded), 0 // begin is where rest begins in decoded
	for {
		before, after, found := strings.Cut(rest, token)
		if !found {
			break
		}
		end := begin + len(before)
		clean.WriteString(value[starts[begin]:starts[end]] + redacted)
		rest, begin = after, end+len(token)
	}
	if begin == 0 {
		return value
	}
	return clean.String() + value[starts[begin]:]
}

// unhex returns the value of a hexadecimal digit, and whether c is one.
func unhex(c byte) (value byte, ok bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// named reports whether a token is in the name of a header, which does not keep
// its case.
func (s *sentTokens) named(name string) bool {
	for _, token := range s {
		if len(token) >= minRedacted && len(name) >= len(token) && strings.Contains(strings.ToLower(name), strings.ToLower(token)) {
			return true
		}
	}
	return false
}

// redactError returns err, with the tokens redacted in what it says: an error
// about an answer may quote it.
func (s *sentTokens) redactError(err error) error {
	message := err.Error()
	if clean := s.redact(message); clean != message {
		return &redactedError{clean, err}
	}
	return err
}

// redactedError is an error that says something else.
type redactedError struct {
	message string
	err     error
}

func (e *redactedError) Error() string { return e.message }
func (e *redactedError) Unwrap() error { return e.err }
