package apipath

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestReadings(t *testing.T) {
	for path, want := range map[string][]string{
		"":                  nil,
		"/":                 nil,
		"/v1/vouchers":      nil,
		"/a..b/...":         {"/a..b/...", "/a..b/"},
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
		"/a;b=1/c":          {"/a;b=1/c", "/a/c", "/a"},
		"/a/;b":             {"/a/;b", "/a/", "/a"},
		"/;b":               {"/;b", "/"},
		"/a%3Bb/c":          {"/a;b/c", "/a/c", "/a"},
		"/a%3Fb/c":          {"/a?b/c", "/a"},
		"/a%23b/c":          {"/a#b/c", "/a"},
		"/a%3F%23b":         {"/a?#b", "/a?", "/a"},
		"/a%253Fb":          {"/a%3Fb", "/a?b", "/a"},
		"/a.%20/b":          {"/a. /b", "/a/b"},
		"/+a+/...":          {"/+a+/...", "/a/"},
		"/%25u002f":         {"/%u002f", "//", "/"},
		"/%25u00/%25u":      {"/%u00/%u"},
		"/a%EF%BC%8Fb":      {"/a／b", "/a/b"},
		"/a%E2%81%84b":      {"/a⁄b", "/a/b"},
		"/a%E2%88%95b":      {"/a∕b", "/a/b"},
		"/a%EF%BC%9Fb":      {"/a？b", "/a?b", "/a"},
		"/o%E2%80%8Bauth":   {"/o\u200bauth", "/oauth"},
		"/o%C2%ADauth":      {"/o\u00adauth", "/oauth"},
		"/%EF%BD%8Fauth":    {"/ｏauth", "/oauth"},
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
		"/.": dots, "/..": dots, "/a/../b": dots, "/a/./b": dots, "/a/..;x/b": dots, "/%2e": dots, "/a/%2e%2E/b": dots, "/a%2f..%2fb": dots, "/..%20": dots, "/%20../b": dots, "/.%20./b": dots, "/..+/b": dots, "/..%C2%A0/b": dots, "/..%E3%80%80/b": dots, "/...%20/b": dots,
		"/%EF%BC%8E%EF%BC%8E/b": dots, "/%E2%80%A4%E2%80%A4/b": dots, "/%E2%80%A5/b": dots, "/.%E2%80%8B./b": dots, "/..%EF%BB%BF/b": dots, "/.%C2%AD./b": dots, "/.%E2%81%A0./b": dots,
		"/a%EF%BC%8F..": dots, "/..%3Fb": dots, "/..%23b": dots, "/..%253F": dots, "/%25u002e./b": dots, "/%EF%BC%85%32e./b": dots,
		"/a%C2%85b": control, "/a%EF%BC%BCb": control, "/a%E2%88%96b": control, "/a%25u005cb": control, "/a/%252e/b": dots, "/a/..%3b": dots, "/a;/..": dots,
	} {
		if got, err := Readings(path); err == nil || err.Error() != want {
			t.Errorf("%q: got %q, %v, want the error %q", path, got, err, want)
		}
	}
	for _, path := range []string{"/a\x20", "/~", "/\u00a0", "/%e0%a0%80", "/%f0%90%80%80", "/%ef%bf%bf", "/%f4%8f%bf%bf", "/.a", "/a.", "/..a/b..", "/a;../b", "/a/x;..", "/...", "/+", "/%20", "/a%20b/c", "/%E2%80%A6", "/%F0%9F%91%A9%E2%80%8D%F0%9F%9A%80", "/%C4%B0zmir", "/50%25unit", "/%C2%BD"} {
		if got, err := Readings(path); err != nil {
			t.Errorf("%q: got %q, %v", path, got, err)
		}
	}
}

func TestReadingsAreBounded(t *testing.T) {
	// each further escape of the percent sign is one more reading
	nested := func(depth int) string { return "/%" + strings.Repeat("25", depth) + "41" }
	if got, err := Readings(nested(63)); err != nil || len(got) != 64 {
		t.Errorf("got %d readings, %v", len(got), err)
	}
	if _, err := Readings(nested(64)); err == nil || err.Error() != "can be read in too many ways" {
		t.Errorf("got %v", err)
	}
}

// What shops have as codes and keys has few readings.
func TestHonestPathsHaveFewReadings(t *testing.T) {
	for _, path := range []string{
		"/v1/vouchers/a%2Fb%20c", "/v1/vouchers/%3F%23%5B%5D", "/v1/vouchers/https%3A%2F%2Fexample.com%2F1%3Fa%3Db%23c", "/v1/customers/a.b+c%40example.com",
		"/v1/vouchers/50%25;what%3F%20%C2%BD.", "/v1/customers/%E5%BC%A0%E4%BC%9F%EF%BC%9A%EF%BC%88VIP%EF%BC%89",
	} {
		got, err := Readings(path)
		if err != nil || len(got) > maxReadings/2 {
			t.Errorf("%s: %d readings, %v", path, len(got), err)
		}
	}
}

func TestPlainPaths(t *testing.T) {
	for path, plain := range map[string]bool{
		"/": true, "/v1/vouchers/SUMMER-10_x~y": true, "/v1/x/": true, "/v1/file.json": true, "/v1.2/x": true,
		"/v1/.x": false, "/v1/x.": false, "/v1/x./y": false, "/v1/x..y": false, "/v1//x": false, "/..": false, ".": false,
		"/v1/a%2Fb": false, "/v1/a;b": false, "/v1/a+b": false, "/v1/\u00e9": false, "/v1/a b": false, "/v1/a\\b": false,
	} {
		if got := isPlain(path); got != plain {
			t.Errorf("isPlain(%q) = %v, want %v", path, got, plain)
		}
		if !plain {
			continue
		}
		if all, err := readings(path); err != nil || len(all) != 1 || all[0] != path {
			t.Errorf("%q is read as %q, error %v; want it alone", path, all, err)
		}
	}
	// whatever is plain has one reading
	const chars = "aZ0-_~./"
	random := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		path := []byte("/")
		for range random.IntN(12) {
			path = append(path, chars[random.IntN(len(chars))])
		}
		if all, err := readings(string(path)); isPlain(string(path)) && (err != nil || len(all) != 1 || all[0] != string(path)) {
			t.Fatalf("%q is read as %q, error %v; want it alone", path, all, err)
		}
	}
}
