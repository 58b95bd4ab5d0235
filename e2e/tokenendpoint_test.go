package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// tokenCallers are the callers of these tests. The key of shop has all that an
// encoding can get wrong.
const tokenCallers = `
	caller shop {
		key {env.` + egresstest.SecretVariable + `}
	}
	caller job {
		key job-key-of-the-tests-1
	}
	caller desk {
		clients 127.0.0.3
	}
`

// startEgressToken starts a gateway with callers, each of which has a grant, and
// egress_token with options.
func startEgressToken(t *testing.T, callers, options string) (*egresstest.Recorder, *egresstest.Gateway) {
	t.Helper()
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	grant := ""
	if strings.Contains(callers, "caller ") {
		grant = "clients any\ngrant *"
	}
	g := egresstest.StartGateway(t, "log\negress_token /oauth2/token {\n"+options+"\n}\n"+
		egresstest.Site("/v1/", egresstest.Egress(api.URL, endpoint.URL, grant))+
		"handle {\nrespond \"not found\" 404\n}\n", egresstest.WithGlobal("egress {\n"+callers+"\n}"))
	t.Cleanup(func() { egresstest.CheckLeaks(t, "the log", withoutAccessLog(g.Log())) })
	return api, g
}

// withoutAccessLog returns log without the lines in which Caddy itself shows what
// clients have sent: those of the access log, and of reverse_proxy's at level DEBUG.
func withoutAccessLog(log string) string {
	var rest strings.Builder
	for line := range strings.Lines(log) {
		if !strings.Contains(line, `"logger":"http.log.access`) && !strings.Contains(line, `"logger":"http.handlers.reverse_proxy"`) {
			rest.WriteString(line)
		}
	}
	return rest.String()
}

// tokenRequest returns a token request as it is sent.
func tokenRequest(header, body string) string {
	if !strings.Contains(header, "Content-Type:") {
		header += "Content-Type: application/x-www-form-urlencoded\r\n"
	}
	return fmt.Sprintf("POST /oauth2/token HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: %d\r\n\r\n%s", header, len(body), body)
}

func basic(name, key string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+key)) + "\r\n"
}

// checkTokenAnswer checks what all answers of egress_token have in common, and
// returns the members of the body.
func checkTokenAnswer(t *testing.T, what string, resp *http.Response, body string) (members map[string]any) {
	t.Helper()
	header := resp.Header
	if header.Get("Cache-Control") != "no-store" || header.Get("Pragma") != "no-cache" || header.Get("X-Content-Type-Options") != "nosniff" {
		t.Errorf("%s: the header is %v", what, header)
	}
	if proxy := header.Get("Proxy-Status"); !strings.HasPrefix(proxy, "caddy-egress; ") || strings.Contains(proxy, "error=") != (resp.StatusCode >= 400) {
		t.Errorf("%s: Proxy-Status is %q", what, proxy)
	}
	if challenge := header.Values("WWW-Authenticate"); slices.Equal(challenge, []string{`Basic realm="caddy-egress", charset="UTF-8"`}) != (resp.StatusCode == http.StatusUnauthorized) {
		t.Errorf("%s: WWW-Authenticate is %q", what, challenge)
	}
	egresstest.CheckLeaks(t, what, fmt.Sprint(body, header))
	if body == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(body), &members); err != nil || header.Get("Content-Type") != "application/json" {
		t.Errorf("%s: %v in %q, %s", what, err, body, header.Get("Content-Type"))
	}
	return members
}

const (
	grantType  = "grant_type=client_credentials"
	shopInForm = "&client_id=shop&client_secret="
)

func TestEgressTokenIssues(t *testing.T) {
	api, g := startEgressToken(t, tokenCallers, "")
	key := egresstest.Secret
	escaped := url.QueryEscape(key)
	for name, test := range map[string]struct {
		header, body string
		caller       string // default: shop
		scope        string
	}{
		"basic":                       {header: basic("shop", escaped), body: grantType},
		"basic without encoding":      {header: basic("shop", key), body: grantType},
		"basic in lower case":         {header: strings.Replace(basic("shop", key), "Basic", "basic", 1), body: grantType},
		"basic, and the name in form": {header: basic("shop", escaped), body: grantType + "&client_id=shop"},
		"form":                        {body: grantType + shopInForm + escaped},
		"form of another":             {body: grantType + "&client_id=job&client_secret=job-key-of-the-tests-1", caller: "job"},
		"form with charset":           {header: "Content-Type: application/x-www-form-urlencoded; charset=UTF-8\r\n", body: grantType + shopInForm + escaped},
		"form beside a bearer token":  {header: "Authorization: Bearer old\r\n", body: grantType + shopInForm + escaped},
		"Voucherify":                  {header: "X-App-Id: shop\r\nX-App-Token: " + key + "\r\n", body: grantType, scope: "api"},
		"Voucherify with scope":       {header: "X-App-Id: shop\r\nX-App-Token: " + key + "\r\n", body: grantType + "&scope=vouchers+validations", scope: "vouchers validations"},
		"scope":                       {header: basic("shop", key), body: grantType + "&scope=orders.read", scope: "orders.read"},
		"empty parameters":            {header: basic("shop", key), body: grantType + "&scope=&client_secret=&client_id="},
		"parameters of other servers": {header: basic("shop", key), body: grantType + "&audience=a&resource=https%3A%2F%2Fa&resource=https%3A%2F%2Fb"},
		"64 KiB":                      {header: basic("shop", key), body: grantType + "&x=" + strings.Repeat("x", 64<<10-len(grantType)-3)},
	} {
		t.Run(name, func(t *testing.T) {
			if test.caller == "" {
				test.caller = "shop"
			}
			wire := g.Wire()
			before := time.Now()
			resp, body := wire.Send(tokenRequest(test.header, test.body))
			members := checkTokenAnswer(t, "the answer", resp, body)
			token, _ := members["access_token"].(string)
			expires, _ := members["expires_at"].(float64)
			want := map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 3600.0, "expires_at": expires, "client_id": test.caller}
			if test.scope != "" {
				want["scope"] = test.scope
			}
			if resp.StatusCode != http.StatusOK || !maps.Equal(members, want) || strings.Contains(body, ".0") {
				t.Fatalf("answered %d %s", resp.StatusCode, body)
			}
			if life := time.Unix(int64(expires), 0).Sub(before); life < 3598*time.Second || life > 3660*time.Second {
				t.Errorf("the token expires after %v", life)
			}

			logged := len(g.LogLines("handled request"))
			resp, body = wire.Send("GET /v1/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + token + "\r\n\r\n")
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("with the token the gateway answers %d %s", resp.StatusCode, body)
			}
			if got := api.Last(t).Header["Authorization"]; len(got) != 1 || got[0] != "Bearer "+egresstest.Token(1) {
				t.Errorf("the API got %q", got)
			}
			egresstest.Eventually(t, "a line of the access log", func() bool { return len(g.LogLines("handled request")) > logged })
			for _, line := range g.LogLines("handled request")[logged-1:] {
				if line["egress_caller"] != test.caller {
					t.Errorf("egress_caller is %v in %v, want %s", line["egress_caller"], line["request"], test.caller)
				}
			}
		})
	}
}

func TestEgressTokenRefuses(t *testing.T) {
	api, g := startEgressToken(t, tokenCallers, "")
	key := egresstest.Secret
	form := grantType + shopInForm + url.QueryEscape(key)
	resp, body := g.Wire().Send(tokenRequest("", form))
	token, _ := checkTokenAnswer(t, "a token", resp, body)["access_token"].(string)
	for name, test := range map[string]struct {
		header, body string
		status       int
		code         string
	}{
		"a wrong key":                    {basic("shop", "wrong-key-of-the-tests"), grantType, 401, "invalid_client"},
		"the key of another":             {basic("job", key), grantType, 401, "invalid_client"},
		"an unknown name":                {basic("stranger", key), grantType, 401, "invalid_client"},
		"a key without a name":           {basic("", key), grantType, 401, "invalid_client"},
		"a name without a key":           {"", grantType + "&client_id=shop", 401, "invalid_client"},
		"a token for a key":              {basic("shop", token), grantType, 401, "invalid_client"},
		"nothing":                        {"", grantType, 401, "invalid_client"},
		"nothing but a bearer token":     {"Authorization: Bearer " + key + "\r\n", grantType, 401, "invalid_client"},
		"basic without a colon":          {"Authorization: Basic c2hvcA==\r\n", grantType, 401, "invalid_client"},
		"basic that is not base64":       {"Authorization: Basic %%%\r\n", grantType, 401, "invalid_client"},
		"a caller at another address":    {basic("desk", "x"), grantType, 401, "invalid_client"},
		"basic twice":                    {basic("shop", key) + basic("shop", key), grantType, 400, "invalid_request"},
		"basic and form":                 {basic("shop", key), form, 400, "invalid_request"},
		"basic and Voucherify":           {basic("shop", key) + "X-App-Id: shop\r\nX-App-Token: " + key + "\r\n", grantType, 400, "invalid_request"},
		"Voucherify and form":            {"X-App-Id: shop\r\n", form, 400, "invalid_request"},
		"X-App-Token twice":              {"X-App-Id: shop\r\nX-App-Token: a\r\nX-App-Token: b\r\n", grantType, 400, "invalid_request"},
		"two names":                      {basic("shop", key), grantType + "&client_id=job", 400, "invalid_request"},
		"grant_type twice":               {"", grantType + "&" + form, 400, "invalid_request"},
		"client_id twice":                {"", form + "&client_id=shop", 400, "invalid_request"},
		"client_secret twice":            {"", form + "&client_secret=x", 400, "invalid_request"},
		"scope twice":                    {"", form + "&scope=a&scope=b", 400, "invalid_request"},
		"no grant_type":                  {basic("shop", key), "scope=a", 400, "invalid_request"},
		"an empty grant_type":            {basic("shop", key), "grant_type=", 400, "invalid_request"},
		"an empty body":                  {basic("shop", key), "", 400, "invalid_request"},
		"JSON":                           {basic("shop", key) + "Content-Type: application/json\r\n", `{"grant_type":"client_credentials"}`, 400, "invalid_request"},
		"no type":                        {basic("shop", key) + "Content-Type:\r\n", grantType, 400, "invalid_request"},
		"a broken escape":                {basic("shop", key), grantType + "&x=%zz", 400, "invalid_request"},
		"a semicolon":                    {basic("shop", key), grantType + ";scope=a", 400, "invalid_request"},
		"more than 64 KiB":               {basic("shop", key), grantType + "&x=" + strings.Repeat("x", 64<<10-len(grantType)-2), 413, "invalid_request"},
		"a password grant":               {basic("shop", key), "grant_type=password&username=a&password=b", 400, "unsupported_grant_type"},
		"another case of the grant type": {basic("shop", key), "grant_type=Client_Credentials", 400, "unsupported_grant_type"},
		"a line break in the scope":      {basic("shop", key), grantType + "&scope=a%0Ab", 400, "invalid_scope"},
		"a quote in the scope":           {basic("shop", key), grantType + "&scope=%22", 400, "invalid_scope"},
	} {
		resp, body := g.Wire().Send(tokenRequest(test.header, test.body))
		members := checkTokenAnswer(t, name, resp, body)
		if resp.StatusCode != test.status || members["error"] != test.code || members["error_description"] == "" || len(members) != 2 {
			t.Errorf("%s: answered %d %s, want %d %s", name, resp.StatusCode, body, test.status, test.code)
		}
		if strings.Contains(body, "localhost") || strings.Contains(body, "stranger") || strings.Contains(body, "%zz") {
			t.Errorf("%s: shows what the client sent: %s", name, body)
		}
	}
	if api.Count() > 0 {
		t.Errorf("%d requests have reached the API", api.Count())
	}
}

func TestEgressTokenMethods(t *testing.T) {
	_, g := startEgressToken(t, tokenCallers, "")
	for _, test := range []struct{ method, path, allow string }{
		{"GET", "/oauth2/token", "POST"},
		{"HEAD", "/oauth2/token", "POST"},
		{"PUT", "/oauth2/token", "POST"},
		{"OPTIONS", "/oauth2/token", "POST"},
		{"TRACE", "/oauth2/token", "POST"},
		{"POS", "/oauth2/token", "POST"},
		{"GET", "/oauth2/revoke", "POST"},
		{"POST", "/.well-known/oauth-authorization-server", "GET, HEAD"},
		{"TRACE", "/.well-known/oauth-authorization-server", "GET, HEAD"},
	} {
		resp, body := g.Wire().Send(test.method + " " + test.path + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
		members := checkTokenAnswer(t, test.method, resp, body)
		if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != test.allow || test.method != "HEAD" && members["error"] != "invalid_request" {
			t.Errorf("%s %s: answered %d %s, Allow is %q", test.method, test.path, resp.StatusCode, body, resp.Header.Get("Allow"))
		}
	}
}

// A caller that proves who it is by something else gets a token, so that its client
// is content; it proves nothing elsewhere.
func TestEgressTokenForACallerWithoutAKey(t *testing.T) {
	_, g := startEgressToken(t, tokenCallers, "")
	desk := egresstest.NewWire(t, egresstest.From("127.0.0.3", g.Addr))
	resp, body := desk.Send(tokenRequest(basic("desk", "any"), grantType))
	token, _ := checkTokenAnswer(t, "the token", resp, body)["access_token"].(string)
	if resp.StatusCode != http.StatusOK || token == "" {
		t.Fatalf("answered %d %s", resp.StatusCode, body)
	}
	request := "GET /v1/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + token + "\r\n\r\n"
	if resp, body := desk.Send(request); resp.StatusCode != http.StatusOK {
		t.Errorf("the caller itself is answered %d %s", resp.StatusCode, body)
	}
	if resp, body := g.Wire().Send(request); resp.StatusCode != http.StatusUnauthorized || !strings.Contains(body, "caller_unknown") {
		t.Errorf("somebody else with its token is answered %d %s", resp.StatusCode, body)
	}
	if resp, body := desk.Send(tokenRequest(basic("shop", "any"), grantType)); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("the name of another is answered %d %s", resp.StatusCode, body)
	}
}

// Where no callers are configured, clients that insist on a token get one.
func TestEgressTokenWithoutCallers(t *testing.T) {
	_, g := startEgressToken(t, "", "")
	tokens := make(map[any]bool)
	for _, header := range []string{basic("a", ""), basic("anybody", "any"), "X-App-Id: anybody\r\n"} {
		resp, body := g.Wire().Send(tokenRequest(header, grantType))
		members := checkTokenAnswer(t, "the token", resp, body)
		token, _ := members["access_token"].(string)
		if resp.StatusCode != http.StatusOK || len(token) < 40 || tokens[token] || !strings.HasPrefix("anybody", fmt.Sprint(members["client_id"])) {
			t.Errorf("answered %d %s", resp.StatusCode, body)
		}
		tokens[token] = true
		if resp, body := g.Wire().Send("GET /v1/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + token + "\r\n\r\n"); resp.StatusCode != http.StatusOK {
			t.Errorf("with the token the gateway answers %d %s", resp.StatusCode, body)
		}
	}
	if resp, body := g.Wire().Send(tokenRequest("", grantType)); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a name it answers %d %s", resp.StatusCode, body)
	}
}

func TestEgressTokenRevocation(t *testing.T) {
	_, g := startEgressToken(t, tokenCallers, "")
	for _, path := range []string{"/oauth2/token/revoke", "/oauth2/revoke", "/OAuth2/Revoke"} {
		resp, body := g.Wire().Send("POST " + path + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 7\r\n\r\ntoken=x")
		if checkTokenAnswer(t, path, resp, body); resp.StatusCode != http.StatusOK || body != "{}" {
			t.Errorf("%s: answered %d %q", path, resp.StatusCode, body)
		}
	}
}

func TestEgressTokenMetadata(t *testing.T) {
	_, g := startEgressToken(t, tokenCallers, "")
	for path, suffix := range map[string]string{"": "", "/tenant/1": "/tenant/1", "/a%2Fb": "/a%2Fb", "/tenant/": "/tenant"} {
		for _, method := range []string{"GET", "HEAD"} {
			resp, body := g.Wire().Send(method + " /.well-known/oauth-authorization-server" + path + " HTTP/1.1\r\nHost: Auth.example:81\r\nX-Forwarded-Host: evil.example\r\n\r\n")
			members := checkTokenAnswer(t, path, resp, body)
			if resp.StatusCode != http.StatusOK || resp.ContentLength <= 0 {
				t.Errorf("%s %s: answered %d %v", method, path, resp.StatusCode, resp.Header)
			}
			if method == "HEAD" {
				continue
			}
			const base = "http://Auth.example:81"
			want := map[string]any{
				"issuer": base + suffix, "token_endpoint": base + "/oauth2/token", "revocation_endpoint": base + "/oauth2/token/revoke",
				"token_endpoint_auth_methods_supported":      []any{"client_secret_basic", "client_secret_post"},
				"revocation_endpoint_auth_methods_supported": []any{"client_secret_basic", "client_secret_post"},
				"grant_types_supported":                      []any{"client_credentials"}, "response_types_supported": []any{},
				"authorization_endpoint": base + "/oauth2/token",
			}
			if fmt.Sprint(members) != fmt.Sprint(want) {
				t.Errorf("%s: %v, want %v", path, members, want)
			}
		}
	}
}

// What is not its own, egress_token leaves to others.
func TestEgressTokenBesideRoutes(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	g := egresstest.StartGateway(t, `
		egress_token /v1/oauth/token
		handle /v2/oauth/* {
			egress_token
		}
		@named path /named/* /.well-known/*
		egress_token @named
		`+egresstest.Site("/v1/", egresstest.Egress(api.URL, endpoint.URL, ""))+`
		handle {
			respond "not found" 404
		}`)
	const wellKnown = "/.well-known/oauth-authorization-server"
	for _, test := range []struct {
		method, path string
		status       int
		contains     string
	}{
		{"POST", "/v1/oauth/token", 200, "access_token"},
		{"POST", "/v1/oauth/token/revoke", 200, "{}"},
		{"POST", "/v1/oauth/revoke", 200, ""},
		{"POST", "/v2/oauth/token", 200, "access_token"},
		{"POST", "/v2/oauth/token/revoke", 200, ""},
		{"POST", "/named/token", 200, "access_token"},
		{"GET", wellKnown, 200, "/v1/oauth/token"},
		{"GET", wellKnown + "/x", 200, "/v1/oauth/token"},
		{"GET", "/v1/oauth/x", 200, "{}"}, // the API's
		{"POST", "/v1/x", 200, "{}"},
		{"POST", "/oauth2/token", 404, "not found"},
		{"GET", wellKnown + "-x", 405, "error"}, // by @named
		{"POST", "/x", 404, "not found"},
	} {
		resp, body := g.Wire().Send(fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n%sContent-Length: %d\r\n\r\n%s",
			test.method, test.path, basic("a", "b"), len(grantType), grantType))
		if resp.StatusCode != test.status || !strings.Contains(body, test.contains) {
			t.Errorf("%s %s: answered %d %q, want %d %q", test.method, test.path, resp.StatusCode, body, test.status, test.contains)
		}
	}
}

func TestEgressTokenGuards(t *testing.T) {
	const listed = "origins https://app.example.com\n"
	for name, test := range map[string]struct {
		global, callers, options, header, host, peer string
		status                                       int
		key                                          string
	}{
		"the default host":            {host: "localhost", status: 200},
		"another host":                {host: "evil.example", status: 403, key: "host_not_allowed"},
		"another host, with callers":  {callers: tokenCallers, host: "auth.example", status: 200},
		"hosts, with callers":         {callers: tokenCallers, options: "hosts auth.example", host: "localhost", status: 403, key: "host_not_allowed"},
		"global hosts, with callers":  {callers: tokenCallers, global: "hosts auth.example", host: "localhost", status: 403, key: "host_not_allowed"},
		"global hosts overridden":     {callers: tokenCallers, global: "hosts auth.example", options: "hosts any", host: "localhost", status: 200},
		"clients":                     {options: "clients 10.0.0.0/8", status: 403, key: "client_not_allowed"},
		"clients, with callers":       {callers: tokenCallers, options: "clients 127.0.0.2", status: 403, key: "client_not_allowed"},
		"global clients":              {callers: tokenCallers, global: "clients 127.0.0.2", status: 403, key: "client_not_allowed"},
		"another client":              {callers: tokenCallers, options: "clients 127.0.0.2", peer: "127.0.0.2", status: 200},
		"a page of another origin":    {header: "Origin: https://evil.example\r\n", status: 403, key: "origin_not_allowed"},
		"of another, with callers":    {callers: tokenCallers, header: "Origin: https://evil.example\r\n", status: 403, key: "origin_not_allowed"},
		"a page of a listed origin":   {options: listed, header: "Origin: https://app.example.com\r\n", status: 200},
		"of a globally listed origin": {global: listed, header: "Origin: https://app.example.com\r\n", status: 200},
	} {
		t.Run(name, func(t *testing.T) {
			_, g := startEgressToken(t, test.global+"\n"+test.callers, test.options)
			if test.peer == "" {
				test.peer = "127.0.0.1"
			}
			request := tokenRequest(test.header+basic("shop", egresstest.Secret), grantType)
			if test.host != "" {
				request = strings.Replace(request, "localhost", test.host, 1)
			}
			resp, body := egresstest.NewWire(t, egresstest.From(test.peer, g.Addr)).Send(request)
			members := checkTokenAnswer(t, "the answer", resp, body)
			if resp.StatusCode != test.status || !strings.Contains(resp.Header.Get("Proxy-Status"), test.key) {
				t.Fatalf("answered %d %s %v, want %d %s", resp.StatusCode, body, resp.Header, test.status, test.key)
			}
			if test.status == http.StatusForbidden && members["error"] != "unauthorized_client" {
				t.Errorf("answered %s", body)
			}
			if listed := strings.Contains(test.header, "app.example.com"); listed != (resp.Header.Get("Access-Control-Allow-Origin") == "https://app.example.com") {
				t.Errorf("the CORS headers are %v", resp.Header)
			}
		})
	}

	_, g := startEgressToken(t, tokenCallers, listed)
	resp, body := g.Wire().Send("OPTIONS /oauth2/token HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.example.com\r\n" +
		"Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n")
	checkTokenAnswer(t, "the preflight", resp, body)
	if header := resp.Header; resp.StatusCode != http.StatusNoContent || header.Get("Access-Control-Allow-Origin") != "https://app.example.com" ||
		header.Get("Access-Control-Allow-Headers") != "authorization" || !strings.Contains(header.Get("Access-Control-Allow-Methods"), "POST") {
		t.Errorf("the preflight is answered %d %v", resp.StatusCode, header)
	}
}

// The log says who is refused, once a second, and no more than is needed to mend it.
func TestEgressTokenLogsRefusals(t *testing.T) {
	_, g := startEgressToken(t, tokenCallers, "")
	start := time.Now()
	wire := g.Wire()
	for range 50 {
		wire.Send(tokenRequest(basic("shop", "wrong-key-of-the-tests"), grantType))
		wire.Send(tokenRequest(basic("stranger", "wrong-key-of-the-tests"), grantType))
	}
	most := 2 * (1 + int(time.Since(start)/time.Second))
	lines := g.LogLines("refused a token request")
	named := 0
	for _, line := range lines {
		if line["caller"] == "shop" {
			named++
		}
		if line["error"] != "invalid_client" || line["remote_addr"] == nil || line["reason"] == "" || line["caller"] != nil && line["caller"] != "shop" {
			t.Errorf("the log says %v", line)
		}
	}
	if len(lines) < 2 || len(lines) > most || named == 0 || named == len(lines) {
		t.Errorf("%d lines, %d of them name the caller: %v", len(lines), named, lines)
	}
	if log := withoutAccessLog(g.Log()); strings.Contains(log, "wrong-key") || strings.Contains(log, "stranger") {
		t.Error("the log shows what a stranger has sent")
	}
}

// A local token outlives a reload, and ends with the key that it was issued for.
func TestEgressTokenEndsWithItsKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write := func(key string) {
		if err := os.WriteFile(file, []byte(key+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("first-key-of-the-tests")
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	routes := "egress_token /oauth2/token\n" + egresstest.Egress(api.URL, endpoint.URL, "grant shop")
	g := egresstest.StartGateway(t, routes, egresstest.WithGlobal("egress {\ncaller shop {\nkey {file."+file+"}\n}\n}"))
	resp, body := g.Wire().Send(tokenRequest(basic("shop", "first-key-of-the-tests"), grantType))
	token, _ := checkTokenAnswer(t, "the token", resp, body)["access_token"].(string)
	status := func() (status int) {
		egresstest.Eventually(t, "an answer", func() bool { // connections may be reset after a reload
			resp, _, err := g.Wire().TrySend("GET /v1/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + token + "\r\n\r\n")
			if err == nil {
				status = resp.StatusCode
			}
			return err == nil
		})
		return status
	}
	if err := g.Load("log\n" + routes); err != nil {
		t.Fatal(err)
	}
	if got := status(); got != http.StatusOK {
		t.Errorf("after a reload the token is answered %d", got)
	}
	write("second-key-of-the-tests")
	egresstest.Eventually(t, "the end of the token", func() bool { return status() == http.StatusUnauthorized })
	if resp, body := g.Wire().Send(tokenRequest(basic("shop", "second-key-of-the-tests"), grantType)); resp.StatusCode != http.StatusOK {
		t.Errorf("the new key is answered %d %s", resp.StatusCode, body)
	}
}
