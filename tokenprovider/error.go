package tokenprovider

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Class says what a failed token request means for the next one.
type Class string

const (
	// Transient failures pass by themselves: the network, a timeout, an
	// overloaded server. The same request may succeed later.
	Transient Class = "transient"

	// Refused means that the authorization server understood the request and
	// will not issue a token until somebody changes the credential or its rights.
	Refused Class = "refused"

	// Malformed means an answer that is not a token response. It is treated as
	// Transient: something on the way may have answered instead.
	Malformed Class = "malformed"
)

// Error is a failed token request. It never holds a secret, a token, or
// anything the token endpoint sent beyond its error code.
type Error struct {
	// Class says whether the same request may succeed later.
	Class Class

	// Status is the HTTP status of the answer; 0 without an answer.
	Status int

	// Code is the error code of RFC 6749 §5.2, or the API's own. May be empty.
	Code string

	// RetryAfter is how long the server asked to wait; 0 where it did not.
	RetryAfter time.Duration

	// Reason says what is wrong, where status and code do not.
	Reason string

	// Hint says what a person can do, where status and code alone do not say it
	// well enough. May be empty.
	Hint string

	// Err is the cause where there was no answer.
	Err error

	// endpoint is what was asked, where that is not the token endpoint.
	endpoint string
}

// The endpoints beside the token endpoint.
const (
	revocationEndpoint    = "revocation endpoint"
	introspectionEndpoint = "introspection endpoint"
)

// at returns err as that of a request to endpoint, which was not for a token.
func at(endpoint string, err error) error {
	if e, ok := errors.AsType[*Error](err); ok {
		e.endpoint = endpoint
	}
	return err
}

// ErrorFormat describes the errors of an authorization server that are not
// those of RFC 6749 §5.2, which are understood in any case.
type ErrorFormat struct {
	// Fields are those that each of these errors has. An answer of 4xx without
	// them is not taken for the server's: something on the way may have sent it.
	Fields []string

	// Code is the field that holds the error code.
	Code string

	// Final are the error codes that do not pass by themselves, each with what a
	// person can do about it; empty where the status says enough.
	Final map[string]string
}

const (
	adviceClient = "check the client id and the secret, and whether the key was deleted or blocked"
	adviceGrant  = "allow the client credentials grant for this client at the authorization server"
	adviceParams = "check audience, resource and parameters of the credential"
)

// finalCodes are the error codes of RFC 6749 §5.2 and RFC 8707 that do not pass
// by themselves, with what a person can do about each.
var finalCodes = map[string]string{
	"invalid_client":         adviceClient,
	"invalid_scope":          "check the scopes: ask only for those that the key has, by their exact names",
	"unauthorized_client":    adviceGrant,
	"unsupported_grant_type": adviceGrant,
	"invalid_request":        adviceParams,
	"invalid_target":         adviceParams,
	"invalid_grant":          "",
	"access_denied":          "",
}

// isFinal reports whether code is one that does not pass by itself.
func (f ErrorFormat) isFinal(code string) bool {
	_, own := f.Final[code]
	_, standard := finalCodes[code]
	return own || standard
}

// Error implements error: what failed, as a person reads it.
func (e *Error) Error() string {
	requesting := "requesting a token"
	if e.endpoint != "" {
		requesting = "asking the " + e.endpoint
	}
	if e.Err != nil {
		return requesting + ": " + e.Err.Error()
	}
	var b strings.Builder
	if e.Status != 0 {
		b.WriteString(cmp.Or(e.endpoint, "token endpoint") + " answered " + strconv.Itoa(e.Status))
		if text := http.StatusText(e.Status); text != "" {
			b.WriteString(" " + text)
		}
	} else {
		b.WriteString(requesting + " failed")
	}
	if e.Code != "" {
		fmt.Fprintf(&b, " (%s)", e.Code)
	}
	if e.Reason != "" {
		b.WriteString(": " + e.Reason)
	}
	return b.String()
}

// Advice says what a person can do about err, a failed token request.
func Advice(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Advice()
	}
	return "check that the file or environment variable which the placeholder names exists, is not empty, and can be read by this process"
}

// Advice says what a person can do about the failure.
func (e *Error) Advice() string {
	if e.Status == http.StatusTooManyRequests { // whatever the code says
		return "wait; if it stays, find what else asks for tokens with this key"
	}
	if e.Status >= 500 {
		return "wait; the authorization server is in trouble"
	}
	if e.Hint == "" && e.Class == Refused && e.Status == http.StatusUnauthorized && slices.Contains(authenticated, e.Code) {
		return adviceClient
	}
	if advice := cmp.Or(e.Hint, finalCodes[e.Code]); advice != "" {
		return advice
	}
	switch {
	case e.Class == Refused && e.Status == http.StatusUnauthorized:
		return adviceClient
	case e.Class == Refused && e.Status/100 == 3:
		return "set token_url to the address it redirects to"
	case e.Class == Refused:
		return "check the credential and its rights at the authorization server"
	case e.Status == 0 && e.Err == nil:
		return "wait; if it stays, look for what was logged before"
	case e.Status == 0:
		return "check that this host reaches the token endpoint: DNS, firewall, proxy and certificates"
	case e.Class == Malformed, e.Status/100 == 4:
		return "check that token_url is the token endpoint and that nothing on the way answers for it"
	}
	return "wait; the authorization server is in trouble"
}

// UnknownClient reports whether the server did not accept how the client
// authenticated: another value of the secret may fare better.
func (e *Error) UnknownClient() bool {
	return e.Class == Refused && (e.Code == "invalid_client" || e.Status == http.StatusUnauthorized)
}

// Unwrap returns the cause where there was no answer.
func (e *Error) Unwrap() error { return e.Err }

// maxCode bounds an error code; the longest of the RFCs has 27 characters.
const maxCode = 40

// errorCode returns code if it has the form of an error code, or nothing:
// nothing else that a token endpoint sends goes into logs and answers. Codes
// with digits are dropped: no registered code has one, and most secrets do.
func errorCode(code string) string {
	if len(code) > maxCode {
		return ""
	}
	for _, c := range []byte(code) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '_', c == '-', c == '.':
		default:
			return ""
		}
	}
	return code
}
