package tokenprovider

import (
	"encoding/base64"
	"net/http"
	"net/url"
)

// ClientAuth adds the identifier and the secret of a client to a request, where
// the authorization server looks for them.
type ClientAuth func(r *Request, id string, secret Secret)

// ClientSecretBasic sends identifier and secret in the Authorization header, as
// RFC 6749 §2.3.1 says.
func ClientSecretBasic(r *Request, id string, secret Secret) {
	r.setHeader("Authorization", BasicAuth(id, secret))
}

// ClientSecretBasicRaw is ClientSecretBasic for servers that do not form-decode
// the two.
func ClientSecretBasicRaw(r *Request, id string, secret Secret) {
	r.setHeader("Authorization", BasicAuthRaw(id, secret))
}

// ClientSecretPost sends identifier and secret in the form (RFC 6749 §2.3.1).
func ClientSecretPost(r *Request, id string, secret Secret) {
	ClientIDOnly(r, id, Secret{})
	r.Form.Set("client_secret", secret.Reveal())
}

// ClientAssertion sends a signed JWT in the form, and the identifier beside it
// (RFC 7523 §2.2): one of [SigningKey.Sign], or one that somebody else has signed.
func ClientAssertion(r *Request, id string, assertion Secret) {
	ClientIDOnly(r, id, Secret{})
	r.Form.Set("client_assertion_type", assertionType)
	r.Form.Set("client_assertion", assertion.Reveal())
}

// ClientIDOnly sends the identifier in the form, for a client that authenticates by
// its certificate (RFC 8705 §2).
func ClientIDOnly(r *Request, id string, _ Secret) {
	if r.Form == nil {
		r.Form = make(url.Values)
	}
	r.Form.Set("client_id", id)
}

// ClientHeaders returns the ClientAuth of servers that want identifier and
// secret in headers of their own.
func ClientHeaders(idHeader, secretHeader string) ClientAuth {
	return func(r *Request, id string, secret Secret) {
		r.setHeader(idHeader, id)
		r.setHeader(secretHeader, secret.Reveal())
	}
}

// BasicAuth returns the Authorization value of client_secret_basic: identifier
// and secret form-encoded, then joined and base64-encoded (RFC 6749 §2.3.1).
func BasicAuth(id string, secret Secret) string {
	return BasicAuthRaw(url.QueryEscape(id), NewSecret(url.QueryEscape(secret.Reveal())))
}

// BasicAuthRaw is BasicAuth for servers that do not form-decode the two (RFC 7617).
func BasicAuthRaw(id string, secret Secret) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret.Reveal()))
}

func (r *Request) setHeader(name, value string) {
	if r.Header == nil {
		r.Header = make(http.Header)
	}
	r.Header.Set(name, value)
}
