package egress

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// maxWriteErrorWait bounds how long the error of a write waits for the reader.
// The end of the connection is there to be read by then, so it is soon found.
const maxWriteErrorWait = time.Second

// keepAnswers has t read what an API has said before it closed a connection: an
// API may answer 401 and hang up while the body is still being sent, and then
// net/http returns the error of the write instead of the answer, if it sees that
// first. It has no effect on connections that t does not dial by DialContext:
// TLS with a proxy protocol or a placeholder in tls_server_name.
func keepAnswers(t *http.Transport) {
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &apiConn{Conn: conn, closed: make(chan struct{})}, nil
	}
}

// apiConn is a connection that reports its end to the reader before the writer.
type apiConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{} // by this side
}

// Write implements io.Writer. Once the other side takes no more, it is for the
// reader to find what it has said last, and then to close the connection.
func (c *apiConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err == nil || errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err
	}
	timer := time.NewTimer(maxWriteErrorWait)
	defer timer.Stop()
	select {
	case <-c.closed:
	case <-timer.C:
	}
	return n, err
}

// CloseWrite ends what this side sends, for connections that were switched to
// another protocol.
func (c *apiConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return http.ErrNotSupported
}

// Close implements io.Closer.
func (c *apiConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
