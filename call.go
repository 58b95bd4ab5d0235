package egress

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-egress/caddy-egress/internal/replaybody"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

const (
	// maxUnauthorized and discardTimeout bound what is read of a 401 that is not
	// passed on, for the sake of its connection.
	maxUnauthorized = 64 << 10
	discardTimeout  = time.Second
)

// call is one request on its way to the API.
type call struct {
	*Transport
	req     *http.Request
	probe   bool    // an active health check, not a client's request
	report  *report // nil for a probe
	token   *tokensource.Token
	body    *replaybody.Body // nil: the request has none
	outcome outcome
	wait    time.Duration // how long it waited for a token
}

// do answers the request: as the API does, or as the gateway has to.
func (c *call) do() (*http.Response, error) {
	if !c.probe {
		c.report = reportOf(c.req)
	}

	// first, refuse what is not permitted, before a token is touched; health
	// probes are the operator's own requests, so only where they go is judged
	if !c.probe {
		if r := c.guard.check(c.req); r != nil {
			return c.refuse(r)
		}
	}
	if r := c.destination.check(c.req); r != nil {
		return c.refuse(r)
	}

	// leave an API alone that has asked for it
	if c.RespectRateLimit {
		if left := c.credential.metrics.limitedFor(); left > 0 {
			return c.refuse(rateLimitRefusal(left))
		}
	}

	// get a token: without one, nothing is sent
	if err := c.obtainToken(); err != nil {
		return c.withoutToken(err)
	}

	// send the request, and keep its body in case it has to be sent again
	c.keepBody()
	resp, err := c.send(c.body.First())
	if err == nil && c.rejected(resp) {
		resp, err = c.replay(resp)
	} else {
		c.body.Release()
		if err == nil {
			c.credential.source.Accepted(c.token, false)
		}
	}

	// finally, note what became of it
	c.count()
	if err != nil {
		return nil, err
	}
	c.credential.metrics.answered(resp, c.api)
	return cleanAnswer(resp), nil
}

// obtainToken takes the live token, or waits for one.
func (c *call) obtainToken() (err error) {
	if c.probe { // probes begin while the config is still being loaded
		if err := c.app.waitUntilStarted(c.req.Context()); err != nil {
			return err
		}
	}
	if c.token = c.credential.source.Live(); c.token != nil {
		return nil
	}
	start := time.Now()
	c.token, err = c.credential.source.Token(c.req.Context())
	c.wait = time.Since(start)
	return err
}

// withoutToken answers a request that no token can be had for.
func (c *call) withoutToken(err error) (*http.Response, error) {
	var unavailable *tokensource.Error
	if errors.As(err, &unavailable) && !c.probe {
		return c.refuse(tokenRefusal(unavailable))
	}
	// the client has left, or a probe has failed
	closeBody(c.req)
	c.outcome = outcomeClientGone
	c.count()
	return nil, err
}

// keepBody prepares the request's body for being sent a second time.
func (c *call) keepBody() {
	if c.req.Body == nil || c.req.Body == http.NoBody {
		return
	}
	headers, trailer := &c.Transport.headers, c.req.Trailer // not c, so that it stays on the stack
	c.body = replaybody.New(c.req.Body, c.req.ContentLength, c.replayBuffer(), c.app.memory, func() {
		headers.strip(trailer) // the end of the body has filled them in
	})
}

// send sends the request with the token and body, which may be nil.
func (c *call) send(body io.ReadCloser) (*http.Response, error) {
	done := c.credential.source.InUse(c.token)
	defer done()
	return c.upstream.RoundTrip(c.outgoing(body))
}

// outgoing returns the request as it is sent: a copy with headers and a URL of
// its own. What others did to the headers is over by now, so nothing can bring
// back what must not reach the API.
func (c *call) outgoing(body io.ReadCloser) *http.Request {
	out := new(struct {
		request http.Request
		url     url.URL
	})
	out.request = *c.req
	out.url = *c.req.URL
	r := &out.request
	r.URL = &out.url
	r.Header = c.headers.outgoing(c.req.Header, c.token.Authorization())
	c.headers.strip(r.Trailer)
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

// rejected reports whether the API has rejected the token.
func (c *call) rejected(resp *http.Response) bool {
	return resp.StatusCode == http.StatusUnauthorized && !insufficientScope(resp)
}

// replay answers a request whose token was rejected: with what the API says to a
// second one with a fresh token, or, where there cannot be one, with that 401.
func (c *call) replay(unauthorized *http.Response) (*http.Response, error) {
	result, second := c.prepareReplay()
	if result != "" {
		c.body.Release()
		c.credential.metrics.unauthorized(result)
		return unauthorized, nil
	}
	go discard(unauthorized.Body)

	c.outcome = outcomeReplayed
	resp, err := c.send(second)
	if err != nil {
		return nil, err
	}
	result = unauthorizedReplayed401
	switch {
	case resp.StatusCode != http.StatusUnauthorized:
		result = unauthorizedReplayedOK
		c.credential.source.Accepted(c.token, true)
	case c.rejected(resp):
		c.credential.source.Rejected(c.token, true)
	}
	c.credential.metrics.unauthorized(result)
	return resp, nil
}

// prepareReplay gets a fresh token and the body of the second request. Where
// that is not possible, result says why.
func (c *call) prepareReplay() (result string, second io.ReadCloser) {
	fresh := c.credential.source.Rejected(c.token, false)
	if fresh == nil {
		return unauthorizedHeldBack, nil
	}
	if fresh.First {
		go c.app.emit(eventTokenRejected, c.credential.source, nil) // not at the cost of the request
	}
	if !c.body.Replayable() {
		return unauthorizedNotReplayable, nil
	}
	start := time.Now()
	token, err := fresh.Token(c.req.Context())
	c.wait += time.Since(start)
	if err != nil {
		return unauthorizedNotReplayable, nil
	}
	second, ok := c.body.Again(c.req.Context())
	if !ok {
		return unauthorizedNotReplayable, nil
	}
	c.token = token
	return "", second
}

// refuse answers the request as the gateway itself.
func (c *call) refuse(r *refusal) (*http.Response, error) {
	closeBody(c.req)
	c.outcome = r.outcome
	c.count()
	if r.logged() {
		c.logRefusal(r)
	}
	return r.answer(c.req, c.api.Error), nil
}

// logRefusal logs one refusal of a kind a second, with the number of those that
// were left out before it: whoever is refused can send as many as they like.
func (c *call) logRefusal(r *refusal) {
	leftOut, ok := c.credential.metrics.refusals[r.outcome].next(time.Now())
	if !ok {
		return
	}
	if e := c.logger.Check(zap.WarnLevel, "refused a request"); e != nil {
		key := r.key
		if key == "" {
			key = r.outcome.String()
		}
		fields := []zap.Field{
			zap.String("credential", c.credential.name()), zap.String("outcome", key),
			zap.String("reason", r.message+r.detail), zap.String("remote_addr", c.req.RemoteAddr),
		}
		if leftOut > 0 {
			fields = append(fields, zap.Int64("left_out", leftOut))
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
	*c.report = report{c.credential.name(), c.outcome, c.wait}
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

// discard reads what is left of a 401 that nobody will see, so that its
// connection can be used again; not for long, and not much of it.
func discard(body io.ReadCloser) {
	timer := time.AfterFunc(discardTimeout, func() { _ = body.Close() })
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, body, maxUnauthorized)
	_ = body.Close()
}
