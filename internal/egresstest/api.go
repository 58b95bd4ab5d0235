package egresstest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caddy-egress/caddy-egress/sandbox"
)

// Start starts a server: (*httptest.Server).Start, StartTLS or [StartH2C].
type Start func(*httptest.Server)

// StartH2C starts a server of HTTP/2 without TLS.
func StartH2C(s *httptest.Server) {
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
}

// Received is a request as it arrived at an API.
type Received struct {
	Method, Target, Host, Proto string
	Header                      http.Header
	Trailer                     http.Header
	Body                        string
}

// Recorder is an API that records what arrives and answers 200.
type Recorder struct {
	*httptest.Server

	// Handler answers instead, after the request was recorded. It is set
	// before the first request.
	Handler http.HandlerFunc

	mu       sync.Mutex
	requests []Received
}

// NewRecorder starts an API that records, without TLS.
func NewRecorder(t *testing.T) *Recorder {
	t.Helper()
	return NewRecorderOver(t, (*httptest.Server).Start)
}

// NewRecorderOver is [NewRecorder] with another way to serve.
func NewRecorderOver(t *testing.T, start Start) *Recorder {
	t.Helper()
	r := new(Recorder)
	r.Server = httptest.NewUnstartedServer(r)
	start(r.Server)
	t.Cleanup(func() {
		r.Close()
		r.CheckKeys(t)
	})
	return r
}

// CheckKeys fails the test if a key of a caller has arrived.
func (r *Recorder) CheckKeys(t testing.TB) {
	t.Helper()
	for _, req := range r.All() {
		CheckKeys(t, "what arrived at the API", fmt.Sprint(req.Target, req.Header, req.Trailer, req.Body))
	}
}

// ServeHTTP implements http.Handler.
func (r *Recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	r.mu.Lock()
	r.requests = append(r.requests, Received{
		Method: req.Method, Target: req.RequestURI, Host: req.Host, Proto: req.Proto,
		Header: req.Header.Clone(), Trailer: req.Trailer.Clone(), Body: string(body),
	})
	r.mu.Unlock()
	if r.Handler != nil {
		req.Body = io.NopCloser(bytes.NewReader(body))
		r.Handler(w, req)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, `{}`)
}

// Last returns the request that arrived last.
func (r *Recorder) Last(t *testing.T) Received {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.requests) == 0 {
		t.Fatal("no request has arrived at the API")
	}
	return r.requests[len(r.requests)-1]
}

// Count returns how many requests have arrived.
func (r *Recorder) Count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.requests)
}

// All returns all requests that have arrived, in that order.
func (r *Recorder) All() []Received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.requests)
}

// Under returns those of All whose target begins with prefix.
func (r *Recorder) Under(prefix string) []Received {
	return slices.DeleteFunc(r.All(), func(req Received) bool { return !strings.HasPrefix(req.Target, prefix) })
}

// Guarded is an API that accepts one token at a time and answers a request
// that carries it with the hash of its body, as [Body] returns it.
type Guarded struct {
	*httptest.Server

	// Early has it say 401 before it reads the body, and read on after that.
	Early bool

	// Challenge is the WWW-Authenticate of its 401.
	Challenge string

	Accepted     atomic.Int64 // requests with the valid token
	Unauthorized atomic.Int64 // others
	Bodies       atomic.Int64 // bytes of bodies that were accepted
	Unread       atomic.Int64 // bytes of bodies that were read after an early 401

	valid atomic.Pointer[string]
}

// APIUnauthorized is in the body of the 401 of a [Guarded].
const APIUnauthorized = "of the API"

// NewGuarded starts an API that accepts no token yet.
func NewGuarded(t *testing.T, start Start) *Guarded {
	t.Helper()
	a := new(Guarded)
	a.Accept("")
	a.Server = httptest.NewUnstartedServer(a)
	start(a.Server)
	t.Cleanup(a.Close)
	return a
}

// Accept makes token the valid one.
func (a *Guarded) Accept(token string) { a.valid.Store(&token) }

// ServeHTTP implements http.Handler.
func (a *Guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	hash := sha256.New()
	if a.Early {
		// without it, Go's server reads a body before it answers with HTTP/1
		_ = http.NewResponseController(w).EnableFullDuplex()
	} else {
		_, _ = io.Copy(hash, r.Body)
	}
	if r.Header.Get("Authorization") != "Bearer "+*a.valid.Load() {
		a.Unauthorized.Add(1)
		if a.Challenge != "" {
			w.Header().Set("WWW-Authenticate", a.Challenge)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"code":"UNAUTHORIZED","message":"`+APIUnauthorized+`"}`)
		if a.Early { // and read on for a while, as servers do (lingering close)
			_ = http.NewResponseController(w).Flush()
			_, _ = io.Copy(counter{&a.Unread}, r.Body)
		}
		return
	}
	a.Accepted.Add(1)
	n, _ := io.Copy(hash, r.Body)
	a.Bodies.Add(n)
	_, _ = io.WriteString(w, hex.EncodeToString(hash.Sum(nil)))
}

// counter counts what is written to it.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// Body returns n random bytes, with their hash as a [Guarded] answers it.
func Body(n int) (body []byte, hash string) {
	body = make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(body)
	sum := sha256.Sum256(body)
	return body, hex.EncodeToString(sum[:])
}

// NewSandbox serves an imitation of an API, "understory" or "voucherify", to the
// client "id" with [Secret].
func NewSandbox(t *testing.T, api string) (*sandbox.Server, *httptest.Server) {
	t.Helper()
	return NewSandboxFor(t, api, "id", Secret)
}

// NewSandboxFor is [NewSandbox] for another client.
func NewSandboxFor(t *testing.T, api, id, secret string) (*sandbox.Server, *httptest.Server) {
	t.Helper()
	s, err := sandbox.New(sandbox.Options{API: api, ClientID: id, ClientSecret: secret})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, server
}
