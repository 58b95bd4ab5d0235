package sandbox

// This file imitates the Understory API and its authorization server, which
// behaves as Ory Hydra does, down to the order of its checks.

import (
	"cmp"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

type understory struct {
	Options
	*state
}

// page goes on where a cursor says, which counts the objects before it and is
// encoded so that clients are not tempted to compute with it.
func (u *understory) page(c *call, o *operation, objects []object) answer {
	size, sizeOK := c.number("limit", o.Limit, o.Most)
	start, startOK := decodeCursor(c.URL.Query().Get("cursor"))
	switch sort := c.URL.Query().Get("sort"); {
	case !sizeOK:
		return refuse(http.StatusBadRequest, fmt.Sprintf("limit must be a number from 1 to %d", o.Most))
	case !startOK:
		return refuse(http.StatusBadRequest, "cursor must be the next of an earlier page")
	case sort == "-created_at", sort == "-updated_at":
		slices.Reverse(objects)
	case sort != "" && sort != "+created_at" && sort != "+updated_at": // such as a plus sign that became a space
		return refuse(http.StatusBadRequest, "sort must be + or - and created_at or updated_at")
	}
	start = min(start, len(objects)) // some may have been deleted since
	end := min(start+size, len(objects))
	page := map[string]any{"items": objects[start:end]}
	if end < len(objects) {
		page["next"] = encodeCursor(end)
	}
	return succeed(page)
}

func encodeCursor(n int) string { return base64.RawURLEncoding.EncodeToString([]byte(strconv.Itoa(n))) }

func decodeCursor(cursor string) (n int, ok bool) {
	if cursor == "" {
		return 0, true
	}
	b, _ := base64.RawURLEncoding.DecodeString(cursor) // what is not base64 is not a number, either
	n, err := strconv.Atoi(string(b))
	return n, err == nil && n >= 0
}

// describe returns the body of an error. Of its codes only UNAUTHORIZED, which
// stands for a missing scope as well, and INTERNAL_SERVER_ERROR are published;
// the rest follow suit.
func (u *understory) describe(status int, f failure) any {
	code := strings.ToUpper(statusWord(status))
	if status == http.StatusForbidden {
		code = "UNAUTHORIZED"
	}
	return map[string]string{"code": code, "message": cmp.Or(f.details, http.StatusText(status))}
}

// statusWord returns the text of a status as one word, in lower case.
func statusWord(status int) string {
	return strings.ToLower(strings.NewReplacer(" ", "_", "-", "_").Replace(http.StatusText(status)))
}

func (u *understory) endpoints() map[string]func(*http.Request) answer {
	return map[string]func(*http.Request) answer{
		"/oauth2/token":            u.issue,
		"/oauth2/revoke":           u.revoke,
		"/admin/oauth2/introspect": u.introspect,
	}
}

// hydra returns a with the headers of Hydra's JSON.
func hydra(a answer) answer {
	return a.with("Cache-Control", "no-store").with("Pragma", "no-cache").with("Content-Type", "application/json;charset=UTF-8")
}

func (u *understory) tokenError(status int) answer {
	a, ok := u.company.Answers[strconv.Itoa(status)]
	if !ok {
		a = u.company.Answers[fmt.Sprintf("%dxx", status/100)]
	}
	a.Status = status
	return hydra(a.with(nil))
}

// issue answers RFC 6749 §4.4. The token is opaque and as long as those of the
// real server: long enough to find buffers that are too short.
func (u *understory) issue(r *http.Request) answer {
	if refusal, subject := u.refusal(r); refusal != "" {
		return hydra(u.company.Answers[refusal].with(values{"id": subject}))
	}
	random := make([]byte, 888)
	_, _ = rand.Read(random) // never fails
	t, _ := u.tokens.issue(token{
		value:    base64.RawURLEncoding.EncodeToString(random),
		scopes:   strings.Fields(r.PostForm.Get("scope")),
		audience: strings.Fields(r.PostForm.Get("audience")),
	}, u.Lifetime, 0)
	return hydra(u.company.Answers["granted"].with(t.values()))
}

// refusal returns the name of the answer to a token request that has to be
// refused, and what it is about.
func (u *understory) refusal(r *http.Request) (name, subject string) {
	switch refusal := checkForm(r); {
	case refusal != "":
		return refusal, ""
	case r.PostForm.Get("grant_type") == "":
		return "grant type missing", ""
	case u.authenticate(r) != "":
		return u.authenticate(r), ""
	case r.PostForm.Get("grant_type") != "client_credentials":
		return "unknown grant type", ""
	}
	for scope := range strings.FieldsSeq(r.PostForm.Get("scope")) {
		if !slices.Contains(u.company.Scopes, scope) {
			return "scope not allowed", scope
		}
	}
	for audience := range strings.FieldsSeq(r.PostForm.Get("audience")) {
		if audience != u.company.Audience {
			return "audience not allowed", audience
		}
	}
	return "", ""
}

// revoke answers RFC 7009: what is gone already was revoked as well.
func (u *understory) revoke(r *http.Request) answer {
	if refusal := cmp.Or(checkForm(r), u.authenticate(r)); refusal != "" {
		return hydra(u.company.Answers[refusal].with(nil))
	}
	u.tokens.revoke(r.PostForm.Get("token"))
	return answer{status: http.StatusOK}.with("Cache-Control", "no-store").with("Pragma", "no-cache")
}

// introspect answers RFC 7662. Hydra serves it on its administrator's port,
// without client authentication.
func (u *understory) introspect(r *http.Request) answer {
	if refusal := checkForm(r); refusal != "" {
		return hydra(u.company.Answers[refusal].with(nil))
	}
	t, live := u.tokens.find(r.PostForm.Get("token"))
	if !live {
		return hydra(u.company.Answers["introspect revoked"].with(nil))
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	active := t.values()
	active["issuer"] = scheme + "://" + r.Host
	return u.company.Answers["introspect active"].with(active).with("Content-Type", "application/json;charset=UTF-8")
}

// checkForm parses the form of r, or returns the name of a refusal.
func checkForm(r *http.Request) (refusal string) {
	if err := r.ParseForm(); err != nil {
		return "broken form"
	}
	if len(r.PostForm) == 0 {
		return "empty body"
	}
	return ""
}

// authenticate checks the client of r, or returns the name of a refusal. It is
// registered for client_secret_post; Hydra refuses other methods even where the
// secret is right.
func (u *understory) authenticate(r *http.Request) (refusal string) {
	id, secret := r.PostForm.Get("client_id"), r.PostForm.Get("client_secret")
	basicID, _, basic := r.BasicAuth()
	basicID, err := url.QueryUnescape(basicID)
	switch {
	case basic && (id == "" || secret == "") && err == nil && basicID == u.ClientID:
		return "basic where post is registered"
	case !basic && id == "":
		return "no credentials"
	case id != u.ClientID || secret != u.ClientSecret:
		return "unknown client"
	}
	return ""
}
