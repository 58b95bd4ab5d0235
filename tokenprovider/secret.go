package tokenprovider

import (
	"encoding"
	"fmt"
)

// redacted is what every way of printing a Secret yields.
const redacted = "REDACTED"

// Secret holds a client secret or an access token. However it is printed,
// formatted or marshaled, it comes out as REDACTED; Reveal is the one way to
// its value, so a search for Reveal finds every place that handles one.
type Secret struct{ value string }

// NewSecret returns value as a Secret.
func NewSecret(value string) Secret { return Secret{value: value} }

// Reveal returns the value itself.
func (s Secret) Reveal() string { return s.value }

// IsZero reports whether the secret is empty.
func (s Secret) IsZero() bool { return s.value == "" }

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
