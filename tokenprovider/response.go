package tokenprovider

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// assumedLifetime is that of a token whose answer has none (RFC 6749 §5.1
	// only recommends expires_in), or none above zero: short enough not to be
	// wrong for long. A token that its server took for expired would be of no use,
	// and the API answers 401 if it is.
	assumedLifetime = 300 * time.Second

	// maxLifetime bounds what an answer may claim: no token is used longer
	// than a day without asking the server again.
	maxLifetime = 24 * time.Hour

	// maxClientID bounds the client identifier in what a server says of a token.
	maxClientID = 256

	// MaxRetryAfter bounds how long a server can make us wait.
	MaxRetryAfter = 5 * time.Minute
)

// parseToken reads a token response (RFC 6749 §5.1) or the failure it is.
func parseToken(r *response) (*Token, error) {
	if r.status/100 != 2 {
		return nil, parseFailure(r)
	}
	fields, ok := parseObject(r.body)
	if !ok {
		return nil, malformed(r, "the answer is not a JSON object; is token_url the token endpoint?")
	}

	raw, ok := fields["access_token"]
	if !ok || isNull(raw) {
		// some servers answer an error with 200
		if code := failureCode(r, fields); code != "" {
			e := &Error{Class: Transient, Status: r.status, Code: code, Hint: r.request.Errors.Final[code]}
			if r.request.Errors.isFinal(code) {
				e.Class = Refused
			}
			diagnose(e, r)
			return nil, e
		}
		return nil, malformed(r, "the answer has no access_token")
	}
	value, ok := parseString(raw)
	if !ok || value == "" {
		return nil, malformed(r, "access_token is empty or no string")
	}
	if !visibleASCII(value) {
		return nil, malformed(r, "access_token holds characters that a header cannot carry")
	}

	// RFC 6749 §7.1: a client must not use a token whose type it does not understand
	if raw, ok := fields["token_type"]; ok && !isNull(raw) {
		tokenType, ok := parseString(raw)
		if !ok || !strings.EqualFold(tokenType, "bearer") {
			return nil, malformed(r, "token_type is not bearer")
		}
	}

	lifetime, known := parseLifetime(fields, r.sent)
	t := &Token{
		Value:         NewSecret(value),
		Issued:        r.sent,
		Expires:       r.sent.Add(lifetime),
		ExpiryAssumed: !known,
	}
	if raw, ok := fields["scope"]; ok && !isNull(raw) {
		if scope, ok := parseString(raw); ok {
			t.Scopes = r.request.scopesIn(scope, value)
		}
	}
	return t, nil
}

// parseFailure reads an answer that is not a success.
func parseFailure(r *response) *Error {
	e := &Error{Class: Transient, Status: r.status, RetryAfter: retryAfter(r)}
	fields, isObject := parseObject(r.body)
	if isObject {
		e.Code = failureCode(r, fields)
		e.Hint = r.request.Errors.Final[e.Code]
	}
	switch {
	case r.status/100 == 3:
		e.Class = Refused
		e.Reason = "redirects are not followed; set token_url to the endpoint itself"
	case r.status == http.StatusRequestTimeout, r.status == http.StatusConflict,
		r.status == http.StatusTooEarly, r.status == http.StatusTooManyRequests:
		// these pass, whatever the body says
	case r.status/100 == 4 && isObject && isError(r, fields):
		e.Class = Refused
	case r.status/100 == 4:
		e.Reason = "the answer is not an OAuth error; something on the way may have sent it"
	}
	diagnose(e, r)
	return e
}

// parseIntrospection reads an introspection response (RFC 7662 §2.2). Some
// servers have the expiry in expires_at.
func parseIntrospection(r *response) (*Introspection, error) {
	fields, ok := parseObject(r.body)
	if !ok {
		return nil, malformed(r, "the answer is not a JSON object")
	}
	var in Introspection
	if json.Unmarshal(fields["active"], &in.Active) != nil {
		return nil, malformed(r, "active is missing or no boolean")
	}
	in.ClientID, in.Scope = parseSubject(r.request, fields)
	for _, name := range []string{"exp", "expires_at"} {
		if seconds, ok := parseSeconds(fields[name]); ok && seconds > 0 && seconds < math.MaxInt32*1000 {
			in.Expires = time.Unix(int64(seconds), 0)
			break
		}
	}
	return &in, nil
}

// parseSubject returns the client and the scopes in fields, which describe the token in
// r, without what shows something of it or of a secret.
func parseSubject(r Request, fields map[string]json.RawMessage) (clientID, scope string) {
	token := r.Form.Get("token")
	r.Form = maps.Clone(r.Form)
	r.Form.Del("token")
	if answered, ok := parseString(fields["scope"]); ok {
		scope = strings.Join(r.scopesIn(answered, token), " ")
	}
	clientID, _ = parseString(fields["client_id"])
	hidden := func(secret string) bool { return shows(clientID, secret, minTokenEcho) }
	if len(clientID) > maxClientID || !visibleASCII(strings.ReplaceAll(clientID, " ", "")) || slices.ContainsFunc(append(r.secrets(), token), hidden) {
		clientID = ""
	}
	return clientID, scope
}

// malformed is the failure of an answer that is not one of OAuth.
func malformed(r *response, reason string) *Error {
	return &Error{Class: Malformed, Status: r.status, Reason: reason, RetryAfter: retryAfter(r)}
}

// parseObject reads body as one JSON object and nothing after it.
func parseObject(body []byte) (map[string]json.RawMessage, bool) {
	trimmed := bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf"))) // a byte order mark
	if len(trimmed) == 0 || trimmed[0] != '{' {
		return nil, false
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(trimmed, &fields) != nil {
		return nil, false
	}
	return fields, true
}

// isError reports whether fields are an error of RFC 6749 §5.2, or one of the
// server's own.
func isError(r *response, fields map[string]json.RawMessage) bool {
	if _, ok := parseString(fields["error"]); ok {
		return true
	}
	own := r.request.Errors.Fields
	for _, name := range own {
		if raw, ok := fields[name]; !ok || isNull(raw) {
			return false
		}
	}
	return len(own) > 0
}

// failureCode returns the error code in fields; empty if there is none that
// looks like one, or it shows something of a secret.
func failureCode(r *response, fields map[string]json.RawMessage) string {
	for _, name := range []string{"error", r.request.Errors.Code} {
		code, ok := parseString(fields[name])
		if !ok || code == "" {
			continue
		}
		code = errorCode(code)
		if !r.request.Errors.isFinal(code) && r.request.isEchoed(code) {
			return ""
		}
		return code
	}
	return ""
}

// parseLifetime returns how long the token lives from sent on, and whether the
// answer says so: expires_in, or else an expires_at (Unix seconds) that lies ahead.
func parseLifetime(fields map[string]json.RawMessage, sent time.Time) (lifetime time.Duration, ok bool) {
	if seconds, ok := parseSeconds(fields["expires_in"]); ok && seconds > 0 {
		return clampLifetime(seconds), true
	}
	if at, ok := parseSeconds(fields["expires_at"]); ok {
		if seconds := at - float64(sent.UnixMilli())/1000; seconds > 0 {
			return clampLifetime(seconds), true
		}
	}
	return assumedLifetime, false
}

func clampLifetime(seconds float64) time.Duration {
	if seconds >= maxLifetime.Seconds() {
		return maxLifetime
	}
	// not zero, however little it is
	return max(time.Duration(seconds*float64(time.Second)), 1)
}

// parseSeconds reads a number such as 3600 or 3600.0, or a string of one.
func parseSeconds(raw json.RawMessage) (float64, bool) {
	if s, ok := parseString(raw); ok {
		raw = json.RawMessage(strings.TrimSpace(s))
	}
	return parseNumber(string(raw))
}

// parseNumber reads a decimal number. One that is out of range is infinite, but
// the words Inf and NaN are not numbers.
func parseNumber(s string) (float64, bool) {
	if strings.ContainsAny(s, "nNxX_") {
		return 0, false
	}
	number, err := strconv.ParseFloat(s, 64)
	return number, err == nil || errors.Is(err, strconv.ErrRange)
}

func parseString(raw json.RawMessage) (string, bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return "", false
	}
	return s, true
}

func isNull(raw json.RawMessage) bool { return string(raw) == "null" }

func visibleASCII(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

// retryAfter returns how long a 429 or 503 asks to wait, at most MaxRetryAfter.
func retryAfter(r *response) time.Duration {
	if r.status != http.StatusTooManyRequests && r.status != http.StatusServiceUnavailable {
		return 0
	}
	return ParseRetryAfter(r.header, time.Now(), r.request.RetryHeaders...)
}

// ParseRetryAfter returns how long the headers of an answer ask to wait, at
// most 5 minutes, 0 if they do not: Retry-After as seconds or as a date
// (RFC 9110 §10.2.3), a header of retryHeaders as Unix seconds, or
// X-Ratelimit-Reset as seconds.
func ParseRetryAfter(header http.Header, now time.Time, retryHeaders ...string) time.Duration {
	if v := strings.TrimSpace(header.Get("Retry-After")); v != "" {
		if wait, ok := waitOf(v, 0); ok {
			return wait
		}
		if at, err := http.ParseTime(v); err == nil {
			return clampWait(at.Sub(now).Seconds())
		}
	}
	for _, name := range retryHeaders {
		if wait, ok := waitOf(header.Get(name), float64(now.UnixMilli())/1000); ok {
			return wait
		}
	}
	wait, _ := waitOf(header.Get("X-Ratelimit-Reset"), 0)
	return wait
}

// waitOf reads v as a number of seconds after base.
func waitOf(v string, base float64) (time.Duration, bool) {
	if v == "" { // as in most answers; parsing it would cost an allocation
		return 0, false
	}
	seconds, ok := parseNumber(strings.TrimSpace(v))
	if !ok {
		return 0, false
	}
	return clampWait(seconds - base), true
}

func clampWait(seconds float64) time.Duration {
	switch {
	case seconds <= 0:
		return 0
	case seconds >= MaxRetryAfter.Seconds():
		return MaxRetryAfter
	}
	return time.Duration(seconds * float64(time.Second))
}
