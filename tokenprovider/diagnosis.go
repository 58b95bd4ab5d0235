package tokenprovider

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"time"
)

// minSkew is how far two clocks have to differ to be the likely reason why an
// assertion is refused: servers allow for less.
const minSkew = 30 * time.Second

// authenticated are the error codes of a server that has accepted the client, unless
// it says so with 401: Keycloak and Auth0 answer a wrong secret with some of them.
var authenticated = []string{"invalid_scope", "unauthorized_client", "unsupported_grant_type", "invalid_target", "access_denied"}

// diagnose adds to e, the failure that r is, what this side knows of why the client
// was not accepted: that its assertion has expired, or that the clocks differ.
func diagnose(e *Error, r *response) {
	if e.Class != Refused || e.Status/100 == 3 || e.Status != http.StatusUnauthorized && slices.Contains(authenticated, e.Code) {
		return
	}
	if e.UnknownClient() {
		e.Hint = cmp.Or(e.Hint, r.request.ClientAdvice)
	}
	times, err := parseAssertion(r.request.Form.Get("client_assertion"))
	if err != nil { // there is none
		return
	}
	skew := r.skew()
	there := r.received.Add(skew)
	expired := !times.expires.IsZero() && !times.expires.After(r.received) && !times.expires.After(there) // by both clocks

	var reasons, advice []string
	switch {
	case expired:
		reasons = append(reasons, "the client assertion expired at "+times.expires.UTC().Format(time.RFC3339))
		advice = append(advice, "look at what renews the client assertion: it has not done so in time")
	case skew == 0 && times.notBefore.Sub(there) >= minSkew:
		reasons = append(reasons, "the client assertion is not valid before "+times.notBefore.UTC().Format(time.RFC3339))
		advice = append(advice, "look at the clock of the machine that issues the client assertion")
	}
	if skew != 0 {
		direction := "behind"
		if skew < 0 {
			direction = "ahead of"
		}
		reasons = append(reasons, fmt.Sprintf("the clock of this machine is %v %s that of the server", skew.Abs(), direction))
		advice = append(advice, "set the clock of this machine, which says when an assertion is valid")
	}
	if reasons == nil {
		return
	}
	if !expired && r.request.ClientAdvice != "" {
		advice = append(advice, r.request.ClientAdvice)
	}
	e.Reason, e.Hint = strings.Join(reasons, "; "), strings.Join(advice, "; else ")
}

// skew returns by how much the server's clock is ahead of this machine's, as far as
// its Date says: below zero where it is behind, and 0 where the two are about the same.
func (r *response) skew() time.Duration {
	date, err := http.ParseTime(r.header.Get("Date"))
	if err != nil {
		return 0
	}
	// a Date has no fractions of a second, and may be from any moment in between
	first, last := r.sent.Truncate(time.Second), r.received.Truncate(time.Second)
	var skew time.Duration
	switch {
	case date.After(last):
		skew = date.Sub(last)
	case date.Before(first):
		skew = date.Sub(first)
	}
	if skew.Abs() < minSkew {
		return 0
	}
	return skew
}

const (
	adviceCertificate = "check the certificate of token_cert: that it is valid, and that the server trusts who has issued it"
	adviceConnection  = "check that this host reaches the token endpoint (DNS, firewall, proxy, certificates), and that the server accepts the certificate of token_cert: some hang up if they do not"
)

// certificateAdvice says what a person can do about err, for which there was no
// answer, if the reason may be the client's certificate; else nothing.
func certificateAdvice(ctx context.Context, client *http.Client, err error) string {
	// the alerts of TLS have no type that is exported
	if remote := (*net.OpError)(nil); errors.As(err, &remote) && remote.Op == "remote error" && remote.Err != nil {
		alert := remote.Err.Error()
		if strings.HasSuffix(alert, "certificate required") {
			return "the token endpoint wants a certificate of the client: set token_cert"
		}
		if presentsCertificate(client) && (strings.Contains(alert, "certificate") || strings.HasSuffix(alert, "handshake failure") || strings.HasSuffix(alert, "access denied")) {
			return adviceCertificate
		}
	}
	hungUp := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	if ctx.Err() == nil && hungUp && presentsCertificate(client) {
		return adviceConnection
	}
	return ""
}

// presentsCertificate reports whether client has a certificate.
func presentsCertificate(client *http.Client) bool {
	transport, ok := client.Transport.(*http.Transport)
	return ok && transport.TLSClientConfig != nil && transport.TLSClientConfig.GetClientCertificate != nil
}
