package tokenprovider

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"
)

const (
	// dialTimeout bounds looking a name up and connecting to it. It is longer
	// than the 5 s that the resolvers of Go and of most systems wait for one
	// nameserver, and leaves time for the rest of a token request of 10 s.
	dialTimeout = 8 * time.Second

	// nameserverTimeout bounds the wait for one nameserver, and so does a third
	// of the time that is left. The 5 s of Go's resolver would leave too little
	// for the next one, and all that comes after it.
	nameserverTimeout = 2 * time.Second
)

// dial is a function like DialContext of net.Dialer.
type dial func(ctx context.Context, network, address string) (net.Conn, error)

// newDial returns how token requests connect, and to nameservers by
// dialNameserver. Where Go uses the resolver of the system, that one decides how
// long to wait for a nameserver.
func newDial(dialNameserver dial) dial {
	type deadlineKey struct{} // a lookup has the values of ctx only
	dialer := &net.Dialer{Timeout: dialTimeout, Resolver: &net.Resolver{
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			wait := nameserverTimeout
			if deadline, ok := ctx.Value(deadlineKey{}).(time.Time); ok {
				wait = min(wait, time.Until(deadline)/3)
			}
			connecting, cancel := context.WithTimeout(ctx, wait) // over TCP, which may take as long
			defer cancel()
			conn, err := dialNameserver(connecting, network, address)
			if err != nil {
				return nil, err
			}
			// the resolver sets a deadline of its own once it has the connection
			time.AfterFunc(wait, func() { _ = conn.SetDeadline(time.Now()) })
			return conn, nil
		},
	}}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if deadline, ok := ctx.Deadline(); ok {
			ctx = context.WithValue(ctx, deadlineKey{}, deadline)
		}
		return dialer.DialContext(ctx, network, address)
	}
}

// connections are those of one request. They end with it, however far they are:
// an http.Transport goes on to connect for other requests, and keeps what it
// gets, with HTTP/2 even if DisableKeepAlives is set. A path that has died would
// be used again.
type connections struct {
	mu    sync.Mutex
	ended bool
	conns []net.Conn
}

// client returns a client like c for the request of ctx alone.
func (cs *connections) client(ctx context.Context, c *http.Client) *http.Client {
	transport, ok := c.Transport.(*http.Transport)
	if !ok {
		return c
	}
	own := transport.Clone()
	own.DialContext = func(_ context.Context, network, address string) (net.Conn, error) {
		conn, err := transport.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		cs.mu.Lock()
		defer cs.mu.Unlock()
		if cs.ended {
			_ = conn.Close()
			return nil, net.ErrClosed
		}
		cs.conns = append(cs.conns, conn)
		return conn, nil
	}
	if presentsCertificate(c) && own.Proxy != nil {
		hideCertificateFromProxy(own)
	}
	alone := *c
	alone.Transport = own
	return &alone
}

// hideCertificateFromProxy has t, the transport of one request, present its certificate
// to the endpoint alone: net/http uses one TLS configuration for that and for a proxy
// that is reached over TLS.
func hideCertificateFromProxy(t *http.Transport) {
	find := t.Proxy
	t.Proxy = func(r *http.Request) (*url.URL, error) {
		proxy, err := find(r)
		if err != nil || proxy == nil || proxy.Scheme != "https" {
			return proxy, err
		}
		t.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := t.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			config := t.TLSClientConfig.Clone()
			config.ServerName, config.GetClientCertificate, config.NextProtos = proxy.Hostname(), nil, nil
			return tls.Client(conn, config), nil // net/http shakes hands
		}
		return proxy, nil
	}
}

// end closes all of them.
func (cs *connections) end() {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.ended = true
	for _, conn := range cs.conns {
		_ = conn.Close()
	}
}
