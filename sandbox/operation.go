package sandbox

// This file finds the operation of an API that a request asks for, and checks
// what it needs.

import (
	"cmp"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// operation is something that an API does, as samples/*.json have it.
type operation struct {
	Does   string // list, get, create, update, delete or redeem; else answer with Body
	In     string // the collection that it is done in, or whose object the path names
	Scope  string // what the token needs, if anything
	Client bool   // Voucherify: it is on the client side as well

	Header, Query, Field string // what a request needs beside that; Field is one of its body

	Limit, Most int             // how long a page is, and may be
	Prefix      string          // how ids begin
	Set         json.RawMessage // fields of what is updated, or created if they were not sent

	canned // with {id}: the id or code that the answer is about

	// Each of the redeemables makes an element of {each} in Body: Known. If one
	// does not exist, {each} in Otherwise has Unknown for those, and Skipped for
	// the rest. Without Otherwise, the answer is 404.
	Known, Unknown, Skipped, Otherwise json.RawMessage

	method string
	path   string // in which `*` stands for one segment
	side   string // the scope of all operations on its side
}

// settings returns the fields that o sets.
func (o *operation) settings() (fields object) {
	_ = json.Unmarshal(fill(o.Set, nil), &fields) // no fields where there are none
	return fields
}

// permits reports whether o can be done with t. What scopes of Voucherify's v2
// cover is not published; here it is what the segment before the dot stands for.
func (o *operation) permits(t token) bool {
	return o.Scope == "" || slices.ContainsFunc(t.scopes, func(scope string) bool {
		return scope == o.Scope || scope == o.side || strings.HasPrefix(scope, o.Scope+".")
	})
}

// operations are in such an order that the first that matches is the one to
// use: those with a `*` come after others.
type operations []*operation

// UnmarshalJSON reads operations by their keys, `METHOD /path`.
func (os *operations) UnmarshalJSON(b []byte) error {
	var byKey map[string]operation
	err := json.Unmarshal(b, &byKey)
	for key, o := range byKey {
		o.method, o.path, _ = strings.Cut(key, " ")
		o.side = "api"
		*os = append(*os, &o)
		if o.Client {
			client := o
			client.path, client.side, client.Scope, client.Header = "/client"+o.path, "client_api", "client_"+o.Scope, "Origin"
			*os = append(*os, &client)
		}
	}
	slices.SortFunc(*os, func(a, b *operation) int {
		return cmp.Or(strings.Compare(b.path, a.path), strings.Compare(a.method, b.method))
	})
	return err
}

// find returns the operation that r asks for and the segment for its `*`.
// Where there is none, allowed are the methods that the path does have.
// http.ServeMux would do, if it did not redirect paths that it finds unclean.
func (os operations) find(r *http.Request) (found *operation, id string, allowed []string) {
	for _, o := range os {
		segment, ok := match(o.path, r.URL)
		if !ok {
			continue
		}
		if o.method == r.Method || o.method == http.MethodGet && r.Method == http.MethodHead {
			return o, segment, nil
		}
		allowed = append(allowed, o.method)
	}
	return nil, "", allowed
}

// match splits the path as it was sent, so that an encoded slash belongs to
// its segment.
func match(pattern string, u *url.URL) (id string, ok bool) {
	want := strings.Split(pattern, "/")
	have := strings.Split(u.EscapedPath(), "/")
	if len(want) != len(have) {
		return "", false
	}
	for i, segment := range have {
		segment, err := url.PathUnescape(segment)
		switch {
		case err == nil && want[i] == segment:
		case err == nil && want[i] == "*" && segment != "":
			id = segment
		default:
			return "", false
		}
	}
	return id, true
}

// call is a request to an API on its way to the operation that it asks for.
type call struct {
	*http.Request
	body []byte
	id   string // the segment that `*` stood for, decoded
}

// object returns the JSON object that c has for a body, or nil.
func (c *call) object() (o object) {
	_ = json.Unmarshal(c.body, &o) // what is not one leaves o as it is
	return o
}

// number returns the query parameter of that name, or byDefault.
func (c *call) number(name string, byDefault, most int) (n int, ok bool) {
	text := c.URL.Query().Get(name)
	if text == "" {
		return byDefault, true
	}
	n, err := strconv.Atoi(text)
	return n, err == nil && n >= 1 && n <= most
}

// failure is why an API refuses a request: in words, or because an object of
// that kind and id does not exist. All may be empty.
type failure struct{ details, kind, id string }

func refuse(status int, details string) answer {
	return answer{status: status, body: failure{details: details}}
}

func notFound(collection, id string) answer {
	return answer{status: http.StatusNotFound, body: failure{kind: strings.TrimSuffix(collection, "s"), id: id}}
}

// call answers a request to the API.
func (s *Server) call(r *http.Request, body []byte) answer {
	s.apiRequests.Add(1)
	a, struck := s.faults.Load().API.strike(r, func(status int) answer { return refuse(status, "") })
	if !struck {
		a = s.operate(r, body)
	}
	if a.status == http.StatusUnauthorized { // before it is sent: whoever was refused finds it counted
		s.unauthorized.Add(1)
	}
	if f, ok := a.body.(failure); ok {
		a.body = s.imitation.describe(a.status, f)
	}
	soon := strconv.FormatInt(time.Now().Add(time.Minute).Unix(), 10)
	for name, value := range s.company.Headers {
		a = a.with(name, strings.ReplaceAll(value, "{soon}", soon))
	}
	return a
}

func (s *Server) operate(r *http.Request, body []byte) answer {
	t, live := s.tokens.bearer(r)
	forOthers := s.company.Audience != "" && !slices.Contains(t.audience, s.company.Audience)
	o, id, allowed := s.company.Operations.find(r)
	c := &call{r, body, id}
	switch {
	case !live || forOthers || strings.HasPrefix(r.URL.Path, "/management/"): // which takes no tokens
		return refuse(http.StatusUnauthorized, "")
	case len(body) > maxBody:
		return refuse(http.StatusRequestEntityTooLarge, "")
	case o == nil && allowed == nil:
		return refuse(http.StatusNotFound, "")
	case o == nil:
		return refuse(http.StatusMethodNotAllowed, "").with("Allow", strings.Join(allowed, ", "))
	case !o.permits(t):
		return refuse(http.StatusForbidden, "The access token lacks the scope "+o.Scope)
	case o.Header != "" && r.Header.Get(o.Header) == "":
		return refuse(http.StatusBadRequest, "The header "+o.Header+" is required")
	case o.Query != "" && r.URL.Query().Get(o.Query) == "":
		return refuse(http.StatusBadRequest, "The parameter "+o.Query+" is required")
	case o.Field != "" && c.object()[o.Field] == nil:
		return refuse(http.StatusBadRequest, "The body must be a JSON object with "+o.Field)
	case o.Does == "list":
		return s.imitation.page(c, o, s.company.all(o.In))
	}
	return s.company.answer(c, o)
}
