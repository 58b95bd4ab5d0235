// Package option holds what every option of a configuration needs: reading its
// Caddyfile form, and the values behind its placeholders. An option may be given
// once; every error names the option, and in a Caddyfile its file and line.
package option

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	"golang.org/x/net/http/httpguts"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// String reads the one argument of the current subdirective into v.
func String(d *caddyfile.Dispenser, v *string) error {
	name := d.Val()
	if *v != "" {
		return d.Errf("%s is already given", name)
	}
	if !d.NextArg() {
		return d.Errf("%s: needs a value", name)
	}
	if d.Val() == "" {
		return d.Errf("%s: is empty", name)
	}
	*v = d.Val()
	return End(d, name)
}

// Strings reads the arguments of the current subdirective, at least one, into v.
func Strings(d *caddyfile.Dispenser, v *[]string) error {
	name := d.Val()
	if *v != nil {
		return d.Errf("%s is already given", name)
	}
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.Errf("%s: needs at least one value", name)
	}
	if slices.Contains(args, "") {
		return d.Errf("%s: a value is empty", name)
	}
	*v = args
	return End(d, name)
}

// Values is Strings for an option that has several values while a credential is
// rotated.
func Values(d *caddyfile.Dispenser, v *tokenprovider.Values) error {
	return Strings(d, (*[]string)(v))
}

// Pair reads the name and the value that are the current subdirective's two
// arguments into v; each name may be given once.
func Pair(d *caddyfile.Dispenser, v *map[string]string) error {
	option := d.Val()
	var name, value string
	if !d.Args(&name, &value) || name == "" {
		return d.Errf("%s: needs a name and a value", option)
	}
	if value == "" {
		return d.Errf("%s %s: is empty", option, name)
	}
	if _, ok := (*v)[name]; ok {
		return d.Errf("%s %s is already given", option, name)
	}
	if *v == nil {
		*v = make(map[string]string)
	}
	(*v)[name] = value
	return End(d, option)
}

// Duration reads the one argument of the current subdirective, a duration
// above zero, into v.
func Duration(d *caddyfile.Dispenser, v *caddy.Duration) error {
	name := d.Val()
	if *v != 0 {
		return d.Errf("%s is already given", name)
	}
	if !d.NextArg() {
		return d.Errf("%s: needs a duration such as 10s", name)
	}
	duration, err := caddy.ParseDuration(d.Val())
	if err != nil {
		return d.Errf("%s: %q is not a duration such as 10s", name, d.Val())
	}
	if duration <= 0 {
		return d.Errf("%s: must be above zero", name)
	}
	*v = caddy.Duration(duration)
	return End(d, name)
}

// Size reads the one argument of the current subdirective, a number of bytes
// such as 1MiB, into v. Zero is a size of its own.
func Size(d *caddyfile.Dispenser, v **int64) error {
	name := d.Val()
	if *v != nil {
		return d.Errf("%s is already given", name)
	}
	if !d.NextArg() {
		return d.Errf("%s: needs a size such as 1MiB", name)
	}
	size, err := humanize.ParseBytes(d.Val())
	if err != nil || size > 1<<40 {
		return d.Errf("%s: %q is not a size such as 1MiB", name, d.Val())
	}
	bytes := int64(size)
	*v = &bytes
	return End(d, name)
}

// Count reads the one argument of the current subdirective, a number above zero,
// into v.
func Count(d *caddyfile.Dispenser, v *int) error {
	name := d.Val()
	if *v != 0 {
		return d.Errf("%s is already given", name)
	}
	if !d.NextArg() {
		return d.Errf("%s: needs a number", name)
	}
	n, err := strconv.Atoi(d.Val())
	if err != nil || n <= 0 {
		return d.Errf("%s: %q is not a number above zero", name, d.Val())
	}
	*v = n
	return End(d, name)
}

// Flag reads the current subdirective, which has no argument, into v.
func Flag(d *caddyfile.Dispenser, v *bool) error {
	name := d.Val()
	if *v {
		return d.Errf("%s is already given", name)
	}
	*v = true
	return End(d, name)
}

// End makes sure that nothing follows the current subdirective, name.
func End(d *caddyfile.Dispenser, name string) error {
	if d.NextArg() {
		// not quoted: it may be the rest of a secret
		return d.Errf("%s: has an argument too many; quote a value that holds spaces", name)
	}
	if nesting := d.Nesting(); d.NextBlock(nesting) {
		return d.Errf("%s: takes no block", name)
	}
	return nil
}

// ErrNoValue says that a placeholder stands for nothing: it is not set, or its
// file is empty, not there, or not readable.
var ErrNoValue = errors.New("has no value")

// Resolve returns value with its placeholders replaced by what they stand for
// now. A placeholder that is unknown or empty is an error, and so is one of a file
// that cannot be read in time; the error names the option and where the value
// comes from, never the value.
func Resolve(name, value string) (string, error) {
	resolved, err := replaceInTime(value)
	switch {
	case errors.Is(err, errTooSlow):
		return "", fmt.Errorf("%s: reading %s %w", name, source(value), err)
	case err != nil, resolved == "":
		return "", fmt.Errorf("%s: %s %w; is it set, and may this process read it?", name, source(value), ErrNoValue)
	}
	return resolved, nil
}

// ResolveSecret is Resolve for a secret.
func ResolveSecret(name, value string) (tokenprovider.Secret, error) {
	resolved, err := Resolve(name, value)
	return tokenprovider.NewSecret(resolved), err
}

// ResolveHeader is Resolve for a value that goes into a header as it is.
func ResolveHeader(name, value string) (string, error) {
	resolved, err := Resolve(name, value)
	if err != nil {
		return "", err
	}
	return resolved, Header(name, resolved)
}

// Header returns an error unless a header can carry value; it does not quote it.
func Header(name, value string) error {
	if !httpguts.ValidHeaderFieldValue(value) {
		return Errorf(name, "the value holds characters that a header cannot carry")
	}
	return nil
}

// IsPlaceholder reports whether value is nothing but one placeholder, so that
// the value itself is not in the configuration.
func IsPlaceholder(value string) bool {
	return strings.HasPrefix(value, "{") && strings.HasSuffix(value, "}") &&
		strings.Count(value, "{") == 1 && strings.Count(value, "}") == 1
}

// source says where value comes from. What is not a single placeholder may hold
// part of a secret, so it is not quoted.
func source(value string) string {
	if IsPlaceholder(value) {
		return value
	}
	return "a placeholder in it"
}

// Tenant is the placeholder that stands for the name of a tenant in a credential
// that has a value for each. Such a name can stand in a path as it is.
const Tenant = "{tenant}"

// Origin returns an error unless value is scheme://host[:port] and nothing
// more, as an API's URL has to be. The scheme is http or https.
func Origin(name, value string) error {
	u, err := parseURL(name, value)
	if err != nil {
		return err
	}
	if u.Path != "" || u.RawQuery != "" || u.ForceQuery {
		return Errorf(name, "%q has a path or query; give scheme://host[:port] only", value)
	}
	return nil
}

// Endpoint returns an error unless value is an http or https URL without
// fragment and userinfo, as an endpoint of OAuth has to be (RFC 6749 §3.2).
func Endpoint(name, value string) error {
	_, err := parseURL(name, value)
	return err
}

func parseURL(name, value string) (*url.URL, error) {
	if strings.ContainsAny(strings.ReplaceAll(value, Tenant, ""), "{}") {
		return nil, Errorf(name, "cannot hold placeholders")
	}
	u, err := url.Parse(value)
	switch {
	case err != nil && strings.Contains(value, Tenant):
		return nil, Errorf(name, "can hold %s in the path and the query of a URL only", Tenant)
	case err != nil, u.Host == "", u.Hostname() == "":
		return nil, Errorf(name, "not an absolute URL such as https://api.example.com")
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, Errorf(name, "the scheme of %q is neither https nor http", u.Redacted())
	case u.User != nil:
		return nil, Errorf(name, "cannot hold a user name or password")
	case u.Fragment != "", strings.HasSuffix(value, "#"):
		return nil, Errorf(name, "cannot have a fragment")
	}
	return u, nil
}

// IsPlainHTTP reports whether rawURL would send a credential unencrypted
// beyond this machine.
func IsPlainHTTP(rawURL string) bool {
	u, err := url.Parse(rawURL)
	return err == nil && u.Scheme == "http" && !IsLoopback(u.Hostname())
}

// IsLoopback reports whether host, without a port, is this machine. Names under
// .localhost are not: a resolver may look them up elsewhere, and HTTP_PROXY
// applies to them.
func IsLoopback(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	return host == "localhost" // as HTTP_PROXY's exemption has it, to the letter
}
