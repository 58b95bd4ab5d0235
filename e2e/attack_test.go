package e2e_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
	"github.com/caddy-egress/caddy-egress/internal/egresstest/paths"
)

// vouchers is below /v1/vouchers; some APIs take /v1/vouchers/ for /v1/vouchers.
var vouchers = regexp.MustCompile(`^/v1/vouchers(/|$)`)

// permittedTo is what each caller may do on each route, and the scopes of the token
// that it does it with: the judge of the attack, written apart from the
// configuration. An operation is a method and what all readings of the path match.
var permittedTo = map[string]map[string]struct {
	scopes     []string
	operations map[string]*regexp.Regexp
}{
	"api": {
		"shop": {[]string{"validations", "vouchers"}, map[string]*regexp.Regexp{
			"GET": vouchers, "POST": regexp.MustCompile(`^/v1/(validations|redemptions)$`),
		}},
		"nightly": {[]string{"campaigns", "vouchers"}, map[string]*regexp.Regexp{"GET": regexp.MustCompile(`^/v1/(vouchers|campaigns)(/|$)`)}},
		"agent":   {[]string{"vouchers"}, map[string]*regexp.Regexp{"GET": vouchers}},
	},
	"shop-only": {"shop": {[]string{"api"}, map[string]*regexp.Regexp{
		"GET": regexp.MustCompile(`^/v1/`), "POST": regexp.MustCompile(`^/v1/`), "PUT": regexp.MustCompile(`^/v1/`), "DELETE": regexp.MustCompile(`^/v1/`),
	}}},
	"jobs": {
		"nightly": {[]string{"exports"}, map[string]*regexp.Regexp{"POST": regexp.MustCompile(`^/v1/exports$`), "GET": regexp.MustCompile(`^/v1/exports/`)}},
		"both":    {[]string{"api"}, map[string]*regexp.Regexp{"GET": regexp.MustCompile(`^/v1/exports/`)}},
	},
}

const attackRoutes = `
	egress_token /oauth2/token
	handle_path /shop/* {
		egress promo {
			header_up X-Route shop-only
			allow GET,POST,PUT,DELETE /v1/*
			grant shop
		}
	}
	handle_path /jobs/* {
		egress promo {
			header_up X-Route jobs
			grant nightly {
				scopes exports
				allow POST /v1/exports
				allow GET /v1/exports/*
			}
			grant both {
				allow GET /v1/exports/*
			}
		}
	}
	handle {
		egress promo {
			header_up X-Route api
			%s
		}
	}
`

const attackGrants = `
	grant shop {
		scopes vouchers validations
		allow GET /v1/vouchers/*
		allow POST /v1/validations /v1/redemptions
	}
	grant nightly {
		scopes campaigns vouchers
		allow GET /v1/vouchers /v1/vouchers/* /v1/campaigns /v1/campaigns/*
	}
	grant agent {
		scopes vouchers
		allow GET /v1/vouchers/*
	}
`

// attackStage is the case of several applications in the README, with an API that
// knows who may do what.
type attackStage struct {
	t       *testing.T
	api     *egresstest.Recorder
	servers *egresstest.Authority
	g       *egresstest.Gateway
	addr    string // of the sites over TLS
	certs   map[string]tls.Certificate
	tokens  map[string]string // local tokens of callers
	dead    []string          // local tokens that ended with a key, and what was made of those that live

	proven  sync.Map // from the id of an attempt to the callers that it proves, separated by spaces
	arrived atomic.Int64
	missed  atomic.Int64 // attempts without an answer
}

func newAttackStage(t *testing.T) *attackStage {
	s := &attackStage{t: t, servers: egresstest.NewAuthority(t), addr: egresstest.FreeAddr(t)}
	trusted, foreign := egresstest.NewAuthority(t), egresstest.NewAuthority(t)
	s.api = egresstest.NewRecorder(t)
	s.api.Handler = s.judge
	endpoint := scopedTokens(t)
	names := withNames("nightly.jobs.internal")
	s.certs = map[string]tls.Certificate{
		"nightly": trusted.Issue(names), "other": trusted.Issue(withNames("shop.internal", "nightly.jobs.internal.evil.example"), egresstest.CommonName("nightly.jobs.internal")),
		"wildcard": trusted.Issue(withNames("*.jobs.internal", "nightly@jobs.internal")), "expired": trusted.Issue(names, egresstest.Expires(time.Now().Add(-time.Second))),
		"foreign": foreign.Issue(names), "self-signed": egresstest.SelfSigned(t, names),
	}
	routes := fmt.Sprintf(attackRoutes, attackGrants)
	cert, key := s.servers.ServerFiles(t, "*.localhost")
	sites := routes
	for name, mode := range map[string]string{"strict": "require_and_verify", "given": "verify_if_given", "lax": "request", "require": "require"} {
		sites += fmt.Sprintf("\n}\nhttps://%s.localhost:%s {\nbind 127.0.0.1\ntls %s %s {\n%s\n}\n%s", name, egresstest.Port(s.addr), cert, key, clientAuth(mode, trusted.File), routes)
	}
	shop := newSecretFile(t, egresstest.Key("shop-before"))
	callers := "caller shop {\n key {file." + shop.path + "}\n}\n" + egresstest.Caller(t, "agent") + egresstest.Caller(t, "stranger") + egresstest.Caller(t, "both", "client_cert nightly.jobs.internal") +
		"caller nightly {\n client_cert nightly.jobs.internal\n}\n"
	s.g = egresstest.StartGateway(t, sites, egresstest.WithoutLog(), egresstest.WithServer("protocols h2"),
		egresstest.WithCallers("egress {\n"+strings.Replace(plainCredential(s.api.URL, endpoint.URL), "credential plain", "credential promo", 1)+callers+"}"))
	s.g.Global = strings.Replace(s.g.Global, "client_id", "scopes api\n client_id", 1)
	if err := s.g.Load(sites); err != nil {
		t.Fatal(err)
	}
	s.g.GetAfterReload("/v1/warm-up")
	egresstest.AwaitReload(t, s.addr)
	s.mintTokens(shop)
	return s
}

// exchange has a key exchanged for a local token; empty if it is refused.
func (s *attackStage) exchange(caller, key string) string {
	s.t.Helper()
	req := s.g.Request(http.MethodPost, "/oauth2/token", strings.NewReader("grant_type=client_credentials"))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(url.QueryEscape(caller), url.QueryEscape(key))
	_, body := s.g.Do(req)
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		s.t.Fatal(err)
	}
	return answer.Token
}

// mintTokens has keys exchanged for local tokens, and changes the key of the shop
// after that.
func (s *attackStage) mintTokens(shop *secretFile) {
	old := s.exchange("shop", egresstest.Key("shop-before"))
	shop.write(egresstest.Key("shop"))
	s.tokens = make(map[string]string)
	egresstest.Eventually(s.t, "the new key of the shop", func() bool {
		s.tokens["shop"] = s.exchange("shop", egresstest.Key("shop"))
		return s.tokens["shop"] != ""
	})
	for _, caller := range []string{"agent", "stranger", "both"} {
		s.tokens[caller] = s.exchange(caller, egresstest.Key(caller))
	}
	if old == "" || s.tokens["agent"] == "" || s.exchange("shop", s.tokens["shop"]) != "" || s.exchange("shop", egresstest.Key("agent")) != "" {
		s.t.Error("what is exchanged for tokens is not what should be")
	}
	s.dead = append(s.dead, old)
	raw := func(token string) []byte {
		decoded, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(token, "egress_"))
		if err != nil {
			s.t.Fatal(err)
		}
		return decoded
	}
	add := func(b []byte) { s.dead = append(s.dead, "egress_"+base64.RawURLEncoding.EncodeToString(b)) }
	for _, token := range s.tokens {
		b := raw(token)
		for i := range b { // any byte, and any length
			changed := slices.Clone(b)
			changed[i] ^= 1 << (i % 8)
			add(changed)
			add(b[:i])
			add(b[i+1:])
			add(slices.Insert(slices.Clone(b), i, b[i]))
		}
		s.dead = append(s.dead, strings.TrimPrefix(token, "egress_"), strings.ToUpper(token), "Egress_"+strings.TrimPrefix(token, "egress_"), token+"=", token+"A", token[:len(token)-1], "egress_"+token)
		for caller := range s.tokens { // the name of another
			const header = 1 + 8
			own := b[header : len(b)-32]
			if caller != string(own) {
				add(slices.Concat(b[:header], []byte(caller), b[len(b)-32:]))
				add(slices.Concat(raw(s.tokens[caller])[:len(raw(s.tokens[caller]))-32], b[len(b)-32:]))
			}
		}
	}
}

// judge fails the test if a request has arrived that is not permitted to those who
// have proved who they are with it.
func (s *attackStage) judge(w http.ResponseWriter, r *http.Request) {
	s.arrived.Add(1)
	id := r.Header.Get("X-Attempt")
	proven, known := s.proven.Load(id)
	path, _, _ := strings.Cut(r.RequestURI, "?")
	readings := paths.Interpretations(path)
	permitted := false
	if known && len(r.Header["X-Attempt"]) == 1 {
		for caller := range strings.FieldsSeq(proven.(string)) {
			to, ok := permittedTo[r.Header.Get("X-Route")][caller]
			operation := to.operations[r.Method]
			listed := path == "/v1/vouchers" && operation == vouchers
			permitted = permitted || ok && !listed && operation != nil && r.Header.Get("Authorization") == "Bearer "+scopedToken(to.scopes...) &&
				!slices.ContainsFunc(readings, func(p string) bool { return !operation.MatchString(p) })
		}
	}
	if !permitted || r.ProtoMajor != 1 || len(r.Header["Authorization"]) != 1 {
		s.t.Errorf("attempt %s of %q has reached the API: %s %s as %s with %v", id, proven, r.Method, r.RequestURI, r.Header.Get("X-Route"), r.Header)
	}
	_, _ = io.WriteString(w, `{}`)
}

// proof is a way to say who one is, and the callers that it proves.
type proof struct {
	header string
	proves string
}

// proofs returns ways to send the key of a caller; few of them prove anything. The
// connection proves who is certCaller, if anybody.
func (s *attackStage) proofs(random *rand.Rand, certCaller string) proof {
	caller := []string{"shop", "shop", "agent", "stranger", "both"}[random.IntN(5)]
	key := egresstest.Key(caller)
	if random.IntN(3) == 0 {
		key = s.tokens[caller]
	}
	if caller == "both" && certCaller != "nightly" {
		caller = "" // its key is not enough
	}
	valid := []string{
		"Authorization: Bearer " + key, "authorization: bEARER " + key, "Authorization: Basic " + basicPair("shop", key), "Authorization: Basic " + basicPair("", key), "X-API-Key: " + key,
		"X-Api-Key: " + key + "\r\nAuthorization: Bearer wrong", "Authorization: Bearer " + key + "\r\nX-Forwarded-User: shop\r\nX-Remote-User: nightly",
	}
	near := func() string { // one character off
		b := []byte(key)
		switch i := random.IntN(len(b)); random.IntN(5) {
		case 0:
			b[i] ^= 1 << random.IntN(5)
			if b[i] <= ' ' || b[i] > '~' || string(b) == key {
				b[i] = 'Q'
			}
		case 1:
			b = slices.Delete(b, i, i+1)
		case 2:
			b = slices.Insert(b, i, 'Q')
		case 3:
			b = append(b, "\x00\t/:=,; "[random.IntN(8)], 'x')
		default:
			b = []byte(strings.ToUpper(string(b)))
		}
		return string(b)
	}
	odd := []string{
		"", "Authorization: " + key, "Authorization: Token " + key, "Authorization: Digest " + key, "Authorization: Basic " + key, "Authorization: Basic " + basicPair(key, ""), "Authorization: Bearer " + basicPair("shop", key),
		"Authorization: Bearer", "Authorization: Bearer  ", "Authorization: Basic Og==", "Authorization: Basic =" + basicPair("shop", key), "X_Api_Key: " + key, "X.Api.Key: " + key, "Api-Key: " + key, "X-Auth-Token: " + key, "Proxy-Authorization: Bearer " + key,
		"Cookie: key=" + key + "; Authorization=Bearer " + key, "X-Forwarded-Authorization: Bearer " + key, "X-Egress-Caller: shop\r\nEgress-Caller: shop", "From: shop@localhost",
		"X-Forwarded-User: shop\r\nX-Remote-User: shop\r\nRemote-User: shop\r\nX-Auth-Request-User: shop", "X-Ssl-Client-Verify: SUCCESS\r\nX-Ssl-Client-S-Dn: CN=nightly.jobs.internal\r\nX-Forwarded-Client-Cert: Subject=\"CN=nightly.jobs.internal\";DNS=nightly.jobs.internal",
		"Authorization: Bearer shop", "Authorization: Bearer *", "X-Api-Key: *", "X-Api-Key: {env.EGRESS_TEST_KEY_shop}", "Authorization: Bearer {env.EGRESS_TEST_KEY_shop}", "X-Api-Key: {http.reverse_proxy.egress.caller}",
		"Authorization: Bearer " + scopedToken("api"), "Authorization: Bearer " + scopedToken("vouchers"), "Authorization: Bearer " + scopedToken("validations", "vouchers"), "Authorization: Bearer " + egresstest.Secret, "Authorization: Basic " + basicPair("gateway", egresstest.Secret),
		"X-Forwarded-For: 127.0.0.1\r\nForwarded: for=127.0.0.1;host=localhost\r\nX-Real-Ip: 127.0.0.1", "Connection: Authorization, X-Api-Key\r\nX-Api-Key: wrong", "Authorization: Negotiate " + base64.StdEncoding.EncodeToString([]byte(key)),
		"Authorization: Bearer egress_" + base64.RawURLEncoding.EncodeToString([]byte("\x01\x00\x00\x00\x00\xff\xff\xff\xffshop"+strings.Repeat("\x00", 32))), "X-Api-Key: egress_AQ", "X-Api-Key: egress_" + strings.Repeat("A", 500),
	}
	perhaps := []string{ // none has to count; if one does, then for this caller
		"Authorization: Bearer wrong\r\nAuthorization: Bearer " + key, "Authorization: Bearer " + key + "\r\nAuthorization: Bearer wrong", "X-Api-Key: " + key + "\r\nX-Api-Key: " + key,
		"Authorization: Bearer " + key + ", Bearer wrong", "X-Api-Key:" + key + "\r\nX-Api-Key:\r\nX-Api-Key: x", "Authorization:\tBearer\t" + key, "Authorization: Bearer    " + key,
	}
	switch random.IntN(9) {
	case 8:
		name := []string{"Authorization: Bearer ", "X-Api-Key: "}[random.IntN(2)]
		return proof{name + s.dead[random.IntN(len(s.dead))], ""}
	case 0, 1, 2:
		return proof{valid[random.IntN(len(valid))], caller}
	case 3:
		name := []string{"Authorization: Bearer ", "X-Api-Key: ", "X-Api-Key: Bearer "}[random.IntN(3)]
		return proof{name + near(), ""}
	case 4:
		return proof{perhaps[random.IntN(len(perhaps))], caller}
	case 5:
		other := egresstest.Key("agent")
		return proof{valid[random.IntN(len(valid))] + "\r\nX-Api-Key: " + other, caller + " agent"}
	}
	return proof{odd[random.IntN(len(odd))], ""}
}

// attackOperations are what is tried; each is permitted to somebody on some route,
// or to nobody.
var attackOperations = []string{
	"GET /v1/vouchers/SUMMER", "GET /v1/vouchers/SUMMER/x", "GET /v1/vouchers", "POST /v1/validations", "POST /v1/redemptions", "POST /v1/redemptions/r1/rollback", "GET /v1/redemptions", "GET /v1/campaigns", "GET /v1/campaigns/c1",
	"POST /v1/vouchers", "DELETE /v1/vouchers/SUMMER", "PUT /v1/vouchers/SUMMER", "POST /v1/vouchers/SUMMER/balance", "PATCH /v1/vouchers/SUMMER", "HEAD /v1/vouchers/SUMMER", "OPTIONS /v1/vouchers/SUMMER", "TRACE /v1/vouchers/SUMMER",
	"GET /v1/publications/create", "GET /v1/customers", "GET /", "GET /client/v1/vouchers/x", "GET /v1/vouchers-export", "GET /v1/vouchers/../campaigns", "GET /v1/oauth/token",
	"GET /shop/v1/campaigns", "DELETE /shop/v1/vouchers/SUMMER", "POST /shop/v1/vouchers", "GET /shop/v2/x", "GET /shop/", "GET /shop/../jobs/v1/exports/1", "POST /jobs/v1/exports", "GET /jobs/v1/exports/1", "DELETE /jobs/v1/exports/1", "GET /jobs/../v1/vouchers/SUMMER",
}

// attempt returns the bytes of one attempt, which says by id what it proves.
func (s *attackStage) attempt(random *rand.Rand, id, host, certCaller string) string {
	p := s.proofs(random, certCaller)
	proves := p.proves
	if certCaller != "" {
		proves += " " + certCaller
	}
	s.proven.Store(id, proves)
	method, path, _ := strings.Cut(attackOperations[random.IntN(len(attackOperations))], " ")
	if random.IntN(3) == 0 {
		path = disguise(random, path)
	}
	if random.IntN(12) == 0 {
		method = []string{strings.ToLower(method), "PROPFIND", "CONNECT", "TRACK", "get", method + "X", "POST", "GET"}[random.IntN(8)]
	}
	if p.proves != "" && random.IntN(4) == 0 { // so that some get through
		return "GET /v1/vouchers/SUMMER HTTP/1.1\r\nHost: " + host + "\r\nX-Attempt: " + id + "\r\n" + p.header + "\r\n\r\n"
	}
	hosts := []string{host, host, host, host, "shop.internal", "evil.example", "LOCALHOST.", "127.0.0.1", "[::1]:80", "strict.localhost", "lax.localhost", "api.example.com:443", ""}
	sent := hosts[random.IntN(len(hosts))]
	if random.IntN(20) == 0 {
		path = "http://" + hosts[random.IntN(len(hosts))] + path
	} else if random.IntN(20) == 0 {
		path = "http://shop:" + url.PathEscape(egresstest.Key("agent")) + "@localhost" + path
	}
	lines := method + " " + path + " HTTP/1.1\r\nHost: " + sent + "\r\nX-Attempt: " + id + "\r\n"
	if p.header != "" {
		lines += p.header + "\r\n"
	}
	extras := []string{
		overrides[random.IntN(len(overrides))] + ": DELETE\r\n", "X-Original-URL: /shop/v1/campaigns\r\nX-Rewrite-URL: /shop/v1/x\r\n", "X-Forwarded-Host: localhost\r\nX-Forwarded-Prefix: /shop\r\nX-Forwarded-Uri: /shop/v1/x\r\n", "X-Route: shop-only\r\n", "X-Route: jobs\r\n",
		"Origin: http://localhost\r\nAccess-Control-Request-Method: GET\r\n", "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
		"Connection: keep-alive, X-Route\r\n", "Expect: 100-continue\r\n", "Te: trailers\r\n", "Via: 1.1 caddy-egress\r\n", "X-Http-Method-Override: GET\r\nX-Route: api\r\n", "Range: bytes=0-\r\n",
	}
	if random.IntN(3) == 0 {
		lines += extras[random.IntN(len(extras))]
	}
	switch body := "{}"; {
	case method == http.MethodGet || method == http.MethodHead || random.IntN(3) > 0:
		return lines + "Content-Length: 0\r\n\r\n"
	case random.IntN(2) == 0:
		return lines + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
	default: // a key that comes late
		return lines + fmt.Sprintf("Transfer-Encoding: chunked\r\nTrailer: X-Api-Key, Authorization, X-Route\r\n\r\n%x\r\n%s\r\n0\r\nX-Api-Key: %s\r\nAuthorization: Bearer %s\r\nX-Route: shop-only\r\n\r\n", len(body), body, egresstest.Key("shop"), egresstest.Key("shop"))
	}
}

// overTLS dials a site with a certificate.
func (s *attackStage) overTLS(site string, cert tls.Certificate) func() (net.Conn, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(egresstest.ReadText(s.t, s.servers.File)))
	return func() (net.Conn, error) {
		return tls.Dial("tcp", s.addr, &tls.Config{RootCAs: roots, ServerName: site + ".localhost", GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }})
	}
}

// run sends n attempts over a connection that is kept.
func (s *attackStage) run(seed uint64, n int, name, host string, certCaller string, dial func() (net.Conn, error)) {
	random, w := rand.New(rand.NewPCG(10, seed)), egresstest.NewWire(s.t, dial)
	for i := range n {
		if _, _, err := w.TrySend(s.attempt(random, fmt.Sprintf("%s-%d", name, i), host, certCaller)); err != nil {
			s.missed.Add(1)
		}
	}
}

// runHTTP2 sends n attempts over HTTP/2, where a header can have what would end one
// with HTTP/1.
func (s *attackStage) runHTTP2(seed uint64, n int, certCaller string, cert tls.Certificate, site string) {
	random := rand.New(rand.NewPCG(11, seed))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(egresstest.ReadText(s.t, s.servers.File)))
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }},
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", s.addr)
		}}
	defer transport.CloseIdleConnections()
	for i := range n {
		p, id := s.proofs(random, certCaller), fmt.Sprintf("h2-%d-%d", seed, i)
		s.proven.Store(id, p.proves+" "+certCaller)
		method, path, _ := strings.Cut(attackOperations[random.IntN(len(attackOperations))], " ")
		if random.IntN(3) == 0 {
			path = disguise(random, path)
		}
		req := &http.Request{Method: method, URL: &url.URL{Scheme: "https", Host: site + ".localhost:" + egresstest.Port(s.addr), Opaque: path}, Header: make(http.Header)}
		if !strings.HasPrefix(path, "/") {
			req.URL.Opaque = "/" + path
		}
		for line := range strings.SplitSeq(p.header, "\r\n") {
			if name, value, ok := strings.Cut(line, ":"); ok {
				req.Header[name] = append(req.Header[name], strings.TrimSpace(value))
			}
		}
		req.Header.Set("X-Attempt", id)
		if random.IntN(8) == 0 {
			req.Host = []string{"lax.localhost", "strict.localhost", "localhost", "evil.example"}[random.IntN(4)]
		}
		ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
		resp, err := transport.RoundTrip(req.WithContext(ctx))
		if err != nil {
			s.missed.Add(1)
		} else {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		cancel()
	}
}

// Ten thousand attempts at what is not granted: none gets through.
func TestNobodyDoesWhatIsNotGranted(t *testing.T) {
	s := newAttackStage(t)
	var wg sync.WaitGroup
	seed := uint64(0)
	start := func(f func(seed uint64)) {
		seed++
		own := seed
		wg.Go(func() { f(own) })
	}
	plain := egresstest.From("127.0.0.1", s.g.Addr)
	for range 3 {
		start(func(seed uint64) { s.run(seed, 2500, fmt.Sprint("plain-", seed), "localhost", "", plain) })
	}
	for site, verifies := range map[string]bool{"strict": true, "given": true, "lax": false, "require": false} {
		for name, cert := range s.certs {
			caller, n := "", 100
			if verifies && name == "nightly" {
				caller, n = "nightly", 400
			}
			if verifies && slices.Contains([]string{"expired", "foreign", "self-signed"}, name) {
				n = 5 // no connection comes about
			}
			start(func(seed uint64) {
				s.run(seed, n, site+"-"+name, site+".localhost", caller, s.overTLS(site, cert))
			})
			if verifies || name == "nightly" {
				start(func(seed uint64) { s.runHTTP2(seed, n, caller, cert, site) })
			}
		}
	}
	wg.Wait()
	total := 0
	s.proven.Range(func(_, _ any) bool { total++; return true })
	t.Logf("%d of %d attempts have reached the API, all of them granted; %d had no answer", s.arrived.Load(), total, s.missed.Load())
	if arrived := int(s.arrived.Load()); arrived < total/30 || total-arrived < 10_000 {
		t.Errorf("%d of %d attempts have reached the API; the test says little", arrived, total)
	}
	callers := make(map[string]int)
	for _, req := range s.api.All() {
		proves, _ := s.proven.Load(req.Header.Get("X-Attempt"))
		if names := strings.Fields(proves.(string)); len(names) == 1 {
			callers[req.Header.Get("X-Route")+" "+names[0]]++
		}
	}
	for _, want := range []string{"api shop", "api nightly", "api agent", "shop-only shop", "jobs nightly"} {
		if callers[want] == 0 {
			t.Errorf("nothing of %s has arrived; the test says little", want)
		}
	}
}
