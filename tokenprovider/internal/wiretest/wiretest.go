// Package wiretest shows the tests of a provider what goes over the wire: a
// server on loopback that keeps each request as it came, and the recorded
// exchanges in testdata.
package wiretest

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// Granted answers a token request with a token.
const Granted = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" +
	`{"access_token":"tok-1","expires_in":900,"token_type":"Bearer"}`

// Secrets are secrets that an encoding could damage.
var Secrets = []string{
	"plain",
	"a-zA-Z0-9-_.~",
	"pä ss~+%&=:/€",
	`quote"d 'and' back\slash`,
	"?x=1&client_id=other#frag",
	"%41%2B+%zz",
	"col:on:s",
	"{env.HOME}",
}

// Request is a request as it came over the wire, its Host, Connection and
// Content-Length verified and taken out of the header.
type Request struct {
	Line   string // such as POST /oauth2/token HTTP/1.1
	Header http.Header
	Body   string
}

// String renders the request with its header fields in alphabetical order.
func (r Request) String() string {
	var b strings.Builder
	b.WriteString(r.Line + "\n")
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		for _, value := range r.Header[name] {
			b.WriteString(name + ": " + value + "\n")
		}
	}
	return b.String() + "\n" + r.Body
}

// Form decodes the body.
func (r Request) Form(t testing.TB) url.Values {
	t.Helper()
	form, err := url.ParseQuery(r.Body)
	if err != nil {
		t.Fatalf("body %q is not a form: %v", r.Body, err)
	}
	return form
}

// Basic decodes the Authorization header into identifier and secret.
func (r Request) Basic(t testing.TB) (id, secret string) {
	t.Helper()
	encoded, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Basic ")
	pair, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil {
		t.Fatalf("Authorization %q is not Basic authentication", r.Header.Get("Authorization"))
	}
	id, secret, _ = strings.Cut(string(pair), ":")
	return id, secret
}

// Server is an authorization server on loopback.
type Server struct {
	URL    string
	answer string

	mu       sync.Mutex
	requests []Request
}

// Serve starts a server that answers each request with answer, byte for byte,
// and closes the connection.
func Serve(t testing.TB, answer string) *Server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{URL: "http://" + listener.Addr().String(), answer: answer}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				s.serve(t, conn)
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		wg.Wait()
	})
	return s
}

func (s *Server) serve(t testing.TB, conn net.Conn) {
	r := textproto.NewReader(bufio.NewReader(conn))
	line, err := r.ReadLine()
	if err != nil {
		return // a connection without a request
	}
	header, err := r.ReadMIMEHeader()
	if err != nil {
		t.Errorf("reading the header: %v", err)
		return
	}
	size, err := strconv.Atoi(header.Get("Content-Length"))
	if err != nil {
		t.Errorf("Content-Length: %v", err)
		return
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(r.R, body); err != nil {
		t.Errorf("reading the body: %v", err)
		return
	}
	if host := header.Values("Host"); len(host) != 1 || "http://"+host[0] != s.URL {
		t.Errorf("Host: got %q, want that of %s", host, s.URL)
	}
	if connection := header.Values("Connection"); len(connection) != 1 || connection[0] != "close" {
		t.Errorf("Connection: got %q, want close: each request has one of its own", connection)
	}
	header.Del("Host")
	header.Del("Connection")
	header.Del("Content-Length")

	s.mu.Lock()
	s.requests = append(s.requests, Request{Line: line, Header: http.Header(header), Body: string(body)})
	s.mu.Unlock()
	_, _ = io.WriteString(conn, s.answer)
}

// Requests returns the requests so far.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Last returns the last request.
func (s *Server) Last(t testing.TB) Request {
	t.Helper()
	requests := s.Requests()
	if len(requests) == 0 {
		t.Fatal("no request arrived")
	}
	return requests[len(requests)-1]
}

// Provision provisions module as Caddy does.
func Provision[T caddy.Provisioner](t testing.TB, module T) T {
	t.Helper()
	if err := TryProvision(t, module); err != nil {
		t.Fatal(err)
	}
	return module
}

// TryProvision is Provision for a module that may fail.
func TryProvision(t testing.TB, module caddy.Provisioner) error {
	t.Helper()
	ctx, cancel := caddy.NewContext(caddy.Context{Context: t.Context()})
	t.Cleanup(cancel)
	return module.Provision(ctx)
}

// WriteFile writes a file anew, as a rotated secret is.
func WriteFile(t testing.TB, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// NoLeak fails the test if any way of printing v shows one of the markers.
func NoLeak(t testing.TB, v any, markers ...string) {
	t.Helper()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		printed := fmt.Sprintf(verb, v)
		for _, marker := range markers {
			if strings.Contains(printed, marker) || strings.Contains(printed, fmt.Sprintf("%x", marker)) {
				t.Errorf("%s shows %q: %s", verb, marker, printed)
			}
		}
	}
}

// Vector is a recorded exchange with an authorization server.
type Vector struct {
	Name    string `json:"name"`
	Request struct {
		Path    string            `json:"path"`
		Headers map[string]string `json:"headers"`
		Form    json.RawMessage   `json:"form"` // an object, or a body as it was sent
	} `json:"request"`
	Response struct {
		Status  int               `json:"status"`
		Headers map[string]string `json:"headers"`
		Body    json.RawMessage   `json:"body"` // an object, or "" for none
	} `json:"response"`
}

// Form returns the form of the request.
func (v Vector) Form(t testing.TB) url.Values {
	t.Helper()
	var fields map[string]string
	if err := json.Unmarshal(v.Request.Form, &fields); err != nil {
		t.Fatalf("%s: %v", v.Name, err)
	}
	form := url.Values{}
	for name, value := range fields {
		form.Set(name, value)
	}
	return form
}

// Body returns the body of the answer.
func (v Vector) Body() string {
	if string(v.Response.Body) == `""` {
		return ""
	}
	return string(v.Response.Body)
}

// Answer returns the answer as it goes over the wire.
func (v Vector) Answer() string {
	var b strings.Builder
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", v.Response.Status, http.StatusText(v.Response.Status))
	for name, value := range v.Response.Headers {
		b.WriteString(name + ": " + value + "\r\n")
	}
	return b.String() + "\r\n" + v.Body()
}

// Vectors reads the recorded exchanges in file, by name.
func Vectors(t testing.TB, file string) map[string]Vector {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var list []Vector
	if err := json.Unmarshal(content, &list); err != nil {
		t.Fatal(err)
	}
	vectors := make(map[string]Vector, len(list))
	for _, v := range list {
		vectors[v.Name] = v
	}
	return vectors
}
