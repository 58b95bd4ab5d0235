package apipath

import (
	"slices"
	"strings"
	"testing"
)

func TestReadings(t *testing.T) {
	for path, want := range map[string][]string{
		"":                  nil,
		"/":                 nil,
		"/v1/vouchers":      nil,
		"/a..b/...":         nil,
		"/%41":              {"/%41", "/A"},
		"/a%2fb":            {"/a%2fb", "/a/b"},
		"/a%20b":            {"/a b"},
		"/%7E%2D%5F%2E1":    {"/%7E%2D%5F%2E1", "/~-_.1"},
		"/%D0%B7":           {"/з"},
		"/100%25":           {"/100%"},
		"/%2541":            {"/%41", "/A"},
		"/%25252f":          {"/%252f", "/%2f", "//", "/"},
		"/%zz":              {"/%zz"},
		"/a%2":              {"/a%2"},
		"/a%":               {"/a%"},
		"/a//b":             {"/a//b", "/a/b"},
		"/a///b":            {"/a///b", "/a/b"},
		"/a;b=1/c":          {"/a;b=1/c", "/a/c"},
		"/a%3Bb/c":          {"/a;b/c", "/a/c"},
		"//x/y":             {"//x/y", "/x/y", "/y"},
		"//x":               {"//x", "/x", "/"},
		"/a%2F%2Fb":         {"/a%2F%2Fb", "/a//b", "/a/b"},
		"/;%2Fa/b":          {"/;%2Fa/b", "/;/a/b", "//b", "//a/b", "/b", "/a/b", "/"},
		"/%E2%82%AC/%C3%BC": {"/€/ü"},
	} {
		if want == nil {
			want = []string{path}
		}
		got, err := Readings(path)
		if err != nil || !sameSet(got, want) {
			t.Errorf("%s: got %q, %v, want %q", path, got, err, want)
		}
	}
}

func sameSet(a, b []string) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

// The first reading is the one that is shown in messages: with the escapes that
// the path needs.
func TestFirstReading(t *testing.T) {
	for path, want := range map[string]string{
		"/a%2Fb%20c": "/a%2Fb c", "/%61bc": "/%61bc", "/%7E": "/%7E", "/%25": "/%", "/a%3Fb": "/a?b",
	} {
		if got, err := Readings(path); err != nil || got[0] != want {
			t.Errorf("%s: got %q, %v, want %q first", path, got, err, want)
		}
	}
}

func TestPathsThatAreRefused(t *testing.T) {
	const control, utf8, dots = "holds a control character or backslash", "is not UTF-8", "holds a dot segment"
	for path, want := range map[string]string{
		"/a\x1f": control, "/a\x7f": control, "/a%00": control, "/a%1F": control, "/a%2500": control, `/a\b`: control, "/a%5cb": control, "/a%255Cb": control,
		"/%ff": utf8, "/%c0%af": utf8, "/%C1%81": utf8, "/%25c0%25af": utf8, "/%25c1%2581": utf8, "/%25e0%2580%25af": utf8, "/%e0%9f%bf": utf8, "/%25f0%2580%2580%25af": utf8, "/%f0%8f%bf%bf": utf8,
		"/.": dots, "/..": dots, "/a/../b": dots, "/a/./b": dots, "/a/..;x/b": dots, "/%2e": dots, "/a/%2e%2E/b": dots, "/a%2f..%2fb": dots, "/a/%252e/b": dots, "/a/..%3b": dots, "/a;/..": dots,
	} {
		if got, err := Readings(path); err == nil || err.Error() != want {
			t.Errorf("%q: got %q, %v, want the error %q", path, got, err, want)
		}
	}
	for _, path := range []string{"/a\x20", "/~", "/\u00a0", "/%e0%a0%80", "/%f0%90%80%80", "/%ef%bf%bf", "/%f4%8f%bf%bf", "/.a", "/a.", "/..a/b..", "/a;../b", "/a/x;.."} {
		if got, err := Readings(path); err != nil {
			t.Errorf("%q: got %q, %v", path, got, err)
		}
	}
}

func TestReadingsAreBounded(t *testing.T) {
	// each further escape of the percent sign is one more reading
	nested := func(depth int) string { return "/%" + strings.Repeat("25", depth) + "41" }
	if got, err := Readings(nested(31)); err != nil || len(got) != 32 {
		t.Errorf("got %d readings, %v", len(got), err)
	}
	if _, err := Readings(nested(32)); err == nil || err.Error() != "can be read in too many ways" {
		t.Errorf("got %v", err)
	}
}
