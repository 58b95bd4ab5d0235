package tokenprovider

import (
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/tokenprovider/internal/wiretest"
)

func grant() Grant {
	return Grant{
		Provider: "p", TokenURL: "https://a/token", ClientID: "id", AuthMethod: "m",
		Scopes: []string{"a", "b"}, Audience: []string{"c"}, Resource: []string{"urn:d"},
		Params: []Param{{"e", "f"}, {"g", "h"}}, Headers: []string{"X-I"}, KeyID: "k",
	}
}

func TestIdentity(t *testing.T) {
	id := grant().Identity()
	if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(id) {
		t.Errorf("got %q, want a SHA-256 in hexadecimal", id)
	}
	if again := grant().Identity(); again != id {
		t.Errorf("equal grants have identities %s and %s", id, again)
	}
	if g := (Grant{Scopes: []string{}}); g.Identity() != (Grant{}).Identity() {
		t.Error("no scopes and nil scopes differ")
	}
	wiretest.NoLeak(t, id, "https", "X-I")
}

// Every field of a grant, those to come included, is part of its identity.
func TestIdentityDependsOnEveryField(t *testing.T) {
	seen := map[string]string{grant().Identity(): "unchanged"}
	for i := range reflect.TypeFor[Grant]().NumField() {
		name := reflect.TypeFor[Grant]().Field(i).Name
		changed, empty := grant(), grant()
		field := reflect.ValueOf(&changed).Elem().Field(i)
		switch v := field.Addr().Interface().(type) {
		case *string:
			*v += "x"
		case *[]string:
			*v = append(*v, "x")
		case *[]Param:
			*v = append(*v, Param{"x", "y"})
		default:
			t.Fatalf("%s: this test does not know how to change %T", name, v)
		}
		reflect.ValueOf(&empty).Elem().Field(i).SetZero()
		for change, g := range map[string]Grant{name + " changed": changed, name + " empty": empty} {
			if other, ok := seen[g.Identity()]; ok {
				t.Errorf("%s and %s have one identity", change, other)
			}
			seen[g.Identity()] = change
		}
	}
}

func TestIdentityKeepsPartsApart(t *testing.T) {
	grants := map[string]Grant{
		"ab c":             {Provider: "ab", TokenURL: "c"},
		"a bc":             {Provider: "a", TokenURL: "bc"},
		"scopes ab c":      {Scopes: []string{"ab", "c"}},
		"scopes a bc":      {Scopes: []string{"a", "bc"}},
		"scopes abc":       {Scopes: []string{"abc"}},
		"scopes abc empty": {Scopes: []string{"abc", ""}},
		"scope with size":  {Scopes: []string{"2:ab1:c"}},
		"audience ab c":    {Audience: []string{"ab", "c"}},
		"resource ab c":    {Resource: []string{"ab", "c"}},
		"headers ab c":     {Headers: []string{"ab", "c"}},
		"param ab c":       {Params: []Param{{"ab", "c"}}},
		"param a bc":       {Params: []Param{{"a", "bc"}}},
		"params":           {Params: []Param{{"a", "b"}, {"c", ""}}},
		"params moved":     {Params: []Param{{"a", ""}, {"b", "c"}}},
		"forged":           {Resource: []string{"param2;1:a1:b"}},
		"not forged":       {Params: []Param{{"a", "b"}}},
	}
	seen := map[string]string{}
	for name, g := range grants {
		if other, ok := seen[g.Identity()]; ok {
			t.Errorf("%s and %s have one identity", name, other)
		}
		seen[g.Identity()] = name
	}
}

// Scopes are a set (RFC 6749 §3.3): credentials with the same share a token.
func TestIdentityDoesNotDependOnTheOrderOfScopes(t *testing.T) {
	want := Grant{Scopes: []string{"a", "b"}}.Identity()
	for _, scopes := range [][]string{{"b", "a"}, {"a", "b", "a"}} {
		if got := (Grant{Scopes: scopes}).Identity(); got != want {
			t.Errorf("scopes %q have another identity than a b", scopes)
		}
	}
}

func TestCheckScopes(t *testing.T) {
	for _, scopes := range [][]string{nil, {}, {"a"}, {"openid", "marketing.read"}, {"https://x/y?z=#[]"}, {"!#$%&'()*+,-./:;<=>?@[]^_`{|}~"}} {
		if err := CheckScopes(scopes); err != nil {
			t.Errorf("%q: %v", scopes, err)
		}
	}
	for _, test := range []struct {
		scopes []string
		want   string
	}{
		{[]string{""}, "empty"},
		{[]string{"a", ""}, "empty"},
		{[]string{"a b"}, `"a b"`},
		{[]string{"a", "b\t"}, `"b\t"`},
		{[]string{`a"`}, `"a\""`},
		{[]string{`a\`}, `"a\\"`},
		{[]string{"ä"}, `"ä"`},
		{[]string{"a\x7f"}, `"a\x7f"`},
		{[]string{"a", "b", "a"}, `"a" is given twice`},
	} {
		err := CheckScopes(test.scopes)
		if err == nil || !strings.HasPrefix(err.Error(), "scopes: ") || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: got %v, want %s", test.scopes, err, test.want)
		}
	}
}
