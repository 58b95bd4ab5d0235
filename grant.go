package egress

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-egress/caddy-egress/internal/option"
)

// Grant lends callers the use of a route. With one or more grants, a route
// serves nobody else, and the first that names a caller is the one that counts.
type Grant struct {
	// Names of the callers; `*` stands for any caller that is known.
	Callers []string `json:"callers,omitempty"`

	// Scopes to ask for instead of the route's: the callers' requests have a token
	// of these rights. All grants with the same scopes share one.
	// Default: those of the route.
	Scopes []string `json:"scopes,omitempty"`

	// Operations that the callers may use, beside `allow` of the route, which
	// holds as well. Default: all that the route permits.
	Allow []Operation `json:"allow,omitempty"`

	// Tenants that the callers may name, where the route has them.
	// Default: any.
	Tenants []string `json:"tenants,omitempty"`

	// How many requests each of the callers may make on this route, as `<n>/s`,
	// `<n>/m` or `<n>/h`: n at once, and n each second, minute or hour from then on.
	// More are answered with 429. Each instance counts by itself, each server (the
	// ports of a site are several), and anew from a reload.
	// Default: no limit.
	Limit string `json:"limit,omitempty"`

	// How much of the API's own quota is left to others, as `<n>%`: while less
	// than that remains, by what the API says of it, requests are answered with
	// 429. It has no effect where the API does not say. Default: nothing.
	Reserve string `json:"reserve,omitempty"`
}

// Options returns the options of a grant in a Caddyfile.
func (g *Grant) Options() option.Table {
	return option.Table{
		"scopes":  stringsOf(&g.Scopes),
		"allow":   operations(&g.Allow),
		"tenants": stringsOf(&g.Tenants),
		"limit":   func(d *caddyfile.Dispenser) error { return option.String(d, &g.Limit) },
		"reserve": func(d *caddyfile.Dispenser) error { return option.String(d, &g.Reserve) },
	}
}

// belongs says where an option belongs that a route does not have. It is empty
// unless that is in a grant or in a caller.
func belongs(name string) string {
	if new(Grant).Options()[name] != nil {
		return "belongs in a grant"
	}
	if new(Caller).Options()[name] != nil {
		return "belongs where the caller is defined, in the global option"
	}
	return ""
}

// validate returns an error that names the first option that is wrong.
func (g *Grant) validate() error {
	if len(g.Callers) == 0 {
		return errors.New("needs the name of a caller, or *")
	}
	if slices.Contains(g.Callers, anyCaller) && len(g.Callers) > 1 {
		return errors.New("* stands for any caller; leave the others out")
	}
	for i, caller := range g.Callers {
		if slices.Contains(g.Callers[:i], caller) {
			return fmt.Errorf("names %s twice", caller)
		}
	}
	if err := validateOperations(g.Allow); err != nil {
		return err
	}
	if g.Tenants != nil && len(g.Tenants) == 0 {
		return option.Errorf("tenants", "is empty, which would permit none; name some, or leave it out")
	}
	for _, tenant := range g.Tenants {
		if !isTenantName(tenant) {
			return option.Errorf("tenants", "%q cannot be the name of a tenant: it has up to %d letters, digits, dots, underscores and hyphens", tenant, maxCredentialName)
		}
	}
	if _, _, err := parseRate(g.Limit); err != nil {
		return err
	}
	_, err := parseShare(g.Reserve)
	return err
}

// String returns the names of the callers, as errors and logs have them.
func (g *Grant) String() string {
	return strings.TrimSuffix("grant "+strings.Join(g.Callers, " "), " ")
}

// parseRate returns how many requests a limit permits in which time; an empty
// one, which sets none, is 0.
func parseRate(limit string) (n int64, per time.Duration, err error) {
	if limit == "" {
		return 0, 0, nil
	}
	number, unit, _ := strings.Cut(limit, "/")
	n, err = strconv.ParseInt(number, 10, 64)
	per = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}[unit]
	if err != nil || n < 1 || n > 1e6 || per == 0 {
		return 0, 0, option.Errorf("limit", "%q is not a rate such as 20/s, 600/m or 5000/h", limit)
	}
	return n, per, nil
}

// parseShare returns a percentage as a part of 1; an empty one is 0.
func parseShare(reserve string) (float64, error) {
	if reserve == "" {
		return 0, nil
	}
	number, ok := strings.CutSuffix(reserve, "%")
	percent, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || !(percent > 0 && percent < 100) {
		return 0, option.Errorf("reserve", "%q is not a percentage above 0%% and below 100%%", reserve)
	}
	return percent / 100, nil
}

// unmarshalGrant reads `grant <callers...> { … }` into grants.
func unmarshalGrant(d *caddyfile.Dispenser, grants *[]Grant) error {
	grant := Grant{Callers: d.RemainingArgs()}
	table := grant.Options()
	unknown := option.Unknown(grant.String(), table)
	lines, err := option.Block(d, table, func(d *caddyfile.Dispenser) error {
		if where := belongs(d.Val()); where != "" {
			return d.Errf("%s: %s %s", &grant, d.Val(), where)
		}
		return unknown(d)
	})
	if err != nil {
		return err
	}
	if err := grant.validate(); err != nil {
		return lines.Wrap(fmt.Errorf("%s: %w", &grant, err))
	}
	*grants = append(*grants, grant)
	return nil
}

// granted is a grant as one caller has it.
type granted struct {
	credential *activeCredential
	allow      []Operation
	tenants    map[string]bool // nil: any
	limit      *limiter        // nil: none
	reserve    float64         // part of the API's quota
}

// isFor reports whether the caller may name that tenant.
func (g *granted) isFor(tenant string) bool { return g.tenants == nil || g.tenants[tenant] }

// newGranted returns what each caller is granted. The first grant that names a
// caller counts.
func newGranted(grants []Grant, callers *callers, resolve func(*Grant) (*granted, error)) (map[*caller]*granted, error) {
	all := make(map[*caller]*granted)
	for i := range grants {
		grant := &grants[i]
		if err := grant.validate(); err != nil {
			return nil, fmt.Errorf("%s: %w", grant, err)
		}
		to, err := callers.named(grant.Callers)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", grant, err)
		}
		one, err := resolve(grant)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", grant, err)
		}
		n, per, _ := parseRate(grant.Limit)
		one.reserve, _ = parseShare(grant.Reserve)
		for _, tenant := range grant.Tenants {
			if one.tenants == nil {
				one.tenants = make(map[string]bool, len(grant.Tenants))
			}
			one.tenants[tenant] = true
		}
		for _, c := range to {
			if all[c] != nil {
				continue
			}
			own := *one
			if n > 0 {
				own.limit = newLimiter(n, per)
			}
			all[c] = &own
		}
	}
	return all, nil
}

var (
	errNoGrants  = errors.New("grant: is empty, which would serve nobody; name callers, or leave it out")
	errNoCallers = errors.New("the global option egress defines no caller")
)

// unknownCaller says what there is instead of the caller name.
func unknownCaller(name string, known []string) error {
	return fmt.Errorf("%q is not a caller; %s", name, thereAre(name, known))
}

// thereAre lists the known names, for an error about name.
func thereAre(name string, known []string) string {
	const most = 20
	listed := strings.Join(known[:min(len(known), most)], ", ")
	if more := len(known) - most; more > 0 {
		listed += fmt.Sprintf(" and %d more", more)
	}
	return "there are " + listed + option.DidYouMean(name, slices.Values(known))
}

// checkCallers returns an error unless all names of a grant are those of callers.
func (a *App) checkCallers(names []string) error {
	if len(a.Callers) == 0 {
		return errNoCallers
	}
	for _, name := range names {
		if _, ok := a.Callers[name]; !ok && name != anyCaller {
			return unknownCaller(name, slices.Sorted(maps.Keys(a.Callers)))
		}
	}
	return nil
}

// named returns the callers of those names.
func (cs *callers) named(names []string) ([]*caller, error) {
	if cs == nil {
		return nil, errNoCallers
	}
	if slices.Contains(names, anyCaller) {
		return slices.Collect(maps.Values(cs.byName)), nil
	}
	var all []*caller
	for _, name := range names {
		c, ok := cs.byName[name]
		if !ok {
			return nil, unknownCaller(name, slices.Sorted(maps.Keys(cs.byName)))
		}
		all = append(all, c)
	}
	return all, nil
}
