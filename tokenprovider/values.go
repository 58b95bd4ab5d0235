package tokenprovider

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// Values are the values of an option that has several while a credential is
// rotated, as configured: the new one first. In JSON they are a string, or an
// array of strings.
type Values []string

// At returns the value that belongs to value i of another option: the i-th, or
// the only one there is.
func (v Values) At(i int) string {
	switch {
	case len(v) == 1:
		return v[0]
	case i < len(v):
		return v[i]
	}
	return ""
}

// MarshalJSON implements json.Marshaler.
func (v Values) MarshalJSON() ([]byte, error) {
	if len(v) == 1 {
		return json.Marshal(v[0])
	}
	return json.Marshal([]string(v))
}

// UnmarshalJSON implements json.Unmarshaler.
func (v *Values) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*v = nil
		if one != "" {
			*v = Values{one}
		}
		return nil
	}
	var several []string
	if json.Unmarshal(data, &several) != nil {
		return errors.New("is neither a string nor an array of strings") // without data: it may be a secret
	}
	*v = several
	return nil
}

// CheckPaired returns an *OptionError unless each value of the option secretName has one
// of idName that belongs to it: as many, or one for all.
func CheckPaired(idName string, ids Values, secretName string, secrets Values) error {
	wrong := func(option, format string, args ...any) error {
		return &OptionError{Option: option, Err: fmt.Errorf(format, args...)}
	}
	switch {
	case slices.Contains(ids, ""):
		return wrong(idName, "a value is empty")
	case slices.Contains(secrets, ""):
		return wrong(secretName, "a value is empty")
	case len(ids) > 1 && len(ids) != len(secrets):
		return wrong(idName, "has %d values, and %s %d; give one for each, in the same order, or one for all", len(ids), secretName, len(secrets))
	}
	return nil
}

// Alternatives returns a provider for each value that the secret of p has, in the
// order in which they are configured. Of most there is one, p itself.
func Alternatives(p Provider) []Provider {
	if rotating, ok := p.(Rotating); ok {
		if all := rotating.Alternatives(); len(all) > 0 {
			return all
		}
	}
	return []Provider{p}
}

// HasLasting reports whether secrets, which a provider returned, have one of the client
// that lasts. Others alone, such as those of headers, may be easy to guess: nothing is
// to be sealed with them.
func HasLasting(secrets []Secret) bool { return len(secrets) > 0 && !secrets[0].IsZero() }

// CheckSecrets returns an error unless one of the alternatives of p has its secrets
// at hand: the new value may still have to come, and the old one be gone.
func CheckSecrets(p Provider) error {
	var first error
	for _, alternative := range Alternatives(p) {
		_, err := alternative.Secrets()
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}
