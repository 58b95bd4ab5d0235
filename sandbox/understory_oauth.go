package sandbox

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// This file imitates Understory's authorization server, which behaves as Ory
// Hydra does, down to the order of its checks and the wording of its errors.

const (
	understoryAudience = "https://api.understory.io"

	hydraType = "application/json;charset=UTF-8"

	hydraInvalidRequest = "The request is missing a required parameter, includes an invalid parameter value, includes a parameter more than once, or is otherwise malformed."
	hydraInvalidClient  = "Client authentication failed (e.g., unknown client, no client authentication included, or unsupported authentication method)."
	hydraInvalidScope   = "The requested scope is invalid, unknown, or malformed."
)

// hydraError is RFC 6749's error answer with Hydra's texts.
type hydraError struct {
	status      int
	Code        string `json:"error"`
	Description string `json:"error_description"`
}

func invalidRequest(hint string) *hydraError {
	return &hydraError{http.StatusBadRequest, "invalid_request", hydraInvalidRequest + " " + hint}
}

func invalidClient(hint string) *hydraError {
	return &hydraError{http.StatusUnauthorized, "invalid_client", strings.TrimSpace(hydraInvalidClient + " " + hint)}
}

func (e *hydraError) write(w http.ResponseWriter) {
	noStore(w)
	writeJSON(w, e.status, hydraType, e)
}

func noStore(w http.ResponseWriter) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
}

func (u *understory) endpoints() map[string]endpoint {
	return map[string]endpoint{
		"/oauth2/token":            {serve: u.serveToken, issues: true},
		"/oauth2/revoke":           {serve: u.serveRevoke},
		"/admin/oauth2/introspect": {serve: u.serveIntrospect},
	}
}

// serveToken answers RFC 6749 §4.4.
func (u *understory) serveToken(w http.ResponseWriter, r *http.Request) {
	t, refusal := u.grant(r)
	if refusal != nil {
		refusal.write(w)
		return
	}
	t, _ = u.tokens.issue(t, u.Lifetime, 0)
	noStore(w)
	writeJSON(w, http.StatusOK, hydraType, struct {
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
		Scope       string `json:"scope"`
		TokenType   string `json:"token_type"`
	}{t.value, ceilSeconds(u.Lifetime), t.scope(), "bearer"})
}

// grant returns the token that r asks for, not issued yet.
func (u *understory) grant(r *http.Request) (token, *hydraError) {
	if refusal := parseHydraForm(r); refusal != nil {
		return token{}, refusal
	}
	if r.PostForm.Get("grant_type") == "" {
		return token{}, invalidRequest("Request parameter 'grant_type' is missing")
	}
	if refusal := u.authenticate(r); refusal != nil {
		return token{}, refusal
	}
	if r.PostForm.Get("grant_type") != "client_credentials" {
		return token{}, invalidRequest("Make sure that the various parameters are correct, be aware of case sensitivity and trim your parameters. Make sure that the client you are using has exactly whitelisted the redirect_uri you specified.")
	}

	t := token{value: understoryToken()}
	for scope := range strings.FieldsSeq(r.PostForm.Get("scope")) {
		if !slices.Contains(understoryScopes, scope) {
			return token{}, &hydraError{
				http.StatusBadRequest, "invalid_scope",
				fmt.Sprintf("%s The OAuth 2.0 Client is not allowed to request scope '%s'.", hydraInvalidScope, scope),
			}
		}
		if !slices.Contains(t.scopes, scope) {
			t.scopes = append(t.scopes, scope)
		}
	}
	for audience := range strings.FieldsSeq(strings.Join(r.PostForm["audience"], " ")) {
		if audience != understoryAudience {
			return token{}, invalidRequest(fmt.Sprintf("Requested audience '%s' has not been whitelisted by the OAuth 2.0 Client.", audience))
		}
		t.audience = []string{audience}
	}
	return t, nil
}

// serveRevoke answers RFC 7009: what is gone already was revoked as well.
func (u *understory) serveRevoke(w http.ResponseWriter, r *http.Request) {
	refusal := parseHydraForm(r)
	if refusal == nil {
		refusal = u.authenticate(r)
	}
	if refusal != nil {
		refusal.write(w)
		return
	}
	u.tokens.revoke(r.PostForm.Get("token"))
	noStore(w)
	w.WriteHeader(http.StatusOK)
}

// serveIntrospect answers RFC 7662. Hydra serves it on its administrator's
// port, where it asks nobody for credentials.
func (u *understory) serveIntrospect(w http.ResponseWriter, r *http.Request) {
	if refusal := parseHydraForm(r); refusal != nil {
		refusal.write(w)
		return
	}
	t, ok := u.tokens.find(r.PostForm.Get("token"))
	if !ok {
		noStore(w)
		writeJSON(w, http.StatusOK, hydraType, inactive{})
		return
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	writeJSON(w, http.StatusOK, hydraType, struct {
		Active    bool     `json:"active"`
		Scope     string   `json:"scope,omitempty"`
		ClientID  string   `json:"client_id"`
		Subject   string   `json:"sub"`
		ExpiresAt int64    `json:"exp"`
		IssuedAt  int64    `json:"iat"`
		NotBefore int64    `json:"nbf"`
		Audience  []string `json:"aud"`
		Issuer    string   `json:"iss"`
		TokenType string   `json:"token_type"`
		TokenUse  string   `json:"token_use"`
	}{
		Active:    true,
		Scope:     t.scope(),
		ClientID:  u.ClientID,
		Subject:   u.ClientID,
		ExpiresAt: t.expiresAt(),
		IssuedAt:  t.issued.Unix(),
		NotBefore: t.issued.Unix(),
		Audience:  append([]string{}, t.audience...), // [] rather than null
		Issuer:    scheme + "://" + r.Host,
		TokenType: "Bearer",
		TokenUse:  "access_token",
	})
}

// inactive is what both servers say of a token that is not alive.
type inactive struct {
	Active bool `json:"active"`
}

func parseHydraForm(r *http.Request) *hydraError {
	if err := r.ParseForm(); err != nil {
		return invalidRequest("Unable to parse HTTP body, make sure to send a properly formatted form request body.")
	}
	if len(r.PostForm) == 0 {
		return invalidRequest("The POST body can not be empty.")
	}
	return nil
}

// authenticate checks the client of r. It is registered for client_secret_post;
// Hydra refuses other methods even where the secret is right.
func (u *understory) authenticate(r *http.Request) *hydraError {
	id, secret := r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	basicID, _, basic := r.BasicAuth()
	if basic && (id == "" || secret == "") {
		if basicID, err := url.QueryUnescape(basicID); err != nil || basicID != u.ClientID {
			return invalidClient("")
		}
		return invalidClient("The OAuth 2.0 Client supports client authentication method 'client_secret_post', but method 'client_secret_basic' was requested. You must configure the OAuth 2.0 client's 'token_endpoint_auth_method' value to accept 'client_secret_basic'.")
	}
	if id == "" {
		return invalidRequest("Client credentials missing or malformed in both HTTP Authorization header and HTTP POST body.")
	}
	if id != u.ClientID || secret != u.ClientSecret {
		return invalidClient("")
	}
	return nil
}

func (u *understory) tokenError(w http.ResponseWriter, status int) {
	e := &hydraError{status: status}
	switch {
	case status == http.StatusUnauthorized:
		e.Code, e.Description = "invalid_client", hydraInvalidClient
	case status < 500:
		e.Code, e.Description = "invalid_request", hydraInvalidRequest
	case status == http.StatusServiceUnavailable:
		e.Code, e.Description = "temporarily_unavailable", "The authorization server is currently unable to handle the request due to a temporary overloading or maintenance of the server."
	default:
		e.Code, e.Description = "server_error", "The authorization server encountered an unexpected condition that prevented it from fulfilling the request."
	}
	e.write(w)
}

// understoryToken returns an opaque string of 1184 characters, as long as
// those of the real server: long enough to find buffers that are too short.
func understoryToken() string {
	b := make([]byte, 888)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}
