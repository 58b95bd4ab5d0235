package voucherify

import (
	"fmt"
	"slices"
	"strings"

	"github.com/caddy-egress/caddy-egress/internal/option"
)

// scopesV1 are the scopes that Voucherify documents for OAuth v1. An operation
// needs api or its first path segment after /v1/; under /client/v1/ client_api
// or client_ and that segment.
var scopesV1 = []string{
	"api", "assets", "async-actions", "campaigns", "categories", "client_api", "client_consents", "client_customers",
	"client_events", "client_promotions", "client_publish", "client_qualifications", "client_redeem", "client_redemptions",
	"client_validate", "client_validations", "client_vouchers", "consents", "customers", "events", "exports", "locations",
	"loyalties", "metadata-schemas", "orders", "product-collections", "products", "promotions", "publications",
	"qualifications", "redemptions", "referrals", "rewards", "segments", "skus", "task-results", "templates", "trash-bin",
	"validation-rules-assignments", "validation-rules", "validations", "vouchers",
}

// scopesFor returns the scopes of which one is needed at path and below it; nil
// where no scope is documented for it.
func scopesFor(path string) []string {
	all, prefix := "api", ""
	if below, ok := strings.CutPrefix(path, "/client/"); ok {
		all, prefix, path = "client_api", "client_", "/"+below
	}
	rest, ok := strings.CutPrefix(path, "/v1/")
	segment, _, _ := strings.Cut(rest, "/")
	scope := prefix + segment
	if !ok || scope == all || strings.HasPrefix(segment, "client_") || !slices.Contains(scopesV1, scope) {
		return nil
	}
	return []string{all, scope}
}

// UnknownScopes returns a warning for each scope that the version does not
// document, if it documents any. The list may grow, so such a scope is not an error.
func (p *Provider) UnknownScopes() []string {
	known := p.version().scopes
	var warnings []string
	for _, scope := range p.Scopes {
		if known == nil || slices.Contains(known, scope) {
			continue
		}
		warning := fmt.Sprintf("voucherify does not document the scope %q", scope)
		if near := option.Nearest(scope, known); near != "" {
			warning += fmt.Sprintf("; did you mean %q?", near)
		}
		warnings = append(warnings, warning)
	}
	return warnings
}
