package egress_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestMain(m *testing.M) { egresstest.Main(m) }

// The story of the gateway, one short chapter a test. What each of them leaves
// out is in package e2e.

// Applications send no credential. The gateway has one for each API.
func TestCallsBothAPIsWithNoCredentialInTheRequest(t *testing.T) {
	understory, understoryServer := egresstest.NewSandbox(t, "understory")
	voucherify, voucherifyServer := egresstest.NewSandbox(t, "voucherify")
	g := egresstest.StartGateway(t, fmt.Sprintf(`
	handle_path /understory/* {
		egress understory %[1]s {
			token_url     %[1]s/oauth2/token
			client_id     id
			client_secret {env.EGRESS_TEST_SECRET}
			scopes        openid booking.read
		}
	}
	handle_path /v1/* {
		rewrite * /v1{uri}
		egress voucherify %[2]s {
			app_id    id
			app_token {env.EGRESS_TEST_SECRET}
			scopes    api
		}
	}
	handle_path /v2/* {
		egress voucherify %[2]s {
			app_id     id
			app_token  {env.EGRESS_TEST_SECRET}
			scopes     vouchers.read
			oauth      v2
			project_id project
		}
	}`, understoryServer.URL, voucherifyServer.URL))

	for path, want := range map[string]string{
		"/understory/v1/me":       `"company_id"`,
		"/understory/v1/bookings": `"items"`,
		"/v1/vouchers":            `"object":"list"`,
		"/v2/v1/vouchers":         `"object":"list"`,
	} {
		resp, body := g.Get(path)
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("GET %s: %d %s", path, resp.StatusCode, body)
		}
	}
	if got := understory.Stats().TokenRequests; got != 1 {
		t.Errorf("%d token requests to Understory, want 1", got)
	}
	if got := voucherify.Stats().TokenRequests; got != 2 {
		t.Errorf("%d token requests to Voucherify, want one for each version", got)
	}
}

// All that come before the first token wait for the same one.
func TestFirstRequestsShareOneToken(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	endpoint.Latency = 300 * time.Millisecond
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			resp, body, err := g.Try(g.Request(http.MethodGet, "/v1/x", nil))
			if err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("answered %v %s, error %v", resp, body, err)
			}
		})
	}
	wg.Wait()
	for _, request := range api.All() {
		if got := request.Header["Authorization"]; len(got) != 1 || got[0] != "Bearer "+egresstest.Token(1) {
			t.Errorf("Authorization is %q, want the one token", got)
		}
	}
	if got := endpoint.Count(); got != 1 {
		t.Errorf("%d token requests, want 1", got)
	}
}

// A token that the API no longer accepts is replaced, and the request sent again
// with its whole body. The client does not notice.
func TestRevokedTokenIsReplacedAndTheRequestSentAgain(t *testing.T) {
	api, endpoint := egresstest.NewGuarded(t, (*httptest.Server).Start), egresstest.NewTokens(t)
	api.Accept(egresstest.Token(1))
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	g.Get("/v1/warm-up")

	api.Accept(egresstest.Token(2)) // the first is revoked
	body, hash := egresstest.Body(100_000)
	resp, got := g.Do(g.Request(http.MethodPost, "/v1/x", strings.NewReader(string(body))))
	if resp.StatusCode != http.StatusOK || got != hash {
		t.Errorf("answered %d %s, want 200 and the hash of the body", resp.StatusCode, got)
	}
	if api.Unauthorized.Load() != 1 || endpoint.Count() != 2 {
		t.Errorf("%d times 401 and %d token requests, want 1 and 2", api.Unauthorized.Load(), endpoint.Count())
	}
}

// Without a token no request goes out, and the answer says why.
func TestFailsClosedAndSaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		status int
	}{
		"token endpoint is down":  {egresstest.Say(http.StatusServiceUnavailable, ""), http.StatusServiceUnavailable},
		"credential is not right": {egresstest.Say(http.StatusUnauthorized, `{"error":"invalid_client"}`), http.StatusBadGateway},
	} {
		t.Run(name, func(t *testing.T) {
			api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
			endpoint.Answer = c.answer
			g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
			resp, body := g.Get("/v1/x")
			egresstest.CheckNoToken(t, resp, body, c.status)
			if api.Count() != 0 {
				t.Error("a request has gone out without a token")
			}
		})
	}
}

// What is not permitted is refused, whatever the credential could do.
func TestGuardsRefuse(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, "allow GET /v1/vouchers/*"))
	for request, key := range map[string]string{
		"DELETE /v1/vouchers/x HTTP/1.1\r\nHost: localhost":                          "operation_not_allowed",
		"GET /v1/campaigns HTTP/1.1\r\nHost: localhost":                              "operation_not_allowed",
		"GET /v1/vouchers/x HTTP/1.1\r\nHost: rebound.example.com":                   "host_not_allowed",
		"GET /v1/vouchers/x HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.test": "origin_not_allowed",
	} {
		resp, body := g.Wire().Send(request + "\r\n\r\n")
		egresstest.CheckRefused(t, resp, body, http.StatusForbidden, key)
	}
	if api.Count() != 0 {
		t.Error("a request that was refused has reached the API")
	}
	if resp, body := g.Get("/v1/vouchers/x"); resp.StatusCode != http.StatusOK {
		t.Errorf("what is permitted is answered %d %s", resp.StatusCode, body)
	}
}

// A reload keeps the token; one that fails changes nothing.
func TestReloadKeepsTheToken(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	route := egresstest.Egress(api.URL, endpoint.URL, "")
	g := egresstest.StartGateway(t, route)
	g.Get("/v1/x")
	if err := g.Load("handle /other {\nrespond 204\n}\n" + route); err != nil {
		t.Fatal(err)
	}
	if err := g.Load(strings.Replace(route, egresstest.SecretVariable, "EGRESS_TEST_NOT_SET", 1)); err == nil {
		t.Error("a config without a secret was loaded")
	}
	if resp, body := g.GetAfterReload("/v1/x"); resp.StatusCode != http.StatusOK {
		t.Errorf("answered %d %s after the reloads", resp.StatusCode, body)
	}
	if got := endpoint.Count(); got != 1 {
		t.Errorf("%d token requests, want the one before the reloads", got)
	}
}

// Neither secrets nor tokens are shown, whatever is logged.
func TestNoSecretAndNoTokenIsLogged(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	routes := egresstest.Egress(api.URL, endpoint.URL, "verbose_logs")
	g := egresstest.StartWatched(t, routes) // which looks at the log
	g.Get("/v1/x")
	if !strings.Contains(g.Log(), "upstream roundtrip") {
		t.Error("the log is not at debug, the test shows nothing")
	}
	egresstest.CheckLeaks(t, "the config", string(g.Adapt(routes)))
}
