package tokenprovider

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// nameserver answers every question with 127.0.0.1, except for the first of each
// type, which a dead one gets.
func nameserver(t *testing.T) (address string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() {
		conn.Close()
		wg.Wait()
	})
	wg.Go(func() {
		asked := make(map[dnsmessage.Type]bool)
		buffer := make([]byte, 1<<10)
		for {
			n, client, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if err := m.Unpack(buffer[:n]); err != nil || len(m.Questions) != 1 {
				t.Errorf("asked %v, %v", m, err)
				return
			}
			q := m.Questions[0]
			if !asked[q.Type] {
				asked[q.Type] = true
				continue
			}
			m.Response, m.Additionals = true, nil
			if q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class},
					Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
				}}
			}
			answer, err := m.Pack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = conn.WriteTo(answer, client)
		}
	})
	return conn.LocalAddr().String()
}

// The second nameserver has its turn within token_timeout.
func TestDeadNameserver(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"access_token":"tok-1"}`)
	}))
	defer server.Close()
	address := nameserver(t)
	client := NewClient(nil)
	client.Transport.(*http.Transport).DialContext = newDial(func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", address)
	})

	// less than the 5 seconds that Go gives each of them
	ctx, cancel := context.WithTimeout(t.Context(), 4500*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := RequestToken(ctx, client, request(strings.Replace(server.URL, "127.0.0.1", "auth.example", 1)))
	t.Logf("took %v", time.Since(start))
	if err != nil {
		t.Error(err)
	}
}
