package egress

import (
	"encoding/base64"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

const (
	formType             = "application/x-www-form-urlencoded"
	grantTypeCredentials = "client_credentials"
	maxTokenRequest      = 64 << 10 // bytes of a form
)

// OAuth error codes (RFC 6749 §5.2).
const (
	oauthInvalidRequest       = "invalid_request"
	oauthInvalidClient        = "invalid_client"
	oauthInvalidScope         = "invalid_scope"
	oauthUnauthorizedClient   = "unauthorized_client"
	oauthUnsupportedGrantType = "unsupported_grant_type"
)

// tokenRequest is what a client asks of egress_token.
type tokenRequest struct {
	clients    []clientCredentials // what the client has sent, in each way that it may be meant
	scope      string              // empty: none was asked for
	voucherify bool                // the client has sent X-App-Id or X-App-Token
}

// clientCredentials are a name, which OAuth calls client_id, and a key, its
// client_secret.
type clientCredentials struct {
	name, key string
}

// readTokenRequest reads a request for a token by the client credentials grant
// (RFC 6749 §4.4.2). The request that it returns with a refusal holds who has sent
// it, as far as that was read.
func readTokenRequest(req *http.Request) (tokenRequest, *refusal) {
	var r tokenRequest
	form, refused := readForm(req)
	if refused != nil {
		return r, refused
	}
	for _, name := range []string{"grant_type", "scope", "client_id", "client_secret"} {
		if len(form[name]) > 1 {
			return r, invalidRequest(name + " is given more than once")
		}
	}
	if refused := r.readClient(req.Header, form); refused != nil {
		return r, refused
	}
	switch form.Get("grant_type") {
	case grantTypeCredentials:
	case "":
		return r, invalidRequest("grant_type is missing: send grant_type=" + grantTypeCredentials)
	default:
		return r, oauthRefusal(http.StatusBadRequest, oauthUnsupportedGrantType, "the only grant_type served is "+grantTypeCredentials)
	}
	if r.scope = form.Get("scope"); !isScope(r.scope) {
		return r, oauthRefusal(http.StatusBadRequest, oauthInvalidScope, "scope holds a character that no scope has")
	}
	return r, nil
}

// readForm reads the parameters in a request's body.
func readForm(req *http.Request) (url.Values, *refusal) {
	if mediaType, _, err := mime.ParseMediaType(req.Header.Get("Content-Type")); err != nil || mediaType != formType {
		return nil, invalidRequest("Content-Type is not " + formType)
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, req.Body, maxTokenRequest))
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return nil, oauthRefusal(http.StatusRequestEntityTooLarge, oauthInvalidRequest, "the body is longer than 64 KiB")
	case err != nil:
		return nil, invalidRequest("the body has not arrived whole")
	}
	form, err := url.ParseQuery(string(body))
	if err != nil { // which holds what the client sent
		return nil, invalidRequest("the body is not form-encoded")
	}
	return form, nil
}

// readClient finds who asks: in Authorization, in Voucherify's headers, or in the
// form. A client must not use more than one of them (RFC 6749 §2.3), but may
// repeat its name in the form.
func (r *tokenRequest) readClient(header http.Header, form url.Values) *refusal {
	appID, appToken := header.Values("X-App-Id"), header.Values("X-App-Token")
	authorization := slices.DeleteFunc(slices.Clone(header.Values("Authorization")), func(value string) bool { return !isBasic(value) })
	r.voucherify = len(appID)+len(appToken) > 0
	methods := 0
	for _, used := range []bool{r.voucherify, len(authorization) > 0, form.Get("client_secret") != ""} {
		if used {
			methods++
		}
	}
	if methods > 1 || len(appID) > 1 || len(appToken) > 1 || len(authorization) > 1 {
		return invalidRequest("name and key are given in more than one way")
	}

	inForm := form.Get("client_id")
	switch {
	case r.voucherify:
		r.clients = []clientCredentials{{header.Get("X-App-Id"), header.Get("X-App-Token")}}
	case len(authorization) > 0:
		r.clients = basicCredentials(authorization[0])
	default:
		r.clients = []clientCredentials{{inForm, form.Get("client_secret")}}
	}
	r.clients = slices.DeleteFunc(r.clients, func(c clientCredentials) bool { return c.name == "" })
	if len(r.clients) == 0 {
		return invalidClient("no name and key: send them by Authorization: Basic, or as client_id and client_secret")
	}
	if inForm != "" && !slices.ContainsFunc(r.clients, func(c clientCredentials) bool { return c.name == inForm }) {
		return invalidRequest("client_id is not the name that is given beside it")
	}
	return nil
}

func isBasic(authorization string) bool {
	scheme, _, _ := strings.Cut(authorization, " ")
	return strings.EqualFold(scheme, "Basic")
}

// basicCredentials returns what an Authorization: Basic may mean: name and key
// are to be form-encoded there (RFC 6749 §2.3.1), and many clients send them as
// they are. It returns nothing where neither can be.
func basicCredentials(authorization string) []clientCredentials {
	_, encoded, _ := strings.Cut(authorization, " ")
	decoded, err := base64.StdEncoding.DecodeString(strings.Trim(encoded, " "))
	name, key, found := strings.Cut(string(decoded), ":")
	if err != nil || !found {
		return nil
	}
	all := []clientCredentials{{name, key}}
	plainName, err := url.QueryUnescape(name)
	plainKey, err2 := url.QueryUnescape(key)
	if plain := (clientCredentials{plainName, plainKey}); errors.Join(err, err2) == nil && plain != all[0] {
		all = append(all, plain)
	}
	return all
}

// isScope reports whether scope is empty or a list of scopes (RFC 6749 §3.3).
func isScope(scope string) bool {
	for i := range len(scope) {
		if c := scope[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// oauthRefusal is the refusal of a token request.
func oauthRefusal(status int, code, message string) *refusal {
	return &refusal{status: status, key: code, oauthError: code, message: message, outcome: outcomeBadRequest, proxyError: "http_request_error"}
}

func invalidRequest(message string) *refusal {
	return oauthRefusal(http.StatusBadRequest, oauthInvalidRequest, message)
}

func invalidClient(message string) *refusal {
	r := oauthRefusal(http.StatusUnauthorized, oauthInvalidClient, message)
	r.proxyError, r.challenges = "http_request_denied", []string{`Basic realm="caddy-egress", charset="UTF-8"`}
	return r
}
