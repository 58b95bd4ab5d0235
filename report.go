package egress

import (
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// Placeholders that a request has after the transport, and what they stand for.
const (
	placeholderCredential = "http.reverse_proxy.egress.credential" // the credential's name
	placeholderOutcome    = "http.reverse_proxy.egress.outcome"    // as the label of caddy_egress_requests_total
	placeholderReplayed   = "http.reverse_proxy.egress.replayed"   // whether it was sent a second time
	placeholderTokenWait  = "http.reverse_proxy.egress.token_wait" // how long it waited for a token
)

// report tells what became of a client's request: to the metrics, the
// placeholders and the access log.
func (t *Transport) report(req *http.Request, outcome string, wait time.Duration) {
	if isProbe(req) {
		return
	}
	t.meter.requests[outcome].Inc()
	if wait > 0 {
		t.meter.wait.Observe(wait.Seconds())
	}
	ctx := req.Context()
	if repl, ok := ctx.Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set(placeholderCredential, t.source.Name())
		repl.Set(placeholderOutcome, outcome)
		repl.Set(placeholderReplayed, outcome == outcomeReplayed)
		repl.Set(placeholderTokenWait, wait)
	}
	if fields, ok := ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		fields.Set(zap.String("egress_credential", t.source.Name()))
		fields.Set(zap.String("egress_outcome", outcome))
	}
}
