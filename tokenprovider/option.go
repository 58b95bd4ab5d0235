package tokenprovider

// OptionError says what is wrong with one option. A provider's Validate returns
// it so that the error points to the option's line in a Caddyfile.
type OptionError struct {
	Option string // its name, such as scopes
	Arg    string // its first argument, where the option may be given several times; else empty
	Err    error
}

// Error implements error.
func (e *OptionError) Error() string {
	if e.Arg != "" {
		return e.Option + " " + e.Arg + ": " + e.Err.Error()
	}
	return e.Option + ": " + e.Err.Error()
}

// Unwrap returns what is wrong, without the option's name.
func (e *OptionError) Unwrap() error { return e.Err }
