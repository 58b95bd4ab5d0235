package option

import (
	"cmp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// Unmarshaler reads options one by one, so that a block can mix those of
// several owners.
type Unmarshaler interface {
	// UnmarshalOption reads the current subdirective if it is one of its own,
	// and reports whether it was.
	UnmarshalOption(d *caddyfile.Dispenser) (bool, error)
}

// Block reads `<name> [<api_url>] { … }`, every subdirective of which has to be
// an option of the provider, and validates the provider.
func Block(d *caddyfile.Dispenser, provider interface {
	Unmarshaler
	caddy.Validator
}) error {
	d.Next()
	start := At(d)
	name := d.Val()
	if d.NextArg() {
		if err := Set(d, provider, "api_url"); err != nil {
			return err
		}
	}
	if d.NextArg() {
		return d.Errf("provider %s: unexpected argument %q", name, d.Val())
	}
	lines := make(Lines)
	for d.NextBlock(0) {
		lines.Add(d)
		known, err := provider.UnmarshalOption(d)
		if err != nil {
			return err
		}
		if !known {
			return d.Errf("provider %s: unknown option %q", name, d.Val())
		}
	}
	if err := provider.Validate(); err != nil {
		return lines.Of(err, start).Errf("provider %s: %w", name, err)
	}
	return nil
}

// At returns a dispenser of the current token alone, for errors that are about
// all that begins there.
func At(d *caddyfile.Dispenser) *caddyfile.Dispenser {
	at := caddyfile.NewDispenser([]caddyfile.Token{d.Token()})
	at.Next()
	return at
}

// Lines are where the options of a block stand: by name, and where an option
// may be given more than once also by name and first argument.
type Lines map[string]*caddyfile.Dispenser

// Add notes the current subdirective.
func (l Lines) Add(d *caddyfile.Dispenser) {
	name, at := d.Val(), At(d)
	l[name] = at
	if d.NextArg() {
		l[name+" "+d.Val()] = at
		d.Prev()
	}
}

// Of returns where the option stands that err is about, by which an error
// begins, or start if it is not given.
func (l Lines) Of(err error, start *caddyfile.Dispenser) *caddyfile.Dispenser {
	subject, _, _ := strings.Cut(err.Error(), ":")
	name, _, _ := strings.Cut(subject, " ")
	return cmp.Or(l[subject], l[name], start)
}

// Set reads the current argument as if it were the value of the option name.
func Set(d *caddyfile.Dispenser, u Unmarshaler, name string) error {
	value := d.Token()
	key := value
	key.Text = name
	option := caddyfile.NewDispenser([]caddyfile.Token{key, value})
	option.Next()
	_, err := u.UnmarshalOption(option)
	return err
}

// Nearest returns the known name that looks most like name, or nothing where
// none is near.
func Nearest(name string, known []string) string {
	best, least := "", 1+len(name)/3
	for _, candidate := range known {
		if d := distance(strings.ToLower(name), candidate); d <= least {
			best, least = candidate, d-1
		}
	}
	return best
}

// distance is the edit distance between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = slices.Min([]int{cost, row[j] + 1, diagonal + 1})
		}
	}
	return row[len(b)]
}
