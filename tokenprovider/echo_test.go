package tokenprovider

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/tokenprovider/internal/wiretest"
)

// requestsWith returns a token request for each place that a secret may be in.
func requestsWith(secret string) map[string]Request {
	requests := make(map[string]Request)
	for name, authenticate := range map[string]ClientAuth{
		"Basic":     ClientSecretBasic,
		"raw Basic": ClientSecretBasicRaw,
		"form":      ClientSecretPost,
		"header":    ClientHeaders("X-App-Id", "X-App-Token"),
	} {
		r := Request{Form: url.Values{"grant_type": {"client_credentials"}, "scope": {"orders"}}}
		authenticate(&r, "gateway", NewSecret(secret))
		requests[name] = r
	}
	requests["parameter"] = Request{Form: url.Values{"password": {"other", secret}}}
	requests["header with a scheme"] = Request{Header: http.Header{"X-Api-Key": {"Key " + secret}}}
	requests["token"] = Request{Form: url.Values{"token": {secret}}}
	return requests
}

// A token endpoint may put into its error code what it was sent.
func TestErrorCodeThatEchoesASecret(t *testing.T) {
	for _, test := range []struct {
		secret, code, want string
	}{
		{"correcthorse", "correcthorse", ""},
		{"CorrectHorse", "cORRECThORSE", ""},
		{"correct-horse_battery.staple", "correct-horse_battery.staple", ""},
		{"correcthorse", "bad_secret.correcthorse", ""},
		{"correcthorsebatterystaple", "horsebattery", ""}, // part of it
		{"correct horse&battery", "battery", ""},
		{"correcthorse", "bad_secret", "bad_secret"},
		{"correcthorse", "correct_horse", "correct_horse"},
		{"correcthorse", "or", "or"}, // shows nothing of it
		{"or", "or", ""},
		{"or", "bad_word", "bad_word"},
		{"invalid_client", "invalid_client", "invalid_client"}, // of RFC 6749
		{"unblocked", "blocked", "blocked"},                    // of the API
		{"correcthorse", "client_credentials", "client_credentials"},
		{"correcthorse", "orders", "orders"},                       // the scope is not secret
		{"correcthorse", "gateway_suspended", "gateway_suspended"}, // nor is the client id
		{"correcthorse", "basic_auth_required", "basic_auth_required"},
		{"correcthorse", "", ""},
	} {
		for name, r := range requestsWith(test.secret) {
			r.URL = "http://auth.example"
			for field, own := range map[string]ErrorFormat{
				"error": {Final: map[string]string{"blocked": ""}},
				"key":   withKey,
				"code":  {Fields: []string{"code", "message"}, Code: "code", Final: map[string]string{"blocked": ""}},
			} {
				r.Errors = own
				for _, status := range []int{200, 400, 401, 503} {
					client := answering(status, nil, `{"`+field+`":"`+test.code+`","message":"m"}`, 0)
					_, err := RequestToken(t.Context(), client, r)
					var e *Error
					if !errors.As(err, &e) || e.Code != test.want {
						t.Errorf("secret %q in %s, answered %d %s %q: got %#v, want code %q", test.secret, name, status, field, test.code, e, test.want)
					}
				}
			}
		}
	}
}

func TestNoKindOfRequestEchoesASecret(t *testing.T) {
	r := requestsWith("correcthorse")["Basic"]
	r.URL = "http://auth.example"
	for name, do := range map[string]func(*http.Client) error{
		"token":         func(c *http.Client) error { _, err := RequestToken(t.Context(), c, r); return err },
		"revocation":    func(c *http.Client) error { return RequestRevocation(t.Context(), c, r) },
		"introspection": func(c *http.Client) error { _, err := RequestIntrospection(t.Context(), c, r); return err },
	} {
		err := do(answering(http.StatusUnauthorized, nil, `{"error":"correcthorse"}`, 0))
		var e *Error
		if !errors.As(err, &e) || e.Class != Refused {
			t.Errorf("%s: got %v, want it refused", name, err)
			continue
		}
		wiretest.NoLeak(t, e, "correcthorse")
	}
}

// A token endpoint may put anything into the scope of a token as well, which operators
// are shown.
func TestScopesThatEchoASecret(t *testing.T) {
	const token = "an-access-token.of-orders"
	for _, test := range []struct {
		secret, scope string
		want          []string
	}{
		{"correcthorse", "orders vouchers", []string{"orders", "vouchers"}},
		{"correcthorse", "vouchers correcthorse", []string{"vouchers"}},
		{"correcthorse", "vouchers secret:CORRECThorse", []string{"vouchers"}},
		{"correct horse&battery", "correct horse&battery or", []string{"or"}},
		{"vouchers.orders", "orders vouchers", []string{"orders"}}, // has been asked for
		{"correcthorse", token + " token=" + token + " access-token.of-or orders", []string{"orders"}},
		{"correcthorse", "token access", []string{"token", "access"}}, // tokens may hold such words
		{"correcthorse", "corr", []string{}},
	} {
		for name, r := range requestsWith(test.secret) {
			r.URL = "http://auth.example"
			r.Form = maps.Clone(r.Form)
			if r.Form == nil {
				r.Form = make(url.Values)
			}
			r.Form.Set("scope", "orders")
			got, err := RequestToken(t.Context(), answering(200, nil, fmt.Sprintf(`{"access_token":%q,"scope":%q}`, token, test.scope), 0), r)
			if err != nil {
				t.Fatal(err)
			}
			if got.Scopes == nil || !slices.Equal(got.Scopes, test.want) {
				t.Errorf("secret %q in %s, scope %q: got %q, want %q", test.secret, name, test.scope, got.Scopes, test.want)
			}
		}
	}
}

// Nor is a token shown by what the server says of it.
func TestIntrospectionThatEchoesASecret(t *testing.T) {
	const token, secret = "an-access-token.of-orders", "correcthorsebattery"
	for body, want := range map[string]Introspection{
		`"client_id":"gateway","scope":"orders token"`:            {ClientID: "gateway", Scope: "orders token"},
		`"client_id":"` + token + `","scope":"` + token + `"`:     {},
		`"client_id":"` + secret + `","scope":"a ` + secret + `"`: {Scope: "a"},
		`"client_id":"x` + secret[1:17] + `"`:                     {ClientID: "x" + secret[1:17]},
		`"client_id":"` + secret[:16] + `"`:                       {},
		`"client_id":"correct"`:                                   {ClientID: "correct"}, // an identifier may begin like a secret
		`"client_id":"a\u001b[2J","scope":"a\u001b[2J b"`:         {Scope: "b"},
		`"client_id":"` + strings.Repeat("x", 1000) + `"`:         {},
	} {
		want.Active = true
		r := requestsWith(secret)["Basic"]
		r.URL = "http://auth.example"
		r.Form.Set("token", token)
		in, err := RequestIntrospection(t.Context(), answering(200, nil, `{"active":true,`+body+`}`, 0), r)
		if err != nil || *in != want {
			t.Errorf("%s: got %+v, %v, want %+v", body, in, err, want)
		}
	}
}

// What is not base64, or has no colon, is compared as it is.
func TestOddAuthorization(t *testing.T) {
	for value, code := range map[string]string{
		"Basic correcthorse%":            "correcthorse",
		"Basic Z2F0ZXdheQ==":             "gateway", // no colon
		"Bearer correcthorse":            "correcthorse",
		"correcthorse":                   "correcthorse",
		"basic Z2F0ZXdheTpvcGVuc2VzYW1l": "opensesame",
	} {
		r := Request{URL: "http://auth.example", Header: http.Header{"Authorization": {value}}}
		_, err := RequestToken(t.Context(), answering(400, nil, `{"error":"`+code+`"}`, 0), r)
		var e *Error
		if !errors.As(err, &e) || e.Code != "" {
			t.Errorf("%s: got %v", value, err)
		}
	}
}
