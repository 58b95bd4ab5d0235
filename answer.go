package egress

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/internal/replaybody"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// outcome is what became of a request.
type outcome uint8

const (
	outcomeForwarded  outcome = iota // the API's answer, or its failure to answer
	outcomeReplayed                  // the same, after the request was sent a second time
	outcomePreflight                 // a browser was told what pages may send
	outcomeClientGone                // the client left while its request waited for a token
	outcomeTokenUnavailable
	outcomeCredentialRefused
	outcomeRateLimited
	outcomeCallerUnknown
	outcomeCallerNotGranted
	outcomeTenantUnknown
	outcomeCallerLimited
	outcomeQuotaReserved
	outcomeClientNotAllowed
	outcomeHostNotAllowed
	outcomeOriginNotAllowed
	outcomeOperationNotAllowed
	outcomeAPIHostNotAllowed
	outcomeLoopDetected
	outcomeTooManyUploads
	outcomeBadRequest
	outcomeCount
)

// outcomeNames are the values of the label outcome of caddy_egress_requests_total.
// Those of the gateway's own answers are also the keys of these answers.
var outcomeNames = [outcomeCount]string{
	outcomeForwarded:           "forwarded",
	outcomeReplayed:            "replayed",
	outcomePreflight:           "preflight",
	outcomeClientGone:          "client_gone",
	outcomeTokenUnavailable:    "token_unavailable",
	outcomeCredentialRefused:   "credential_refused",
	outcomeRateLimited:         "rate_limited",
	outcomeCallerUnknown:       "caller_unknown",
	outcomeCallerNotGranted:    "caller_not_granted",
	outcomeTenantUnknown:       "tenant_unknown",
	outcomeCallerLimited:       "caller_limited",
	outcomeQuotaReserved:       "quota_reserved",
	outcomeClientNotAllowed:    "client_not_allowed",
	outcomeHostNotAllowed:      "host_not_allowed",
	outcomeOriginNotAllowed:    "origin_not_allowed",
	outcomeOperationNotAllowed: "operation_not_allowed",
	outcomeAPIHostNotAllowed:   "api_host_not_allowed",
	outcomeLoopDetected:        "loop_detected",
	outcomeTooManyUploads:      "too_many_uploads",
	outcomeBadRequest:          "bad_request",
}

// String returns the outcome as metrics, logs and placeholders have it.
func (o outcome) String() string { return outcomeNames[o] }

// Keys of answers that count as outcomeBadRequest.
const (
	keyBadRequestTarget = "bad_request_target"
	keyBadRequestPath   = "bad_request_path"
	keyMethodNotAllowed = "method_not_allowed"
	keyTooEarly         = "too_early"
	keyTenantInvalid    = "tenant_invalid"
)

// keyAPIUnreachable is that of the answer in place of an API's. Its request counts
// as forwarded.
const keyAPIUnreachable = "api_unreachable"

// proxyName is how the gateway calls itself in Proxy-Status (RFC 9209).
const proxyName = "caddy-egress"

// refusal is a request that the gateway answers itself.
type refusal struct {
	status     int
	outcome    outcome
	key        string        // empty: the outcome's name
	message    string        // what is wrong, for the client and the log
	advice     string        // what to do about it, for the client; after the message
	detail     string        // what to do about it, for the log; after the message
	proxyError string        // the error type of RFC 9209 §2.3
	retryAfter time.Duration // 0: none is sent
	allow      string        // the Allow of a 405
	challenges []string      // the WWW-Authenticate of a 401
	oauthError string        // an OAuth error code: the body is an OAuth error, not one of the API's
	missing    missingProof  // of callerUnknown
}

// missingProof is what keeps the sender of a request from being a known caller. Each
// kind has log lines of its own: a monitor without a key hides no wrong key.
type missingProof int

const (
	missingKey missingProof = iota // there is neither a key nor a certificate
	missingKnownKey
	missingKnownCertificate
	missingFurtherProof // the key or the certificate is that of a caller
	missingProofs       // how many there are
)

// credentialEndpoint is the refusal of a request to an endpoint that issues or
// revokes tokens. Its body is what OAuth clients can read (RFC 6749 §5.2).
var credentialEndpoint = &refusal{
	status: http.StatusForbidden, outcome: outcomeOperationNotAllowed, proxyError: "http_request_denied", oauthError: "unauthorized_client",
	message: "the gateway authenticates requests to this API itself: send them without a token. The API's own credential endpoints are not served; " +
		"where a client insists on a token, the operator can serve egress_token there",
}

// oauthErrorBody renders an error as token endpoints do.
func oauthErrorBody(code, description string) (contentType string, body []byte) {
	body, _ = json.Marshal(struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}{code, description})
	return "application/json", body
}

// askOperator is for clients that the gateway does not serve. What would permit
// their request is for the log: whoever was refused need not know.
const askOperator = "; ask the operator of the gateway, whose log says why"

// forbidden is the refusal of a request that the route does not permit. hint says
// in the log what would permit it.
func forbidden(o outcome, message, hint string) *refusal {
	return &refusal{status: http.StatusForbidden, outcome: o, message: message, advice: askOperator, detail: hint, proxyError: "http_request_denied"}
}

// badRequest is the refusal of a request that the client has to send otherwise.
func badRequest(key, message string) *refusal {
	return &refusal{status: http.StatusBadRequest, outcome: outcomeBadRequest, key: key, message: message, proxyError: "http_request_error"}
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

// callerUnknown is the refusal of a request that nobody known has sent.
var callerUnknown = &refusal{
	status: http.StatusUnauthorized, outcome: outcomeCallerUnknown, proxyError: "http_request_denied",
	message:    "the gateway does not know who calls: send the key that it knows you by, as a bearer token or in X-API-Key, or prove it otherwise",
	challenges: []string{`Bearer realm="caddy-egress"`, `Basic realm="caddy-egress", charset="UTF-8"`},
}

// tooEarly is the refusal of a request in TLS early data, which somebody on the way
// may have sent a second time, key included (RFC 8470).
var tooEarly = &refusal{
	status: http.StatusTooEarly, outcome: outcomeBadRequest, key: keyTooEarly, proxyError: "http_request_error",
	message: "the request came before the TLS handshake was complete; send it again now",
}

// notGranted is the refusal of a known caller that has no grant here.
func notGranted(caller string) *refusal {
	return forbidden(outcomeCallerNotGranted, caller+" has no grant on this route", "; grant "+caller+" would permit it")
}

// tenantNotGranted is the refusal of a known caller that names a tenant which its
// grant does not.
func tenantNotGranted(caller, tenant string) *refusal {
	return forbidden(outcomeCallerNotGranted, caller+" has no grant for tenant "+tenant+" on this route", "; tenants "+tenant+" in its grant would permit it")
}

// tenantInvalid is the refusal of a request whose tenant cannot be the name of one.
var tenantInvalid = badRequest(keyTenantInvalid, fmt.Sprintf("the request has to say for which tenant it is, by a name of up to %d letters, digits, dots, underscores and hyphens", maxCredentialName))

// tenantUnknown is the refusal of a request for a tenant without a credential. The
// message says already what errTenantUnknown does; the log has the cause.
func tenantUnknown(tenant string, err error) *refusal {
	cause := strings.TrimPrefix(err.Error(), errTenantUnknown.Error()+": ")
	return forbidden(outcomeTenantUnknown, "the gateway has no credential of tenant "+tenant, ": "+cause)
}

// limitRefusal is the refusal of a caller that has used up its limit.
func limitRefusal(caller string, wait time.Duration) *refusal {
	return &refusal{
		status: http.StatusTooManyRequests, outcome: outcomeCallerLimited, proxyError: "http_request_denied", retryAfter: max(wait, time.Second),
		message: "the limit of " + caller + " on this route is used up; retry later",
		detail:  "; a higher limit in its grant would permit more",
	}
}

// reserveRefusal leaves what remains of the API's quota to others.
func reserveRefusal(caller string, wait time.Duration) *refusal {
	return &refusal{
		status: http.StatusTooManyRequests, outcome: outcomeQuotaReserved, proxyError: "http_request_denied", retryAfter: max(wait, time.Second),
		message: "what remains of the API's quota is reserved for others than " + caller + "; retry later",
		detail:  "; a lower reserve in its grant would permit more",
	}
}

// proxyLoopDetected is the error type of a request that has been here before.
const proxyLoopDetected = "proxy_loop_detected"

// loopRefusal is the refusal of a request that has been here before.
func loopRefusal() *refusal {
	return &refusal{
		status: http.StatusLoopDetected, outcome: outcomeLoopDetected, proxyError: proxyLoopDetected,
		message: "this request comes from the gateway itself: the address of the API leads back to the gateway",
		detail:  "; look for an override of its name on this machine",
	}
}

// uploadsRefusal keeps a client from adding to the uploads that it has stalled.
func uploadsRefusal() *refusal {
	return &refusal{
		status: http.StatusTooManyRequests, outcome: outcomeTooManyUploads, proxyError: "http_request_denied",
		message:    fmt.Sprintf("this client has %d requests under way of whose bodies it has sent nothing for %v", replaybody.MaxStalled, replaybody.StallTime),
		retryAfter: replaybody.StallTime,
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
// is logged by the token source, and a rate limit or a preflight is not a fault.
func (r *refusal) logged() bool {
	switch r.outcome {
	case outcomeTokenUnavailable, outcomeCredentialRefused, outcomeRateLimited, outcomePreflight:
		return false
	}
	return true
}

// name returns what the answer and the log call the refusal.
func (r *refusal) name() string {
	if r.key != "" {
		return r.key
	}
	return r.outcome.String()
}

// fields returns what is logged of the refusal of req, after fields of the handler's
// own. leftOut refusals before it were not logged.
func (r *refusal) fields(req *http.Request, leftOut int64, own ...zap.Field) []zap.Field {
	fields := append(own, zap.String("reason", r.message+r.detail), zap.String("remote_addr", req.RemoteAddr))
	if leftOut > 0 {
		fields = append(fields, zap.Int64("left_out", leftOut))
	}
	return fields
}

// renderer renders an error: as an API does, or as a token endpoint.
type renderer func(status int, key, message string) (contentType string, body []byte)

// write answers req with w, whose header may hold more than the answer needs.
func (r *refusal) write(w http.ResponseWriter, req *http.Request, render renderer) error {
	resp := r.answer(req, render)
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	_, err := io.Copy(w, resp.Body)
	return err
}

// answer returns the answer to req, its body rendered as the API's own errors are.
func (r *refusal) answer(req *http.Request, render renderer) *http.Response {
	key := r.name()
	header := http.Header{"Cache-Control": {"no-store"}, "X-Content-Type-Options": {"nosniff"}}
	var body []byte
	if r.status == http.StatusNoContent {
		header["Proxy-Status"] = []string{fmt.Sprintf("%s; details=%q", proxyName, key)}
	} else {
		var contentType string
		contentType, body = render(r.status, key, r.message+r.advice)
		if r.oauthError != "" {
			contentType, body = oauthErrorBody(r.oauthError, r.message+r.advice)
		}
		header["Content-Type"] = []string{contentType}
		header["Content-Length"] = []string{strconv.Itoa(len(body))}
		header["Proxy-Status"] = []string{fmt.Sprintf("%s; error=%s; details=%q", proxyName, r.proxyError, key)}
	}
	if r.retryAfter > 0 {
		header.Set("Retry-After", strconv.Itoa(int(math.Ceil(r.retryAfter.Seconds()))))
	}
	if r.allow != "" {
		header.Set("Allow", r.allow)
	}
	if r.challenges != nil {
		header["Www-Authenticate"] = slices.Clone(r.challenges)
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
