package egress

import (
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/caddy-egress/caddy-egress/tokensource"
)

const (
	// maxUnauthorized and discardTimeout bound what is read of a 401 that is not
	// passed on, for the sake of its connection.
	maxUnauthorized = 64 << 10
	discardTimeout  = time.Second
)

// rejected reports whether the API has rejected the token.
func (c *call) rejected(resp *http.Response) bool {
	return c.rejects(resp.StatusCode) && !insufficientScope(resp)
}

// rejects reports whether the API rejects tokens with that status: with 401, or with
// one of its own.
func (c *call) rejects(status int) bool {
	return status == http.StatusUnauthorized || slices.Contains(c.api.RejectedStatus, status)
}

// safeMethods are those of requests that are sent a second time after a status of
// the API's own: it may mean something else, and the request have had its effect.
var safeMethods = []string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace}

// replay answers a request whose token was rejected: with what the API says to a
// second one with a fresh token, or, where there cannot be one, with that answer.
func (c *call) replay(unauthorized *http.Response) (*http.Response, error) {
	result, fresh, second := c.prepareReplay(unauthorized.StatusCode)
	if result != "" {
		c.body.Release()
		c.credential.metrics.unauthorized(result)
		return unauthorized, nil
	}
	if c.body != nil && unauthorized.ProtoMajor == 1 {
		// an API that says it early may close the connection: the second request
		// must not get that one
		_ = unauthorized.Body.Close()
	} else {
		go discard(unauthorized.Body)
	}

	c.outcome = outcomeReplayed
	resp, err := c.send(second)
	if err != nil {
		return nil, err
	}
	result = unauthorizedReplayed401
	if !c.rejects(resp.StatusCode) {
		result = unauthorizedReplayedOK
		fresh.Answered(c.token, resp.StatusCode)
	} else if c.rejected(resp) {
		fresh.Answered(c.token, http.StatusUnauthorized) // which it stands for
	}
	c.credential.metrics.unauthorized(result)
	return resp, nil
}

// sender is whom a 401 says something about.
func (c *call) sender() tokensource.Sender {
	client := "health check"
	if !c.probe {
		client = c.client()
	}
	return tokensource.Sender{Client: client, Method: c.req.Method, Path: c.req.URL.Path}
}

// prepareReplay gets a fresh token and the body of the second request, after an
// answer of that status. Where that is not possible, result says why.
func (c *call) prepareReplay(status int) (result string, fresh *tokensource.Fresh, second io.ReadCloser) {
	fresh = c.credential.source.Rejected(c.token, c.sender())
	if fresh == nil {
		return unauthorizedHeldBack, nil, nil
	}
	if fresh.First {
		c.app.emit(eventTokenRejected, c.credential, nil)
	}
	certain := status == http.StatusUnauthorized || slices.Contains(safeMethods, c.req.Method)
	if !certain || !c.replays(c.req.Method) || !c.body.Replayable() {
		return unauthorizedNotReplayable, nil, nil
	}
	start := time.Now()
	token, err := fresh.Token(c.req.Context())
	c.wait += time.Since(start)
	if err != nil {
		return unauthorizedNotReplayable, nil, nil
	}
	before := c.token
	if !c.carry(token) {
		return unauthorizedNotReplayable, nil, nil
	}
	second, ok := c.body.Again(c.req.Context())
	if !ok {
		c.token = before
		c.done()
		return unauthorizedNotReplayable, nil, nil
	}
	c.before = before
	return "", fresh, second
}

// discard reads what is left of a 401 that nobody will see, so that its
// connection can be used again; not for long, and not much of it.
func discard(body io.ReadCloser) {
	timer := time.AfterFunc(discardTimeout, func() { _ = body.Close() })
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, body, maxUnauthorized)
	_ = body.Close()
}
