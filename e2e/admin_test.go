package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	egress "github.com/caddy-egress/caddy-egress"
	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestAdminAPI(t *testing.T) {
	voucherify, voucherifyServer := egresstest.NewSandbox(t, "voucherify")
	_, understoryServer := egresstest.NewSandbox(t, "understory")
	endpoint := egresstest.NewTokens(t)
	endpoint.Answer = egresstest.Say(http.StatusUnauthorized, `{"error":"invalid_client","error_description":"`+egresstest.Marker+`"}`)
	admin, option := egresstest.NewAdmin(t)
	g := egresstest.StartWatched(t, "handle /a {\n egress vouchers\n}\nhandle /b {\n egress tours\n}\nhandle /c {\n egress none\n}", egresstest.WithGlobal(option+fmt.Sprintf(`egress {
		credential vouchers voucherify %[1]s {
			app_id id
			app_token {env.EGRESS_TEST_SECRET}
			scopes vouchers campaigns
		}
		credential tours understory %[2]s {
			token_url %[2]s/oauth2/token
			client_id id
			client_secret {env.EGRESS_TEST_SECRET}
			scopes booking.read
		}
		credential none oauth2 %[1]s {
			token_url %[3]s
			client_id id
			client_secret {env.EGRESS_TEST_SECRET}
			revocation_url %[3]s/revoke
			introspection_url %[3]s/introspect
		}
	}`, voucherifyServer.URL, understoryServer.URL, endpoint.URL)))
	state := func(name string) string { return admin.Status(t, name).State }
	egresstest.Eventually(t, "the first tokens", func() bool {
		return state("vouchers") == "fresh" && state("tours") == "fresh" && state("none") == "refused"
	})

	t.Run("list", func(t *testing.T) {
		resp, body := admin.Ask(t, http.MethodGet, "/egress/tokens")
		var all []egress.CredentialStatus
		if err := json.Unmarshal([]byte(body), &all); err != nil || resp.Header.Get("Content-Type") != "application/json" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Fatalf("%v: %v %s", err, resp.Header, body)
		}
		var names []string
		for _, c := range all {
			names = append(names, c.Credential)
		}
		if fmt.Sprint(names) != "[none tours vouchers]" {
			t.Errorf("lists %v", names)
		}
	})
	t.Run("one", func(t *testing.T) {
		got := admin.Status(t, "vouchers")
		if got.Provider != "voucherify" || got.TokenEndpoint != voucherifyServer.URL+"/v1/oauth/token" || got.ClientID != "id" ||
			fmt.Sprint(got.ScopesRequested) != "[vouchers campaigns]" || fmt.Sprint(got.ScopesGranted) != "[vouchers campaigns]" ||
			got.LastError != nil || got.TokenRequests != 1 || got.TokenFailures != 0 || got.Remaining != nil || !got.LimitedUntil.IsZero() {
			t.Errorf("got %+v", got)
		}
		if left := time.Until(got.Expires); left > 15*time.Minute || left < 14*time.Minute || !got.NextAttempt.Before(got.Expires) {
			t.Errorf("expires at %v, next attempt at %v", got.Expires, got.NextAttempt)
		}
		g.Get("/a") // the API says how many calls are left
		if got := admin.Status(t, "vouchers").Remaining; got == nil || *got != 1999 {
			t.Errorf("%v calls remain, want 1999", got)
		}
	})
	t.Run("one that fails", func(t *testing.T) {
		got := admin.Status(t, "none")
		if e := got.LastError; e == nil || e.Class != "refused" || e.Status != 401 || e.Code != "invalid_client" || e.Advice == "" || e.Attempts < 1 || e.Since.IsZero() {
			t.Errorf("got %+v", e)
		}
		if got.NextAttempt.IsZero() || !got.Expires.IsZero() || got.ScopesGranted != nil || got.TokenFailures < 1 {
			t.Errorf("got %+v", got)
		}
	})
	t.Run("introspect", func(t *testing.T) {
		resp, body := admin.Ask(t, http.MethodPost, "/egress/tokens/vouchers/introspect")
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"active":true`) || !strings.Contains(body, `"vouchers campaigns"`) {
			t.Errorf("answered %d %s", resp.StatusCode, body)
		}
	})
	t.Run("refresh", func(t *testing.T) {
		before := admin.Status(t, "vouchers")
		resp, body := admin.Ask(t, http.MethodPost, "/egress/tokens/vouchers/refresh")
		after := admin.Status(t, "vouchers")
		if resp.StatusCode != http.StatusOK || !after.Issued.After(before.Issued) || after.TokenRequests != before.TokenRequests+1 {
			t.Errorf("answered %d %s; issued %v, before %v", resp.StatusCode, body, after.Issued, before.Issued)
		}
	})
	t.Run("revoke", func(t *testing.T) {
		requests := voucherify.Stats().TokenRequests
		if resp, body := admin.Ask(t, http.MethodPost, "/egress/tokens/vouchers/revoke"); resp.StatusCode != http.StatusOK {
			t.Errorf("answered %d %s", resp.StatusCode, body)
		}
		if resp, body := g.Get("/a"); resp.StatusCode != http.StatusNotFound || resp.Header.Get("Proxy-Status") != "" {
			t.Errorf("the next request is answered %d %s, want the API's 404", resp.StatusCode, body)
		}
		// three were issued: one was replaced, one revoked, one is in use
		if got := voucherify.Stats(); got.LiveTokens != 2 || got.TokenRequests != requests+1 {
			t.Errorf("got %+v, want 2 live tokens after %d token requests", got, requests+1)
		}
	})
	for _, test := range []struct {
		name, method, path string
		status             int
		says               string
	}{
		{"unknown name", http.MethodGet, "/egress/tokens/nobody", 404, `no credential in use is named \"nobody\"; in use: none, tours, vouchers"`},
		{"no name", http.MethodGet, "/egress/tokens/", 404, "no credential"},
		{"unknown name and an action", http.MethodPost, "/egress/tokens/nobody/refresh", 404, "nobody"},
		{"unknown action", http.MethodPost, "/egress/tokens/vouchers/delete", 404, "no such action: delete; there are refresh, revoke, introspect"},
		{"deeper", http.MethodPost, "/egress/tokens/vouchers/refresh/now", 404, "no such action"},
		{"method of the list", http.MethodPost, "/egress/tokens", 405, "use GET"},
		{"method of one", http.MethodDelete, "/egress/tokens/vouchers", 405, "use GET"},
		{"method of an action", http.MethodGet, "/egress/tokens/vouchers/refresh", 405, "use POST"},
		{"no token to revoke", http.MethodPost, "/egress/tokens/none/revoke", 409, "no live token"},
		{"no token to introspect", http.MethodPost, "/egress/tokens/none/introspect", 409, "no live token"},
		{"cannot revoke", http.MethodPost, "/egress/tokens/tours/revoke", 501, "does not support"},
		{"refused", http.MethodPost, "/egress/tokens/none/refresh", 502, "invalid_client"},
	} {
		t.Run(test.name, func(t *testing.T) {
			resp, body := admin.Ask(t, test.method, test.path)
			var e struct {
				Error string `json:"error"`
			}
			if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error == "" {
				t.Errorf("not an error of Caddy's admin API: %s", body)
			}
			if resp.StatusCode != test.status || !strings.Contains(body, test.says) {
				t.Errorf("answered %d %s, want %d with %q", resp.StatusCode, body, test.status, test.says)
			}
			want := ""
			if test.status == http.StatusMethodNotAllowed {
				want = test.says[len("use "):]
			}
			if got := resp.Header.Get("Allow"); got != want {
				t.Errorf("Allow is %q, want %q", got, want)
			}
		})
	}
	t.Run("the authorization server is down", func(t *testing.T) {
		voucherifyServer.Close()
		for _, action := range []string{"introspect", "refresh", "revoke"} {
			if resp, body := admin.Ask(t, http.MethodPost, "/egress/tokens/vouchers/"+action); resp.StatusCode != http.StatusBadGateway {
				t.Errorf("%s: answered %d %s, want 502", action, resp.StatusCode, body)
			}
		}
	})
	t.Run("config without egress", func(t *testing.T) {
		g.Global = option
		if err := g.Load("respond 204"); err != nil {
			t.Fatal(err)
		}
		if resp, body := admin.Ask(t, http.MethodGet, "/egress/tokens"); resp.StatusCode != http.StatusOK || body != "[]\n" {
			t.Errorf("answered %d %s, want an empty list", resp.StatusCode, body)
		}
		if resp, body := admin.Ask(t, http.MethodGet, "/egress/tokens/vouchers"); resp.StatusCode != http.StatusNotFound {
			t.Errorf("answered %d %s, want 404", resp.StatusCode, body)
		}
	})
}

func TestAdminAPIBesideReloads(t *testing.T) {
	f := newManyCredentials(t)
	g := egresstest.StartGateway(t, f.routes, egresstest.WithGlobal(f.global))
	f.warm(t)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var answered atomic.Int64
	for _, path := range []string{"/egress/tokens", "/egress/tokens/forwarded" + f.suffix, "/metrics", "/egress/tokens"} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, body, err := f.admin.Try(http.MethodGet, path)
				if err != nil {
					continue // the server is being replaced
				}
				answered.Add(1)
				if resp.StatusCode != http.StatusOK {
					t.Errorf("%s: %d %s", path, resp.StatusCode, body)
					return
				}
				if path == "/egress/tokens" && strings.Count(body, `"credential":`) != len(manyRoutes) {
					t.Errorf("lists %s", body)
					return
				}
			}
		})
	}
	for n := range 20 {
		before := answered.Load()
		if err := g.Load(f.routes); err != nil {
			t.Errorf("reload %d: %v", n, err)
		}
		egresstest.Eventually(t, "answers between the reloads", func() bool { return t.Failed() || answered.Load() > before })
	}
	close(stop)
	wg.Wait()
}
