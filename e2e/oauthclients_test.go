package e2e_test

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/sandbox"
)

// Clients as they are published, given nothing but the gateway's address and the
// name and the key of a caller, get a token and call the API with it.

// clientsDir holds the clients that need Node.js, pinned, and scripts that use them
// and those of Python.
const clientsDir = "../testdata/oauth-clients"

// callerKey is the key of the caller "shop". It has what encodings change.
const callerKey = "C4ller+key~of%the&tests="

const pythonRemedy = "install Debian's python3-authlib and python3-requests-oauthlib"

// callerGateway is a gateway to an imitation of Voucherify's API that serves the
// caller "shop".
type callerGateway struct {
	*egresstest.Gateway
	t          *testing.T
	voucherify *sandbox.Server
	api        *egresstest.Recorder
}

func startCallerGateway(t *testing.T) *callerGateway {
	t.Helper()
	t.Setenv("EGRESS_TEST_CALLER_KEY", callerKey)
	g := &callerGateway{t: t, api: egresstest.NewRecorder(t)}
	g.voucherify, _ = egresstest.NewSandbox(t, "voucherify")
	g.api.Handler = g.voucherify.ServeHTTP
	g.Gateway = egresstest.StartGateway(t, `
		log
		egress_token /oauth2/token
		egress_token /v1/oauth/token
		handle /v1/* {
			egress promo {
				grant shop
			}
		}`, egresstest.WithGlobal(`egress {
		credential promo voucherify `+g.api.URL+` {
			app_id    id
			app_token {env.`+egresstest.SecretVariable+`}
			scopes    api
		}
		caller shop {
			key {env.EGRESS_TEST_CALLER_KEY}
		}
	}`))
	return g
}

// checkCalls checks that there were n calls, that the access log names the caller
// for each of them and for as many exchanges, and that nothing of the caller's has
// reached the API.
func (g *callerGateway) checkCalls(n, exchanges int) {
	g.t.Helper()
	var calls, tokens int
	egresstest.Eventually(g.t, "the access log", func() bool {
		calls, tokens = 0, 0
		for _, line := range g.LogLines("handled request") {
			request := line["request"].(map[string]any)
			uri, status := request["uri"].(string), line["status"]
			switch named := line["egress_caller"] == "shop" && status == float64(http.StatusOK); {
			case strings.HasSuffix(uri, "/token") && named:
				tokens++
			case strings.HasPrefix(uri, "/v1/") && !strings.HasPrefix(uri, "/v1/oauth/") && line["egress_caller"] == "shop":
				calls++
			}
		}
		return calls >= n && tokens >= exchanges
	})
	if calls != n || tokens != exchanges {
		g.t.Errorf("the access log names the caller of %d calls and %d exchanges, want %d and %d", calls, tokens, n, exchanges)
	}

	reached := 0
	for _, got := range g.api.All() {
		if strings.HasPrefix(got.Target, "/v1/oauth/") { // the gateway itself
			continue
		}
		reached++
		values := got.Header["Authorization"]
		if len(values) != 1 || !strings.HasPrefix(values[0], "Bearer ") || strings.Contains(values[0], "egress_") {
			g.t.Errorf("%s has reached the API with Authorization %q", got.Target, values)
		}
		if text := fmt.Sprint(got.Header, got.Body, got.Target); strings.Contains(text, "C4ller") || strings.Contains(text, "egress_") {
			g.t.Errorf("the API has seen a key or token of the gateway: %s", text)
		}
	}
	if reached != n {
		g.t.Errorf("%d calls have reached the API, want %d", reached, n)
	}
	if stats := g.voucherify.Stats(); stats.TokenRequests != 1 || stats.Unauthorized != 0 {
		g.t.Errorf("the API counted %+v, want one token request and no 401", stats)
	}
	if log := withoutAccessLog(g.Log()); strings.Contains(log, "C4ller") || strings.Contains(log, `"egress_A`) {
		g.t.Error("the log shows a key or a token")
	}
}

func TestOAuthClientOfGo(t *testing.T) {
	for name, style := range map[string]oauth2.AuthStyle{
		"header": oauth2.AuthStyleInHeader, "form": oauth2.AuthStyleInParams, "either": oauth2.AuthStyleAutoDetect,
	} {
		t.Run(name, func(t *testing.T) {
			g := startCallerGateway(t)
			config := clientcredentials.Config{ClientID: "shop", ClientSecret: callerKey, TokenURL: g.URL + "/oauth2/token", AuthStyle: style}
			client := config.Client(context.WithValue(t.Context(), oauth2.HTTPClient, egresstest.Client))
			for range 2 { // with one token
				resp, err := client.Get(g.URL + "/v1/vouchers/BLCKFRDY")
				if err != nil {
					t.Fatal(err)
				}
				if resp.Body.Close(); resp.StatusCode != http.StatusOK {
					t.Errorf("answered %d", resp.StatusCode)
				}
			}
			g.checkCalls(2, 1)
		})
	}
}

func TestOAuthClients(t *testing.T) {
	const (
		call   = `{"status":200,"code":"BLCKFRDY"}`
		python = "/usr/bin/python3" // for which Debian has the packages
	)
	for _, test := range []struct {
		script, module, program string
		want                    []string
	}{
		{script: "simple-oauth2.mjs", want: []string{
			`{"token_type":"Bearer","expires_in":3600,"others":1,"expired":false}`, call,
			`{"token_type":"Bearer","expires_in":3600,"others":1,"expired":false}`, call,
		}},
		{script: "openid-client.mjs", want: []string{ // which makes the token type lower case
			`{"token_type":"bearer","expires_in":3600,"others":1,"expires":true}`, call,
			`{"token_type":"bearer","expires_in":3600,"others":1,"expires":true}`, call,
		}},
		{script: "axios-oauth-client.mjs", want: []string{
			`{"token_type":"Bearer","expires_in":3600,"others":1}`, call,
			`{"token_type":"Bearer","expires_in":3600,"scope":"vouchers validations","others":1}`, call,
		}},
		{script: "voucherify.mjs", want: []string{
			`{"token_type":"Bearer","expires_in":3600,"scope":"api","others":1}`,
			`{"token_type":"Bearer","expires_in":3600,"scope":"vouchers validations","others":1}`,
			call,
		}},
		{script: "requests-oauthlib.py", program: python, module: "requests_oauthlib", want: slices.Repeat([]string{
			`{"token_type": "Bearer", "expires_in": 3600, "scope": null}`, `{"status": 200, "code": "BLCKFRDY"}`,
		}, 4)},
		{script: "authlib-client.py", program: python, module: "authlib", want: slices.Repeat([]string{
			`{"token_type": "Bearer", "expires_in": 3600, "scope": null, "expired": false}`, `{"status": 200, "code": "BLCKFRDY"}`,
		}, 2)},
	} {
		t.Run(test.script, func(t *testing.T) {
			remedy := "install Node.js and run: npm ci --prefix " + clientsDir
			if test.program != "" {
				remedy = pythonRemedy
			}
			program := requireClient(t, cmp.Or(test.program, "node"), remedy, func(program string) error {
				if test.module != "" {
					return exec.CommandContext(t.Context(), program, "-c", "import "+test.module).Run()
				}
				_, err := os.Stat(filepath.Join(clientsDir, "node_modules", "simple-oauth2", "package.json"))
				return err
			})
			g := startCallerGateway(t)
			out := runClient(t, "/usr/bin/env", "KEY="+callerKey, program, filepath.Join(clientsDir, test.script), g.URL, "shop")
			lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
			egresstest.CheckLines(t, "what the client saw", lines, test.want)
			calls := 0
			for _, line := range test.want {
				if strings.Contains(line, "BLCKFRDY") {
					calls++
				}
			}
			exchanges := len(test.want) - calls
			if test.script == "voucherify.mjs" {
				exchanges++
			}
			g.checkCalls(calls, exchanges)
		})
	}
}

// Clients that can send a key need no exchange.
func TestVoucherifySDKWithAKey(t *testing.T) {
	node := sdkNode(t)
	g := startCallerGateway(t)
	calls := sdkCalls(t, node, g.Gateway, "shop", callerKey)
	for _, call := range calls {
		if call.Error.Code != 0 && call.Error.Code != http.StatusNotFound { // the last asks for what is not there
			t.Errorf("the SDK made %s", call.line)
		}
	}
	g.checkCalls(len(calls), 0)
}

func TestCurlWithAKey(t *testing.T) {
	curl := requireClient(t, "curl", "install curl", func(string) error { return nil })
	g := startCallerGateway(t)
	ways := [][]string{
		{"--header", "X-Api-Key: " + callerKey},
		{"--header", "Authorization: Bearer " + callerKey},
		{"--oauth2-bearer", callerKey},
		{"--user", "shop:" + callerKey},
		{"--user", "anything:" + callerKey},
	}
	for _, way := range ways {
		out := runClient(t, curl, append(way, "--silent", "--show-error", "--noproxy", "*", "--max-time", "15",
			"--output", "/dev/null", "--write-out", "%{http_code}", g.URL+"/v1/vouchers/BLCKFRDY")...)
		if out != "200" {
			t.Errorf("%s: answered %s", way[0], out)
		}
	}
	g.checkCalls(len(ways), 0)
}
