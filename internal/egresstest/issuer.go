package egresstest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// Issuer is an authorization server, and an API for its tokens, to several
// processes. It knows which tokens are live, and who has asked for each. What is
// at /<credential>/ of the API needs a token of the client of that name.
type Issuer struct {
	*httptest.Server

	t        testing.TB
	lifetime time.Duration // of tokens

	mu       sync.Mutex
	lenient  bool
	requests []*TokenRequest
	byToken  map[string]*TokenRequest
	uses     []TokenUse
	hold     chan *HeldRequest // the next token request is held, and sent here
}

// TokenRequest is a token request as it arrived.
type TokenRequest struct {
	At      time.Time
	Client  string
	Process string // that has sent it
	Token   string // that was issued for it
	Gone    bool   // whoever has sent it was gone before the answer

	revoked time.Time
}

// TokenUse is a request of the API.
type TokenUse struct {
	At         time.Time
	Process    string
	Credential string
	Token      string
}

// NewIssuer starts an issuer of tokens with a lifetime in whole seconds.
func NewIssuer(t testing.TB, lifetime time.Duration) *Issuer {
	t.Helper()
	i := &Issuer{t: t, lifetime: lifetime, byToken: make(map[string]*TokenRequest)}
	mux := http.NewServeMux()
	mux.HandleFunc("/oauth/token", i.issue)
	mux.HandleFunc("/oauth/revoke", i.revoke)
	mux.HandleFunc("/{credential}/", i.serveAPI)
	i.Server = httptest.NewServer(mux)
	t.Cleanup(i.Close)
	return i
}

// Credential returns the definition of a credential whose client has its name.
func (i *Issuer) Credential(name string, options ...string) string {
	return fmt.Sprintf(`credential %[1]s test_named %[2]s {
		token_url %[2]s/oauth/token
		revocation_url %[2]s/oauth/revoke
		client_id %[1]s
		client_secret {env.%[3]s}
		%[4]s
	}
	`, name, i.URL, SecretVariable, strings.Join(options, "\n"))
}

// AcceptRevoked has the API take tokens that are revoked, as APIs do that do not
// ask the authorization server about each.
func (i *Issuer) AcceptRevoked() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.lenient = true
}

// HeldRequest is a token request that is not answered until it is released.
type HeldRequest struct {
	Process string // that has sent it
	release chan struct{}
}

// Release has it answered.
func (h *HeldRequest) Release() { close(h.release) }

// Hold has the next token request held.
func (i *Issuer) Hold() <-chan *HeldRequest {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.hold = make(chan *HeldRequest, 1)
	return i.hold
}

// issue is the token endpoint.
func (i *Issuer) issue(w http.ResponseWriter, r *http.Request) {
	client, secret, _ := r.BasicAuth()
	if err := r.ParseForm(); err != nil || r.PostForm.Get("grant_type") != "client_credentials" || client == "" || secret == "" {
		i.t.Errorf("a token request of %q with %v: %v", client, r.PostForm, err)
	}
	request := &TokenRequest{At: time.Now(), Client: client, Process: r.Header.Get(processHeader)}

	i.mu.Lock()
	request.Token = fmt.Sprintf("%s%s-%d", TokenPrefix, client, len(i.requests)+1)
	i.requests = append(i.requests, request)
	i.byToken[request.Token] = request
	hold := i.hold
	i.hold = nil
	i.mu.Unlock()

	if hold != nil {
		held := &HeldRequest{Process: request.Process, release: make(chan struct{})}
		hold <- held
		select {
		case <-held.release:
		case <-r.Context().Done():
			i.mu.Lock()
			request.Gone = true
			i.mu.Unlock()
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"access_token":%q,"token_type":"bearer","expires_in":%d}`, request.Token, int(i.lifetime.Seconds()))
}

// revoke is the revocation endpoint.
func (i *Issuer) revoke(_ http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if request := i.byToken[r.PostFormValue("token")]; request != nil {
		request.revoked = time.Now()
	}
}

// sentHeader says when a request was sent.
const sentHeader = "X-Sent"

// serveAPI checks that the token of a request was live when the request was sent, which
// may be long ago where the machine is busy, and of the right client.
func (i *Issuer) serveAPI(w http.ResponseWriter, r *http.Request) {
	now := time.Now()
	sent, err := time.Parse(time.RFC3339Nano, r.Header.Get(sentHeader))
	if err != nil {
		sent = now
	}
	use := TokenUse{At: now, Process: r.Header.Get(processHeader), Credential: r.PathValue("credential")}
	use.Token = strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")

	i.mu.Lock()
	defer i.mu.Unlock()
	i.uses = append(i.uses, use)
	request := i.byToken[use.Token]
	var fault string
	switch {
	case request == nil:
		fault = "that was never issued"
	case request.Client != use.Credential:
		fault = "of client " + request.Client
	case sent.After(request.At.Add(i.lifetime)):
		fault = fmt.Sprintf("that had expired %s before", sent.Sub(request.At.Add(i.lifetime)))
	case !request.revoked.IsZero() && !i.lenient:
		w.WriteHeader(http.StatusUnauthorized) // whoever has not heard of it yet tries another
		return
	default:
		return
	}
	i.t.Errorf("a request of %s to %s carries %q, a token %s", use.Process, use.Credential, use.Token, fault)
	w.WriteHeader(http.StatusUnauthorized)
}

// Requests returns the token requests of a client so far, in their order.
func (i *Issuer) Requests(client string) (requests []TokenRequest) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, request := range i.requests {
		if request.Client == client {
			requests = append(requests, *request)
		}
	}
	return requests
}

// Uses returns the requests of the API with a credential so far.
func (i *Issuer) Uses(credential string) []TokenUse {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(i.uses), func(use TokenUse) bool { return use.Credential != credential })
}

// Tokens returns all tokens issued so far.
func (i *Issuer) Tokens() (tokens []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, request := range i.requests {
		tokens = append(tokens, request.Token)
	}
	return tokens
}

// Revoked returns the tokens that were revoked so far.
func (i *Issuer) Revoked() (tokens []string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, request := range i.requests {
		if !request.revoked.IsZero() {
			tokens = append(tokens, request.Token)
		}
	}
	return tokens
}

// Identity returns the identity of a credential, as entries of it are named.
func (i *Issuer) Identity(credential string) string {
	return tokenprovider.Grant{
		Provider: "oauth2", TokenURL: i.URL + "/oauth/token", ClientID: credential, AuthMethod: "client_secret_basic",
	}.Identity()
}
