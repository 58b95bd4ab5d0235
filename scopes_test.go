package egress

import (
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokenprovider/understory"
	"github.com/caddy-egress/caddy-egress/tokenprovider/voucherify"
)

func TestCheckScopes(t *testing.T) {
	values := tokenprovider.Values{"x"}
	needing := &voucherify.Provider{AppID: values, AppToken: values}
	grants := func(scopes ...string) []Grant {
		all := make([]Grant, len(scopes))
		for i, s := range scopes {
			all[i] = Grant{Callers: []string{"caller-" + string(rune('a'+i)), "other"}, Scopes: strings.Fields(s)}
			if s == "" {
				all[i].Scopes = nil
			}
		}
		return all
	}
	const needs = "scopes is required; api stands for the whole server side; neither the "
	for name, test := range map[string]struct {
		provider tokenprovider.Provider
		own      []string
		grants   []Grant
		want     string
	}{
		"an API that needs none":   {&understory.Provider{ClientID: values, ClientSecret: values}, nil, grants(""), ""},
		"scopes of the route":      {needing, []string{"api"}, nil, ""},
		"and grants without":       {needing, []string{"api"}, grants("", "vouchers"), ""},
		"scopes of all grants":     {needing, nil, grants("api", "vouchers"), ""},
		"none at all":              {needing, nil, nil, needs + "route nor credential promo has any"},
		"empty ones":               {needing, []string{}, nil, needs + "route nor credential promo has any"},
		"of one grant alone":       {needing, nil, grants("api", ""), "grant caller-b: " + needs + "grant nor its route nor credential promo has any"},
		"a grant with none at all": {needing, []string{"api"}, grants(" "), "grant caller-a: " + needs + "grant nor its route nor credential promo has any"},
		"a grant to nobody":        {needing, nil, []Grant{{}}, "grant: " + needs + "grant nor its route nor credential promo has any"},
	} {
		err := checkScopes("credential promo", test.provider, test.own, test.grants)
		if (err == nil) != (test.want == "") || err != nil && err.Error() != test.want {
			t.Errorf("%s: got %v, want %s", name, err, test.want)
		}
	}
}
