package tokenprovider

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider/internal/wiretest"
)

func FuzzParseToken(f *testing.F) {
	for _, file := range []string{"testdata/understory-token-endpoint.json", "testdata/voucherify-oauth.json"} {
		vectors := wiretest.Vectors(f, file)
		for _, name := range slices.Sorted(maps.Keys(vectors)) {
			v := vectors[name]
			f.Add(v.Body(), v.Response.Status, "", "", "")
		}
	}
	for _, body := range []string{
		`{"access_token":"tok-1","token_type":"Bearer","expires_in":"3600.0","scope":"a b"}`,
		`{"access_token":"tok-1","expires_in":1e-300,"expires_at":946688400}`,
		`{"access_token":"tok\u0000","expires_in":1e400}`,
		`{"access_token":null,"error":"slow_down"}`,
		"\xef\xbb\xbf{}",
		"<html>",
	} {
		f.Add(body, 200, "7", "946684811", "13")
		f.Add(body, 503, "Sat, 01 Jan 2000 00:00:09 GMT", "", "")
	}
	sent := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	// no error code is as long, or has a digit
	const marker = "s3cret-of-the-body-that-no-error-code-is-as-long-as"

	f.Fuzz(func(t *testing.T, body string, status int, retryAfter, rateLimitRetry, rateLimitReset string) {
		header := http.Header{"Retry-After": {retryAfter}, "X-Rate-Limit-Retry": {rateLimitRetry}, "X-Ratelimit-Reset": {rateLimitReset}}
		// the body as it is, and with the marker in every string of it
		for _, body := range []string{body, strings.ReplaceAll(body, `"`, marker+`"`), strings.ReplaceAll(body, `:"`, `:"`+marker)} {
			token, err := parseToken(&response{request: Request{Errors: withKey, RetryHeaders: []string{"X-Rate-Limit-Retry"}}, sent: sent, status: status, header: header, body: []byte(body)})
			if (token == nil) == (err == nil) {
				t.Fatalf("got %v and %v", token, err)
			}
			if token != nil {
				checkToken(t, token, status, sent)
				continue
			}
			var e *Error
			if !errors.As(err, &e) || e.Status != status || e.Class != Transient && e.Class != Refused && e.Class != Malformed {
				t.Fatalf("got %#v", err)
			}
			if e.RetryAfter < 0 || e.RetryAfter > 5*time.Minute {
				t.Errorf("retry after %v", e.RetryAfter)
			}
			if told := fmt.Sprintf("%v %+v %#v %s", e, e, e, e.Advice()); strings.Contains(told, marker) {
				t.Errorf("quotes the body: %s", told)
			}
		}
	})
}

func checkToken(t *testing.T, token *Token, status int, sent time.Time) {
	t.Helper()
	if status/100 != 2 {
		t.Errorf("a token of status %d", status)
	}
	value := token.Value.Reveal()
	if value == "" || strings.ContainsFunc(value, func(c rune) bool { return c <= ' ' || c > '~' }) {
		t.Errorf("token %q", value)
	}
	if lifetime := token.Expires.Sub(token.Issued); lifetime <= 0 || lifetime > 24*time.Hour || !token.Issued.Equal(sent) {
		t.Errorf("lifetime %v from %v on", lifetime, token.Issued)
	}
	for _, scope := range token.Scopes {
		if scope == "" {
			t.Errorf("scopes %q", token.Scopes)
		}
	}
}

func FuzzParseRetryAfter(f *testing.F) {
	for _, v := range []string{"", "7", "-7", "0.5", "1e400", "nan", "-Inf", "0x1p9", "Sat, 01 Jan 2000 00:00:09 GMT", "946684811", "Sun, 01 Jan 0000 00:00:00 GMT"} {
		f.Add(v, "", "", int64(946684800))
		f.Add("", v, "", int64(946684800))
		f.Add("", "", v, int64(-1))
	}
	f.Fuzz(func(t *testing.T, retryAfter, rateLimitRetry, rateLimitReset string, now int64) {
		header := http.Header{"Retry-After": {retryAfter}, "X-Rate-Limit-Retry": {rateLimitRetry}, "X-Ratelimit-Reset": {rateLimitReset}}
		if wait := ParseRetryAfter(header, time.Unix(now, 0), "X-Rate-Limit-Retry"); wait < 0 || wait > 5*time.Minute {
			t.Errorf("%q at %d: wait %v", header, now, wait)
		}
	})
}

func FuzzCheckScopes(f *testing.F) {
	for _, scopes := range []string{"", "a", "a,b", "a,a", "a b", `"`, `\`, "ä", "a\x00", ",", "openid,marketing.read"} {
		f.Add(scopes)
	}
	f.Fuzz(func(t *testing.T, list string) {
		scopes := strings.Split(list, ",")
		err := CheckScopes(scopes)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "scopes: ") {
				t.Errorf("%q: %v", scopes, err)
			}
			return
		}
		// what is sent is what the server reads: as many scopes, none with a
		// character outside of RFC 6749 §3.3
		sent := strings.Join(scopes, " ")
		if got := strings.Fields(sent); len(got) != len(scopes) {
			t.Errorf("%q is read as %q", scopes, got)
		}
		if strings.ContainsFunc(sent, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }) {
			t.Errorf("%q passes", scopes)
		}
	})
}
