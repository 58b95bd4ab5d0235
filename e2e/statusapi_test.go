package e2e_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// apiStage is a gateway with a status page in front of an API that answers with a
// status, or not at all.
type apiStage struct {
	t        *testing.T
	g        *egresstest.Gateway
	admin    egresstest.Admin
	endpoint *egresstest.Tokens
	answer   atomic.Int64 // the API's status; 0: it ends the connection
}

func newAPIStage(t *testing.T, options ...string) *apiStage {
	t.Helper()
	s := &apiStage{t: t, endpoint: egresstest.NewTokens(t)}
	s.answer.Store(http.StatusOK)
	api := egresstest.NewRecorder(t)
	api.Handler = func(w http.ResponseWriter, _ *http.Request) {
		status := int(s.answer.Load())
		if status == 0 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(status)
	}
	admin, option := egresstest.NewAdmin(t)
	s.admin = admin
	s.g = egresstest.StartWatched(t, "egress_status /status\negress failing {\n"+strings.Join(options, "\n")+"\n}", egresstest.WithGlobal(option+statusOption(api.URL, s.endpoint.URL, "failing")))
	return s
}

// call sends n requests, which are answered with that status.
func (s *apiStage) call(n, want int) {
	s.t.Helper()
	for range n {
		if resp, body := s.g.Get("/v1/x"); resp.StatusCode != want {
			s.t.Errorf("answered %d %s, want %d", resp.StatusCode, body, want)
		}
	}
}

func (s *apiStage) isWell(when string) {
	s.t.Helper()
	got, page := statusAt(s.t, s.g, "/status")
	if got.Health != "ok" || len(got.Problems) != 0 || got.Credentials[0].Shown[0].Health != "ok" {
		s.t.Errorf("%s: %+v", when, got)
	}
	checkReads(s.t, page, "✓ All is well: 1 credential is in use.")
}

func (s *apiStage) fails(problem string, reads ...string) (got status) {
	s.t.Helper()
	got, page := statusAt(s.t, s.g, "/status")
	if got.Health != "failing" || len(got.Problems) != 1 || got.Credentials[0].Shown[0].Health != "failing" {
		s.t.Fatalf("%s: %+v", problem, got)
	}
	p := got.Problems[0]
	if p.Health != "failing" || p.Subject != "failing" || p.Problem != problem || p.Since.IsZero() || time.Since(p.Since) > time.Minute || p.Advice == "" {
		s.t.Errorf("%s: %+v", problem, p)
	}
	checkReads(s.t, page, append(reads, "✕ Requests fail: 1 thing needs attention.", "✕ failing: "+problem)...)
	return got
}

// Where tokens are fine and all requests fail, the page does not say that all is well.
func TestStatusPageWhereTheAPIFails(t *testing.T) {
	s := newAPIStage(t)
	s.call(1, 200)
	s.answer.Store(0)
	s.call(2, 502)
	s.isWell("after two failures, which may be chance")
	s.call(3, 502)
	s.fails("the API has not answered the last 5 requests", "Clients got 502, 503 or 504 api_unreachable, the last one 0s ago.", "✕ fresh")
	s.answer.Store(500)
	s.call(1, 500)
	s.isWell("after an answer of the API's own")

	s.answer.Store(401)
	s.call(2, 401)
	s.isWell("after two 401 answers")
	s.answer.Store(0)
	s.call(1, 502)
	s.answer.Store(401)
	s.call(1, 401) // a failure says nothing of the token
	s.fails("the API has rejected the last 3 requests", "Clients got its answer, such as 401, the last one 0s ago.", "✕ fresh")
	s.answer.Store(404)
	s.call(1, 404)
	s.isWell("after another answer")
}

// A token that the API rejects is of no use, though it has not expired.
func TestStatusPageWhereARejectedTokenCannotBeReplaced(t *testing.T) {
	s := newAPIStage(t)
	s.call(1, 200)
	s.endpoint.SetAnswer(egresstest.Say(http.StatusServiceUnavailable, ""))
	s.answer.Store(401)
	s.call(3, 401)
	egresstest.Eventually(t, "the time between two retries", func() bool {
		got, _ := statusAt(t, s.g, "/status")
		return got.Credentials[0].Shown[0].State == "stale"
	})
	got := s.fails("the API rejects the token, and no other can be had", "Clients get its answer, such as 401.", "token endpoint answered 503 Service Unavailable", "caddy egress refresh failing")
	if !strings.Contains(got.Problems[0].Effect, "The token expires in ") {
		t.Errorf("the effect is %q", got.Problems[0].Effect)
	}
	s.answer.Store(200) // it has not rejected the token for good
	s.call(1, 200)
	egresstest.Eventually(t, "the page between two retries", func() bool {
		got, _ := statusAt(t, s.g, "/status")
		return got.Credentials[0].Shown[0].State == "stale" && got.Health == "warning"
	})
}

// What the API has answered to a token says nothing of the next one.
func TestStatusPageForgetsWhatWasAnsweredToAnotherToken(t *testing.T) {
	s := newAPIStage(t)
	s.answer.Store(401)
	s.call(3, 401)
	s.fails("the API has rejected the last 3 requests")
	if resp, body := s.admin.Ask(t, http.MethodPost, "/egress/tokens/failing/refresh"); resp.StatusCode != http.StatusOK {
		t.Fatalf("the refresh: %d %s", resp.StatusCode, body)
	}
	s.isWell("with another token, which no request has carried")
}

// A request that reverse_proxy tries again is one request.
func TestStatusPageCountsRequestsAndNotTries(t *testing.T) {
	s := newAPIStage(t, "lb_retries 3")
	s.answer.Store(0)
	s.call(2, 502)
	s.isWell("after two requests, each of which was tried four times")
	s.call(1, 502)
	s.fails("the API has not answered the last 3 requests")
}
