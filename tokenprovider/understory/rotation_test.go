package understory

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokenprovider/internal/wiretest"
)

// Each alternative makes its requests with its own value alone, whatever scopes it
// asks for.
func TestAlternatives(t *testing.T) {
	for name, test := range map[string]struct {
		ids  tokenprovider.Values
		want []string // identifier and secret of each
	}{
		"an identifier each": {tokenprovider.Values{"id-new", "id-old"}, []string{"id-new s3cret-new", "id-old s3cret-old"}},
		"one for all":        {tokenprovider.Values{"id"}, []string{"id s3cret-new", "id s3cret-old"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := wiretest.Serve(t, wiretest.Granted)
			p := wiretest.Provision(t, &Provider{ClientID: test.ids, ClientSecret: tokenprovider.Values{"s3cret-new", "s3cret-old"}, TokenURL: server.URL})
			scoped, err := p.WithScopes([]string{"event.read"})
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range []tokenprovider.Provider{p, scoped} {
				all := tokenprovider.Alternatives(p)
				if len(all) != len(test.want) {
					t.Fatalf("%d alternatives", len(all))
				}
				for i, alternative := range all {
					if _, err := alternative.Token(t.Context(), client); err != nil {
						t.Fatal(err)
					}
					form := server.Last(t).Form(t)
					if got := form.Get("client_id") + " " + form.Get("client_secret"); got != test.want[i] || form.Get("scope") != strings.Join(p.Grant().Scopes, " ") {
						t.Errorf("alternative %d sent %v, want %s", i, form, test.want[i])
					}
					secrets, err := alternative.Secrets()
					id, secret, _ := strings.Cut(test.want[i], " ")
					if err != nil || len(secrets) != 1 || secrets[0].Reveal() != secret || alternative.Grant().ClientID != id {
						t.Errorf("alternative %d: %d secrets, %v, and identifier %s", i, len(secrets), err, alternative.Grant().ClientID)
					}
				}
			}
			if want := map[string]string{"client_secret": "s3cret-new", "client_secret 2": "s3cret-old"}; !reflect.DeepEqual(p.SecretOptions(), want) {
				t.Error("the options that hold a secret are others")
			}
		})
	}
}

// Between the new value that has yet to come and the old one that is gone, one is enough.
func TestValuesThatComeAndGo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new")
	p := &Provider{
		ClientID:     tokenprovider.Values{"id-new", "id-old"},
		ClientSecret: tokenprovider.Values{"{file." + file + "}", "{env.TEST_OLD}"},
	}
	if err := wiretest.TryProvision(t, p); err == nil || !strings.HasPrefix(err.Error(), "client_secret: {file."+file+"} has no value") {
		t.Errorf("with no value at all: %v", err)
	}
	t.Setenv("TEST_OLD", "s3cret-old")
	check := func(want string) {
		t.Helper()
		secrets, err := wiretest.Provision(t, p).Secrets()
		if err != nil || len(secrets) != 1 || secrets[0].Reveal() != want {
			t.Errorf("%d secrets, %v, want %s", len(secrets), err, want)
		}
	}
	check("s3cret-old")
	if _, err := p.Alternatives()[0].Secrets(); err == nil {
		t.Error("the alternative of the value that has yet to come has a secret")
	}
	wiretest.WriteFile(t, file, "s3cret-new\n")
	check("s3cret-new")
	t.Setenv("TEST_OLD", "")
	check("s3cret-new")
}

// The identifier that names the credential is the first that is there.
func TestIdentifierOfSeveral(t *testing.T) {
	t.Setenv("TEST_OLD", "id-old")
	p := wiretest.Provision(t, &Provider{
		ClientID:     tokenprovider.Values{"{env.TEST_UNSET}", "{env.TEST_OLD}"},
		ClientSecret: tokenprovider.Values{"s3cret-new", "s3cret-old"},
	})
	if got := p.Grant().ClientID; got != "id-old" {
		t.Errorf("got %q", got)
	}
	if got := p.Alternatives()[0].Grant().ClientID; got != "" {
		t.Errorf("the first alternative has %q", got)
	}
	one := wiretest.Provision(t, &Provider{ClientID: tokenprovider.Values{"id"}, ClientSecret: tokenprovider.Values{"s3cret"}})
	if all := tokenprovider.Alternatives(one); len(all) != 1 || all[0] != tokenprovider.Provider(one) {
		t.Error("what has one value has other alternatives than itself")
	}
}
