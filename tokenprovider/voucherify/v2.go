package voucherify

import (
	"errors"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// v2 is EXPERIMENTAL: the version of an OAuth Service key, whose tokens are for
// one project. Of Voucherify's documentation it has the token request alone:
// neither scopes nor revocation nor introspection.
var v2 = version{
	name:       "v2",
	authMethod: "client_secret_basic_raw",
	// documented as base64(app_id:app_secret), not form-encoded before
	authenticate: tokenprovider.ClientSecretBasicRaw,
	resolve:      option.Resolve, // encoded, so that any value will do
	check: func(p *Provider) error {
		if p.ProjectID == "" {
			return errors.New("project_id is required with oauth v2")
		}
		return nil
	},
	provision: func(p *Provider) (err error) {
		p.projectID, err = option.Resolve("project_id", p.ProjectID)
		return err
	},
	params: func(p *Provider) []tokenprovider.Param {
		return []tokenprovider.Param{{Name: "project_id", Value: p.projectID}}
	},
}

// Warnings implements tokenprovider.Warner.
func (p *Provider) Warnings() []string {
	if p.version().name != v2.name {
		return nil
	}
	return []string{"oauth v2 of voucherify is experimental"}
}
