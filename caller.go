package egress

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/caddy-egress/caddy-egress/internal/option"
)

// Caller is an application that the gateway knows, by what it proves: a key, a
// client certificate, a user name, an address. Kinds of proof add up, so that
// all that are given have to hold; of the values of one kind, one has to. A
// caller needs at least one kind.
type Caller struct {
	// What the application sends instead of a credential of the API, and what it
	// sent before: both count, so that a key can be replaced without a gap. A key
	// has 20 to 512 visible characters of ASCII and belongs to one caller. Give it
	// as {file./path}, which is read again within a second of a change, without a
	// reload, or as {env.NAME}.
	//
	// It is looked for in `Authorization: Bearer <key>`, the password of
	// `Authorization: Basic`, `X-API-Key`, and the headers in which the API's SDKs
	// send their own, such as Voucherify's `X-App-Token` and `X-Client-Token`. The
	// directive egress_token exchanges it for a token that proves the same.
	//
	// The one before may have no value, between two changes.
	Key []string `json:"key,omitempty"`

	// Names in a client certificate that the server has verified, among its
	// subject alternative names: DNS names, URIs, e-mail and IP addresses. A
	// certificate that the server did not verify proves nothing.
	ClientCert []string `json:"client_cert,omitempty"`

	// Users that an authentication handler of Caddy, such as basic_auth, has
	// identified: the value of {http.auth.user.id}.
	User []string `json:"user,omitempty"`

	// Addresses and ranges of the peer, or `unix` for clients of a unix socket. In
	// a Caddyfile, `private_ranges` stands for the private ranges of IPv4 and IPv6.
	Clients []string `json:"clients,omitempty"`
}

const (
	// anyCaller stands for any caller in a grant.
	anyCaller = "*"

	minKey, maxKey = 20, 512
)

// checkCallerName returns an error if name cannot name a caller, which appears
// in metrics, in logs and as an OAuth client identifier.
func checkCallerName(name string) error {
	if !credentialName.MatchString(name) {
		return fmt.Errorf("caller %s: a name has up to %d letters, digits, dots, underscores and hyphens", unlessKey(name), maxCredentialName)
	}
	return nil
}

// unlessKey returns value in quotes for an error, or its length if it is long
// enough to be a key.
func unlessKey(value string) string {
	if len(value) >= minKey {
		return fmt.Sprintf("of %d characters", len(value))
	}
	return strconv.Quote(value)
}

// Options returns the options of a caller in a Caddyfile.
func (c *Caller) Options() option.Table {
	return option.Table{
		"key":         stringsOf(&c.Key),
		"client_cert": stringsOf(&c.ClientCert),
		"user":        stringsOf(&c.User),
		"clients":     ranges(&c.Clients),
	}
}

// validate returns an error that names the first option that is wrong.
func (c *Caller) validate() error {
	switch {
	case c == nil || len(c.Key)+len(c.ClientCert)+len(c.User)+len(c.Clients) == 0:
		return fmt.Errorf("needs a key, client_cert, user or clients to be known by")
	case len(c.Key) > 2:
		return option.Errorf("key", "takes two values at most, the key and the one before")
	case slices.Contains(c.Clients, anyValue):
		return option.Errorf("clients", "any proves nothing; leave it out")
	}
	if slices.Contains(c.User, "") {
		return option.Errorf("user", "a value is empty")
	}
	for _, user := range c.User {
		if strings.ContainsAny(user, "{}") {
			return option.Errorf("user", "%s: placeholders are not supported", unlessKey(user))
		}
	}
	for _, name := range c.ClientCert {
		if _, err := subjectName(name); err != nil {
			return err
		}
	}
	if c.Clients == nil {
		return nil
	}
	_, err := parseClients(c.Clients)
	return err
}
