package egresstest

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Wire is an HTTP/1 connection that sends what it is given, byte for byte.
type Wire struct {
	t      testing.TB
	dial   func() (net.Conn, error)
	conn   net.Conn
	reader *bufio.Reader
}

// NewWire returns a wire that dials when it is first used.
func NewWire(t testing.TB, dial func() (net.Conn, error)) *Wire {
	t.Helper()
	w := &Wire{t: t, dial: dial}
	t.Cleanup(w.hangUp)
	return w
}

// From dials address from the source address local.
func From(local, address string) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
		return dialer.Dial("tcp", address)
	}
}

func (w *Wire) hangUp() {
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

// Send sends request and returns the answer with its body read. A connection
// that an earlier request has ended is made anew.
func (w *Wire) Send(request string) (*http.Response, string) {
	w.t.Helper()
	resp, body, err := w.TrySend(request)
	if err != nil {
		w.t.Fatalf("%q: %v", request, err)
	}
	return resp, body
}

// TrySend is [Wire.Send] for requests that may fail, and for fuzz targets.
func (w *Wire) TrySend(request string) (*http.Response, string, error) {
	for {
		fresh := w.conn == nil
		resp, body, err := w.try(request)
		if err == nil && resp.Close || err != nil {
			w.hangUp()
		}
		if err == nil || fresh {
			return resp, body, err
		}
	}
}

func (w *Wire) try(request string) (*http.Response, string, error) {
	if w.conn == nil {
		conn, err := w.dial()
		if err != nil {
			return nil, "", err
		}
		w.conn, w.reader = conn, bufio.NewReader(conn)
	}
	_ = w.conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(w.conn, request); err != nil {
		return nil, "", err
	}
	method, _, _ := strings.Cut(request, " ")
	resp, err := http.ReadResponse(w.reader, &http.Request{Method: method})
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// Port returns the port of a host:port or of a URL without a path.
func Port(address string) string { return address[strings.LastIndex(address, ":")+1:] }
