package e2e_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// scopedTokens is a token endpoint whose tokens say which scopes they are of.
func scopedTokens(t *testing.T) *egresstest.Tokens {
	t.Helper()
	endpoint := egresstest.NewTokens(t)
	endpoint.Answer = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":%q,"token_type":"bearer","expires_in":3600}`, scopedToken(strings.Fields(r.FormValue("scope"))...))
	}
	return endpoint
}

// scopedToken returns the token of a scopedTokens for scopes, in any order.
func scopedToken(scopes ...string) string {
	return egresstest.TokenPrefix + strings.Join(slices.Sorted(slices.Values(scopes)), "+")
}

// send sends a GET with pairs of header names and values.
func (s *grantStage) send(path string, header ...string) (*http.Response, string) {
	s.t.Helper()
	return ask(s.g, http.MethodGet, path, header...)
}

// grantStage is an API behind a gateway with the callers shop, nightly and agent,
// who send their keys.
type grantStage struct {
	t        *testing.T
	api      *egresstest.Recorder
	endpoint *egresstest.Tokens
	g        *egresstest.Gateway
}

// newGrantStage starts a gateway with routes to the credential "plain".
func newGrantStage(t *testing.T, routes string, options ...string) *grantStage {
	t.Helper()
	s := &grantStage{t: t, api: egresstest.NewRecorder(t), endpoint: scopedTokens(t)}
	callers := egresstest.Caller(t, "shop") + egresstest.Caller(t, "nightly") + egresstest.Caller(t, "agent")
	s.g = egresstest.StartGateway(t, routes, egresstest.WithCallers("egress {\n"+plainCredential(s.api.URL, s.endpoint.URL)+callers+strings.Join(options, "\n")+"\n}"))
	return s
}

// as sends a GET with the key of a caller.
func (s *grantStage) as(caller, path string) (*http.Response, string) {
	s.t.Helper()
	return s.send(path, "Authorization", "Bearer "+egresstest.Key(caller))
}

// A browser asks without a key what a page may send; the request itself needs one.
func TestPreflightsWithGrants(t *testing.T) {
	s := newGrantStage(t, "egress plain {\n origins https://app.example.com\n grant shop {\n allow GET /v1/vouchers\n}\n"+showCaller+"}")
	preflight := s.g.Request(http.MethodOptions, "/v1/vouchers", nil)
	preflight.Header.Set("Origin", "https://app.example.com")
	preflight.Header.Set("Access-Control-Request-Method", "GET")
	preflight.Header.Set("Access-Control-Request-Headers", "authorization")
	resp, body := s.g.Do(preflight)
	if resp.StatusCode != http.StatusNoContent || !strings.EqualFold(resp.Header.Get("Access-Control-Allow-Headers"), "authorization") || resp.Header.Get("X-Caller") != "" {
		t.Errorf("the preflight is answered %d %s %v", resp.StatusCode, body, resp.Header)
	}
	resp, body = s.send("/v1/vouchers", "Origin", "https://app.example.com")
	egresstest.CheckRefused(t, resp, body, http.StatusUnauthorized, "caller_unknown")
	if resp.Header.Get("Access-Control-Allow-Origin") != "https://app.example.com" {
		t.Error("the page cannot read why it is refused")
	}
	if s.api.Count() != 0 {
		t.Error("a request without a key has reached the API")
	}
	if resp, body := s.send("/v1/vouchers", "Origin", "https://app.example.com", "Authorization", "Bearer "+egresstest.Key("shop")); resp.StatusCode != http.StatusOK || resp.Header.Get("X-Caller") != "shop" {
		t.Errorf("with a key: %d %s", resp.StatusCode, body)
	}
	// it is none without an origin: an operation like any other
	resp, body = ask(s.g, http.MethodOptions, "/v1/vouchers", "Access-Control-Request-Method", "GET")
	egresstest.CheckRefused(t, resp, body, http.StatusUnauthorized, "caller_unknown")
	// nor one of another page
	resp, body = ask(s.g, http.MethodOptions, "/v1/vouchers", "Origin", "https://evil.example", "Access-Control-Request-Method", "GET", "Authorization", "Bearer "+egresstest.Key("shop"))
	egresstest.CheckRefused(t, resp, body, http.StatusForbidden, "origin_not_allowed")
}

// Health checks are the operator's own requests: nobody has to be granted them,
// and they have a token, whichever the route has.
func TestHealthChecksWithGrants(t *testing.T) {
	for name, c := range map[string]struct{ grants, token string }{
		"the route's token": {"grant shop", scopedToken()},
		"tokens of grants":  {"grant shop {\n scopes vouchers\n}\ngrant agent {\n scopes validations\n}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newGrantStage(t, "egress plain {\n"+c.grants+healthChecks+"}")
			probes := func() []egresstest.Received { return s.api.Under("/health") }
			egresstest.Eventually(t, "probes", func() bool { return len(probes()) > 3 })
			for _, probe := range probes() {
				if got := probe.Header.Get("Authorization"); !strings.HasPrefix(got, "Bearer "+egresstest.TokenPrefix) || c.token != "" && got != "Bearer "+c.token {
					t.Fatalf("a probe has Authorization %q", got)
				}
			}
			if resp, body := s.as("shop", "/v1/x"); resp.StatusCode != http.StatusOK {
				t.Errorf("answered %d %s", resp.StatusCode, body)
			}
			resp, body := s.g.Get("/health")
			egresstest.CheckRefused(t, resp, body, http.StatusUnauthorized, "caller_unknown")
		})
	}
}

// A loop is found before a request that the gateway itself has sent is taken for
// one of nobody.
func TestLoopOnARouteWithGrants(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	callers := egresstest.Caller(t, "shop")
	g := egresstest.StartGateway(t, "respond 404", egresstest.WithCallers(""))
	for _, options := range []string{"grant shop", "grant shop {\n scopes vouchers\n limit 3/h\n}", "clients 127.0.0.1\nhosts any\ngrant *"} {
		g.Global = "egress {\n" + plainCredential(g.URL, endpoint.URL) + callers + "}"
		if err := g.Load("log\negress plain {\n" + options + "\n}"); err != nil {
			t.Fatal(err)
		}
		g.AwaitReload()
		var resp *http.Response
		var body string
		egresstest.Eventually(t, "a connection", func() bool {
			req := g.Request(http.MethodGet, "/v1/x", nil)
			req.Header.Set("Authorization", "Bearer "+egresstest.Key("shop"))
			var err error
			resp, body, err = g.Try(req)
			return err == nil
		})
		egresstest.CheckRefused(t, resp, body, http.StatusLoopDetected, "loop_detected")
	}
}

// No key reaches the API, however it came, and whatever is done to the headers.
// That nothing that has arrived holds a key is checked at the end of each test.
func TestKeysDoNotReachTheAPI(t *testing.T) {
	service := egresstest.NewService(t)
	callers := egresstest.Caller(t, "shop")
	options := []string{
		"", "grant shop", "header_up X-Api-Key of-the-gateway", "grant shop\nheader_up X-Api-Key of-the-gateway\nheader_up X-App-Token of-the-gateway",
		"header_up +X-Api-Key of-the-gateway", "header_up X-Api-Key (.*) $1", "header_up -X-Nothing",
	}
	routes := ""
	for i, option := range options {
		for _, credential := range []string{"plain", "promo", "tours"} {
			routes += egresstest.Site(fmt.Sprintf("/%s/%d/", credential, i), fmt.Sprintf("egress %s {\n%s\n}", credential, option))
		}
	}
	routes += "handle /kept/* {\n reverse_proxy " + service.URL + " {\n transport egress {\n credential promo\n keep_headers X-Api-Key X-App-Token X-Client-Token Host\n grant shop\n}\n}\n}\n"
	// Caddy shows at debug what it does not take for a credential
	g := egresstest.StartGateway(t, routes, egresstest.WithoutLog(), egresstest.WithCallers("egress {\n"+service.Credential("plain", "oauth2", "")+service.Credential("promo", "voucherify", "")+
		service.Credential("tours", "understory", "")+callers+"}"))
	key := egresstest.Key("shop")
	proof := "X-Api-Key: " + key + "\r\n"
	sent := 0
	paths := []string{"/kept/v1/x"}
	for i := range options {
		paths = append(paths, fmt.Sprintf("/plain/%d/v1/x", i), fmt.Sprintf("/promo/%d/v1/x", i), fmt.Sprintf("/tours/%d/v1/x", i))
	}
	for _, path := range paths {
		for _, headers := range []string{
			"Authorization: Bearer " + key + "\r\n", "Authorization: Basic " + basicPair("shop", key) + "\r\n", proof,
			proof + "X_Api_Key: " + key + "\r\nx.api.key: " + key + "\r\n", proof + "X-API-Key : " + "\r\n",
			proof + "Authorization: Bearer " + key + "\r\nAuthorization: Basic " + basicPair("", key) + "\r\nProxy-Authorization: Bearer " + key + "\r\n",
			proof + "X-Forwarded-Access-Token: " + key + "\r\nX_Auth_Request_Token: " + key + "\r\nCookie: key=" + key + "\r\n",
			proof + "Connection: X-Api-Key, keep-alive\r\n", proof + "Connection: Authorization\r\n",
			proof + "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\nAuthorization: Bearer " + key + "\r\n",
		} {
			resp, body := g.Wire().Send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n")
			if resp.StatusCode != http.StatusOK && !strings.Contains(headers, "X-API-Key :") {
				t.Errorf("%s with %q: %d %s", path, headers, resp.StatusCode, body)
			}
			if resp.StatusCode == http.StatusOK {
				sent++
			}
		}
		// in trailers, announced and not
		resp, body := g.Wire().Send("POST " + path + " HTTP/1.1\r\nHost: localhost\r\n" + proof + "Transfer-Encoding: chunked\r\nTrailer: X-Api-Key, Authorization, X_Api_Key\r\n\r\n" +
			"4\r\nbody\r\n0\r\nX-Api-Key: " + key + "\r\nAuthorization: Bearer " + key + "\r\nX_Api_Key: " + key + "\r\nX-App-Token: " + key + "\r\n\r\n")
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s with trailers: %d %s", path, resp.StatusCode, body)
		}
		sent++
	}
	if got := service.API.Count(); got != sent {
		t.Errorf("%d requests have arrived, want %d", got, sent)
	}
	for _, req := range service.API.All() {
		for name, values := range req.Header {
			if strings.EqualFold(strings.NewReplacer("_", "-", ".", "-").Replace(name), "X-Api-Key") && !slices.Equal(values, []string{"of-the-gateway"}) {
				t.Errorf("%s has arrived: %q", name, values)
			}
		}
	}
}
