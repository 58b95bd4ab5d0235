package tokenprovider

import (
	"encoding"
	"fmt"
	"unique"
)

// redacted is what every way of printing a Secret yields.
const redacted = "REDACTED"

// Secret holds a client secret or an access token. However it is printed,
// formatted or marshaled, it comes out as REDACTED; Reveal is the one way to
// its value, so a search for Reveal finds every place that handles one. Secrets
// of the same value are equal.
type Secret struct {
	// a handle, since package fmt calls no method on what an unexported field
	// holds: it prints the handle's address there
	value unique.Handle[string]
}

// NewSecret returns value as a Secret.
func NewSecret(value string) Secret {
	if value == "" {
		return Secret{}
	}
	return Secret{value: unique.Make(value)}
}

// Reveal returns the value itself.
func (s Secret) Reveal() string {
	if s.IsZero() {
		return ""
	}
	return s.value.Value()
}

// IsZero reports whether the secret is empty.
func (s Secret) IsZero() bool { return s == Secret{} }

// Format implements fmt.Formatter, for every verb and flag.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) }

// String implements fmt.Stringer.
func (s Secret) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (s Secret) GoString() string { return redacted }

// MarshalText implements encoding.TextMarshaler, and with it JSON, map keys included.
func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Interface guards
var (
	_ fmt.Formatter          = Secret{}
	_ fmt.Stringer           = Secret{}
	_ fmt.GoStringer         = Secret{}
	_ encoding.TextMarshaler = Secret{}
)
