package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// A credential may leave its scopes to its routes and their grants: each gets a
// token of its own scopes, and no other is asked for.
func TestCredentialWithoutScopes(t *testing.T) {
	vouchers, api := egresstest.NewSandbox(t, "voucherify")
	credential := func(name string) string {
		return fmt.Sprintf("credential %s voucherify %s {\napp_id id\napp_token {env.EGRESS_TEST_SECRET}\n}\n", name, api.URL)
	}
	callers := egresstest.Caller(t, "shop") + egresstest.Caller(t, "agent")
	g := egresstest.StartGateway(t,
		egresstest.Site("/a", "uri strip_prefix /a\negress promo {\nscopes vouchers\n}")+
			egresstest.Site("/b", `uri strip_prefix /b
egress promo {
	grant shop {
		scopes campaigns
	}
	grant agent {
		scopes vouchers
	}
	health_uri /v1/campaigns
	health_interval 20ms
}`),
		egresstest.WithCallers("egress {\n"+credential("promo")+credential("unused")+callers+"}"))
	if resp, body := g.Get("/a/v1/vouchers"); resp.StatusCode != http.StatusOK {
		t.Errorf("answered %d %s", resp.StatusCode, body)
	}
	egresstest.Eventually(t, "probes, with the token of the first grant", func() bool { return vouchers.Stats().APIRequests > 3 })
	for path, caller := range map[string]string{"/b/v1/campaigns": "shop", "/b/v1/vouchers": "agent"} {
		req := g.Request(http.MethodGet, path, nil)
		req.Header.Set("Authorization", "Bearer "+egresstest.Key(caller))
		resp, body := g.Do(req)
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: answered %d %s", caller, resp.StatusCode, body)
		}
	}
	if got := vouchers.Stats().TokenRequests; got != 2 {
		t.Errorf("%d token requests, want one for each set of scopes", got)
	}
}

// A scope that the API does not document, and operations that scopes do not reach,
// are warned of wherever scopes are named: once, with the credential's name.
func TestScopesAreWarnedOf(t *testing.T) {
	config := writeConfig(t, "Caddyfile", `{
	egress {
		credential promo voucherify {
			app_id id
			app_token {env.EGRESS_TEST_SECRET}
			scopes voucher
		}
		credential other voucherify {
			app_id other
			app_token {env.EGRESS_TEST_SECRET}
		}
		credential unused voucherify {
			app_id unused
			app_token {env.EGRESS_TEST_SECRET}
			scopes zzzzzzzz
		}
		caller shop {
			user shop
		}
		allow GET /v1/campaigns/* /v1/orders
	}
}
:8080, :8081 {
	egress /a promo
	egress /b promo
	egress /c other {
		scopes campaign
		allow /v1/campaigns/*
	}
	egress /d other {
		scopes campaigns
		grant shop {
			scopes campaignx
			allow /v1/campaigns/x
		}
	}
	egress /e voucherify {
		app_id inline
		app_token {env.EGRESS_TEST_SECRET}
		scopes campaignxgs
		allow /v1/*
	}
	egress /f other {
		scopes vouchers
	}
	egress /g other {
		scopes orders
	}
}
`)
	got := runCaddy(t, "validate", "--config", config, "--adapter", "caddyfile")
	if got.status != 0 {
		t.Fatalf("status %d\n%s", got.status, got.stderr)
	}
	var unknown, unreached []string
	for line := range strings.Lines(got.stderr) {
		var entry struct {
			Level, Msg, Credential, Operation, Logger string
			Scopes                                    []string
		}
		if json.Unmarshal([]byte(line), &entry) != nil || entry.Level != "warn" {
			continue
		}
		message, _, _ := strings.Cut(entry.Msg, ";")
		switch text := fmt.Sprintf("%s %s %q %s", entry.Credential, message, entry.Scopes, entry.Operation); {
		case strings.Contains(entry.Msg, "does not document the scope"):
			unknown = append(unknown, tidy(strings.Replace(text, "voucherify does not document the scope", "", 1)))
		case strings.Contains(entry.Msg, "reach"):
			unreached = append(unreached, tidy(text))
		}
	}
	for i, line := range unknown {
		if strings.HasPrefix(line, "voucherify-") {
			unknown[i] = "<inline>" + line[len("voucherify-00000000"):]
		}
	}
	slices.Sort(unknown)
	slices.Sort(unreached)
	egresstest.CheckLines(t, "warnings of unknown scopes", unknown, []string{
		`<inline> "campaignxgs" ["campaignxgs"]`,
		`other+campaign "campaign" ["campaign"]`,
		`other+campaignx "campaignx" ["campaignx"]`,
		`promo "voucher" ["voucher"]`,
		`unused "zzzzzzzz" ["zzzzzzzz"]`,
	})
	egresstest.CheckLines(t, "warnings of operations", unreached, []string{
		`other a grant allows an operation that its scopes do not reach ["campaignx"] /v1/campaigns/x`,
		`other+campaign a route allows an operation that its scopes do not reach ["campaign"] /v1/campaigns/*`,
		`other+vouchers the scopes of a route reach no operation that it permits ["vouchers"]`,
		`promo the scopes of a route reach no operation that it permits ["voucher"]`,
	})
}

// A token without scopes is warned of where it has no rights and is lent to somebody.
func TestTokenWithoutRights(t *testing.T) {
	t.Setenv("EGRESS_TEST_SECRET", egresstest.Secret)
	credentials := ""
	for _, name := range []string{"unused", "bare", "twice", "half", "granted", "routed"} {
		credentials += "credential " + name + " understory {\n client_id " + name + "\n client_secret {env.EGRESS_TEST_SECRET}\n}\n"
	}
	config := writeConfig(t, "Caddyfile", `{
	egress {
		`+credentials+`
		credential own understory {
			client_id own
			client_secret {env.EGRESS_TEST_SECRET}
			scopes openid
		}
		caller shop {
			user shop
		}
		caller agent {
			user agent
		}
	}
}
:8080, :8081 {
	egress /a bare
	egress /b twice
	egress /c twice
	egress /d half {
		grant shop {
			scopes event.read
		}
		grant agent
	}
	egress /e granted {
		grant shop agent {
			scopes event.read
		}
	}
	egress /f routed {
		scopes event.read
		grant shop
	}
	egress /g own
	egress /h understory {
		client_id inline
		client_secret {env.EGRESS_TEST_SECRET}
	}
	egress /i oauth2 https://api.example.com {
		token_url https://auth.example.com/token
		client_id inline
		client_secret {env.EGRESS_TEST_SECRET}
	}
}
`)
	got := runCaddy(t, "validate", "--config", config, "--adapter", "caddyfile")
	if got.status != 0 {
		t.Fatalf("status %d\n%s", got.status, got.stderr)
	}
	var warned []string
	for line := range strings.Lines(got.stderr) {
		var entry struct{ Level, Msg, Credential string }
		if json.Unmarshal([]byte(line), &entry) != nil || !strings.Contains(entry.Msg, "a token without rights") {
			continue
		}
		name, _, _ := strings.Cut(entry.Credential, "-") // the rest of an inline one is a digest
		warned = append(warned, entry.Level+" "+name)
	}
	slices.Sort(warned)
	egresstest.CheckLines(t, "the credentials", warned, []string{"warn bare", "warn half", "warn twice", "warn understory"})
}
