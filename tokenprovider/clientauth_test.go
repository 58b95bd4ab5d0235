package tokenprovider

import (
	"net/http"
	"net/url"
	"reflect"
	"testing"
)

func TestClientAuth(t *testing.T) {
	inHeader := func(value string) Request { return Request{Header: http.Header{"Authorization": {value}}} }
	for _, test := range []struct {
		name       string
		auth       ClientAuth
		id, secret string
		want       Request
	}{
		{"basic", ClientSecretBasic, "id", "s3cret", inHeader("Basic aWQ6czNjcmV0")},
		{"basic, encoded", ClientSecretBasic, "i d", "a:b", inHeader("Basic aStkOmElM0Fi")},
		{"basic, nothing to encode", ClientSecretBasic, "id", "a~b-c_d.e", inHeader("Basic aWQ6YX5iLWNfZC5l")},
		{"raw", ClientSecretBasicRaw, "i d", "a:b", inHeader("Basic aSBkOmE6Yg==")},
		{"post", ClientSecretPost, "i d", "a:b", Request{Form: url.Values{"client_id": {"i d"}, "client_secret": {"a:b"}}}},
		{"headers", ClientHeaders("x-id", "X-Key"), "i d", "a:b", Request{Header: http.Header{"X-Id": {"i d"}, "X-Key": {"a:b"}}}},
	} {
		var empty Request
		test.auth(&empty, test.id, NewSecret(test.secret))
		if !reflect.DeepEqual(empty, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, empty, test.want)
		}

		// what the request has of others stays
		full := Request{Header: http.Header{"X-Other": {"1"}}, Form: url.Values{"scope": {"a"}}}
		test.auth(&full, test.id, NewSecret(test.secret))
		if full.Header.Get("X-Other") != "1" || full.Form.Get("scope") != "a" {
			t.Errorf("%s: got %v", test.name, full)
		}
	}
}
