package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// hops counts the requests in the access log of a gateway.
func hops(g *egresstest.Gateway, prefix string) int { return len(accesses(g, prefix)) }

// A gateway whose API's address leads back to itself must not call itself for
// ever: the request that comes back is recognized by its token.
func TestLoops(t *testing.T) {
	endpoint, other := egresstest.NewTokens(t), egresstest.NewTokens(t)
	other.Answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"%s-other","token_type":"bearer","expires_in":3600}`, egresstest.TokenPrefix)
	}
	api := egresstest.NewRecorder(t)
	g := egresstest.StartGateway(t, "respond 404")
	self := func(tokens *egresstest.Tokens, options string) string {
		return egresstest.Egress(g.URL, tokens.URL, options+"\ntransport http {\nresponse_header_timeout 10s\n}")
	}
	err := g.Load("log\n" +
		egresstest.Site("/own", self(endpoint, "")) +
		egresstest.Site("/hidden", self(endpoint, "header_up -Authorization")) +
		egresstest.Site("/a", "uri replace /a /b\n"+self(endpoint, "")) +
		egresstest.Site("/b", "uri replace /b /a\n"+self(other, "")) +
		egresstest.Site("/api", egresstest.Egress(api.URL, endpoint.URL, "")))
	if err != nil {
		t.Fatal(err)
	}
	g.GetAfterReload("/api/v1/warm-up")

	for _, path := range []string{"/own/v1/x", "/hidden/v1/x", "/a/v1/x"} {
		resp, body := g.Do(g.Request(http.MethodPost, path, strings.NewReader("body")))
		egresstest.CheckRefused(t, resp, body, http.StatusLoopDetected, "loop_detected")
		if got := resp.Header.Get("Proxy-Status"); got != `caddy-egress; error=proxy_loop_detected; details="loop_detected"` {
			t.Errorf("%s: Proxy-Status is %q", path, got)
		}
		egresstest.CheckLeaks(t, "the answer", fmt.Sprint(body, resp.Header))
		n := 0
		egresstest.Eventually(t, "the access log", func() bool { // of both
			if n = hops(g, path); path == "/a/v1/x" {
				n += hops(g, "/b/v1/x")
			}
			return n >= 2
		})
		if outcome := `"egress_outcome":"loop_detected"`; strings.Count(g.Log(), outcome) < 2 {
			t.Errorf("%s: the access log does not say %s of both", path, outcome)
		}
		if n != 2 {
			t.Errorf("%s: %d requests for one of a client, want 2", path, n)
		}
	}

	// a client may know the token; it has been here all the same
	for authorization, status := range map[string]int{
		"Bearer " + egresstest.Token(1): http.StatusLoopDetected,
		"bearer " + egresstest.Token(1): http.StatusLoopDetected,
		"Bearer other":                  http.StatusOK,
		"Basic " + egresstest.Token(1):  http.StatusOK,
	} {
		before := api.Count()
		resp, body := ask(g, http.MethodGet, "/api/v1/x", "Authorization", authorization)
		if resp.StatusCode != status || (api.Count() > before) != (status == http.StatusOK) {
			t.Errorf("%q: answered %d %s", authorization, resp.StatusCode, body)
		}
	}
	if logged := g.Log(); !strings.Contains(logged, "leads back to the gateway") {
		t.Error("the log does not say that there is a loop")
	}
}
