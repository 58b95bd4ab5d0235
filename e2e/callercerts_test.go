package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// certStage is a gateway with sites over TLS, <name>.localhost, that ask clients
// for certificates in different ways.
type certStage struct {
	t       *testing.T
	api     *egresstest.Recorder
	servers *egresstest.Authority
	trusted *egresstest.Authority
	addr    string
	g       *egresstest.Gateway
	routes  func() string
	sites   map[string]string // options of tls, by name
}

const certCallers = `
	caller dns { client_cert Shop.Internal.  other.internal }
	caller uri { client_cert spiffe://corp/shop urn:corp:shop }
	caller email { client_cert shop@corp.example }
	caller ip { client_cert 192.0.2.1 2001:db8::1 }
	caller short { client_cert short.internal }
`

func clientAuth(mode, ca string) string {
	return "client_auth {\n mode " + mode + "\n trust_pool file {\n pem_file " + ca + "\n}\n}"
}

func newCertStage(t *testing.T) *certStage {
	s := &certStage{t: t, api: egresstest.NewRecorder(t), servers: egresstest.NewAuthority(t), trusted: egresstest.NewAuthority(t), addr: egresstest.FreeAddr(t)}
	endpoint := egresstest.NewTokens(t)
	s.sites = make(map[string]string)
	for _, mode := range []string{"request", "require", "verify_if_given", "require_and_verify"} {
		s.sites[strings.ReplaceAll(mode, "_", "-")] = clientAuth(mode, s.trusted.File)
	}
	cert, key := s.servers.ServerFiles(t, "*.localhost", "localhost")
	s.routes = func() string {
		routes := "respond 404\n}\n"
		for name, auth := range s.sites {
			routes += fmt.Sprintf("https://%s.localhost:%s {\nbind 127.0.0.1\ntls %s %s {\n%s\n}\n%s%s}\n", name, egresstest.Port(s.addr), cert, key, auth,
				"handle /granted* {\n egress plain {\n grant *\n"+showCaller+"}\n}\n", "egress plain {\n"+showCaller+"}\n")
		}
		return strings.TrimSuffix(routes, "}\n")
	}
	callers := strings.NewReplacer(" { ", " {\n", " }", "\n}").Replace(certCallers)
	s.g = egresstest.StartGateway(t, s.routes(), egresstest.WithServer("protocols h2"),
		egresstest.WithCallers("egress {\n"+plainCredential(s.api.URL, endpoint.URL)+callers+"}"))
	return s
}

// client returns a client with a certificate, or without.
func (s *certStage) client(cert *tls.Certificate, change ...func(*tls.Config)) *http.Client {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(egresstest.ReadText(s.t, s.servers.File)))
	config := &tls.Config{RootCAs: roots}
	if cert != nil {
		// whatever authorities the server names
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	for _, f := range change {
		f(config)
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: len(config.NextProtos) > 0, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.addr)
	}}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// ask returns the status of the answer of a site, 0 where there is none, and whom
// it takes for the caller.
func (s *certStage) ask(client *http.Client, site, path string) (status int, caller string, resp *http.Response) {
	s.t.Helper()
	resp, err := client.Get("https://" + site + ".localhost:" + egresstest.Port(s.addr) + path)
	if err != nil {
		return 0, "", nil
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, resp.Header.Get("X-Caller"), resp
}

func overHTTP2(c *tls.Config) { c.NextProtos = []string{"h2"} }

func withNames(names ...string) []string { return names }

// The alternative names of a certificate that the server has verified say who
// calls. One that it has not verified proves nothing.
func TestCallersByClientCertificate(t *testing.T) {
	s := newCertStage(t)
	other := egresstest.NewAuthority(t)
	expired := egresstest.Expires(time.Now().Add(-time.Minute))
	early := func(c *x509.Certificate) { c.NotBefore = time.Now().Add(10 * time.Minute) }
	server := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	const invalid = "invalid" // what is not verified
	for name, c := range map[string]struct {
		cert   tls.Certificate
		caller string
	}{
		"DNS":                {s.trusted.Issue(withNames("shop.internal")), "dns"},
		"DNS, upper case":    {s.trusted.Issue(withNames("SHOP.internal")), "dns"},
		"second value":       {s.trusted.Issue(withNames("unknown.internal", "other.internal")), "dns"},
		"URI":                {s.trusted.Issue(withNames("spiffe://corp/shop")), "uri"},
		"URN":                {s.trusted.Issue(withNames("urn:corp:shop")), "uri"},
		"e-mail":             {s.trusted.Issue(withNames("shop@corp.example")), "email"},
		"IPv4":               {s.trusted.Issue(withNames("192.0.2.1")), "ip"},
		"IPv6":               {s.trusted.Issue(withNames("2001:db8:0::1")), "ip"},
		"CN only":            {s.trusted.Issue(nil, egresstest.CommonName("shop.internal")), ""},
		"CN beside another":  {s.trusted.Issue(withNames("x.internal"), egresstest.CommonName("shop.internal")), ""},
		"wildcard":           {s.trusted.Issue(withNames("*.internal")), ""},
		"sub-domain":         {s.trusted.Issue(withNames("x.shop.internal")), ""},
		"DNS name like URI":  {s.trusted.Issue(nil, func(c *x509.Certificate) { c.DNSNames = []string{"spiffe.corp"} }), ""},
		"e-mail, upper case": {s.trusted.Issue(withNames("SHOP@other.example")), ""},
		"longer URI":         {s.trusted.Issue(withNames("spiffe://corp/shop/x")), ""},
		"other IP":           {s.trusted.Issue(withNames("192.0.2.2")), ""},
		"no names":           {s.trusted.Issue(nil), ""},
		"IP as DNS":          {s.trusted.Issue(nil, func(c *x509.Certificate) { c.DNSNames = []string{"192.0.2.1"} }), ""},
		"DNS as e-mail":      {s.trusted.Issue(nil, func(c *x509.Certificate) { c.EmailAddresses = []string{"shop.internal"} }), ""},

		"self-signed":      {egresstest.SelfSigned(t, withNames("shop.internal")), invalid},
		"other authority":  {other.Issue(withNames("shop.internal")), invalid},
		"expired":          {s.trusted.Issue(withNames("shop.internal"), expired), invalid},
		"not yet valid":    {s.trusted.Issue(withNames("shop.internal"), early), invalid},
		"for servers only": {s.trusted.Issue(withNames("shop.internal"), server), invalid},
	} {
		for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
			for site := range s.sites {
				var change []func(*tls.Config)
				if protocol == "HTTP/2.0" {
					change = append(change, overHTTP2)
				}
				client := s.client(&c.cert, change...)
				verifies := strings.Contains(site, "verify")
				wantStatus, wantCaller := http.StatusOK, c.caller
				switch {
				case verifies && c.caller == invalid:
					wantStatus, wantCaller = 0, ""
				case !verifies:
					wantCaller = ""
				}
				status, caller, resp := s.ask(client, site, "/v1/x")
				if status != wantStatus || caller != wantCaller || resp != nil && resp.Proto != protocol {
					t.Errorf("%s at %s over %s: %d, taken for %q, want %d and %q", name, site, protocol, status, caller, wantStatus, wantCaller)
				}
				before := s.api.Count()
				if status == http.StatusOK && wantCaller == "" {
					wantStatus = http.StatusUnauthorized
				}
				if status, caller, _ := s.ask(client, site, "/granted"); status != wantStatus || caller != wantCaller || (s.api.Count() > before) != (status == http.StatusOK) {
					t.Errorf("%s at %s over %s, granted: %d, taken for %q, want %d and %q", name, site, protocol, status, caller, wantStatus, wantCaller)
				}
			}
		}
	}

	for site, want := range map[string]int{"request": 200, "require": 0, "verify-if-given": 200, "require-and-verify": 0} {
		if status, caller, _ := s.ask(s.client(nil), site, "/v1/x"); status != want || caller != "" {
			t.Errorf("without a certificate at %s: %d, taken for %q", site, status, caller)
		}
	}
}

// A certificate proves nothing any more once it has expired, also on a connection
// that is older.
func TestClientCertificateThatExpires(t *testing.T) {
	s := newCertStage(t)
	for name, change := range map[string][]func(*tls.Config){"HTTP/1.1": nil, "HTTP/2": {overHTTP2}} {
		t.Run(name, func(t *testing.T) {
			until := time.Now().Add(8 * time.Second).Truncate(time.Second)
			cert := s.trusted.Issue(withNames("short.internal"), egresstest.Expires(until))
			var dialed time.Time
			client := s.client(&cert, change...)
			dial := client.Transport.(*http.Transport).DialContext
			client.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				dialed = time.Now()
				return dial(ctx, network, addr)
			}
			if status, caller, _ := s.ask(client, "require-and-verify", "/granted"); status != http.StatusOK || caller != "short" {
				t.Fatalf("while it is valid: %d, taken for %q", status, caller)
			}
			egresstest.Eventually(t, "the certificate to prove nothing", func() bool {
				sent := time.Now()
				status, caller, _ := s.ask(client, "require-and-verify", "/granted")
				if status == http.StatusOK && sent.After(until.Add(5*time.Second)) {
					t.Fatalf("taken for %q 5 s after it expired", caller)
				}
				return status == http.StatusUnauthorized && caller == ""
			})
			if time.Now().Before(until) {
				t.Error("it was refused while it was valid")
			}
			if !dialed.Before(until) {
				t.Error("the connection was made after that, the test says nothing")
			}
		})
	}
}

// sharedSessions presents any session to any server.
type sharedSessions struct {
	mu   sync.Mutex
	last *tls.ClientSessionState
}

func (s *sharedSessions) Get(string) (*tls.ClientSessionState, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.last != nil
}

func (s *sharedSessions) Put(_ string, session *tls.ClientSessionState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if session != nil {
		s.last = session
	}
}

// A session that is resumed does not carry a certificate to where it would not be
// verified: to a site with another authority, or past a change of it. Caddy issues
// no tickets where it asks for certificates; this holds if that changes.
func TestResumedSessions(t *testing.T) {
	s := newCertStage(t)
	other := egresstest.NewAuthority(t)
	s.sites["other"] = clientAuth("require_and_verify", other.File)
	s.sites["lenient"] = clientAuth("verify_if_given", other.File)
	s.sites["none"] = ""
	load := func() {
		t.Helper()
		if err := s.g.Load(s.routes()); err != nil {
			t.Fatal(err)
		}
		egresstest.AwaitReload(t, s.addr)
	}
	load()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		sessions := new(sharedSessions)
		var resumed bool
		cert := s.trusted.Issue(withNames("shop.internal"))
		// a connection for each request
		ask := func(site string) (int, string) {
			client := s.client(&cert, func(c *tls.Config) {
				c.ClientSessionCache, c.MaxVersion, c.InsecureSkipVerify = sessions, version, true
				c.VerifyConnection = func(state tls.ConnectionState) error { resumed = state.DidResume; return nil }
			})
			defer client.CloseIdleConnections()
			status, caller, _ := s.ask(client, site, "/granted")
			return status, caller
		}
		egresstest.Eventually(t, "the site", func() bool {
			status, caller := ask("require-and-verify")
			return status == http.StatusOK && caller == "dns"
		})
		ask("require-and-verify")
		kept := sessions.last
		t.Logf("version %x: a session is resumed: %v", version, resumed)
		for _, site := range []string{"other", "lenient", "none", "request"} {
			sessions.last = kept
			if status, caller := ask(site); status == http.StatusOK || caller != "" {
				t.Errorf("version %x: a session of another site is taken for %q at %s: %d", version, caller, site, status)
			}
		}

		// the authority of the site changes
		s.sites["require-and-verify"] = clientAuth("require_and_verify", other.File)
		load()
		sessions.last = kept
		egresstest.Eventually(t, "an answer", func() bool {
			status, caller := ask("require-and-verify")
			if status == http.StatusOK {
				t.Fatalf("version %x: taken for %q after the authority changed", version, caller)
			}
			good := other.Issue(withNames("shop.internal"))
			status, _, _ = s.ask(s.client(&good), "require-and-verify", "/granted")
			return status == http.StatusOK
		})
		s.sites["require-and-verify"] = clientAuth("require_and_verify", s.trusted.File)
		load()
	}
}

// What a site has verified does not count at another, over one connection.
func TestCertificateOfAnotherSite(t *testing.T) {
	s := newCertStage(t)
	other := egresstest.NewAuthority(t)
	s.sites["other"] = clientAuth("require_and_verify", other.File)
	if err := s.g.Load(s.routes()); err != nil {
		t.Fatal(err)
	}
	egresstest.AwaitReload(t, s.addr)
	cert := s.trusted.Issue(withNames("shop.internal"))
	for name, change := range map[string][]func(*tls.Config){"HTTP/1.1": nil, "HTTP/2": {overHTTP2}} {
		client := s.client(&cert, change...)
		egresstest.Eventually(t, "the site", func() bool {
			status, _, _ := s.ask(client, "verify-if-given", "/granted")
			return status == http.StatusOK
		})
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://verify-if-given.localhost:"+egresstest.Port(s.addr)+"/granted", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "other.localhost"
		before := s.api.Count()
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusMisdirectedRequest || s.api.Count() != before {
			t.Errorf("%s: answered %d, want 421", name, resp.StatusCode)
		}
	}
}
