package egress

import (
	"errors"
	"fmt"
	"testing"
)

func TestRedact(t *testing.T) {
	tokens := sentTokens{"abc+/=~token", "earlier-token"}
	for value, want := range map[string]string{
		"":                                 "",
		"nothing":                          "nothing",
		"abc+/=~token":                     "REDACTED",
		"Bearer abc+/=~token":              "Bearer REDACTED",
		"abc+/=~tokenabc+/=~token":         "REDACTEDREDACTED",
		"abc%2B%2f%3D~token&x=%2B":         "REDACTED&x=%2B",
		"%61bc+/=~toke%6e%6":               "REDACTED%6",
		"x%20abc+/=~token%20earlier-token": "x%20REDACTED%20REDACTED",
		"%zzabc+/=~token%":                 "%zzREDACTED%",
		"ABC+/=~TOKEN":                     "ABC+/=~TOKEN",
		"%":                                "%",
	} {
		if got := tokens.redact(value); got != want {
			t.Errorf("%q becomes %q, want %q", value, got, want)
		}
	}
	short := sentTokens{"short"}
	if got := short.redact("a short token"); got != "a short token" {
		t.Errorf("a token that is found by chance is redacted: %q", got)
	}

	err := errors.New("malformed answer")
	if got := tokens.redactError(err); got != err { //nolint:errorlint // the very same
		t.Errorf("redacting changes %v", got)
	}
	if got := tokens.redactError(fmt.Errorf("abc+/=~token: %w", err)); got.Error() != "REDACTED: malformed answer" || !errors.Is(got, err) {
		t.Errorf("redacting returns %v", got)
	}
}
