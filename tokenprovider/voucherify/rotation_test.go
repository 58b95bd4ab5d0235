package voucherify

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokenprovider/internal/wiretest"
)

// Each alternative makes its requests with its own key alone, with both versions
// and whatever scopes it asks for.
func TestAlternatives(t *testing.T) {
	for name, test := range map[string]struct {
		oauth string
		ids   tokenprovider.Values
		want  []string // identifier and secret of each
	}{
		"an identifier each": {"v1", tokenprovider.Values{"id-new", "id-old"}, []string{"id-new s3cret-new", "id-old s3cret-old"}},
		"one for all":        {"v1", tokenprovider.Values{"id"}, []string{"id s3cret-new", "id s3cret-old"}},
		"v2":                 {"v2", tokenprovider.Values{"id-new", "id-old"}, []string{"id-new s3cret-new", "id-old s3cret-old"}},
	} {
		t.Run(name, func(t *testing.T) {
			server := wiretest.Serve(t, wiretest.Granted)
			p := key(server.URL)
			p.AppID, p.AppToken, p.OAuth = test.ids, tokenprovider.Values{"s3cret-new", "s3cret-old"}, test.oauth
			if test.oauth == "v2" {
				p.ProjectID = "proj"
			}
			wiretest.Provision(t, p)
			scoped, err := p.WithScopes([]string{"vouchers"})
			if err != nil {
				t.Fatal(err)
			}
			sent := func() (key, form string) {
				last := server.Last(t)
				id, secret := last.Header.Get("X-App-Id"), last.Header.Get("X-App-Token")
				if test.oauth == "v2" {
					id, secret = last.Basic(t)
				}
				return id + " " + secret, last.Body
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
					if got, form := sent(); got != test.want[i] || !strings.HasSuffix(form, "scope="+p.Grant().Scopes[0]) {
						t.Errorf("alternative %d sent %s and %s, want %s", i, got, form, test.want[i])
					}
					if err := alternative.(tokenprovider.Revoker).Revoke(t.Context(), client, tokenprovider.NewSecret("tok")); err != nil {
						t.Fatal(err)
					}
					if got, _ := sent(); got != test.want[i] {
						t.Errorf("alternative %d revokes with %s", i, got)
					}
					secrets, err := alternative.Secrets()
					id, secret, _ := strings.Cut(test.want[i], " ")
					if err != nil || len(secrets) != 1 || secrets[0].Reveal() != secret || alternative.Grant().ClientID != id {
						t.Errorf("alternative %d: %d secrets, %v, and identifier %s", i, len(secrets), err, alternative.Grant().ClientID)
					}
				}
			}
			if want := map[string]string{"app_token": "s3cret-new", "app_token 2": "s3cret-old"}; !reflect.DeepEqual(p.SecretOptions(), want) {
				t.Error("the options that hold a secret are others")
			}
		})
	}
}

// Between the new value that has yet to come and the old one that is gone, one is enough.
func TestValuesThatComeAndGo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "new")
	p := key("")
	p.AppID = tokenprovider.Values{"{env.TEST_NEW_ID}", "id-old"}
	p.AppToken = tokenprovider.Values{"{file." + file + "}", "{env.TEST_OLD}"}
	if err := wiretest.TryProvision(t, p); err == nil || !strings.HasPrefix(err.Error(), "app_id: {env.TEST_NEW_ID} has no value") {
		t.Errorf("with no value at all: %v", err)
	}
	check := func(id, want string) {
		t.Helper()
		secrets, err := wiretest.Provision(t, p).Secrets()
		if err != nil || len(secrets) != 1 || secrets[0].Reveal() != want || p.Grant().ClientID != id {
			t.Errorf("%d secrets, %v, identifier %s, want %s and %s", len(secrets), err, p.Grant().ClientID, id, want)
		}
	}
	t.Setenv("TEST_OLD", "s3cret-old")
	check("id-old", "s3cret-old")
	wiretest.WriteFile(t, file, "s3cret-new\n")
	check("id-old", "s3cret-old") // half of a pair
	t.Setenv("TEST_NEW_ID", "id-new")
	check("id-new", "s3cret-new")
	t.Setenv("TEST_OLD", "")
	check("id-new", "s3cret-new")
}
