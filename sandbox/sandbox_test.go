package sandbox

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{{}, {API: "Understory"}, {API: apiUnderstory, Lifetime: -1}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

func TestDefaultLifetimes(t *testing.T) {
	for api, want := range map[string]time.Duration{apiUnderstory: 3599 * time.Second, apiVoucherify: 900 * time.Second} {
		o, err := Options{API: api}.withDefaults()
		if err != nil || o.Lifetime != want {
			t.Errorf("%s: %v, %v", api, o.Lifetime, err)
		}
	}
}

// Tokens live for their lifetime to the nanosecond, whatever expires_in says.
func TestTokenExpires(t *testing.T) {
	for _, lifetime := range []time.Duration{300 * time.Millisecond, 1500 * time.Millisecond, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			s := newServerWith(t, Options{API: apiVoucherify, Lifetime: lifetime})
			start := time.Now() // at a full second, in a bubble
			g := decode[voucherifyGrant](t, serve(s, voucherifyRequestV1("api")))
			if want := int64((lifetime + time.Second - 1) / time.Second); g.ExpiresIn != want {
				t.Errorf("expires_in %d, want %d", g.ExpiresIn, want)
			}
			if want := start.Unix() + g.ExpiresIn; g.ExpiresAt != want {
				t.Errorf("expires_at %d, want %d", g.ExpiresAt, want)
			}
			time.Sleep(lifetime - 1)
			wantStatus(t, send(s, "GET", "/v1/vouchers", g.AccessToken, ""), 200)
			if n := s.Stats().LiveTokens; n != 1 {
				t.Errorf("%d live tokens", n)
			}
			time.Sleep(time.Nanosecond)
			wantStatus(t, send(s, "GET", "/v1/vouchers", g.AccessToken, ""), 401)
			if n := s.Stats().LiveTokens; n != 0 {
				t.Errorf("%d live tokens after the lifetime", n)
			}
			if s.state.tokens.revoke(g.AccessToken) {
				t.Error("an expired token was there to revoke")
			}
		})
	}
}

func TestIntrospectionCountsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServerFor(t, apiVoucherify)
		value := voucherifyGrantV1(t, s, "api")
		time.Sleep(345*time.Second + time.Millisecond)
		r := post("/v1/oauth/introspect", url.Values{"access_token": {value}})
		r.Header.Set("X-App-Id", "sandbox")
		r.Header.Set("X-App-Token", "sandbox-secret")
		if g := decode[voucherifyGrant](t, serve(s, r)); g.ExpiresIn != 555 {
			t.Errorf("expires_in %d, want 555", g.ExpiresIn)
		}
	})
}

func TestAuthorization(t *testing.T) {
	s := newServerFor(t, apiUnderstory)
	value := understoryGrant(t, s, "")
	for _, tc := range []struct {
		name   string
		values []string
		want   int
	}{
		{"bearer", []string{"Bearer " + value}, 200},
		{"any case", []string{"bEARER " + value}, 200},
		{"none", nil, 401},
		{"empty", []string{""}, 401},
		{"twice", []string{"Bearer " + value, "Bearer " + value}, 401},
		{"beside another", []string{"Basic eDp5", "Bearer " + value}, 401},
		{"both in one", []string{"Bearer " + value + ", Bearer " + value}, 401},
		{"another scheme", []string{"Token " + value}, 401},
		{"no scheme", []string{value}, 401},
		{"unknown", []string{"Bearer nope"}, 401},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/v1/me", nil)
			r.Header["Authorization"] = tc.values
			wantStatus(t, serve(s, r), tc.want)
		})
	}
}

func TestStats(t *testing.T) {
	s := newServerFor(t, apiUnderstory)
	value := understoryGrant(t, s, "openid")
	serve(s, httptest.NewRequest("GET", "/oauth2/token", nil))      // fails, counts
	serve(s, post("/oauth2/token", nil))                            // fails, counts
	serve(s, post("/oauth2/revoke", nil))                           // is not a token endpoint
	serve(s, post("/admin/oauth2/introspect", url.Values{"a": {}})) // nor this
	send(s, "GET", "/v1/me", value, "")
	send(s, "GET", "/v1/nothing", value, "")
	send(s, "GET", "/v1/me", "wrong", "")
	wantBody(t, send(s, "GET", "/sandbox/stats", "", ""), 200,
		`{"token_requests":3,"live_tokens":1,"api_requests":3,"unauthorized":1}`)
}

func TestRevokeAll(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	for _, path := range []string{"/sandbox/tokens/revoke", "/sandbox/tokens/expire"} {
		a, b := voucherifyGrantV1(t, s, "api"), voucherifyGrantV1(t, s, "vouchers")
		wantBody(t, send(s, "POST", path, "", ""), 204, "")
		for _, value := range []string{a, b} {
			wantStatus(t, send(s, "GET", "/v1/vouchers", value, ""), 401)
		}
		if n := s.Stats().LiveTokens; n != 0 {
			t.Errorf("%s: %d live tokens", path, n)
		}
	}
	wantStatus(t, send(s, "GET", "/v1/vouchers", voucherifyGrantV1(t, s, "api"), ""), 200)
}

// Each client sees a company of its own, the same one every time.
func TestCompanyOfEachClient(t *testing.T) {
	type company struct {
		ID    string `json:"company_id"`
		Name  string `json:"company_name"`
		User  string `json:"user_id"`
		Email string `json:"email"`
	}
	me := func(id string) company {
		t.Helper()
		s := newServerWith(t, Options{API: apiUnderstory, ClientID: id, ClientSecret: "sandbox-secret"})
		r := post("/oauth2/token", url.Values{
			"grant_type": {"client_credentials"}, "audience": {"https://api.understory.io"},
			"client_id": {id}, "client_secret": {"sandbox-secret"}, "scope": {"marketing.read"},
		})
		value := granted(t, s, r)
		c := decode[company](t, send(s, "GET", "/v1/me", value, ""))
		if consents := send(s, "GET", "/v1/marketing-consents", value, "").Body.String(); !strings.Contains(consents, c.ID) {
			t.Errorf("the consents of %q are not those of company %s: %s", id, c.ID, consents)
		}
		return c
	}
	a, again, b := me(`a "quoted" id`), me(`a "quoted" id`), me("b")
	if a != again {
		t.Errorf("%+v, then %+v", a, again)
	}
	if a.ID == b.ID || a.Name == b.Name || a.User == b.User || a.Email == b.Email {
		t.Errorf("%+v and %+v", a, b)
	}
	if a.Name != `Adventures of a "quoted" id` || len(a.ID) != 20 {
		t.Errorf("%+v", a)
	}

	project := func(id string) (clientID, company string) {
		t.Helper()
		s := newServerWith(t, Options{API: apiVoucherify, ClientID: id})
		r := voucherifyRequestV1("api")
		r.Header.Set("X-App-Id", id)
		grant := decode[struct {
			AccessToken string `json:"access_token"`
			ClientID    string `json:"client_id"`
		}](t, serve(s, r))
		voucher := decode[struct {
			Metadata struct{ Company string } `json:"metadata"`
		}](t, send(s, "GET", "/v1/vouchers/BLCKFRDY", grant.AccessToken, ""))
		return grant.ClientID, voucher.Metadata.Company
	}
	idA, companyA := project("a")
	idB, companyB := project("b")
	if idA == idB || companyA == companyB || len(idA) != 21 || companyA != "Adventures of a" {
		t.Errorf("%s of %s and %s of %s", idA, companyA, idB, companyB)
	}
}

func TestControlRefuses(t *testing.T) {
	s := newServerFor(t, apiUnderstory)
	for _, tc := range []struct {
		method, path string
		status       int
		allow        string
	}{
		{"POST", "/sandbox/stats", 405, "GET"},
		{"GET", "/sandbox/tokens/revoke", 405, "POST"},
		{"GET", "/sandbox/tokens/expire", 405, "POST"},
		{"GET", "/sandbox/faults", 405, "PUT"},
		{"GET", "/sandbox/", 404, ""},
		{"GET", "/sandbox", 404, ""},
		{"GET", "/sandbox/stats/", 404, ""},
	} {
		w := send(s, tc.method, tc.path, "", "")
		wantStatus(t, w, tc.status)
		if got := w.Header().Get("Allow"); got != tc.allow {
			t.Errorf("%s %s: Allow %q, want %q", tc.method, tc.path, got, tc.allow)
		}
	}
	if s.Stats().APIRequests != 0 {
		t.Error("controls count as API requests")
	}
}

func TestFaults(t *testing.T) {
	const refusedByAPI = `{"code":"UNAUTHORIZED","message":"Unauthorized"}`
	for _, tc := range []struct {
		name, faults string
		token, api   int
		tokenBody    string
		apiBody      string
		retryAfter   string
	}{
		{name: "none", faults: `{}`, token: 200, api: 200},
		{name: "token in its own words", faults: `{"token":{"status":503,"retry_after":"7"}}`, token: 503, api: 200, retryAfter: "7",
			tokenBody: `{"error":"temporarily_unavailable","error_description":"The authorization server is currently unable to handle the request due to a temporary overloading or maintenance of the server."}`},
		{name: "token with a body", faults: `{"token":{"status":200,"body":"<html>"}}`, token: 200, api: 200, tokenBody: "<html>"},
		{name: "token without anything", faults: `{"token":{"status":200}}`, token: 200, api: 200, tokenBody: ""},
		{name: "API in its own words", faults: `{"api":{"status":401}}`, token: 200, api: 401, apiBody: refusedByAPI},
		{name: "both", faults: `{"token":{"status":500,"body":"a"},"api":{"status":502,"body":"b"}}`, token: 500, api: 502, tokenBody: "a", apiBody: "b"},
		{name: "no status", faults: `{"token":{"body":"a","retry_after":"7"},"api":{}}`, token: 200, api: 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newServerFor(t, apiUnderstory)
			value := understoryGrant(t, s, "openid")
			wantBody(t, send(s, "PUT", "/sandbox/faults", "", tc.faults), 204, "")

			w := serve(s, understoryRequest("openid"))
			wantStatus(t, w, tc.token)
			issued := strings.Contains(w.Body.String(), "access_token")
			if faulty := strings.Contains(tc.faults, `"token":{"status"`); faulty == issued || faulty && w.Body.String() != tc.tokenBody {
				t.Errorf("token endpoint: %s", w.Body)
			}
			if got := w.Header().Get("Retry-After"); got != tc.retryAfter {
				t.Errorf("Retry-After %q, want %q", got, tc.retryAfter)
			}

			w = send(s, "GET", "/v1/me", value, "")
			wantStatus(t, w, tc.api)
			if tc.apiBody != "" && w.Body.String() != tc.apiBody {
				t.Errorf("API: %s", w.Body)
			}
			if got, want := s.Stats().Unauthorized, tc.api == 401; (got == 1) != want {
				t.Errorf("%d unauthorized", got)
			}

			// Introspection and revocation have no faults.
			wantStatus(t, serve(s, post("/admin/oauth2/introspect", url.Values{"token": {value}})), 200)
			wantStatus(t, send(s, "PUT", "/sandbox/faults", "", `{}`), 204)
			wantStatus(t, send(s, "GET", "/v1/me", value, ""), 200)
		})
	}
}

func TestVoucherifyFaultsCarryTheRateLimit(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	if err := s.SetFaults(Faults{API: Fault{Status: 429, RetryAfter: "3"}}); err != nil {
		t.Fatal(err)
	}
	w := send(s, "GET", "/v1/vouchers", "", "")
	wantStatus(t, w, 429)
	if !strings.HasPrefix(w.Body.String(), `{"code":429,"message":"Too many requests hit the API too quickly."`) {
		t.Errorf("body %s", w.Body)
	}
	if w.Header().Get("X-Rate-Limit-Limit") == "" || w.Header().Get("Retry-After") != "3" {
		t.Errorf("headers %v", w.Header())
	}
}

func TestFaultsRefused(t *testing.T) {
	for _, tc := range []struct{ name, faults, field string }{
		{"unknown endpoint", `{"tokens":{}}`, "tokens"},
		{"unknown field", `{"api":{"stauts":500}}`, "stauts"},
		{"status too high", `{"token":{"status":503},"api":{"status":600}}`, "api.status"},
		{"status of a token", `{"token":{"status":600}}`, "token.status"},
		{"status too low", `{"api":{"status":100}}`, "api.status"},
		{"status a string", `{"token":{"status":"503"}}`, "status"},
		{"latency a number", `{"token":{"latency":300}}`, "latency"},
		{"latency without a unit", `{"token":{"status":503},"api":{"latency":"300"}}`, "api.latency"},
		{"latency negative", `{"api":{"latency":"-1s"}}`, "api.latency"},
		{"two lines", `{"api":{"status":503,"retry_after":"7\r\nX: y"}}`, "api.retry_after"},
		{"not an object", `[]`, "JSON object"},
		{"empty", ``, "JSON object"},
		{"two objects", `{} {}`, "goes on"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newServerFor(t, apiUnderstory)
			before := Faults{API: Fault{Status: 418}}
			if err := s.SetFaults(before); err != nil {
				t.Fatal(err)
			}
			w := send(s, "PUT", "/sandbox/faults", "", tc.faults)
			wantStatus(t, w, 400)
			answer := decode[map[string]string](t, w)
			if !strings.Contains(answer["error"], tc.field) {
				t.Errorf("%q does not name %s", answer["error"], tc.field)
			}
			if got := *s.state.faults.Load(); got != before {
				t.Errorf("the faults are now %+v", got)
			}
		})
	}
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServerFor(t, apiUnderstory)
		wantStatus(t, send(s, "PUT", "/sandbox/faults", "", `{"token":{"latency":"300ms"},"api":{"latency":"2s"}}`), 204)

		start := time.Now()
		value := understoryGrant(t, s, "openid")
		if took := time.Since(start); took != 300*time.Millisecond {
			t.Errorf("the token took %v", took)
		}
		start = time.Now()
		wantStatus(t, send(s, "GET", "/v1/me", value, ""), 200)
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("the API took %v", took)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		w := serve(s, httptest.NewRequest("GET", "/v1/me", nil).WithContext(ctx))
		wantStatus(t, w, 499)
		if took := time.Since(start); took != time.Second {
			t.Errorf("a client that left after 1s was waited for %v", took)
		}
	})
}

// Over a real connection a client that leaves is noticed only once its body
// was read.
func TestLatencyEndsWithTheClient(t *testing.T) {
	s := newServerFor(t, apiUnderstory)
	if err := s.SetFaults(Faults{Token: Fault{Latency: time.Hour}}); err != nil {
		t.Fatal(err)
	}
	read, done := make(chan struct{}), make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Body = &signalEOF{ReadCloser: r.Body, read: read}
		s.ServeHTTP(w, r)
		close(done)
	}))
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, "POST", srv.URL+"/oauth2/token", strings.NewReader("grant_type=x"))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if res, err := http.DefaultClient.Do(r); err == nil {
			_ = res.Body.Close()
		}
	}()
	<-read
	cancel()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the handler still waits")
	}
}

// signalEOF closes read once a body is at its end.
type signalEOF struct {
	io.ReadCloser
	read chan struct{}
	once sync.Once
}

func (s *signalEOF) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err == io.EOF {
		s.once.Do(func() { close(s.read) })
	}
	return n, err
}

func TestBodyTooLong(t *testing.T) {
	for _, api := range []string{apiUnderstory, apiVoucherify} {
		t.Run(api, func(t *testing.T) {
			s := newServerFor(t, api)
			srv := httptest.NewServer(s)
			defer srv.Close()
			path := "/v1/bookings"
			var value string
			if api == apiVoucherify {
				path, value = "/v1/campaigns/Gift%20Cards/importCSV", voucherifyGrantV1(t, s, "api")
			} else {
				value = understoryGrant(t, s, "booking.write")
			}
			// Without a length they are sent in chunks.
			for _, tc := range []struct {
				size   int
				length int64
				want   int
			}{
				{maxBody, -1, map[string]int{apiUnderstory: 400, apiVoucherify: 202}[api]}, // spaces are not a booking
				{maxBody, maxBody, map[string]int{apiUnderstory: 400, apiVoucherify: 202}[api]},
				{maxBody + 1, -1, 413},
				{maxBody + 1, maxBody + 1, 413},
			} {
				r, err := http.NewRequest("POST", srv.URL+path, strings.NewReader(strings.Repeat(" ", tc.size)))
				if err != nil {
					t.Fatal(err)
				}
				r.ContentLength = tc.length
				r.Header.Set("Authorization", "Bearer "+value)
				res, err := srv.Client().Do(r)
				if err != nil {
					t.Fatal(err)
				}
				_ = res.Body.Close()
				if res.StatusCode != tc.want {
					t.Errorf("%d bytes, length %d: %d, want %d", tc.size, tc.length, res.StatusCode, tc.want)
				}
			}
		})
	}
}

// A refusal comes once the upload is over, so the client need not notice it
// while it writes.
func TestBodyIsReadBeforeTheAnswer(t *testing.T) {
	for _, faults := range []Faults{{}, {API: Fault{Status: 503}}} {
		s := newServerFor(t, apiVoucherify)
		if err := s.SetFaults(faults); err != nil {
			t.Fatal(err)
		}
		body := strings.NewReader(strings.Repeat("x", 5<<20))
		r := httptest.NewRequest("POST", "/v1/redemptions", body)
		if w := serve(s, r); w.Code != 401 && w.Code != 503 {
			t.Errorf("status %d", w.Code)
		}
		if body.Len() != 0 {
			t.Errorf("%d bytes were left", body.Len())
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	value := voucherifyGrantV1(t, s, "api")
	done := make(chan int)
	for range 20 {
		go func() {
			serve(s, voucherifyRequestV1("api"))
			_ = s.SetFaults(Faults{})
			send(s, "GET", "/v1/vouchers", value, "")
			send(s, "PUT", "/v1/vouchers/BLCKFRDY", value, `{"metadata":{}}`)
			done <- send(s, "POST", "/v1/vouchers", value, `{"type":"DISCOUNT_VOUCHER"}`).Code
		}()
	}
	for range 20 {
		if status := <-done; status != 200 {
			t.Errorf("status %d", status)
		}
	}
	if l := decode[struct{ Total int }](t, send(s, "GET", "/v1/vouchers", value, "")); l.Total != 23 {
		t.Errorf("%d vouchers, want 23", l.Total)
	}
	if st := s.Stats(); st.LiveTokens != 21 || st.APIRequests != 61 {
		t.Errorf("%+v", st)
	}
}

// What a pool prints when it panics holds no token.
func TestStateDoesNotPrintTokens(t *testing.T) {
	s := newServerFor(t, apiVoucherify)
	value := voucherifyGrantV1(t, s, "api")
	if text := fmt.Sprintf("%v %+v %#v %s", s.state, s.state, s.state, s.state); strings.Contains(text, value) {
		t.Error("printed a token")
	}
}
