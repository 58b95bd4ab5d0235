package e2e_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/internal/egresstest"
)

// JDK's HttpClient, Apache's and curl --http2 offer to upgrade with every request
// to a plain http URL. An offer may be ignored (RFC 9110 §7.8), and is.
func TestOffersToUpgradeAreIgnored(t *testing.T) {
	api, endpoint := egresstest.NewRecorder(t), egresstest.NewTokens(t)
	g := egresstest.StartGateway(t, egresstest.Egress(api.URL, endpoint.URL, ""))
	w := g.Wire()
	for _, offer := range []string{
		"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
		"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
		"Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
		"Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
		"Connection: keep-alive, upgrade\r\nUpgrade: websocket, h2c\r\n",
		"Connection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n",
		"Upgrade: h2c\r\n",
		"Connection: Upgrade\r\nUpgrade:\r\n",
		"Connection: Upgrade\r\n",
	} {
		for _, message := range []string{
			"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n%s\r\n",
			"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n%sContent-Length: 5\r\n\r\nhello",
			"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n%sTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		} {
			request, before := fmt.Sprintf(message, offer), api.Count()
			resp, body := w.Send(request)
			if resp.StatusCode != http.StatusOK || api.Count() != before+1 {
				t.Fatalf("%q is answered %d %s; %d requests have reached the API", request, resp.StatusCode, body, api.Count()-before)
			}
			got, wantBody := api.Last(t), ""
			if strings.HasPrefix(request, "POST") {
				wantBody = "hello"
			}
			for _, name := range []string{"Upgrade", "Connection", "Http2-Settings"} {
				if values, ok := got.Header[name]; ok {
					t.Errorf("%q: the API got %s: %q", request, name, values)
				}
			}
			if got.Body != wantBody || !strings.HasPrefix(got.Header.Get("Authorization"), "Bearer "+egresstest.TokenPrefix) {
				t.Errorf("%q: the API got %+v", request, got)
			}
		}
	}
}

// startRawAPI starts an API that hands over each connection once it has read a
// request from it, and returns its URL.
func startRawAPI(t *testing.T, serve func(conn net.Conn, reader *bufio.Reader)) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				reader := bufio.NewReader(conn)
				if _, err := http.ReadRequest(reader); err == nil {
					serve(conn, reader)
				}
			}()
		}
	}()
	return "http://" + listener.Addr().String()
}

// An API that switches protocols all the same does not get a connection to the
// client that no guard looks into.
func TestUnaskedSwitchOfProtocols(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	api := startRawAPI(t, func(conn net.Conn, _ *bufio.Reader) {
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn) // until the gateway hangs up
	})
	g := egresstest.StartGateway(t, egresstest.Egress(api, endpoint.URL, ""))
	for _, offer := range []string{"Connection: Upgrade\r\nUpgrade: h2c\r\n", ""} {
		if status := g.Raw("GET /v1/x HTTP/1.1\r\nHost: localhost\r\n" + offer + "\r\n"); status != "HTTP/1.1 502 Bad Gateway" {
			t.Errorf("with %q: answered %q", offer, status)
		}
	}
}

// A client that has sent all it has still gets the rest.
func TestHalfCloseAfterASwitchOfProtocols(t *testing.T) {
	endpoint := egresstest.NewTokens(t)
	api := startRawAPI(t, func(conn net.Conn, reader *bufio.Reader) {
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		got, _ := io.ReadAll(reader) // until the client has sent all
		fmt.Fprintf(conn, "got %q, bye", got)
	})
	g := egresstest.StartGateway(t, egresstest.Egress(api, endpoint.URL, ""))
	conn, err := net.Dial("tcp", g.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "GET /v1/x HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	reader := bufio.NewReader(conn)
	if resp, err := http.ReadResponse(reader, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(resp, err)
	}
	_, _ = io.WriteString(conn, "hello")
	_ = conn.(*net.TCPConn).CloseWrite()
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if rest, err := io.ReadAll(reader); string(rest) != `got "hello", bye` {
		t.Errorf("got %q, error %v; want what the API says last", rest, err)
	}
}
