package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/sandbox"
)

// checked are the servers of a config that is checked, and the config.
type checked struct {
	voucherify, understory                *sandbox.Server
	voucherifyURL, understoryURL, downURL string
	all, good                             string // Caddyfiles
}

func newChecked(t *testing.T) *checked {
	t.Helper()
	c := new(checked)
	var voucherify, understory *httptest.Server
	c.voucherify, voucherify = egresstest.NewSandbox(t, "voucherify")
	c.understory, understory = egresstest.NewSandbox(t, "understory")
	c.voucherifyURL, c.understoryURL, c.downURL = voucherify.URL, understory.URL, "http://"+egresstest.FreeAddr(t)
	t.Setenv("EGRESS_TEST_WRONG_SECRET", egresstest.Secret+"-wrong")

	credential := func(name, provider, api, id, secret, secretEnv, scopes, options string) string {
		return fmt.Sprintf("credential %s %s %s {\n%s id\n%s {env.%s}\nscopes %s\n%s\n}\n", name, provider, api, id, secret, secretEnv, scopes, options)
	}
	vouchers := func(name, api, secretEnv string) string {
		return credential(name, "voucherify", api, "app_id", "app_token", secretEnv, "vouchers campaigns", "")
	}
	tours := func(name, scopes string) string {
		return credential(name, "understory", understory.URL, "client_id", "client_secret", "EGRESS_TEST_SECRET", scopes,
			"token_url "+understory.URL+"/oauth2/token")
	}
	good := vouchers("vouchers", voucherify.URL, "EGRESS_TEST_SECRET") + tours("tours", "booking.read")
	site := func(credentials, routes string) string {
		return "{\nadmin off\negress {\n" + credentials + "}\n}\n:8080 {\n" + routes + "}\n"
	}
	c.good = site(good, "egress vouchers\n")
	c.all = site(good+
		vouchers("bad-secret", voucherify.URL, "EGRESS_TEST_WRONG_SECRET")+
		tours("bad-scope", "no.such.scope")+
		vouchers("down", c.downURL, "EGRESS_TEST_SECRET")+
		vouchers("no-secret", voucherify.URL, "EGRESS_TEST_NOT_SET"),
		"egress /a* vouchers\negress /b* vouchers {\nscopes vouchers\n}\n"+
			fmt.Sprintf("egress /c* voucherify %s {\napp_id id\napp_token {env.EGRESS_TEST_SECRET}\nscopes api\n}\n", voucherify.URL))
	return c
}

// normal returns what a command printed with what varies replaced.
func (c *checked) normal(text string) string {
	for from, to := range map[string]string{c.voucherifyURL: "<voucherify>", c.understoryURL: "<understory>", c.downURL: "<down>"} {
		text = strings.ReplaceAll(text, from, to)
		text = strings.ReplaceAll(text, strings.TrimPrefix(from, "http://"), strings.Trim(to, "<>"))
	}
	return tidy(regexp.MustCompile(`voucherify-[0-9a-f]{8}`).ReplaceAllString(text, "voucherify-<id>"))
}

func TestCheckCommand(t *testing.T) {
	c := newChecked(t)
	config := writeConfig(t, "Caddyfile", c.all)

	t.Run("table", func(t *testing.T) {
		got := runCaddy(t, "egress", "check", "--config", config)
		const want = `
CREDENTIAL PROVIDER ENDPOINT RESULT LIFETIME SCOPES GRANTED
bad-scope understory <understory>/oauth2/token refused - -
bad-secret voucherify <voucherify>/v1/oauth/token refused - -
down voucherify <down>/v1/oauth/token transient - -
no-secret voucherify - misconfigured - -
tours understory <understory>/oauth2/token ok 59m59s booking.read
vouchers voucherify <voucherify>/v1/oauth/token ok 15m0s vouchers campaigns
vouchers+vouchers voucherify <voucherify>/v1/oauth/token ok 15m0s vouchers
voucherify-<id> voucherify <voucherify>/v1/oauth/token ok 15m0s api

bad-scope: token endpoint answered 400 Bad Request (invalid_scope); refused: no.such.scope
→ check the scopes: ask only for those that the key has, by their exact names

bad-secret: token endpoint answered 401 Unauthorized (unauthorized)
→ check the client id and the secret, and whether the key was deleted or blocked

down: requesting a token: dial tcp down: connect: connection refused
→ check that this host reaches the token endpoint: DNS, firewall, proxy and certificates

no-secret: loading module 'voucherify': provision egress.providers.voucherify: app_token: {env.EGRESS_TEST_NOT_SET} has no value; is it set, and may this process read it?
→ correct the config or what its placeholders stand for`
		if text := c.normal(got.stdout); text != tidy(want) || got.status != 1 {
			t.Errorf("status %d, printed\n%s\nwant status 1 and\n%s\nstderr: %s", got.status, text, tidy(want), got.stderr)
		}
		if n := strings.Count(got.stderr, "at least one credential gets no token"); n != 1 || strings.Contains(got.stderr, "Usage:") {
			t.Errorf("stderr is %s", got.stderr)
		}
		// Voucherify's are revoked, Understory's cannot be
		if got := c.voucherify.Stats(); got.LiveTokens != 0 || got.TokenRequests != 4 {
			t.Errorf("Voucherify: %+v, want 4 token requests and no live token", got)
		}
		if got := c.understory.Stats(); got.LiveTokens != 1 || got.TokenRequests != 2 || got.APIRequests != 0 {
			t.Errorf("Understory: %+v, want 2 token requests", got)
		}
	})
	t.Run("JSON", func(t *testing.T) {
		got := runCaddy(t, "egress", "check", "--config", config, "--json")
		var results []struct {
			Credential, Provider, Result, Error, Advice string
			Lifetime                                    float64  `json:"lifetime_seconds"`
			Scopes                                      []string `json:"scopes_granted"`
		}
		if err := json.Unmarshal([]byte(got.stdout), &results); err != nil || got.status != 1 || len(results) != 8 {
			t.Fatalf("status %d, error %v, printed %s", got.status, err, got.stdout)
		}
		for _, r := range results {
			ok := r.Result == "ok"
			if ok != (r.Error == "") || ok != (r.Advice == "") || ok != (r.Lifetime > 0) || ok != (len(r.Scopes) > 0) {
				t.Errorf("got %+v", r)
			}
		}
	})
	for name, test := range map[string]struct {
		config string
		names  []string
		status int
		prints string
		says   string // on stderr
	}{
		"all good":             {c.good, nil, 0, "vouchers voucherify <voucherify>/v1/oauth/token ok", ""},
		"one of them":          {c.all, []string{"tours"}, 0, "tours understory", ""},
		"two of them":          {c.all, []string{"tours", "down"}, 1, "down: requesting a token", "at least one"},
		"unknown name":         {c.all, []string{"tours", "nobody"}, 1, "", `the config has no credential "nobody"; there are bad-scope, bad-secret, down, no-secret, tours, vouchers`},
		"misspelt name":        {c.all, []string{"voucher"}, 1, "", "did you mean vouchers?"},
		"name without any":     {":8080 {\negress voucherify {\napp_id id\napp_token {env.EGRESS_TEST_SECRET}\nscopes api\n}\n}\n", []string{"nobody"}, 1, "", `the config has no credential "nobody", and none with a name`},
		"config without any":   {":8080 {\nrespond 204\n}\n", nil, 1, "", "the config has no credential"},
		"config that is wrong": {":8080 {\negress nobody\n}\n", nil, 1, "", `"nobody" is neither a provider`},
	} {
		t.Run(name, func(t *testing.T) {
			got := runCaddy(t, append([]string{"egress", "check", "--config", writeConfig(t, "Caddyfile", test.config)}, test.names...)...)
			text := c.normal(got.stdout)
			if got.status != test.status || !strings.Contains(text, test.prints) || (text == "") != (test.prints == "") || !strings.Contains(got.stderr, test.says) {
				t.Errorf("status %d, printed\n%s\nand\n%s\nwant status %d, %q and %q", got.status, text, got.stderr, test.status, test.prints, test.says)
			}
			for _, other := range []string{"tours", "vouchers", "down", "bad-"} {
				if len(test.names) > 0 && strings.Contains(got.stdout, other) && !strings.Contains(strings.Join(test.names, " "), other) {
					t.Errorf("%s was not asked for:\n%s", other, got.stdout)
				}
			}
		})
	}
	t.Run("credential without anything", func(t *testing.T) {
		file := writeConfig(t, "caddy.json", `{"apps":{"egress":{"credentials":{"null":null,"empty":{}}}}}`)
		got := runCaddy(t, "egress", "check", "--config", file)
		if got.status != 1 || strings.Count(got.stdout, "misconfigured") != 2 || !strings.Contains(got.stdout, "null: has no provider") || strings.Contains(got.stderr, "panic") {
			t.Errorf("status %d, printed\n%s\nand\n%s", got.status, got.stdout, got.stderr)
		}
	})
	t.Run("no config", func(t *testing.T) {
		t.Chdir(t.TempDir())
		if got := runCaddy(t, "egress", "check"); got.status != 1 || !strings.Contains(got.stderr, "no config file; name one with --config") {
			t.Errorf("status %d, printed\n%s", got.status, got.stderr)
		}
	})
}

func TestCheckReportsScopesThatAreNotGranted(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	endpoint.Answer = egresstest.Say(http.StatusOK, `{"access_token":"`+egresstest.TokenPrefix+`","token_type":"bearer","expires_in":60,"scope":"read"}`)
	config := writeConfig(t, "Caddyfile", ":8080 {\n"+egresstest.Egress("http://127.0.0.1:1", endpoint.URL, "scopes read write")+"\n}\n")
	got := runCaddy(t, "egress", "check", "--config", config)
	if got.status != 0 || !strings.Contains(got.stdout, "not granted: write\n") {
		t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
	}
}

// A token of Understory without scopes has no rights. Servers that do not say which
// scopes a token has may grant some.
func TestCheckNotesATokenWithoutScopes(t *testing.T) {
	_, understory := egresstest.NewSandbox(t, "understory")
	endpoint := egresstest.NewTokens(t)
	const note = "the token has no scopes, and the API may refuse all that it is sent for; ask for those that are needed, by scopes\n"
	credential := func(name, provider, url, scopes string) string {
		return fmt.Sprintf("credential %s %s http://127.0.0.1:1 {\n token_url %s\n client_id id\n client_secret {env.EGRESS_TEST_SECRET}\n%s\n}\n", name, provider, url, scopes)
	}
	config := writeConfig(t, "Caddyfile", "{\negress {\n"+
		credential("none", "understory", understory.URL+"/oauth2/token", "")+
		credential("some", "understory", understory.URL+"/oauth2/token", "scopes booking.read")+
		credential("unsaid", "oauth2", endpoint.URL, "")+"}\n}\n")
	got := runCaddy(t, "egress", "check", "--config", config)
	if got.status != 0 || !strings.HasSuffix(got.stdout, "\n\nnone: "+note) || strings.Count(got.stdout, note) != 1 {
		t.Errorf("status %d, printed\n%s\n%s\nwant last\nnone: %s", got.status, got.stdout, got.stderr, note)
	}
}

// A refused scope is named, though the token endpoint's words are not shown.
func TestCheckNamesRefusedScopes(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	endpoint.Answer = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if strings.Contains(r.FormValue("scope"), "write") {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"error":"invalid_scope","error_description":"words of the endpoint"}`)
			return
		}
		fmt.Fprint(w, `{"access_token":"`+egresstest.TokenPrefix+`","token_type":"bearer","expires_in":60}`)
	}
	credential := func(name, scopes string) string {
		return "credential " + name + strings.TrimPrefix(egresstest.Egress("http://127.0.0.1:1", endpoint.URL, "scopes "+scopes), "egress")
	}
	config := writeConfig(t, "Caddyfile", "{\negress {\n"+
		credential("mixed", "read stock.write list order.write")+"\n"+credential("alone", "write")+"\n"+credential("good", "read")+"\n}\n}\n")
	got := runCaddy(t, "egress", "check", "--config", config)
	for _, want := range []string{
		"mixed: token endpoint answered 400 Bad Request (invalid_scope); refused: stock.write order.write\n  → check the scopes",
		"alone: token endpoint answered 400 Bad Request (invalid_scope); refused: write\n",
	} {
		if got.status != 1 || !strings.Contains(got.stdout, want) || strings.Contains(got.stdout+got.stderr, "words") {
			t.Errorf("status %d, printed\n%s\n%s\nwant %s", got.status, got.stdout, got.stderr, want)
		}
	}
	if got, want := endpoint.Count(), 1+4+1+1; got != want {
		t.Errorf("%d token requests, want %d", got, want)
	}
	got = runCaddy(t, "egress", "check", "--json", "--config", config, "mixed")
	var results []struct {
		Refused []string `json:"scopes_refused"`
	}
	if err := json.Unmarshal([]byte(got.stdout), &results); err != nil || len(results) != 1 || strings.Join(results[0].Refused, " ") != "stock.write order.write" {
		t.Errorf("error %v, printed %s", err, got.stdout)
	}
}

// Where the server has had enough, no more scopes are tried, and more than are tried
// are not said to be all.
func TestCheckTriesFewScopes(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	var scopes []string
	for i := range 25 {
		scopes = append(scopes, fmt.Sprint("s", i))
	}
	config := writeConfig(t, "Caddyfile", ":8080 {\n"+egresstest.Egress("http://127.0.0.1:1", endpoint.URL, "scopes "+strings.Join(scopes, " "))+"\n}\n")
	for _, test := range []struct {
		limit int // of token requests, after which the server says 429
		says  string
		most  int
	}{
		{100, "(invalid_scope); refused: s3, of the first 20 of 25\n", 21},
		{8, "(invalid_scope); refused: s3, of the first 20 of 25\n", 9},
		{3, "(invalid_scope)\n", 4},
	} {
		before := endpoint.Count()
		endpoint.SetAnswer(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			switch scope := r.FormValue("scope") + " "; {
			case endpoint.Count()-before > test.limit:
				w.WriteHeader(http.StatusTooManyRequests)
			case strings.Contains(scope, "s3 "), strings.Contains(scope, "s24 "):
				w.WriteHeader(http.StatusBadRequest)
				fmt.Fprint(w, `{"error":"invalid_scope"}`)
			default:
				fmt.Fprint(w, `{"access_token":"`+egresstest.TokenPrefix+`","token_type":"bearer","expires_in":60}`)
			}
		})
		got := runCaddy(t, "egress", "check", "--config", config)
		if made := endpoint.Count() - before; got.status != 1 || !strings.Contains(got.stdout, test.says) || made != test.most {
			t.Errorf("status %d after %d token requests, printed\n%s\nwant %q and %d", got.status, made, got.stdout, test.says, test.most)
		}
	}
}

func TestCheckWithoutATenant(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	config := writeConfig(t, "Caddyfile", `{
	egress {
		credential one oauth2 http://127.0.0.1:1 {
			token_url `+endpoint.URL+`
			client_id {file./run/one/{tenant}/id}
			client_secret {file./run/one/{tenant}/secret}
		}
		credential two oauth2 http://127.0.0.1:1 {
			token_url `+endpoint.URL+`
			client_id {file./run/two/{tenant}/id}
			client_secret {file./run/two/{tenant}/secret}
		}
	}
}
`)
	got := runCaddy(t, "egress", "check", "--config", config)
	for _, name := range []string{"one", "two"} {
		want := name + ": each tenant has a credential of its own\n  → name a tenant with --tenant, as in --tenant acme\n"
		if got.status != 1 || !strings.Contains(got.stdout, want) || strings.Contains(got.stdout, "the secret is the same") {
			t.Errorf("status %d, printed\n%s\nwant\n%s", got.status, got.stdout, want)
		}
	}
}

func TestCheckSendsNoSecretWhereLoadingWouldNot(t *testing.T) {
	for name, options := range map[string]string{
		"token endpoint":      "token_url http://auth.invalid/token",
		"revocation endpoint": "token_url https://auth.invalid/token\n revocation_url http://auth.invalid/revoke",
	} {
		t.Run(name, func(t *testing.T) {
			config := writeConfig(t, "Caddyfile", ":8080 {\n egress oauth2 http://127.0.0.1:1 {\n client_id id\n client_secret {env.EGRESS_TEST_SECRET}\n"+options+"\n}\n}\n")
			got := runCaddy(t, "egress", "check", "--config", config)
			if got.status != 1 || !strings.Contains(got.stdout, "misconfigured") || !strings.Contains(got.stdout, "would send the secret unencrypted") {
				t.Errorf("status %d, printed\n%s\n%s", got.status, got.stdout, got.stderr)
			}
		})
	}
}
