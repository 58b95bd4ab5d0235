package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestCredentialsComeAndGoByReload(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	route := func(path, secret string) string {
		return "handle " + path + " {\n" + strings.Replace(egresstest.Egress(api.URL, endpoint.URL, ""), "{env.EGRESS_TEST_SECRET}", secret, 1) + "\n}\n"
	}
	scoped := func(path string) string {
		return "handle " + path + " {\n" + egresstest.Egress(api.URL, endpoint.URL, "scopes read") + "\n}\n"
	}
	authorization := func(g *egresstest.Gateway, path string) string {
		if resp, body := g.GetAfterReload(path); resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s", path, resp.StatusCode, body)
		}
		return api.Last(t).Header.Get("Authorization")
	}
	mustLoad := func(g *egresstest.Gateway, routes string) {
		if err := g.Load(routes); err != nil {
			t.Fatal(err)
		}
	}
	secret := "{env.EGRESS_TEST_SECRET}"

	g := egresstest.StartGateway(t, route("/a", secret))
	first := authorization(g, "/a")

	mustLoad(g, route("/a", secret)+scoped("/b")) // added: the first keeps its token
	second := authorization(g, "/b")
	if got := authorization(g, "/a"); got != first || second == first {
		t.Errorf("after adding: tokens %q and %q, want %q and another", got, second, first)
	}

	t.Setenv("EGRESS_TEST_OTHER_SECRET", egresstest.Secret+"-changed")
	mustLoad(g, route("/a", "{env.EGRESS_TEST_OTHER_SECRET}")+scoped("/b")) // changed: replaced as soon as the other has brought one
	egresstest.Eventually(t, "the token of the changed secret", func() bool { return authorization(g, "/a") != first })
	first = authorization(g, "/a")

	// wrong: the token that is there stays, and nobody notices
	endpoint.SetAnswer(egresstest.Say(401, `{"error":"invalid_client"}`))
	before := endpoint.Count()
	mustLoad(g, route("/a", secret)+scoped("/b"))
	egresstest.Eventually(t, "the wrong secret to be refused", func() bool {
		return endpoint.Count() > before && strings.Contains(g.Log(), "could not refresh the token")
	})
	if got := authorization(g, "/a"); got != first {
		t.Errorf("with a wrong secret the token is %q, want %q", got, first)
	}
	// another credential never gets it
	mustLoad(g, "handle /a {\n"+strings.Replace(egresstest.Egress(api.URL, endpoint.URL, ""), "client_id ", "client_id other-", 1)+"\n}\n"+scoped("/b"))
	if resp, body := g.GetAfterReload("/a"); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("another client id is answered %d %s, want 502", resp.StatusCode, body)
	}
	endpoint.SetAnswer(nil)
	mustLoad(g, route("/a", secret)+scoped("/b"))
	if got := authorization(g, "/b"); got != second {
		t.Errorf("the credential that did not change has token %q, want %q", got, second)
	}

	mustLoad(g, scoped("/b")) // removed, and back: its state was freed
	mustLoad(g, route("/a", secret)+scoped("/b"))
	if got := authorization(g, "/a"); got == first {
		t.Error("the token has outlived its credential")
	}
}

func TestRequestsThatDrainAcrossAReload(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	arrived, answer := make(chan string, 1), make(chan struct{})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/slow" {
			arrived <- r.Header.Get("Authorization")
			select {
			case <-answer:
			case <-r.Context().Done():
				return
			}
		}
		// the token was revoked meanwhile: the old config has to get another
		if r.Header.Get("Authorization") == "Bearer "+egresstest.Token(1) {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, r.Header.Get("Authorization"))
	}))
	defer api.Close()
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""), egresstest.WithGlobal("grace_period 50ms"))

	result := make(chan string, 1)
	go func() {
		resp, err := egresstest.Client.Get(g.URL + "/v1/slow")
		if err != nil {
			result <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		result <- fmt.Sprintf("%d %s", resp.StatusCode, body)
	}()
	<-arrived
	// once this returns, the grace period is over and the old config cleaned up;
	// its request is answered 401 after that, and sent again
	if err := g.Load(`respond "no egress any more" 404`); err != nil {
		t.Fatal(err)
	}
	close(answer)
	go func() { <-arrived }()
	if got := <-result; got != "200 Bearer "+egresstest.Token(2) {
		t.Errorf("the request was answered %q, want 200 with the second token", got)
	}
}

// awaitRetired waits until nothing is done any more with tokens of credentials that
// have ended.
func awaitRetired(t *testing.T) {
	t.Helper()
	egresstest.Eventually(t, "the end of credentials that are gone", func() bool {
		return !strings.Contains(egresstest.Stacks(), "caddy-egress.pooledState.retire(")
	})
}

func TestRevocation(t *testing.T) {
	for name, removal := range map[string]func(g *egresstest.Gateway) error{
		"by a reload without the credential": func(g *egresstest.Gateway) error { return g.Load(`respond 404`) },
		"by a stop":                          func(*egresstest.Gateway) error { return caddy.Stop() },
	} {
		for _, revoke := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/revoke_on_stop=%v", name, revoke), func(t *testing.T) {
				api, server := egresstest.NewSandbox(t, "voucherify")
				option := ""
				if revoke {
					option = "revoke_on_stop"
				}
				routes := fmt.Sprintf("egress voucherify %s {\n app_id id\n app_token {env.EGRESS_TEST_SECRET}\n scopes api\n %s\n}", server.URL, option)
				g := egresstest.StartGateway(t, routes)
				g.Get("/v1/vouchers")
				if err := g.Load(routes); err != nil { // with the same credential: nothing is revoked
					t.Fatal(err)
				}
				g.AwaitReload()
				awaitRetired(t)
				g.Get("/v1/vouchers")
				if got := api.Stats(); got.LiveTokens != 1 || got.TokenRequests != 1 {
					t.Fatalf("%d live tokens of %d after a reload, want the first", got.LiveTokens, got.TokenRequests)
				}
				if err := removal(g); err != nil {
					t.Fatal(err)
				}
				if revoke {
					egresstest.Eventually(t, "the revocation", func() bool { return api.Stats().LiveTokens == 0 })
				} else if awaitRetired(t); api.Stats().LiveTokens != 1 {
					t.Errorf("%d live tokens, want the one that is left to expire", api.Stats().LiveTokens)
				}
			})
		}
	}
}
