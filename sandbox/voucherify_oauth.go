package sandbox

import (
	"net/http"
	"slices"
	"strings"
)

// This file imitates Voucherify's authorization server. Its v1 tells callers
// apart by headers of its own and errs in the shape of the API, not of
// RFC 6749; v2 takes Basic and a project_id, and answers as v1 does (inferred).

// voucherifyTokenLimit is how many tokens of a project may be alive.
const voucherifyTokenLimit = 1000

// voucherifySegments are the first path segments of the operations that a
// token can be for. Each is a scope of v1 and, with .read or .write, of v2.
var voucherifySegments = strings.Fields(`
	assets async-actions campaigns categories client_consents client_customers client_events
	client_promotions client_publish client_qualifications client_redeem client_redemptions
	client_validate client_validations client_vouchers consents customers events exports locations
	loyalties metadata-schemas orders product-collections products promotions publications
	qualifications redemptions referrals rewards segments skus task-results templates trash-bin
	validation-rules validation-rules-assignments validations vouchers`)

// scopeV1 also knows two scopes that cover all operations of a side.
func scopeV1(scope string) bool {
	return scope == "api" || scope == "client_api" || slices.Contains(voucherifySegments, scope)
}

func scopeV2(scope string) bool {
	segment, access, _ := strings.Cut(scope, ".")
	return (access == "read" || access == "write") && slices.Contains(voucherifySegments, segment)
}

// voucherifyGrant is a live token as the server tells of it.
type voucherifyGrant struct {
	AccessToken string `json:"access_token"`
	ClientID    string `json:"client_id"`
	ExpiresAt   int64  `json:"expires_at"`
	ExpiresIn   int64  `json:"expires_in"`
	Scope       string `json:"scope"`
	TokenType   string `json:"token_type"`
}

func (v *voucherify) describe(t token) voucherifyGrant {
	return voucherifyGrant{
		AccessToken: t.value,
		ClientID:    v.project.clientID,
		ExpiresAt:   t.expiresAt(),
		ExpiresIn:   t.expiresIn(),
		Scope:       t.scope(),
		TokenType:   "Bearer",
	}
}

func (v *voucherify) endpoints() map[string]endpoint {
	return map[string]endpoint{
		"/v1/oauth/token":        {serve: v.keyed(v.serveTokenV1), issues: true},
		"/v1/oauth/token/revoke": {serve: v.keyed(v.serveRevoke)},
		"/v1/oauth/introspect":   {serve: v.keyed(v.serveIntrospect)},
		"/v2/oauth/token":        {serve: v.serveTokenV2, issues: true},
	}
}

// keyed lets requests with the app's headers pass.
func (v *voucherify) keyed(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-App-Id") != v.ClientID || r.Header.Get("X-App-Token") != v.ClientSecret {
			v.tokenError(w, http.StatusUnauthorized)
			return
		}
		next(w, r)
	}
}

func (v *voucherify) serveTokenV1(w http.ResponseWriter, r *http.Request) {
	v.grant(w, r, "", scopeV1)
}

func (v *voucherify) serveTokenV2(w http.ResponseWriter, r *http.Request) {
	id, secret, ok := r.BasicAuth()
	if !ok || id != v.ClientID || secret != v.ClientSecret {
		v.tokenError(w, http.StatusUnauthorized)
		return
	}
	project := r.PostFormValue("project_id")
	if project == "" {
		missingParameters(w)
		return
	}
	v.grant(w, r, project, scopeV2)
}

// grant answers a client that has proven who it is.
func (v *voucherify) grant(w http.ResponseWriter, r *http.Request, project string, known func(string) bool) {
	if r.PostFormValue("grant_type") != "client_credentials" {
		badRequest(w, "invalid_grant_type", "Invalid grant_type")
		return
	}
	scopes := strings.Fields(r.PostFormValue("scope"))
	if len(scopes) == 0 || !all(scopes, known) {
		badRequest(w, "invalid_scope", "Invalid scope: "+r.PostFormValue("scope"))
		return
	}
	t, ok := v.tokens.issue(token{value: alphanumerics(50), scopes: scopes, project: project}, v.Lifetime, voucherifyTokenLimit)
	if !ok { // what the real server says then is not documented
		badRequest(w, "too_many_tokens", "Too many tokens")
		return
	}
	writeJSON(w, http.StatusOK, jsonType, v.describe(t))
}

func (v *voucherify) serveIntrospect(w http.ResponseWriter, r *http.Request) {
	value := r.PostFormValue("access_token")
	if value == "" {
		missingParameters(w)
		return
	}
	t, ok := v.tokens.find(value)
	if !ok {
		writeJSON(w, http.StatusOK, jsonType, inactive{})
		return
	}
	writeJSON(w, http.StatusOK, jsonType, struct {
		voucherifyGrant
		Active bool `json:"active"`
	}{v.describe(t), true})
}

func (v *voucherify) serveRevoke(w http.ResponseWriter, r *http.Request) {
	value := r.PostFormValue("access_token")
	if value == "" {
		missingParameters(w)
		return
	}
	if !v.tokens.revoke(value) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func missingParameters(w http.ResponseWriter) {
	badRequest(w, "missing_parameters", "Missing parameters")
}

// badRequest says less than the errors of the API do.
func badRequest(w http.ResponseWriter, key, message string) {
	writeJSON(w, http.StatusBadRequest, jsonType, struct {
		Code    int    `json:"code"`
		Key     string `json:"key"`
		Message string `json:"message"`
	}{http.StatusBadRequest, key, message})
}

func (v *voucherify) tokenError(w http.ResponseWriter, status int) {
	if status == http.StatusUnauthorized { // recorded in this order
		writeJSON(w, status, jsonType, struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
			Key     string `json:"key"`
		}{status, "Unauthorized", "unauthorized"})
		return
	}
	v.apiError(w, status)
}

func all(values []string, holds func(string) bool) bool {
	return !slices.ContainsFunc(values, func(s string) bool { return !holds(s) })
}
