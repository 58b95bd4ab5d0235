package tokenprovider

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// maxBody bounds the answer of a token endpoint. Real ones have a few KiB.
const maxBody = 1 << 20

// Request is a form posted to an authorization server. It holds secrets and is
// never printed or logged.
type Request struct {
	URL    string
	Header http.Header
	Form   url.Values

	// Errors are those of the server that RFC 6749 §5.2 does not have.
	Errors ErrorFormat

	// RetryHeaders are as those of API.
	RetryHeaders []string

	// ClientAdvice is what a person can do where the server does not accept how the
	// client authenticates. Empty: to check its identifier and its secret.
	ClientAdvice string
}

// response is the answer of an authorization server, its body read.
type response struct {
	request  Request
	sent     time.Time // when the request was sent
	received time.Time // when its header was there
	status   int
	header   http.Header
	body     []byte
}

// NewClient returns the HTTP client for one authorization server: TLS 1.2 or
// newer, verified against roots (nil: those of the system), proxies as in the
// environment. It follows no redirect, since that would post the secret to
// another place, and each request has a connection of its own: one kept between
// requests, which are rare, would be stale when it is needed; see connections.
func NewClient(roots *x509.CertPool) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			DialContext:            newDial(new(net.Dialer).DialContext),
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
			TLSHandshakeTimeout:    5 * time.Second,
			ForceAttemptHTTP2:      true,
			DisableKeepAlives:      true,
			DisableCompression:     true, // answers are small, and identity is bounded as read
			MaxResponseHeaderBytes: 64 << 10,
			OnProxyConnectResponse: refusedByProxy,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// PresentCertificate has client, which NewClient has made, authenticate by the
// certificate that get returns at each TLS handshake in which a server asks for one.
func PresentCertificate(client *http.Client, get func(*tls.CertificateRequestInfo) (*tls.Certificate, error)) {
	client.Transport.(*http.Transport).TLSClientConfig.GetClientCertificate = get
}

// RequestToken posts one token request and reads the token out of the answer.
// The error is an *Error.
func RequestToken(ctx context.Context, client *http.Client, r Request) (*Token, error) {
	resp, err := post(ctx, client, r)
	if err != nil {
		return nil, err
	}
	return parseToken(resp)
}

// RequestRevocation posts one revocation request (RFC 7009). A status in gone
// means that there was nothing left to revoke, which is a success.
func RequestRevocation(ctx context.Context, client *http.Client, r Request, gone ...int) error {
	resp, err := post(ctx, client, r)
	if err != nil {
		return at(revocationEndpoint, err)
	}
	if resp.status/100 == 2 {
		return nil
	}
	if slices.Contains(gone, resp.status) {
		return nil
	}
	return at(revocationEndpoint, parseFailure(resp))
}

// RequestIntrospection posts one introspection request (RFC 7662).
func RequestIntrospection(ctx context.Context, client *http.Client, r Request) (*Introspection, error) {
	resp, err := post(ctx, client, r)
	if err != nil {
		return nil, at(introspectionEndpoint, err)
	}
	if resp.status/100 != 2 {
		return nil, at(introspectionEndpoint, parseFailure(resp))
	}
	in, err := parseIntrospection(resp)
	return in, at(introspectionEndpoint, err)
}

// post sends r and reads the answer, whatever its status.
func post(ctx context.Context, client *http.Client, r Request) (*response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.URL, strings.NewReader(r.Form.Encode()))
	if err != nil {
		return nil, &Error{Class: Transient, Err: errors.New("the endpoint is not a URL")}
	}
	maps.Copy(req.Header, r.Header)
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header.Set("User-Agent", DefaultUserAgent)
	}
	if _, ok := req.Header["Accept"]; !ok {
		req.Header.Set("Accept", "application/json")
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")

	var cs connections
	defer cs.end()
	sent := time.Now()
	resp, err := cs.client(ctx, client).Do(req)
	received := time.Now()
	if err != nil {
		return nil, networkError(ctx, client, err)
	}
	defer resp.Body.Close()

	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, networkError(ctx, client, fmt.Errorf("reading the answer: %w", err))
	}
	answer := &response{request: r, sent: sent, received: received, status: resp.StatusCode, header: resp.Header, body: body}
	if len(body) > maxBody {
		return nil, malformed(answer, "the answer is larger than 1 MiB")
	}
	return answer, nil
}

// DefaultUserAgent names this software to authorization servers.
const DefaultUserAgent = "caddy-egress"

// networkError is the failure of a request without an answer. A deadline gets
// words of its own: those of net/http read like a bug.
func networkError(ctx context.Context, client *http.Client, err error) *Error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &Error{Class: Transient, Err: errors.New("no answer within token_timeout")}
	}
	// net/http does not export its error for a server that hangs up before the request
	// is sent
	if strings.HasSuffix(err.Error(), "http: server closed idle connection") {
		err = io.EOF
	}
	return &Error{Class: Transient, Err: cause(err), Hint: certificateAdvice(ctx, client, err)}
}

// cause returns what err may show. Faults of the network, of TLS and of a
// certificate are shown as they are, without the URL that net/http puts in front.
// Other errors may quote what the other side sent, such as a line that is not
// HTTP or a Location that is not a URL, and are replaced by words of our own.
func cause(err error) error {
	for urlErr := (*url.Error)(nil); errors.As(err, &urlErr); {
		err = urlErr.Err
	}
	var (
		network     net.Error
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		proxy       proxyError
	)
	switch {
	case errors.As(err, &network), errors.As(err, &certificate), errors.As(err, &record), errors.As(err, &proxy),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, context.Canceled), errors.Is(err, http.ErrSchemeMismatch):
		return err
	}
	return errors.New("the connection broke, or the answer is not valid HTTP")
}

// proxyError is the status with which a proxy refused to connect.
type proxyError int

// Error implements error.
func (e proxyError) Error() string {
	return fmt.Sprintf("the proxy of this host answered %d %s", int(e), http.StatusText(int(e)))
}

// refusedByProxy makes an error of a proxy's refusal before net/http makes one
// of the proxy's own words.
func refusedByProxy(_ context.Context, _ *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return proxyError(resp.StatusCode)
	}
	return nil
}
