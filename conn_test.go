package egress

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// failingConn is a connection whose writes fail.
type failingConn struct {
	net.Conn
	err    error
	closed atomic.Bool
}

func (c *failingConn) Write(p []byte) (int, error) { return len(p) / 2, c.err }

func (c *failingConn) Close() error {
	c.closed.Store(true)
	return nil
}

func TestWriteErrorsComeAfterTheReader(t *testing.T) {
	for name, test := range map[string]struct {
		err   error
		close time.Duration // 0: never
		want  time.Duration
	}{
		"none":                        {nil, 0, 0},
		"the other side has closed":   {syscall.EPIPE, 0, time.Second},
		"the reader closes":           {syscall.ECONNRESET, 10 * time.Millisecond, 10 * time.Millisecond},
		"this side has closed":        {net.ErrClosed, 0, 0},
		"a time-out of this side":     {os.ErrDeadlineExceeded, 0, 0},
		"the reader closes too late":  {syscall.EPIPE, time.Minute, time.Second},
		"the reader closes at once":   {syscall.EPIPE, 1, 1},
		"an error of another kind":    {errors.New("broken"), 0, time.Second},
		"closed before it has failed": {syscall.EPIPE, -1, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			inner := &failingConn{err: test.err}
			transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return inner, nil }}
			keepAnswers(transport)
			conn, err := transport.DialContext(t.Context(), "tcp", "api.example.com:443")
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case test.close < 0:
				_ = conn.Close()
			case test.close > 0:
				time.AfterFunc(test.close, func() { _ = conn.Close() })
			}
			start := time.Now()
			n, err := conn.Write(make([]byte, 10))
			if took := time.Since(start); n != 5 || !errors.Is(err, test.err) || took != test.want {
				t.Errorf("%s: wrote %d, %v after %v, want 5, %v after %v", name, n, err, took, test.err, test.want)
			}
			time.Sleep(2 * time.Minute)
			_ = conn.Close() // a second time, where it was closed
			if !inner.closed.Load() {
				t.Errorf("%s: the connection is not closed", name)
			}
		})
	}
}

func TestErrorsOfDialingPass(t *testing.T) {
	refused := errors.New("refused")
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, refused }}
	keepAnswers(transport)
	if conn, err := transport.DialContext(t.Context(), "tcp", "api.example.com:443"); conn != nil || !errors.Is(err, refused) {
		t.Errorf("got %v, %v", conn, err)
	}
}
