package oauth2

import (
	"maps"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokenprovider/internal/wiretest"
)

const (
	basic    = "client_secret_basic"
	basicRaw = "client_secret_basic_raw"
	post     = "client_secret_post"
)

var client = tokenprovider.NewClient(nil)

// values returns the values of an option.
func values(all ...string) tokenprovider.Values { return all }

// at returns a provider whose endpoints are on server.
func at(server string) *Provider {
	return &Provider{
		APIURL:           "https://api.example",
		TokenURL:         server + "/token?tenant=1",
		RevocationURL:    server + "/revoke",
		IntrospectionURL: server + "/introspect",
		ClientID:         values("i d"),
		ClientSecret:     values("s3:cret"),
	}
}

func TestRequests(t *testing.T) {
	const (
		accept = "Accept: application/json\n"
		rest   = "Content-Type: application/x-www-form-urlencoded\nUser-Agent: caddy-egress\n"
		// the base64 of i+d:s3%3Acret
		withBasic = accept + "Authorization: Basic aStkOnMzJTNBY3JldA==\n" + rest + "\n"
		// the base64 of i d:s3:cret
		withBasicRaw = accept + "Authorization: Basic aSBkOnMzOmNyZXQ=\n" + rest + "\n"
		withPost     = accept + rest + "\n"

		tokenLine = "POST /token?tenant=1 HTTP/1.1\n"
		grant     = "grant_type=client_credentials"
	)
	token := func(t *testing.T, p *Provider) error {
		_, err := p.Token(t.Context(), client)
		return err
	}
	revoke := func(t *testing.T, p *Provider) error {
		return p.Revoke(t.Context(), client, tokenprovider.NewSecret("tok+1"))
	}
	introspect := func(t *testing.T, p *Provider) error {
		_, err := p.Introspect(t.Context(), client, tokenprovider.NewSecret("tok+1"))
		return err
	}
	for name, test := range map[string]struct {
		change func(*Provider)
		do     func(*testing.T, *Provider) error
		want   string
	}{
		"default":   {func(*Provider) {}, token, tokenLine + withBasic + grant},
		"basic":     {func(p *Provider) { p.AuthMethod = basic }, token, tokenLine + withBasic + grant},
		"basic raw": {func(p *Provider) { p.AuthMethod = basicRaw }, token, tokenLine + withBasicRaw + grant},
		"post":      {func(p *Provider) { p.AuthMethod = post }, token, tokenLine + withPost + "client_id=i+d&client_secret=s3%3Acret&" + grant},
		"scopes": {func(p *Provider) { p.Scopes = []string{"a", "https://b/c"} }, token,
			tokenLine + withBasic + grant + "&scope=a+https%3A%2F%2Fb%2Fc"},
		"audience": {func(p *Provider) { p.Audience = []string{"https://b", "a"} }, token,
			tokenLine + withBasic + "audience=https%3A%2F%2Fb&audience=a&" + grant},
		"resource": {func(p *Provider) { p.Resource = []string{"urn:b", "https://a/?q=1"} }, token,
			tokenLine + withBasic + grant + "&resource=urn%3Ab&resource=https%3A%2F%2Fa%2F%3Fq%3D1"},
		"params": {func(p *Provider) { p.Params = map[string]string{"z": "ä&=", "a b": "{env.TEST_PARAM}"} }, token,
			tokenLine + withBasic + "a+b=from+env&" + grant + "&z=%C3%A4%26%3D"},
		"headers": {func(p *Provider) {
			p.Headers = map[string]string{"x-api-key": "{env.TEST_PARAM}", "user-agent": "My/App", "accept": "application/vnd.example+json"}
		}, token, tokenLine + "Accept: application/vnd.example+json\nAuthorization: Basic aStkOnMzJTNBY3JldA==\n" +
			"Content-Type: application/x-www-form-urlencoded\nUser-Agent: My/App\nX-Api-Key: from env\n\n" + grant},

		"revocation": {func(*Provider) {}, revoke,
			"POST /revoke HTTP/1.1\n" + withBasic + "token=tok%2B1&token_type_hint=access_token"},
		"revocation by post": {func(p *Provider) { p.AuthMethod = post }, revoke,
			"POST /revoke HTTP/1.1\n" + withPost + "client_id=i+d&client_secret=s3%3Acret&token=tok%2B1&token_type_hint=access_token"},
		"introspection": {func(*Provider) {}, introspect,
			"POST /introspect HTTP/1.1\n" + withBasic + "token=tok%2B1&token_type_hint=access_token"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("TEST_PARAM", "from env")
			server := wiretest.Serve(t, "HTTP/1.1 200 OK\r\n\r\n"+`{"access_token":"tok-1","active":true}`)
			p := at(server.URL)
			test.change(p)
			if err := test.do(t, wiretest.Provision(t, p)); err != nil {
				t.Fatal(err)
			}
			if got := server.Last(t).String(); got != test.want {
				t.Errorf("request:\ngot  %s\nwant %s", got, test.want)
			}
		})
	}
}

// What the second request sends must not depend on what the first one did.
func TestRequestsDoNotChangeTheProvider(t *testing.T) {
	server := wiretest.Serve(t, wiretest.Granted)
	p := at(server.URL)
	p.AuthMethod, p.Audience, p.Params = post, []string{"a"}, map[string]string{"x": "y"}
	wiretest.Provision(t, p)
	for range 2 {
		if _, err := p.Token(t.Context(), client); err != nil {
			t.Fatal(err)
		}
	}
	if got := server.Requests(); !reflect.DeepEqual(got[0], got[1]) {
		t.Errorf("got %v and %v", got[0], got[1])
	}
}

func TestSecretsArriveIntact(t *testing.T) {
	server := wiretest.Serve(t, wiretest.Granted)
	for _, method := range []string{basic, basicRaw, post} {
		for _, secret := range wiretest.Secrets {
			id := "ä+ &%2B~"
			t.Setenv("TEST_ID", id)
			t.Setenv("TEST_SECRET", secret)
			p := at(server.URL)
			p.ClientID, p.ClientSecret, p.AuthMethod = values("{env.TEST_ID}"), values("{env.TEST_SECRET}"), method
			p.Headers = map[string]string{"X-Key": "{env.TEST_SECRET}"}
			if _, err := wiretest.Provision(t, p).Token(t.Context(), client); err != nil {
				t.Fatal(err)
			}
			got := server.Last(t)
			var gotID, gotSecret string
			switch form := got.Form(t); method {
			case basic: // both decoded as RFC 6749 §2.3.1 says
				gotID, gotSecret = got.Basic(t)
				gotID, _ = url.QueryUnescape(gotID)
				gotSecret, _ = url.QueryUnescape(gotSecret)
			case basicRaw:
				gotID, gotSecret = got.Basic(t)
			case post:
				gotID, gotSecret = form.Get("client_id"), form.Get("client_secret")
			}
			if gotID != id || gotSecret != secret {
				t.Errorf("%s: %q arrived as %q, id %q", method, secret, gotSecret, gotID)
			}
			if key := got.Header.Get("X-Key"); key != secret {
				t.Errorf("header: %q arrived as %q", secret, key)
			}
		}
	}
}

func TestRotatedSecretFiles(t *testing.T) {
	server := wiretest.Serve(t, wiretest.Granted)
	dir := t.TempDir()
	secretFile, keyFile := filepath.Join(dir, "secret"), filepath.Join(dir, "key")
	p := at(server.URL)
	p.ClientSecret, p.AuthMethod = values("{file."+secretFile+"}"), post
	p.Headers = map[string]string{"X-Key": "{file." + keyFile + "}"}
	wiretest.WriteFile(t, secretFile, "secret-first\n")
	wiretest.WriteFile(t, keyFile, "key-first\n")
	wiretest.Provision(t, p)
	for _, n := range []string{"first", "second"} {
		wiretest.WriteFile(t, secretFile, "secret-"+n+"\n")
		wiretest.WriteFile(t, keyFile, "key-"+n+"\n")
		if _, err := p.Token(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		got := server.Last(t)
		if secret, key := got.Form(t).Get("client_secret"), got.Header.Get("X-Key"); secret != "secret-"+n || key != "key-"+n {
			t.Errorf("got %s and %s, want the %s ones", secret, key, n)
		}
		secrets, err := p.Secrets()
		if err != nil || len(secrets) != 2 || secrets[0].Reveal() != "secret-"+n || secrets[1].Reveal() != "key-"+n {
			t.Errorf("secrets of the %s files: %d, %v", n, len(secrets), err)
		}
	}

	for _, test := range []struct{ file, content, want string }{
		{keyFile, "", "header X-Key: {file." + keyFile + "}"},
		{keyFile, "key-of\ntwo lines", "header X-Key: the value holds characters"},
		{secretFile, "", "client_secret: {file." + secretFile + "}"},
	} {
		wiretest.WriteFile(t, test.file, test.content)
		_, err := p.Token(t.Context(), client)
		if err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("got %v, want %s", err, test.want)
		}
		if _, err := p.Secrets(); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("secrets: got %v, want %s", err, test.want)
		}
		wiretest.NoLeak(t, err, "secret-second", "key-second", "key-of")
	}
	if n := len(server.Requests()); n != 2 {
		t.Errorf("got %d requests, want none without a secret", n)
	}
}

func TestGrant(t *testing.T) {
	t.Setenv("TEST_ID", "id")
	p := at("https://auth.example")
	p.ClientID = values("{env.TEST_ID}")
	p.Scopes, p.Audience, p.Resource = []string{"a"}, []string{"b"}, []string{"urn:c"}
	p.Params = map[string]string{"z": "{env.TEST_ID}", "a": "1"}
	p.Headers = map[string]string{"X-Z": "key-z", "X-A": "key-a"}
	wiretest.Provision(t, p)
	want := tokenprovider.Grant{
		Provider:   "oauth2",
		TokenURL:   "https://auth.example/token?tenant=1",
		ClientID:   "id",
		AuthMethod: "client_secret_basic",
		Scopes:     []string{"a"},
		Audience:   []string{"b"},
		Resource:   []string{"urn:c"},
		Params:     []tokenprovider.Param{{Name: "a", Value: "1"}, {Name: "z", Value: "id"}},
		Headers:    []string{"X-A", "X-Z"},
	}
	if got := p.Grant(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	wiretest.NoLeak(t, p.Grant(), "s3:cret", "key-z")

	other, err := p.WithScopes(nil)
	if err != nil || len(other.Grant().Scopes) != 0 || !reflect.DeepEqual(other.Grant().Params, want.Params) {
		t.Errorf("WithScopes: %+v, %v", other.Grant(), err)
	}
	if !reflect.DeepEqual(p.Grant(), want) {
		t.Errorf("WithScopes changed the original: %+v", p.Grant())
	}
	if _, err := p.WithScopes([]string{"ä"}); err == nil {
		t.Error("WithScopes of no scope: no error")
	}
}

func TestAPI(t *testing.T) {
	p := at("https://auth.example")
	api := p.API()
	if api.URL != "https://api.example" || len(api.CredentialHeaders) != 0 || len(api.CredentialPaths) != 0 {
		t.Errorf("got %+v", api)
	}
	p.APIURL = "https://auth.example"
	if got := p.API(); !got.IgnoresCase || !reflect.DeepEqual(got.CredentialPaths, tokenprovider.CredentialPaths(p.APIURL, api.Endpoints)) || len(got.CredentialPaths) != 3 {
		t.Errorf("credential paths at the host of the endpoints: %v", got.CredentialPaths)
	}
	endpoints := []tokenprovider.Endpoint{
		{Option: "token_url", URL: p.TokenURL}, {Option: "revocation_url", URL: p.RevocationURL}, {Option: "introspection_url", URL: p.IntrospectionURL},
	}
	if !reflect.DeepEqual(api.Endpoints, endpoints) {
		t.Errorf("endpoints: %v", api.Endpoints)
	}
	if got := (&Provider{TokenURL: "https://a"}).API().Endpoints; len(got) != 1 || got[0] != (tokenprovider.Endpoint{Option: "token_url", URL: "https://a"}) {
		t.Errorf("endpoints of one: %v", got)
	}
	if want := []string{"X-Rate-Limit-Remaining", "X-Ratelimit-Remaining", "Ratelimit-Remaining"}; !reflect.DeepEqual(api.RemainingHeaders, want) {
		t.Errorf("remaining headers: %v", api.RemainingHeaders)
	}
	mediaType, body := api.Error(503, "token_unavailable", "wait")
	want := `{"title":"Service Unavailable","status":503,"detail":"wait","code":"token_unavailable"}`
	if mediaType != "application/problem+json" || string(body) != want {
		t.Errorf("error: got %s %s", mediaType, body)
	}
	if !p.CanRevoke() || !p.CanIntrospect() {
		t.Error("with both endpoints it can revoke and introspect")
	}
	if p = new(Provider); p.CanRevoke() || p.CanIntrospect() {
		t.Error("without endpoints it can do neither")
	}
}

func TestValidate(t *testing.T) {
	for _, test := range []struct {
		change func(*Provider)
		want   string // what the error starts with
	}{
		{func(p *Provider) { p.APIURL = "" }, "api_url"},
		{func(p *Provider) { p.APIURL = "https://api.example/v1" }, "api_url"},
		{func(p *Provider) { p.TokenURL = "" }, "token_url"},
		{func(p *Provider) { p.TokenURL = "https://u:s3:cret@auth.example" }, "token_url"},
		{func(p *Provider) { p.RevocationURL = "/revoke" }, "revocation_url"},
		{func(p *Provider) { p.IntrospectionURL = "https://a/#b" }, "introspection_url"},
		{func(p *Provider) { p.ClientID = nil }, "client_id"},
		{func(p *Provider) { p.ClientSecret = nil }, "client_secret"},
		{func(p *Provider) { p.AuthMethod = "client_secret_jwt" }, `auth_method: "client_secret_jwt"`},
		{func(p *Provider) { p.Scopes = []string{"a b"} }, "scopes"},
		{func(p *Provider) { p.Resource = []string{"/relative"} }, `resource: "/relative"`},
		{func(p *Provider) { p.Resource = []string{"https://a/#b"} }, "resource"},
		{func(p *Provider) { p.Params = map[string]string{"scope": "a"} }, "param scope"},
		{func(p *Provider) { p.Params = map[string]string{"grant_type": "a"} }, "param grant_type"},
		{func(p *Provider) { p.Params = map[string]string{"client_secret": "a"} }, "param client_secret"},
		{func(p *Provider) { p.Params = map[string]string{"": "a"} }, "param"},
		{func(p *Provider) { p.Params = map[string]string{"x": "{env.TEST_UNSET}"} }, "param x: {env.TEST_UNSET}"},
		{func(p *Provider) { p.Headers = map[string]string{"a b": "c"} }, "header a b"},
		{func(p *Provider) { p.Headers = map[string]string{"authorization": "c"} }, "header authorization"},
		{func(p *Provider) { p.Headers = map[string]string{"x-key": "a", "X-Key": "b"} }, "header X-Key"},
		{func(p *Provider) { p.Headers = map[string]string{"X-Key": "{env.TEST_UNSET}"} }, "header X-Key: {env.TEST_UNSET}"},
		{func(p *Provider) { p.Headers = map[string]string{"X-Key": "s3:cret\n"} }, "header X-Key"},
		{func(p *Provider) { p.ClientID = values("{env.TEST_UNSET}") }, "client_id: {env.TEST_UNSET}"},
		{func(p *Provider) { p.ClientSecret = values("{env.TEST_UNSET}") }, "client_secret: {env.TEST_UNSET}"},
		{func(p *Provider) { p.ClientSecret = values("{s3:cret}{unknown}") }, "client_secret"},
	} {
		p := at("https://auth.example")
		test.change(p)
		err := wiretest.TryProvision(t, p)
		if err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("got %v, want an error of %s", err, test.want)
		}
		wiretest.NoLeak(t, err, "s3:cret")
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
	var p Provider
	err := unmarshal(&p, `oauth2 https://api.example {
		token_url         https://auth.example/token
		client_id         id
		client_secret     {env.SECRET}
		auth_method       client_secret_post
		scopes            a b
		audience          c d
		resource          urn:e urn:f
		param             g h
		param             i "j k"
		header            X-L m
		revocation_url    https://auth.example/revoke
		introspection_url https://auth.example/introspect
	}`)
	want := Provider{
		APIURL:           "https://api.example",
		TokenURL:         "https://auth.example/token",
		ClientID:         values("id"),
		ClientSecret:     values("{env.SECRET}"),
		AuthMethod:       "client_secret_post",
		Scopes:           []string{"a", "b"},
		Audience:         []string{"c", "d"},
		Resource:         []string{"urn:e", "urn:f"},
		Params:           map[string]string{"g": "h", "i": "j k"},
		Headers:          map[string]string{"X-L": "m"},
		RevocationURL:    "https://auth.example/revoke",
		IntrospectionURL: "https://auth.example/introspect",
	}
	if err != nil || !reflect.DeepEqual(p, want) {
		t.Errorf("got  %+v, %v\nwant %+v", p, err, want)
	}
}

func TestUnmarshalCaddyfileErrors(t *testing.T) {
	for input, want := range map[string]string{
		"oauth2 a b":                                      `unexpected argument "b"`,
		"oauth2 a {\n api_url b\n}":                       "api_url is already given",
		"oauth2 {\n token_url a\n token_url b\n}":         "token_url is already given",
		"oauth2 {\n auth_method\n}":                       "auth_method: needs a value",
		"oauth2 {\n audience\n}":                          "audience: needs at least one value",
		"oauth2 {\n audience a\n audience b\n}":           "audience is already given",
		"oauth2 {\n resource a\n resource b\n}":           "resource is already given",
		"oauth2 {\n param a\n}":                           "param: needs a name and a value",
		"oauth2 {\n param a b c\n}":                       `param: has an argument too many; quote a value that holds spaces`,
		"oauth2 {\n param a b\n param a c\n}":             "param a is already given",
		"oauth2 {\n header A b\n header A c\n}":           "header A is already given",
		"oauth2 {\n header A b {\n c\n }\n}":              "header: takes no block",
		"oauth2 {\n revocation_url a b\n}":                `revocation_url: has an argument too many; quote a value that holds spaces`,
		"oauth2 {\n introspection_url\n}":                 "introspection_url: needs a value",
		"oauth2 {\n client_secret a\n client_secret b\n}": "client_secret is already given",
		"oauth2 {\n param a \"\"\n}":                      "param a: is empty",
		"oauth2 {\n header \"\" a\n}":                     "header: needs a name and a value",
		"oauth2 {\n token_url a\n}":                       "api_url is required",
		"oauth2 https://x {\n token_url https://y\n client_id a\n client_secret b\n param scope c\n}":               "param scope: ",
		"oauth2 https://x {\n token_url https://y\n client_id a\n client_secret b\n header x-a c\n header X-A d\n}": "header X-A: ",
		"oauth2 {\n params a b\n}": `unknown option "params"`,
	} {
		err := unmarshal(new(Provider), input)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot %v, want %s", input, err, want)
		}
	}
}

// The names of parameters and headers say which are secret, case-insensitive.
func TestSecretOptions(t *testing.T) {
	p := &Provider{
		ClientSecret: values("cs"),
		Params: map[string]string{
			"tenant": "1", "assertion": "2", "my_password": "3", "Credential": "4", "audience_hint": "5",
		},
		Headers: map[string]string{
			"X-Tenant": "1", "X-API-KEY": "2", "X-Auth": "3", "X-Token": "4", "X-The-Secret-One": "5",
		},
	}
	want := map[string]string{
		"client_secret":   "cs",
		"param assertion": "2", "param my_password": "3", "param Credential": "4",
		"header X-API-KEY": "2", "header X-Auth": "3", "header X-Token": "4", "header X-The-Secret-One": "5",
	}
	if got := p.SecretOptions(); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
