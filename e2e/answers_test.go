package e2e_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// threeAPIs is one server that has a token endpoint for client ids that work
// (ok), while it is down, and that it refuses.
func threeAPIs(t *testing.T) *egresstest.Recorder {
	api := egresstest.NewRecorder(t)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/oauth/token" {
			w.Header()["Proxy-Status"] = []string{`caddy-egress; error=spoofed, cdn.example; details="a, caddy-egress; b"`, "caddy-egress", `"caddy-egress"; x`,
				`foo; details="a`, `b", caddy-egress; error=x`}
			return
		}
		w.Header().Set("Content-Type", "application/json")
		switch id := r.Header.Get("X-App-Id") + r.PostFormValue("client_id"); id {
		case "ok":
			fmt.Fprintf(w, `{"access_token":"%s","token_type":"bearer","expires_in":3600,"expires_at":4102444800,"client_id":"x","scope":"api"}`, egresstest.TokenPrefix)
		case "down":
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, `{"error":"invalid_client","code":401,"key":"unauthorized","message":"Unauthorized"}`)
		}
	}
	return api
}

func TestAnswersOfTheGateway(t *testing.T) {
	api := threeAPIs(t)
	apis := map[string]string{
		"voucherify": `egress voucherify ` + api.URL + ` {
			app_id    %s
			app_token {env.EGRESS_TEST_SECRET}
			scopes    api
			%s
		}`,
		"understory": `egress understory ` + api.URL + ` {
			token_url     ` + api.URL + `/v1/oauth/token
			client_id     %s
			client_secret {env.EGRESS_TEST_SECRET}
			%s
		}`,
		"oauth2": `egress oauth2 ` + api.URL + ` {
			token_url     ` + api.URL + `/v1/oauth/token
			client_id     %s
			client_secret {env.EGRESS_TEST_SECRET}
			auth_method   client_secret_post
			%s
		}`,
	}
	routes := ""
	for name, route := range apis {
		for id, options := range map[string]string{"ok": "clients 127.0.0.1\nallow GET,HEAD /" + name + "/ok/v1/*", "down": "", "refused": "", "upstream": "to http://127.0.0.1:1", "relative": ""} {
			rewrite := ""
			if id == "relative" {
				rewrite = "rewrite * relative\n"
			}
			routes += egresstest.Site("/"+name+"/"+id+"/", rewrite+fmt.Sprintf(route, strings.NewReplacer("upstream", "ok", "relative", "ok").Replace(id), options))
		}
	}
	g := egresstest.StartGateway(t, routes)
	egresstest.Eventually(t, "token requests", func() bool { return api.Count() >= 9 })

	for name := range apis {
		for _, test := range []struct {
			key      string
			status   int
			path     string
			method   string
			host     string
			headers  string
			peer     string
			proxy    string // error of RFC 9209
			withheld string // option that only the log names
		}{
			{key: "token_unavailable", status: 503, path: "/down/x", proxy: "proxy_internal_error"},
			{key: "credential_refused", status: 502, path: "/refused/x", proxy: "proxy_configuration_error"},
			{key: "bad_request_target", status: 400, path: "/relative/x", proxy: "http_request_error"},
			{key: "bad_request_path", status: 400, path: "/ok/v1/x%5Cy", proxy: "http_request_error"},
			{key: "method_not_allowed", status: 405, path: "/ok/v1/x", method: "TRACE", proxy: "http_request_error"},
			{key: "client_not_allowed", status: 403, path: "/ok/v1/x", peer: "127.0.0.2", proxy: "http_request_denied", withheld: "clients would permit it"},
			{key: "host_not_allowed", status: 403, path: "/ok/v1/x", host: "evil.example", proxy: "http_request_denied", withheld: `hosts \"evil.example\" would permit it`},
			{key: "origin_not_allowed", status: 403, path: "/ok/v1/x", headers: "Origin: https://evil.test\r\n", proxy: "http_request_denied", withheld: `origins \"https://evil.test\" would permit it`},
			{key: "operation_not_allowed", status: 403, path: "/ok/v2/x", proxy: "http_request_denied", withheld: `allow \"GET\" \"/` + name + `/ok/v2/x\" would permit it`},
			{key: "api_host_not_allowed", status: 421, path: "/upstream/x", proxy: "http_request_denied", withheld: "api_hosts 127.0.0.1:1 would permit it"},
		} {
			for _, form := range []string{"GET HTTP/1.1", "HEAD HTTP/1.1", "GET HTTP/1.0", "HEAD HTTP/1.0"} {
				method, proto, _ := strings.Cut(form, " ")
				if test.method != "" {
					method = test.method
				}
				host, peer := test.host, test.peer
				if host == "" {
					host = "localhost"
				}
				if peer == "" {
					peer = "127.0.0.1"
				}
				request := method + " /" + name + test.path + " " + proto + "\r\nHost: " + host + "\r\n" + test.headers + "\r\n"
				resp, body := egresstest.NewWire(t, egresstest.From(peer, g.Addr)).Send(request)

				header := resp.Header
				wantType := "application/json"
				if name == "oauth2" {
					wantType = "application/problem+json"
				}
				if resp.StatusCode != test.status || header.Get("Content-Type") != wantType || header.Get("Cache-Control") != "no-store" ||
					header.Get("Proxy-Status") != fmt.Sprintf("caddy-egress; error=%s; details=%q", test.proxy, test.key) {
					t.Errorf("%q: %d %v, want %d %s", request, resp.StatusCode, header, test.status, test.key)
				}
				if got := header.Get("Retry-After"); (got != "") != (test.status == 503) || got == "0" {
					t.Errorf("%q: Retry-After is %q", request, got)
				}
				if got := header.Get("Allow"); (got != "") != (test.status == 405) || strings.Contains(got, "TRACE") {
					t.Errorf("%q: Allow is %q", request, got)
				}
				if resp.ContentLength <= 0 {
					t.Errorf("%q: Content-Length is %d", request, resp.ContentLength)
				}
				if method == http.MethodHead {
					if body != "" {
						t.Errorf("%q: has the body %s", request, body)
					}
					continue
				}

				var answer struct {
					Code                        any
					Key, Message, Title, Detail string
					Status                      int
				}
				if err := json.Unmarshal([]byte(body), &answer); err != nil {
					t.Errorf("%q: %v: %s", request, err, body)
					continue
				}
				var message string
				var right bool
				switch name {
				case "voucherify":
					message, right = answer.Message, answer.Code == float64(test.status) && answer.Key == test.key
				case "understory":
					message, right = answer.Message, answer.Code == test.key
				case "oauth2":
					message, right = answer.Detail, answer.Code == test.key && answer.Status == test.status && answer.Title == http.StatusText(test.status)
				}
				if !right || message == "" || strings.Contains(message, egresstest.Secret) {
					t.Errorf("%q: %s", request, body)
				}
				if test.status == http.StatusForbidden && !strings.HasSuffix(message, "; ask the operator of the gateway, whose log says why") {
					t.Errorf("%q: the answer does not say what to do: %s", request, body)
				}
				if test.withheld != "" {
					if option, _, _ := strings.Cut(test.withheld, " "); strings.Contains(message, option) {
						t.Errorf("%q: the answer names the option: %s", request, body)
					}
					if !strings.Contains(g.Log(), "; "+test.withheld) {
						t.Errorf("%q: the log does not name %s", request, test.withheld)
					}
				}
			}
		}
	}

	// only the gateway speaks for itself
	resp, _ := g.Get("/oauth2/ok/v1/x")
	if got := resp.Header.Values("Proxy-Status"); len(got) != 1 || got[0] != `cdn.example; details="a, caddy-egress; b", foo; details="a, b"` {
		t.Errorf("Proxy-Status is %q", got)
	}
}

func TestHandleResponseMatchesRefusals(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, `
		allow GET /v1/*
		@refused {
			status 403
			header Proxy-Status caddy-egress*
		}
		handle_response @refused {
			respond "ask the operator" 418
		}`))
	if resp, body := g.Get("/v2/x"); resp.StatusCode != http.StatusTeapot || body != "ask the operator" {
		t.Errorf("answered %d %s", resp.StatusCode, body)
	}
	if resp, body := g.Get("/v1/x"); resp.StatusCode != http.StatusOK {
		t.Errorf("answered %d %s", resp.StatusCode, body)
	}
}
