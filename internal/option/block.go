package option

import (
	"slices"
	"strings"

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
// an option of u.
func Block(d *caddyfile.Dispenser, u Unmarshaler) error {
	d.Next() // the name
	if d.NextArg() {
		if err := Set(d, u, "api_url"); err != nil {
			return err
		}
	}
	if d.NextArg() {
		return d.Errf("unexpected argument %q", d.Val())
	}
	for d.NextBlock(0) {
		known, err := u.UnmarshalOption(d)
		if err != nil {
			return err
		}
		if !known {
			return d.Errf("unknown option %q", d.Val())
		}
	}
	return nil
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
