package egress

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
)

// What a client sends to egress_token is foreign: whatever it is, it is read or
// refused, and what it holds is not in the refusal.
func FuzzTokenRequest(f *testing.F) {
	const form = "grant_type=client_credentials"
	basic := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, seed := range [][4]string{
		{formType, basic("shop:a-key-of-the-tests"), "", form},
		{formType, basic("sh%6Fp:a%2Bkey%25"), "", form + "&scope=a+b"},
		{formType + "; charset=utf-8", "", "", form + "&client_id=shop&client_secret=a-key-of-the-tests"},
		{formType, "", "shop", form + "&client_id=shop"},
		{formType, "Bearer a-key-of-the-tests", "", form},
		{formType, basic("shop"), "", form},
		{formType, "Basic %", "", form},
		{formType, basic("a:b"), "c", form + "&client_secret=d"},
		{formType, basic("a:b"), "", form + "&" + form},
		{formType, basic("a:b"), "", form + "&scope=%00"},
		{formType, basic("a:b"), "", "grant_type=password"},
		{"application/json", "", "", `{"grant_type":"client_credentials"}`},
		{"a/b; c=\"", "", "", "%zz;"},
		{"", "", "", ""},
	} {
		f.Add(seed[0], seed[1], seed[2], seed[3])
	}
	f.Fuzz(func(t *testing.T, contentType, authorization, appID, body string) {
		req := httptest.NewRequest(http.MethodPost, "/oauth2/token", strings.NewReader(body))
		for name, value := range map[string]string{"Content-Type": contentType, "Authorization": authorization, "X-App-Id": appID} {
			if value != "" {
				req.Header.Set(name, value)
			}
		}
		r, refused := readTokenRequest(req)
		if refused != nil {
			want := map[int][]string{
				http.StatusBadRequest:            {oauthInvalidRequest, oauthInvalidScope, oauthUnsupportedGrantType},
				http.StatusUnauthorized:          {oauthInvalidClient},
				http.StatusRequestEntityTooLarge: {oauthInvalidRequest},
			}
			if !slices.Contains(want[refused.status], refused.oauthError) {
				t.Errorf("refused with %d %s", refused.status, refused.oauthError)
			}
			if !slices.Contains(tokenRequestMessages, refused.message) {
				t.Errorf("refused with %q", refused.message)
			}
			return
		}
		if len(body) > maxTokenRequest || !isScope(r.scope) || r.voucherify != (appID != "") {
			t.Errorf("read as %+v", r)
		}
		if len(r.clients) == 0 || len(r.clients) > 2 || slices.ContainsFunc(r.clients, func(c clientCredentials) bool { return c.name == "" }) {
			t.Errorf("sent by %q", r.clients)
		}
	})
}

// tokenRequestMessages are all that a client is told.
var tokenRequestMessages = []string{
	"Content-Type is not application/x-www-form-urlencoded",
	"the body is longer than 64 KiB",
	"the body is not form-encoded",
	"grant_type is given more than once",
	"scope is given more than once",
	"client_id is given more than once",
	"client_secret is given more than once",
	"name and key are given in more than one way",
	"no name and key: send them by Authorization: Basic, or as client_id and client_secret",
	"client_id is not the name that is given beside it",
	"grant_type is missing: send grant_type=client_credentials",
	"the only grant_type served is client_credentials",
	"scope holds a character that no scope has",
}

// Whatever a key holds, it is found in an Authorization: Basic, form-encoded or not.
func FuzzBasicCredentials(f *testing.F) {
	for _, key := range []string{"", "a-key-of-the-tests", "a+key", "100%", "%41", "a:b", "é\x00"} {
		f.Add("shop", key)
	}
	f.Fuzz(func(t *testing.T, name, key string) {
		want := clientCredentials{name, key}
		for _, sent := range []string{url.QueryEscape(name) + ":" + url.QueryEscape(key), name + ":" + key} {
			if strings.Contains(name, ":") && strings.HasPrefix(sent, name) {
				continue // cannot be sent as it is
			}
			got := basicCredentials("Basic " + base64.StdEncoding.EncodeToString([]byte(sent)))
			if !slices.Contains(got, want) || len(got) > 2 {
				t.Errorf("%q is read as %q, want %q", sent, got, want)
			}
		}
	})
}
