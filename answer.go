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
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// Keys of the gateway's own answers.
const (
	keyTokenUnavailable    = "token_unavailable"
	keyCredentialRefused   = "credential_refused"
	keyRateLimited         = "rate_limited"
	keyBadRequestTarget    = "bad_request_target"
	keyMethodNotAllowed    = "method_not_allowed"
	keyClientNotAllowed    = "client_not_allowed"
	keyHostNotAllowed      = "host_not_allowed"
	keyOriginNotAllowed    = "origin_not_allowed"
	keyOperationNotAllowed = "operation_not_allowed"
	keyAPIHostNotAllowed   = "api_host_not_allowed"
)

// proxyName is how the gateway calls itself in Proxy-Status (RFC 9209).
const proxyName = "caddy-egress"

// refusal is a request that the gateway answers itself.
type refusal struct {
	status     int
	key        string
	message    string        // for the client
	detail     string        // for the log, beside the message
	proxyError string        // the error type of RFC 9209 §2.3
	retryAfter time.Duration // 0: none is sent
	allow      string        // the Allow of a 405
	wait       time.Duration // for a token
}

// outcome is what the refusal counts as.
func (r *refusal) outcome() string {
	if r.key == keyBadRequestTarget || r.key == keyMethodNotAllowed {
		return outcomeBadRequest
	}
	return r.key
}

// rateLimitRefusal spares an API that has said 429 the requests it would refuse.
func rateLimitRefusal(left time.Duration) *refusal {
	return &refusal{
		status:     http.StatusTooManyRequests,
		key:        keyRateLimited,
		message:    "the API has limited the rate of this credential; the gateway sends nothing until that is over",
		proxyError: "http_request_denied",
		retryAfter: max(left, time.Second),
	}
}

// tokenRefusal is the refusal for lack of a token.
func tokenRefusal(err *tokensource.Error) *refusal {
	r := &refusal{
		status:     http.StatusServiceUnavailable,
		key:        keyTokenUnavailable,
		proxyError: "proxy_internal_error",
		retryAfter: max(err.RetryAfter, time.Second),
	}
	next := "retry later; the gateway keeps trying"
	if err.Refused {
		r = &refusal{status: http.StatusBadGateway, key: keyCredentialRefused, proxyError: "proxy_configuration_error"}
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

// refuse answers req, and logs that, not too often, unless the token source
// already has.
func (t *Transport) refuse(req *http.Request, r *refusal) (*http.Response, error) {
	closeBody(req)
	t.report(req, r.outcome(), r.wait)
	if r.key != keyTokenUnavailable && r.key != keyCredentialRefused && r.key != keyRateLimited {
		t.logRefusal(req, r)
	}

	contentType, body := t.api.Error(r.status, r.key, r.message)
	header := http.Header{
		"Content-Type":   {contentType},
		"Content-Length": {strconv.Itoa(len(body))},
		"Cache-Control":  {"no-store"},
		"Proxy-Status":   {fmt.Sprintf("%s; error=%s; details=%q", proxyName, r.proxyError, r.key)},
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
	}, nil
}

// logRefusal logs one refusal of a kind a second, with the number of those that
// went before it unseen: whoever is refused can send as many as they like.
func (t *Transport) logRefusal(req *http.Request, r *refusal) {
	leftOut, ok := t.meter.refusals[r.outcome()].next(time.Now())
	if !ok {
		return
	}
	if c := t.logger.Check(zap.WarnLevel, "refused a request"); c != nil {
		fields := []zap.Field{
			zap.String("credential", t.source.Name()), zap.String("outcome", r.key),
			zap.String("reason", r.message+r.detail), zap.String("remote_addr", req.RemoteAddr),
		}
		if leftOut > 0 {
			fields = append(fields, zap.Int64("left_out", leftOut))
		}
		c.Write(fields...)
	}
}

// sparing lets one log line a second through.
type sparing struct {
	last    atomic.Int64 // Unix nanoseconds
	leftOut atomic.Int64
}

// next reports whether a line may be logged now, and how many were left out
// before it.
func (s *sparing) next(now time.Time) (leftOut int64, ok bool) {
	last := s.last.Load()
	if now.UnixNano()-last < int64(time.Second) || !s.last.CompareAndSwap(last, now.UnixNano()) {
		s.leftOut.Add(1)
		return 0, false
	}
	return s.leftOut.Swap(0), true
}

// cleanAnswer drops from an API's answer what only the gateway may say of itself.
func cleanAnswer(resp *http.Response) *http.Response {
	values, ok := resp.Header["Proxy-Status"]
	if !ok {
		return resp
	}
	// the lines are one list (RFC 9110 §5.3), and have to be read as one
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

// splitList splits a structured field list (RFC 9651 §3.1) at its commas; those
// inside of strings are none.
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
