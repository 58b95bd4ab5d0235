package oauth2

import (
	"net/http"
	"slices"
	"strconv"

	"golang.org/x/net/http/httpguts"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/option"
)

// TokenHeader is the request header in which an API wants the token.
type TokenHeader struct {
	// Name of the header. Required.
	Name string `json:"name,omitempty"`

	// What stands before the token, without the space between them. An empty one
	// is none. Default: `Bearer` for Authorization, and nothing for others.
	Prefix *string `json:"prefix,omitempty"`
}

// reservedHeaders are those that cannot carry a token: they have another meaning
// on the way to the API.
var reservedHeaders = []string{
	"Host", "Connection", "Content-Length", "Content-Type", "Content-Encoding", "Transfer-Encoding", "Te", "Trailer", "Upgrade",
	"Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Expect", "Accept", "Accept-Encoding", "User-Agent", "Origin", "Range",
}

func (h *TokenHeader) validate() error {
	switch {
	case h == nil:
		return nil
	case !httpguts.ValidHeaderFieldName(h.Name):
		return option.Errorf("token_header", "%q is not a header name", h.Name)
	case slices.Contains(reservedHeaders, http.CanonicalHeaderKey(h.Name)):
		return option.Errorf("token_header", "%s cannot carry a token", h.Name)
	case h.Prefix == nil:
		return nil
	}
	for _, c := range []byte(*h.Prefix) {
		if c <= ' ' || c > '~' {
			return option.Errorf("token_header", "the prefix holds a space, or another character than visible ASCII")
		}
	}
	return nil
}

// parts returns the canonical name of the header, and what stands before the token
// with the space that follows; nothing for the default.
func (h *TokenHeader) parts() (name, prefix string) {
	if h == nil {
		return "", ""
	}
	name = http.CanonicalHeaderKey(h.Name)
	switch {
	case h.Prefix != nil && *h.Prefix != "":
		prefix = *h.Prefix + " "
	case h.Prefix == nil && name == "Authorization":
		prefix = "Bearer "
	}
	return name, prefix
}

// unmarshalTokenHeader reads `token_header <name> [<prefix>]`.
func (p *Provider) unmarshalTokenHeader(d *caddyfile.Dispenser) error {
	name := d.Val()
	if p.TokenHeader != nil {
		return d.Errf("%s is already given", name)
	}
	if !d.NextArg() || d.Val() == "" {
		return d.Errf("%s: needs the name of a header", name)
	}
	p.TokenHeader = &TokenHeader{Name: d.Val()}
	if d.NextArg() {
		prefix := d.Val()
		p.TokenHeader.Prefix = &prefix
	}
	return option.End(d, name)
}

// unmarshalRejectedStatus reads `rejected_status <codes...>`.
func (p *Provider) unmarshalRejectedStatus(d *caddyfile.Dispenser) error {
	var codes []string
	if p.RejectedStatus != nil {
		codes = []string{} // which Strings takes for given
	}
	if err := option.Strings(d, &codes); err != nil {
		return err
	}
	for _, code := range codes {
		status, err := strconv.Atoi(code)
		if err != nil {
			return d.Errf("rejected_status: %q is not a status such as 403", code)
		}
		p.RejectedStatus = append(p.RejectedStatus, status)
	}
	return nil
}

// validateRejectedStatus returns an error about the first status that is wrong.
func validateRejectedStatus(codes []int) error {
	for i, code := range codes {
		switch {
		case code == http.StatusUnauthorized:
			return option.Errorf("rejected_status", "401 means that anyway; leave it out")
		case code < 400, code > 599, code == http.StatusProxyAuthRequired, code == http.StatusRequestTimeout, code == http.StatusTooManyRequests:
			return option.Errorf("rejected_status", "%d cannot mean that; give statuses from 400 to 599, without 407, 408 and 429", code)
		case slices.Contains(codes[:i], code):
			return option.Errorf("rejected_status", "%d is given twice", code)
		}
	}
	return nil
}
