package egress

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// outcome is what became of a request.
type outcome uint8

const (
	outcomeForwarded  outcome = iota // the API's answer, or its failure to answer
	outcomeReplayed                  // the same, after the request was sent a second time
	outcomeClientGone                // the client left while its request waited for a token
	outcomeTokenUnavailable
	outcomeCredentialRefused
	outcomeRateLimited
	outcomeClientNotAllowed
	outcomeHostNotAllowed
	outcomeOriginNotAllowed
	outcomeOperationNotAllowed
	outcomeAPIHostNotAllowed
	outcomeBadRequest
	outcomeCount
)

// outcomeNames are the values of the label outcome of caddy_egress_requests_total.
// Those of the gateway's own answers are also the keys of these answers.
var outcomeNames = [outcomeCount]string{
	outcomeForwarded:           "forwarded",
	outcomeReplayed:            "replayed",
	outcomeClientGone:          "client_gone",
	outcomeTokenUnavailable:    "token_unavailable",
	outcomeCredentialRefused:   "credential_refused",
	outcomeRateLimited:         "rate_limited",
	outcomeClientNotAllowed:    "client_not_allowed",
	outcomeHostNotAllowed:      "host_not_allowed",
	outcomeOriginNotAllowed:    "origin_not_allowed",
	outcomeOperationNotAllowed: "operation_not_allowed",
	outcomeAPIHostNotAllowed:   "api_host_not_allowed",
	outcomeBadRequest:          "bad_request",
}

// String returns the outcome as metrics, logs and placeholders have it.
func (o outcome) String() string { return outcomeNames[o] }

// Keys of answers that count as outcomeBadRequest.
const (
	keyBadRequestTarget = "bad_request_target"
	keyMethodNotAllowed = "method_not_allowed"
)

// proxyName is how the gateway calls itself in Proxy-Status (RFC 9209).
const proxyName = "caddy-egress"

// refusal is a request that the gateway answers itself.
type refusal struct {
	status     int
	outcome    outcome
	key        string        // empty: the outcome's name
	message    string        // for the client
	detail     string        // for the log, after the message
	proxyError string        // the error type of RFC 9209 §2.3
	retryAfter time.Duration // 0: none is sent
	allow      string        // the Allow of a 405
}

// forbidden is the refusal of a request that the route does not permit.
func forbidden(o outcome, message, detail string) *refusal {
	return &refusal{status: http.StatusForbidden, outcome: o, message: message, detail: detail, proxyError: "http_request_denied"}
}

// rateLimitRefusal spares an API that has said 429 the requests it would refuse.
func rateLimitRefusal(left time.Duration) *refusal {
	return &refusal{
		status:     http.StatusTooManyRequests,
		outcome:    outcomeRateLimited,
		message:    "the API has limited the rate of this credential; the gateway sends nothing until that is over",
		proxyError: "http_request_denied",
		retryAfter: max(left, time.Second),
	}
}

// tokenRefusal is the refusal for lack of a token.
func tokenRefusal(err *tokensource.Error) *refusal {
	r := &refusal{
		status:     http.StatusServiceUnavailable,
		outcome:    outcomeTokenUnavailable,
		proxyError: "proxy_internal_error",
		retryAfter: max(err.RetryAfter, time.Second),
	}
	next := "retry later; the gateway keeps trying"
	if err.Refused {
		r = &refusal{status: http.StatusBadGateway, outcome: outcomeCredentialRefused, proxyError: "proxy_configuration_error"}
		next = "the operator of the gateway has to correct the credential"
	}
	// the reason as far as the token endpoint's status and error code go: what
	// it says beyond them, and network addresses, are for the log
	reason := "no answer from the token endpoint"
	var cause *tokenprovider.Error
	switch {
	case errors.As(err.Err, &cause) && cause.Err == nil:
		reason = cause.Error()
	case cause == nil:
		reason = "the credential cannot be read"
	}
	r.message = fmt.Sprintf("no token for credential %s: %s; %s", err.Credential, reason, next)
	return r
}

// logged reports whether refusals of this kind are logged. The lack of a token
// is logged by the token source, and a rate limit is not a fault.
func (r *refusal) logged() bool {
	return r.outcome != outcomeTokenUnavailable && r.outcome != outcomeCredentialRefused && r.outcome != outcomeRateLimited
}

// answer returns the answer to req, its body rendered as the API's own errors are.
func (r *refusal) answer(req *http.Request, render func(status int, key, message string) (contentType string, body []byte)) *http.Response {
	key := r.key
	if key == "" {
		key = r.outcome.String()
	}
	contentType, body := render(r.status, key, r.message)
	header := http.Header{
		"Content-Type":   {contentType},
		"Content-Length": {strconv.Itoa(len(body))},
		"Cache-Control":  {"no-store"},
		"Proxy-Status":   {fmt.Sprintf("%s; error=%s; details=%q", proxyName, r.proxyError, key)},
	}
	if r.retryAfter > 0 {
		header.Set("Retry-After", strconv.Itoa(int(math.Ceil(r.retryAfter.Seconds()))))
	}
	if r.allow != "" {
		header.Set("Allow", r.allow)
	}
	return &http.Response{
		Status:        strconv.Itoa(r.status) + " " + http.StatusText(r.status),
		StatusCode:    r.status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        header,
		Body:          io.NopCloser(bytes.NewReader(body)),
		ContentLength: int64(len(body)),
		Request:       req,
	}
}

// cleanAnswer drops from an API's answer what only the gateway may say of itself.
func cleanAnswer(resp *http.Response) *http.Response {
	values, ok := resp.Header["Proxy-Status"]
	if !ok {
		return resp
	}
	// several lines are one list (RFC 9110 §5.3), and have to be read as one
	members := slices.DeleteFunc(splitList(strings.Join(values, ", ")), func(member string) bool {
		name, _, _ := strings.Cut(member, ";")
		return strings.Trim(strings.TrimSpace(name), `"`) == proxyName
	})
	delete(resp.Header, "Proxy-Status")
	if len(members) > 0 {
		resp.Header["Proxy-Status"] = []string{strings.Join(members, ", ")}
	}
	return resp
}

// splitList splits a structured field list (RFC 9651 §3.1) at its commas, but
// not at those inside of strings.
func splitList(value string) []string {
	var members []string
	var quoted, escaped bool
	start := 0
	for i := range len(value) {
		switch c := value[i]; {
		case escaped:
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			members = append(members, strings.TrimSpace(value[start:i]))
			start = i + 1
		}
	}
	return append(members, strings.TrimSpace(value[start:]))
}

// insufficientScope reports whether a 401 says that the token lacks a scope
// (RFC 6750 §3.1): no other token of this credential would do better.
func insufficientScope(resp *http.Response) bool {
	for _, challenge := range resp.Header["Www-Authenticate"] {
		if strings.Contains(challenge, "insufficient_scope") {
			return true
		}
	}
	return false
}
