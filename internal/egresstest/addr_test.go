package egresstest

import (
	"net"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

func TestFreeAddr(t *testing.T) {
	addr := FreeAddr(t)
	if conn, err := net.Dial("tcp", addr); err == nil {
		conn.Close()
		t.Error("somebody listens")
	}
	if l, err := net.Listen("tcp", addr); err == nil {
		l.Close()
		t.Error("somebody else can listen")
	}
	parsed, err := caddy.ParseNetworkAddress(addr)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l, err := parsed.Listen(t.Context(), 0, net.ListenConfig{})
		if err != nil {
			t.Fatal(err)
		}
		for range 20 { // none goes to the socket that holds the port
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			conn.Close()
		}
		if err := l.(net.Listener).Close(); err != nil {
			t.Error(err)
		}
	}
}
