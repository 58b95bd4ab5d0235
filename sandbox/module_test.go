package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/filestorage"
)

func TestCaddyfile(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"shortest", `sandbox understory`, `{"api":"understory"}`},
		{"understory", `sandbox understory {
			client_id     {env.ID}
			client_secret s3cret
			lifetime      90s
		}`, `{"api":"understory","client_id":"{env.ID}","client_secret":"s3cret","lifetime":90000000000}`},
		{"voucherify", `sandbox voucherify {
			app_id    a
			app_token b
		}`, `{"api":"voucherify","app_id":"a","app_token":"b"}`},
		{"empty block", `sandbox voucherify {
		}`, `{"api":"voucherify"}`},
		{"fraction of a second", `sandbox voucherify {
			lifetime 1.5s
		}`, `{"api":"voucherify","lifetime":1500000000}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := new(Handler)
			if err := h.UnmarshalCaddyfile(caddyfile.NewTestDispenser(tc.in)); err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(h)
			if err != nil || string(got) != tc.want {
				t.Errorf("%s, %v; want %s", got, err, tc.want)
			}
		})
	}
}

func TestCaddyfileErrors(t *testing.T) {
	for _, tc := range []struct{ name, in, want string }{
		{"no API", "sandbox", "sandbox takes the name of one API: understory or voucherify, at Testfile:1"},
		{"two APIs", "sandbox understory voucherify", "sandbox takes the name of one API: understory or voucherify, at Testfile:1"},
		{"unknown API", "sandbox stripe", "sandbox takes the name of one API: understory or voucherify, at Testfile:1"},
		{"unknown option", "sandbox understory {\n secret x\n}", `sandbox understory: unknown option "secret"; there are client_id, client_secret, lifetime, at Testfile:2`},
		{"the other API's option", "sandbox understory {\n app_id x\n}", `sandbox understory: unknown option "app_id"; did you mean client_id?, at Testfile:2`},
		{"and the other way around", "sandbox voucherify {\n client_id x\n}", `sandbox voucherify: unknown option "client_id"; did you mean app_id?, at Testfile:2`},
		{"twice", "sandbox understory {\n client_id x\n client_id x\n}", "client_id is already given, at Testfile:3"},
		{"no value", "sandbox voucherify {\n app_token\n}", "app_token: needs a value, at Testfile:2"},
		{"empty value", "sandbox voucherify {\n app_token \"\"\n}", "app_token: is empty, at Testfile:2"},
		{"two values", "sandbox voucherify {\n app_token hush hush\n}", "app_token: has an argument too many; quote a value that holds spaces, at Testfile:2"},
		{"not a duration", "sandbox voucherify {\n lifetime soon\n}", `lifetime: "soon" is`},
		{"no lifetime", "sandbox voucherify {\n lifetime 0s\n}", "lifetime: must be above zero, at Testfile:2"},
		{"negative lifetime", "sandbox voucherify {\n lifetime -1s\n}", "lifetime: must be above zero, at Testfile:2"},
		{"block in a block", "sandbox understory {\n client_id x {\n  y\n }\n}", "client_id: takes no block, at Testfile:"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := new(Handler).UnmarshalCaddyfile(caddyfile.NewTestDispenser(tc.in))
			if err == nil || !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("%v\nwant %s", err, tc.want)
			}
		})
	}
}

func TestOptionsErrors(t *testing.T) {
	t.Setenv("SANDBOX_TEST_EMPTY", "")
	for _, tc := range []struct {
		name string
		h    Handler
		want string
	}{
		{"no API", Handler{}, `unknown API ""; there are: understory, voucherify`},
		{"the other API's option", Handler{API: apiVoucherify, ClientSecret: "hush"}, "client_id and client_secret are options of understory, app_id and app_token of voucherify"},
		{"and the other way around", Handler{API: apiUnderstory, AppID: "x"}, "client_id and client_secret are options of understory, app_id and app_token of voucherify"},
		{"empty placeholder", Handler{API: apiUnderstory, ClientID: "{env.SANDBOX_TEST_EMPTY}"}, "client_id: {env.SANDBOX_TEST_EMPTY} has no value; is it set, and may this process read it?"},
		{"unknown placeholder", Handler{API: apiVoucherify, AppToken: "{hush} and more"}, "app_token: a placeholder in it has no value; is it set, and may this process read it?"},
		{"negative lifetime", Handler{API: apiVoucherify, Lifetime: -1}, "lifetime is negative: -1ns"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.h.Provision(caddy.Context{})
			if err == nil || err.Error() != tc.want {
				t.Errorf("%v, want %s", err, tc.want)
			}
			if err := tc.h.Cleanup(); err != nil {
				t.Error(err)
			}
		})
	}
}

// A handler that failed to start must not release what a running one uses.
func TestStateIsShared(t *testing.T) {
	key := stateKey{apiUnderstory, "shared"}
	first, second := &Handler{API: apiUnderstory, ClientID: "shared"}, &Handler{API: apiUnderstory, ClientID: "shared"}
	for _, h := range []*Handler{first, second} {
		if err := h.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
	}
	if first.server.state != second.server.state {
		t.Error("two states")
	}
	if err := (&Handler{API: apiUnderstory, ClientID: "shared", ClientSecret: "{hush}"}).Cleanup(); err != nil {
		t.Error(err)
	}
	if n, _ := states.References(key); n != 2 {
		t.Errorf("%d references, want 2", n)
	}
	for _, h := range []*Handler{first, second, first} {
		if err := h.Cleanup(); err != nil {
			t.Error(err)
		}
	}
	if n, ok := states.References(key); ok {
		t.Errorf("%d references left", n)
	}
}

// A real Caddy keeps live tokens, counters and data over a reload, even one
// that changes the secret.
func TestReload(t *testing.T) {
	t.Setenv("SANDBOX_TEST_TOKEN", "first")
	dir, addr := t.TempDir(), freeAddress(t)
	config := func(lifetime string) []byte {
		return adapt(t, fmt.Sprintf(`
			{
				admin off
				persist_config off
				auto_https off
				storage file_system %s
				log {
					output discard
				}
			}
			http://%s {
				sandbox voucherify {
					app_id    reload
					app_token {env.SANDBOX_TEST_TOKEN}
					lifetime  %s
				}
				respond "not reached"
			}`, dir, addr, lifetime))
	}
	if first := config("60s"); strings.Contains(string(first), `"first"`) {
		t.Error("adapting resolves the placeholder")
	}
	err := caddy.Load(config("60s"), false)
	for n := 0; err != nil && n < 10; n++ { // somebody may have taken the address meanwhile
		addr = freeAddress(t)
		err = caddy.Load(config("60s"), false)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := caddy.Stop(); err != nil {
			t.Error(err)
		}
		if n, ok := states.References(stateKey{apiVoucherify, "reload"}); ok {
			t.Errorf("%d references left", n)
		}
	}()

	do := func(r *http.Request, token string, want int) []byte {
		t.Helper()
		r.URL.Scheme, r.URL.Host, r.Host, r.RequestURI = "http", addr, addr, ""
		if token != "" {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		var body bytes.Buffer
		if _, err := body.ReadFrom(res.Body); err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != want {
			t.Fatalf("%s: status %d, want %d: %s", r.URL.Path, res.StatusCode, want, &body)
		}
		return body.Bytes()
	}
	tokenRequest := func(appToken string) *http.Request {
		r := voucherifyRequestV1("api")
		r.Header.Set("X-App-Id", "reload")
		r.Header.Set("X-App-Token", appToken)
		return r
	}
	request := func(method, path, body string) *http.Request {
		r, err := http.NewRequest(method, "http://"+addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}

	var g voucherifyGrant
	if err := json.Unmarshal(do(tokenRequest("first"), "", 200), &g); err != nil || g.ExpiresIn != 60 {
		t.Fatalf("%+v, %v", g, err)
	}
	do(request("GET", "/v1/vouchers/a%2Fb%20c", ""), g.AccessToken, 200)
	do(request("POST", "/v1/vouchers/KEPT", `{}`), g.AccessToken, 200)

	t.Setenv("SANDBOX_TEST_TOKEN", "second")
	if err := caddy.Load(config("30s"), false); err != nil {
		t.Fatal(err)
	}
	awaitReload(t, addr)
	do(request("GET", "/v1/vouchers/KEPT", ""), g.AccessToken, 200)
	do(tokenRequest("first"), "", 401)
	if err := json.Unmarshal(do(tokenRequest("second"), "", 200), &g); err != nil || g.ExpiresIn != 30 {
		t.Errorf("%+v, %v", g, err)
	}
	want := `{"token_requests":3,"live_tokens":2,"api_requests":3,"unauthorized":0}`
	if got := do(request("GET", "/sandbox/stats", ""), "", 200); string(got) != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// awaitReload waits until a reload, which has just returned, has reached addr: until then
// the old server may answer, on connections that are kept and on new ones. It resets
// those that it took last.
func awaitReload(t *testing.T, addr string) {
	t.Helper()
	for tick := time.Tick(5 * time.Millisecond); ; <-tick {
		if caddy.ListenerUsage("tcp", addr) > 1 {
			continue
		}
		http.DefaultClient.CloseIdleConnections()
		if res, err := http.Get("http://" + addr + "/sandbox/stats"); err == nil {
			_ = res.Body.Close()
			return
		}
	}
}

func adapt(t *testing.T, text string) []byte {
	t.Helper()
	adapter := caddyfile.Adapter{ServerType: httpcaddyfile.ServerType{}}
	config, _, err := adapter.Adapt([]byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
