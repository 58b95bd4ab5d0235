package egress

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-egress/caddy-egress/internal/replaybody"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// call is one request on its way to the API.
type call struct {
	*Transport
	req    *http.Request
	probe  bool            // an active health check, not a client's request
	repl   *caddy.Replacer // nil for a probe, as is the next
	report *report
	visit
	credential *activeCredential // whose tokens it is sent with
	token      *tokensource.Token
	before     *tokensource.Token // the one that was rejected, after a replay
	done       func()             // the request no longer carries token
	attempt    *attempt           // the last that was sent; before that, one to use or nil
	body       *replaybody.Body   // nil: the request has none
	outcome    outcome
	wait       time.Duration // how long it waited for a token
}

// attempt is a request as it is sent, and what its answer needs, in one allocation.
type attempt struct {
	used    bool
	request http.Request
	url     url.URL
	answer  answerStorage
}

// do answers the request: as the API does, or as the gateway has to.
func (c *call) do() (*http.Response, error) {
	if !c.probe {
		c.repl, _ = c.req.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		c.report, c.attempt = reportOf(c.req)
		c.headers.dropKeys(c.req.Header)
	}

	// first, refuse what is not permitted, before a token is touched; health
	// probes are the operator's own requests, so only where they go is judged
	if !c.probe {
		if r := sent.checkLoop(c.repl); r != nil {
			return c.refuse(r)
		}
		var r *refusal
		c.visit, r = c.guard.check(c.req, c.repl)
		if c.granted != nil {
			c.credential = c.granted.credential
		}
		if r != nil {
			return c.refuse(r)
		}
	}
	if r, err := c.findTenant(); r != nil {
		return c.refuse(r)
	} else if err != nil {
		return c.withoutToken(err)
	}
	if r := c.destination.check(c.req); r != nil {
		return c.refuse(r)
	}

	// keep a client from stalling more and more connections to the API
	if c.hasBody() && c.app.memory.Stalled(c.client()) {
		return c.refuse(uploadsRefusal())
	}

	// leave other callers what is theirs
	if r := c.checkShare(); r != nil {
		return c.refuse(r)
	}

	// leave an API alone that has asked for it
	if most := time.Duration(c.RespectRateLimit); most > 0 {
		if left := c.credential.rateLimit.limitedFor(most); left > 0 {
			return c.refuse(rateLimitRefusal(left))
		}
	}

	// get a token: without one, nothing is sent
	if err := c.obtainToken(); err != nil {
		return c.withoutToken(err)
	}

	// send the request, and keep its body in case it has to be sent again
	c.keepBody()
	loops := sent.loops.Load()
	resp, err := c.send(c.body.First())
	if err == nil && c.rejected(resp) {
		resp, err = c.replay(resp)
	} else {
		c.body.Release()
		if err == nil && c.credential.source.HoldsBack() && !c.rejects(resp.StatusCode) {
			c.credential.source.Accepted(c.sender(), resp.StatusCode)
		}
	}

	// where the API is the gateway itself, say so in its own name
	if err == nil && !c.probe && sent.cameBack(resp, loops) {
		_ = resp.Body.Close()
		return c.refuse(loopRefusal())
	}

	// finally, note what became of it
	c.count()
	if c.report != nil {
		c.report.sent(err, c.body.Failed())
		c.noteHealth(resp)
	}
	tokens := c.sentTokens()
	if err != nil {
		return nil, tokens.redactError(err)
	}
	c.credential.rateLimit.answered(resp, c.api, c.credential.metrics)
	cleanAnswer(resp, tokens, &c.attempt.answer)
	if !c.probe {
		c.guard.cors.expose(resp.Header, c.repl, true)
	}
	return resp, nil
}

// noteHealth notes how the API is doing, by its answer to a client's request; nil if
// there is none, which may be the client's fault.
func (c *call) noteHealth(resp *http.Response) {
	switch {
	case resp != nil:
		c.credential.apiHealth.answered(c.rejects(resp.StatusCode))
	case c.report.failure != nil && c.req.Context().Err() == nil:
		c.credential.metrics.upstreamFailure()
		if !c.report.unanswered { // one that reverse_proxy tries again is one request
			c.credential.apiHealth.noAnswer()
			c.report.unanswered = true
		}
	}
}

// client returns who is charged with what the request costs: the caller, where one
// is known.
func (c *call) client() string {
	if c.caller != nil {
		return c.caller.client
	}
	return clientOf(c.req)
}

// checkShare refuses a request that is beyond what its grant leaves to the caller.
func (c *call) checkShare() *refusal {
	if c.granted == nil {
		return nil
	}
	if reserve := c.granted.reserve; reserve > 0 {
		if wait := c.credential.quota.reserved(reserve); wait > 0 {
			return reserveRefusal(c.caller.name, wait)
		}
	}
	// one that reverse_proxy tries again is one request of the caller's
	if limit := c.granted.limit; limit != nil && limit != c.report.charged {
		if wait := limit.take(); wait > 0 {
			return limitRefusal(c.caller.name, wait)
		}
		c.report.charged = limit
	}
	return nil
}

// obtainToken takes the live token, or waits for one.
func (c *call) obtainToken() (err error) {
	if c.probe { // probes begin while the config is still being loaded
		if err := c.app.waitUntilStarted(c.req.Context()); err != nil {
			return err
		}
	}
	if c.carry(c.credential.source.Live()) {
		return nil
	}
	start := time.Now()
	for err == nil {
		var token *tokensource.Token
		if token, err = c.credential.source.Token(c.req.Context()); c.carry(token) {
			break
		}
	}
	c.wait = time.Since(start)
	return err
}

// carry has the request carry token, and reports whether it may.
func (c *call) carry(token *tokensource.Token) bool {
	if token == nil {
		return false
	}
	done, ok := c.credential.source.InUse(token)
	if ok {
		c.token, c.done = token, done
	}
	return ok
}

// withoutToken answers a request that no token can be had for.
func (c *call) withoutToken(err error) (*http.Response, error) {
	var unavailable *tokensource.Error
	if r := c.leftTenant(err); r != nil {
		return c.refuse(r)
	}
	if errors.As(err, &unavailable) && !c.probe {
		return c.refuse(tokenRefusal(unavailable))
	}
	// the client has left, or a probe has failed
	closeBody(c.req)
	c.outcome = outcomeClientGone
	c.count()
	return nil, err
}

func (c *call) hasBody() bool { return c.req.Body != nil && c.req.Body != http.NoBody }

// keepBody prepares the request's body for being sent a second time.
func (c *call) keepBody() {
	if !c.hasBody() {
		return
	}
	var limit int64
	if c.replays(c.req.Method) {
		limit = c.replayBuffer()
	}
	trailer := c.req.Trailer // not c, so that it stays on the stack
	c.body = replaybody.New(c.req.Body, c.req.ContentLength, limit, c.client(), c.app.memory, func() {
		stripTrailers(trailer) // the end of the body has filled them in
	})
}

// send sends the request with the token and body, which may be nil.
func (c *call) send(body io.ReadCloser) (*http.Response, error) {
	defer c.done()
	if c.credential.lastSent.Load() != c.token {
		sent.add(c.token)
		c.credential.lastSent.Store(c.token)
	}
	c.cleanInformational()
	out := c.outgoing(body)
	counts := c.credential.quota.send()
	resp, err := c.upstream.RoundTrip(out)
	switch {
	case !counts:
	case err != nil:
		c.credential.quota.unanswered()
	default:
		c.credential.quota.answered(resp, c.api)
	}
	if err == nil && resp.StatusCode == http.StatusSwitchingProtocols && out.Header["Upgrade"] == nil {
		_ = resp.Body.Close() // reverse_proxy would take the client's offer, which was not sent, for the reason
		return nil, errUnaskedUpgrade
	}
	return resp, err
}

var errUnaskedUpgrade = errors.New("the API has switched protocols unasked")

// outgoing returns the request as it is sent: a copy with headers and a URL of
// its own. What others did to the headers is over by now, so nothing can bring
// back what must not reach the API.
func (c *call) outgoing(body io.ReadCloser) *http.Request {
	if c.attempt == nil || c.attempt.used {
		c.attempt = new(attempt)
	}
	out := c.attempt
	out.used = true
	out.request = *c.req
	out.url = *c.req.URL
	r := &out.request
	r.URL = &out.url
	r.Header = c.headers.outgoing(c.req.Header, c.headers.token(c.token))
	stripTrailers(r.Trailer)
	switch {
	case r.Host != "" && c.headers.keepsHost(): // header_up may have set it
	case c.probe && r.Host != "" && r.Host != r.URL.Host: // health_headers have set it
	default:
		r.Host = c.apiHost
	}
	if body != nil {
		r.Body = body
	}
	return r
}

// cleanInformational has informational answers (1xx) to the next attempt cleaned
// before reverse_proxy passes them on, which it does from a trace that it makes
// for this one call. After a replay both tokens are looked for, one after the
// other.
func (c *call) cleanInformational() {
	trace := httptrace.ContextClientTrace(c.req.Context())
	if trace == nil || trace.Got1xxResponse == nil {
		return
	}
	passOn, token := trace.Got1xxResponse, c.token // not c, so that it stays on the stack
	trace.Got1xxResponse = func(code int, header textproto.MIMEHeader) error {
		cleanHeader(http.Header(header), sentTokens{token.Value.Reveal()})
		return passOn(code, header)
	}
}

// sentTokens returns the tokens that the request was sent with.
func (c *call) sentTokens() sentTokens {
	tokens := sentTokens{c.token.Value.Reveal()}
	if c.before != nil {
		tokens[1] = c.before.Value.Reveal()
	}
	return tokens
}

// refuse answers the request as the gateway itself.
func (c *call) refuse(r *refusal) (*http.Response, error) {
	closeBody(c.req)
	c.outcome = r.outcome
	c.count()
	if r.logged() {
		c.logRefusal(r)
	}
	resp := r.answer(c.req, c.api.Error)
	if !c.probe {
		c.guard.cors.refused(resp.Header, c.repl, r)
	}
	return resp, nil
}

// logRefusal logs one refusal of a kind and caller a second, with the number of those that
// were left out before it: whoever is refused can send as many as they like.
func (c *call) logRefusal(r *refusal) {
	leftOut, ok := c.credential.metrics.refusal(c.caller, r).next(time.Now())
	if !ok {
		return
	}
	caller := ""
	if c.caller != nil {
		caller = c.caller.name
	}
	if c.guard.callers != nil {
		c.app.emit(eventCallerRefused, c.credential, map[string]any{"caller": caller, "outcome": r.outcome.String()})
	}
	if e := c.logger.Check(zap.WarnLevel, "refused a request"); e != nil {
		fields := r.fields(c.req, leftOut, zap.String("credential", c.credential.name()), zap.String("outcome", r.name()))
		if caller != "" {
			fields = append(fields, zap.String("caller", caller))
		}
		e.Write(fields...)
	}
}

// count notes what became of a client's request: in the metrics, and in the report.
func (c *call) count() {
	if c.probe {
		return
	}
	c.credential.metrics.request(c.outcome, c.wait)
	*c.report = report{credential: c.credential.name(), outcome: c.outcome, wait: c.wait, charged: c.report.charged, reached: c.report.reached, unanswered: c.report.unanswered}
	if c.caller != nil {
		c.report.caller = c.caller.name
		c.credential.metrics.callerRequest(c.caller, c.outcome)
	}
}

// isProbe reports whether req is an active health check, not a client's request.
func isProbe(req *http.Request) bool {
	return req.Context().Value(caddyhttp.VarsCtxKey) == nil
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}
