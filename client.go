package egress

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-egress/caddy-egress/internal/option"
)

// clientOf returns who has sent req, as far as what one client does must not be
// charged to another: the address of the peer; of IPv6 its /64, from which one
// host can choose any address. All clients of a unix socket are one.
func clientOf(req *http.Request) string {
	peer, err := netip.ParseAddrPort(req.RemoteAddr)
	if err != nil {
		return unixValue
	}
	addr := peer.Addr()
	if addr.Is4() {
		return req.RemoteAddr[:strings.LastIndexByte(req.RemoteAddr, ':')] // allocates nothing
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is6() {
		network, _ := addr.Prefix(64) // never fails: 64 is at most 128
		addr = network.Addr()
	}
	return addr.String()
}

// peer is who has opened a connection, as far as that is proven.
type peer struct {
	addr netip.Addr // invalid where it is not known
	unix bool       // a client of a unix socket
}

// peerOf returns the peer of a request. What came with TLS early data may have a
// forged address, and so has none.
func peerOf(req *http.Request) peer {
	if local, ok := req.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && caddy.IsUnixNetwork(local.Network()) {
		return peer{unix: true}
	}
	if req.TLS != nil && !req.TLS.HandshakeComplete {
		return peer{}
	}
	addr, err := netip.ParseAddrPort(req.RemoteAddr)
	if err != nil {
		return peer{}
	}
	return peer{addr: addr.Addr().Unmap().WithZone("")}
}

// clients is who is served, by peer address.
type clients struct {
	any    bool
	unix   bool
	ranges []netip.Prefix
}

func parseClients(values []string) (clients, error) {
	var c clients
	if values == nil {
		values = defaultClients
	}
	for _, value := range values {
		switch value {
		case anyValue:
			c.any = true
			continue
		case unixValue:
			c.unix = true
			continue
		}
		prefix, err := caddyhttp.CIDRExpressionToPrefix(value)
		if err != nil || strings.Contains(value, "%") { // a range has no zone
			return c, option.Errorf("clients", "%q is not an address or range such as 10.0.0.0/8, any or unix", value)
		}
		if addr := prefix.Addr(); addr.Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(addr.Unmap(), prefix.Bits()-96)
		}
		c.ranges = append(c.ranges, prefix.Masked())
	}
	return c, nil
}

// overlap reports whether a peer can be of both.
func (c *clients) overlap(other *clients) bool {
	return c.unix && other.unix || slices.ContainsFunc(c.ranges, func(a netip.Prefix) bool {
		return slices.ContainsFunc(other.ranges, a.Overlaps)
	})
}

// has reports whether p is one of them.
func (c *clients) has(p peer) bool {
	if c.any || p.unix {
		return c.any || c.unix
	}
	for _, prefix := range c.ranges {
		if prefix.Contains(p.addr) { // an invalid address is in none
			return true
		}
	}
	return false
}
