package sandbox

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// call is a request to an API on its way to the operation that it asks for.
type call struct {
	*http.Request
	body  []byte
	id    string // the segment that `*` stood for, decoded
	token token
}

// operation is something that an API does.
type operation struct {
	method string
	path   string // in which `*` stands for one segment
	serve  func(http.ResponseWriter, *call)
}

// access is how v2 scopes and those of Understory end for o.
func (o operation) access() string {
	if o.method == http.MethodGet {
		return ".read"
	}
	return ".write"
}

// find returns the operation that r asks for and the segment for its `*`.
// Where there is none, allowed are the methods that the path does have.
// http.ServeMux would do, if it did not redirect paths that it finds unclean.
func find(ops []operation, r *http.Request) (op operation, id string, allowed []string) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet // net/http leaves the body out
	}
	for _, o := range ops {
		segment, ok := match(o.path, r.URL)
		if !ok {
			continue
		}
		if o.method == method {
			return o, segment, nil
		}
		if !slices.Contains(allowed, o.method) {
			allowed = append(allowed, o.method)
		}
	}
	return operation{}, "", allowed
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
		if err != nil {
			return "", false
		}
		if want[i] == "*" && segment != "" {
			id = segment
			continue
		}
		if want[i] != segment {
			return "", false
		}
	}
	return id, true
}
