package egresstest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// CheckRefused checks an answer of the gateway's own, of the oauth2 provider.
func CheckRefused(t *testing.T, resp *http.Response, body string, status int, key string) {
	t.Helper()
	if resp.StatusCode != status || !strings.Contains(body, `"code":"`+key+`"`) || !strings.HasPrefix(resp.Header.Get("Proxy-Status"), "caddy-egress; ") {
		t.Errorf("answered %d %s %q, want %d %s", resp.StatusCode, body, resp.Header.Get("Proxy-Status"), status, key)
	}
}

// CheckNoToken checks every part of the answer to a request for which there is
// no token: 503 where the token endpoint is in trouble, 502 where it refuses the
// credential.
func CheckNoToken(t *testing.T, resp *http.Response, body string, status int) {
	t.Helper()
	key := map[int]string{http.StatusServiceUnavailable: "token_unavailable", http.StatusBadGateway: "credential_refused"}[status]
	if resp.StatusCode != status || !strings.Contains(body, `"`+key+`"`) {
		t.Errorf("answered %d %s, want %d %s", resp.StatusCode, body, status, key)
	}
	if !json.Valid([]byte(body)) || !strings.HasSuffix(resp.Header.Get("Content-Type"), "json") {
		t.Errorf("the answer is not JSON: %s %q", resp.Header.Get("Content-Type"), body)
	}
	if got := resp.Header.Get("Proxy-Status"); !strings.HasPrefix(got, "caddy-egress; error=") || !strings.HasSuffix(got, `; details="`+key+`"`) {
		t.Errorf("Proxy-Status is %q", got)
	}
	if got := resp.Header.Get("Cache-Control"); got != "no-store" {
		t.Errorf("Cache-Control is %q, want no-store", got)
	}
	wait, err := strconv.Atoi(resp.Header.Get("Retry-After"))
	if unavailable := status == http.StatusServiceUnavailable; unavailable != (err == nil) || unavailable && (wait < 1 || wait > 300) {
		t.Errorf("Retry-After is %q", resp.Header.Get("Retry-After"))
	}
	if strings.Contains(body, "127.0.0.1") {
		t.Errorf("the answer shows the token endpoint's address: %s", body)
	}
	CheckLeaks(t, "the answer", fmt.Sprint(body, resp.Header))
}
