package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestRoutesOfOneCredentialShareATokenAndScopesHaveTheirOwn(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	g := egresstest.StartGateway(t, `
	handle /a* {
		egress shop
	}
	handle /b* {
		egress shop
	}
	handle /c* {
		egress shop {
			scopes read
		}
	}
	handle /d* {
		reverse_proxy `+api.URL+` {
			transport egress {
				credential shop
				scopes     read
			}
		}
	}`, egresstest.WithGlobal(`egress {
		credential shop oauth2 `+api.URL+` {
			token_url `+endpoint.URL+`
			client_id gateway
			client_secret {env.EGRESS_TEST_SECRET}
			scopes read write
		}
	}`))
	tokenOf := make(map[string]string)
	for _, path := range []string{"/a", "/b", "/c", "/d"} {
		if resp, body := g.Get(path); resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s", path, resp.StatusCode, body)
		}
		tokenOf[path] = api.Last(t).Header.Get("Authorization")
	}
	if tokenOf["/a"] != tokenOf["/b"] || tokenOf["/c"] != tokenOf["/d"] || tokenOf["/a"] == tokenOf["/c"] {
		t.Errorf("tokens of the routes: %v", tokenOf)
	}
	if got := endpoint.Count(); got != 2 {
		t.Errorf("%d token requests, want 2", got)
	}
}

func TestFirstRequestsShareOneTokenRequest(t *testing.T) {
	const clients = 200
	for _, failing := range []bool{false, true} {
		t.Run(fmt.Sprintf("failing=%v", failing), func(t *testing.T) {
			api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
			endpoint.Latency = 300 * time.Millisecond
			if failing {
				endpoint.Answer = func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Retry-After", "60")
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			}
			g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))

			var mu sync.Mutex
			answers := make(map[string]int)
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					resp, err := egresstest.Client.Get(g.URL + "/v1/x")
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					body, _ := io.ReadAll(resp.Body)
					mu.Lock()
					answers[fmt.Sprintf("%d %s", resp.StatusCode, body)]++
					mu.Unlock()
				})
			}
			wg.Wait()
			if got := endpoint.Count(); got != 1 {
				t.Errorf("%d token requests, want 1", got)
			}
			want := http.StatusOK
			if failing {
				want = http.StatusServiceUnavailable
			}
			for answer, n := range answers {
				if !strings.HasPrefix(answer, fmt.Sprint(want)) || n != clients {
					t.Errorf("%d answers %s, want %d of %d", n, answer, clients, want)
				}
			}
			if failing && api.Count() != 0 {
				t.Error("a request has gone out without a token")
			}
		})
	}
}

func TestOneCredentialWithTwoSecretsDoesNotLoad(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	t.Setenv("EGRESS_TEST_OTHER_SECRET", egresstest.Secret+"-other")
	route := egresstest.Egress(api.URL, endpoint.URL, "")
	other := strings.Replace(route, egresstest.SecretVariable, "EGRESS_TEST_OTHER_SECRET", 1)
	g := egresstest.StartGateway(t, route)
	err := g.Load(egresstest.Site("/a", route) + egresstest.Site("/b", other))
	if err == nil || !strings.Contains(err.Error(), "secrets") {
		t.Fatalf("two secrets of one client id: error %v, want one about them", err)
	}
	egresstest.CheckLeaks(t, "the error", err.Error())
	if err := g.Load(egresstest.Site("/a", route) + egresstest.Site("/b", route)); err != nil {
		t.Errorf("with the same secret: %v", err)
	}
}

func TestRefreshBefore(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t) // whose tokens live for an hour
	admin, option := egresstest.NewAdmin(t)
	credential := strings.TrimPrefix(egresstest.Egress(api.URL, endpoint.URL, "refresh_before %s"), "egress ")
	egresstest.StartGateway(t, egresstest.Site("/a", "egress ten")+egresstest.Site("/b", "egress two")+egresstest.Site("/c", "egress default"),
		egresstest.WithGlobal(option+"egress {\n"+
			"credential ten "+fmt.Sprintf(credential, "10m")+"\n"+
			"credential two "+strings.Replace(fmt.Sprintf(credential, "2m"), "gateway", "another", 1)+"\n"+
			"credential default "+strings.NewReplacer("gateway", "third", "refresh_before %s", "").Replace(credential)+"\n}"))
	for name, want := range map[string]time.Duration{"ten": 10 * time.Minute, "two": 2 * time.Minute, "default": 20 * time.Minute} {
		egresstest.Eventually(t, "the token of "+name, func() bool { return admin.Status(t, name).State == "fresh" })
		got := admin.Status(t, name)
		// up to a tenth later at random
		if before := got.Expires.Sub(got.NextAttempt); before > want || before < want*9/10-time.Second {
			t.Errorf("%s: the token is replaced %v before it expires, want %v", name, before, want)
		}
	}
}

// The key of Voucherify's OAuth v2 goes into Basic, which carries any character;
// that of v1 into headers as it is.
func TestVoucherifyKeyThatNoHeaderCarries(t *testing.T) {
	const secret = egresstest.Secret + "\x01\x7f"
	t.Setenv("EGRESS_TEST_ODD_SECRET", secret)
	_, server := egresstest.NewSandboxFor(t, "voucherify", "id", secret)
	route := func(options string) string {
		return fmt.Sprintf("egress voucherify %s {\n app_id id\n app_token {env.EGRESS_TEST_ODD_SECRET}\n %s\n}", server.URL, options)
	}
	g := egresstest.StartGateway(t, route("oauth v2\n project_id project\n scopes vouchers.read"))
	if resp, body := g.Get("/v1/vouchers"); resp.StatusCode != http.StatusOK {
		t.Errorf("with v2: %d %s, want 200", resp.StatusCode, body)
	}
	if err := g.Load(route("scopes api")); err == nil || !strings.Contains(err.Error(), "app_token") {
		t.Errorf("with v1: error %v, want one about app_token", err)
	}
}
