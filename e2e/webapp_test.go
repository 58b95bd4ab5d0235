package e2e_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// A web app on another origin, in a real browser: it reads, writes, and sees why
// it is refused, if its origin is listed; and nothing if it is not.
func TestWebApps(t *testing.T) {
	browser := chromium(t)
	pages := newPages(t, "app.html")
	served := pages.origin("app.test")
	api, endpoint, down := egresstest.NewRecorder(t), egresstest.NewTokens(t), egresstest.NewTokens(t)
	down.SetAnswer(egresstest.Say(http.StatusServiceUnavailable, "", "Retry-After", "60"))
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Cache-Control", "max-age=600")
		w.Header().Set("X-Rate-Limit-Remaining", "7")
		w.Header().Set("X-Of-The-API", "not exposed")
		if strings.HasSuffix(r.URL.Path, "/missing") {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, "data of the API")
	}
	options := "hosts any\norigins " + served + "\n"
	g := egresstest.StartGateway(t, "log\n"+
		egresstest.Site("/open", egresstest.Egress(api.URL, endpoint.URL, options))+
		egresstest.Site("/closed", egresstest.Egress(api.URL, endpoint.URL, "hosts any"))+
		egresstest.Site("/allow", egresstest.Egress(api.URL, endpoint.URL, options+"allow GET,PUT /allow/things/*"))+
		egresstest.Site("/down", strings.ReplaceAll(egresstest.Egress(api.URL, down.URL, options), "client_id gateway", "client_id down")))

	t.Run("listed", func(t *testing.T) {
		saw := pages.visit(t, browser, served, g.URL+"/")
		const data = `"data of the API",null,null,"7",null]`
		for _, want := range []string{
			"read: [200," + data, "write: [200," + data, "remove: [200," + data, "missing: [404," + data,
			`this operation is not permitted; ask the operator of the gateway, whose log says why\",\"code\":\"operation_not_allowed\"}",null,"caddy-egress; error=http_request_denied; details=\"operation_not_allowed\"",null,null]`,
			"refused: [403,", "no token: [503,", `\"code\":\"token_unavailable\"}","`,
			"cookies: Failed to fetch",
		} {
			if !strings.Contains(saw, want) {
				t.Errorf("the app did not see %s:\n%s", want, saw)
			}
		}
		for _, request := range api.All() {
			if request.Method == http.MethodOptions {
				t.Errorf("a preflight has reached the API: %+v", request)
			}
			if strings.HasSuffix(request.Target, "/write") && (request.Body != `{"a":1}` || request.Header.Get("Content-Type") != "application/json") {
				t.Errorf("the API got %+v", request)
			}
			if cookie := request.Header.Get("Cookie"); cookie != "" {
				t.Errorf("the API got the cookie %q", cookie)
			}
		}
	})

	for name, host := range map[string]string{"localhost": g.URL, "a name, where browsers tell less": "http://gateway.internal:" + egresstest.Port(g.Addr)} {
		t.Run("not listed, gateway on "+name, func(t *testing.T) {
			saw := pages.visit(t, browser, pages.origin("evil.test"), host+"/")
			for line := range strings.SplitSeq(strings.TrimSuffix(saw, "\ndone"), "\n") {
				if !strings.HasSuffix(line, ": Failed to fetch") {
					t.Errorf("the app saw %s", line)
				}
			}
		})
	}
}
