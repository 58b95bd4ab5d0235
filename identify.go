package egress

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// caller is a configured caller.
type caller struct {
	name    string
	label   any    // the name, for lookups that allocate nothing
	client  string // what is charged to it goes under this name; see call.client
	strong  bool   // it proves more than an address
	keyed   bool
	proofs  atomic.Pointer[[]*keyProof] // of its keys, the present one first
	names   []string                    // of a client certificate, as subjectName has them
	users   []string
	clients *clients // nil: any
}

// callers finds out who has sent a request. A nil one knows nobody.
//
// Each caller is found by the strongest kind of what it proves, in a time that
// does not depend on how many there are. Of several that a request proves, the
// one with the stronger proof counts: a key before a certificate, before a user,
// before an address; of addresses, the narrower range.
type callers struct {
	byName   map[string]*caller
	keys     callerKeys
	byCert   map[string][]*caller
	byUser   map[string][]*caller
	byRange  map[netip.Prefix][]*caller
	prefixes []int // lengths of the ranges, the narrowest first; those of IPv6 are above those of IPv4
	unix     []*caller
}

// newCallers returns the callers of a config, or nil if there are none.
func newCallers(configured map[string]*Caller, logger *zap.Logger) (*callers, error) {
	if len(configured) == 0 {
		return nil, nil
	}
	cs := &callers{
		byName: make(map[string]*caller), byCert: make(map[string][]*caller), byUser: make(map[string][]*caller),
		byRange: make(map[netip.Prefix][]*caller),
	}
	cs.keys.logger = logger
	for _, name := range slices.Sorted(maps.Keys(configured)) {
		if err := checkCallerName(name); err != nil {
			return nil, err
		}
		if err := cs.add(name, configured[name]); err != nil {
			return nil, fmt.Errorf("caller %s: %w", name, err)
		}
	}
	cs.keys.publish()
	return cs, nil
}

// add adds one caller.
func (cs *callers) add(name string, config *Caller) error {
	if err := config.validate(); err != nil {
		return err
	}
	c := &caller{
		name: name, label: name, client: "caller " + name, users: config.User, keyed: len(config.Key) > 0,
		strong: len(config.Key)+len(config.ClientCert)+len(config.User) > 0,
	}
	for _, value := range config.ClientCert {
		subject, err := subjectName(value)
		if err != nil {
			return err
		}
		c.names = append(c.names, subject)
	}
	if config.Clients != nil {
		parsed, err := parseClients(config.Clients)
		if err != nil {
			return err
		}
		c.clients = &parsed
	}
	if err := cs.keys.add(c, config.Key); err != nil {
		return err
	}
	cs.byName[name] = c

	index := func(by map[string][]*caller, value string) error {
		for _, other := range by[value] {
			if other != c && !c.differs(other) {
				return fmt.Errorf("cannot be distinguished from caller %s: both are known by %s, and nothing else tells them apart", other.name, value)
			}
		}
		by[value] = append(by[value], c)
		// those that prove more come first
		slices.SortStableFunc(by[value], func(a, b *caller) int { return b.kinds() - a.kinds() })
		return nil
	}
	switch {
	case c.keyed:
	case c.names != nil:
		for _, subject := range c.names {
			if err := index(cs.byCert, subject); err != nil {
				return err
			}
		}
	case c.users != nil:
		for _, user := range c.users {
			if err := index(cs.byUser, user); err != nil {
				return err
			}
		}
	default:
		return cs.addRanges(c)
	}
	return nil
}

// addRanges adds a caller that is known by its address alone.
func (cs *callers) addRanges(c *caller) error {
	if c.clients.unix {
		if len(cs.unix) > 0 {
			return fmt.Errorf("cannot be distinguished from caller %s: both are known by unix", cs.unix[0].name)
		}
		cs.unix = append(cs.unix, c)
	}
	for _, prefix := range c.clients.ranges {
		if others := cs.byRange[prefix]; len(others) > 0 && others[0] != c {
			return fmt.Errorf("cannot be distinguished from caller %s: both are known by %s", others[0].name, prefix)
		}
		cs.byRange[prefix] = []*caller{c}
		length := prefix.Bits()
		if prefix.Addr().Is6() {
			length += ipv6Length
		}
		if !slices.Contains(cs.prefixes, length) {
			cs.prefixes = append(cs.prefixes, length)
		}
	}
	slices.SortFunc(cs.prefixes, func(a, b int) int { return b - a })
	return nil
}

// differs reports whether no request can prove both callers, or one of them has to
// prove all that the other has, and more, and so comes first. The name that both are
// known by is not looked at.
func (c *caller) differs(other *caller) bool {
	more := c.users != nil && other.users == nil || c.clients != nil && other.clients == nil
	less := c.users == nil && other.users != nil || c.clients == nil && other.clients != nil
	if more != less {
		return true
	}
	disjointUsers := c.users != nil && other.users != nil && !slices.ContainsFunc(c.users, func(user string) bool { return slices.Contains(other.users, user) })
	return disjointUsers || c.clients != nil && other.clients != nil && !c.clients.overlap(other.clients)
}

// ipv6Length sets lengths of IPv6 prefixes apart from those of IPv4.
const ipv6Length = 1000

// kinds returns how many kinds of proof the caller has.
func (c *caller) kinds() (n int) {
	for _, has := range []bool{c.keyed, len(c.names) > 0, len(c.users) > 0, c.clients != nil} {
		if has {
			n++
		}
	}
	return n
}

// lacks returns the first kind of proof, besides the key, that the caller has to
// give and a request does not have; empty if all hold.
func (c *caller) lacks(req *http.Request, repl *caddy.Replacer) string {
	switch {
	case c.names != nil && !hasName(verifiedCertificate(req), c.names):
		return "client_cert"
	case c.users != nil && !slices.Contains(c.users, userOf(repl)):
		return "user"
	case c.clients != nil && !c.clients.has(peerOf(req)):
		return "clients"
	}
	return ""
}

// holds reports whether all that the caller has to prove, its key aside, holds for
// a request.
func (c *caller) holds(req *http.Request, repl *caddy.Replacer) bool { return c.lacks(req, repl) == "" }

// identify returns who has sent a request, or nil. The placeholders are those of
// the headers, besides Authorization, in which a key is looked for.
func (cs *callers) identify(req *http.Request, repl *caddy.Replacer, placeholders []string) *caller {
	if cs == nil {
		return nil
	}
	if len(cs.keys.keys) > 0 {
		if c := cs.byKey(repl, placeholders, func(c *caller) bool { return c.holds(req, repl) }); c != nil {
			return c
		}
	}
	if len(cs.byCert) > 0 {
		if c := cs.ofCertificate(req, repl); c != nil {
			return c
		}
	}
	if len(cs.byUser) > 0 {
		for _, c := range cs.byUser[userOf(repl)] {
			if c.holds(req, repl) {
				return c
			}
		}
	}
	if len(cs.prefixes)+len(cs.unix) > 0 {
		return cs.ofPeer(peerOf(req))
	}
	return nil
}

// watch has keys in files count within a second of a change, until stopWatching.
func (cs *callers) watch() {
	if cs != nil {
		cs.keys.watch()
	}
}

func (cs *callers) stopWatching() {
	if cs != nil {
		cs.keys.stopWatching()
	}
}

const authorizationPlaceholder = "http.request.header.Authorization"

// keyHeaders returns the headers, besides Authorization, in which a key is looked
// for: that of everybody, and the API's own.
func (cs *callers) keyHeaders(api tokenprovider.API) []string {
	if cs == nil || len(cs.keys.keys) == 0 {
		return nil
	}
	return append([]string{"X-Api-Key"}, api.KeyHeaders...)
}

// maxUser is the length of the longest user name of Basic, a colon included, beside
// which the longest key is found.
const maxUser = 256

// unknown returns the refusal of a request that identify knows nobody for. Its
// detail, which is for the log, says what keeps a key from counting.
func (cs *callers) unknown(req *http.Request, repl *caddy.Replacer, placeholders []string) *refusal {
	r := *callerUnknown
	c := cs.byKey(repl, placeholders, func(*caller) bool { return true })
	if c == nil {
		r.detail, r.missing = cs.withoutKey(req, repl)
		for _, placeholder := range append([]string{authorizationPlaceholder}, placeholders...) {
			if value, _ := repl.GetString(placeholder); value != "" {
				r.detail = "; what it has in " + strings.TrimPrefix(placeholder, "http.request.header.") + " is not the key of a caller"
				r.missing = missingKnownKey
				break
			}
		}
		return &r
	}
	r.missing = missingFurtherProof
	r.detail = fmt.Sprintf("; it has the key of %s, but not the %s that %s has to prove as well", c.name, c.lacks(req, repl), c.name)
	return &r
}

// byKey returns the caller whose key the request has, if accept says so of it.
func (cs *callers) byKey(repl *caddy.Replacer, placeholders []string, accept func(*caller) bool) *caller {
	var storage [maxKey + maxUser]byte // for what would have to be allocated otherwise
	authorization, _ := repl.GetString(authorizationPlaceholder)
	if c := cs.ofKey(credentialsIn(authorization, storage[:])); c != nil && accept(c) {
		return c
	}
	for _, placeholder := range placeholders {
		value, _ := repl.GetString(placeholder)
		if value == "" || len(value) > maxKey {
			continue
		}
		if c := cs.ofKey(storage[:copy(storage[:], value)]); c != nil && accept(c) {
			return c
		}
	}
	return nil
}

// credentialsIn returns the credentials in the value of an Authorization header:
// a bearer token (RFC 6750), or the password of Basic (RFC 7617). It writes them
// to storage; what does not fit is none.
func credentialsIn(authorization string, storage []byte) []byte {
	scheme, value, found := strings.Cut(authorization, " ")
	if !found {
		return nil
	}
	value = strings.Trim(value, " ")
	switch {
	case strings.EqualFold(scheme, "Bearer") && len(value) <= len(storage):
		return storage[:copy(storage, value)]
	case strings.EqualFold(scheme, "Basic") && base64.StdEncoding.DecodedLen(len(value)) <= len(storage):
		n, err := base64.StdEncoding.Decode(storage, []byte(value))
		if err != nil {
			return nil
		}
		for i, b := range storage[:n] {
			if b == ':' {
				return storage[i+1 : n]
			}
		}
	}
	return nil
}

// ofKey returns the caller that a key, or a local token, belongs to, or nil.
func (cs *callers) ofKey(key []byte) *caller {
	if len(key) < minKey || len(key) > maxKey {
		return nil
	}
	if string(key[:len(localTokenPrefix)]) == localTokenPrefix {
		token, ok := readLocalToken(key)
		if !ok {
			return nil
		}
		c := cs.byName[string(token.name())]
		if c == nil || !c.keyed || !token.verify(*c.proofs.Load(), time.Now()) {
			return nil
		}
		return c
	}
	digest := sha256.Sum256(key)
	return cs.keys.index.Load().caller(&digest)
}

// issueToken exchanges the key of a caller for a local token.
func (cs *callers) issueToken(name, key string) (token string, lifetime time.Duration, ok bool) {
	if cs == nil || strings.HasPrefix(key, localTokenPrefix) {
		return "", 0, false
	}
	c := cs.ofKey([]byte(key))
	if c == nil || c.name != name {
		return "", 0, false
	}
	digest := sha256.Sum256([]byte(key))
	for _, proof := range *c.proofs.Load() {
		if proof.digest == digest { // it is known by now: how long this takes tells nothing
			return newLocalToken(name, proof, time.Now().Add(localTokenLifetime)), localTokenLifetime, true
		}
	}
	return "", 0, false
}

// userOf returns the user that an authentication handler of Caddy has identified.
func userOf(repl *caddy.Replacer) string {
	user, _ := repl.GetString("http.auth.user.id")
	return user
}

// ofPeer returns the caller that is known by the address p alone, or nil.
func (cs *callers) ofPeer(p peer) *caller {
	if p.unix {
		if len(cs.unix) > 0 {
			return cs.unix[0]
		}
		return nil
	}
	if !p.addr.IsValid() {
		return nil
	}
	for _, length := range cs.prefixes {
		if p.addr.Is6() != (length >= ipv6Length) {
			continue
		}
		if p.addr.Is6() {
			length -= ipv6Length
		}
		prefix, err := p.addr.Prefix(length)
		if err != nil {
			continue
		}
		if c := cs.byRange[prefix]; len(c) > 0 {
			return c[0]
		}
	}
	return nil
}
