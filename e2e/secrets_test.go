package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// secretFile is a client's secret in a file, and those that the server knows.
type secretFile struct {
	t     *testing.T
	path  string
	valid atomic.Pointer[[]string]
}

func newSecretFile(t *testing.T, secret string) *secretFile {
	t.Helper()
	f := &secretFile{t: t, path: filepath.Join(t.TempDir(), "client_secret")}
	f.write(secret)
	f.accept(secret)
	return f
}

// write replaces the file at once, as secret stores do.
func (f *secretFile) write(secret string) {
	f.t.Helper()
	if err := os.WriteFile(f.path+".new", []byte(secret), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.path+".new", f.path); err != nil {
		f.t.Fatal(err)
	}
}

func (f *secretFile) accept(secrets ...string) { f.valid.Store(&secrets) }

// endpoint issues tokens of so many seconds to whoever knows the secret.
func (f *secretFile) endpoint(lifetime int) *egresstest.Tokens {
	e := egresstest.NewTokens(f.t)
	e.Answer = func(w http.ResponseWriter, r *http.Request) {
		known := func(secret string) bool {
			return r.Header.Get("Authorization") == tokenprovider.BasicAuth("gateway", tokenprovider.NewSecret(secret))
		}
		if !slices.ContainsFunc(*f.valid.Load(), known) {
			egresstest.Say(401, `{"error":"invalid_client","error_description":"`+egresstest.Marker+`"}`)(w, r)
			return
		}
		egresstest.Issue(fmt.Sprintf(`,"expires_in":%d`, lifetime))(w, r)
	}
	return e
}

// route returns the directive with the secret of the file.
func (f *secretFile) route(api *egresstest.Recorder, e *egresstest.Tokens) string {
	return strings.ReplaceAll(egresstest.Egress(api.URL, e.URL, ""), "{env.EGRESS_TEST_SECRET}", "{file."+f.path+"}")
}

func TestRotatedSecretIsUsedAtTheNextTokenRequest(t *testing.T) {
	f := newSecretFile(t, egresstest.Secret)
	api, endpoint := egresstest.NewRecorder(t), f.endpoint(2)
	g := egresstest.StartWatched(t, f.route(api, endpoint))
	g.Get("/v1/warm-up")
	before := endpoint.Count()
	f.accept(egresstest.Secret, egresstest.Secret+"-rotated") // a token request may be under way
	f.write(egresstest.Secret + "-rotated\n")                 // a newline at the end is not part of it
	f.accept(egresstest.Secret + "-rotated")
	egresstest.Eventually(t, "two more tokens", func() bool {
		if resp, body := g.Get("/v1/x"); resp.StatusCode != http.StatusOK {
			t.Fatalf("answered %d %s, want 200 all the time", resp.StatusCode, body)
		}
		return endpoint.Count() >= before+2
	})
}

func TestEmptiedSecretFile(t *testing.T) {
	f := newSecretFile(t, egresstest.Secret)
	api, endpoint := egresstest.NewRecorder(t), f.endpoint(1)
	g := egresstest.StartWatched(t, f.route(api, endpoint))
	g.Get("/v1/warm-up")
	f.write("")
	var refused *http.Response
	var body string
	egresstest.Eventually(t, "the token to expire", func() bool {
		refused, body = g.Get("/v1/x")
		return refused.StatusCode != http.StatusOK
	})
	egresstest.CheckNoToken(t, refused, body, http.StatusServiceUnavailable)
	if !strings.Contains(body, "cannot be read") {
		t.Errorf("the answer %s does not say why", body)
	}
	before, sent := endpoint.Count(), api.Count()
	for range 10 {
		resp, body := g.Get("/v1/x")
		egresstest.CheckNoToken(t, resp, body, http.StatusServiceUnavailable)
	}
	if endpoint.Count() != before || api.Count() != sent {
		t.Error("a request has gone out without a secret or without a token")
	}
	f.write(egresstest.Secret)
	egresstest.Eventually(t, "an answer of the API", func() bool {
		resp, _ := g.Get("/v1/x")
		return resp.StatusCode == http.StatusOK
	})
}

func TestChangedSecretIsTriedAtOnce(t *testing.T) {
	f := newSecretFile(t, egresstest.Secret+"-wrong")
	f.accept(egresstest.Secret)
	api, endpoint := egresstest.NewRecorder(t), f.endpoint(3600)
	g := egresstest.StartWatched(t, f.route(api, endpoint))
	resp, body := g.Get("/v1/x")
	egresstest.CheckNoToken(t, resp, body, http.StatusBadGateway)
	lines := g.LogLines("the authorization server refuses the credential; requests fail until it is corrected")
	if len(lines) != 1 {
		t.Fatalf("the refusal is logged as %v", lines)
	}
	next := lines[0]["ts"].(float64) + lines[0]["next_attempt"].(float64) // by itself, 4 to 5 s after the refusal
	f.write(egresstest.Secret)
	egresstest.Eventually(t, "an answer of the API", func() bool {
		resp, _ := g.Get("/v1/x")
		return resp.StatusCode == http.StatusOK
	})
	if now := float64(time.Now().UnixNano()) / 1e9; now >= next {
		t.Errorf("the changed secret was used %v s after the next try, want before it", now-next)
	}
	if got := endpoint.Count(); got != 2 {
		t.Errorf("%d token requests, want 2", got)
	}
}

func TestNoSecretAndNoTokenIsShown(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	routes := egresstest.Egress(api.URL, endpoint.URL, "verbose_logs")
	g := egresstest.StartGateway(t, routes)
	req := g.Request(http.MethodPost, "/v1/x", strings.NewReader("body"))
	req.Header.Set("Authorization", "Bearer of-the-client")
	g.Do(req)
	if !strings.Contains(g.Log(), "upstream roundtrip") {
		t.Error("the log is not at debug, the test shows nothing")
	}

	endpoint.Set(func(e *egresstest.Tokens) {
		e.Answer = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"error":"invalid_client","error_description":"`+egresstest.Secret+` is not `+egresstest.TokenPrefix+`"}`)
		}
	})
	t.Setenv("EGRESS_TEST_SECRET", egresstest.Secret+"-rotated") // refused, while the token is left
	if err := g.Load(routes); err != nil {
		t.Fatal(err)
	}
	egresstest.Eventually(t, "the refusal", func() bool { return strings.Contains(g.Log(), "could not refresh the token") })
	routes = egresstest.Egress(api.URL, endpoint.URL, "verbose_logs\nscopes other") // without a token
	if err := g.Load(routes); err != nil {
		t.Fatal(err)
	}
	resp, body := g.GetAfterReload("/v1/x")
	if resp.StatusCode != http.StatusBadGateway {
		t.Errorf("answered %d, want 502", resp.StatusCode)
	}

	for what, text := range map[string]string{"log": g.Log(), "adapted config": string(g.Adapt(routes)), "answer": body + fmt.Sprint(resp.Header)} {
		for _, secret := range []string{egresstest.Secret, egresstest.TokenPrefix} {
			if strings.Contains(text, secret) {
				t.Errorf("the %s shows %q:\n%s", what, secret, text)
			}
		}
	}
}

// Most secrets have digits, and are not taken for an error code for that reason.
func TestTokenEndpointThatEchoesTheSecretAsItsErrorCode(t *testing.T) {
	const secret = "CorrectHorseBatteryStaple"
	f := newSecretFile(t, secret)
	for name, code := range map[string]string{"itself": secret, "in a longer one": "bad_secret." + strings.ToLower(secret), "in part": "horsebattery"} {
		t.Run(name, func(t *testing.T) {
			api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
			endpoint.SetAnswer(egresstest.Say(http.StatusUnauthorized, `{"error":"`+code+`"}`))
			admin, option := egresstest.NewAdmin(t)
			g := egresstest.StartWatched(t, f.route(api, endpoint), egresstest.WithGlobal(option))
			resp, body := g.Get("/v1/x")
			egresstest.CheckNoToken(t, resp, body, http.StatusBadGateway)
			_, status := admin.Ask(t, http.MethodGet, "/egress/tokens")
			if !strings.Contains(status, `"status":401`) {
				t.Errorf("the status %s shows no failure", status)
			}
			for what, text := range map[string]string{"log": g.Log(), "admin API": status, "answer": body + fmt.Sprint(resp.Header)} {
				if strings.Contains(strings.ToLower(text), "horsebattery") {
					t.Errorf("the %s shows the secret:\n%s", what, text)
				}
			}
		})
	}
}

func TestSecretFileThatEveryoneMayReadIsWarnedAbout(t *testing.T) {
	const warning = "everyone on this machine may read the file of a secret; chmod o-r"
	f := newSecretFile(t, egresstest.Secret)
	api, endpoint := egresstest.NewRecorder(t), f.endpoint(3600)
	routes := egresstest.Site("/named", "egress named") + egresstest.Site("/inline", f.route(api, endpoint))
	g := egresstest.NewGateway(t, egresstest.WithGlobal("egress {\n"+strings.Replace(f.route(api, endpoint), "egress", "credential named", 1)+"\n}"))
	for mode, want := range map[os.FileMode]int{0o600: 0, 0o640: 0, 0o644: 2} { // one for each credential
		if err := os.Chmod(f.path, mode); err != nil {
			t.Fatal(err)
		}
		before := len(g.LogLines(warning))
		if err := egresstest.Validate(t, g.Adapt(routes)); err != nil {
			t.Fatal(err)
		}
		lines := g.LogLines(warning)[before:]
		if len(lines) != want {
			t.Errorf("%o: warned %d times, want %d", mode, len(lines), want)
		}
		for _, line := range lines {
			if line["level"] != "warn" || line["option"] != "client_secret" || line["file"] != f.path || line["credential"] == nil {
				t.Errorf("%o: warned by %v", mode, line)
			}
		}
	}
}

func TestScopesThatTheServerSentAreNotLogged(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	endpoint.Answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"`+egresstest.TokenPrefix+`1","token_type":"bearer","expires_in":60,"scope":"`+egresstest.Secret+`"}`)
	}
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, "scopes read"))
	if resp, body := g.Get("/v1/x"); resp.StatusCode != http.StatusOK {
		t.Fatalf("answered %d %s", resp.StatusCode, body)
	}
	log := g.Log()
	if !strings.Contains(log, "granted less than was asked for") || strings.Contains(log, egresstest.Secret) {
		t.Errorf("the log has no warning, or what the server sent:\n%s", log)
	}
}

func TestRotatedSecretIsUsedWithoutAReload(t *testing.T) {
	api, server := egresstest.NewSandboxFor(t, "voucherify", "id", "after")
	file := filepath.Join(t.TempDir(), "secret")
	write := func(secret string) {
		if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before")
	g := egresstest.StartGateway(t, fmt.Sprintf("egress voucherify %s {\n app_id id\n app_token {file.%s}\n scopes api\n}", server.URL, file))
	resp, body := g.Get("/v1/vouchers")
	if resp.StatusCode != http.StatusBadGateway || !strings.Contains(body, "credential_refused") {
		t.Fatalf("with the wrong secret: %d %s", resp.StatusCode, body)
	}
	write("after")
	egresstest.Eventually(t, "the rotated secret", func() bool {
		resp, _ := g.Get("/v1/vouchers")
		return resp.StatusCode == http.StatusOK
	})
	// the backoff after a refusal begins at 4 s; the changed secret did not wait for it
	if got := api.Stats().TokenRequests; got != 2 {
		t.Errorf("%d token requests, want 2", got)
	}
}
