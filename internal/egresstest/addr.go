package egresstest

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// FreeAddr returns a loopback address that the kernel picked. Until the test
// ends, only a server that sets SO_REUSEPORT can listen at it, as Caddy does.
// So neither another test nor an outgoing connection gets the port before, or
// between two runs of that server. Whoever connects meanwhile is refused.
func FreeAddr(t testing.TB) string {
	t.Helper()
	addr, release := reserve(t)
	t.Cleanup(release)
	return addr
}

// UnreservedAddr is [FreeAddr] for servers that do not set SO_REUSEPORT. Its port is
// not among those that the kernel picks, for connections and for other tests, so that
// the server finds it free again after a restart.
func UnreservedAddr(t testing.TB) string {
	t.Helper()
	const least, most = 10_000, 32_000 // the kernel picks from 32,768 on, unless configured otherwise
	for range 100 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(least+rand.IntN(most-least)))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		_ = l.Close()
		return addr
	}
	t.Fatal("no port is free")
	return ""
}

// reserve binds a socket and does not have it listen, so that it takes no
// connection from the server that does.
func reserve(t testing.TB) (addr string, release func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.CloseOnExec(fd)
	release = func() { _ = unix.Close(fd) }
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		release()
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		release()
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		release()
		t.Fatal(err)
	}
	in4, ok := name.(*unix.SockaddrInet4)
	if !ok {
		release()
		t.Fatalf("a socket of IPv4 has the name %T", name)
	}
	return (&net.TCPAddr{IP: in4.Addr[:], Port: in4.Port}).String(), release
}
