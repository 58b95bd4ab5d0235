package sandbox

// This file imitates the Voucherify API and its authorization server. v1 of
// that takes the client in headers of its own and answers errors in the shape of
// the API, not of RFC 6749; v2 takes Basic and a project_id, and answers as v1
// does (inferred).

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// voucherifyTokenLimit is how many tokens of a project may be alive.
const voucherifyTokenLimit = 1000

type voucherify struct {
	Options
	*state
}

func (v *voucherify) page(c *call, o *operation, objects []object) answer {
	size, sizeOK := c.number("limit", 10, 100)
	page, pageOK := c.number("page", 1, 100)
	if !sizeOK || !pageOK {
		return refuse(http.StatusBadRequest, "limit and page must be numbers from 1 to 100")
	}
	start := min((page-1)*size, len(objects))
	listed, _ := json.Marshal(objects[start:min(start+size, len(objects))]) // objects are JSON
	return succeed(json.RawMessage(fmt.Sprintf(`{"object":"list","data_ref":%q,%q:%s,"total":%d}`, o.In, o.In, listed, len(objects))))
}

// describe returns the body of an error, a canned one where all of it is
// documented.
func (v *voucherify) describe(status int, f failure) any {
	if f.kind != "" {
		return v.company.Answers["not found"].with(values{"kind": f.kind, "id": f.id}).body
	}
	if a, ok := v.company.Answers[strconv.Itoa(status)]; ok {
		return a.Body
	}
	key, message := statusWord(status), http.StatusText(status)
	if status == http.StatusBadRequest {
		key, message = "invalid_payload", "Invalid payload"
	}
	return v.company.Answers["error"].with(values{"code": status, "key": key, "message": message, "details": cmp.Or(f.details, message)}).body
}

// tokenError returns the error that the API would answer.
func (v *voucherify) tokenError(status int) answer {
	return answer{status: status, body: v.describe(status, failure{})}
}

func (v *voucherify) endpoints() map[string]func(*http.Request) answer {
	return map[string]func(*http.Request) answer{
		"/v1/oauth/token":        v.issue,
		"/v2/oauth/token":        v.issue,
		"/v1/oauth/token/revoke": v.revoke,
		"/v1/oauth/introspect":   v.introspect,
	}
}

func (v *voucherify) authenticated(r *http.Request) bool {
	id, secret := r.Header.Get("X-App-Id"), r.Header.Get("X-App-Token")
	if isV2(r) {
		id, secret, _ = r.BasicAuth()
	}
	return id == v.ClientID && secret == v.ClientSecret
}

func isV2(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, "/v2/") }

// issue knows all scopes of v1. Those of v2 are the permissions of roles, which
// are not published as a list; a comma in one shows that they were not separated by
// spaces.
func (v *voucherify) issue(r *http.Request) answer {
	t := token{value: alphanumerics(50), scopes: strings.Fields(r.PostFormValue("scope"))}
	unknown := func(scope string) bool { return !slices.Contains(v.company.Scopes, scope) }
	if isV2(r) {
		t.project = r.PostFormValue("project_id")
		unknown = func(scope string) bool { return strings.Contains(scope, ",") }
	}
	switch {
	case !v.authenticated(r):
		return v.tokenError(http.StatusUnauthorized)
	case isV2(r) && t.project == "":
		return v.company.Answers["missing parameters"].with(nil)
	case r.PostFormValue("grant_type") != "client_credentials":
		return v.company.Answers["invalid grant type"].with(nil)
	case len(t.scopes) == 0 || slices.ContainsFunc(t.scopes, unknown):
		return v.company.Answers["invalid scope"].with(values{"id": r.PostFormValue("scope")})
	}
	t, issued := v.tokens.issue(t, v.Lifetime, voucherifyTokenLimit)
	if !issued { // what the real server says then is not documented
		return v.company.Answers["too many tokens"].with(nil)
	}
	return v.company.Answers["granted"].with(t.values())
}

func (v *voucherify) introspect(r *http.Request) answer {
	t, live := v.tokens.find(r.PostFormValue("access_token"))
	switch {
	case !v.authenticated(r):
		return v.tokenError(http.StatusUnauthorized)
	case r.PostFormValue("access_token") == "":
		return v.company.Answers["missing parameters"].with(nil)
	case !live:
		return v.company.Answers["introspect inactive"].with(nil)
	}
	return v.company.Answers["introspect active"].with(t.values())
}

func (v *voucherify) revoke(r *http.Request) answer {
	switch value := r.PostFormValue("access_token"); {
	case !v.authenticated(r):
		return v.tokenError(http.StatusUnauthorized)
	case value == "":
		return v.company.Answers["missing parameters"].with(nil)
	case !v.tokens.revoke(value):
		return answer{status: http.StatusNotFound}
	}
	return answer{status: http.StatusNoContent}
}
