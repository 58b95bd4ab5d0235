package e2e_test

import (
	"cmp"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// fault is something a token endpoint does.
type fault struct {
	name     string
	provider string           // oauth2 if empty
	answer   http.HandlerFunc // nil: nothing listens
	status   int              // that clients get; 503 if 0
	wait     int              // seconds that the endpoint asks for
	logged   string           // what the log says of the credential
}

// tokenFaults are what token endpoints do that they should not, and some
// things that they may do. elsewhere is the URL of another host.
func tokenFaults(elsewhere string) []fault {
	const (
		refused = http.StatusBadGateway
		html    = "<html><body>" + egresstest.Marker + "</body></html>"
		oauth   = `{"error":"invalid_client","error_description":"` + egresstest.Marker + `","error_uri":"` + egresstest.Marker + `"}`
		token   = `"access_token":"` + egresstest.TokenPrefix + `1"`
	)
	faults := []fault{
		{name: "refuses connections"},
		{name: "resets connections", answer: egresstest.Hijack("", true)},
		{name: "closes connections", answer: egresstest.Hijack("", false)},
		{name: "speaks no HTTP", answer: egresstest.Hijack(egresstest.Marker+"\r\n\r\n", false)},
		{name: "breaks off the answer", answer: egresstest.Hijack("HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"+token, false)},
		{name: "hangs", answer: egresstest.Hang},
		{name: "hangs in the answer", answer: func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "{"+token)
			_ = http.NewResponseController(w).Flush()
			egresstest.Hang(w, r)
		}},

		{name: "429 of Understory", provider: "understory", answer: egresstest.Say(429, ""), wait: 60},
		{name: "429 of Voucherify", provider: "voucherify", wait: 3, answer: func(w http.ResponseWriter, r *http.Request) {
			egresstest.Say(429, `{"code":429,"message":"`+egresstest.Marker+`"}`, "X-Rate-Limit-Retry", strconv.FormatInt(time.Now().Unix()+3, 10))(w, r)
		}},
		{name: "429, X-Ratelimit-Reset", answer: egresstest.Say(429, "", "X-Ratelimit-Reset", "3"), wait: 3},
		{name: "503, Retry-After a date", wait: 3, answer: func(w http.ResponseWriter, r *http.Request) {
			egresstest.Say(503, html, "Retry-After", time.Now().Add(3*time.Second).UTC().Format(http.TimeFormat))(w, r)
		}},
		{name: "503, Retry-After a day", answer: egresstest.Say(503, html, "Retry-After", "86400"), wait: 300},
		{name: "503, Retry-After nonsense", answer: egresstest.Say(503, html, "Retry-After", egresstest.Marker)},
		{name: "503, huge", answer: egresstest.Say(503, strings.Repeat(egresstest.Marker, 1<<16), "Retry-After", "3"), wait: 3},

		{name: "400 invalid_request", answer: egresstest.Say(400, `{"error":"invalid_request","error_description":"`+egresstest.Marker+`"}`), status: refused},
		{name: "400, a code that OAuth does not have", answer: egresstest.Say(400, `{"error":"`+egresstest.Secret+`","error_description":"`+egresstest.Marker+`"}`), status: refused},
		{name: "401 invalid_client", answer: egresstest.Say(401, oauth), status: refused},
		{name: "403 access_denied", answer: egresstest.Say(403, `{"error":"access_denied","error_description":"`+egresstest.Marker+`"}`), status: refused},
		{name: "400 of Voucherify", provider: "voucherify", answer: egresstest.Say(400, `{"code":400,"key":"invalid_scope","message":"`+egresstest.Marker+`"}`), status: refused},
		{name: "401 of Voucherify", provider: "voucherify", answer: egresstest.Say(401, `{"code":401,"message":"`+egresstest.Marker+`","key":"unauthorized"}`), status: refused},
		{name: "401 of Understory", provider: "understory", answer: egresstest.Say(401, `{"code":"UNAUTHORIZED","message":"`+egresstest.Marker+`"}`), status: refused},
		{name: "401 of Hydra", provider: "understory", answer: egresstest.Say(401, oauth), status: refused},
		{name: "401, empty", answer: egresstest.Say(401, "")},
		{name: "403, HTML", answer: egresstest.Say(403, html, "Content-Type", "text/html")},
		{name: "404, JSON of something else", answer: egresstest.Say(404, `{"detail":"`+egresstest.Marker+`"}`)},

		{name: "307 to another host", answer: egresstest.Say(307, html, "Location", elsewhere+"/oauth/token?"+egresstest.Marker), status: refused},
		{name: "302 to another host", answer: egresstest.Say(302, html, "Location", elsewhere+"/login?"+egresstest.Marker), status: refused},
		{name: "302 to nowhere", answer: egresstest.Say(302, "", "Location", "://"+egresstest.Marker)},

		{name: "200, HTML", answer: egresstest.Say(200, html, "Content-Type", "text/html")},
		{name: "200, empty", answer: egresstest.Say(200, "")},
		{name: "204", answer: egresstest.Say(204, "")},
		{name: "200, 10 MiB", answer: func(w http.ResponseWriter, r *http.Request) {
			egresstest.Say(200, "{"+token+`,"padding":"`)(w, r)
			_, _ = io.Copy(w, io.LimitReader(zeros{}, 10<<20))
		}},
		{name: "200, truncated", answer: egresstest.Say(200, "{"+token+`,"expires_in":36`)},
		{name: "200, an array", answer: egresstest.Say(200, "[{"+token+"}]")},
		{name: "200, two objects", answer: egresstest.Say(200, "{"+token+"}{"+token+"}")},
		{name: "200, no access_token", answer: egresstest.Say(200, `{"token_type":"bearer","expires_in":3600,"token":"`+egresstest.Marker+`"}`)},
		{name: "200, access_token null", answer: egresstest.Say(200, `{"access_token":null}`)},
		{name: "200, access_token empty", answer: egresstest.Say(200, `{"access_token":""}`)},
		{name: "200, access_token a number", answer: egresstest.Say(200, `{"access_token":17}`)},
		{name: "200, access_token of two lines", answer: egresstest.Say(200, `{"access_token":"`+egresstest.TokenPrefix+`\r\nX-Injected: 1"}`)},
		{name: "200, token_type mac", answer: egresstest.Issue(`,"token_type":"mac"`)},
		{name: "200, token_type odd", answer: egresstest.Issue(`,"token_type":["bearer"]`)},
		{name: "200, invalid_client", answer: egresstest.Say(200, oauth), status: refused},
		{name: "200, temporarily_unavailable", answer: egresstest.Say(200, `{"error":"temporarily_unavailable","error_description":"`+egresstest.Marker+`"}`)},
		{name: "200, unknown error", answer: egresstest.Say(200, `{"error":"out_of_luck","error_description":"`+egresstest.Marker+`"}`)},

		{name: "token_type missing", answer: egresstest.Issue(`,"expires_in":3600`), status: 200},
		{name: "token_type null", answer: egresstest.Issue(`,"expires_in":3600,"token_type":null`), status: 200},
		{name: "token_type BEARER", answer: egresstest.Issue(`,"expires_in":3600,"token_type":"BEARER"`), status: 200},
		{name: "expires_in missing", answer: egresstest.Issue(``), status: 200, logged: "has no lifetime above zero"},
		{name: "expires_in null", answer: egresstest.Issue(`,"expires_in":null`), status: 200, logged: "has no lifetime above zero"},
		{name: "expires_in a string", answer: egresstest.Issue(`,"expires_in":"3600"`), status: 200},
		{name: "expires_in a fraction", answer: egresstest.Issue(`,"expires_in":3600.5`), status: 200},
		{name: "expires_in a word", answer: egresstest.Issue(`,"expires_in":"` + egresstest.Marker + `"`), status: 200, logged: "has no lifetime above zero"},
		{name: "expires_in 0", answer: egresstest.Issue(`,"expires_in":0`), status: 200, logged: "has no lifetime above zero"},
		{name: "expires_in negative", answer: egresstest.Issue(`,"expires_in":-3600`), status: 200, logged: "has no lifetime above zero"},
		{name: "expires_in huge", answer: egresstest.Issue(`,"expires_in":1e999`), status: 200, logged: `"lifetime":86400`},
		{name: "unknown members", answer: egresstest.Issue(`,"expires_in":3600,"refresh_token":"` + egresstest.Marker + `","x":{"y":[1]}`), status: 200},
	}
	for _, status := range []int{408, 409, 425, 429, 500, 502, 503} {
		wait := 0
		if status == 429 || status == 503 {
			wait = 3 // the others do not decide that
		}
		faults = append(faults,
			fault{name: fmt.Sprint(status), answer: egresstest.Say(status, oauth)},
			fault{name: fmt.Sprint(status, ", HTML"), answer: egresstest.Say(status, html)},
			fault{name: fmt.Sprint(status, ", Retry-After"), answer: egresstest.Say(status, oauth, "Retry-After", "3"), wait: wait},
		)
	}
	for n := range faults {
		faults[n].provider = cmp.Or(faults[n].provider, "oauth2")
		faults[n].status = cmp.Or(faults[n].status, http.StatusServiceUnavailable)
		if faults[n].status == refused {
			faults[n].logged = "refuses the credential"
		}
	}
	return faults
}

// atMost returns how many token requests there may be after so long.
func (f *fault) atMost(after time.Duration) int {
	switch {
	case f.status == http.StatusOK:
		return 1
	case f.status == http.StatusBadGateway: // 4 to 5 s, then longer
		return 1 + int(after/(4*time.Second))
	case f.wait > 0:
		// a date and Unix seconds are told in whole seconds
		return 1 + int(after/(time.Duration(f.wait-1)*time.Second))
	}
	return 3 + int(after/(1600*time.Millisecond)) // 0.4, 0.8, 1.6, 3.2 s
}

func TestTokenEndpointFaults(t *testing.T) {
	elsewhere := egresstest.NewRecorder(t)
	faults := tokenFaults(elsewhere.URL)
	services := make([]*egresstest.Service, len(faults))
	admin := egresstest.FreeAddr(t)
	var open func()
	global, routes := "admin "+admin+"\n egress {\n", ""
	for n, f := range faults {
		if f.answer == nil {
			services[n], open = egresstest.NewRefusingService(t)
		} else {
			services[n] = egresstest.NewService(t)
			services[n].Tokens.SetAnswer(f.answer)
		}
		name := fmt.Sprint("c", n)
		timeout := "10s" // whatever a busy machine needs
		if strings.HasPrefix(f.name, "hangs") {
			timeout = "300ms"
		}
		global += services[n].Credential(name, f.provider, "token_timeout "+timeout)
		routes += fmt.Sprintf("handle_path /%s/* {\n egress %s {\n verbose_logs\n }\n}\n", name, name)
	}
	loaded := time.Now()
	g := egresstest.StartWatched(t, routes, egresstest.WithGlobal(global+"}"))

	for n, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			s := services[n]
			path := fmt.Sprintf("/c%d/v1/x", n)
			for range 3 {
				resp, body := g.Get(path)
				if f.status == http.StatusOK {
					if resp.StatusCode != http.StatusOK || resp.Header.Get("Proxy-Status") != "" {
						t.Errorf("answered %d %s, want 200 of the API", resp.StatusCode, body)
					} else if got := s.API.Last(t).Header["Authorization"]; len(got) != 1 || got[0] != "Bearer "+egresstest.Token(1) {
						t.Errorf("Authorization is %q", got)
					}
					continue
				}
				egresstest.CheckNoToken(t, resp, body, f.status)
				after := int(time.Since(loaded).Seconds()) + 1
				if got, _ := strconv.Atoi(resp.Header.Get("Retry-After")); got > max(f.wait, 4) || got < f.wait-1-after {
					t.Errorf("Retry-After is %d, the endpoint asked for %d", got, f.wait)
				}
				if s.API.Count() != 0 {
					t.Error("a request has gone out without a token")
				}
			}
			if got, most := s.Tokens.Count(), f.atMost(time.Since(loaded)); got > most {
				t.Errorf("%d token requests, want at most %d", got, most)
			}
			if !slices.ContainsFunc(strings.Split(g.Log(), "\n"), func(line string) bool {
				return strings.Contains(line, fmt.Sprintf(`"credential":"c%d"`, n)) && strings.Contains(line, f.logged)
			}) {
				t.Errorf("the log does not mention the credential with %q", f.logged)
			}
		})
	}
	if elsewhere.Count() != 0 {
		t.Error("a redirect was followed")
	}

	t.Run("admin API", func(t *testing.T) {
		for _, path := range []string{"/config/", "/reverse_proxy/upstreams"} {
			resp, err := egresstest.Client.Get("http://" + admin + path)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			config, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != http.StatusOK {
				t.Fatalf("%s: %d %s", path, resp.StatusCode, config)
			}
			if path == "/config/" && !strings.Contains(string(config), "{env.EGRESS_TEST_SECRET}") {
				t.Error("the config has no secret, the test shows nothing")
			}
			egresstest.CheckLeaks(t, path+" of the admin API", string(config))
		}
	})

	// the faults end, and whoever was refused gets another chance by a reload
	open()
	for _, s := range services {
		s.Tokens.SetAnswer(nil)
	}
	if err := g.Load("log\n" + routes); err != nil {
		t.Fatal(err)
	}
	for n, f := range faults {
		if f.wait > 5 {
			continue // not before that
		}
		t.Run("after "+f.name, func(t *testing.T) {
			s := services[n]
			egresstest.Eventually(t, "an answer of the API", func() bool {
				resp, body := g.GetAfterReload(fmt.Sprintf("/c%d/v1/x", n))
				egresstest.CheckLeaks(t, "the answer", fmt.Sprint(body, resp.Header))
				return resp.StatusCode == http.StatusOK
			})
			for _, got := range s.API.All() {
				if values := got.Header["Authorization"]; len(values) != 1 || !strings.HasPrefix(values[0], "Bearer "+egresstest.TokenPrefix) {
					t.Errorf("Authorization was %q", values)
				}
			}
			if got, most := s.Tokens.Count(), f.atMost(time.Since(loaded))+1; got > most {
				t.Errorf("%d token requests, want at most %d", got, most)
			}
		})
	}
}

func TestAPIFaults(t *testing.T) {
	api401 := egresstest.Say(401, `{"code":"UNAUTHORIZED","message":"of the API"}`)
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc // of the API; nil: nothing listens
		status []int            // that clients get, one after the other
		tokens int              // token requests at most
	}{
		{"down", nil, []int{502, 502, 502}, 1},
		{"breaks off", egresstest.Hijack("", true), []int{502, 502, 502}, 1},
		{"slow", func(w http.ResponseWriter, r *http.Request) {
			select {
			case <-time.After(2500 * time.Millisecond): // longer than token_timeout
			case <-r.Context().Done():
			}
		}, []int{200, 200}, 1},
		{"500", egresstest.Say(500, "of the API"), []int{500, 500, 500}, 1},
		{"503", egresstest.Say(503, "of the API", "Retry-After", "77"), []int{503, 503, 503}, 1},
		{"429", egresstest.Say(429, "of the API", "Retry-After", "77"), []int{429, 429, 429}, 1},
		{"403", egresstest.Say(403, "of the API"), []int{403, 403, 403}, 1},
		{"401 always", api401, []int{401, 401, 401, 401, 401, 401, 401, 401}, 3},
		{"401 once", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") == "Bearer "+egresstest.Token(1) {
				api401(w, r)
			}
		}, []int{200, 200, 200}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			api, faulty, other := egresstest.NewRecorder(t), egresstest.NewTokens(t), egresstest.NewTokens(t)
			api.Handler = func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/faulty") {
					c.answer(w, r)
				}
			}
			if c.answer == nil {
				api.Close()
			}
			timeout := "10s" // whatever a busy machine needs
			if c.name == "slow" {
				timeout = "2s"
			}
			g := egresstest.StartGateway(t, "log\n handle /faulty* {\n"+egresstest.Egress(api.URL, faulty.URL, "token_timeout "+timeout+"\n verbose_logs")+
				"\n}\n handle {\n"+egresstest.Egress(api.URL, other.URL, "")+"\n}")
			for n, want := range c.status {
				resp, body := g.Get("/faulty")
				if resp.StatusCode != want {
					t.Errorf("answer %d is %d %s, want %d", n+1, resp.StatusCode, body, want)
				}
				if want == http.StatusBadGateway {
					if !strings.HasSuffix(resp.Header.Get("Proxy-Status"), `; details="api_unreachable"`) || !strings.Contains(body, "api_unreachable") {
						t.Errorf("answer %d does not say that the API cannot be reached: %s %v", n+1, body, resp.Header)
					}
				} else if resp.Header.Get("Proxy-Status") != "" || want >= 400 && !strings.Contains(body, "of the API") {
					t.Errorf("answer %d is not the API's own: %s %v", n+1, body, resp.Header)
				}
				if got := resp.Header.Get("Retry-After"); got != "" && got != "77" {
					t.Errorf("Retry-After is %q", got)
				}
				// another credential is not affected
				if resp, body := g.Get("/other"); c.answer != nil && resp.StatusCode != http.StatusOK {
					t.Errorf("with the other credential: %d %s, want 200", resp.StatusCode, body)
				}
			}
			if got := faulty.Count(); got > c.tokens {
				t.Errorf("%d token requests, want at most %d", got, c.tokens)
			}
			if got := other.Count(); got != 1 {
				t.Errorf("%d token requests of the other credential, want 1", got)
			}
			egresstest.CheckSecrets(t, "the log", g.Log())
		})
	}
}
