package voucherify

import (
	"errors"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokenprovider/internal/wiretest"
)

const noContent = "HTTP/1.1 204 No Content\r\n\r\n"

var client = tokenprovider.NewClient(nil)

// key returns a provider of the key id and s3cret on the cluster at apiURL.
func key(apiURL string) *Provider {
	return &Provider{AppID: tokenprovider.Values{"id"}, AppToken: tokenprovider.Values{"s3cret"}, APIURL: apiURL, Scopes: []string{"api"}}
}

func TestRequests(t *testing.T) {
	const (
		common = "Accept: application/json\n"
		rest   = "Content-Type: application/x-www-form-urlencoded\nUser-Agent: caddy-egress\n"
		v1     = common + rest + "X-App-Id: id\nX-App-Token: s3cret\n\n"
		v2     = common + "Authorization: Basic aWQ6czNjcmV0\n" + rest + "\n"
	)
	token := tokenprovider.NewSecret("tok+1/=")
	for name, test := range map[string]struct {
		change func(*Provider)
		answer string
		do     func(*testing.T, *Provider) error
		want   string
	}{
		"token": {nil, wiretest.Granted, func(t *testing.T, p *Provider) error {
			_, err := p.Token(t.Context(), client)
			return err
		}, "POST /v1/oauth/token HTTP/1.1\n" + v1 + "grant_type=client_credentials&scope=api"},

		"token with scopes": {func(p *Provider) { p.Scopes = []string{"vouchers", "trash-bin"} }, wiretest.Granted, func(t *testing.T, p *Provider) error {
			_, err := p.Token(t.Context(), client)
			return err
		}, "POST /v1/oauth/token HTTP/1.1\n" + v1 + "grant_type=client_credentials&scope=vouchers+trash-bin"},

		"introspect": {nil, "HTTP/1.1 200 OK\r\n\r\n{\"active\":false}", func(t *testing.T, p *Provider) error {
			_, err := p.Introspect(t.Context(), client, token)
			return err
		}, "POST /v1/oauth/introspect HTTP/1.1\n" + v1 + "access_token=tok%2B1%2F%3D"},

		"revoke": {nil, noContent, func(t *testing.T, p *Provider) error {
			return p.Revoke(t.Context(), client, token)
		}, "POST /v1/oauth/token/revoke HTTP/1.1\n" + v1 + "access_token=tok%2B1%2F%3D"},

		"v2 token": {func(p *Provider) { p.OAuth, p.ProjectID = "v2", "proj 1" }, wiretest.Granted, func(t *testing.T, p *Provider) error {
			_, err := p.Token(t.Context(), client)
			return err
		}, "POST /v2/oauth/token HTTP/1.1\n" + v2 + "grant_type=client_credentials&project_id=proj+1&scope=api"},
	} {
		t.Run(name, func(t *testing.T) {
			server := wiretest.Serve(t, test.answer)
			p := key(server.URL)
			if test.change != nil {
				test.change(p)
			}
			if err := test.do(t, wiretest.Provision(t, p)); err != nil {
				t.Fatal(err)
			}
			if got := server.Last(t).String(); got != test.want {
				t.Errorf("request:\ngot  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestRecordedExchanges(t *testing.T) {
	vectors := wiretest.Vectors(t, "../testdata/voucherify-oauth.json")
	exchange := func(t *testing.T, name string) (wiretest.Vector, *wiretest.Server, *Provider) {
		v := vectors[name]
		server := wiretest.Serve(t, v.Answer())
		p := key(server.URL)
		p.AppID, p.AppToken = tokenprovider.Values{"<app_id>"}, tokenprovider.Values{"<app_token>"}
		return v, server, wiretest.Provision(t, p)
	}
	check := func(t *testing.T, v wiretest.Vector, server *wiretest.Server) {
		t.Helper()
		got := server.Last(t)
		if want := "POST " + v.Request.Path + " HTTP/1.1"; got.Line != want {
			t.Errorf("got %s, want %s", got.Line, want)
		}
		for name, value := range v.Request.Headers {
			if got.Header.Get(name) != value {
				t.Errorf("%s: got %q, want %q", name, got.Header.Get(name), value)
			}
		}
		if want := v.Form(t); !reflect.DeepEqual(got.Form(t), want) || got.Body != want.Encode() {
			t.Errorf("form: got %s, want %s", got.Body, want.Encode())
		}
	}

	for _, name := range []string{"granted", "wrong key"} {
		t.Run(name, func(t *testing.T) {
			v, server, p := exchange(t, name)
			token, err := p.Token(t.Context(), client)
			if granted := v.Response.Status == http.StatusOK; granted != (err == nil) || granted != (token != nil) {
				t.Errorf("got %v", err)
			}
			check(t, v, server)
		})
	}
	for name, active := range map[string]bool{"introspect active": true, "introspect inactive": false} {
		t.Run(name, func(t *testing.T) {
			v, server, p := exchange(t, name)
			in, err := p.Introspect(t.Context(), client, tokenprovider.NewSecret(v.Form(t).Get("access_token")))
			if err != nil {
				t.Fatal(err)
			}
			want := tokenprovider.Introspection{}
			if active {
				want = tokenprovider.Introspection{Active: true, ClientID: "a1Bcdefg2HI3Jkl4m5nOP", Scope: "api", Expires: time.Unix(1738945086, 0)}
			}
			if *in != want {
				t.Errorf("got %+v, want %+v", *in, want)
			}
			check(t, v, server)
		})
	}
	for _, name := range []string{"revoke", "revoke unknown"} {
		t.Run(name, func(t *testing.T) {
			v, server, p := exchange(t, name)
			if err := p.Revoke(t.Context(), client, tokenprovider.NewSecret(v.Form(t).Get("access_token"))); err != nil {
				t.Error(err)
			}
			check(t, v, server)
		})
	}
}

func TestErrorsOfTheTokenEndpoint(t *testing.T) {
	for _, test := range []struct {
		answer string
		class  tokenprovider.Class
		code   string
		advice string
	}{
		{"401 Unauthorized\r\n\r\n" + `{"code":401,"message":"MARKER","key":"unauthorized"}`, tokenprovider.Refused, "unauthorized", "secret"},
		{"403 Forbidden\r\n\r\n" + `{"code":403,"message":"MARKER","key":"missing_required_permission"}`, tokenprovider.Refused, "missing_required_permission", "permissions of the key"},
		{"400 Bad Request\r\n\r\n" + `{"code":400,"message":"MARKER","key":"invalid_scope"}`, tokenprovider.Refused, "invalid_scope", "scopes"},
		{"200 OK\r\n\r\n" + `{"code":400,"message":"MARKER","key":"invalid_grant_type"}`, tokenprovider.Refused, "invalid_grant_type", "rights"},
		{"403 Forbidden\r\n\r\n" + `{"message":"MARKER"}`, tokenprovider.Transient, "", "on the way"},
	} {
		server := wiretest.Serve(t, "HTTP/1.1 "+test.answer)
		_, err := wiretest.Provision(t, key(server.URL)).Token(t.Context(), client)
		e, ok := errors.AsType[*tokenprovider.Error](err)
		if !ok || e.Class != test.class || e.Code != test.code || !strings.Contains(e.Advice(), test.advice) {
			t.Errorf("%s: got %v, advice %q", test.answer, err, tokenprovider.Advice(err))
		}
		wiretest.NoLeak(t, err, "MARKER", "s3cret")
	}

	retry := strconv.FormatInt(time.Now().Add(2*time.Minute).Unix(), 10)
	server := wiretest.Serve(t, "HTTP/1.1 429 Too Many Requests\r\nX-Rate-Limit-Retry: "+retry+"\r\n\r\n")
	_, err := wiretest.Provision(t, key(server.URL)).Token(t.Context(), client)
	e, ok := errors.AsType[*tokenprovider.Error](err)
	if !ok || e.RetryAfter < time.Minute || e.RetryAfter > 2*time.Minute {
		t.Errorf("429: got %#v, want a wait of up to 2 minutes", err)
	}
}

func TestRevocationRefused(t *testing.T) {
	server := wiretest.Serve(t, "HTTP/1.1 401 Unauthorized\r\n\r\n"+`{"code":401,"message":"MARKER","key":"unauthorized"}`)
	err := wiretest.Provision(t, key(server.URL)).Revoke(t.Context(), client, tokenprovider.NewSecret("tok-1"))
	if err == nil || !strings.Contains(err.Error(), "401 Unauthorized (unauthorized)") {
		t.Errorf("got %v", err)
	}
	wiretest.NoLeak(t, err, "MARKER", "tok-1", "s3cret")
}

func TestSecretsArriveIntact(t *testing.T) {
	server := wiretest.Serve(t, wiretest.Granted)
	for _, version := range []string{"v1", "v2"} {
		for _, secret := range wiretest.Secrets {
			t.Setenv("TEST_ID", "ä~id+%2B")
			t.Setenv("TEST_SECRET", secret)
			p := key(server.URL)
			p.AppID, p.AppToken, p.OAuth = tokenprovider.Values{"{env.TEST_ID}"}, tokenprovider.Values{"{env.TEST_SECRET}"}, version
			if version == "v2" {
				p.ProjectID = "{env.TEST_SECRET}"
			}
			if _, err := wiretest.Provision(t, p).Token(t.Context(), client); err != nil {
				t.Fatal(err)
			}
			got := server.Last(t)
			id, value := got.Header.Get("X-App-Id"), got.Header.Get("X-App-Token")
			if version == "v2" {
				id, value = got.Basic(t)
				if project := got.Form(t).Get("project_id"); project != secret {
					t.Errorf("project_id: %q arrived as %q", secret, project)
				}
			}
			if id != "ä~id+%2B" || value != secret {
				t.Errorf("%s: %q arrived as %q, id %q", version, secret, value, id)
			}
		}
	}
}

func TestRotatedKeyFiles(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			server := wiretest.Serve(t, wiretest.Granted)
			dir := t.TempDir()
			idFile, secretFile := filepath.Join(dir, "id"), filepath.Join(dir, "token")
			p := key(server.URL)
			p.AppID, p.AppToken, p.OAuth = tokenprovider.Values{"{file." + idFile + "}"}, tokenprovider.Values{"{file." + secretFile + "}"}, version
			if version == "v2" {
				p.ProjectID = "proj"
			}
			wiretest.WriteFile(t, idFile, "id-first\r\n")
			wiretest.WriteFile(t, secretFile, "s3cret-first\r\n")
			wiretest.Provision(t, p)
			for _, n := range []string{"first", "second"} {
				wiretest.WriteFile(t, idFile, "id-"+n+"\r\n")
				wiretest.WriteFile(t, secretFile, "s3cret-"+n+"\r\n")
				if _, err := p.Token(t.Context(), client); err != nil {
					t.Fatal(err)
				}
				got := server.Last(t)
				id, secret := got.Header.Get("X-App-Id"), got.Header.Get("X-App-Token")
				if version == "v2" {
					id, secret = got.Basic(t)
				}
				if id != "id-"+n || secret != "s3cret-"+n {
					t.Errorf("got %s, %s, want the %s key", id, secret, n)
				}
			}

			wiretest.WriteFile(t, secretFile, "")
			_, err := p.Token(t.Context(), client)
			if err == nil || !strings.HasPrefix(err.Error(), "app_token: {file."+secretFile+"}") {
				t.Errorf("emptied file: %v", err)
			}
			wiretest.NoLeak(t, err, "id-", "s3cret-")
		})
	}
}

// With v2 the key is encoded on its way into a header, so any value will do.
func TestKeyThatNoHeaderCanCarryAsItIs(t *testing.T) {
	server := wiretest.Serve(t, wiretest.Granted)
	t.Setenv("TEST_LINES", "line-one\nline-two")
	p := key(server.URL)
	p.AppID, p.AppToken, p.OAuth, p.ProjectID = tokenprovider.Values{"{env.TEST_LINES}"}, tokenprovider.Values{"{env.TEST_LINES}"}, "v2", "proj"
	if _, err := wiretest.Provision(t, p).Token(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	if id, secret := server.Last(t).Basic(t); id != "line-one\nline-two" || secret != id {
		t.Errorf("arrived as %q, %q", id, secret)
	}
}

func TestKeyThatNoHeaderCanCarry(t *testing.T) {
	for option, change := range map[string]func(*Provider){
		"app_id":    func(p *Provider) { p.AppID = tokenprovider.Values{"{env.TEST_LINES}"} },
		"app_token": func(p *Provider) { p.AppToken = tokenprovider.Values{"{env.TEST_LINES}"} },
	} {
		t.Setenv("TEST_LINES", "line-one\nX-Other: line-two")
		p := key("http://127.0.0.1")
		change(p)
		err := wiretest.TryProvision(t, p)
		if err == nil || !strings.HasPrefix(err.Error(), option+": ") {
			t.Errorf("got %v, want an error of %s", err, option)
		}
		wiretest.NoLeak(t, err, "line-")
	}
}

func TestAPI(t *testing.T) {
	for region, want := range map[string]string{
		"":   "https://api.voucherify.io",
		"eu": "https://api.voucherify.io",
		"us": "https://us1.api.voucherify.io",
		"as": "https://as1.api.voucherify.io",
	} {
		p := key("")
		p.Region = region
		wiretest.Provision(t, p)
		if p.API().URL != want || p.Grant().TokenURL != want+"/v1/oauth/token" {
			t.Errorf("region %q: got %s and %s", region, p.API().URL, p.Grant().TokenURL)
		}
	}

	api := key("https://cluster.example").API()
	if api.URL != "https://cluster.example" || !api.IgnoresCase {
		t.Errorf("got %+v", api)
	}
	headers := []string{"X-App-Id", "X-App-Token", "X-Client-Application-Id", "X-Client-Token", "X-Management-Id", "X-Management-Token"}
	if !reflect.DeepEqual(api.CredentialHeaders, headers) {
		t.Errorf("credential headers: %v", api.CredentialHeaders)
	}
	if paths := []string{"/v1/oauth/", "/v2/oauth/", "/management/"}; !reflect.DeepEqual(api.CredentialPaths, paths) {
		t.Errorf("credential paths: %v", api.CredentialPaths)
	}
	if want := []tokenprovider.Endpoint{{Option: "api_url", URL: "https://cluster.example/v1/oauth/token"}}; !slices.Equal(api.Endpoints, want) {
		t.Errorf("endpoints: %v", api.Endpoints)
	}
	if got := key("").SecretOptions(); !reflect.DeepEqual(got, map[string]string{"app_token": "s3cret"}) {
		t.Errorf("secret options: %v", got)
	}
	if want := []string{"X-Rate-Limit-Retry"}; !slices.Equal(api.RetryHeaders, want) {
		t.Errorf("retry headers: %v", api.RetryHeaders)
	}
	if want := []string{"X-Rate-Limit-Remaining"}; !slices.Equal(api.RemainingHeaders, want) {
		t.Errorf("remaining headers: %v", api.RemainingHeaders)
	}
	mediaType, body := api.Error(503, "token_unavailable", "wait")
	if want := `{"code":503,"key":"token_unavailable","message":"wait"}`; mediaType != "application/json" || string(body) != want {
		t.Errorf("error: got %s %s", mediaType, body)
	}
}

func TestScopesForPaths(t *testing.T) {
	api := (&Provider{}).API()
	for path, want := range map[string]string{
		"/v1/vouchers":                      "api vouchers",
		"/v1/vouchers/":                     "api vouchers",
		"/v1/vouchers/code/balance":         "api vouchers",
		"/v1/validation-rules-assignments/": "api validation-rules-assignments",
		"/client/v1/redeem":                 "client_api client_redeem",
		"/client/v1/vouchers/":              "client_api client_vouchers",
		"/client/v1/campaigns":              "", // no scope of that name is documented
		"/v1/":                              "",
		"/v1/api":                           "",
		"/client/v1/api":                    "",
		"/v1/client_vouchers":               "",
		"/client/v1/client_vouchers":        "",
		"/v1/nothing/vouchers":              "",
		"/v2/loyalties":                     "",
		"/vouchers":                         "",
		"/client/":                          "",
		"":                                  "",
	} {
		if got := strings.Join(api.ScopesFor(path), " "); got != want {
			t.Errorf("%q: got %q, want %q", path, got, want)
		}
	}
	if api := (&Provider{OAuth: "v2"}).API(); api.ScopesFor != nil {
		t.Error("scopes of operations are known with OAuth v2, where none are documented")
	}
}

func TestGrant(t *testing.T) {
	p := wiretest.Provision(t, key("https://cluster.example"))
	want := tokenprovider.Grant{
		Provider:   "voucherify",
		TokenURL:   "https://cluster.example/v1/oauth/token",
		ClientID:   "id",
		AuthMethod: "x_app_token",
		Scopes:     []string{"api"},
	}
	if got := p.Grant(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if !p.CanRevoke() || !p.CanIntrospect() {
		t.Error("v1 can revoke and introspect")
	}
	other, err := p.WithScopes([]string{"vouchers"})
	if err != nil || !reflect.DeepEqual(other.Grant().Scopes, []string{"vouchers"}) {
		t.Errorf("WithScopes: %v", err)
	}
	if !reflect.DeepEqual(p.Grant(), want) {
		t.Errorf("WithScopes changed the original: %+v", p.Grant())
	}
	for _, scopes := range [][]string{nil, {"a,b"}, {"a", "a"}} {
		if _, err := p.WithScopes(scopes); err == nil || !strings.HasPrefix(err.Error(), "scopes") {
			t.Errorf("WithScopes(%q): %v", scopes, err)
		}
	}

	p = key("https://cluster.example")
	p.OAuth, p.ProjectID = "v2", "proj"
	wiretest.Provision(t, p)
	want.TokenURL, want.AuthMethod = "https://cluster.example/v2/oauth/token", "client_secret_basic_raw"
	want.Params = []tokenprovider.Param{{Name: "project_id", Value: "proj"}}
	if got := p.Grant(); !reflect.DeepEqual(got, want) {
		t.Errorf("v2: got  %+v\nwant %+v", got, want)
	}
	if p.CanRevoke() || p.CanIntrospect() {
		t.Error("v2 can neither revoke nor introspect")
	}
}

// Scopes may be left to routes and grants, but no token is asked for without any.
func TestNoScopes(t *testing.T) {
	server := wiretest.Serve(t, wiretest.Granted)
	p := key(server.URL)
	p.Scopes = nil
	wiretest.Provision(t, p)
	if _, err := p.Token(t.Context(), client); err == nil || err.Error() != "scopes is required; api stands for the whole server side" || len(server.Requests()) != 0 {
		t.Errorf("got %v after %d requests", err, len(server.Requests()))
	}
	scoped, err := p.WithScopes([]string{"vouchers"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := scoped.Token(t.Context(), client); err != nil || !strings.HasSuffix(server.Last(t).Body, "scope=vouchers") {
		t.Errorf("with scopes: %v", err)
	}
}

func TestUnknownScopes(t *testing.T) {
	p := key("")
	p.Scopes = []string{"api", "voucher", "zzzzzzzz"}
	want := []string{`voucherify does not document the scope "voucher"; did you mean "vouchers"?`, `voucherify does not document the scope "zzzzzzzz"`}
	if got := p.UnknownScopes(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q", got)
	}
	p.Scopes = scopesV1
	if got := p.UnknownScopes(); len(got) != 0 || len(scopesV1) != 42 {
		t.Errorf("%d documented scopes, of which not known: %q", len(scopesV1), got)
	}
	p.OAuth, p.Scopes = "v2", []string{"vouchers.read"}
	if got := p.UnknownScopes(); len(got) != 0 {
		t.Errorf("v2: got %q", got)
	}
}

func TestValidate(t *testing.T) {
	for _, test := range []struct {
		change func(*Provider)
		want   string // what the error starts with
	}{
		{func(p *Provider) { p.AppID = nil }, "app_id"},
		{func(p *Provider) { p.AppToken = nil }, "app_token"},
		{func(p *Provider) { p.Scopes = []string{"a,b"} }, `scopes: "a,b" holds a comma`},
		{func(p *Provider) { p.Scopes = []string{"a", "a"} }, `scopes: "a" is given twice`},
		{func(p *Provider) { p.Region = "EU" }, `region: "EU"`},
		{func(p *Provider) { p.Region, p.APIURL = "eu", "https://cluster.example" }, "region"},
		{func(p *Provider) { p.OAuth = "2" }, `oauth: "2"`},
		{func(p *Provider) { p.OAuth = "v2" }, "project_id"},
		{func(p *Provider) { p.ProjectID = "proj" }, "project_id"},
		{func(p *Provider) { p.APIURL = "https://cluster.example/" }, "api_url"},
		{func(p *Provider) { p.AppID = tokenprovider.Values{"{env.TEST_UNSET}"} }, "app_id: {env.TEST_UNSET}"},
		{func(p *Provider) { p.AppToken = tokenprovider.Values{"{env.TEST_UNSET}"} }, "app_token: {env.TEST_UNSET}"},
		{func(p *Provider) { p.OAuth, p.ProjectID = "v2", "{env.TEST_UNSET}" }, "project_id: {env.TEST_UNSET}"},
	} {
		p := key("")
		test.change(p)
		err := wiretest.TryProvision(t, p)
		if err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("got %v, want an error of %s", err, test.want)
		}
		wiretest.NoLeak(t, err, "s3cret")
	}
}

// unmarshal reads a provider as a Caddyfile has it.
func unmarshal(p *Provider, input string) error {
	d := caddyfile.NewTestDispenser(input)
	d.Next()
	_, err := option.ReadProvider(d, "provider "+d.Val(), p, nil, nil)
	return err
}

func TestUnmarshalCaddyfile(t *testing.T) {
	for input, want := range map[string]Provider{
		`voucherify {
			app_id     id
			app_token  {env.SECRET}
			scopes     vouchers.read campaigns.read
			region     us
			oauth      v2
			project_id proj
		}`: {
			AppID:     tokenprovider.Values{"id"},
			AppToken:  tokenprovider.Values{"{env.SECRET}"},
			Scopes:    []string{"vouchers.read", "campaigns.read"},
			Region:    "us",
			OAuth:     "v2",
			ProjectID: "proj",
		},
		`voucherify https://cluster.example {
			app_id    id
			app_token {env.SECRET}
			scopes    api
		}`: {APIURL: "https://cluster.example", AppID: tokenprovider.Values{"id"}, AppToken: tokenprovider.Values{"{env.SECRET}"}, Scopes: []string{"api"}},
	} {
		var p Provider
		err := unmarshal(&p, input)
		if err != nil || !reflect.DeepEqual(p, want) {
			t.Errorf("got  %+v, %v\nwant %+v", p, err, want)
		}
	}
}

func TestUnmarshalCaddyfileErrors(t *testing.T) {
	for input, want := range map[string]string{
		"voucherify a b":                             `unexpected argument "b"`,
		"voucherify a {\n api_url b\n}":              "api_url is already given",
		"voucherify {\n app_id a\n app_id b\n}":      "app_id is already given",
		"voucherify {\n app_id a b\n app_token c\n}": "app_id: has 2 values, and app_token 1; give one for each",
		"voucherify {\n app_token\n}":                "app_token: needs at least one value",
		"voucherify {\n scopes a\n scopes b\n}":      "scopes is already given",
		"voucherify {\n scopes\n}":                   "scopes: needs at least one value",
		"voucherify {\n region\n}":                   "region: needs a value",
		"voucherify {\n oauth v1 v2\n}":              `oauth: has an argument too many; quote a value that holds spaces`,
		"voucherify {\n project_id a {\n x\n }\n}":   "project_id: takes no block",
		"voucherify {\n token_url https://a.b/c\n}":  `unknown option "token_url"`,

		"voucherify {\n app_id a\n app_token b\n scopes a,b\n}":            `scopes: "a,b" holds a comma`,
		"voucherify https://x/v1 {\n app_id a\n app_token b\n scopes c\n}": "api_url: ",
		"voucherify {\n app_id a\n app_token b\n scopes c\n region xx\n}":  `region: "xx"`,
		"voucherify {\n app_id a\n app_token b\n scopes c\n oauth v2\n}":   "project_id is required",
	} {
		err := unmarshal(new(Provider), input)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot %v, want %s", input, err, want)
		}
	}
}
