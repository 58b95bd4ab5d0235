package egress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
	"github.com/caddy-egress/caddy-egress/tokenstore"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

const adminPath = "/egress/tokens"

// adminAPI reports how the credentials in use are doing, and acts on them:
//
//	GET  /egress/tokens                      all of them
//	GET  /egress/tokens/<name>               one; <credential>/<tenant> is that of a tenant
//	POST /egress/tokens/<name>/refresh       replace the token now
//	POST /egress/tokens/<name>/revoke        revoke the token; another is obtained at once
//	POST /egress/tokens/<name>/introspect    ask the authorization server about the token
//
// Answers are JSON. None holds a secret or a token.
type adminAPI struct{}

// CaddyModule returns the Caddy module information.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.egress",
		New: func() caddy.Module { return new(adminAPI) },
	}
}

// Routes implements caddy.AdminRouter.
func (a *adminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: adminPath, Handler: caddy.AdminHandlerFunc(a.list)},
		{Pattern: adminPath + "/", Handler: caddy.AdminHandlerFunc(a.one)},
	}
}

// CredentialStatus is how a credential is doing, as the admin API reports it.
type CredentialStatus struct {
	Credential      string           `json:"credential"`
	Provider        string           `json:"provider"`
	TokenEndpoint   string           `json:"token_endpoint"`
	ClientID        string           `json:"client_id"`
	ScopesRequested []string         `json:"scopes_requested"`
	ScopesGranted   []string         `json:"scopes_granted,omitempty"` // absent without a token
	State           string           `json:"state"`                    // fresh, refreshing, stale, expired, refused or idle
	Issued          time.Time        `json:"issued,omitzero"`
	Expires         time.Time        `json:"expires,omitzero"`
	TokenFrom       string           `json:"token_from,omitempty"`    // own or shared: who obtained it; absent without a token
	SecretInUse     int              `json:"secret_in_use,omitempty"` // which value of the secret the token was obtained with, from 1, as they are now; 0: none of them, or without a token
	SecretValues    int              `json:"secret_values,omitempty"` // how many values the secret has in the config, if it has several
	Rejected        bool             `json:"rejected,omitempty"`      // the API has answered 401 to the token, and no other could be had since
	NextAttempt     time.Time        `json:"next_attempt,omitzero"`   // absent: when a request needs a token
	LastError       *CredentialError `json:"last_error,omitempty"`    // absent if the last token request succeeded
	TokenRequests   int64            `json:"token_requests"`
	TokenFailures   int64            `json:"token_failures"`
	Remaining       *int64           `json:"rate_limit_remaining,omitempty"` // absent where the API does not say
	LimitedUntil    time.Time        `json:"rate_limited_until,omitzero"`    // absent if the API does not limit the rate now
	Store           *StoreStatus     `json:"store,omitempty"`                // absent if tokens are not shared
}

// StoreStatus is how the storage of shared tokens is doing.
type StoreStatus struct {
	Storage string    `json:"storage"` // its module
	State   string    `json:"state"`   // ok or failing
	Since   time.Time `json:"since"`
	Error   string    `json:"error,omitempty"`
}

// CredentialError is why there is no token, or no fresh one.
type CredentialError struct {
	Class    string    `json:"class"` // transient, refused or malformed
	Status   int       `json:"status,omitempty"`
	Code     string    `json:"code,omitempty"`
	Message  string    `json:"message"`
	Advice   string    `json:"advice,omitempty"`
	Since    time.Time `json:"since"`
	Attempts int       `json:"attempts"`
}

// statusPatience bounds how long a status waits for the files of a secret.
const statusPatience = 200 * time.Millisecond

// status returns how the credential is doing.
func (c *activeCredential) status() CredentialStatus {
	reading, cancel := context.WithTimeout(context.Background(), statusPatience)
	defer cancel()
	grant := c.source.Provider().Grant()
	status := c.source.Status()
	answer := CredentialStatus{
		Credential:      c.name(),
		Provider:        grant.Provider,
		TokenEndpoint:   grant.TokenURL,
		ClientID:        grant.ClientID,
		ScopesRequested: append([]string{}, grant.Scopes...),
		State:           string(status.Phase),
		Issued:          status.Issued,
		Expires:         status.Expires,
		SecretInUse:     c.source.SecretInUse(reading),
		SecretValues:    status.SecretValues,
		Rejected:        status.Rejected,
		NextAttempt:     status.Next,
		TokenRequests:   status.Requests,
		TokenFailures:   status.Failures,
	}
	if !status.Expires.IsZero() {
		answer.ScopesGranted = status.Granted
		if answer.ScopesGranted == nil { // not said means as asked for, RFC 6749 §5.1
			answer.ScopesGranted = answer.ScopesRequested
		}
		answer.TokenFrom = tokenFromOwn
		if status.Shared {
			answer.TokenFrom = tokenFromShared
		}
	}
	if c.store != nil {
		answer.Store = storeStatus(c.store.Health())
	}
	if status.Failure != nil {
		answer.LastError = &CredentialError{
			Class:    string(status.Class),
			Message:  status.Failure.Error(),
			Since:    status.Since,
			Attempts: status.Attempts,
			Advice:   tokenprovider.Advice(status.Failure),
		}
		if e, ok := errors.AsType[*tokenprovider.Error](status.Failure); ok {
			answer.LastError.Status, answer.LastError.Code = e.Status, e.Code
		}
	}
	if n := c.rateLimit.remaining.Load(); n >= 0 {
		answer.Remaining = &n
	}
	if left := c.rateLimit.limitedFor(0); left > 0 {
		answer.LimitedUntil = time.Now().Add(left)
	}
	return answer
}

// Who obtained a token: this instance, or another that shares its tokens.
const (
	tokenFromOwn    = "own"
	tokenFromShared = "shared"
)

// States of the storage of shared tokens.
const (
	storeOK      = "ok"
	storeFailing = "failing"
)

func storeStatus(h tokenstore.Health) *StoreStatus {
	status := &StoreStatus{Storage: h.Storage, State: storeOK, Since: h.Since}
	if h.Failing {
		status.State, status.Error = storeFailing, h.Err.Error()
	}
	return status
}

// app returns the egress app of the running config; nil if it has none. It is
// never that of the module's own context: Caddy serves the admin API of a config
// before the apps are set up, and looking one up then is a data race.
func (*adminAPI) app() (*App, error) {
	app, err := caddy.ActiveContext().AppIfConfigured("egress")
	switch {
	case errors.Is(err, caddy.ErrNotConfigured):
		return nil, nil
	case err != nil:
		return nil, caddy.APIError{HTTPStatus: http.StatusInternalServerError, Err: err}
	}
	return app.(*App), nil
}

func (a *adminAPI) list(w http.ResponseWriter, r *http.Request) error {
	if err := onlyMethod(w, r, http.MethodGet); err != nil {
		return err
	}
	app, err := a.app()
	if err != nil {
		return err
	}
	all := []CredentialStatus{}
	if app != nil {
		for _, c := range app.credentials() {
			if !c.isFamily() {
				all = append(all, c.status())
				continue
			}
			for _, c := range c.tenants.all() {
				all = append(all, c.status())
			}
		}
	}
	return writeAdmin(w, all)
}

// one serves a credential, or an action on it.
func (a *adminAPI) one(w http.ResponseWriter, r *http.Request) error {
	app, err := a.app()
	if err != nil {
		return err
	}
	name, action, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, adminPath+"/"), "/")
	var c *activeCredential
	if app != nil {
		c = app.credential(name)
	}
	var tenant string
	if c != nil && c.isFamily() {
		tenant, action, _ = strings.Cut(action, "/")
		if _, named := actions[tenant]; !isTenantName(tenant) || named && action == "" && r.Method != http.MethodGet {
			return notFound("credential %s has one for each tenant; name one, as in %[1]s/acme", name)
		}
	}
	act, known := actions[action]
	if !known {
		return notFound("no such action: %s; there are refresh, revoke, introspect", action)
	}
	if c == nil {
		return notFound("no credential in use is named %q%s", name, inUse(app))
	}
	if err := onlyMethod(w, r, act.method); err != nil {
		return err
	}
	if c.isFamily() {
		family := c
		if c, err = ofTenant(r, family, tenant); err != nil {
			logAction(r, action, family.name()+"/"+tenant, err)
			return err
		}
	}
	answer, err := act.do(r.Context(), app, c)
	logAction(r, action, c.name(), err)
	if err != nil {
		return actionError(action, err)
	}
	return writeAdmin(w, answer)
}

// logAction logs who had something done to a token, and what came of it. What is
// only looked at is not logged.
func logAction(r *http.Request, action, credential string, err error) {
	if action != "refresh" && action != "revoke" {
		return
	}
	fields := []zap.Field{
		zap.String("action", action), zap.String("credential", credential),
		zap.String("remote_addr", r.RemoteAddr), zap.String("user_agent", r.UserAgent()),
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 { // remote administration
		fields = append(fields, zap.String("identity", r.TLS.PeerCertificates[0].Subject.String()))
	}
	if err != nil {
		fields = append(fields, zap.Error(err))
	}
	caddy.Log().Named("admin.api.egress").Info("an operator acted on a token", fields...)
}

// maxNamesListed bounds the credentials that an error lists.
const maxNamesListed = 20

// inUse lists the credentials in use, for an error.
func inUse(app *App) string {
	if app == nil {
		return ""
	}
	var names []string
	for _, c := range app.credentials() {
		names = append(names, c.name())
	}
	return "; " + listNames(names)
}

// listNames lists the credentials in use, for an error.
func listNames(names []string) string {
	if len(names) == 0 {
		return "none is in use"
	}
	shown := names[:min(len(names), maxNamesListed)]
	listed := "in use: " + strings.Join(shown, ", ")
	if left := len(names) - len(shown); left > 0 {
		listed += fmt.Sprintf(", and %d more", left)
	}
	return listed
}

func notFound(format string, args ...any) error {
	return caddy.APIError{HTTPStatus: http.StatusNotFound, Err: fmt.Errorf(format, args...)}
}

// ofTenant returns the credential of a tenant. To look at it does not set it up; to
// act on it does.
func ofTenant(r *http.Request, family *activeCredential, tenant string) (*activeCredential, error) {
	if r.Method == http.MethodGet {
		if c := family.tenants.peek(tenant); c != nil {
			return c, nil
		}
		return nil, notFound("tenant %s of credential %s is not live; it is set up by the next request that names it", tenant, family.name())
	}
	c, err := family.tenants.get(r.Context(), tenant)
	switch {
	case errors.Is(err, errTenantUnknown):
		return nil, notFound("tenant %s of credential %s: %w", tenant, family.name(), err)
	case err != nil:
		return nil, caddy.APIError{HTTPStatus: http.StatusBadGateway, Err: err}
	}
	return c, nil
}

// action is what can be done to a credential.
type action struct {
	method string
	do     func(context.Context, *App, *activeCredential) (any, error)
}

var actions = map[string]action{
	"": {http.MethodGet, func(_ context.Context, _ *App, c *activeCredential) (any, error) {
		return c.status(), nil
	}},
	"refresh": {http.MethodPost, func(ctx context.Context, _ *App, c *activeCredential) (any, error) {
		err := c.source.Refresh(ctx)
		status := c.status()
		return status, status.refreshError(err)
	}},
	"revoke": {http.MethodPost, func(ctx context.Context, app *App, c *activeCredential) (any, error) {
		err := c.source.Revoke(ctx)
		if err == nil {
			app.emit(eventTokenRevoked, c, nil)
		}
		return c.status(), err
	}},
	"introspect": {http.MethodPost, func(ctx context.Context, _ *App, c *activeCredential) (any, error) {
		return c.source.Introspect(ctx)
	}},
}

// refreshError is err, a failed refresh, with what becomes of the token in use.
func (c CredentialStatus) refreshError(err error) error {
	e, failed := errors.AsType[*tokensource.Error](err)
	if !failed || c.Expires.IsZero() {
		return err
	}
	kept := "the token in use stays until it expires " + until(c.Expires, time.Now())
	if c.Rejected {
		kept = "the API has answered 401 to the token in use"
	}
	return fmt.Errorf("no new token for credential %s: %w; %s", e.Credential, e.Err, kept)
}

// actionError is err as the admin API answers it.
func actionError(name string, err error) error {
	status := http.StatusBadGateway // the authorization server has failed
	switch {
	case errors.Is(err, tokensource.ErrNotSupported):
		status = http.StatusNotImplemented
	case errors.Is(err, tokensource.ErrNoToken):
		status = http.StatusConflict
	}
	return caddy.APIError{HTTPStatus: status, Err: fmt.Errorf("%s: %w", name, err)}
}

func onlyMethod(w http.ResponseWriter, r *http.Request, method string) error {
	if r.Method == method {
		return nil
	}
	w.Header().Set("Allow", method)
	return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Err: fmt.Errorf("method not allowed: %s; use %s", r.Method, method)}
}

func writeAdmin(w http.ResponseWriter, answer any) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	return json.NewEncoder(w).Encode(answer)
}

// Interface guards
var _ caddy.AdminRouter = (*adminAPI)(nil)
