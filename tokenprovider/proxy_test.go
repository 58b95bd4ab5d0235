package tokenprovider

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
)

// The certificate is for the token endpoint, and not for a proxy that asks for one.
func TestProxyGetsNoCertificate(t *testing.T) {
	var shown atomic.Int64
	endpoint := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(r.TLS.PeerCertificates) != 1 {
			t.Error("the endpoint was shown no certificate")
		}
		fmt.Fprint(w, `{"access_token":"a-token","token_type":"bearer"}`)
	}))
	endpoint.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	endpoint.StartTLS()
	defer endpoint.Close()
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown.Add(int64(len(r.TLS.PeerCertificates)))
		there, err := net.Dial("tcp", r.Host)
		if err != nil {
			t.Error(err)
			return
		}
		defer there.Close()
		here, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer here.Close()
		fmt.Fprint(here, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(there, here) }()
		_, _ = io.Copy(here, there)
	}))
	proxy.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	proxy.StartTLS()
	defer proxy.Close()

	certificate := endpoint.TLS.Certificates[0]
	client := NewClient(endpoint.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs)
	PresentCertificate(client, func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil })
	at, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	client.Transport.(*http.Transport).Proxy = http.ProxyURL(at)
	if _, err := RequestToken(t.Context(), client, Request{URL: endpoint.URL}); err != nil {
		t.Fatal(err)
	}
	if shown.Load() != 0 {
		t.Error("the proxy was shown the certificate")
	}
}
