// Package sandbox imitates the Understory and Voucherify APIs and their token
// endpoints, so that a gateway can be developed, demonstrated and tested without
// credentials. What a gateway does not see is canned. A Server is a plain
// http.Handler; the Caddy module http.handlers.sandbox wraps one. Production
// builds leave the package out: nothing here is meant to keep a secret.
package sandbox

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	apiUnderstory = "understory"
	apiVoucherify = "voucherify"

	defaultClient = "sandbox"
	defaultSecret = "sandbox-secret"

	maxBody = 10 << 20 // of a request, to either API

	jsonType = "application/json; charset=utf-8"
)

// Options say which API a Server imitates and for whom.
type Options struct {
	API string // "understory" or "voucherify"

	// ClientID and ClientSecret are the one credential there is; for
	// Voucherify they are the app id and the app token. Each ClientID sees a
	// company of its own. Default: "sandbox" and "sandbox-secret".
	ClientID, ClientSecret string

	// Lifetime is how long a token lives; expires_in is rounded up to seconds.
	// Default: 3599s for Understory, 900s for Voucherify.
	Lifetime time.Duration
}

// withDefaults returns o with its gaps filled, or what is wrong with it.
func (o Options) withDefaults() (Options, error) {
	if err := checkAPI(o.API); err != nil {
		return o, err
	}
	if o.Lifetime < 0 {
		return o, fmt.Errorf("lifetime is negative: %v", o.Lifetime)
	}
	lifetimes := map[string]time.Duration{apiUnderstory: 3599 * time.Second, apiVoucherify: 900 * time.Second}
	o.Lifetime = cmp.Or(o.Lifetime, lifetimes[o.API])
	o.ClientID = cmp.Or(o.ClientID, defaultClient)
	o.ClientSecret = cmp.Or(o.ClientSecret, defaultSecret)
	return o, nil
}

// checkAPI returns an error if api is not imitated.
func checkAPI(api string) error {
	if api != apiUnderstory && api != apiVoucherify {
		return fmt.Errorf("unknown API %q; there are: %s, %s", api, apiUnderstory, apiVoucherify)
	}
	return nil
}

// Server imitates one API and its authorization server. Under /sandbox/ it has
// controls that a real one does not have.
type Server struct {
	*state
	imitation imitation
	endpoints map[string]func(*http.Request) answer
}

// imitation is what differs from one API to the other, beside their samples.
type imitation interface {
	// endpoints returns those of the authorization server, by path. They are
	// called for POST only.
	endpoints() map[string]func(*http.Request) answer
	// tokenError is how the authorization server answers with an error status.
	tokenError(status int) answer
	// page answers with the page of objects that c asks for.
	page(c *call, o *operation, objects []object) answer
	// describe returns the body of an error of the API.
	describe(status int, f failure) any
}

// state is what outlives a config: everything a client could miss after a
// reload. Options are not part of it, so a changed secret leaves live tokens
// alone, as it does at the real APIs.
type state struct {
	tokens  tokens
	faults  atomic.Pointer[Faults]
	company *company

	tokenRequests, apiRequests, unauthorized atomic.Int64
}

func newState(o Options) (*state, error) {
	co, err := newCompany(o.API, o.ClientID)
	s := &state{company: co, tokens: tokens{byValue: make(map[string]token)}}
	s.faults.Store(new(Faults))
	return s, err
}

// Destruct makes a state poolable; there is nothing to release.
func (s *state) Destruct() error { return nil }

// String and GoString keep tokens out of the pool's panics.
func (s *state) String() string   { return "sandbox state" }
func (s *state) GoString() string { return s.String() }

// New returns a Server with its own tokens and sample data.
func New(o Options) (*Server, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	st, err := newState(o)
	if err != nil {
		return nil, err
	}
	return newServer(o, st), nil
}

func newServer(o Options, st *state) *Server {
	var im imitation = &understory{o, st}
	if o.API == apiVoucherify {
		im = &voucherify{o, st}
	}
	return &Server{st, im, im.endpoints()}
}

// ServeHTTP answers r as the imitated API or, under /sandbox/, as its remote
// control. It reads the body to its end before anything else: uploads then
// stream as they do to a server that takes them, and net/http notices a client
// that leaves during an injected latency only once its body was read.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		http.Error(w, "the request body broke off", http.StatusBadRequest)
		return
	}
	r = r.WithContext(r.Context()) // a copy: whoever called keeps their body
	r.Body = io.NopCloser(bytes.NewReader(body))

	if r.URL.Path == "/sandbox" || strings.HasPrefix(r.URL.Path, "/sandbox/") {
		s.control(r).write(w)
		return
	}
	if serve, ok := s.endpoints[r.URL.Path]; ok {
		s.authorize(r, serve).write(w)
		return
	}
	s.call(r, body).write(w)
}

// authorize answers a request to the authorization server.
func (s *Server) authorize(r *http.Request, serve func(*http.Request) answer) answer {
	if strings.HasSuffix(r.URL.Path, "/token") {
		s.tokenRequests.Add(1)
		if a, ok := s.faults.Load().Token.strike(r, s.imitation.tokenError); ok {
			return a
		}
	}
	if r.Method != http.MethodPost {
		return s.imitation.tokenError(http.StatusMethodNotAllowed).with("Allow", http.MethodPost)
	}
	return serve(r)
}

// Stats counts what a Server was asked.
type Stats struct {
	TokenRequests int64 `json:"token_requests"` // to a token endpoint, failed ones too
	LiveTokens    int   `json:"live_tokens"`
	APIRequests   int64 `json:"api_requests"`
	Unauthorized  int64 `json:"unauthorized"` // API requests answered 401
}

// Stats returns what was counted so far.
func (s *Server) Stats() Stats {
	return Stats{s.tokenRequests.Load(), s.tokens.count(), s.apiRequests.Load(), s.unauthorized.Load()}
}

// RevokeAll revokes every live token.
func (s *Server) RevokeAll() { s.tokens.revokeAll() }

// answer is what a request is answered with.
type answer struct {
	status int
	header []string // names and values, in turn

	// body is sent as JSON, unless it is nil or a string. That of an error of
	// an API is a failure until the API has described it.
	body any
}

func succeed(body any) answer { return answer{status: http.StatusOK, body: body} }

// with returns a with one more header, or another value of it.
func (a answer) with(name, value string) answer {
	a.header = append(slices.Clip(a.header), name, value)
	return a
}

func (a answer) write(w http.ResponseWriter) {
	body, isText := a.body.(string)
	if !isText && a.body != nil {
		encoded, _ := json.Marshal(a.body) // all bodies can be encoded
		body = string(encoded)
		w.Header().Set("Content-Type", jsonType)
	}
	for i := 0; i < len(a.header); i += 2 {
		w.Header().Set(a.header[i], a.header[i+1])
	}
	w.WriteHeader(a.status)
	_, _ = io.WriteString(w, body) // a client that has gone is not our concern
}
