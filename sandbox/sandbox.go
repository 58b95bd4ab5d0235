// Package sandbox imitates the Understory and Voucherify APIs, with the token
// endpoints in front of them, so that a gateway can be developed, demonstrated
// and tested without credentials. A Server is a plain http.Handler; the Caddy
// module http.handlers.sandbox wraps one. Production builds leave the package
// out: nothing here is meant to keep a secret.
package sandbox

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
)

const (
	apiUnderstory = "understory"
	apiVoucherify = "voucherify"

	// maxBody is the longest request body that either API takes.
	maxBody = 10 << 20

	jsonType = "application/json; charset=utf-8"
)

// Options say which API a Server imitates and for whom.
type Options struct {
	// API is "understory" or "voucherify".
	API string

	// ClientID and ClientSecret are the one credential there is; for
	// Voucherify they are the app id and the app token.
	// Default: "sandbox" and "sandbox-secret".
	ClientID, ClientSecret string

	// Lifetime is how long a token lives. Fractions of a second count;
	// expires_in tells it rounded up. Default: 3599s for Understory,
	// 900s for Voucherify.
	Lifetime time.Duration
}

// checkAPI tells whether there is an imitation of api.
func checkAPI(api string) error {
	if api != apiUnderstory && api != apiVoucherify {
		return fmt.Errorf("unknown API %q; there are: %s, %s", api, apiUnderstory, apiVoucherify)
	}
	return nil
}

// withDefaults returns o with its gaps filled, or what is wrong with it.
func (o Options) withDefaults() (Options, error) {
	if err := checkAPI(o.API); err != nil {
		return o, err
	}
	if o.Lifetime < 0 {
		return o, fmt.Errorf("lifetime is negative: %v", o.Lifetime)
	}
	if o.Lifetime == 0 && o.API == apiUnderstory {
		o.Lifetime = 3599 * time.Second
	}
	if o.Lifetime == 0 {
		o.Lifetime = 900 * time.Second
	}
	if o.ClientID == "" {
		o.ClientID = "sandbox"
	}
	if o.ClientSecret == "" {
		o.ClientSecret = "sandbox-secret"
	}
	return o, nil
}

// Server imitates one API: its token endpoint, its introspection and
// revocation endpoints, the API itself and, under /sandbox/, the controls
// that a real one does not have.
type Server struct {
	state     *state
	imitation imitation
	oauth     map[string]endpoint
}

// imitation is what differs from one API to the other.
type imitation interface {
	// endpoints are those of the authorization server, by their paths.
	endpoints() map[string]endpoint

	// serveAPI answers every other request. Its body has been read already,
	// and is longer than maxBody if it was too long to be read.
	serveAPI(w http.ResponseWriter, r *http.Request, body []byte)

	// header sets what every answer of the API carries.
	header(h http.Header)

	// tokenError and apiError answer with an error status in the API's own
	// words, where there is no more to say about it.
	tokenError(w http.ResponseWriter, status int)
	apiError(w http.ResponseWriter, status int)
}

// endpoint is one of an authorization server. It is called for POST only.
type endpoint struct {
	serve  http.HandlerFunc
	issues bool // it is a token endpoint
}

// state is what outlives a config: everything a client could miss after a
// reload. Options are no part of it, so a changed secret leaves live tokens
// alone, as it does at the real APIs.
type state struct {
	tokens tokens
	faults atomic.Pointer[Faults]

	tokenRequests, apiRequests, unauthorized atomic.Int64

	company *company // what the Understory API serves
	project *project // what the Voucherify API serves
}

// Destruct makes a state poolable; there is nothing to release.
func (s *state) Destruct() error { return nil }

// String and GoString keep tokens out of the pool's panics.
func (s *state) String() string { return "sandbox state" }

// GoString is what %#v prints.
func (s *state) GoString() string { return s.String() }

func newState(api string) (*state, error) {
	s := new(state)
	s.faults.Store(new(Faults))
	var err error
	if api == apiUnderstory {
		s.company, err = newCompany()
	} else {
		s.project, err = newProject()
	}
	return s, err
}

// New returns a Server with its own tokens and sample data.
func New(o Options) (*Server, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	st, err := newState(o.API)
	if err != nil {
		return nil, err
	}
	return newServer(o, st), nil
}

func newServer(o Options, st *state) *Server {
	var im imitation
	if o.API == apiUnderstory {
		im = newUnderstory(o, st)
	} else {
		im = newVoucherify(o, st)
	}
	return &Server{state: st, imitation: im, oauth: im.endpoints()}
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
		s.serveControl(w, r)
		return
	}
	if e, ok := s.oauth[r.URL.Path]; ok {
		s.serveOAuth(w, r, e)
		return
	}

	s.state.apiRequests.Add(1)
	w = &unauthorizedCounter{ResponseWriter: w, count: &s.state.unauthorized}
	s.imitation.header(w.Header())
	if s.state.faults.Load().API.strike(w, r, s.imitation.apiError) {
		return
	}
	s.imitation.serveAPI(w, r, body)
}

func (s *Server) serveOAuth(w http.ResponseWriter, r *http.Request, e endpoint) {
	if e.issues {
		s.state.tokenRequests.Add(1)
		if s.state.faults.Load().Token.strike(w, r, s.imitation.tokenError) {
			return
		}
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		s.imitation.tokenError(w, http.StatusMethodNotAllowed)
		return
	}
	e.serve(w, r)
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
	return Stats{
		TokenRequests: s.state.tokenRequests.Load(),
		LiveTokens:    s.state.tokens.count(),
		APIRequests:   s.state.apiRequests.Load(),
		Unauthorized:  s.state.unauthorized.Load(),
	}
}

// RevokeAll revokes every live token.
func (s *Server) RevokeAll() { s.state.tokens.revokeAll() }

// unauthorizedCounter counts a 401 before it is sent, so that a client that
// has seen it finds it counted.
type unauthorizedCounter struct {
	http.ResponseWriter
	count *atomic.Int64
}

func (c *unauthorizedCounter) WriteHeader(status int) {
	if status == http.StatusUnauthorized {
		c.count.Add(1)
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *unauthorizedCounter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// writeJSON answers with v, without the newline that json.Encoder adds.
func writeJSON(w http.ResponseWriter, status int, contentType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "encoding the answer: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that has gone is no concern of ours
}
