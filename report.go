package egress

import (
	"crypto/tls"
	"errors"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// report is what became of a client's request, for its placeholders and access
// log, which look it up when they need it. A request that reverse_proxy tries
// again has one report, of the last try.
type report struct {
	credential string
	caller     string // empty: nobody known
	outcome    outcome
	wait       time.Duration
	charged    *limiter // that of the caller which the request has been taken out of

	failure error // why the API did not answer; nil: it did, or the gateway in its place, or it was the client's fault
	reached bool  // a try, not only the last, may have reached the API

	unanswered bool // a try has had no answer, and counts for the health of the API

	answered bool // the client has an answer in place of the API's; the error goes on to handlers further out
}

// sent notes how a try of the request ended.
func (r *report) sent(err error, clientFailed bool) {
	if err == nil {
		r.reached = true
		return
	}
	_, notDialed := errors.AsType[reverseproxy.DialError](err)
	r.reached = r.reached || !notDialed && !failedTLS(err)
	if !clientFailed {
		r.failure = err
	}
}

// failedTLS reports whether err has ended a TLS handshake: nothing was sent then.
func failedTLS(err error) bool {
	if header, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return header.Conn != nil // the first record
	}
	return failedVerification(err) || strings.Contains(err.Error(), "TLS handshake timeout") // net/http does not export its type
}

func failedVerification(err error) bool {
	_, failed := errors.AsType[*tls.CertificateVerificationError](err)
	return failed
}

// reportVar is where a request keeps its report.
const reportVar = "egress.report"

// reportOf returns the report of a client's request, and has its placeholders
// and its access log look there. It has to be called before the request is sent:
// a connection that is still being dialed when the client has left reads what
// this writes.
//
// With a new report comes what the first attempt needs, in one allocation.
func reportOf(req *http.Request) (*report, *attempt) {
	ctx := req.Context()
	vars, _ := ctx.Value(caddyhttp.VarsCtxKey).(map[string]any)
	if before, ok := vars[reportVar].(*report); ok {
		return before, nil
	}
	first := new(struct {
		report  report // alone is what others get to see
		attempt attempt
	})
	r := &first.report
	repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return r, &first.attempt
	}
	vars[reportVar] = r
	repl.Map(r.placeholder)
	server, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	if ok && server.Logs == nil {
		return r, &first.attempt // no access log
	}
	if fields, ok := ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		fields.Add(zap.Inline(r))
	}
	return r, &first.attempt
}

// placeholder returns what a placeholder stands for:
//
//	{http.reverse_proxy.egress.credential}  the credential's name
//	{http.reverse_proxy.egress.caller}      the caller's name; empty where nobody known calls
//	{http.reverse_proxy.egress.outcome}     as the label of caddy_egress_requests_total
//	{http.reverse_proxy.egress.replayed}    whether the request was sent a second time
//	{http.reverse_proxy.egress.token_wait}  how long it waited for a token
func (r *report) placeholder(key string) (any, bool) {
	switch key {
	case "http.reverse_proxy.egress.credential":
		return r.credential, true
	case "http.reverse_proxy.egress.caller":
		return r.caller, true
	case "http.reverse_proxy.egress.outcome":
		return r.outcome.String(), true
	case "http.reverse_proxy.egress.replayed":
		return r.outcome == outcomeReplayed, true
	case "http.reverse_proxy.egress.token_wait":
		return r.wait, true
	}
	return nil, false
}

// MarshalLogObject implements zapcore.ObjectMarshaler: the fields of the access log.
func (r *report) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("egress_credential", r.credential)
	if r.caller != "" {
		enc.AddString("egress_caller", r.caller)
	}
	enc.AddString("egress_outcome", r.outcome.String())
	return nil
}

// Interface guards
var _ zapcore.ObjectMarshaler = (*report)(nil)
