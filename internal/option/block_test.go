package option

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// owner has the options api_url, a, and pair, which must not have the value bad.
type owner struct {
	apiURL, a string
	pairs     map[string]string
}

func (o *owner) Validate() error {
	switch "bad" {
	case o.apiURL:
		return Errorf("api_url", "is bad")
	case o.a:
		return fmt.Errorf("wrapped: %w", Errorf("a", "is bad"))
	}
	for name, value := range o.pairs {
		if value == "bad" {
			return &tokenprovider.OptionError{Option: "pair", Arg: name, Err: errors.New("is bad")}
		}
	}
	return nil
}

func (o *owner) Options() Table {
	return Table{
		"api_url": func(d *caddyfile.Dispenser) error { return String(d, &o.apiURL) },
		"a":       func(d *caddyfile.Dispenser) error { return String(d, &o.a) },
		"pair":    func(d *caddyfile.Dispenser) error { return Pair(d, &o.pairs) },
	}
}

func TestReadProvider(t *testing.T) {
	for _, test := range []struct {
		input string
		want  owner
		err   string
	}{
		{"name", owner{}, ""},
		{"name {\n}", owner{}, ""},
		{"name https://x", owner{apiURL: "https://x"}, ""},
		{"name https://x {\n a b\n}", owner{apiURL: "https://x", a: "b"}, ""},
		{"name {\n api_url https://x\n a b\n}", owner{apiURL: "https://x", a: "b"}, ""},
		{"name x y", owner{apiURL: "x"}, `what: unexpected argument "y", at Testfile:1`},
		{`name ""`, owner{}, "api_url: is empty, at Testfile:1"},
		{"name x {\n api_url y\n}", owner{apiURL: "x"}, "api_url is already given, at Testfile:2"},
		{"name {\n a b\n b c\n}", owner{a: "b"}, `what: unknown option "b"; there are a, api_url, more, pair, at Testfile:3`},
		{"name {\n pairs c\n}", owner{}, `what: unknown option "pairs"; did you mean pair?, at Testfile:2`},
		{"name {\n mora c\n}", owner{}, `what: unknown option "mora"; did you mean more?, at Testfile:2`},
		{"name bad {\n a b\n}", owner{apiURL: "bad", a: "b"}, "what: api_url: is bad, at Testfile:1"},
		{"name {\n\n api_url bad\n}", owner{apiURL: "bad"}, "what: api_url: is bad, at Testfile:3"},
		{"name {\n api_url b\n a bad\n}", owner{apiURL: "b", a: "bad"}, "what: wrapped: a: is bad, at Testfile:3"},
		{"name {\n a\n}", owner{}, "a: needs a value, at Testfile:2"},
		{"name {\n pair a b\n pair c bad\n pair d e\n}", owner{pairs: map[string]string{"a": "b", "c": "bad", "d": "e"}}, "what: pair c: is bad, at Testfile:3"},
	} {
		var o owner
		more := Table{
			"more": func(d *caddyfile.Dispenser) error { return End(d, "more") },
			"a":    func(*caddyfile.Dispenser) error { t.Error("the provider's own option counts"); return nil },
		}
		d := caddyfile.NewTestDispenser(test.input)
		d.Next()
		_, err := ReadProvider(d, "what", &o, more, nil)
		if (err == nil) != (test.err == "") || err != nil && err.Error() != test.err && !strings.HasPrefix(err.Error(), test.err) {
			t.Errorf("%s\ngot %v, want %s", test.input, err, test.err)
		}
		if !reflect.DeepEqual(o, test.want) {
			t.Errorf("%s\ngot %+v", test.input, o)
		}
	}
}

// A provider without an api_url takes no argument.
func TestReadProviderWithoutAPIURL(t *testing.T) {
	d := caddyfile.NewTestDispenser("name https://x")
	d.Next()
	if _, err := ReadProvider(d, "what", bare{}, nil, nil); err == nil || !strings.Contains(err.Error(), "unexpected argument") {
		t.Errorf("got %v", err)
	}
}

type bare struct{}

func (bare) Options() Table  { return nil }
func (bare) Validate() error { return nil }

func TestBlock(t *testing.T) {
	d := caddyfile.NewTestDispenser("outer {\n inner {\n one a\n other b\n two c d\n two e f\n }\n next\n}")
	d.Next()
	d.NextBlock(0)
	var read []string
	note := func(d *caddyfile.Dispenser) error {
		read = append(read, d.Val()+" "+strings.Join(d.RemainingArgs(), " "))
		return nil
	}
	lines, err := Block(d, Table{"one": note, "two": note}, note)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"one a", "other b", "two c d", "two e f"}; !slices.Equal(read, want) {
		t.Errorf("read %q, want %q", read, want)
	}
	if !d.NextBlock(0) || d.Val() != "next" {
		t.Errorf("after the block is %q", d.Val())
	}

	for err, want := range map[error]string{
		Errorf("one", "is bad"):  "one: is bad, at Testfile:3",
		Errorf("two", "is bad"):  "two: is bad, at Testfile:6",
		Errorf("none", "is bad"): "none: is bad, at Testfile:2",
		errors.New("one is bad"): "one is bad, at Testfile:2",
		&tokenprovider.OptionError{Option: "two", Arg: "c", Err: errors.New("is bad")}: "two c: is bad, at Testfile:5",
		&tokenprovider.OptionError{Option: "two", Arg: "x", Err: errors.New("is bad")}: "two x: is bad, at Testfile:6",
	} {
		got := lines.Wrap(err)
		if got.Error() != want || !errors.Is(got, err) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if lines.Wrap(nil) != nil {
		t.Error("an error of nothing")
	}
	if !lines.Has("other") || lines.Has("next") {
		t.Error("has next, or not other")
	}
	if at := lines.At("other"); at.Line() != 4 || at.Val() != "other" {
		t.Errorf("other is at %d %s", at.Line(), at.Val())
	}
	if at := lines.At("next"); at.Line() != 2 {
		t.Errorf("what is not given is at %d", at.Line())
	}
}

func TestOneOf(t *testing.T) {
	for value, want := range map[string]string{
		"client_secret_post":  "",
		"eu":                  "",
		"client_secret_basis": `opt: "client_secret_basis" is not one of client_secret_post, client_secret_basic, eu; did you mean client_secret_basic?`,
		"EU":                  `opt: "EU" is not one of client_secret_post, client_secret_basic, eu; did you mean eu?`,
		"mars":                `opt: "mars" is not one of client_secret_post, client_secret_basic, eu`,
	} {
		err := OneOf("opt", value, "client_secret_post", "client_secret_basic", "eu")
		if (err == nil) != (want == "") || err != nil && err.Error() != want {
			t.Errorf("%s: got %v, want %s", value, err, want)
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
		"ap":          "api",
		"xpx":         "", // most letters differ
	} {
		if got := Nearest(name, known); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
	if got := Nearest("client_secret", []string{"client_secret_basic"}); got != "" { // too much is missing
		t.Errorf("got %q", got)
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
