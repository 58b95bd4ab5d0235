package tokenprovider

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"text/template"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestSecretValue(t *testing.T) {
	s := NewSecret("hunter2")
	if s.Reveal() != "hunter2" || s.IsZero() {
		t.Error("a secret does not reveal its value")
	}
	if s != NewSecret("hunter"+"2") || s == NewSecret("hunter3") {
		t.Error("secrets are not equal by value")
	}
	for _, zero := range []Secret{{}, NewSecret("")} {
		if zero.Reveal() != "" || !zero.IsZero() || zero != (Secret{}) {
			t.Error("an empty secret is not the zero secret")
		}
	}
	if n := testing.AllocsPerRun(100, func() { _ = s.Reveal() }); n != 0 {
		t.Errorf("Reveal allocates %v times", n)
	}
}

func TestSecretIsNeverPrinted(t *testing.T) {
	s := NewSecret("hunter2")
	type exported struct {
		S Secret
		P *Secret
	}
	visible := map[string]any{ // where a method of Secret is called
		"value":   s,
		"pointer": &s,
		"struct":  exported{s, nil},
		"slice":   []Secret{s},
		"array":   [1]Secret{s},
		"map":     map[string]Secret{"a": s},
		"key":     map[Secret]string{s: "a"},
		"any":     []any{s},
		"token":   Token{Value: s},
		"zero":    Secret{},
	}
	hidden := map[string]any{ // where none is
		"unexported": struct{ s Secret }{s},
		"deeper":     struct{ m map[string][]Secret }{map[string][]Secret{"a": {s}}},
		"in pointer": &struct{ s *Secret }{&s},
		"embedded":   struct{ t Token }{Token{Value: s}},
	}
	shows := func(printed string) bool {
		printed = strings.ToLower(printed)
		return strings.Contains(printed, "hunter2") || strings.Contains(printed, fmt.Sprintf("%x", "hunter2")) ||
			strings.Contains(printed, "104 117 110") // the bytes in decimal
	}
	format := func(verb string, v any) string { return fmt.Sprintf(verb, v) } // not Sprintf itself: vet would complain
	for _, verb := range []string{"%s", "%v", "%+v", "%#v", "%q", "%x", "%X", "% x", "%d", "%c", "%U", "%t", "%10s", "%-3.2v", "%p", "%!"} {
		for name, v := range visible {
			printed := format(verb, v)
			if shows(printed) {
				t.Errorf("%s of %s: %s", verb, name, printed)
			}
			if name != "pointer" && verb != "%p" && verb != "%!" && !strings.Contains(printed, redacted) {
				t.Errorf("%s of %s: %s, want REDACTED in it", verb, name, printed)
			}
		}
		for name, v := range hidden {
			if printed := format(verb, v); shows(printed) {
				t.Errorf("%s of %s: %s", verb, name, printed)
			}
		}
	}

	encoder := zapcore.NewJSONEncoder(zapcore.EncoderConfig{})
	for name, v := range visible {
		encoded, err := json.Marshal(v)
		if name != "any" && err != nil {
			t.Errorf("JSON of %s: %v", name, err)
		}
		if shows(string(encoded)) || !strings.Contains(string(encoded), redacted) {
			t.Errorf("JSON of %s: %s", name, encoded)
		}
		line, err := encoder.EncodeEntry(zapcore.Entry{}, []zap.Field{zap.Any("v", v), zap.Reflect("r", v)})
		if err != nil {
			t.Errorf("zap of %s: %v", name, err)
		}
		if got := line.String(); shows(got) || strings.Count(got, redacted) < 2 {
			t.Errorf("zap of %s: %s", name, got)
		}
	}
	for name, v := range hidden {
		line, err := encoder.EncodeEntry(zapcore.Entry{}, []zap.Field{zap.Any("v", v)})
		if err != nil || shows(line.String()) {
			t.Errorf("zap of %s: %s, %v", name, line, err)
		}
	}

	var b strings.Builder
	slog.New(slog.NewTextHandler(&b, nil)).Info("m", "text", s, "in", exported{s, &s})
	slog.New(slog.NewJSONHandler(&b, nil)).Info("m", "json", s, "in", exported{s, &s})
	if err := template.Must(template.New("").Parse("{{.}} {{print .}} {{js .}}")).Execute(&b, s); err != nil {
		t.Error(err)
	}
	encoded, err := xml.Marshal(exported{s, &s})
	if err != nil {
		t.Error(err)
	}
	b.Write(encoded)
	text, err := s.MarshalText()
	if err != nil {
		t.Error(err)
	}
	b.WriteString(string(text) + s.String() + s.GoString())
	if got := b.String(); shows(got) || strings.Count(got, redacted) < 10 {
		t.Errorf("got %s", got)
	}
}
