package egress_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

const healthChecks = `
	health_uri      /health
	health_interval 50ms
	health_timeout  2s
`

func TestHealthChecksCarryTheToken(t *testing.T) {
	api, endpoint := newGuarded(t, (*httptest.Server).Start), newTokens(t)
	api.accept(nth(1))
	g := startGateway(t, egress(api.URL, endpoint.URL, healthChecks))

	// without a token, the probe would mark the only upstream as down
	eventually(t, "probes", func() bool { return api.accepted.Load() > 3 })
	if resp, body := g.get("/v1/x"); resp.StatusCode != http.StatusOK {
		t.Errorf("answered %d %s, want 200", resp.StatusCode, body)
	}
	if got := api.unauthorized.Load(); got != 0 {
		t.Errorf("%d probes came without a token", got)
	}
	if got := endpoint.count(); got != 1 {
		t.Errorf("%d token requests, want 1", got)
	}
}

func TestValidatingAConfigFetchesNothing(t *testing.T) {
	api, endpoint := newRecorder(t, (*httptest.Server).Start), newTokens(t)
	g := &gateway{t: t, Addr: freeAddr(t), log: t.TempDir() + "/caddy.log", bind: "127.0.0.1"}
	var config caddy.Config
	if err := caddy.StrictUnmarshalJSON(g.adapt(egress(api.URL, endpoint.URL, healthChecks)), &config); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Validate(&config); err != nil {
		t.Fatal(err)
	}
	if endpoint.count() != 0 || api.count() != 0 {
		t.Errorf("validating made %d token requests and %d API requests", endpoint.count(), api.count())
	}
}
