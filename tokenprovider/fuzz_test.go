package tokenprovider

import (
	"crypto/elliptic"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

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

// Whatever is in the file of a key: no panic, and an error that quotes none of it.
func FuzzParseSigningKey(f *testing.F) {
	for _, key := range []string{
		pkcs8(f, edKey()), pkcs8(f, rsaKey()), pkcs1(f, rsaKey()), sec1(f, ecKey(f, elliptic.P256())), sec1(f, ecKey(f, elliptic.P224())),
		asJWK(f, jose.JSONWebKey{Key: edKey(), KeyID: "k", Algorithm: "EdDSA"}), asJWK(f, jose.JSONWebKey{Key: rsaKey()}),
		`{"kty":"EC","crv":"P-256","d":"AA","x":"AA","y":"AA"}`, `{"keys":[]}`, "-----BEGIN PRIVATE KEY-----\n", "",
	} {
		f.Add(key, "")
		f.Add(key[:len(key)/2], "PS256")
	}
	const marker = "s3cret-of-the-file-that-no-message-has"
	f.Fuzz(func(t *testing.T, text, algorithm string) {
		for _, text := range []string{text, strings.ReplaceAll(text, `"`, `"`+marker), strings.ReplaceAll(text, "-----\n", "-----\n"+marker+"\n")} {
			key, err := ParseSigningKey(NewSecret(text))
			if (key == nil) == (err == nil) {
				t.Fatalf("got %v and %v", key, err)
			}
			if err != nil {
				if strings.Contains(err.Error(), marker) {
					t.Errorf("quotes the file: %v", err)
				}
				continue
			}
			assertion, err := key.Sign(Assertion{ClientID: "gateway", Audience: "a", Algorithm: algorithm})
			if err == nil {
				err = CheckAssertion(assertion)
			}
			if err != nil && algorithm == "" && !strings.Contains(err.Error(), "cannot sign") {
				t.Errorf("an assertion that is not one: %v", err)
			}
		}
	})
}

// Whatever is in the file of an assertion: no panic, and nothing of it in errors.
func FuzzCheckAssertion(f *testing.F) {
	for _, claims := range []string{`{"exp":1,"nbf":2,"iat":3}`, `{"exp":1e400}`, `{"exp":"1"}`, `{"exp":-1}`, `{}`, `[]`, `{"exp":253402300800}`} {
		f.Add(jwt(claims))
	}
	f.Add("..")
	f.Add("a.b")
	const marker = "s3cret"
	f.Fuzz(func(t *testing.T, assertion string) {
		for _, assertion := range []string{assertion, strings.ReplaceAll(assertion, ".", "."+marker)} {
			times, err := parseAssertion(assertion)
			if err != nil && strings.Contains(err.Error(), marker) {
				t.Errorf("quotes the assertion: %v", err)
			}
			r := &response{request: Request{Form: url.Values{}}, status: 401, header: http.Header{}, body: []byte(`{"error":"invalid_client"}`)}
			ClientAssertion(&r.request, "gateway", NewSecret(assertion))
			r.sent = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
			r.received = r.sent
			e := parseFailure(r)
			if times.expires.IsZero() && strings.Contains(e.Reason, "expired") || strings.Contains(e.Error()+e.Advice(), marker) {
				t.Errorf("%v: %s", e, e.Advice())
			}
		}
	})
}
