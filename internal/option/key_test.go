package option

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

func TestKey(t *testing.T) {
	values := func(values ...string) tokenprovider.Values { return values }
	t.Setenv("TEST_NEW", "new-value")
	t.Setenv("TEST_OLD", "old-value")
	for name, test := range map[string]struct {
		ids, secrets tokenprovider.Values
		invalid      string // what Validate says
		resolved     string // identifiers
		read         string // identifier and secret, or what Read says
	}{
		"one":                            {values("id"), values("{env.TEST_OLD}"), "", "id", "id old-value"},
		"none":                           {nil, values("s"), "id is required", "", ""},
		"no secret":                      {values("id"), nil, "secret is required", "", ""},
		"one identifier for all":         {values("id"), values("{env.TEST_NEW}", "{env.TEST_OLD}"), "", "id", "id new-value"},
		"pairs":                          {values("a", "b"), values("{env.TEST_NEW}", "{env.TEST_OLD}"), "", "a,b", "a new-value"},
		"more identifiers":               {values("a", "b"), values("s"), "id: has 2 values, and secret 1", "", ""},
		"an empty one":                   {values("a"), values("s", ""), "secret: a value is empty", "", ""},
		"the new secret is to come":      {values("a", "b"), values("{env.TEST_UNSET}", "{env.TEST_OLD}"), "", "a,b", "b old-value"},
		"the new id is to come":          {values("{env.TEST_UNSET}", "b"), values("s", "{env.TEST_OLD}"), "", ",b", "b old-value"},
		"the old one is gone":            {values("a", "{env.TEST_UNSET}"), values("{env.TEST_NEW}", "{env.TEST_UNSET}"), "", "a,", "a new-value"},
		"all are gone":                   {values("a"), values("{env.TEST_UNSET}", "{env.TEST_GONE}"), "", "a", "secret: {env.TEST_UNSET} has no value"},
		"each has half of a pair":        {values("{env.TEST_UNSET}", "b"), values("s", "{env.TEST_UNSET}"), "", ",b", "id: {env.TEST_UNSET} has no value"},
		"the identifier for all is gone": {values("{env.TEST_UNSET}"), values("s", "s2"), "", "", "id: {env.TEST_UNSET} has no value"},
	} {
		t.Run(name, func(t *testing.T) {
			k := Key{IDName: "id", IDs: test.ids, SecretName: "secret", Secrets: test.secrets, Resolve: Resolve}
			err := k.Validate()
			if (err == nil) != (test.invalid == "") || err != nil && !strings.HasPrefix(err.Error(), test.invalid) {
				t.Errorf("Validate: %v, want %q", err, test.invalid)
			}
			if test.invalid != "" {
				return
			}
			if got := strings.Join(k.ResolveIDs(), ","); got != test.resolved {
				t.Errorf("identifiers %q, want %q", got, test.resolved)
			}
			id, secret, err := k.Read()
			got := id + " " + secret.Reveal()
			if err != nil {
				got = err.Error()
			}
			if err == nil && got != test.read || !strings.HasPrefix(got, test.read) {
				t.Errorf("read %q, want %q", got, test.read)
			}
		})
	}

	k := Key{SecretName: "secret", Secrets: values("new", "old", "older")}
	want := map[string]string{"secret": "new", "secret 2": "old", "secret 3": "older"}
	if got := k.SecretOptions(); !maps.Equal(got, want) {
		t.Errorf("options that hold a secret: %v", slices.Sorted(maps.Keys(got)))
	}
}
