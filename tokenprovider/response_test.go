package tokenprovider

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider/internal/wiretest"
)

// roundTrip is a RoundTripper that is a function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answering returns a client that gets this answer to everything, after a while.
func answering(status int, header http.Header, body string, after time.Duration) *http.Client {
	client := NewClient(nil)
	client.Transport = roundTrip(func(*http.Request) (*http.Response, error) {
		time.Sleep(after)
		return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(body))}, nil
	})
	return client
}

func request(url string) Request {
	return Request{URL: url, Form: map[string][]string{"secret": {"s3cret"}}}
}

// ownErrors are two formats of errors that are not RFC 6749's.
var (
	withKey  = ErrorFormat{Fields: []string{"code", "message"}, Code: "key", Final: map[string]string{"invalid_grant_type": "", "blocked": "unblock it"}}
	withCode = ErrorFormat{Fields: []string{"code", "message"}, Code: "code"}
)

// ask makes a token request that gets this answer.
func ask(t *testing.T, status int, body string, header ...string) (*Token, error) {
	t.Helper()
	return askWith(t, ErrorFormat{}, status, body, header...)
}

// askWith is ask at a server with errors of its own.
func askWith(t *testing.T, errors ErrorFormat, status int, body string, header ...string) (*Token, error) {
	t.Helper()
	h := http.Header{}
	for i := 0; i < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	r := request("http://auth.example")
	r.Errors, r.RetryHeaders = errors, []string{"X-Rate-Limit-Retry"}
	return RequestToken(t.Context(), answering(status, h, body, 0), r)
}

// failure makes a token request that has to fail, and shows nothing it must not.
func failure(t *testing.T, status int, body string, header ...string) *Error {
	t.Helper()
	return failureWith(t, ErrorFormat{}, status, body, header...)
}

// failureWith is failure at a server with errors of its own.
func failureWith(t *testing.T, own ErrorFormat, status int, body string, header ...string) *Error {
	t.Helper()
	token, err := askWith(t, own, status, body, header...)
	var e *Error
	if token != nil || !errors.As(err, &e) {
		t.Fatalf("%d %.80s: got %v, %v, want an *Error", status, body, token, err)
	}
	if e.Status != status {
		t.Errorf("status: got %d, want %d", e.Status, status)
	}
	noLeak(t, e)
	return e
}

// noLeak fails the test if any text of e shows one of the markers.
func noLeak(t *testing.T, e *Error) {
	t.Helper()
	markers := []string{"MARKER", "s3cret", "userinf0"}
	wiretest.NoLeak(t, e, markers...)
	wiretest.NoLeak(t, e.Error(), markers...)
	wiretest.NoLeak(t, e.Advice(), markers...)
	wiretest.NoLeak(t, fmt.Errorf("wrapped: %w", e), markers...)
	if e.Error() == "" || e.Advice() == "" {
		t.Errorf("%#v says nothing", e)
	}
}

func TestLifetime(t *testing.T) {
	for fields, want := range map[string]struct {
		lifetime time.Duration
		assumed  bool
	}{
		`"expires_in":3600`:                         {time.Hour, false},
		`"expires_in" : 3600 `:                      {time.Hour, false},
		`"expires_in":3600.0`:                       {time.Hour, false},
		`"expires_in":3.6e3`:                        {time.Hour, false},
		`"expires_in":0.5`:                          {500 * time.Millisecond, false},
		`"expires_in":1e-300`:                       {1, false},
		`"expires_in":"3600"`:                       {time.Hour, false},
		`"expires_in":" 3600.0 "`:                   {time.Hour, false},
		`"expires_in":86401`:                        {24 * time.Hour, false},
		`"expires_in":1e300`:                        {24 * time.Hour, false},
		`"expires_in":1e400`:                        {24 * time.Hour, false},
		`"expires_in":99999999999999999999`:         {24 * time.Hour, false},
		`"x":1`:                                     {300 * time.Second, true},
		`"expires_in":0`:                            {300 * time.Second, true},
		`"expires_in":0.0`:                          {300 * time.Second, true},
		`"expires_in":-0`:                           {300 * time.Second, true},
		`"expires_in":"0"`:                          {300 * time.Second, true},
		`"expires_in":"-3600"`:                      {300 * time.Second, true},
		`"expires_in":-0.5`:                         {300 * time.Second, true},
		`"expires_in":-1`:                           {300 * time.Second, true},
		`"expires_in":-1e400`:                       {300 * time.Second, true},
		`"expires_in":null`:                         {300 * time.Second, true},
		`"expires_in":""`:                           {300 * time.Second, true},
		`"expires_in":"abc"`:                        {300 * time.Second, true},
		`"expires_in":"Infinity"`:                   {300 * time.Second, true},
		`"expires_in":"NaN"`:                        {300 * time.Second, true},
		`"expires_in":"0x10"`:                       {300 * time.Second, true},
		`"expires_in":true`:                         {300 * time.Second, true},
		`"expires_in":[3600]`:                       {300 * time.Second, true},
		`"EXPIRES_IN":3600`:                         {300 * time.Second, true},
		`"expires_in":60,"expires_at":946688400`:    {time.Minute, false},
		`"expires_at":946688400`:                    {time.Hour, false}, // 2000-01-01 01:00
		`"expires_at":"946688400"`:                  {time.Hour, false},
		`"expires_in":0,"expires_at":946688400`:     {time.Hour, false},
		`"expires_in":"abc","expires_at":946688400`: {time.Hour, false},
		`"expires_in":-1,"expires_at":946688400`:    {time.Hour, false},
		`"expires_in":null,"expires_at":946688400`:  {time.Hour, false},
		`"expires_in":0,"expires_at":0`:             {300 * time.Second, true},
		`"expires_at":946684800`:                    {300 * time.Second, true}, // now
		`"expires_at":946684799`:                    {300 * time.Second, true},
		`"expires_at":946688400000`:                 {24 * time.Hour, false},
		`"expires_at":"2000-01-01T01:00:00Z"`:       {300 * time.Second, true},
	} {
		synctest.Test(t, func(t *testing.T) { // its clock starts at 2000-01-01 00:00 UTC
			token, err := ask(t, 200, `{"access_token":"tok-1",`+fields+`}`)
			if err != nil {
				t.Fatalf("%s: %v", fields, err)
			}
			if got := token.Expires.Sub(token.Issued); got != want.lifetime || token.ExpiryAssumed != want.assumed {
				t.Errorf("%s: got %v, assumed: %t, want %+v", fields, got, token.ExpiryAssumed, want)
			}
		})
	}
}

func TestLifetimeStartsWhenTheRequestIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		client := answering(200, nil, `{"access_token":"tok-1","expires_in":60}`, 7*time.Second)
		token, err := RequestToken(t.Context(), client, request("http://auth.example"))
		if err != nil {
			t.Fatal(err)
		}
		if time.Since(start) != 7*time.Second {
			t.Fatalf("the answer took %v", time.Since(start))
		}
		if !token.Issued.Equal(start) || !token.Expires.Equal(start.Add(time.Minute)) {
			t.Errorf("issued %v after the request, expires %v after it", token.Issued.Sub(start), token.Expires.Sub(start))
		}
	})
}

func TestGranted(t *testing.T) {
	for body, want := range map[string]string{
		`{"access_token":"tok-1"}`:                                      "tok-1",
		`{"access_token":"!#$%&'()*+,-./:;<=>?@[\\]^_{|}~"}`:            `!#$%&'()*+,-./:;<=>?@[\]^_{|}~`,
		`{"access_token":"a\u002fb"}`:                                   "a/b",
		"\xef\xbb\xbf" + `{"access_token":"tok-1"}`:                     "tok-1",
		" \r\n\t" + `{"access_token":"tok-1"}` + "\n":                   "tok-1",
		`{"access_token":"tok-1","token_type":"Bearer"}`:                "tok-1",
		`{"access_token":"tok-1","token_type":"bearer"}`:                "tok-1",
		`{"access_token":"tok-1","token_type":"BEARER"}`:                "tok-1",
		`{"access_token":"tok-1","token_type":null}`:                    "tok-1",
		`{"access_token":"tok-1","refresh_token":"x","new":{"a":[1]}}`:  "tok-1",
		`{"access_token":"tok-1"}` + strings.Repeat(" ", 1<<20-24):      "tok-1", // 1 MiB, no more
		`{"access_token":"` + strings.Repeat("x", 64<<10) + `"}`:        strings.Repeat("x", 64<<10),
		`{"access_token":"tok-1","error":"","error_description":"n/a"}`: "tok-1",
	} {
		for _, status := range []int{200, 201} {
			token, err := ask(t, status, body)
			if err != nil {
				t.Errorf("%.80s: %v", body, err)
			} else if token.Value.Reveal() != want {
				t.Errorf("%.80s: got %q", body, token.Value.Reveal())
			}
		}
	}
}

func TestGrantedScopes(t *testing.T) {
	for scope, want := range map[string][]string{
		`"scope":"a"`:         {"a"},
		`"scope":"b a"`:       {"b", "a"},
		`"scope":"  a   b  "`: {"a", "b"},
		`"scope":""`:          {}, // granted none, which is not the same as not said
		`"scope":null`:        nil,
		`"scope":["a","b"]`:   nil,
		`"scope":1`:           nil,
		`"x":1`:               nil,

		// what is not a scope by RFC 6749 §3.3, or is longer than any
		`"scope":"a b\u001b[2J c\"d e\\f \u00e4 g"`:      {"a", "g"},
		`"scope":"a ` + strings.Repeat("x", 257) + `"`:   {"a"},
		`"scope":"` + strings.Repeat("a b ", 1000) + `"`: {"a", "b"},
	} {
		token, err := ask(t, 200, `{"access_token":"tok-1",`+scope+`}`)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(token.Scopes, want) || (token.Scopes == nil) != (want == nil) {
			t.Errorf("%s: got %#v, want %#v", scope, token.Scopes, want)
		}
	}
}

// A token has a bounded number of scopes, so that they fit into a storage of tokens.
func TestTooManyScopesGranted(t *testing.T) {
	var all []string
	for n := range 2000 {
		all = append(all, fmt.Sprint("s", n))
	}
	token, err := ask(t, 200, `{"access_token":"tok-1","scope":"`+strings.Join(all, " ")+`"}`)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(token.Scopes, all[:256]) {
		t.Errorf("got %d scopes", len(token.Scopes))
	}
}

func TestMalformed(t *testing.T) {
	const noObject, noToken, emptyToken, badToken, badType = "not a JSON object", "no access_token", "empty or no string", "cannot carry", "token_type"
	for body, reason := range map[string]string{
		"":                                 noObject,
		"<html><body>MARKER</body></html>": noObject,
		`{"access_token":"MARKER-tok`:      noObject,
		`{"access_token":"MARKER-tok"} {}`: noObject,
		`[{"access_token":"MARKER-tok"}]`:  noObject,
		`"MARKER"`:                         noObject,
		`null`:                             noObject,
		`access_token=MARKER-tok&token_type=bearer`: noObject,
		`{}`:                                                          noToken,
		`{"ACCESS_TOKEN":"MARKER-tok"}`:                               noToken,
		`{"access_token":null}`:                                       noToken,
		`{"error":"MARKER 1"}`:                                        noToken,
		`{"access_token":""}`:                                         emptyToken,
		`{"access_token":12345}`:                                      emptyToken,
		`{"access_token":{"MARKER":1}}`:                               emptyToken,
		`{"access_token":"MARKER tok"}`:                               badToken,
		`{"access_token":"MARKER\r\nX-Evil: 1"}`:                      badToken,
		`{"access_token":"MARKER\u0000"}`:                             badToken,
		`{"access_token":"MARKER\u007f"}`:                             badToken,
		`{"access_token":"MARKER-ä"}`:                                 badToken,
		"{\"access_token\":\"MARKER\xff\"}":                           badToken,
		`{"access_token":"MARKER-tok","token_type":"MAC-MARKER"}`:     badType,
		`{"access_token":"MARKER-tok","token_type":""}`:               badType,
		`{"access_token":"MARKER-tok","token_type":1}`:                badType,
		`{"access_token":"MARKER-tok","token_type":"Bearer "}`:        badType,
		`{"access_token":"` + strings.Repeat("MARKER", 10<<20/6):      "larger than 1 MiB",
		`{"access_token":"tok-1"}` + strings.Repeat(" ", 1<<20-23):    "larger than 1 MiB",
		`{"active":false}`:                                            noToken,
		`{"access_token":"MARKER-tok","access_token":""}`:             emptyToken,
		"\xef\xbb\xbf\xef\xbb\xbf" + `{"access_token":"MARKER-tok"}`:  noObject,
		`{"message":"MARKER","code":{"MARKER":1}}`:                    noToken,
		`{"access_token":null,"error":null,"message":"MARKER tok-1"}`: noToken,
	} {
		e := failure(t, 200, body)
		if e.Class != Malformed || !strings.Contains(e.Reason, reason) || e.Code != "" {
			t.Errorf("%.80s: got %+v, want malformed: %s", body, *e, reason)
		}
	}
	if e := failure(t, 204, ""); e.Class != Malformed {
		t.Errorf("204: got %s", e.Class)
	}
}

func TestFailureClasses(t *testing.T) {
	const (
		oauth = `{"error":"invalid_client","error_description":"MARKER"}`
		key   = `{"code":403,"key":"forbidden","message":"MARKER","details":"MARKER"}`
		code  = `{"code":"UNAUTHORIZED","message":"MARKER"}`
		html  = "<html>MARKER</html>"
	)
	for _, status := range []int{400, 401, 403, 404, 405, 422} {
		for _, test := range []struct {
			own  ErrorFormat
			body string
			want Error
		}{
			{ErrorFormat{}, oauth, Error{Class: Refused, Code: "invalid_client"}},
			{withKey, oauth, Error{Class: Refused, Code: "invalid_client"}},
			{withKey, key, Error{Class: Refused, Code: "forbidden"}},
			{withKey, code, Error{Class: Refused}},
			{withCode, code, Error{Class: Refused, Code: "UNAUTHORIZED"}},
			{withCode, key, Error{Class: Refused}},
			{ErrorFormat{}, key, Error{Class: Transient}},
			{ErrorFormat{}, code, Error{Class: Transient}},
			{withKey, `{"code":null,"key":"blocked","message":"MARKER"}`, Error{Class: Transient, Code: "blocked"}},
			{withCode, `{"code":400,"message":"MARKER"}`, Error{Class: Refused}},
			{withCode, `{"message":"MARKER"}`, Error{Class: Transient}},
			{withCode, `{"code":"UNAUTHORIZED"}`, Error{Class: Transient, Code: "UNAUTHORIZED"}},
			{ErrorFormat{}, `{"error":"MARKER is no code"}`, Error{Class: Refused}},
			{withCode, html, Error{Class: Transient}},
			{withCode, "", Error{Class: Transient}},
			{withCode, `{"error":{"code":401,"x":"MARKER"}}`, Error{Class: Transient}},
			{withCode, `[` + oauth + `]`, Error{Class: Transient}},
			{withCode, `{"error":"invalid_client","MARKER`, Error{Class: Transient}},
			{withCode, `{"statusCode":413,"error":"Request MARKER","message":"MARKER"}`, Error{Class: Refused}},
		} {
			e := failureWith(t, test.own, status, test.body)
			if e.Class != test.want.Class || e.Code != test.want.Code {
				t.Errorf("%d %s: got %s %q, want %s %q", status, test.body, e.Class, e.Code, test.want.Class, test.want.Code)
			}
			if (e.Reason == "") != (e.Class == Refused) {
				t.Errorf("%d %s: got reason %q", status, test.body, e.Reason)
			}
		}
	}
	for _, status := range []int{408, 409, 425, 429, 500, 502, 503, 504, 599} {
		for _, body := range []string{oauth, key, code, html, ""} {
			if e := failureWith(t, withKey, status, body); e.Class != Transient {
				t.Errorf("%d %s: got %s", status, body, e.Class)
			}
		}
	}
	for _, status := range []int{300, 301, 302, 303, 304, 307, 308} {
		e := failure(t, status, html, "Location", "https://MARKER.example")
		if e.Class != Refused || !strings.Contains(e.Reason, "token_url") || !strings.Contains(e.Advice(), "token_url") {
			t.Errorf("%d: got %s, reason %s, advice %s", status, e.Class, e.Reason, e.Advice())
		}
	}
}

// An error code of the server's own has advice of its own.
func TestHint(t *testing.T) {
	for _, status := range []int{200, 400, 401} {
		for code, want := range map[string]string{"blocked": "unblock it", "invalid_grant_type": "", "new_one": ""} {
			e := failureWith(t, withKey, status, `{"code":1,"key":"`+code+`","message":"MARKER"}`)
			if e.Hint != want || want != "" && e.Advice() != want {
				t.Errorf("%d %s: got hint %q, advice %q", status, code, e.Hint, e.Advice())
			}
			if final := e.Class == Refused; status == 200 && final != (code != "new_one") {
				t.Errorf("%d %s: got %s", status, code, e.Class)
			}
		}
	}
}

func TestErrorsWithStatus200(t *testing.T) {
	for code, want := range map[string]Class{
		"invalid_request": Refused, "invalid_client": Refused, "invalid_grant": Refused, "invalid_scope": Refused,
		"invalid_target": Refused, "unauthorized_client": Refused, "unsupported_grant_type": Refused, "access_denied": Refused,
		"temporarily_unavailable": Transient, "server_error": Transient, "slow_down": Transient, "something_new": Transient,
	} {
		for _, body := range []string{
			`{"error":"` + code + `","error_description":"MARKER"}`,
			`{"access_token":null,"error":"` + code + `"}`,
		} {
			if e := failure(t, 200, body); e.Class != want || e.Code != code {
				t.Errorf("%s: got %s %q, want %s", body, e.Class, e.Code, want)
			}
		}
	}
}

func TestErrorCode(t *testing.T) {
	for code, want := range map[string]string{
		"invalid_client":            "invalid_client",
		"UNAUTHORIZED":              "UNAUTHORIZED",
		"a.b-c_d":                   "a.b-c_d",
		strings.Repeat("x", 40):     strings.Repeat("x", 40),
		strings.Repeat("x", 41):     "",
		"tok1":                      "", // may be a secret
		"a b":                       "",
		`a\"b`:                      "",
		`a\nb`:                      "",
		"ä":                         "",
		"https://x":                 "",
		`<script>alert()<\/script>`: "",
	} {
		for name, own := range map[string]ErrorFormat{"error": {}, "key": withKey, "code": withCode} {
			if e := failureWith(t, own, 400, `{"`+name+`":"`+code+`","message":"m"}`); e.Code != want {
				t.Errorf("%s %s: got %q", name, code, e.Code)
			}
		}
	}
}

func TestAdvice(t *testing.T) {
	for _, test := range []struct {
		e    Error
		want string
	}{
		{Error{Class: Refused, Status: 401, Code: "invalid_client"}, "secret"},
		{Error{Class: Refused, Status: 401, Code: "unauthorized"}, "secret"},
		{Error{Class: Refused, Status: 401, Code: "unauthorized", Hint: "call them"}, "call them"},
		{Error{Class: Transient, Status: 429, Code: "invalid_client", Hint: "call them"}, "what else asks"},
		{Error{Class: Transient, Status: 503, Code: "invalid_client", Hint: "call them"}, "in trouble"},
		{Error{Class: Transient, Status: 401}, "on the way"},
		{Error{Class: Refused, Status: 400, Code: "invalid_scope"}, "scopes"},
		{Error{Class: Refused, Status: 400, Code: "unauthorized_client"}, "client credentials grant"},
		{Error{Class: Refused, Status: 400, Code: "invalid_request"}, "audience"},
		{Error{Class: Refused, Status: 302}, "token_url"},
		{Error{Class: Refused, Status: 403}, "rights"},
		{Error{Class: Transient, Status: 429}, "what else asks"},
		{Error{Class: Transient, Err: io.EOF}, "DNS"},
		{Error{Class: Transient, Reason: "none was sent"}, "logged before"},
		{Error{Class: Malformed, Status: 200}, "token_url"},
		{Error{Class: Transient, Status: 403}, "on the way"},
		{Error{Class: Transient, Status: 502}, "wait"},
	} {
		if got := test.e.Advice(); !strings.Contains(got, test.want) {
			t.Errorf("%v: advice %q, want one about %s", &test.e, got, test.want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	const limit = 5 * time.Minute
	for _, test := range []struct {
		header []string
		want   time.Duration
	}{
		{nil, 0},
		{[]string{"Retry-After", "7"}, 7 * time.Second},
		{[]string{"Retry-After", " 7 "}, 7 * time.Second},
		{[]string{"Retry-After", "0"}, 0},
		{[]string{"Retry-After", "0.5"}, 500 * time.Millisecond},
		{[]string{"Retry-After", "1"}, time.Second},
		{[]string{"Retry-After", "-7"}, 0},
		{[]string{"Retry-After", "300"}, limit},
		{[]string{"Retry-After", "301"}, limit},
		{[]string{"Retry-After", strings.Repeat("9", 400)}, limit},
		{[]string{"Retry-After", "soon"}, 0},
		{[]string{"Retry-After", "Inf"}, 0},
		{[]string{"Retry-After", "nan"}, 0},
		{[]string{"Retry-After", "Sat, 01 Jan 2000 00:00:09 GMT"}, 9 * time.Second},
		{[]string{"Retry-After", "Saturday, 01-Jan-00 00:00:09 GMT"}, 9 * time.Second},
		{[]string{"Retry-After", "Fri, 31 Dec 1999 23:59:59 GMT"}, 0},
		{[]string{"Retry-After", "Sun, 01 Jan 2090 00:00:00 GMT"}, limit},
		{[]string{"X-Rate-Limit-Retry", "946684811"}, 11 * time.Second},
		{[]string{"X-Rate-Limit-Retry", "946684799"}, 0},
		{[]string{"X-Rate-Limit-Retry", "9999999999"}, limit},
		{[]string{"X-Rate-Limit-Retry", "soon"}, 0},
		{[]string{"X-RateLimit-Reset", "13"}, 13 * time.Second},
		{[]string{"X-RateLimit-Reset", "946684811"}, limit},
		{[]string{"Retry-After", "7", "X-Rate-Limit-Retry", "946684811", "X-RateLimit-Reset", "13"}, 7 * time.Second},
		{[]string{"Retry-After", "soon", "X-Rate-Limit-Retry", "946684811", "X-RateLimit-Reset", "13"}, 11 * time.Second},
		{[]string{"X-Rate-Limit-Retry", "soon", "X-RateLimit-Reset", "13"}, 13 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			for _, status := range []int{429, 503} {
				if e := failure(t, status, "", test.header...); e.RetryAfter != test.want {
					t.Errorf("%d %v: got %v, want %v", status, test.header, e.RetryAfter, test.want)
				}
			}
			for _, status := range []int{200, 401, 500} {
				if e := failure(t, status, "", test.header...); e.RetryAfter != 0 {
					t.Errorf("%d %v: got %v, want it ignored", status, test.header, e.RetryAfter)
				}
			}
		})
	}
}

func TestIntrospection(t *testing.T) {
	for body, want := range map[string]Introspection{
		`{"active":false}`: {},
		`{"active":true}`:  {Active: true},
		`{"active":true,"client_id":"c","scope":"a b","exp":1795318691,"iat":1}`: {Active: true, ClientID: "c", Scope: "a b", Expires: time.Unix(1795318691, 0)},
		`{"active":true,"expires_at":1738945086,"expires_in":555}`:               {Active: true, Expires: time.Unix(1738945086, 0)},
		`{"active":true,"client_id":1,"scope":[],"exp":-1}`:                      {Active: true},
		`{"active":true,"exp":1e300}`:                                            {Active: true},
	} {
		in, err := RequestIntrospection(t.Context(), answering(200, nil, body, 0), request("http://auth.example"))
		if err != nil || *in != want {
			t.Errorf("%s: got %+v, %v, want %+v", body, in, err, want)
		}
	}
	for _, test := range []struct {
		status int
		body   string
		want   Class
	}{
		{200, `{}`, Malformed},
		{200, `{"active":"MARKER"}`, Malformed},
		{200, `MARKER`, Malformed},
		{204, ``, Malformed},
		{401, `{"error":"invalid_client","error_description":"MARKER"}`, Refused},
		{503, `MARKER`, Transient},
	} {
		in, err := RequestIntrospection(t.Context(), answering(test.status, nil, test.body, 0), request("http://auth.example"))
		var e *Error
		if in != nil || !errors.As(err, &e) || e.Class != test.want {
			t.Errorf("%d %s: got %v, %v, want %s", test.status, test.body, in, err, test.want)
			continue
		}
		noLeak(t, e)
	}
}

func TestRevocation(t *testing.T) {
	for _, test := range []struct {
		status int
		gone   []int
		want   string // empty for a success
	}{
		{200, nil, ""},
		{204, nil, ""},
		{404, []int{404}, ""},
		{404, nil, "404 Not Found"},
		{503, []int{404}, "503 Service Unavailable"},
		{302, nil, "302 Found"},
	} {
		err := RequestRevocation(t.Context(), answering(test.status, http.Header{}, "MARKER", 0), request("http://auth.example"), test.gone...)
		var e *Error
		switch {
		case test.want == "" && err != nil, test.want != "" && (!errors.As(err, &e) || !strings.Contains(e.Error(), test.want)):
			t.Errorf("%d: got %v, want %q", test.status, err, test.want)
		case e != nil:
			noLeak(t, e)
		}
	}
}

func TestRecordedAnswers(t *testing.T) {
	type outcome struct {
		scopes []string // granted
		code   string   // refused
	}
	for file, outcomes := range map[string]map[string]outcome{
		"testdata/understory-token-endpoint.json": {
			"granted":                        {scopes: []string{"openid", "marketing.read"}},
			"granted without scope":          {scopes: []string{}},
			"granted without audience":       {scopes: []string{"openid"}},
			"wrong secret":                   {code: "invalid_client"},
			"unknown client":                 {code: "invalid_client"},
			"scope not allowed":              {code: "invalid_scope"},
			"audience not allowed":           {code: "invalid_request"},
			"basic where post is registered": {code: "invalid_client"},
			"unknown grant type":             {code: "invalid_request"},
			"grant type missing":             {code: "invalid_request"},
			"no credentials":                 {code: "invalid_request"},
			"empty body":                     {code: "invalid_request"},
			"JSON body":                      {code: "invalid_request"},
		},
		"testdata/voucherify-oauth.json": {
			"granted":            {scopes: []string{"api"}},
			"invalid scope":      {code: "invalid_scope"},
			"invalid grant type": {code: "invalid_grant_type"},
			"wrong key":          {code: "unauthorized"},
		},
	} {
		vectors := wiretest.Vectors(t, file)
		for name, v := range vectors {
			if !strings.HasSuffix(v.Request.Path, "/token") {
				continue
			}
			want, ok := outcomes[name]
			if !ok {
				t.Errorf("%s: %s: no outcome", file, name)
				continue
			}
			// recorded tokens are described in words; what stands for one has no spaces
			body := strings.ReplaceAll(v.Body(), "opaque string of ", "opaque-string-of-")
			body = strings.ReplaceAll(body, " characters", "-characters")
			token, err := askWith(t, withKey, v.Response.Status, body)
			var e *Error
			switch {
			case want.code != "" && (!errors.As(err, &e) || e.Class != Refused || e.Code != want.code):
				t.Errorf("%s: got %v, want %s refused", name, err, want.code)
			case want.code == "" && err != nil:
				t.Errorf("%s: %v", name, err)
			case want.code == "" && !slices.Equal(token.Scopes, want.scopes):
				t.Errorf("%s: got scopes %q", name, token.Scopes)
			case e != nil && strings.Contains(e.Error(), "The request"), e != nil && strings.Contains(e.Error(), "Client authentication"):
				t.Errorf("%s: quotes the description: %v", name, e)
			}
		}
		for name := range outcomes {
			if _, ok := vectors[name]; !ok {
				t.Errorf("%s: no vector %q", file, name)
			}
		}
	}
	for _, file := range []string{"testdata/understory-token-endpoint.json", "testdata/voucherify-oauth.json"} {
		for name, v := range wiretest.Vectors(t, file) {
			client := answering(v.Response.Status, nil, v.Body(), 0)
			switch {
			case strings.Contains(v.Request.Path, "revoke"):
				if err := RequestRevocation(t.Context(), client, request("http://auth.example"), 404); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			case strings.Contains(v.Request.Path, "introspect"):
				r := request("http://auth.example")
				r.Errors = withKey
				in, err := RequestIntrospection(t.Context(), client, r)
				var e *Error
				switch active := strings.HasSuffix(name, " active"); {
				case v.Response.Status != 200:
					if !errors.As(err, &e) || e.Class != Refused || e.Code != "missing_parameters" {
						t.Errorf("%s: got %v", name, err)
					}
				case err != nil:
					t.Errorf("%s: %v", name, err)
				case in.Active != active || in.Expires.IsZero() == active:
					t.Errorf("%s: got %+v", name, in)
				}
			}
		}
	}
}

func TestNoAnswerLeaksNothing(t *testing.T) {
	for name, cause := range map[string]error{
		"request URL": &url.Error{Op: "Post", URL: "https://userinf0:s3cret@auth.example/MARKER", Err: io.EOF},
		"unknown":     errors.New(`malformed HTTP response "MARKER s3cret"`),
		"wrapped":     &url.Error{Op: "Post", URL: "https://MARKER", Err: fmt.Errorf("transport broken: %w", errors.New("MARKER"))},
	} {
		client := &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) { return nil, cause })}
		_, err := RequestToken(t.Context(), client, request("https://userinf0:s3cret@auth.example/MARKER"))
		var e *Error
		if !errors.As(err, &e) || e.Class != Transient || e.Status != 0 {
			t.Fatalf("%s: got %v", name, err)
		}
		noLeak(t, e)
	}
}
