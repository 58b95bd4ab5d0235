package tokenprovider

import (
	"slices"
	"testing"
)

func TestCredentialPaths(t *testing.T) {
	for _, test := range []struct {
		api       string
		endpoints []string
		want      []string
	}{
		{"https://api.example", []string{"https://login.example/oauth2/token"}, nil},
		{"https://api.example", []string{"https://api.example/oauth2/token"}, []string{"/oauth2/token/"}},
		{"https://api.example:443", []string{"https://API.example./OAuth2/Token/"}, []string{"/oauth2/token/"}},
		{"https://api.example", []string{"https://api.example:8443/token"}, nil},
		{"http://api.example", []string{"http://api.example:80/token", "https://api.example/revoke"}, []string{"/token/"}},
		{"http://[::1]:8080", []string{"http://[::1]:8080/token"}, []string{"/token/"}},
		{"https://api.example", []string{"https://api.example/a/token", "https://api.example/a/revoke", "https://api.example/a/token"}, []string{"/a/token/", "/a/revoke/"}},
		{"https://api.example", []string{"https://api.example/a%20b"}, []string{"/a b/"}},
		{"https://api.example", []string{"https://api.example/token?tenant=1"}, []string{"/token/"}},
		{"https://api.example", []string{"https://api.example", "https://api.example/"}, []string{"/"}},
		{"https://api.example", []string{":"}, nil},
		{":", []string{"https://api.example/token"}, nil},
	} {
		var endpoints []Endpoint
		for _, u := range test.endpoints {
			endpoints = append(endpoints, Endpoint{URL: u})
		}
		if got := CredentialPaths(test.api, endpoints); !slices.Equal(got, test.want) {
			t.Errorf("%s, %v: got %q, want %q", test.api, test.endpoints, got, test.want)
		}
	}
}
