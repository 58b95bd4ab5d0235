package egress

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
	"github.com/caddy-egress/caddy-egress/tokensource"
)

// What came of a token, or of one value of a secret, besides the classes of failed
// token requests.
const (
	checkOK            = "ok"
	checkMisconfigured = "misconfigured" // no request was made: an option is wrong, or has no value
	checkNotTried      = "not_tried"     // no request was made: it would have failed, or nothing needs it
	checkUnclear       = "unclear"       // of a value: the request failed for another reason
)

// checkedClients are the clients that tokens have been asked for with.
type checkedClients map[string]*checkedClient

// checkedClient is a client of an authorization server: one credential, whatever
// the scopes of its tokens.
type checkedClient struct {
	name    string          // of its first token
	secrets []checkedSecret // in the configured order
	failure *checkFailure   // all of them are bad, for this reason
}

// checkedSecret is what came of one value of a secret.
type checkedSecret struct {
	Number int    `json:"number"` // from 1, in the configured order
	Result string `json:"result"` // ok, refused, misconfigured, unclear or not_tried
	Error  string `json:"error,omitempty"`
}

// isBad reports whether no token is to be had with the value.
func (s checkedSecret) isBad() bool {
	return s.Result == string(tokenprovider.Refused) || s.Result == checkMisconfigured
}

// checkFailure says why there is no token.
type checkFailure struct {
	result string
	err    error
	advice string
}

func newCheckFailure(err error) *checkFailure {
	if e, ok := errors.AsType[*tokenprovider.Error](err); ok {
		return &checkFailure{string(e.Class), e, e.Advice()}
	}
	return &checkFailure{checkMisconfigured, err, "correct the config or what its placeholders stand for"}
}

// of returns the client of a credential. All that have the same identifier at the
// same server, and the same secrets, are one.
func (cs checkedClients) of(c foundCredential, name string, provider tokenprovider.Provider) *checkedClient {
	grant := provider.Grant()
	grant.Scopes = nil
	key, known := grant.Identity(), false
	alternatives := tokenprovider.Alternatives(provider)
	for _, alternative := range alternatives {
		if secrets, err := alternative.Secrets(); err == nil && tokenprovider.HasLasting(secrets) {
			fingerprint := tokensource.Fingerprint(secrets)
			key, known = key+string(fingerprint[:]), true
		}
		key += " "
	}
	if !known { // others may have the same identifier, and prove it by something else
		key += c.ofTenant(cmp.Or(c.name, string(c.ProviderRaw)))
	}
	if cs[key] == nil {
		if c.name != "" {
			name = c.ofTenant(c.name)
		}
		cs[key] = &checkedClient{name: name, secrets: make([]checkedSecret, len(alternatives))}
		for i := range alternatives {
			cs[key].secrets[i] = checkedSecret{Number: i + 1, Result: checkNotTried}
		}
	}
	return cs[key]
}

// token asks for a token with one value of the secret after the other, until there
// is one and no value is left that has not been tried. It returns the alternative
// that obtained it. A value that is known to be bad is not tried again.
func (cc *checkedClient) token(alternatives []tokenprovider.Provider, ask func(tokenprovider.Provider) (*tokenprovider.Token, error)) (token *tokenprovider.Token, by tokenprovider.Provider, failure *checkFailure) {
	for i, alternative := range alternatives {
		s := &cc.secrets[i]
		if s.isBad() || token != nil && s.Result == checkOK {
			continue
		}
		_, err := alternative.Secrets()
		var got *tokenprovider.Token
		if err == nil {
			got, err = ask(alternative)
		}
		if err == nil {
			s.Result, s.Error = checkOK, ""
			if token == nil {
				token, by = got, alternative
			}
			continue
		}
		failed := newCheckFailure(err)
		e, answered := errors.AsType[*tokenprovider.Error](err)
		if ofValue := !answered || e.UnknownClient(); ofValue {
			s.Result, s.Error = failed.result, err.Error()
			if failure == nil || failure.result == checkMisconfigured { // a refusal says more
				failure = failed
			}
			continue
		}
		if s.Result != checkOK {
			s.Result, s.Error = checkUnclear, err.Error()
		}
		if token == nil { // another value would not fare better
			return nil, nil, failed
		}
	}
	if token == nil {
		cc.failure = failure
		return nil, nil, failure
	}
	return token, by, nil
}

// maxScopesTried bounds the token requests that are made to find out which scopes
// are refused.
const maxScopesTried = 20

// refusedScopes returns the scopes that are the reason for the failure: those for
// which there is no token if they are asked for alone. Token endpoints say in words
// which these are, if they do, and their words are not shown.
func (cc *checkedClient) refusedScopes(alternatives []tokenprovider.Provider, failure *checkFailure, ask func(tokenprovider.Provider) (*tokenprovider.Token, error)) []string {
	good := slices.IndexFunc(cc.secrets, func(s checkedSecret) bool { return !s.isBad() })
	if good < 0 || !refusesScope(failure.err) {
		return nil
	}
	scopes := alternatives[good].Grant().Scopes
	if len(scopes) == 1 {
		return scopes
	}
	var refused []string
	for _, scope := range scopes[:min(len(scopes), maxScopesTried)] {
		alone, err := alternatives[good].WithScopes([]string{scope})
		if err != nil {
			continue
		}
		switch _, err := ask(alone); {
		case refusesScope(err):
			refused = append(refused, scope)
		case err != nil: // the server has had enough, or is in trouble
			return refused
		}
	}
	return refused
}

// refusesScope reports whether err is the refusal of a scope.
func refusesScope(err error) bool {
	e, ok := errors.AsType[*tokenprovider.Error](err)
	return ok && e.Class == tokenprovider.Refused && e.Code == "invalid_scope"
}

// check obtains a token, unless it is known that there is none.
func (c foundCredential) check(ctx context.Context, clients checkedClients) checkResult {
	var module struct {
		Name string `json:"name"`
	}
	_ = json.Unmarshal(c.ProviderRaw, &module) // load says what is wrong with it
	result := checkResult{Credential: module.Name, Provider: module.Name}
	if c.name != "" { // else its identity may not be known
		result.Credential, _ = c.token()
	}
	if c.idle {
		result.Result, result.Note = checkNotTried, "has no scopes, and no route uses it"
		return result
	}
	if c.hasTenants() {
		result.cause = result.Credential // each is a reason of its own
		return result.failed(&checkFailure{checkNotTried, errors.New("each tenant has a credential of its own"), "name a tenant with --tenant, as in --tenant acme"})
	}
	result.Credential = c.ofTenant(result.Credential)
	result.cause = result.Provider + " " + c.ofTenant(c.name)

	caddyCtx, cancel := caddy.NewContext(caddy.Context{Context: ctx})
	defer cancel()
	provider, err := c.load(caddyCtx)
	if err == nil {
		var name string
		name, provider, err = withScopes(cmp.Or(c.name, inlineName(c.Credential, provider)), provider, c.scopes)
		if name != "" {
			result.Credential = c.ofTenant(cmp.Or(c.family, name))
		}
	}
	if err == nil {
		err = checkScopes("credential "+result.Credential, provider, provider.Grant().Scopes, nil)
	}
	if err == nil && !c.allowHTTP {
		err = checkEndpoints(provider) // what loading refuses gets no secret here
	}
	if err != nil {
		return result.failed(newCheckFailure(err))
	}
	result.Endpoint = provider.Grant().TokenURL
	httpClient, err := c.tokenClient(zap.NewNop(), zap.NewNop().Warn)
	if err != nil {
		return result.failed(newCheckFailure(err))
	}

	client := clients.of(c, result.Credential, provider)
	result.client, result.cause = client, client.name
	if client.failure != nil {
		result = result.failed(client.failure)
		result.Result = checkNotTried
		return result
	}
	timeout := cmp.Or(time.Duration(c.TokenTimeout), tokensource.DefaultTokenTimeout)
	ask := func(p tokenprovider.Provider) (*tokenprovider.Token, error) {
		return obtainAndRevoke(ctx, timeout, httpClient, p)
	}
	alternatives := tokenprovider.Alternatives(provider)
	token, by, failure := client.token(alternatives, ask)
	if failure != nil {
		if refused := client.refusedScopes(alternatives, failure, ask); refused != nil {
			result.Refused = refused
			failure.err = fmt.Errorf("%w; refused: %s", failure.err, strings.Join(refused, " "))
			if n := len(provider.Grant().Scopes); n > maxScopesTried {
				failure.err = fmt.Errorf("%w, of the first %d of %d", failure.err, maxScopesTried, n)
			}
		}
		if failure.result != string(tokenprovider.Refused) { // whatever the client
			result.cause = result.Endpoint
		}
		return result.failed(failure)
	}
	result.Result = checkOK
	result.Lifetime = token.Expires.Sub(token.Issued).Seconds()
	asked := by.Grant().Scopes
	result.Scopes = token.Scopes
	if token.Scopes == nil {
		result.Scopes = asked
	}
	for _, scope := range asked {
		if !slices.Contains(result.Scopes, scope) {
			result.Missing = append(result.Missing, scope)
		}
	}
	if len(asked) == 0 && token.Scopes != nil && len(token.Scopes) == 0 { // by the server's own word: others do not say
		result.Note = "the token has no scopes, and the API may refuse all that it is sent for; ask for those that are needed, by scopes"
	}
	return result
}

// obtainAndRevoke obtains a token, which is revoked where that can be done.
func obtainAndRevoke(ctx context.Context, timeout time.Duration, client *http.Client, provider tokenprovider.Provider) (*tokenprovider.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	token, err := provider.Token(ctx, client)
	if err != nil {
		return nil, err
	}
	if revoker, ok := provider.(tokenprovider.Revoker); ok && revoker.CanRevoke() {
		_ = revoker.Revoke(ctx, client, token.Value) // it expires all the same
	}
	return token, nil
}
