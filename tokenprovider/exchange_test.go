package tokenprovider

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider/internal/wiretest"
)

func TestRedirectsAreNotFollowed(t *testing.T) {
	other := wiretest.Serve(t, wiretest.Granted)
	for _, status := range []int{301, 302, 303, 307, 308} {
		for _, location := range []string{other.URL + "/?MARKER", "//" + strings.TrimPrefix(other.URL, "http://"), ""} {
			answer := fmt.Sprintf("HTTP/1.1 %d Moved\r\nLocation: %s\r\n\r\n", status, location)
			server := wiretest.Serve(t, answer)
			for name, do := range requests(t, server.URL) {
				var e *Error
				if err := do(NewClient(nil)); !errors.As(err, &e) || e.Class != Refused || e.Status != status {
					t.Errorf("%s answered %d: got %v", name, status, err)
					continue
				}
				noLeak(t, e)
			}
		}
	}
	if got := other.Requests(); len(got) != 0 {
		t.Errorf("the other server got %d requests, such as %s", len(got), got[0])
	}
}

// requests returns every kind of request to the server at url.
func requests(t *testing.T, url string) map[string]func(*http.Client) error {
	return map[string]func(*http.Client) error{
		"token": func(c *http.Client) error {
			_, err := RequestToken(t.Context(), c, request(url))
			return err
		},
		"revocation": func(c *http.Client) error {
			return RequestRevocation(t.Context(), c, request(url))
		},
		"introspection": func(c *http.Client) error {
			_, err := RequestIntrospection(t.Context(), c, request(url))
			return err
		},
	}
}

// An error names what was asked: neither a revocation nor an introspection requests a
// token.
func TestErrorsNameTheEndpoint(t *testing.T) {
	down := wiretest.Serve(t, "")
	failing := wiretest.Serve(t, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
	for name, want := range map[string]struct{ down, failing string }{
		"token":         {"requesting a token: EOF", "token endpoint answered 503 Service Unavailable"},
		"revocation":    {"asking the revocation endpoint: EOF", "revocation endpoint answered 503 Service Unavailable"},
		"introspection": {"asking the introspection endpoint: EOF", "introspection endpoint answered 503 Service Unavailable"},
	} {
		if err := requests(t, down.URL)[name](NewClient(nil)); err == nil || err.Error() != want.down {
			t.Errorf("%s: got %v, want %s", name, err, want.down)
		}
		if err := requests(t, failing.URL)[name](NewClient(nil)); err == nil || err.Error() != want.failing {
			t.Errorf("%s: got %v, want %s", name, err, want.failing)
		}
	}
}

// What is not HTTP, or breaks off, is transient; nothing of it is shown.
func TestBrokenAnswers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for answer, want := range map[string]string{
		"":                                       "EOF",
		"MARKER s3cret\r\n\r\n":                  "not valid HTTP",
		"HTTP/1.1 MARKER\r\n\r\n":                "not valid HTTP",
		ok + "MARKER\r\n\r\n":                    "not valid HTTP",
		ok + "Content-Length: MARKER\r\n\r\n":    "not valid HTTP",
		ok + "Transfer-Encoding: MARKER\r\n\r\n": "not valid HTTP",
		"HTTP/1.1 302 Found\r\nLocation: http://MARKER.example/%zz\r\n\r\n":          "not valid HTTP",
		ok + "Content-Length: 99\r\n\r\n{\"access_token\":\"MARKER\"}":               "reading the answer: unexpected EOF",
		ok + "Transfer-Encoding: chunked\r\n\r\nMARKER\r\n":                          "not valid HTTP",
		ok + "X: " + strings.Repeat("MARKER", 20_000) + "\r\n\r\n":                   "not valid HTTP",
		"HTTP/1.1 401 Unauthorized\r\nContent-Length: 99\r\n\r\n{\"error\":\"MARKER": "reading the answer: unexpected EOF",
	} {
		server := wiretest.Serve(t, answer)
		for name, do := range requests(t, server.URL) {
			var e *Error
			if err := do(NewClient(nil)); !errors.As(err, &e) || e.Class != Transient || !strings.Contains(e.Error(), want) {
				t.Errorf("%s answered %.80q: got %v, want %s", name, answer, err, want)
				continue
			}
			noLeak(t, e)
		}
	}
}

func TestHugeAnswerKeepsWhatItsHeaderAsksFor(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "30")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write(make([]byte, 2*maxBody))
	}))
	defer server.Close()
	_, err := RequestToken(t.Context(), NewClient(nil), Request{URL: server.URL})
	var e *Error
	if !errors.As(err, &e) || e.Status != http.StatusServiceUnavailable || e.RetryAfter != 30*time.Second {
		t.Errorf("got %#v, want status 503 and a wait of 30s", e)
	}
}

func TestNoAnswer(t *testing.T) {
	const closed = "http://userinf0:s3cret@127.0.0.1:1/MARKER" // a port that nobody is given
	for target, want := range map[string]string{
		closed:                                "refused",
		"http://userinf0:pa/MARKER@x.example": "not a URL",
		"http://userinf0:%zzMARKER@x.example": "not a URL",
		"marker://userinf0:s3cret@x.example":  "not valid HTTP",
	} {
		for name, do := range requests(t, target) {
			var e *Error
			if err := do(NewClient(nil)); !errors.As(err, &e) || e.Class != Transient || e.Status != 0 || !strings.Contains(e.Error(), want) {
				t.Errorf("%s to %s: got %v, want %s", name, target, err, want)
				continue
			}
			noLeak(t, e)
		}
	}
}

func TestDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := NewClient(nil)
		client.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		start := time.Now()
		_, err := RequestToken(ctx, client, request("http://auth.example"))
		var e *Error
		if !errors.As(err, &e) || e.Class != Transient || !strings.Contains(e.Error(), "no answer within token_timeout") {
			t.Errorf("got %v", err)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("took %v", took)
		}

		ctx, cancel = context.WithCancel(t.Context())
		cancel()
		if _, err := RequestToken(ctx, client, request("http://auth.example")); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: got %v", err)
		}
	})
}

func TestTLS(t *testing.T) {
	serve := func(maxVersion uint16) (*httptest.Server, *x509.CertPool) {
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"access_token":"tok-1"}`)
		}))
		server.TLS = &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: maxVersion}
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.StartTLS()
		t.Cleanup(server.Close)
		roots := x509.NewCertPool()
		roots.AddCert(server.Certificate())
		return server, roots
	}
	server, roots := serve(tls.VersionTLS13)
	old, oldRoots := serve(tls.VersionTLS11)
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()

	if _, err := RequestToken(t.Context(), NewClient(roots), request(server.URL)); err != nil {
		t.Errorf("with its CA: %v", err)
	}
	for name, test := range map[string]struct {
		url   string
		roots *x509.CertPool
		want  string
	}{
		"unknown CA":   {server.URL, nil, "certificate"},
		"wrong name":   {strings.Replace(server.URL, "127.0.0.1", "localhost", 1), roots, "not localhost"},
		"TLS 1.1":      {old.URL, oldRoots, "protocol version"},
		"plain server": {strings.Replace(plain.URL, "http", "https", 1), roots, "HTTP response to HTTPS client"},
	} {
		_, err := RequestToken(t.Context(), NewClient(test.roots), request(test.url))
		var e *Error
		if !errors.As(err, &e) || e.Class != Transient || !strings.Contains(e.Error(), test.want) {
			t.Errorf("%s: got %v, want %s", name, err, test.want)
			continue
		}
		noLeak(t, e)
	}
}

func TestProxyRefuses(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusProxyAuthRequired)
		_, _ = io.WriteString(w, "MARKER")
	}))
	defer proxy.Close()
	client := NewClient(nil)
	client.Transport.(*http.Transport).Proxy = func(*http.Request) (*url.URL, error) {
		return url.Parse(strings.Replace(proxy.URL, "://", "://userinf0:s3cret@", 1))
	}
	_, err := RequestToken(t.Context(), client, request("https://auth.example"))
	var e *Error
	if !errors.As(err, &e) || e.Class != Transient || !strings.Contains(e.Error(), "proxy of this host answered 407 Proxy Authentication Required") {
		t.Fatalf("got %v", err)
	}
	noLeak(t, e)
}

// closeRecorder is a body that notes that it was closed.
type closeRecorder struct {
	io.Reader
	closed bool
}

func (b *closeRecorder) Close() error {
	b.closed = true
	return nil
}

// A body that is not closed holds its connection, above all one that is too
// large to be read to its end.
func TestBodyIsClosed(t *testing.T) {
	for _, answer := range []string{`{"access_token":"tok-1"}`, strings.Repeat(" ", 2*maxBody)} {
		body := &closeRecorder{Reader: strings.NewReader(answer)}
		client := &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusOK, Body: body}, nil
		})}
		_, err := RequestToken(t.Context(), client, request("http://auth.example"))
		if (err == nil) != (len(answer) < maxBody) || !body.closed {
			t.Errorf("%d bytes: %v, closed: %t", len(answer), err, body.closed)
		}
	}
}

func TestRequestHeaders(t *testing.T) {
	for name, test := range map[string]struct{ header, want http.Header }{
		"defaults": {nil, http.Header{"User-Agent": {"caddy-egress"}, "Accept": {"application/json"}}},
		"own":      {http.Header{"User-Agent": {"x"}, "Accept": {"y"}}, http.Header{"User-Agent": {"x"}, "Accept": {"y"}}},
	} {
		client := &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
			test.want.Set("Content-Type", "application/x-www-form-urlencoded")
			if !reflect.DeepEqual(r.Header, test.want) {
				t.Errorf("%s: got %v, want %v", name, r.Header, test.want)
			}
			return nil, io.EOF
		})}
		_, _ = RequestToken(t.Context(), client, Request{URL: "http://auth.example", Header: test.header})
	}
}

// A dead connection must not be used again, least of all by several credentials.
func TestEachRequestHasAConnectionOfItsOwn(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		var connections atomic.Int32
		both := make(chan struct{})
		var arrived atomic.Int32
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 2 != http2 {
				t.Errorf("asked over %s", r.Proto)
			}
			if arrived.Add(1) == 2 {
				close(both)
			}
			<-both // so that they are under way at the same time
			_, _ = io.WriteString(w, `{"access_token":"tok-1"}`)
		}))
		server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				connections.Add(1)
			}
		}
		roots := x509.NewCertPool()
		if http2 {
			server.EnableHTTP2 = true
			server.StartTLS()
			roots.AddCert(server.Certificate())
		} else {
			server.Start()
		}
		defer server.Close()
		client := NewClient(roots)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				if _, err := RequestToken(t.Context(), client, request(server.URL)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if _, err := RequestToken(t.Context(), client, request(server.URL)); err != nil {
			t.Error(err)
		}
		if got := connections.Load(); got != 3 {
			t.Errorf("HTTP/2 %v: 3 requests over %d connections", http2, got)
		}
	}
}

// A connection that is kept between token requests outlives a configuration.
func TestNoConnectionIsKept(t *testing.T) {
	closed := make(chan struct{}, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		const body = `{"access_token":"tok-1"}`
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = io.WriteString(w, body)
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			closed <- struct{}{}
		}
	}
	server.Start()
	defer server.Close()
	if _, err := RequestToken(t.Context(), NewClient(nil), request(server.URL)); err != nil {
		t.Fatal(err)
	}
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Error("the connection is still open")
	}
}

// slowListener accepts connections whose first answer is held back until gate is
// closed.
type slowListener struct {
	net.Listener
	gate     chan struct{}
	accepted func()
}

func (l slowListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	l.accepted()
	return slowConn{conn, l.gate}, err
}

type slowConn struct {
	net.Conn
	gate chan struct{}
}

func (c slowConn) Write(p []byte) (int, error) {
	<-c.gate
	return c.Conn.Write(p)
}

// An http.Transport goes on to connect when the request has ended, and keeps
// what it gets for another one: with HTTP/2, even if it is told to keep nothing.
func TestConnectionsEndWithTheirRequest(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		var mu sync.Mutex
		open, connections := make(map[net.Conn]bool), 0
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"access_token":"tok-1"}`)
		}))
		gate := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		server.Listener = slowListener{server.Listener, gate, cancel} // the first request ends in its handshake
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.Config.ConnState = func(conn net.Conn, state http.ConnState) {
			mu.Lock()
			defer mu.Unlock()
			switch state {
			case http.StateNew:
				connections++
				open[conn] = true
			case http.StateClosed:
				delete(open, conn)
			}
		}
		server.EnableHTTP2 = http2
		server.StartTLS()
		defer server.Close()
		roots := x509.NewCertPool()
		roots.AddCert(server.Certificate())
		client := NewClient(roots)

		if _, err := RequestToken(ctx, client, request(server.URL)); err == nil {
			t.Error("a request was answered in the handshake")
		}
		close(gate)
		deadline := time.Now().Add(20 * time.Second)
		for left := -1; left != 0; time.Sleep(time.Millisecond) {
			mu.Lock()
			left = len(open)
			mu.Unlock()
			if time.Now().After(deadline) {
				t.Errorf("HTTP/2 %v: %d connections are open after the request", http2, left)
				break
			}
		}
		if _, err := RequestToken(t.Context(), client, request(server.URL)); err != nil {
			t.Error(err)
		}
		if connections != 2 {
			t.Errorf("HTTP/2 %v: two requests over %d connections", http2, connections)
		}
	}
}
