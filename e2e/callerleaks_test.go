package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// Keys occur nowhere but in requests to the gateway. Each test looks for them in
// its log, in what has arrived at its API, and in what it was answered; here they
// come in every way, and everything else that can be read is searched as well.
func TestKeysAreShownNowhere(t *testing.T) {
	service := egresstest.NewService(t)
	service.API.Handler = func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/v1/broken"):
			panic(http.ErrAbortHandler)
		case strings.HasSuffix(r.URL.Path, "/v1/401"):
			w.WriteHeader(http.StatusUnauthorized)
		}
	}
	admin, option := egresstest.NewAdmin(t)
	file := newSecretFile(t, egresstest.Key("nightly"))
	callers := egresstest.Caller(t, "shop") + egresstest.Caller(t, "agent", "clients 192.0.2.1") + "caller nightly {\n key {file." + file.path + "} {env.EGRESS_TEST_KEY_before}\n}\n"
	t.Setenv("EGRESS_TEST_KEY_before", egresstest.Key("nightly-before"))
	accessLog := filepath.Join(t.TempDir(), "access.log")
	// Caddy hides Authorization only: an access log has to leave out the others
	routes := "log {\n output file " + accessLog + "\n format filter {\n request>headers>X-Api-Key delete\n request>headers>X-App-Token delete\n request>headers>X-Client-Token delete\n}\n}\n"
	for _, credential := range []string{"plain", "promo", "tours"} {
		routes += egresstest.Site("/"+credential+"/", "egress "+credential+" {\n verbose_logs\n grant shop nightly {\n allow /*/v1/*\n limit 9/m\n}\n"+showCaller+"}")
	}
	g := egresstest.StartGateway(t, routes+"handle_errors {\n respond \"{http.error.status_code} {http.error.message}\"\n}\n", egresstest.WithCallers(option+
		"events {\n on egress.caller_refused egress_test\n}\negress {\n"+service.Credential("plain", "oauth2", "")+service.Credential("promo", "voucherify", "")+service.Credential("tours", "understory", "")+callers+"}"))
	shown := func(when string) {
		t.Helper()
		for _, path := range []string{"/config/", "/config/apps/egress", "/metrics", "/egress/tokens", "/egress/tokens/plain", "/reverse_proxy/upstreams", "/debug/vars", "/debug/pprof/goroutine?debug=2"} {
			_, body := admin.Ask(t, http.MethodGet, path)
			if path == "/config/" && (!strings.Contains(body, "{env.EGRESS_TEST_KEY_shop}") || !strings.Contains(body, "{file."+file.path+"}")) {
				t.Errorf("%s: the config does not have the placeholders", when)
			}
		}
		recordedEvents.Lock()
		egresstest.CheckKeys(t, when+": an event", fmt.Sprintf("%+v", recordedEvents.all))
		recordedEvents.Unlock()
		log, err := os.ReadFile(accessLog)
		if err != nil {
			t.Fatal(err)
		}
		egresstest.CheckKeys(t, when+": the access log", string(log))
		egresstest.CheckKeys(t, when+": the log", g.Log())
	}

	sent := 0
	for _, name := range []string{"shop", "agent", "nightly", "nightly-before", "nobody"} {
		key := egresstest.Key(name)
		for _, header := range [][]string{
			{"Authorization", "Bearer " + key}, {"Authorization", "Basic " + basicPair("user", key)}, {"Authorization", "Basic " + basicPair("a user", key)}, {"X-Api-Key", key},
		} {
			for _, path := range []string{"/plain/v1/x", "/promo/v1/x", "/tours/v1/x", "/plain/v1/broken", "/promo/v1/401", "/plain/v2/x", "/plain/v1/a%00b"} {
				if strings.HasSuffix(path, "broken") && header[0] != "Authorization" {
					continue // as the access log, Caddy's log of errors has to leave it out
				}
				req := g.Request(http.MethodPost, "/", strings.NewReader("body"))
				req.URL.Opaque = path
				req.Header.Set(header[0], header[1])
				if _, _, err := g.Try(req); err != nil {
					t.Fatal(err)
				}
				sent++
			}
		}
		for _, header := range []string{"X-App-Token", "X-Client-Token"} {
			ask(g, http.MethodGet, "/promo/v1/x", header, key)
			sent++
		}
		ctx, cancel := context.WithCancel(t.Context()) // one that leaves
		cancel()
		if resp, err := g.Client.Do(g.Request(http.MethodGet, "/plain/v1/x", nil).WithContext(ctx)); err == nil {
			resp.Body.Close()
		}
	}
	egresstest.Eventually(t, "the access log", func() bool {
		log, _ := os.ReadFile(accessLog)
		return strings.Count(string(log), "handled request") >= sent
	})
	shown("after requests")

	for _, content := range []string{egresstest.Key("nightly-after"), egresstest.Key("shop"), egresstest.KeyPrefix + "x", egresstest.Key("one") + " " + egresstest.Key("two"), ""} {
		before := strings.Count(g.Log(), "the key of a caller")
		file.write(content)
		egresstest.Eventually(t, "a line in the log", func() bool { return strings.Count(g.Log(), "the key of a caller") > before })
	}
	shown("after changes of a key")

	t.Setenv("EGRESS_TEST_KEY_agent", egresstest.Key("shop"))
	if err := g.Load(routes); err == nil {
		t.Error("a key of two callers was loaded")
	} else {
		egresstest.CheckKeys(t, "the error", err.Error())
	}
	shown("after a config that was rejected")
}
