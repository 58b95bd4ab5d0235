package e2e_test

import (
	"fmt"
	"net/http"
	"path/filepath"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// A header of token requests may say for whom a token is, also where the client
// authenticates by something that is not a lasting secret: another value of it is
// another credential, within a config and after a reload.
func TestHeadersTellClientsWithoutASecretApart(t *testing.T) {
	api, tokens := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	assertion := write(t, filepath.Join(t.TempDir(), "assertion"), "eyJhbGciOiJSUzI1NiJ9.e30.c2lnbmF0dXJl")
	route := func(tenant string) string {
		return fmt.Sprintf("egress oauth2 %s {\nallow_http\ntoken_url %s\nclient_id gateway\nauth_method client_assertion\nclient_assertion {file.%s}\nheader X-Tenant %s\n}",
			api.URL, tokens.URL, assertion, tenant)
	}
	g := egresstest.StartGateway(t, route("acme"))
	if resp, body := g.Get("/v1/x"); resp.StatusCode != http.StatusOK {
		t.Fatalf("answered %d %s", resp.StatusCode, body)
	}
	before := api.Last(t).Header.Get("Authorization")
	if err := g.Load(egresstest.Site("/a", route("acme")) + egresstest.Site("/b", route("globex"))); err == nil {
		t.Error("two clients share one token")
	}
	if err := g.Load(route("globex")); err != nil {
		t.Fatal(err)
	}
	egresstest.Eventually(t, "a token for the other tenant", func() bool {
		g.GetAfterReload("/v1/x")
		return api.Last(t).Header.Get("Authorization") != before
	})
}
