package e2e_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// routesWithScopes returns a route for each set of scopes.
func routesWithScopes(credential string, scopes ...string) string {
	var routes strings.Builder
	for i, s := range scopes {
		fmt.Fprintf(&routes, "egress /%s%d* %s {\n scopes %s\n}\n", credential, i, credential, s)
	}
	return routes.String()
}

// What has one cause is said once, and a secret that was refused is not tried again.
func TestCheckGroupsWhatHasOneCause(t *testing.T) {
	c := newChecked(t)
	credential := func(name, api, secret string) string {
		return fmt.Sprintf("credential %s voucherify %s {\n app_id id\n app_token %s\n scopes api\n}\n", name, api, secret)
	}
	config := writeConfig(t, "Caddyfile", "{\nadmin off\negress {\n"+
		credential("down", c.downURL, "{env.EGRESS_TEST_SECRET}")+
		credential("gone", c.voucherifyURL, "{env.EGRESS_TEST_NOT_SET}")+
		credential("good", c.voucherifyURL, "{env.EGRESS_TEST_SECRET}")+
		credential("other", c.downURL, "{env.EGRESS_TEST_WRONG_SECRET}")+
		credential("wrong", c.voucherifyURL, "{env.EGRESS_TEST_WRONG_SECRET}")+
		"}\n}\n:8080 {\n"+
		routesWithScopes("wrong", "api", "vouchers", "campaigns", "orders", "vouchers orders")+
		routesWithScopes("gone", "vouchers", "campaigns", `a'b`)+
		routesWithScopes("down", "vouchers")+
		routesWithScopes("good", "api", "vouchers")+
		fmt.Sprintf("egress /inline* voucherify %s {\n app_id id\n app_token {env.EGRESS_TEST_WRONG_SECRET}\n scopes orders\n}\n", c.voucherifyURL)+
		"}\n")
	got := runCaddy(t, "egress", "check", "--config", config)
	const want = `
CREDENTIAL PROVIDER ENDPOINT RESULT LIFETIME SCOPES GRANTED
down voucherify <down>/v1/oauth/token transient - -
gone voucherify - misconfigured - -
good voucherify <voucherify>/v1/oauth/token ok 15m0s api
other voucherify <down>/v1/oauth/token transient - -
wrong voucherify <voucherify>/v1/oauth/token refused - -
voucherify-<id> voucherify <voucherify>/v1/oauth/token not tried - -
wrong+vouchers voucherify <voucherify>/v1/oauth/token not tried - -
wrong+campaigns voucherify <voucherify>/v1/oauth/token not tried - -
wrong+orders voucherify <voucherify>/v1/oauth/token not tried - -
wrong+vouchers+orders voucherify <voucherify>/v1/oauth/token not tried - -
down+vouchers voucherify <down>/v1/oauth/token transient - -
gone+vouchers voucherify - misconfigured - -
gone+campaigns voucherify - misconfigured - -
gone-… voucherify - misconfigured - -
good+vouchers voucherify <voucherify>/v1/oauth/token ok 15m0s vouchers

down, other, down+vouchers: requesting a token: dial tcp down: connect: connection refused
→ check that this host reaches the token endpoint: DNS, firewall, proxy and certificates

gone, gone+vouchers, gone+campaigns, gone-…: loading module 'voucherify': provision egress.providers.voucherify: app_token: {env.EGRESS_TEST_NOT_SET} has no value; is it set, and may this process read it?
→ correct the config or what its placeholders stand for

wrong: token endpoint answered 401 Unauthorized (unauthorized)
not tried, since the secret is the same: voucherify-<id>, wrong+vouchers, wrong+campaigns, wrong+orders, wrong+vouchers+orders
→ check the client id and the secret, and whether the key was deleted or blocked`
	if text := c.normal(got.stdout); text != tidy(want) || got.status != 1 {
		t.Errorf("status %d, printed\n%s\nwant status 1 and\n%s\nstderr: %s", got.status, text, tidy(want), got.stderr)
	}
	if got := c.voucherify.Stats().TokenRequests; got != 3 {
		t.Errorf("%d token requests, want 2 with the good secret and 1 with the wrong one", got)
	}

	got = runCaddy(t, "egress", "check", "--config", config, "--json", "wrong", "down", "other")
	var results []struct {
		Credential, Result, Error, Advice string
		SameCauseAs                       string `json:"same_cause_as"`
	}
	if err := json.Unmarshal([]byte(got.stdout), &results); err != nil || got.status != 1 {
		t.Fatalf("status %d, error %v, printed %s", got.status, err, got.stdout)
	}
	var lines []string
	for _, r := range results {
		lines = append(lines, strings.Join([]string{r.Credential, r.Result, r.SameCauseAs}, " "))
		if r.Error == "" || r.Advice == "" {
			t.Errorf("got %+v", r)
		}
	}
	egresstest.CheckLines(t, "results", lines, []string{
		"down transient ", "other transient down", "wrong refused ", "wrong+vouchers not_tried wrong", "wrong+campaigns not_tried wrong",
		"wrong+orders not_tried wrong", "wrong+vouchers+orders not_tried wrong", "down+vouchers transient down",
	})
}

// Of a secret with several values each is tried once, and it is said which work.
func TestCheckOfASecretWithSeveralValues(t *testing.T) {
	const good, wrong, gone = "{env.EGRESS_TEST_SECRET}", "{env.EGRESS_TEST_WRONG_SECRET}", "{env.EGRESS_TEST_NOT_SET}"
	const refused = "is refused: token endpoint answered 401 Unauthorized (unauthorized)"
	const unread = "cannot be read: app_token: {env.EGRESS_TEST_NOT_SET} has no value; is it set, and may this process read it?"
	for name, test := range map[string]struct {
		secrets  string
		requests int64
		status   int
		says     []string // of the secrets
		json     string
	}{
		"one":                          {good, 3, 0, nil, ""},
		"the new one is not yet known": {wrong + " " + good, 4, 0, []string{"secret 1 of 2 " + refused, "secret 2 of 2 works"}, "1 refused, 2 ok"},
		"both are":                     {good + " " + good, 4, 0, []string{"secret 1 of 2 works", "secret 2 of 2 works"}, "1 ok, 2 ok"},
		"the old one is deleted":       {good + " " + wrong, 4, 0, []string{"secret 1 of 2 works", "secret 2 of 2 " + refused}, "1 ok, 2 refused"},
		"the new one is to come":       {gone + " " + good, 3, 0, []string{"secret 1 of 2 " + unread, "secret 2 of 2 works"}, "1 misconfigured, 2 ok"},
		"none is known":                {wrong + " " + gone, 1, 1, []string{"secret 1 of 2 " + refused, "secret 2 of 2 " + unread}, "1 refused, 2 misconfigured"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChecked(t)
			config := writeConfig(t, "Caddyfile", fmt.Sprintf("{\nadmin off\negress {\ncredential promo voucherify %s {\n app_id id\n app_token %s\n}\n}\n}\n:8080 {\n%s}\n",
				c.voucherifyURL, test.secrets, routesWithScopes("promo", "api", "vouchers", "no.such.scope")))
			got := runCaddy(t, "egress", "check", "--config", config, "promo")
			var said []string
			for line := range strings.Lines(got.stdout) {
				if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "promo: secret "); ok {
					said = append(said, "secret "+rest)
				}
			}
			egresstest.CheckLines(t, "what is said of secrets", said, test.says)
			if got := c.voucherify.Stats(); got.TokenRequests != test.requests || got.LiveTokens != 0 {
				t.Errorf("%d token requests, %d live tokens, want %d and none", got.TokenRequests, got.LiveTokens, test.requests)
			}
			// the scope that the server does not have is refused whatever the secret
			if tokens := strings.Count(got.stdout, " ok "); tokens != 2*(1-test.status) || got.status != 1 {
				t.Errorf("status %d, %d tokens\n%s", got.status, tokens, got.stdout)
			}
			egresstest.CheckSecrets(t, "the command", got.stdout+got.stderr)

			got = runCaddy(t, "egress", "check", "--config", config, "--json")
			var results []struct {
				Secrets []struct {
					Number        int
					Result, Error string
				}
			}
			if err := json.Unmarshal([]byte(got.stdout), &results); err != nil || len(results) != 3 {
				t.Fatalf("error %v, printed %s", err, got.stdout)
			}
			for _, r := range results {
				var numbers []string
				for _, s := range r.Secrets {
					numbers = append(numbers, fmt.Sprint(s.Number, " ", s.Result))
					if (s.Error == "") != (s.Result == "ok") {
						t.Errorf("got %+v", s)
					}
				}
				if text := strings.Join(numbers, ", "); text != test.json {
					t.Errorf("secrets %s, want %s", text, test.json)
				}
			}
		})
	}
}

// A credential that leaves its scopes to routes has no token of its own.
func TestCheckOfACredentialWithoutScopes(t *testing.T) {
	c := newChecked(t)
	credential := func(name string) string {
		return fmt.Sprintf("credential %s voucherify %s {\n app_id id\n app_token {env.EGRESS_TEST_SECRET}\n}\n", name, c.voucherifyURL)
	}
	config := writeConfig(t, "Caddyfile", "{\nadmin off\negress {\n"+credential("promo")+credential("unused")+"}\n}\n:8080 {\n"+routesWithScopes("promo", "vouchers")+"}\n")
	got := runCaddy(t, "egress", "check", "--config", config)
	const want = `
CREDENTIAL PROVIDER ENDPOINT RESULT LIFETIME SCOPES GRANTED
unused voucherify - not tried - -
promo+vouchers voucherify <voucherify>/v1/oauth/token ok 15m0s vouchers

unused: has no scopes, and no route uses it`
	if text := c.normal(got.stdout); text != tidy(want) || got.status != 0 {
		t.Errorf("status %d, printed\n%s\nwant\n%s\nstderr: %s", got.status, text, tidy(want), got.stderr)
	}

	// one that a route uses all the same does not load, and is said to be wrong
	file := writeConfig(t, "caddy.json", fmt.Sprintf(`{"apps":{
		"egress":{"credentials":{"promo":{"provider":{"name":"voucherify","api_url":%q,"app_id":"id","app_token":"{env.EGRESS_TEST_SECRET}"}}}},
		"http":{"servers":{"s":{"routes":[
			{"handle":[{"handler":"reverse_proxy","transport":{"protocol":"egress","credential":"promo"}}]},
			{"handle":[{"handler":"reverse_proxy","transport":{"protocol":"egress","credential":"promo","scopes":["vouchers"]}}]}]}}}}}`, c.voucherifyURL))
	got = runCaddy(t, "egress", "check", "--config", file)
	lines := strings.Split(c.normal(got.stdout), "\n")
	if got.status != 1 || len(lines) < 3 || !strings.HasPrefix(lines[1], "promo voucherify - misconfigured") || !strings.HasPrefix(lines[2], "promo+vouchers voucherify <voucherify>/v1/oauth/token ok") ||
		!slices.Contains(lines, "promo: scopes is required; api stands for the whole server side; neither the route nor credential promo has any") {
		t.Errorf("status %d, printed\n%s", got.status, got.stdout)
	}
}
