package e2e_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestReady(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	endpoint.Answer = egresstest.Say(http.StatusServiceUnavailable, "")
	admin, option := egresstest.NewAdmin(t)
	credentials := option + fmt.Sprintf(`egress {
		credential late oauth2 %[1]s {
			token_url %[2]s
			client_id late
			client_secret {env.EGRESS_TEST_SECRET}
		}
		credential unused oauth2 %[1]s {
			token_url %[2]s
			client_id unused
			client_secret {env.EGRESS_TEST_SECRET}
		}
	}`, api.URL, endpoint.URL)
	routes := "egress_ready /ready\negress late"
	g := egresstest.StartWatched(t, routes, egresstest.WithGlobal(credentials))
	check := func(when string, status int, want string) {
		t.Helper()
		resp, body := g.GetAfterReload("/ready")
		if resp.StatusCode != status || body != want+"\n" || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: answered %d %s %v, want %d %s", when, resp.StatusCode, body, resp.Header, status, want)
		}
	}
	check("before the first token", 503, `{"ready":false,"waiting":["late"]}`)

	endpoint.Set(func(e *egresstest.Tokens) { e.Answer = nil })
	egresstest.Eventually(t, "the first token", func() bool { return admin.Status(t, "late").State == "fresh" })
	check("with a token", 200, `{"ready":true}`)

	endpoint.Set(func(e *egresstest.Tokens) { e.Answer = egresstest.Say(http.StatusServiceUnavailable, "") })
	if resp, body := admin.Ask(t, http.MethodPost, "/egress/tokens/late/refresh"); resp.StatusCode != http.StatusBadGateway {
		t.Fatalf("refreshing: %d %s", resp.StatusCode, body)
	}
	check("in an outage", 200, `{"ready":true}`)
	if err := g.Load("log\n" + routes); err != nil {
		t.Fatal(err)
	}
	check("in an outage, after a reload", 200, `{"ready":true}`)
	if resp, body := g.GetAfterReload("/v1/x"); resp.StatusCode != http.StatusOK {
		t.Errorf("the route beside it answers %d %s", resp.StatusCode, body)
	}

	g.Global = option
	if err := g.Load("egress_ready"); err != nil {
		t.Fatal(err)
	}
	check("without a credential", 200, `{"ready":true}`)
}

// Peers outside of the clients of the global option learn whether, not which.
func TestReadyNamesCredentialsToClientsOnly(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	endpoint.Answer = egresstest.Say(http.StatusServiceUnavailable, "")
	_, option := egresstest.NewAdmin(t)
	for clients, named := range map[string]bool{"": true, "clients 10.0.0.0/8": false, "clients 127.0.0.2": true, "clients any": true} {
		global := option + fmt.Sprintf(`egress {
			%s
			credential late oauth2 %s {
				token_url %s
				client_id late
				client_secret {env.EGRESS_TEST_SECRET}
			}
		}`, clients, api.URL, endpoint.URL)
		t.Run(clients, func(t *testing.T) {
			g := egresstest.StartGateway(t, "egress_ready /ready\negress late {\nclients any\n}", egresstest.WithGlobal(global))
			resp, body := egresstest.NewWire(t, egresstest.From("127.0.0.2", g.Addr)).Send("GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
			if resp.StatusCode != http.StatusServiceUnavailable || !strings.HasPrefix(body, `{"ready":false`) || strings.Contains(body, "late") != named {
				t.Errorf("answered %d %s, want names: %t", resp.StatusCode, body, named)
			}
			if got := resp.Header.Get("X-Content-Type-Options"); got != "nosniff" {
				t.Errorf("X-Content-Type-Options is %q", got)
			}
		})
	}
}
