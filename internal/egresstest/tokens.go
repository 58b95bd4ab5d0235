package egresstest

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Tokens is a token endpoint. The n-th answer is Token(n), good for an hour.
type Tokens struct {
	*httptest.Server

	// These change what it answers. Once it serves, use [Tokens.Set].
	Latency  time.Duration
	Lifetime int              // seconds
	Answer   http.HandlerFunc // answers instead

	mu     sync.Mutex
	issued int
}

// NewTokens starts a token endpoint.
func NewTokens(t testing.TB) *Tokens {
	t.Helper()
	e := &Tokens{Lifetime: 3600}
	e.Server = httptest.NewServer(e)
	t.Cleanup(e.Close)
	return e
}

// ServeHTTP implements http.Handler.
func (e *Tokens) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	e.mu.Lock()
	e.issued++
	n, latency, answer, lifetime := e.issued, e.Latency, e.Answer, e.Lifetime
	e.mu.Unlock()
	select {
	case <-time.After(latency):
	case <-req.Context().Done():
		return
	}
	if answer != nil {
		answer(w, req)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"access_token":%q,"token_type":"bearer","expires_in":%d}`, Token(n), lifetime)
}

// Set changes the endpoint while it serves.
func (e *Tokens) Set(change func(*Tokens)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(e)
}

// SetAnswer has answer answer all requests; nil has tokens issued again.
func (e *Tokens) SetAnswer(answer http.HandlerFunc) {
	e.Set(func(e *Tokens) { e.Answer = answer })
}

// Count returns how many token requests there were.
func (e *Tokens) Count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.issued
}

// Say answers with status, body, and pairs of header names and values. [Marker]
// is in the header, too.
func Say(status int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Server", Marker)
		w.Header().Set("WWW-Authenticate", `Basic realm="`+Marker+`"`)
		for n := 0; n < len(header); n += 2 {
			w.Header().Set(header[n], header[n+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// Issue answers a token request with Token(1) and members of JSON beside it.
func Issue(members string) http.HandlerFunc {
	return Say(http.StatusOK, fmt.Sprintf(`{"access_token":%q%s}`, Token(1), members))
}

// Hang never answers. A server sees its client leave only once the body is read.
func Hang(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	<-r.Context().Done()
}

// Hijack sends bytes in place of an answer and drops the connection.
func Hijack(sent string, reset bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, sent)
		if reset {
			_ = conn.(*net.TCPConn).SetLinger(0)
		}
		conn.Close()
	}
}

// Service is an API with its token endpoint on one host.
type Service struct {
	*httptest.Server
	Tokens Tokens
	API    Recorder
}

// NewService starts a service.
func NewService(t *testing.T) *Service {
	t.Helper()
	s := &Service{Tokens: Tokens{Lifetime: 3600}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(func() {
		s.Server.Close()
		s.API.CheckKeys(t)
	})
	return s
}

// ServeHTTP implements http.Handler.
func (s *Service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/oauth/token") {
		s.Tokens.ServeHTTP(w, r)
		return
	}
	s.API.ServeHTTP(w, r)
}

// NewRefusingService returns a service that refuses connections until open is
// called: its address is bound, so nobody else can take it, but not listened at.
func NewRefusingService(t *testing.T) (s *Service, open func()) {
	t.Helper()
	socket, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(socket), "socket")
	t.Cleanup(func() { file.Close() })
	if err := syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	address, err := syscall.Getsockname(socket)
	if err != nil {
		t.Fatal(err)
	}
	s = &Service{Tokens: Tokens{Lifetime: 3600}}
	s.Server = &httptest.Server{URL: fmt.Sprintf("http://127.0.0.1:%d", address.(*syscall.SockaddrInet4).Port)}
	return s, func() {
		if err := syscall.Listen(socket, 128); err != nil {
			t.Fatal(err)
		}
		listener, err := net.FileListener(file)
		if err != nil {
			t.Fatal(err)
		}
		s.Server = &httptest.Server{Listener: listener, Config: &http.Server{Handler: s}}
		s.Server.Start()
		t.Cleanup(s.Server.Close)
	}
}

// Credential returns the definition of a credential of the service.
func (s *Service) Credential(name, provider, options string) string {
	const client = "client_id gateway\n client_secret {env." + SecretVariable + "}\n"
	own := map[string]string{
		"oauth2":     client + "token_url " + s.URL + "/oauth/token",
		"understory": client + "scopes openid\n token_url " + s.URL + "/oauth/token",
		"voucherify": "app_id gateway\n app_token {env." + SecretVariable + "}\n scopes api",
	}
	return fmt.Sprintf("credential %s %s %s {\n%s\n%s\n}\n", name, provider, s.URL, own[provider], options)
}
