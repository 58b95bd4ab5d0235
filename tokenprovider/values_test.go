package tokenprovider

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestValuesInJSON(t *testing.T) {
	for _, test := range []struct {
		in   string
		want Values
		out  string
	}{
		{`"a"`, Values{"a"}, `"a"`},
		{`["a"]`, Values{"a"}, `"a"`},
		{`["a","b"]`, Values{"a", "b"}, `["a","b"]`},
		{`""`, nil, `null`},
		{`[]`, Values{}, `[]`},
	} {
		var v Values
		if err := json.Unmarshal([]byte(test.in), &v); err != nil || strings.Join(v, ",") != strings.Join(test.want, ",") || len(v) != len(test.want) {
			t.Errorf("%s: got %q, %v", test.in, v, err)
		}
		if out, err := json.Marshal(v); err != nil || string(out) != test.out {
			t.Errorf("%s: marshals as %s, %v", test.in, out, err)
		}
	}
	for _, wrong := range []string{`{"secret":1}`, `["secret",1]`, `7`} {
		err := json.Unmarshal([]byte(wrong), new(Values))
		if err == nil || !strings.Contains(err.Error(), "neither") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}

func TestValuesAt(t *testing.T) {
	for _, test := range []struct {
		v    Values
		i    int
		want string
	}{{Values{"a"}, 3, "a"}, {Values{"a", "b"}, 1, "b"}, {Values{"a", "b"}, 2, ""}, {nil, 0, ""}} {
		if got := test.v.At(test.i); got != test.want {
			t.Errorf("%q.At(%d) = %q", test.v, test.i, got)
		}
	}
}

func TestCheckPaired(t *testing.T) {
	for _, test := range []struct {
		ids, secrets Values
		want         string
	}{
		{Values{"a"}, Values{"x"}, ""},
		{Values{"a"}, Values{"x", "y"}, ""},
		{Values{"a", "b"}, Values{"x", "y"}, ""},
		{Values{"a", "b"}, Values{"x"}, "id: has 2 values, and secret 1"},
		{Values{"a"}, Values{"x", ""}, "secret: a value is empty"},
		{Values{""}, Values{"x"}, "id: a value is empty"},
	} {
		err := CheckPaired("id", test.ids, "secret", test.secrets)
		if (err == nil) != (test.want == "") || err != nil && !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("%q %q: %v", test.ids, test.secrets, err)
		}
	}
}
