package egress

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/internal/option"
)

// subjectName returns a subject alternative name as it is looked up: its kind, a
// space, and the name.
func subjectName(name string) (string, error) {
	addr, err := netip.ParseAddr(name)
	switch {
	case err == nil:
		return "ip " + addr.Unmap().WithZone("").String(), nil
	case name == "" || strings.ContainsAny(name, " *{}"):
		return "", option.Errorf("client_cert", "%q is not a DNS name, URI, e-mail or IP address; wildcards and placeholders are not supported", name)
	case strings.Contains(name, ":"):
		return "uri " + name, nil
	case strings.Contains(name, "@"):
		return "email " + name, nil
	}
	return "dns " + strings.ToLower(strings.TrimSuffix(name, ".")), nil
}

// appendName appends the nth subject alternative name of cert to to, as subjectName
// returns it, and reports whether there are as many.
func appendName(to []byte, cert *x509.Certificate, n int) ([]byte, bool) {
	if n < len(cert.DNSNames) {
		to = append(to, "dns "...)
		for _, c := range []byte(cert.DNSNames[n]) {
			if 'A' <= c && c <= 'Z' {
				c += 'a' - 'A'
			}
			to = append(to, c)
		}
		return to, true
	}
	n -= len(cert.DNSNames)
	if n < len(cert.URIs) {
		uri := cert.URIs[n]
		to = append(to, "uri "...)
		if uri.Host == "" || uri.Opaque != "" || uri.User != nil || uri.RawQuery != "" || uri.ForceQuery || uri.Fragment != "" {
			return append(to, uri.String()...), true
		}
		// as of SPIFFE: what String allocates would count for every request
		return append(append(append(append(to, uri.Scheme...), "://"...), uri.Host...), uri.EscapedPath()...), true
	}
	n -= len(cert.URIs)
	if n < len(cert.EmailAddresses) {
		return append(append(to, "email "...), cert.EmailAddresses[n]...), true
	}
	n -= len(cert.EmailAddresses)
	if n < len(cert.IPAddresses) {
		addr, _ := netip.AddrFromSlice(cert.IPAddresses[n]) // 4 or 16 bytes, as it was parsed
		return addr.Unmap().AppendTo(append(to, "ip "...)), true
	}
	return to, false
}

// maxName is the length of names that are looked up without an allocation.
const maxName = 256

// hasName reports whether cert, which may be nil, has one of names, which are as
// subjectName returns them.
func hasName(cert *x509.Certificate, names []string) bool {
	if cert == nil {
		return false
	}
	var storage [maxName]byte
	for n := 0; ; n++ {
		name, ok := appendName(storage[:0], cert, n)
		if !ok {
			return false
		}
		if slices.ContainsFunc(names, func(want string) bool { return string(name) == want }) { // allocates nothing
			return true
		}
	}
}

// ofCertificate returns the caller that a verified client certificate names, or nil.
func (cs *callers) ofCertificate(req *http.Request, repl *caddy.Replacer) *caller {
	cert := verifiedCertificate(req)
	if cert == nil {
		return nil
	}
	var storage [maxName]byte
	for n := 0; ; n++ {
		name, ok := appendName(storage[:0], cert, n)
		if !ok {
			return nil
		}
		for _, c := range cs.byCert[string(name)] {
			if c.holds(req, repl) {
				return c
			}
		}
	}
}

// withoutKey says what keeps a request without a key from being a caller's.
func (cs *callers) withoutKey(req *http.Request, repl *caddy.Replacer) (string, missingProof) {
	cert := verifiedCertificate(req)
	switch {
	case len(cs.byCert) == 0:
		return "; it has no key", missingKey
	case req.TLS == nil || len(req.TLS.PeerCertificates) == 0:
		return "; it has no key and no client certificate", missingKey
	case cert == nil:
		return "; it has no key, and its client certificate is not verified or has expired", missingKnownCertificate
	}
	var names []string
	for n := 0; ; n++ {
		name, ok := appendName(nil, cert, n)
		if !ok {
			break
		}
		for _, c := range cs.byCert[string(name)] {
			return fmt.Sprintf("; it has the certificate of %s, but not the %s that %[1]s has to prove as well", c.name, c.lacks(req, repl)), missingFurtherProof
		}
		if len(names) < mostNamesLogged {
			names = append(names, strconv.Quote(string(name)))
		}
	}
	if len(names) == 0 {
		return "; it has no key, and its client certificate has no subject alternative name", missingKnownCertificate
	}
	return "; it has no key, and no caller has a name of its client certificate: " + strings.Join(names, ", "), missingKnownCertificate
}

// mostNamesLogged is how many names of a client certificate a log line has.
const mostNamesLogged = 3

// verifiedCertificate returns the certificate of a client, if the server has
// verified it and it has not expired since: its connection may live longer.
func verifiedCertificate(req *http.Request) *x509.Certificate {
	if req.TLS == nil || !req.TLS.HandshakeComplete || len(req.TLS.VerifiedChains) == 0 {
		return nil
	}
	now := time.Now()
	for _, chain := range req.TLS.VerifiedChains {
		if len(chain) > 0 && !slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return now.After(c.NotAfter) }) {
			return chain[0]
		}
	}
	return nil
}
