package e2e_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// An API that gives no answer is answered for in the shape of its errors, which
// the cause is not in.
func TestUnreachableAPI(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	nowhere := egresstest.FreeAddr(t)
	hanging := egresstest.NewRecorder(t)
	hanging.Handler = egresstest.Hang
	closing := egresstest.NewRecorder(t)
	closing.Handler = func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_ = conn.Close()
		}
	}
	unverified := egresstest.NewRecorderOver(t, (*httptest.Server).StartTLS)
	mute, err := net.Listen("tcp", "127.0.0.1:0") // the system accepts connections, and nobody reads from them
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mute.Close() })
	busy := egresstest.NewRecorder(t)
	busy.Handler = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	_, sandbox := egresstest.NewSandboxFor(t, "voucherify", egresstest.Secret, egresstest.Secret)
	_, tokens := egresstest.NewSandboxFor(t, "understory", egresstest.Secret, egresstest.Secret)

	secret := "{env." + egresstest.SecretVariable + "}"
	g := egresstest.StartGateway(t, egresstest.Site("/refused", egresstest.Egress("http://"+nowhere, endpoint.URL, ""))+
		egresstest.Site("/hanging", egresstest.Egress(hanging.URL, endpoint.URL, "transport http {\nresponse_header_timeout 50ms\n}"))+
		egresstest.Site("/closing", egresstest.Egress(closing.URL, endpoint.URL, ""))+
		egresstest.Site("/unverified", egresstest.Egress(unverified.URL, endpoint.URL, ""))+
		egresstest.Site("/plain", egresstest.Egress(strings.Replace(closing.URL, "http:", "https:", 1), endpoint.URL, ""))+
		egresstest.Site("/mute", egresstest.Egress("https://"+mute.Addr().String(), endpoint.URL, "transport http {\ntls_timeout 50ms\n}"))+
		egresstest.Site("/down", egresstest.Egress("http://"+nowhere, endpoint.URL, "fail_duration 1h\nto "+nowhere+"\norigins https://app.test"))+
		egresstest.Site("/retried", egresstest.Egress("http://"+nowhere, endpoint.URL, "lb_retries 2\norigins https://app.test"))+
		egresstest.Site("/again", egresstest.Egress(busy.URL, endpoint.URL, "lb_retries 1\nlb_retry_match {\nexpression `{rp.status_code} in [503]`\n}"))+
		egresstest.Site("/understory", "egress understory http://"+nowhere+" {\ntoken_url "+tokens.URL+"/oauth2/token\nclient_id "+secret+"\nclient_secret "+secret+"\n}")+
		egresstest.Site("/voucherify", "egress voucherify "+sandbox.URL+" {\napp_id "+secret+"\napp_token "+secret+"\nscopes api\nto "+nowhere+"\napi_hosts "+nowhere+"\n}"))

	const (
		notConnected = "the gateway could not connect to the API"
		noTLS        = "the gateway could not set up TLS with the API"
		noAnswer     = "the gateway got no answer from the API; whether the API has performed the request is not known"
		problem      = `{"title":"STATUS","status":CODE,"detail":"MESSAGE","code":"api_unreachable"}`
	)
	asked := 0
	for _, test := range []struct {
		path     string
		status   int
		error    string // of RFC 9209
		message  string
		body     string
		withheld string // what only the log has
	}{
		{"/refused", 502, "destination_unavailable", notConnected, problem, nowhere},
		{"/hanging", 504, "http_response_timeout", "the API did not answer in time; whether it has performed the request is not known", problem, "timeout"},
		{"/closing", 502, "connection_terminated", noAnswer, problem, "EOF"},
		{"/unverified", 502, "tls_certificate_error", "the gateway could not verify the certificate of the API", problem, "x509"},
		{"/plain", 502, "tls_protocol_error", noTLS, problem, "tls"},
		{"/mute", 504, "tls_protocol_error", noTLS, problem, "TLS handshake timeout"},
		{"/down", 502, "destination_unavailable", notConnected, problem, nowhere},
		{"/down", 503, "destination_unavailable", "no upstream of the API is available", problem, nowhere}, // one line a second,
		{"/retried", 502, "destination_unavailable", notConnected, problem, nowhere},
		{"/again", 503, "destination_unavailable", "the last attempt was answered with 503", problem, "retry_match"},
		{"/understory", 502, "destination_unavailable", notConnected, `{"code":"api_unreachable","message":"MESSAGE"}`, nowhere},
		{"/voucherify", 502, "destination_unavailable", notConnected, `{"code":CODE,"key":"api_unreachable","message":"MESSAGE"}`, nowhere},
	} {
		req := g.Request(http.MethodGet, test.path+"/x", nil)
		listed := test.path == "/down" || test.path == "/retried"
		if listed {
			req.Header.Set("Origin", "https://app.test")
		}
		resp, body := g.Do(req)
		want := strings.NewReplacer("STATUS", http.StatusText(test.status), "CODE", resp.Status[:3], "MESSAGE", test.message).Replace(test.body)
		if resp.StatusCode != test.status || strings.TrimSpace(body) != want || strings.Contains(body, nowhere) {
			t.Errorf("%s: answered %d %s, want %d %s", test.path, resp.StatusCode, body, test.status, want)
		}
		if got := resp.Header.Get("Proxy-Status"); got != `caddy-egress; error=`+test.error+`; details="api_unreachable"` {
			t.Errorf("%s: Proxy-Status is %q", test.path, got)
		}
		if resp.Header.Get("Cache-Control") != "no-store" || !strings.HasSuffix(resp.Header.Get("Content-Type"), "json") {
			t.Errorf("%s: answered with %v", test.path, resp.Header)
		}
		if got := resp.Header.Get("Access-Control-Allow-Origin") == "https://app.test"; got != listed {
			t.Errorf("%s: answered with %v", test.path, resp.Header)
		}
		asked += 2
		head, body := g.Do(g.Request(http.MethodHead, test.path+"/x", nil))
		if head.StatusCode < 502 || head.StatusCode > 504 || body != "" || head.Header.Get("Proxy-Status") == "" {
			t.Errorf("%s: HEAD is answered %d %v %q", test.path, head.StatusCode, head.Header, body)
		}
		if !strings.Contains(g.Log(), test.withheld) {
			t.Errorf("%s: the log does not say why", test.path)
		}
	}

	// Caddy logs all of them, as it does without the handler
	errors := 0
	for line := range strings.SplitSeq(g.Log(), "\n") {
		if strings.Contains(line, `"logger":"http.log.error`) && strings.Contains(line, `"level":"error"`) && strings.Contains(line, `"err_trace":"reverseproxy.`) {
			errors++
		}
		if strings.Contains(line, "superfluous") && !strings.Contains(line, `"level":"debug"`) {
			t.Errorf("logged %s", line)
		}
	}
	if errors != asked {
		t.Errorf("%d errors are logged of %d", errors, asked)
	}
}

// A request that an API may have performed is not said to be unsent, whatever came
// of the last try.
func TestUnreachableAPIMayHavePerformedTheRequest(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	nowhere := egresstest.FreeAddr(t)
	closing := egresstest.NewRecorder(t)
	closing.Handler = func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			_ = conn.Close()
		}
	}
	up := strings.TrimPrefix(closing.URL, "http://")
	g := egresstest.StartGateway(t, egresstest.Egress(closing.URL, endpoint.URL,
		"to "+up+" "+nowhere+"\napi_hosts "+nowhere+" "+up+"\nlb_policy first\nfail_duration 1h\nlb_retries 1\nlb_retry_match {\nmethod POST\n}"))
	for _, want := range []int{http.StatusBadGateway, http.StatusServiceUnavailable} { // then both upstreams are down
		sent := closing.Count() > 0
		resp, body := g.Do(g.Request(http.MethodPost, "/x", strings.NewReader("a")))
		said := strings.Contains(body, "whether the API has performed the request is not known")
		if resp.StatusCode != want || said == sent || closing.Count() != 1 {
			t.Errorf("answered %d %s after %d requests", resp.StatusCode, body, closing.Count())
		}
	}

	// an answer that is tried elsewhere, too, says that the API was reached
	busy := egresstest.NewRecorder(t)
	busy.Handler = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	up = strings.TrimPrefix(busy.URL, "http://")
	g = egresstest.StartGateway(t, egresstest.Egress(busy.URL, endpoint.URL,
		"to "+up+" "+nowhere+"\napi_hosts "+nowhere+" "+up+"\nlb_policy round_robin\nlb_retries 2\nlb_retry_match {\nexpression `{rp.status_code} in [503]`\n}"))
	said := make(map[string]int)
	for range 2 { // each ends at another upstream
		_, body := g.Get("/x")
		for _, what := range []string{"is not known", "the last attempt was answered with 503"} {
			said[what] += strings.Count(body, what)
		}
	}
	if len(said) != 2 || said["is not known"] != 1 {
		t.Errorf("it was said %v", said)
	}
}

// What Caddy offers for errors works as it does with reverse_proxy.
func TestErrorsAreStillCaddys(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	nowhere := egresstest.FreeAddr(t)
	up := strings.TrimPrefix(api.URL, "http://")
	both := "to " + nowhere + " " + up + "\napi_hosts " + nowhere + " " + up + "\n"

	t.Run("handle_errors", func(t *testing.T) {
		g := egresstest.StartGateway(t, egresstest.Egress("http://"+nowhere, endpoint.URL, "")+"\nhandle_errors 502 {\nrespond `of my own {err.status_code}`\n}\n")
		if resp, body := g.Get("/x"); resp.StatusCode != http.StatusBadGateway || body != "of my own 502" || resp.Header.Get("Proxy-Status") != "" {
			t.Errorf("answered %d %q %v", resp.StatusCode, body, resp.Header)
		}
	})
	t.Run("handle_errors for another status", func(t *testing.T) {
		g := egresstest.StartGateway(t, egresstest.Egress("http://"+nowhere, endpoint.URL, "")+"\nhandle_errors 404 {\nrespond `of my own`\n}\n")
		if resp, body := g.Get("/x"); resp.StatusCode != http.StatusBadGateway || body != "" {
			t.Errorf("answered %d %q", resp.StatusCode, body)
		}
	})
	t.Run("lb_retries", func(t *testing.T) {
		g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, both+"lb_policy round_robin\nlb_retries 1\n"))
		for range 2 { // one of them meets the upstream that is down first
			if resp, body := g.Get("/x"); resp.StatusCode != http.StatusOK {
				t.Errorf("answered %d %q", resp.StatusCode, body)
			}
		}
	})
	t.Run("passive health checks", func(t *testing.T) {
		g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, both+"lb_policy first\nfail_duration 1h\n"))
		if resp, body := g.Get("/x"); resp.StatusCode != http.StatusBadGateway {
			t.Errorf("the first request is answered %d %q, want 502 of the first upstream", resp.StatusCode, body)
		}
		if resp, body := g.Get("/x"); resp.StatusCode != http.StatusOK {
			t.Errorf("the second request is answered %d %q, want the other upstream", resp.StatusCode, body)
		}
	})
	t.Run("errors of handle_response", func(t *testing.T) {
		g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, "@any status 2xx\nhandle_response @any {\nerror \"of my own\" 503\n}"))
		if resp, body := g.Get("/x"); resp.StatusCode != http.StatusServiceUnavailable || body != "" {
			t.Errorf("answered %d %q", resp.StatusCode, body)
		}
	})
	t.Run("another reverse_proxy", func(t *testing.T) {
		other := "reverse_proxy " + nowhere
		g := egresstest.StartGateway(t, "route {\n"+egresstest.Egress(api.URL, endpoint.URL, "@any status 2xx\nhandle_response @any {\nheader X-Seen yes\n}")+"\n"+other+"\n}")
		if resp, body := g.Get("/x"); resp.StatusCode != http.StatusBadGateway || body != "" {
			t.Errorf("the one that follows: answered %d %q", resp.StatusCode, body)
		}
		g = egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, "@any status 2xx\nhandle_response @any {\n"+other+"\n}"))
		if resp, body := g.Get("/x"); resp.StatusCode != http.StatusBadGateway || body != "" {
			t.Errorf("one in handle_response: answered %d %q", resp.StatusCode, body)
		}
	})
	t.Run("one egress behind another", func(t *testing.T) { // both see the error
		down := egresstest.Egress("http://"+nowhere, endpoint.URL, "")
		g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, "@any status 2xx\nhandle_response @any {\n"+down+"\n}"))
		if resp, body := g.Get("/x"); resp.StatusCode != http.StatusBadGateway || strings.Count(body, "api_unreachable") != 1 {
			t.Errorf("answered %d %q", resp.StatusCode, body)
		}
	})
	t.Run("any status that is tried again", func(t *testing.T) {
		busy := egresstest.NewRecorder(t)
		busy.Handler = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }
		g := egresstest.StartGateway(t, egresstest.Egress(busy.URL, endpoint.URL, "lb_retries 1\nlb_retry_match {\nexpression `{rp.status_code} in [429]`\n}"))
		if resp, body := g.Get("/x"); resp.StatusCode != http.StatusTooManyRequests || !strings.Contains(body, "the last attempt was answered with 429") {
			t.Errorf("answered %d %q", resp.StatusCode, body)
		}
	})
	t.Run("a client that breaks off its upload", func(t *testing.T) {
		g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
		conn, err := net.Dial("tcp", g.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc")
		_ = conn.(*net.TCPConn).CloseWrite()
		answer, _ := io.ReadAll(conn)
		if strings.Contains(string(answer), "api_unreachable") { // Caddy says 502, or 499 if it notices first
			t.Errorf("answered %s", answer)
		}
	})
	t.Run("other errors", func(t *testing.T) { // such as a client that leaves, or a body that is too long
		g := egresstest.StartGateway(t, "request_body {\nmax_size 10\n}\n"+egresstest.Egress(api.URL, endpoint.URL, ""))
		resp, body := g.Do(g.Request(http.MethodPost, "/x", strings.NewReader(strings.Repeat("x", 100))))
		if resp.StatusCode != http.StatusRequestEntityTooLarge || body != "" {
			t.Errorf("answered %d %q", resp.StatusCode, body)
		}
	})
	t.Run("named routes", func(t *testing.T) { // of which Caddy takes one handler
		api := egresstest.NewRecorder(t) // its own: what others have sent in part may arrive late
		g := egresstest.StartGateway(t, "invoke shared", egresstest.WithGlobal("}\n&(shared) {\n"+egresstest.Egress(api.URL, endpoint.URL, "")))
		if resp, body := g.Get("/x"); resp.StatusCode != http.StatusOK || api.Count() != 1 {
			t.Errorf("answered %d %q, with %d requests to the API", resp.StatusCode, body, api.Count())
		}
	})
}
