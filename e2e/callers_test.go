package e2e_test

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// showCaller has every answer of a route say who the gateway takes for the caller.
const showCaller = "header_down X-Caller \"{http.reverse_proxy.egress.caller}\"\n"

// plainCredential is a credential of the oauth2 provider, "plain", in the global option.
func plainCredential(api, tokenURL string) string {
	return fmt.Sprintf("credential plain oauth2 %s {\n token_url %s\n client_id gateway\n client_secret {env.%s}\n}\n", api, tokenURL, egresstest.SecretVariable)
}

func basicPair(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// oddKey has every kind of character that a key can have.
const oddKey = egresstest.KeyPrefix + "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{env.HOME}|}~,Bearer"

// A key is looked for in the headers in which clients send one, and nowhere else.
func TestCallersByKey(t *testing.T) {
	service := egresstest.NewService(t)
	t.Setenv("EGRESS_TEST_PREVIOUS", egresstest.Key("shop-before"))
	t.Setenv("EGRESS_TEST_ODD", oddKey)
	t.Setenv("EGRESS_TEST_LONGEST", egresstest.Key(strings.Repeat("l", 512-len(egresstest.KeyPrefix))))
	callers := egresstest.Caller(t, "agent") +
		strings.Replace(egresstest.Caller(t, "shop"), "_shop}", "_shop} {env.EGRESS_TEST_PREVIOUS}", 1) +
		"caller odd {\n key {env.EGRESS_TEST_ODD}\n}\ncaller longest {\n key {env.EGRESS_TEST_LONGEST}\n}\n"
	shop, agent, before := egresstest.Key("shop"), egresstest.Key("agent"), egresstest.Key("shop-before")
	longest := os.Getenv("EGRESS_TEST_LONGEST")
	const perhaps = "shop, or nobody"
	check := func(proofs map[string]string, options ...egresstest.GatewayOption) {
		t.Helper()
		g := egresstest.StartGateway(t, egresstest.Site("/oauth2", "egress plain {\n"+showCaller+"}")+egresstest.Site("/voucherify", "egress promo {\n"+showCaller+"}"),
			append(options, egresstest.WithCallers("egress {\n"+service.Credential("plain", "oauth2", "")+service.Credential("promo", "voucherify", "")+callers+"}"))...)
		for headers, want := range proofs {
			for _, path := range []string{"/oauth2/v1/x", "/voucherify/v1/x"} {
				if path == "/oauth2/v1/x" && (strings.Contains(headers, "X-App-") || strings.Contains(headers, "X-Client-")) {
					continue // to that API, a header like any other
				}
				lines := "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
				if headers != "" {
					lines += headers + "\r\n"
				}
				resp, body := g.Wire().Send(lines + "\r\n")
				if got := resp.Header.Get("X-Caller"); resp.StatusCode != http.StatusOK || got != want && want != perhaps || want == perhaps && got != "" && got != "shop" {
					t.Errorf("%s with %.200q: %d %s, taken for %q, want %q", path, headers, resp.StatusCode, body, got, want)
				}
			}
		}
	}
	check(map[string]string{
		"":                                     "",
		"Authorization: Bearer " + shop:        "shop",
		"authorization: bearer " + shop:        "shop",
		"AUTHORIZATION: BEARER " + shop + "  ": "shop",
		"Authorization: Bearer " + before:      "shop",
		"Authorization: Basic " + basicPair("shop", shop):     "shop",
		"Authorization: bASIC " + basicPair("", shop):         "shop",
		"Authorization: Basic " + basicPair("agent", shop):    "shop",
		"Authorization: Basic " + basicPair("ü\x00 ", before): "shop",
		"X-Api-Key: " + shop:                                  "shop",
		"x-api-key: " + before:                                "shop",
		"X-App-Token: " + shop:                                "shop",
		"X-Client-Token: " + shop:                             "shop",
		"X-App-Id: agent\r\nX-App-Token: " + shop:             "shop",

		// odd keys, of which each part could be taken for the end
		"Authorization: Bearer " + oddKey:                 "odd",
		"Authorization: Basic " + basicPair("u", oddKey):  "odd",
		"X-Api-Key: " + oddKey:                            "odd",
		"Authorization: Bearer " + longest:                "longest",
		"Authorization: Bearer " + longest + "l":          "",
		"Authorization: Basic " + basicPair("u", longest): "longest",

		// a wrong key proves nothing, whatever it stands beside
		"Authorization: Bearer " + shop[1:]:                                             "",
		"Authorization: Bearer " + shop + "x":                                           "",
		"Authorization: Bearer " + strings.ToUpper(shop):                                "",
		"Authorization: Bearer wrong\r\nX-Api-Key: " + shop:                             "shop",
		"Authorization: Basic " + basicPair("shop", "wrong") + "\r\nX-Api-Key: " + shop: "shop",
		"Authorization: Bearer " + shop + "\r\nX-Api-Key: wrong":                        "shop",
		"Authorization: Digest username=\"x\"\r\nX-Api-Key: " + shop:                    "shop",
		"X-Api-Key: wrong\r\nX-App-Token: " + shop:                                      "shop",
		"X-App-Token: wrong\r\nX-Client-Token: " + shop:                                 "shop",
		"Authorization: Bearer " + strings.Repeat("x", 20_000):                          "",
		"Authorization: Bearer " + shop + strings.Repeat("x", 20_000):                   "",
		"Authorization: Bearer " + strings.Repeat("x", 9000) + "\r\nX-Api-Key: " + shop: "shop",

		// the keys of two callers: the one that is found first counts
		"Authorization: Bearer " + shop + "\r\nX-Api-Key: " + agent:                          "shop",
		"X-Api-Key: " + shop + "\r\nAuthorization: Bearer " + agent:                          "agent",
		"Authorization: Basic " + basicPair(agent, shop):                                     "shop",
		"X-Api-Key: " + agent + "\r\nX-App-Token: " + shop + "\r\nX-Client-Token: " + before: "agent",
	})

	// where no client sends one
	check(map[string]string{
		"Authorization: " + shop:                                            "",
		"Authorization: Token " + shop:                                      "",
		"Authorization: Bearer":                                             "",
		"Authorization: Bearer " + basicPair("shop", shop):                  "",
		"Authorization: Basic " + shop:                                      "",
		"Authorization: Basic " + basicPair(shop, ""):                       "",
		"Authorization: Basic " + basicPair(shop, "x"):                      "",
		"Authorization: Basic " + basicPair("", "x:"+shop):                  "",
		"Authorization: Basic " + strings.TrimRight(basicPair("", ""), "="): "",
		"Authorization: Basic !!!" + basicPair("shop", shop):                "",
		"Proxy-Authorization: Bearer " + shop:                               "",
		"Cookie: key=" + shop:                                               "",
		"X-Auth-Token: " + shop:                                             "",
		"Api-Key: " + shop:                                                  "",
		"X-App-Id: " + shop:                                                 "",
		"X-Api-Key: Bearer " + shop:                                         "",
		"X_Api_Key: " + shop:                                                "",
		"X_Api_Key: " + shop + "\r\nX.Api.Key: " + shop:                     "",
		"X-Forwarded-Authorization: Bearer " + shop:                         "",
		"X-Forwarded-User: shop\r\nX-Remote-User: shop\r\nUser: shop":       "",

		// repeated: never anybody whose key is not there
		"Authorization: Bearer wrong\r\nAuthorization: Bearer " + shop: perhaps, "Authorization: Bearer " + shop + "\r\nAuthorization: Bearer wrong": perhaps,
		"X-Api-Key: " + shop + "\r\nX-Api-Key: wrong": perhaps, "X-Api-Key: wrong\r\nX-Api-Key: " + shop: perhaps, "X-Api-Key: " + shop + "," + shop: perhaps,
	}, egresstest.WithoutLog()) // Caddy shows at debug what it does not take for a credential
}

// All kinds of proof that a caller has must hold; of the values of a kind, one.
func TestKindsOfProofAddUp(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	const hash = "$2a$04$IYvNdNOpHqeaEhyCGRERa.Y9kMF0jG/Axn2ZGamU2ypK7bwv04hHa" // bcrypt, of "the password"
	socket := filepath.Join(t.TempDir(), "s")
	routes := fmt.Sprintf(`
		@auth header X-Login *
		basic_auth @auth {
			alice %[1]s
			bob %[1]s
			mallory %[1]s
		}
		egress plain {
			%[2]s
			clients any
		}`, hash, showCaller)
	callers := egresstest.Caller(t, "keyed") +
		egresstest.Caller(t, "key-addr", "clients 192.0.2.1 2001:db8::/64") +
		egresstest.Caller(t, "key-user", "user alice bob") +
		egresstest.Caller(t, "key-user-addr", "user alice", "clients 192.0.2.0/24") +
		egresstest.Caller(t, "key-cert", "client_cert shop.internal") +
		"caller user {\n user bob carol\n}\ncaller user-addr {\n user alice\n clients 192.0.2.7 unix\n}\n" +
		"caller addr {\n clients 198.51.100.0/31 2001:db8:1::1 unix\n}\n"
	g := egresstest.StartGateway(t, routes+"\n}\nhttp:// {\nbind unix/"+socket+"\n"+routes,
		egresstest.WithCallers("egress {\n"+plainCredential(api.URL, endpoint.URL)+callers+"}"),
		egresstest.WithServer("listener_wrappers {\n proxy_protocol {\n allow 127.0.0.0/8\n}\n}"))
	for _, c := range []struct{ peer, key, user, want string }{
		{"192.0.2.9", "keyed", "", "keyed"},
		{"192.0.2.9", "", "", ""},

		{"192.0.2.1", "key-addr", "", "key-addr"},
		{"192.0.2.2", "key-addr", "", ""},
		{"2001:db8::ffff", "key-addr", "", "key-addr"},
		{"2001:db8:0:1::", "key-addr", "", ""},
		{"192.0.2.1", "", "", ""},

		{"192.0.2.9", "key-user", "", ""},
		{"192.0.2.9", "key-user", "alice", "key-user"},
		{"192.0.2.9", "key-user", "bob", "key-user"},
		{"192.0.2.9", "key-user", "mallory", ""},
		{"192.0.2.9", "key-user-addr", "alice", "key-user-addr"},
		{"192.0.2.9", "key-user-addr", "", ""},
		{"198.51.100.9", "key-user-addr", "alice", ""},
		{"192.0.2.9", "key-cert", "alice", ""},

		{"192.0.2.9", "", "bob", "user"},
		{"192.0.2.9", "", "alice", ""},
		{"192.0.2.7", "", "alice", "user-addr"},
		{"unix", "", "alice", "user-addr"},

		{"198.51.100.0", "", "", "addr"},
		{"198.51.100.1", "", "", "addr"},
		{"198.51.100.2", "", "", ""},
		{"2001:db8:1::1", "", "", "addr"},
		{"2001:db8:1::2", "", "", ""},
		{"unix", "", "", "addr"},

		// the strongest counts that holds
		{"198.51.100.1", "keyed", "bob", "keyed"},
		{"198.51.100.1", "key-user", "", "addr"},
		{"198.51.100.1", "key-addr", "bob", "user"},
		{"198.51.100.1", "nobody", "", "addr"},
		{"unix", "keyed", "", "keyed"},
	} {
		headers := ""
		if c.key != "" {
			headers = "X-Api-Key: " + egresstest.Key(c.key) + "\r\n"
		}
		if c.key != "" && c.user == "" {
			headers = "Authorization: Bearer " + egresstest.Key(c.key) + "\r\n"
		}
		if c.user != "" {
			headers += "X-Login: yes\r\nAuthorization: Basic " + basicPair(c.user, "the password") + "\r\n"
		}
		dial, preamble := func() (net.Conn, error) { return net.Dial("unix", socket) }, ""
		if c.peer != "unix" {
			dial, preamble = egresstest.From("127.0.0.1", g.Addr), proxied(c.peer)
		}
		resp, body := egresstest.NewWire(t, dial).Send(preamble + "GET /v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + headers + "\r\n")
		if got := resp.Header.Get("X-Caller"); resp.StatusCode != http.StatusOK || got != c.want {
			t.Errorf("%+v: %d %s, taken for %q", c, resp.StatusCode, body, got)
		}
	}

	// a name that Caddy has not checked is not a user
	for _, headers := range []string{"Authorization: Basic " + basicPair("bob", "the password"), "X-Login: yes\r\nAuthorization: Basic " + basicPair("bob", "another"), "X-Forwarded-User: bob\r\nRemote-User: bob"} {
		resp, _ := g.Wire().Send(proxied("192.0.2.9") + "GET /v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + headers + "\r\n\r\n")
		if got := resp.Header.Get("X-Caller"); got != "" {
			t.Errorf("%q: taken for %q", headers, got)
		}
	}
}

// proxied says in the PROXY protocol whom a connection comes from.
func proxied(peer string) string {
	if strings.Contains(peer, ":") {
		return "PROXY TCP6 " + peer + " ::1 1234 80\r\n"
	}
	return "PROXY TCP4 " + peer + " 127.0.0.1 1234 80\r\n"
}

// Where a route has grants, a proof takes the place of the defaults of clients and
// hosts; what is set holds beside.
func TestClientsAndHostsBesideGrants(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	callers := egresstest.Caller(t, "keyed") + egresstest.Caller(t, "key-addr", "clients 192.0.2.0/24") + "caller addr {\n clients 192.0.2.1\n}\n"
	site := func(prefix, options string) string { return egresstest.Site(prefix, "egress plain {\n"+options+"\n}") }
	routes := site("/open", showCaller) + site("/granted", "grant *") + site("/clients", "grant *\nclients 127.0.0.1 203.0.113.0/24") +
		site("/hosts", "grant *\nhosts api.example.com") + site("/any", "grant *\nhosts any")
	const refused, notHost = "client_not_allowed", "host_not_allowed"
	type attempt struct{ path, peer, host, key, want string }
	check := func(t *testing.T, g *egresstest.Gateway, attempts []attempt) {
		t.Helper()
		for _, a := range attempts {
			headers, before := "", api.Count()
			if a.key != "" {
				headers = "X-Api-Key: " + egresstest.Key(a.key) + "\r\n"
			}
			resp, body := g.Wire().Send(proxied(a.peer) + "GET " + a.path + " HTTP/1.1\r\nHost: " + a.host + "\r\nConnection: close\r\n" + headers + "\r\n")
			switch {
			case a.want == "":
				if resp.StatusCode != http.StatusOK {
					t.Errorf("%+v: %d %s, want 200", a, resp.StatusCode, body)
				}
			case resp.StatusCode/100 != 4 || !strings.Contains(body, `"code":"`+a.want+`"`) || api.Count() != before:
				t.Errorf("%+v: %d %s", a, resp.StatusCode, body)
			}
		}
	}
	server := egresstest.WithServer("listener_wrappers {\n proxy_protocol {\n allow 127.0.0.0/8\n}\n}")
	credential := plainCredential(api.URL, endpoint.URL)

	t.Run("unset", func(t *testing.T) {
		g := egresstest.StartGateway(t, routes, egresstest.WithCallers("egress {\n"+credential+callers+"}"), server)
		check(t, g, []attempt{
			// without grants nothing changes
			{"/open", "192.0.2.9", "localhost", "keyed", refused}, {"/open", "127.0.0.1", "evil.example", "keyed", notHost}, {"/open", "127.0.0.1", "localhost", "keyed", ""},
			{"/open", "127.0.0.1", "localhost", "", ""}, {"/open", "192.0.2.1", "localhost", "", refused},
			// more than an address
			{"/granted", "192.0.2.9", "localhost", "keyed", ""}, {"/granted", "198.51.100.1", "evil.example", "keyed", ""}, {"/granted", "192.0.2.9", "evil.example", "key-addr", ""},
			// an address alone
			{"/granted", "192.0.2.1", "localhost", "", ""}, {"/granted", "192.0.2.1", "10.0.0.1:80", "", ""}, {"/granted", "192.0.2.1", "evil.example", "", notHost},
			{"/granted", "192.0.2.1", "evil.example", "wrong", notHost}, {"/granted", "192.0.2.1", "evil.example", "keyed", ""}, {"/any", "192.0.2.1", "evil.example", "", ""},
			// nobody
			{"/granted", "127.0.0.1", "localhost", "", "caller_unknown"}, {"/granted", "192.0.2.9", "localhost", "wrong", "caller_unknown"}, {"/any", "127.0.0.1", "evil.example", "", "caller_unknown"},
			{"/granted", "198.51.100.9", "localhost", "key-addr", "caller_unknown"},
			// set in the route
			{"/clients", "192.0.2.9", "localhost", "keyed", refused}, {"/clients", "203.0.113.7", "evil.example", "keyed", ""}, {"/clients", "192.0.2.1", "localhost", "", refused}, {"/clients", "127.0.0.1", "localhost", "", "caller_unknown"},
			{"/hosts", "192.0.2.9", "localhost", "keyed", notHost}, {"/hosts", "192.0.2.9", "api.example.com:1", "keyed", ""}, {"/hosts", "192.0.2.1", "api.example.com", "", ""}, {"/hosts", "192.0.2.1", "localhost", "", notHost},
		})
	})
	t.Run("set for all", func(t *testing.T) {
		g := egresstest.StartGateway(t, routes, egresstest.WithCallers("egress {\nclients 192.0.2.0/24\nhosts gateway.corp.example\n"+credential+callers+"}"), server)
		check(t, g, []attempt{
			{"/granted", "127.0.0.1", "gateway.corp.example", "keyed", refused}, {"/granted", "192.0.2.9", "localhost", "keyed", notHost}, {"/granted", "192.0.2.9", "gateway.corp.example", "keyed", ""},
			{"/granted", "192.0.2.1", "gateway.corp.example", "", ""}, {"/granted", "192.0.2.1", "localhost", "", notHost},
			{"/clients", "203.0.113.7", "gateway.corp.example", "keyed", ""}, {"/hosts", "192.0.2.9", "api.example.com", "keyed", ""},
		})
	})
}
