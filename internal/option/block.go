package option

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// Table holds the options of a block by name, each with the function that reads
// the current subdirective. It is an alias, so that others can write the type.
type Table = map[string]func(*caddyfile.Dispenser) error

// Join returns a table of all options. Where two have the same name, that of
// the earlier table counts.
func Join(tables ...Table) Table {
	joined := make(Table)
	for _, table := range slices.Backward(tables) {
		maps.Copy(joined, table)
	}
	return joined
}

// Block reads the block that follows in d, each option by its function in table
// and those that are not in it by other. It returns where the options are.
func Block(d *caddyfile.Dispenser, table Table, other func(*caddyfile.Dispenser) error) (Lines, error) {
	lines := Lines{start: At(d), options: make(map[string]*caddyfile.Dispenser)}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		lines.add(d)
		read, ok := table[d.Val()]
		if !ok {
			read = other
		}
		if err := read(d); err != nil {
			return Lines{}, err
		}
	}
	return lines, nil
}

// Unknown returns a function for Block that refuses options which are not in
// table. Its errors are about what.
func Unknown(what string, table Table) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		return d.Errf("%s: unknown option %q%s", what, d.Val(), Suggest(d.Val(), table))
	}
}

// Provider is what is read from `<provider> [<api_url>] { … }`.
type Provider interface {
	// Options returns the options of the provider.
	Options() Table
	caddy.Validator
}

// ReadProvider reads `[<api_url>] { … }`, which follows in d, into p and
// validates it. In the block are p's options, those of more, and what other
// reads; a nil other refuses the rest. Errors are about what.
func ReadProvider(d *caddyfile.Dispenser, what string, p Provider, more Table, other func(*caddyfile.Dispenser) error) (Lines, error) {
	table := Join(p.Options(), more)
	if other == nil {
		other = Unknown(what, table)
	}
	var apiURL *caddyfile.Dispenser
	if read, ok := table["api_url"]; ok && d.NextArg() {
		apiURL = At(d)
		if err := read(argument("api_url", d.Token())); err != nil {
			return Lines{}, err
		}
	}
	if d.NextArg() {
		return Lines{}, d.Errf("%s: unexpected argument %q", what, d.Val())
	}
	lines, err := Block(d, table, other)
	if err != nil {
		return Lines{}, err
	}
	if apiURL != nil {
		lines.options["api_url"] = apiURL
	}
	if err := p.Validate(); err != nil {
		return Lines{}, lines.Wrap(fmt.Errorf("%s: %w", what, err))
	}
	return lines, nil
}

// argument returns a dispenser of `<name> <value>`, on the line of value.
func argument(name string, value caddyfile.Token) *caddyfile.Dispenser {
	key := value
	key.Text = name
	d := caddyfile.NewDispenser([]caddyfile.Token{key, value})
	d.Next()
	return d
}

// At returns a dispenser of the current token alone, for errors that are about
// all that begins there.
func At(d *caddyfile.Dispenser) *caddyfile.Dispenser {
	at := caddyfile.NewDispenser([]caddyfile.Token{d.Token()})
	at.Next()
	return at
}

// Lines are where the options of a block are.
type Lines struct {
	start   *caddyfile.Dispenser            // the block itself
	options map[string]*caddyfile.Dispenser // by name, and by name and first argument
}

// add notes the current subdirective.
func (l Lines) add(d *caddyfile.Dispenser) {
	name, at := d.Val(), At(d)
	l.options[name] = at
	if d.NextArg() { // an option that may be given several times
		l.options[name+" "+d.Val()] = at
		d.Prev()
	}
}

// Has reports whether the option name is given.
func (l Lines) Has(name string) bool { return l.options[name] != nil }

// At returns where the option name is, or the block if it is not given.
func (l Lines) At(name string) *caddyfile.Dispenser { return cmp.Or(l.options[name], l.start) }

// Wrap adds to err the file and line of the option that it is about, or of the
// block. A nil err stays nil.
func (l Lines) Wrap(err error) error {
	if err == nil {
		return nil
	}
	at := l.start
	if e, ok := errors.AsType[*tokenprovider.OptionError](err); ok {
		at = cmp.Or(l.options[e.Option+" "+e.Arg], l.At(e.Option))
	}
	return at.WrapErr(err)
}

// Errorf returns an error about the option name.
func Errorf(name, format string, args ...any) error {
	return &tokenprovider.OptionError{Option: name, Err: fmt.Errorf(format, args...)}
}
