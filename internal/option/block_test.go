package option

import (
	"errors"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// owner has the options api_url and a, which must not have the value bad.
type owner struct{ apiURL, a string }

func (o *owner) Validate() error {
	switch "bad" {
	case o.apiURL:
		return errors.New("api_url: is bad")
	case o.a:
		return errors.New("a: is bad")
	}
	return nil
}

func (o *owner) UnmarshalOption(d *caddyfile.Dispenser) (bool, error) {
	switch d.Val() {
	case "api_url":
		return true, String(d, &o.apiURL)
	case "a":
		return true, String(d, &o.a)
	}
	return false, nil
}

func TestBlock(t *testing.T) {
	for _, test := range []struct {
		input string
		want  owner
		err   string
	}{
		{"name", owner{}, ""},
		{"name {\n}", owner{}, ""},
		{"name https://x", owner{apiURL: "https://x"}, ""},
		{"name https://x {\n a b\n}", owner{"https://x", "b"}, ""},
		{"name {\n api_url https://x\n a b\n}", owner{"https://x", "b"}, ""},
		{"name x y", owner{apiURL: "x"}, `unexpected argument "y"`},
		{`name ""`, owner{}, "api_url: is empty"},
		{"name x {\n api_url y\n}", owner{apiURL: "x"}, "api_url is already given"},
		{"name {\n a b\n b c\n}", owner{a: "b"}, `unknown option "b", at Testfile:3`},
		{"name bad {\n a b\n}", owner{"bad", "b"}, "provider name: api_url: is bad, at Testfile:1"},
		{"name {\n api_url b\n a bad\n}", owner{"b", "bad"}, "provider name: a: is bad, at Testfile:3"},
		{"name {\n a\n}", owner{}, "a: needs a value, at Testfile:2"},
	} {
		var o owner
		err := Block(caddyfile.NewTestDispenser(test.input), &o)
		if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) || o != test.want {
			t.Errorf("%s\ngot %+v, %v", test.input, o, err)
		}
	}
}

func TestSetSaysWhereTheValueStands(t *testing.T) {
	d := caddyfile.NewTestDispenser("name\nsecond \"\"")
	d.Next()
	d.Next()
	d.NextArg()
	if err := Set(d, &owner{}, "api_url"); err == nil || !strings.Contains(err.Error(), "Testfile:2") {
		t.Errorf("got %v", err)
	}
}

func TestLines(t *testing.T) {
	lines := Lines{}
	d := caddyfile.NewTestDispenser("name {\n one a\n two b\n two c d\n three\n}")
	d.Next()
	start := At(d)
	for d.NextBlock(0) {
		lines.Add(d)
		d.RemainingArgs()
	}
	for text, want := range map[string]string{
		"one: is bad":        "Testfile:2",
		"one is required":    "Testfile:2",
		"two b: is bad":      "Testfile:3",
		"two c: is bad":      "Testfile:4",
		"two: are too many":  "Testfile:4",
		"three: is bad":      "Testfile:5",
		"four: is not given": "Testfile:1",
	} {
		if err := lines.Of(errors.New(text), start).Err(text); !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it at %s", err, want)
		}
	}
}

func TestNearest(t *testing.T) {
	known := []string{"voucher", "vouchers", "validations", "skus", "api"}
	for name, want := range map[string]string{
		"vouchers":    "vouchers",
		"voucherz":    "voucher",
		"Vouchers":    "vouchers",
		"vuochers":    "vouchers",
		"validation":  "validations",
		"validatoins": "validations",
		"sku":         "skus",
		"apis":        "api",
		"":            "",
		"x":           "",
		"campaigns":   "",
		"zzzzzzzzzzz": "",
	} {
		if got := Nearest(name, known); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
	if got := Nearest("a", nil); got != "" {
		t.Errorf("got %q", got)
	}
}

func TestDistance(t *testing.T) {
	for _, test := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"abc", "abc", 0},
		{"", "abc", 3},
		{"abc", "", 3},
		{"abc", "abd", 1},
		{"abc", "acb", 2},
		{"kitten", "sitting", 3},
		{"saturday", "sunday", 3},
	} {
		if got := distance(test.a, test.b); got != test.want {
			t.Errorf("%q to %q: got %d, want %d", test.a, test.b, got, test.want)
		}
	}
}
