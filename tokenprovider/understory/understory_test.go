package understory

import (
	"errors"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokenprovider/internal/wiretest"
)

var client = tokenprovider.NewClient(nil)

func TestTokenRequest(t *testing.T) {
	const head = "POST /oauth2/token HTTP/1.1\n" +
		"Accept: application/json\n" +
		"Content-Type: application/x-www-form-urlencoded\n"
	for name, test := range map[string]struct {
		provider Provider
		want     string
	}{
		"defaults": {Provider{},
			head + "User-Agent: caddy-egress\n\n" +
				"audience=https%3A%2F%2Fapi.understory.io&client_id=id&client_secret=s3cret&grant_type=client_credentials"},
		"all options": {Provider{Scopes: []string{"openid", "marketing.read"}, Audience: "https://other.example", UserAgent: "My-Company/App"},
			head + "User-Agent: My-Company/App\n\n" +
				"audience=https%3A%2F%2Fother.example&client_id=id&client_secret=s3cret&grant_type=client_credentials&scope=openid+marketing.read"},
	} {
		t.Run(name, func(t *testing.T) {
			server := wiretest.Serve(t, wiretest.Granted)
			p := test.provider
			p.ClientID, p.ClientSecret, p.TokenURL = tokenprovider.Values{"id"}, tokenprovider.Values{"s3cret"}, server.URL+"/oauth2/token"
			token, err := wiretest.Provision(t, &p).Token(t.Context(), client)
			if err != nil {
				t.Fatal(err)
			}
			if token.Value.Reveal() != "tok-1" {
				t.Errorf("token: got %q", token.Value.Reveal())
			}
			if got := server.Last(t).String(); got != test.want {
				t.Errorf("request:\ngot  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestRecordedRequests(t *testing.T) {
	vectors := wiretest.Vectors(t, "../testdata/understory-token-endpoint.json")
	for _, name := range []string{"granted", "granted without scope", "scope not allowed", "audience not allowed"} {
		t.Run(name, func(t *testing.T) {
			v := vectors[name]
			form := v.Form(t)
			server := wiretest.Serve(t, v.Answer())
			p := wiretest.Provision(t, &Provider{
				ClientID:     tokenprovider.Values{form.Get("client_id")},
				ClientSecret: tokenprovider.Values{form.Get("client_secret")},
				Scopes:       strings.Fields(form.Get("scope")),
				Audience:     form.Get("audience"),
				UserAgent:    v.Request.Headers["User-Agent"],
				TokenURL:     server.URL + v.Request.Path,
			})
			_, _ = p.Token(t.Context(), client) // what is made of answers is tested where they are read

			got := server.Last(t)
			if want := "POST " + v.Request.Path + " HTTP/1.1"; got.Line != want {
				t.Errorf("got %s, want %s", got.Line, want)
			}
			header := http.Header{"Accept": {"application/json"}}
			for name, value := range v.Request.Headers {
				header.Set(name, value)
			}
			if !reflect.DeepEqual(got.Header, header) {
				t.Errorf("header: got %v, want %v", got.Header, header)
			}
			if !reflect.DeepEqual(got.Form(t), form) {
				t.Errorf("form: got %v, want %v", got.Form(t), form)
			}
			if got.Body != form.Encode() {
				t.Errorf("body: got %s, want %s", got.Body, form.Encode())
			}
		})
	}
}

func TestSecretsArriveIntact(t *testing.T) {
	server := wiretest.Serve(t, wiretest.Granted)
	for _, secret := range wiretest.Secrets {
		t.Setenv("TEST_ID", "id of "+secret)
		t.Setenv("TEST_SECRET", secret)
		p := wiretest.Provision(t, &Provider{ClientID: tokenprovider.Values{"{env.TEST_ID}"}, ClientSecret: tokenprovider.Values{"{env.TEST_SECRET}"}, TokenURL: server.URL})
		if _, err := p.Token(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		form := server.Last(t).Form(t)
		if form.Get("client_id") != "id of "+secret || form.Get("client_secret") != secret {
			t.Errorf("%q arrived as %q", secret, form)
		}
		if got := p.Grant().ClientID; got != "id of "+secret {
			t.Errorf("client id of the grant: %q", got)
		}
		if secrets, err := p.Secrets(); err != nil || len(secrets) != 1 || secrets[0].Reveal() != secret {
			t.Errorf("secrets: %d, %v", len(secrets), err)
		}
	}
}

func TestRotatedSecretFile(t *testing.T) {
	server := wiretest.Serve(t, wiretest.Granted)
	file := filepath.Join(t.TempDir(), "secret")
	wiretest.WriteFile(t, file, "first-secret\n")
	p := wiretest.Provision(t, &Provider{ClientID: tokenprovider.Values{"id"}, ClientSecret: tokenprovider.Values{"{file." + file + "}"}, TokenURL: server.URL})
	for _, secret := range []string{"first-secret", "second-secret"} {
		wiretest.WriteFile(t, file, secret+"\n")
		if _, err := p.Token(t.Context(), client); err != nil {
			t.Fatal(err)
		}
		if got := server.Last(t).Form(t).Get("client_secret"); got != secret {
			t.Errorf("got %q, want %q", got, secret)
		}
	}

	wiretest.WriteFile(t, file, "\n")
	_, err := p.Token(t.Context(), client)
	if err == nil || !strings.HasPrefix(err.Error(), "client_secret: {file."+file+"}") {
		t.Errorf("emptied file: %v", err)
	}
	wiretest.NoLeak(t, err, "first-secret", "second-secret")
	if _, err := p.Secrets(); err == nil {
		t.Error("emptied file: no error from Secrets")
	}
	if n := len(server.Requests()); n != 2 {
		t.Errorf("got %d requests, want none with an empty secret", n)
	}
}

func TestAPI(t *testing.T) {
	api := (&Provider{}).API()
	if api.URL != "https://api.understory.io" || api.UserAgent != "" || api.RateLimitWait != time.Minute {
		t.Errorf("got %+v", api)
	}
	if got := (&Provider{APIURL: "http://localhost:1", UserAgent: "My/App"}).API(); got.URL != "http://localhost:1" || got.UserAgent != "My/App" {
		t.Errorf("got %+v", got)
	}
	if want := []tokenprovider.Endpoint{{Option: "token_url", URL: "https://api.auth.understory.io/oauth2/token"}}; !reflect.DeepEqual(api.Endpoints, want) {
		t.Errorf("endpoints: %v", api.Endpoints)
	}
	if want := []string{"X-Rate-Limit-Remaining", "X-Ratelimit-Remaining", "Ratelimit-Remaining"}; !reflect.DeepEqual(api.RemainingHeaders, want) {
		t.Errorf("remaining headers: %v", api.RemainingHeaders)
	}
	if got := (&Provider{ClientSecret: tokenprovider.Values{"s"}}).SecretOptions(); !reflect.DeepEqual(got, map[string]string{"client_secret": "s"}) {
		t.Errorf("secret options: %v", got)
	}
	mediaType, body := api.Error(503, "token_unavailable", `no "token"`)
	if want := `{"code":"token_unavailable","message":"no \"token\""}`; mediaType != "application/json" || string(body) != want {
		t.Errorf("error: got %s %s", mediaType, body)
	}
}

// The API may answer for the token endpoint, in its own shape.
func TestErrorsOfTheTokenEndpoint(t *testing.T) {
	for answer, want := range map[string]tokenprovider.Error{
		`{"error":"invalid_client"}`:                  {Class: tokenprovider.Refused, Code: "invalid_client"},
		`{"code":"UNAUTHORIZED","message":"MARKER"}`:  {Class: tokenprovider.Refused, Code: "UNAUTHORIZED"},
		`{"message":"MARKER"}`:                        {Class: tokenprovider.Transient},
		`{"code":401,"key":"x_y","message":"MARKER"}`: {Class: tokenprovider.Refused},
	} {
		server := wiretest.Serve(t, "HTTP/1.1 401 Unauthorized\r\n\r\n"+answer)
		_, err := wiretest.Provision(t, &Provider{ClientID: tokenprovider.Values{"id"}, ClientSecret: tokenprovider.Values{"s3cret"}, TokenURL: server.URL}).Token(t.Context(), client)
		e, ok := errors.AsType[*tokenprovider.Error](err)
		if !ok || e.Class != want.Class || e.Code != want.Code {
			t.Errorf("%s: got %#v", answer, err)
		}
		wiretest.NoLeak(t, err, "MARKER", "s3cret")
	}
}

func TestScopesForPaths(t *testing.T) {
	api := new(Provider).API()
	for path, want := range map[string]string{
		"/v1/bookings":                "booking.read booking.write",
		"/v1/bookings/":               "booking.read booking.write",
		"/v1/bookings/id/tickets":     "booking.read booking.write",
		"/v1/events":                  "event.read",
		"/v1/event-availabilities/id": "event.read",
		"/v1/experiences/id":          "experience.read",
		"/v1/orders/id/refunds":       "order.read",
		"/v1/marketing-consents":      "marketing.read",
		"/v1/webhook-subscriptions":   "webhook.read webhook.write",
		"/v1/me":                      "",
		"/v1/gift-cards":              "",
		"/v1/":                        "",
		"/v2/bookings":                "",
		"":                            "",
	} {
		if got := strings.Join(api.ScopesFor(path), " "); got != want {
			t.Errorf("%q: got %q, want %q", path, got, want)
		}
	}
}

func TestGrant(t *testing.T) {
	p := wiretest.Provision(t, &Provider{ClientID: tokenprovider.Values{"id"}, ClientSecret: tokenprovider.Values{"s3cret"}, Scopes: []string{"openid"}})
	want := tokenprovider.Grant{
		Provider:   "understory",
		TokenURL:   "https://api.auth.understory.io/oauth2/token",
		ClientID:   "id",
		AuthMethod: "client_secret_post",
		Scopes:     []string{"openid"},
		Audience:   []string{"https://api.understory.io"},
	}
	if got := p.Grant(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}

	other, err := p.WithScopes([]string{"event.read"})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(p.Grant(), want) {
		t.Errorf("WithScopes changed the original: %+v", p.Grant())
	}
	want.Scopes = []string{"event.read"}
	if got := other.Grant(); !reflect.DeepEqual(got, want) {
		t.Errorf("WithScopes: got %+v, want %+v", got, want)
	}
	if _, err := p.WithScopes([]string{"a b"}); err == nil || !strings.Contains(err.Error(), `"a b"`) {
		t.Errorf("WithScopes of no scope: %v", err)
	}
}

func TestValidate(t *testing.T) {
	for _, test := range []struct {
		change func(*Provider)
		want   string // what the error starts with
	}{
		{func(p *Provider) { p.ClientID = nil }, "client_id"},
		{func(p *Provider) { p.ClientSecret = nil }, "client_secret"},
		{func(p *Provider) { p.Scopes = []string{""} }, "scopes"},
		{func(p *Provider) { p.APIURL = "https://api.example/v1" }, "api_url"},
		{func(p *Provider) { p.TokenURL = "ftp://auth.example/token" }, "token_url"},
		{func(p *Provider) { p.UserAgent = "a\nb" }, "user_agent"},
		{func(p *Provider) { p.ClientID = tokenprovider.Values{"{env.TEST_UNSET}"} }, "client_id: {env.TEST_UNSET}"},
		{func(p *Provider) { p.ClientSecret = tokenprovider.Values{"{env.TEST_UNSET}"} }, "client_secret: {env.TEST_UNSET}"},
		{func(p *Provider) { p.ClientSecret = tokenprovider.Values{"s3cret{env.TEST_UNSET}"} }, "client_secret"},
	} {
		p := &Provider{ClientID: tokenprovider.Values{"id"}, ClientSecret: tokenprovider.Values{"s3cret"}}
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
	var p Provider
	err := unmarshal(&p, `understory https://api.example {
		client_id     id
		client_secret {env.SECRET}
		scopes        openid marketing.read
		audience      https://audience.example
		token_url     https://auth.example/token
		user_agent    My/App
	}`)
	want := Provider{
		APIURL:       "https://api.example",
		ClientID:     tokenprovider.Values{"id"},
		ClientSecret: tokenprovider.Values{"{env.SECRET}"},
		Scopes:       []string{"openid", "marketing.read"},
		Audience:     "https://audience.example",
		TokenURL:     "https://auth.example/token",
		UserAgent:    "My/App",
	}
	if err != nil || !reflect.DeepEqual(p, want) {
		t.Errorf("got  %+v, %v\nwant %+v", p, err, want)
	}
}

func TestUnmarshalCaddyfileErrors(t *testing.T) {
	for input, want := range map[string]string{
		"understory {\n client_id a\n}":                                          "client_secret is required",
		"understory https://x/v1 {\n client_id a\n client_secret b\n}":           "api_url: ",
		"understory {\n client_id a\n client_secret b\n token_url c\n}":          "token_url: ",
		"understory {\n client_id a\n client_secret b\n user_agent \"c\n d\"\n}": "user_agent: ",
		"understory a b":                `unexpected argument "b"`,
		`understory ""`:                 "api_url: is empty",
		"understory a {\n api_url b\n}": "api_url is already given",
		"understory {\n client_id a b\n client_secret c\n}":      "client_id: has 2 values, and client_secret 1; give one for each",
		"understory {\n client_id a\n client_id b\n}":            "client_id is already given",
		"understory {\n client_secret a\n client_secret b\n}":    "client_secret is already given",
		"understory {\n scopes a\n scopes b\n}":                  "scopes is already given",
		"understory {\n audience a\n audience b\n}":              "audience is already given",
		"understory {\n audience a b\n}":                         `audience: has an argument too many; quote a value that holds spaces`,
		"understory {\n token_url\n}":                            "token_url: needs a value",
		"understory {\n scopes\n}":                               "scopes: needs at least one value",
		"understory {\n user_agent {\n x\n }\n}":                 "user_agent: needs a value",
		"understory {\n client_id a {\n x\n }\n}":                "client_id: takes no block",
		"understory {\n region eu\n}":                            `unknown option "region"`,
		"understory {\n client_id a\n client_secret \"\"\n}":     "client_secret: a value is empty",
		"understory {\n scopes a \"\"\n}":                        "scopes: a value is empty",
		"understory {\n token_url a\n user_agent b\n scope x\n}": "Testfile:4",
	} {
		err := unmarshal(new(Provider), input)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot %v, want %s", input, err, want)
		}
	}
}
