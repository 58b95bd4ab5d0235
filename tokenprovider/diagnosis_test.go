package tokenprovider

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// refusingServer answers every request with status, body and a Date that is ahead of
// this machine's clock.
type refusingServer struct {
	status int
	body   string
	took   time.Duration
	ahead  time.Duration
	noDate bool
}

func (a refusingServer) RoundTrip(*http.Request) (*http.Response, error) {
	time.Sleep(a.took)
	header := http.Header{"Date": {time.Now().Add(a.ahead).UTC().Format(http.TimeFormat)}}
	if a.noDate {
		header = nil
	}
	return &http.Response{StatusCode: a.status, Header: header, Body: io.NopCloser(strings.NewReader(a.body))}, nil
}

// claims returns those of an assertion with times relative to now, in seconds.
func claims(iat, exp int64) string {
	now := time.Now().Unix()
	return fmt.Sprintf(`{"iat":%d,"exp":%d}`, now+iat, now+exp)
}

func TestDiagnosis(t *testing.T) {
	const (
		unknown = `{"error":"invalid_client"}`
		advice  = "check the key"
		clock   = "set the clock of this machine, which says when an assertion is valid"
		renewal = "look at what renews the client assertion: it has not done so in time"
	)
	refusal := refusingServer{status: 401, body: unknown}
	ahead := func(d time.Duration) refusingServer { return refusingServer{status: 401, body: unknown, ahead: d} }
	for name, test := range map[string]struct {
		iat, exp int64 // of the assertion; 0, 0: there is none
		answer   refusingServer
		reason   string // with the time now, and that of exp
		advice   string
	}{
		"wrong key":                        {0, 60, refusal, "", advice},
		"another secret":                   {0, 0, ahead(time.Hour), "", advice},
		"expired":                          {-3600, -120, refusal, "the client assertion expired at 1999-12-31T23:58:00Z", renewal},
		"expired a moment ago":             {-3600, 0, refusal, "the client assertion expired at 2000-01-01T00:00:00Z", renewal},
		"without Date":                     {-3600, -120, refusingServer{status: 401, body: unknown, noDate: true}, "the client assertion expired at 1999-12-31T23:58:00Z", renewal},
		"not yet valid":                    {120, 180, refusal, "the client assertion is not valid before 2000-01-01T00:02:00Z", "look at the clock of the machine that issues the client assertion; else " + advice},
		"a little early":                   {20, 80, refusal, "", advice},
		"clock behind":                     {0, 60, ahead(2 * time.Minute), "the clock of this machine is 2m0s behind that of the server", clock + "; else " + advice},
		"clock ahead":                      {0, 60, ahead(-2 * time.Minute), "the clock of this machine is 2m0s ahead of that of the server", clock + "; else " + advice},
		"clock a little behind":            {0, 60, ahead(29 * time.Second), "", advice},
		"clock just too far":               {0, 60, ahead(30 * time.Second), "the clock of this machine is 30s behind that of the server", clock + "; else " + advice},
		"slow answer":                      {0, 60, refusingServer{status: 401, body: unknown, took: 40 * time.Second, ahead: -40 * time.Second}, "", advice},
		"slow answer, dated between":       {0, 60, refusingServer{status: 401, body: unknown, took: 40 * time.Second, ahead: -35 * time.Second}, "", advice},
		"expired, clock behind":            {-3600, -120, ahead(time.Hour), "the client assertion expired at 1999-12-31T23:58:00Z; the clock of this machine is 1h0m0s behind that of the server", renewal + "; else " + clock},
		"expired by a clock that is ahead": {-3600, -120, ahead(-time.Hour), "the clock of this machine is 1h0m0s ahead of that of the server", clock + "; else " + advice},
		"another code":                     {-3600, -120, refusingServer{status: 400, body: `{"error":"invalid_grant"}`}, "the client assertion expired at 1999-12-31T23:58:00Z", renewal},
		"200":                              {-3600, -120, refusingServer{status: 200, body: unknown}, "the client assertion expired at 1999-12-31T23:58:00Z", renewal},
		"accepted, wrong scope":            {-3600, -120, refusingServer{status: 400, body: `{"error":"invalid_scope"}`}, "", finalCodes["invalid_scope"]},
		"Keycloak's 401":                   {-3600, -120, refusingServer{status: 401, body: `{"error":"unauthorized_client"}`}, "the client assertion expired at 1999-12-31T23:58:00Z", renewal},
		"Auth0's 401":                      {0, 60, refusingServer{status: 401, body: `{"error":"access_denied"}`}, "", advice},
		"a server in trouble":              {-3600, -120, refusingServer{status: 503, body: unknown}, "", "wait; the authorization server is in trouble"},
		"redirect":                         {-3600, -120, refusingServer{status: 302}, "redirects are not followed; set token_url to the endpoint itself", "set token_url to the address it redirects to"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := Request{URL: "https://a/token", Form: url.Values{}, ClientAdvice: advice}
				if test.exp != 0 || test.iat != 0 {
					ClientAssertion(&r, "gateway", NewSecret(jwt(claims(test.iat, test.exp))))
				}
				_, err := RequestToken(t.Context(), &http.Client{
					Transport:     test.answer,
					CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
				}, r)
				var e *Error
				if !errors.As(err, &e) || e.Reason != test.reason || e.Advice() != test.advice {
					t.Errorf("got %q, %q\nwant %q, %q", e.Reason, e.Advice(), test.reason, test.advice)
				}
				if test.reason != "" && !strings.HasSuffix(e.Error(), ": "+test.reason) {
					t.Errorf("the error is %s", e)
				}
			})
		})
	}
}

// Keycloak answers a wrong secret like this.
func TestAdviceForUnauthorizedClient(t *testing.T) {
	for status, want := range map[int]string{http.StatusUnauthorized: adviceClient, http.StatusBadRequest: adviceGrant} {
		if e := (&Error{Class: Refused, Status: status, Code: "unauthorized_client"}); e.Advice() != want {
			t.Errorf("%d: advice %q", status, e.Advice())
		}
	}
}

// closing is a connection that tells when it is closed.
type closing struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *closing) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// What a server says when it does not like the certificate depends on the version
// of TLS and on the server.
func TestRefusedCertificate(t *testing.T) {
	own := httptest.NewTLSServer(nil)
	defer own.Close()
	certificate := own.TLS.Certificates[0]
	for name, test := range map[string]struct {
		config  *tls.Config // of the server
		present bool
		want    string
	}{
		"not trusted":       {&tls.Config{ClientAuth: tls.RequireAndVerifyClientCert}, true, adviceCertificate},
		"TLS 1.2":           {&tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, MaxVersion: tls.VersionTLS12}, true, adviceCertificate},
		"none":              {&tls.Config{ClientAuth: tls.RequireAnyClientCert}, false, "the token endpoint wants a certificate of the client: set token_cert"},
		"hung up":           {&tls.Config{ClientAuth: tls.RequestClientCert}, true, adviceConnection},
		"hung up, had none": {&tls.Config{ClientAuth: tls.RequestClientCert}, false, "check that this host reaches the token endpoint: DNS, firewall, proxy and certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }))
			server.TLS, server.Config.ErrorLog = test.config, log.New(io.Discard, "", 0)
			server.StartTLS()
			defer server.Close()
			client := NewClient(nil)
			transport := client.Transport.(*http.Transport)
			transport.TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
			if test.present {
				transport.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
			}
			_, err := RequestToken(t.Context(), client, Request{URL: server.URL})
			var e *Error
			if !errors.As(err, &e) || e.Class != Transient || e.Advice() != test.want {
				t.Errorf("%v: advice %q, want %q", err, e.Advice(), test.want)
			}
		})
	}

	// a server that hangs up before the request is sent: net/http takes the connection
	// for an idle one
	client := NewClient(nil)
	closed := make(chan struct{})
	client.Transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
		conn, server := net.Pipe()
		_ = server.Close()
		return &closing{Conn: conn, closed: closed}, nil
	}
	client.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
	waiting := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { <-closed }})
	_, err := RequestToken(waiting, client, Request{URL: "http://auth.example.com/token"})
	var e *Error
	if !errors.As(err, &e) || e.Error() != "requesting a token: EOF" || e.Advice() != adviceConnection {
		t.Errorf("hung up early: %v, advice %q", err, e.Advice())
	}

	// no answer within the deadline is not about the certificate
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if advice := certificateAdvice(ctx, client, io.EOF); advice != "" {
		t.Errorf("advice %q", advice)
	}
}
