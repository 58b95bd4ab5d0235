package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	egress "github.com/caddy-egress/caddy-egress"
	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// A config for the matrix of who may do what. No file that it names is there.
const accessGlobal = `{
	egress {
		credential promo voucherify {
			app_id {file./nowhere/id}
			app_token {file./nowhere/secret}
			scopes api
		}
		credential tours understory {
			client_id {file./nowhere/id}
			client_secret {file./nowhere/secret}
			scopes booking.read
		}
		caller web-shop {
			key {file./nowhere/web-shop} key-of-before-0123456789
			clients 10.20.4.0/24
		}
		caller nightly {
			client_cert nightly.jobs.internal
			user nightly
		}
		caller agent {
			key {file./nowhere/agent}
		}
		caller idle {
			clients unix
		}
		%s
	}
}
`

const accessSites = `
&(shared) {
	egress promo {
		grant agent
	}
}

http://promo.internal:8080, http://promo.lan:8080 {
	egress promo {
		clients 10.0.0.0/8
		allow /v1/*
		grant web-shop {
			scopes vouchers validations redemptions
			allow GET /v1/vouchers/*
			allow POST /v1/validations /v1/redemptions
			limit 20/s
		}
		grant agent nightly {
			scopes vouchers
			allow GET /v1/vouchers/*
			limit 5/m
			reserve 20%
		}
	}
}

:8081 {
	@odd {
		header X-Key value-of-a-header
		query token=value-of-a-parameter
		path /a /b
		not path /a/c
		expression "{query.x} == 'value-in-an-expression'"
	}
	handle @odd {
		egress promo {
			scopes vouchers
			grant nightly {
				limit 1/h
			}
			grant *
		}
	}
	handle /x/* {
		invoke shared
	}
	handle {
		egress tours {
			clients 192.168.0.0/16
			handle_response {
				egress voucherify {
					app_id id
					app_token {file./nowhere/secret}
					scopes vouchers
				}
			}
			@bad status 5xx 404
			handle_response @bad {
				egress tours
			}
		}
	}
	handle_errors {
		egress tours
	}
}
`

// runAccess returns what the command prints, without what Caddy logs.
func runAccess(t *testing.T, name, config string, args ...string) caddyResult {
	t.Helper()
	got := runCaddy(t, append([]string{"egress", "access", "--config", writeConfig(t, name, config)}, args...)...)
	if again := regexp.MustCompile(`key-of-before|value-`).FindString(got.stdout + got.stderr); again != "" {
		t.Errorf("a secret is shown: %s", again)
	}
	return got
}

func TestAccessCommand(t *testing.T) {
	config := fmt.Sprintf(accessGlobal, "allow GET /v1/*") + accessSites
	const odd = ":8081 path /a /b and expression (…) and header X-Key=… and not (path /a/c) and query token=…"
	want := `CALLER SITE ROUTE CREDENTIAL SCOPES OPERATIONS LIMITS PROOF CLIENTS
- (anybody) :8081 otherwise tours booking.read GET /v1/* - - 192.168.0.0/16
- (anybody) :8081 otherwise, after a response with status 5xx 404 tours booking.read GET /v1/* - - 127.0.0.0/8 ::1 unix
- (anybody) :8081 otherwise, after a response voucherify-… vouchers GET /v1/* - - 127.0.0.0/8 ::1 unix
- (anybody) :8081 on an error tours booking.read GET /v1/* - - 127.0.0.0/8 ::1 unix
agent promo.internal, promo.lan on :8080 * promo+vouchers vouchers GET /v1/vouchers/* within /v1/* 5/m, reserve 20% key 10.0.0.0/8
agent (*) ` + odd + ` promo+vouchers vouchers GET /v1/* - key any
agent :8081 path /x/*, named route shared promo api GET /v1/* - key any
idle (*) ` + odd + ` promo+vouchers vouchers GET /v1/* - clients unix
nightly promo.internal, promo.lan on :8080 * promo+vouchers vouchers GET /v1/vouchers/* within /v1/* 5/m, reserve 20% client_cert + user 10.0.0.0/8
nightly ` + odd + ` promo+vouchers vouchers GET /v1/* 1/h client_cert + user any
web-shop promo.internal, promo.lan on :8080 * promo+vouchers+validations+redemptions vouchers validations redemptions GET /v1/vouchers/*; POST /v1/validations /v1/redemptions within /v1/* 20/s key + clients 10.20.4.0/24 within 10.0.0.0/8
web-shop (*) ` + odd + ` promo+vouchers vouchers GET /v1/* - key + clients 10.20.4.0/24`

	first := runAccess(t, "Caddyfile", config)
	if text := tidy(first.stdout); first.status != 0 || text != want {
		egresstest.CheckLines(t, "the table", strings.Split(text, "\n"), strings.Split(want, "\n"))
		t.Errorf("status %d\n%s\n%s", first.status, text, first.stderr)
	}
	if !strings.Contains(first.stderr, "warning: the log default shows X-Api-Key, X-App-Token, X-Client-Token, in which callers may send keys") {
		t.Errorf("logs with keys are not warned about:\n%s", first.stderr)
	}
	if again := runAccess(t, "Caddyfile", config); again.stdout != first.stdout {
		t.Errorf("printed\n%s\nand then\n%s", first.stdout, again.stdout)
	}

	var rows []map[string]any
	got := runAccess(t, "Caddyfile", config, "--json")
	if err := json.Unmarshal([]byte(got.stdout), &rows); err != nil || got.status != 0 || len(rows) != strings.Count(want, "\n") {
		t.Fatalf("status %d, error %v, printed %s", got.status, err, got.stdout)
	}
	for i, want := range map[int]string{
		0: `{"access":"anybody","api":"https://api.understory.io","clients":["192.168.0.0/16"],"credential":"tours","listen":[":8081"],` +
			`"route":["otherwise"],"route_allow":["GET /v1/*"],"scopes":["booking.read"],"server":"srv1"}`,
		5: `{"access":"grant_any","api":"https://api.voucherify.io","caller":"agent","clients":["any"],"credential":"promo+vouchers","listen":[":8081"],"proof":["key"],` +
			`"route":["path /a /b and expression (…) and header X-Key=… and not (path /a/c) and query token=…"],"route_allow":["GET /v1/*"],"scopes":["vouchers"],"server":"srv1"}`,
		10: `{"access":"grant","api":"https://api.voucherify.io","caller":"web-shop","caller_clients":["10.20.4.0/24"],"clients":["10.0.0.0/8"],` +
			`"credential":"promo+vouchers+validations+redemptions","grant_allow":["GET /v1/vouchers/*","POST /v1/validations /v1/redemptions"],"limit":"20/s","listen":[":8080"],` +
			`"proof":["key","clients"],"route_allow":["/v1/*"],"scopes":["vouchers","validations","redemptions"],"server":"srv0","sites":["promo.internal","promo.lan"]}`,
	} {
		if row, _ := json.Marshal(rows[i]); string(row) != want {
			t.Errorf("row %d is\n%s\nwant\n%s", i, row, want)
		}
	}
}

func TestAccessOfOtherConfigs(t *testing.T) {
	const long = "customers campaigns categories consents products promotions publications"
	caddyfile := func(routes string) string { return fmt.Sprintf(accessGlobal, "") + "\n:80 {\n" + routes + "\n}\n" }
	promo := func(more string) string { return `{"protocol":"egress","credential":"promo"` + more + `}` }
	proxy := func(transport string) string {
		return `{"handle":[{"handler":"reverse_proxy","transport":` + transport + `}]}`
	}
	apps := func(servers string) string {
		return `{"apps":{"egress":{"credentials":{"promo":{"provider":{"name":"voucherify","app_id":"id","app_token":"{env.X}","scopes":["api"]}}},` +
			`"callers":{"a":{"user":["a"]},"b":{"user":["b"]}}},` + servers + `}}`
	}
	const none = "none (no grant)"
	for name, test := range map[string]struct {
		config string
		want   []string // lines that begin so
	}{
		"callers without a grant": {caddyfile("egress promo"), []string{
			"- (anybody) :80 * promo api any - - 127.0.0.0/8 ::1 unix",
			"agent - - - - " + none + " - key -", "idle - - - - " + none + " - clients unix", "nightly - - - - " + none + " - client_cert + user -", "web-shop - - - - " + none + " - key + clients 10.20.4.0/24",
		}},
		"callers without a route": {caddyfile("respond 204"), []string{"agent - - - - " + none, "idle - - - - " + none, "nightly - - - - " + none, "web-shop - - - - " + none}},
		"no egress":               {":80 {\nrespond 204\n}\n", []string{"the config has no route with egress, and no caller"}},
		"names made of a hash": {caddyfile("egress promo {\nscopes " + long + "\ngrant *\n}\negress /x understory {\nclient_id id\nclient_secret x\ngrant agent {\nscopes a\n}\ngrant idle\n}"), []string{
			"agent :80 path /x understory-…+a a any", "agent (*) :80 * promo-… customers campaigns",
			"idle :80 path /x understory-… - any", "idle (*) :80 * promo-…",
			"nightly (*) :80 * promo-…", "web-shop (*) :80 * promo-…",
		}},
		"scopes as the credential's": {caddyfile("egress promo {\nscopes vouchers\ngrant agent idle {\nscopes api\n}\ngrant nightly web-shop {\nscopes api vouchers\n}\n}"), []string{
			"agent :80 * promo api", "idle :80 * promo api", "nightly :80 * promo+api+vouchers api vouchers", "web-shop :80 * promo+api+vouchers api vouchers",
		}},
		"several servers": {apps(`"http":{"servers":{"two":{"listen":[":2",":3"],"routes":[` + proxy(promo("")) + `]},"one":{"listen":[":1"],"routes":[` + proxy(promo(`,"grant":[{"callers":["b"]}]`)) + `]}}}`), []string{
			"- (anybody) :2, :3 * promo", "a - - - - " + none, "b :1 * promo",
		}},
		"matchers that nobody knows": {apps(`"http":{"servers":{"s":{"listen":[":1"],"routes":[{"match":[{"host":["h"],"moon_phase":{"full":true}},{"path":7},{"path_regexp":{"pattern":"^/r"},"method":["GET"]}],"handle":[{"handler":"subroute","routes":[` +
			`{"match":[{"host":["i"]}],"handle":[{"handler":"reverse_proxy","transport":` + promo("") + `}]},{"match":"odd","handle":[{"handler":"reverse_proxy","transport":` + promo("") + `}]},{"match":[{"not":[{}]}],"handle":[{"handler":"reverse_proxy","transport":` + promo("") + `}]}]}]}]}}}`), []string{
			"- (anybody) :1 host h and moon_phase (…) or path (…) or path_regexp ^/r and method GET, host i promo",
			"- (anybody) :1 host h and moon_phase (…) or path (…) or path_regexp ^/r and method GET, match (…) promo",
			"- (anybody) :1 host h and moon_phase (…) or path (…) or path_regexp ^/r and method GET, not (…) promo",
			"a - -", "b - -",
		}},
		"other handlers and apps": {apps(`"layer4":{"routes":[{"proxy":` + promo("") + `}]},"http":{"odd":` + promo("") + `,"servers":{"s":{"listen":[":1"],"routes":[{"match":[{"host":["h"]}],"handle":[{"handler":"new","branches":{"b":[{"wrapped":` + promo("") + `}]}}]}]}}}`), []string{
			"- (anybody) h on :1 * promo", "- (anybody) app http * promo", "- (anybody) app layer4 * promo", "a - -", "b - -",
		}},
		"named routes": {apps(`"http":{"servers":{"s":{"listen":[":1"],"named_routes":{"lost":` + proxy(promo("")) + `,"loop":{"handle":[{"handler":"invoke","name":"loop"},{"handler":"reverse_proxy","transport":` + promo("") + `}]}},"routes":[{"handle":[{"handler":"invoke","name":"loop"}]},{"handle":[{"handler":"invoke","name":"gone"}]}]}}}`), []string{
			"- (anybody) :1 named route loop promo", "- (anybody) :1 named route lost, which nothing invokes promo", "a - -", "b - -",
		}},
		"groups": {apps(`"http":{"servers":{"s":{"listen":[":1"],"routes":[{"group":"g","match":[{"path":["/p"]}],"handle":[]},{"group":"h","handle":[{"handler":"reverse_proxy","transport":` + promo("") + `}]},{"group":"g","handle":[{"handler":"reverse_proxy","transport":` + promo("") + `}]}]}}}`), []string{
			"- (anybody) :1 * promo", "- (anybody) :1 otherwise promo", "a - -", "b - -",
		}},
		"what a terminal would obey": {apps(`"http":{"servers":{"s":{"listen":[":1"],"routes":[{"match":[{"path":["/\u001b[2J\tx"]}],"handle":[{"handler":"reverse_proxy","transport":` + promo("") + `}]}]}}}`), []string{
			`- (anybody) :1 "path /\x1b[2J\tx" promo`, "a - -", "b - -",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			file := "Caddyfile"
			if strings.HasPrefix(test.config, `{"`) {
				file = "caddy.json"
			}
			got := runAccess(t, file, test.config)
			lines := strings.Split(tidy(got.stdout), "\n")
			if len(lines) > 1 {
				lines = lines[1:]
			}
			if got.status != 0 || !slices.EqualFunc(lines, test.want, strings.HasPrefix) {
				t.Errorf("status %d, printed\n%s\nwant\n%s\n%s", got.status, strings.Join(lines, "\n"), strings.Join(test.want, "\n"), got.stderr)
			}
		})
	}
}

func TestAccessOfConfigsThatDoNotLoad(t *testing.T) {
	for name, test := range map[string]struct{ config, says string }{
		"unknown caller":      {`{"apps":{"egress":{"callers":{"web-shop":{"user":["a"]}}},"x":{"protocol":"egress","provider":{"name":"voucherify"},"grant":[{"callers":["web-shp"]}]}}}`, `grant web-shp: "web-shp" is not a caller; there are web-shop; did you mean web-shop?`},
		"no caller":           {`{"apps":{"x":{"protocol":"egress","provider":{"name":"voucherify"},"grant":[{"callers":["*"]}]}}}`, "the global option egress defines no caller"},
		"no grant":            {`{"apps":{"egress":{"callers":{"a":{"user":["a"]}}},"x":{"protocol":"egress","provider":{"name":"voucherify"},"grant":[]}}}`, "grant: is empty"},
		"grant to nobody":     {`{"apps":{"egress":{"callers":{"a":{"user":["a"]}}},"x":{"protocol":"egress","provider":{"name":"voucherify"},"grant":[{}]}}}`, "needs the name of a caller"},
		"caller without any":  {`{"apps":{"egress":{"callers":{"a":null}}}}`, "caller a: needs a key"},
		"unknown credential":  {`{"apps":{"x":{"protocol":"egress","credential":"prom"}}}`, `"prom" is neither`},
		"null credential":     {`{"apps":{"egress":{"credentials":{"promo":null}},"x":{"protocol":"egress","credential":"promo"}}}`, "promo: has no provider"},
		"no credential":       {`{"apps":{"x":{"protocol":"egress"}}}`, "provider: has no provider"},
		"unknown provider":    {`{"apps":{"x":{"protocol":"egress","provider":{"name":"mars"}}}}`, "egress.providers.mars"},
		"impossible scope":    {`{"apps":{"egress":{"callers":{"a":{"user":["a"]}}},"x":{"protocol":"egress","provider":{"name":"voucherify","app_id":"i","app_token":"t","scopes":["api"]},"grant":[{"callers":["a"],"scopes":["a,b"]}]}}}`, "grant a: "},
		"key of another type": {`{"apps":{"egress":{"callers":{"a":{"key":"value-0123456789012345"}}}}}`, "reading the egress app"},
		"not a config":        {`{"apps":[]}`, "reading the config"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := runAccess(t, "caddy.json", test.config); got.status != 1 || !strings.Contains(got.stderr, test.says) || got.stdout != "" {
				t.Errorf("status %d, printed\n%s\n%s\nwant %q", got.status, got.stdout, got.stderr, test.says)
			}
		})
	}
	t.Run("no config", func(t *testing.T) {
		t.Chdir(t.TempDir())
		if got := runCaddy(t, "egress", "access"); got.status != 1 || !strings.Contains(got.stderr, "no config file; name one with --config") {
			t.Errorf("status %d, printed\n%s", got.status, got.stderr)
		}
	})
}

// The names and scopes in the matrix, and those that are checked, are those of the
// tokens that a running gateway keeps.
func TestCommandsNameTheTokensOfGrants(t *testing.T) {
	_, server := egresstest.NewSandbox(t, "voucherify")
	credential := func(head string) string {
		return fmt.Sprintf("%s voucherify %s {\n app_id id\n app_token {env.EGRESS_TEST_SECRET}\n scopes vouchers campaigns\n", head, server.URL)
	}
	admin, option := egresstest.NewAdmin(t)
	global := option + "egress {\n" + credential("credential promo") + "}\n caller a {\n user a\n }\n caller b {\n user b\n }\n caller c {\n user c\n }\n caller d {\n user d\n }\n}\n"
	routes := `handle /1/* {
		egress promo {
			grant a {
				scopes campaigns vouchers
			}
			grant b {
				scopes vouchers
			}
			grant c {
				scopes orders vouchers
			}
			grant d
		}
	}
	handle /2/* {
		egress promo {
			scopes vouchers
			grant a
			grant b {
				scopes vouchers orders
			}
		}
	}
	handle {
		` + credential("egress") + ` grant a
			grant b {
				scopes api
			}
		}
	}`
	g := egresstest.StartWatched(t, routes, egresstest.WithGlobal(global))
	var running []egress.CredentialStatus
	if _, answer := admin.Ask(t, http.MethodGet, "/egress/tokens"); json.Unmarshal([]byte(answer), &running) != nil || len(running) < 5 {
		t.Fatalf("the admin API answers %s", answer)
	}
	var names []string
	for _, c := range running {
		names = append(names, c.Credential)
	}

	file := writeConfig(t, "caddy.json", string(g.Adapt(routes)))
	var checked []struct{ Credential, Result string }
	got := runCaddy(t, "egress", "check", "--config", file, "--json")
	if err := json.Unmarshal([]byte(got.stdout), &checked); err != nil {
		t.Fatalf("%v: %s\n%s", err, got.stdout, got.stderr)
	}
	var checkedNames []string
	for _, c := range checked {
		checkedNames = append(checkedNames, c.Credential)
		if c.Result != "ok" {
			t.Errorf("%s is %s", c.Credential, c.Result)
		}
	}
	slices.Sort(checkedNames)
	egresstest.CheckLines(t, "what is checked", checkedNames, names)

	var rows []struct{ Caller, Credential string }
	got = runCaddy(t, "egress", "access", "--config", file, "--json")
	if err := json.Unmarshal([]byte(got.stdout), &rows); err != nil {
		t.Fatalf("%v: %s\n%s", err, got.stdout, got.stderr)
	}
	hash := regexp.MustCompile(`-[0-9a-f]{8}`)
	for _, row := range rows {
		if !slices.ContainsFunc(names, func(name string) bool { return hash.ReplaceAllString(name, "-…") == row.Credential }) {
			t.Errorf("%s has a token %s; those there are: %q", row.Caller, row.Credential, names)
		}
	}
}

func TestKeyCommand(t *testing.T) {
	directory := t.TempDir()
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	var keys []string
	callers := ""
	for _, name := range []string{"a", "b"} {
		got := runCaddy(t, "egress", "key")
		if got.status != 0 || !regexp.MustCompile(`^[A-Za-z0-9_-]{43}\n$`).MatchString(got.stdout) || got.stderr != "" {
			t.Fatalf("status %d, printed %q and %q", got.status, got.stdout, got.stderr)
		}
		keys = append(keys, strings.TrimSpace(got.stdout))
		if err := os.WriteFile(filepath.Join(directory, name), []byte(got.stdout), 0o600); err != nil {
			t.Fatal(err)
		}
		callers += "caller " + name + " {\n key {file." + filepath.Join(directory, name) + "}\n}\n"
	}
	if keys[0] == keys[1] {
		t.Error("made the same key twice")
	}
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, "grant a\n header_down X-Caller {http.reverse_proxy.egress.caller}"), egresstest.WithGlobal("egress {\n"+callers+"}\n"))
	for name, set := range map[string]func(*http.Request, string){
		"Bearer":    func(r *http.Request, key string) { r.Header.Set("Authorization", "Bearer "+key) },
		"Basic":     func(r *http.Request, key string) { r.SetBasicAuth("a", key) },
		"X-Api-Key": func(r *http.Request, key string) { r.Header.Set("X-Api-Key", key) },
	} {
		for i, want := range []int{http.StatusOK, http.StatusForbidden} {
			req := g.Request(http.MethodGet, "/x", nil)
			set(req, keys[i])
			if resp, body := g.Do(req); resp.StatusCode != want {
				t.Errorf("%s, key of %s: answered %d %s, want %d", name, []string{"a", "b"}[i], resp.StatusCode, body, want)
			}
		}
	}
}

// `caddy validate` warns of grants that permit less than they say.
func TestValidateWarnsOfGrants(t *testing.T) {
	config := writeConfig(t, "Caddyfile", `{
	admin off
	egress {
		credential promo voucherify {
			app_id id
			app_token {env.EGRESS_TEST_SECRET}
			scopes campaigns
		}
		caller a {
			user a
		}
		caller b {
			user b
		}
	}
}

:8080 {
	egress promo {
		allow /v1/campaigns /v1/vouchers/* /v1/oauth/*
		grant a {
			scopes vouchers
			allow GET /v1/campaigns
			allow POST /v1/products
			allow /v1/oauth/token
		}
		grant a b {
			allow GET /v1/vouchers/*
		}
		grant b
	}
}
`)
	got := runCaddy(t, "validate", "--config", config, "--adapter", "caddyfile")
	if got.status != 0 {
		t.Fatalf("status %d\n%s", got.status, got.stderr)
	}
	var warnings []string
	for line := range strings.Lines(got.stderr) {
		var entry struct {
			Level, Msg, Credential, Operation string
			Grant, Callers                    []string
		}
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Level == "warn" && strings.Contains(entry.Msg, "grant") {
			message, _, _ := strings.Cut(entry.Msg, ";")
			warnings = append(warnings, fmt.Sprintf("%s %q %s: %s %q", entry.Credential, entry.Grant, entry.Operation, message, entry.Callers))
		}
	}
	egresstest.CheckLines(t, "the warnings", warnings, []string{
		`promo ["a"] GET /v1/campaigns: a grant allows an operation that its scopes do not reach []`,
		`promo ["a"] POST /v1/products: a grant allows an operation that allow of the route does not permit []`,
		`promo ["a"] /v1/oauth/token: a grant allows a credential endpoint of the API, which is refused all the same []`,
		`promo ["a" "b"] : a grant has no effect for callers that an earlier one names ["a"]`,
		`promo ["a" "b"] GET /v1/vouchers/*: a grant allows an operation that its scopes do not reach []`,
		`promo ["b"] : a grant has no effect: earlier ones name all of its callers []`,
	})
}

// The matrix says what a running gateway permits, no more and no less.
func TestAccessIsWhatTheGatewayPermits(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	global, keys := "egress {\n allow GET,POST /*/a* /*/b\n", map[string]string{}
	for _, name := range []string{"one", "two", "three", "none"} {
		keys[name] = "key-of-caller-" + name + "-0123456789"
		t.Setenv("KEY_"+name, keys[name])
		global += "caller " + name + " {\n key {env.KEY_" + name + "}\n}\n"
	}
	routes := ""
	for i, grants := range []string{
		"",
		"grant one\ngrant two {\n allow GET /2/a*\n}",
		"allow /3/*\ngrant two one {\n allow DELETE /3/c\n allow GET /3/*\n}\ngrant one three {\n allow POST /3/a\n}",
		"allow POST /4/*\ngrant three\ngrant * {\n allow /4/b /4/c\n}",
	} {
		routes += fmt.Sprintf("handle /%d/* {\n%s\n}\n", i+1, egresstest.Egress(api.URL, endpoint.URL, grants))
	}
	g := egresstest.StartGateway(t, routes, egresstest.WithGlobal(global+"}\n"))

	var rows []struct {
		Caller     string
		Route      []string
		RouteAllow []string `json:"route_allow"`
		GrantAllow []string `json:"grant_allow"`
	}
	got := runCaddy(t, "egress", "access", "--config", writeConfig(t, "caddy.json", string(g.Adapt(routes))), "--json")
	if err := json.Unmarshal([]byte(got.stdout), &rows); err != nil {
		t.Fatalf("%v: %s\n%s", err, got.stdout, got.stderr)
	}
	within := func(allow []string, method, path string) bool {
		return len(allow) == 0 || slices.ContainsFunc(allow, func(operation string) bool {
			words := strings.Fields(operation)
			if !strings.HasPrefix(words[0], "/") {
				if !slices.Contains(strings.Split(words[0], ","), method) {
					return false
				}
				words = words[1:]
			}
			return slices.ContainsFunc(words, func(pattern string) bool {
				matched, err := filepath.Match(pattern, path)
				return err == nil && matched
			})
		})
	}
	permitted := func(caller, method, path string) bool {
		for _, row := range rows {
			if len(row.Route) == 1 && (row.Caller == caller || row.Caller == "") && within([]string{strings.TrimPrefix(row.Route[0], "path ")}, method, path) &&
				within(row.RouteAllow, method, path) && within(row.GrantAllow, method, path) {
				return true
			}
		}
		return false
	}
	served := 0
	for _, caller := range []string{"one", "two", "three", "none", ""} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
			for _, path := range []string{"/1/a", "/1/c", "/2/a", "/2/ab", "/2/b", "/3/a", "/3/b", "/3/c", "/4/a", "/4/b", "/4/c"} {
				req := g.Request(method, path, nil)
				if caller != "" {
					req.Header.Set("Authorization", "Bearer "+keys[caller])
				}
				resp, body := g.Do(req)
				if resp.StatusCode == http.StatusOK {
					served++
				}
				if want := permitted(caller, method, path); want != (resp.StatusCode == http.StatusOK) {
					t.Errorf("caller %q, %s %s: answered %d %s, and the matrix says %t", caller, method, path, resp.StatusCode, body, want)
				}
			}
		}
	}
	if served < 20 || served > 120 {
		t.Errorf("%d of 165 requests were served: the test shows little", served)
	}
}
