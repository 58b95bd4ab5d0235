package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// An API may want the token in a header of its own, where a client sends nothing.
func TestTokenHeader(t *testing.T) {
	for options, want := range map[string]string{
		"token_header X-Api-Key":           "X-Api-Key: ",
		"token_header x-api-key Token":     "X-Api-Key: Token ",
		"token_header Authorization":       "Authorization: Bearer ",
		"token_header Authorization Token": "Authorization: Token ",
		`token_header Authorization ""`:    "Authorization: ",
	} {
		t.Run(options, func(t *testing.T) {
			api, tokens := egresstest.NewRecorder(t), egresstest.NewTokens(t)
			api.Handler = func(w http.ResponseWriter, r *http.Request) { // which a client must not see
				w.Header().Set("X-Echo", r.Header.Get("X-Api-Key")+r.Header.Get("Authorization"))
			}
			g := egresstest.StartWatched(t, egresstest.Egress(api.URL, tokens.URL, options))
			req := g.Request(http.MethodGet, "/v1/x", nil)
			req.Header = http.Header{"Authorization": {"Bearer client"}, "X-Api-Key": {"client"}, "X_api_key": {"client"}}
			resp, body := g.Do(req)
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("answered %d %s", resp.StatusCode, body)
			}
			if got := resp.Header.Get("X-Echo"); strings.Contains(got, egresstest.TokenPrefix) {
				t.Error("the answer shows the token")
			}
			got, name, value := api.Last(t).Header, "", ""
			for _, of := range []string{"Authorization", "X-Api-Key", "X_api_key"} {
				if values := got[of]; values != nil {
					name, value = name+of, value+strings.Join(values, ",")
				}
			}
			if name+": "+value != want+egresstest.Token(1) {
				t.Errorf("the API got %s: %s", name, strings.ReplaceAll(value, egresstest.Token(1), "the token"))
			}
		})
	}
}

// What the gateway has sent itself it knows by any header that it sends tokens in.
func TestLoopWithTokenHeader(t *testing.T) {
	for i, options := range []string{"token_header X-Loop-Key Token", "token_header X-Loop-Token", "token_header Authorization Token"} {
		t.Run(options, func(t *testing.T) {
			tokens, api := egresstest.NewTokens(t), egresstest.NewRecorder(t)
			tokens.SetAnswer(egresstest.Say(http.StatusOK, fmt.Sprintf(`{"access_token":"%sloop-%d","token_type":"bearer"}`, egresstest.TokenPrefix, i)))
			g := egresstest.StartGateway(t, "respond 404")
			if err := g.Load(egresstest.Site("/a", "uri replace /a /b\n"+egresstest.Egress(g.URL, tokens.URL, options)) +
				egresstest.Site("/b", egresstest.Egress(api.URL, tokens.URL, "scopes other"))); err != nil {
				t.Fatal(err)
			}
			resp, body := g.GetAfterReload("/a/v1/x")
			egresstest.CheckRefused(t, resp, body, http.StatusLoopDetected, "loop_detected")
			if n := api.Count(); n != 0 {
				t.Errorf("%d requests have come back and gone on", n)
			}
		})
	}
}

// Where an API says with another status that it does not accept the token, another
// is requested; only safe requests are sent a second time.
func TestRejectedStatus(t *testing.T) {
	api, tokens := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	valid := egresstest.Token(1)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer "+valid:
			w.WriteHeader(http.StatusForbidden)
		case strings.HasSuffix(r.URL.Path, "/forbidden"):
			w.WriteHeader(http.StatusForbidden)
		}
	}
	g := egresstest.StartWatched(t, egresstest.Egress(api.URL, tokens.URL, "rejected_status 403"))
	ask := func(method, path string, want, requests int) {
		t.Helper()
		before := api.Count()
		resp, body := g.Do(g.Request(method, path, strings.NewReader("")))
		if resp.StatusCode != want || api.Count()-before != requests {
			t.Errorf("%s %s: answered %d %s after %d requests, want %d after %d", method, path, resp.StatusCode, body, api.Count()-before, want, requests)
		}
	}
	ask(http.MethodGet, "/v1/x", http.StatusOK, 1)
	valid = egresstest.Token(2)
	ask(http.MethodGet, "/v1/x", http.StatusOK, 2)
	ask(http.MethodPost, "/v1/x", http.StatusOK, 1)
	valid = egresstest.Token(3)
	ask(http.MethodPost, "/v1/x", http.StatusForbidden, 1) // it may have had its effect
	egresstest.Eventually(t, "another token", func() bool { return tokens.Count() == 3 })
	egresstest.Eventually(t, "a request with it", func() bool {
		resp, _ := g.Do(g.Request(http.MethodPost, "/v1/x", nil))
		return resp.StatusCode == http.StatusOK
	})

	// what a fresh token does not help asks for no more of them
	for range 20 {
		g.Get("/v1/forbidden")
	}
	if n := tokens.Count(); n > 8 {
		t.Errorf("%d token requests", n)
	}
	ask(http.MethodGet, "/v1/x", http.StatusForbidden, 1) // the server has issued others since
}

// Where there is no secret that lasts, a token cannot be sealed, and so is not shared.
func TestTokenWithoutALastingSecretIsNotShared(t *testing.T) {
	api, tokens, dir := egresstest.NewRecorder(t), egresstest.NewTokens(t), t.TempDir()
	t.Setenv("EGRESS_TEST_ASSERTION", "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl")
	g := egresstest.StartWatched(t, "egress real", egresstest.WithGlobal(fmt.Sprintf(`egress {
		share_tokens {
			storage file_system %s
		}
		credential real oauth2 %s {
			token_url %s
			client_id gateway
			auth_method client_assertion
			client_assertion {env.EGRESS_TEST_ASSERTION}
		}
	}`, dir, api.URL, tokens.URL)))
	if resp, body := g.Get("/v1/x"); resp.StatusCode != http.StatusOK {
		t.Errorf("answered %d %s", resp.StatusCode, body)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the storage has %v, %v", entries, err)
	}
	if lines := g.LogLines("the token of a credential without a lasting secret cannot be shared; each instance has one of its own"); len(lines) != 1 {
		t.Errorf("%d lines say that the token is not shared, want 1", len(lines))
	}
}
