package tokenstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

const key = tokensPrefix + "/" + identity

func mustSeal(t testing.TB, token tokensource.SharedToken, secrets ...string) []byte {
	t.Helper()
	value, err := seal(key, secret(secrets...), token)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func TestSealedTokenIsReadAgain(t *testing.T) {
	now := time.Now()
	for name, token := range map[string]tokensource.SharedToken{
		"all": {Revoked: true, Token: tokenprovider.Token{
			Value: tokenprovider.NewSecret("a-token"), Issued: now.Add(-time.Minute), Expires: now.Add(time.Hour),
			ExpiryAssumed: true, Scopes: []string{"read", "write"},
		}},
		"as asked for": issued("a-token", now),
		"no scopes":    {Token: tokenprovider.Token{Value: tokenprovider.NewSecret("t"), Issued: now, Expires: now.Add(1), Scopes: []string{}}},
	} {
		t.Run(name, func(t *testing.T) {
			value := mustSeal(t, token, "a secret")
			for _, plain := range []string{token.Value.Reveal(), "a secret", "read"} {
				if bytes.Contains(value, []byte(plain)) && len(plain) > 1 {
					t.Errorf("%q can be read in %s", plain, value)
				}
			}
			got, err := open(key, secret("a secret"), value, now)
			if err != nil {
				t.Fatal(err)
			}
			if got.Value.Reveal() != token.Value.Reveal() || got.Revoked != token.Revoked || got.ExpiryAssumed != token.ExpiryAssumed ||
				!reflect.DeepEqual(got.Scopes, token.Scopes) || !got.Issued.Equal(token.Issued) || !got.Expires.Equal(token.Expires) {
				t.Errorf("got %+v, want %+v", got, token)
			}
		})
	}
}

func TestEntryThatCannotBeUsed(t *testing.T) {
	now := time.Now()
	whole := mustSeal(t, issued("a-token", now), "a secret")
	change := func(change func(e map[string]any)) []byte {
		var e map[string]any
		if err := json.Unmarshal(whole, &e); err != nil {
			t.Fatal(err)
		}
		change(e)
		changed, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		return changed
	}
	flip := func(field string) func(map[string]any) {
		return func(e map[string]any) {
			b := []byte(e[field].(string))
			if at := len(b) / 2; b[at] == 'A' {
				b[at] = 'B'
			} else {
				b[at] = 'A'
			}
			e[field] = string(b)
		}
	}
	elsewhere := tokensPrefix + "/" + strings.Repeat("f", 64)
	tests := map[string]struct {
		value   []byte
		key     string
		secrets []string
		want    error
	}{
		"another secret":          {value: whole, secrets: []string{"another"}, want: errSealed},
		"one secret more":         {value: whole, secrets: []string{"a secret", "b"}, want: errSealed},
		"no secret":               {value: whole, secrets: []string{""}, want: errNoSecret},
		"a header alone":          {value: whole, secrets: []string{"", "acme"}, want: errNoSecret},
		"of another credential":   {value: whole, key: elsewhere, want: errSealed},
		"sealed part changed":     {value: change(flip("sealed")), want: errSealed},
		"nonce changed":           {value: change(flip("nonce")), want: errSealed},
		"longer life":             {value: change(func(e map[string]any) { e["expires"] = "2099-01-01T00:00:00Z" }), want: errSealed},
		"without a nonce":         {value: change(func(e map[string]any) { delete(e, "nonce") }), want: errDamaged},
		"without the sealed part": {value: change(func(e map[string]any) { delete(e, "sealed") }), want: errSealed},
		"truncated":               {value: whole[:len(whole)/2], want: errDamaged},
		"empty":                   {value: nil, want: errDamaged},
		"huge":                    {value: append(bytes.Clone(whole), make([]byte, maxEntry)...), want: errDamaged},
		"something else":          {value: []byte(`{"cert":"x"}`), want: errDamaged},
		"later format":            {value: change(func(e map[string]any) { e["format"] = 2 }), want: errNewer},
		"later, quite different":  {value: []byte(`{"format":2,"expires":17,"sealed":{"by":"x"}}`), want: errNewer},
		"of a format before":      {value: change(func(e map[string]any) { e["format"] = 0 }), want: errDamaged},
		"a clock ahead":           {value: mustSeal(t, issued("a-token", now.Add(5*time.Minute)), "a secret"), want: errClock},
		"expired when issued":     {value: mustSeal(t, tokensource.SharedToken{Token: tokenprovider.Token{Value: tokenprovider.NewSecret("x"), Issued: now, Expires: now}}, "a secret"), want: errDamaged},
		"without a token":         {value: mustSeal(t, issued("", now), "a secret"), want: errDamaged},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			at, secrets := test.key, test.secrets
			if at == "" {
				at = key
			}
			if secrets == nil {
				secrets = []string{"a secret"}
			}
			if got, err := open(at, secret(secrets...), test.value, now); !errors.Is(err, test.want) {
				t.Errorf("got %v, %v; want %v", got, err, test.want)
			}
		})
	}
}

// A token never lives longer by our clock than its lifetime from now on.
func TestTimesOfAnotherClock(t *testing.T) {
	now := time.Now()
	for ahead, want := range map[time.Duration]time.Duration{
		-5 * time.Minute: 55 * time.Minute, // shorter: a clock that is behind
		0:                time.Hour,
		4 * time.Second:  time.Hour, // not longer
	} {
		got, err := open(key, secret("a secret"), mustSeal(t, issued("a-token", now.Add(ahead)), "a secret"), now)
		if err != nil {
			t.Fatal(err)
		}
		if left := tokensource.Until(got.Expires, now); left != want {
			t.Errorf("clock ahead by %v: lives for %v, want %v", ahead, left, want)
		}
		if got.Issued.After(now) || got.Expires.Sub(got.Issued) != time.Hour {
			t.Errorf("clock ahead by %v: from %v to %v", ahead, got.Issued, got.Expires)
		}
	}
}

func TestEachEntryIsSealedAnew(t *testing.T) {
	token := issued("a-token", time.Now())
	if bytes.Equal(mustSeal(t, token, "a secret"), mustSeal(t, token, "a secret")) {
		t.Error("the same entry twice: its nonce is not random")
	}
}

func FuzzOpen(f *testing.F) {
	now := time.Now()
	whole := mustSeal(f, issued("a-token", now), "a secret")
	f.Add(whole)
	f.Add(whole[:40])
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"expires":"2026-01-01T00:00:00Z","nonce":"","sealed":""}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		got, err := open(key, secret("a secret"), value, now)
		if (got == nil) != (err != nil) {
			t.Fatalf("got %v, %v", got, err)
		}
		if got != nil && got.Value.Reveal() != "a-token" {
			t.Fatalf("a token that was never sealed: %s", value)
		}
	})
}
