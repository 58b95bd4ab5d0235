package e2e_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

func TestExactlyOneAuthorization(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, `
		header_up Authorization "Bearer from-the-config"
		header_up +Authorization "Basic bW9yZQ=="
		header_up X-App-Id from-the-config
	`))
	req := g.Request(http.MethodGet, "/v1/x", nil)
	req.Header = http.Header{
		"Authorization":  {"Bearer from-the-client", "Basic Y2xpZW50"},
		"Connection":     {"Authorization, X-Gone"},
		"X-Gone":         {"hop by hop"},
		"X-Kept":         {"end to end"},
		"Accept-Charset": {"utf-8"},
	}
	g.Do(req)
	got := api.Last(t)
	if want := []string{"Bearer " + egresstest.TokenPrefix + "1"}; fmt.Sprint(got.Header["Authorization"]) != fmt.Sprint(want) {
		t.Errorf("Authorization is %q, want %q", got.Header["Authorization"], want)
	}
	if got.Header.Get("X-Gone") != "" || got.Header.Get("X-Kept") == "" {
		t.Errorf("hop-by-hop headers were mistaken: %v", got.Header)
	}
}

// removedHeaders are those that the reference says are removed, by name; a * at the
// end stands for a family. TestDocsNameRemovedHeaders compares the two.
var removedHeaders = []string{
	"Authorization", "Proxy-Authorization", "Cookie", "X-API-Key", "API-Key", "X-Auth-Token", "X-Access-Token",
	"Forwarded", "X-Forwarded", "X-Forwarded-*", "X-Real-IP", "X-Client-IP", "Client-IP", "X-Cluster-Client-IP", "X-Original-Forwarded-For", "True-Client-IP", "CF-Connecting-IP",
	"Fly-Client-IP", "X-Azure-ClientIP", "X-Envoy-External-Address", "X-SSL-Client-*", "Via",
	"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-URL", "X-Rewrite-URL",
	"Baggage",
	"X-Auth-Request-*", "X-Amzn-Oidc-*", "CF-Access-*", "X-Goog-IAP-*", "X-Goog-Authenticated-User-*", "X-MS-Client-Principal*", "X-MS-Token-*",
	"X-Authentik-*", "X-Pomerium-*", "X-Vouch-*", "X-WebAuth-*", "X-Remote-User", "Remote-User", "Remote-Groups", "Remote-Name", "Remote-Email", "Tailscale-User-*",
	// with voucherify
	"X-App-Id", "X-App-Token", "X-Client-Application-Id", "X-Client-Token", "X-Management-Id", "X-Management-Token",
}

// removedNames returns names of removedHeaders: those that are listed, and some
// of each family.
func removedNames() (names, ofFamilies []string) {
	for _, name := range removedHeaders {
		family, isFamily := strings.CutSuffix(name, "*")
		if !isFamily {
			names = append(names, name)
			continue
		}
		ofFamilies = append(ofFamilies, family+"Email", family+"X-Y-Z", strings.ToLower(family)+"1")
		if !strings.HasSuffix(family, "-") {
			ofFamilies = append(ofFamilies, family, family+"-Id")
		}
	}
	ofFamilies = append(ofFamilies, "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", // which Caddy sets itself
		"X-Forwarded-Access-Token", "X-Amzn-Oidc-Data", "Cf-Access-Jwt-Assertion", "X-Goog-Iap-Jwt-Assertion", "X-Auth-Request-User")
	return names, ofFamilies
}

// startVoucherify starts an API that issues tokens, too, as Voucherify does, and
// a gateway to it.
func startVoucherify(t *testing.T, options string) (*egresstest.Recorder, *egresstest.Gateway) {
	t.Helper()
	api := egresstest.NewRecorder(t)
	api.Handler = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/oauth/token" {
			egresstest.Issue(`,"token_type":"bearer","expires_in":900`)(w, r)
		}
	}
	return api, egresstest.StartGateway(t, `egress voucherify `+api.URL+` {
		app_id    id
		app_token {env.EGRESS_TEST_SECRET}
		scopes    api
		`+options+`
	}`)
}

func TestHeadersThatDoNotReachTheAPI(t *testing.T) {
	api, g := startVoucherify(t, "")
	names, ofFamilies := removedNames()
	kept := []string{
		"Accept-Language", "Accept-Encoding", "X-Voucherify-Channel", "X-Voucherify-API-Version", "Idempotency-Key", "Traceparent", "User-Agent", "If-None-Match",
		"X-Forwarde", "Xx-Forwarded-For", "X-Auth-Requests", "Tailscale-Users", "X-App", "X-MS-Client",
	}
	for _, name := range names { // what only resembles them
		kept = append(kept, "Not-"+name, name+"-Not", name+"s")
	}
	kept = slices.DeleteFunc(kept, func(name string) bool { return strings.HasSuffix(name, "Forwarded-Not") })

	req := g.Request(http.MethodGet, "/v1/vouchers", nil)
	for _, name := range slices.Concat(names, ofFamilies, kept) {
		req.Header.Set(name, "of-the-client")
	}
	g.Do(req)
	got := api.Last(t).Header
	for _, name := range slices.Concat(names, ofFamilies) {
		if values := got.Values(name); len(values) > 0 && name != "Authorization" {
			t.Errorf("%s has reached the API: %q", name, values)
		}
	}
	if values := got["Authorization"]; len(values) != 1 || values[0] != "Bearer "+egresstest.Token(1) {
		t.Errorf("Authorization is %q at the API", values)
	}
	for _, name := range kept {
		if value := got.Get(name); value != "of-the-client" {
			t.Errorf("%s is %q at the API, want the client's", name, value)
		}
	}
}

// Caddy drops names with underscores and dots unless it is told to expect them.
func TestAliasesOfRemovedHeaders(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, "header_up X_Real_Ip of-the-gateway"),
		egresstest.WithServer("expected_underscore_headers X_*\nexpected_dot_headers X.*"))
	req := g.Request(http.MethodGet, "/v1/x", nil)
	for _, name := range []string{"X_Forwarded_For", "X_Real_Ip", "X_Request_Id", "X.Forwarded.For", "X.Request.Id"} {
		req.Header[name] = []string{"of-the-client"}
	}
	g.Do(req)
	got := api.Last(t).Header
	for name, want := range map[string]string{"X_forwarded_for": "", "X_real_ip": "of-the-gateway", "X_request_id": "of-the-client", "X.forwarded.for": "", "X.request.id": "of-the-client"} {
		if value := strings.Join(got[name], ", "); value != want {
			t.Errorf("%s is %q at the API, want %q", name, value, want)
		}
	}
}

func TestHeaderUpBringsHeadersBack(t *testing.T) {
	names, _ := removedNames()
	options := ""
	for _, name := range names {
		options += "header_up " + name + " of-the-gateway\n"
	}
	api, g := startVoucherify(t, options)
	g.Get("/v1/vouchers")
	got := api.Last(t).Header
	for _, name := range names {
		want := "of-the-gateway"
		if name == "Authorization" {
			want = "Bearer " + egresstest.Token(1)
		}
		if values := got.Values(name); len(values) != 1 || values[0] != want {
			t.Errorf("%s is %q at the API, want %q", name, values, want)
		}
	}
}

func TestTrailersThatDoNotReachTheAPI(t *testing.T) {
	api, g := startVoucherify(t, "")
	names, ofFamilies := removedNames()
	trailers := ""
	for _, name := range append(slices.Concat(names, ofFamilies), "X-Checksum", "Content-Digest", "Not-Cookie") {
		trailers += name + ": of-the-client\r\n"
	}
	for name, announced := range map[string]string{
		"announced":     "Trailer: " + strings.Join(append(slices.Concat(names, ofFamilies), "X-Checksum", "Content-Digest", "Not-Cookie"), ", ") + "\r\n",
		"not announced": "",
	} {
		t.Run(name, func(t *testing.T) {
			resp, body := g.Wire().Send("POST /v1/vouchers HTTP/1.1\r\nHost: 127.0.0.1\r\n" + announced +
				"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n" + trailers + "\r\n")
			got := api.Last(t)
			if resp.StatusCode != http.StatusOK || got.Body != "hello" {
				t.Fatalf("answered %d %s, the API got %q", resp.StatusCode, body, got.Body)
			}
			for _, name := range append(slices.Concat(names, ofFamilies), "Not-Cookie") { // what is not known to belong there
				if values := got.Trailer.Values(name); len(values) > 0 {
					t.Errorf("%s has reached the API as a trailer: %q", name, values)
				}
			}
			if announced != "" && (got.Trailer.Get("X-Checksum") == "" || got.Trailer.Get("Content-Digest") == "") {
				t.Errorf("trailers of the client were lost: %v", got.Trailer)
			}
		})
	}
}

func TestTrailersAreStripped(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	for name, announced := range map[string]string{
		"announced":     "Trailer: Authorization, Cookie, X-Checksum\r\n",
		"not announced": "",
	} {
		t.Run(name, func(t *testing.T) {
			before := api.Count()
			status := g.Raw("POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\n" + announced +
				"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" +
				"5\r\nhello\r\n0\r\nAuthorization: Bearer from-the-trailer\r\nCookie: a=b\r\nX-Checksum: 42\r\n\r\n")
			if !strings.Contains(status, "200") || api.Count() != before+1 {
				t.Fatalf("answered %q", status)
			}
			got := api.Last(t)
			if got.Body != "hello" {
				t.Errorf("body is %q", got.Body)
			}
			if got.Trailer.Get("Authorization") != "" || got.Trailer.Get("Cookie") != "" {
				t.Errorf("a stripped header has reached the API as a trailer: %v", got.Trailer)
			}
			if announced != "" && got.Trailer.Get("X-Checksum") != "42" {
				t.Errorf("an honest trailer was lost: %v", got.Trailer)
			}
			if values := got.Header["Authorization"]; len(values) != 1 || !strings.HasPrefix(values[0], "Bearer "+egresstest.TokenPrefix) {
				t.Errorf("Authorization is %q", values)
			}
		})
	}
}

func TestHostAtTheAPI(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	plain := egresstest.NewRecorder(t)
	encrypted := egresstest.NewRecorderOver(t, (*httptest.Server).StartTLS)
	g := egresstest.StartGateway(t, `
	handle /plain {
		`+egresstest.Egress(plain.URL, endpoint.URL, "")+`
	}
	handle /tls {
		`+egresstest.Egress(encrypted.URL, endpoint.URL, "transport http {\n tls_trust_pool file "+egresstest.Trust(t, encrypted.Server)+"\n}")+`
	}
	handle /port {
		`+egresstest.Egress("https://api.localhost", endpoint.URL, `
			to `+encrypted.URL+`
			api_hosts api.localhost 127.0.0.1:`+encrypted.URL[strings.LastIndex(encrypted.URL, ":")+1:]+`
			transport http {
				tls_trust_pool file `+egresstest.Trust(t, encrypted.Server)+`
			}`)+`
	}`)
	for path, want := range map[string]struct {
		api  *egresstest.Recorder
		host string
	}{
		"/plain": {plain, strings.TrimPrefix(plain.URL, "http://")},
		"/tls":   {encrypted, strings.TrimPrefix(encrypted.URL, "https://")},
		"/port":  {encrypted, "api.localhost"},
	} {
		req := g.Request(http.MethodGet, path, nil)
		req.Host = "gateway.internal"
		if resp, body := g.Do(req); resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
			continue
		}
		if got := want.api.Last(t).Host; got != want.host {
			t.Errorf("%s: Host is %q at the API, want %q", path, got, want.host)
		}
	}
}

func TestPathAndQueryArriveByteForByte(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	for _, target := range []string{
		"/v1/vouchers?sort=%2Bcreated_at&filters[x][$is]=a%2Fb",
		"/v1/vouchers/a%2Fb%20c",
		"/v1/vouchers/?empty=&flag&a=1;b=2&%",
		"/v1/x?q=%7E~+%20'()",
	} {
		status := g.Raw("GET " + target + " HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
		if got := api.Last(t).Target; got != target || !strings.Contains(status, " 200 ") {
			t.Errorf("the API got %q for %q (%s)", got, target, status)
		}
	}
}

func TestUserAgent(t *testing.T) {
	api := egresstest.NewRecorder(t)
	_, tokenServer := egresstest.NewSandbox(t, "understory")
	g := egresstest.StartGateway(t, `egress understory `+api.URL+` {
		token_url     `+tokenServer.URL+`/oauth2/token
		client_id     id
		client_secret {env.EGRESS_TEST_SECRET}
		user_agent    My-Company/App
	}`)
	for sent, want := range map[string]string{"curl/8": "curl/8", "": "My-Company/App"} {
		req := g.Request(http.MethodGet, "/v1/me", nil)
		req.Header["User-Agent"] = []string{sent}
		if sent == "" {
			req.Header["User-Agent"] = nil
		}
		g.Do(req)
		if got := api.Last(t).Header.Get("User-Agent"); got != want {
			t.Errorf("User-Agent is %q for a client that sent %q, want %q", got, sent, want)
		}
	}
}
